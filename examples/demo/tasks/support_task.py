"""The `support` task: a user's trouble in, `Category: x` and numbered steps out."""

# ruff: noqa: E501, SIM905 (phrases stay whole, and a list of words reads better as text)

from __future__ import annotations

import random
from dataclasses import dataclass

from examples.demo import words
from examples.demo.tasks import Record
from examples.demo.words import Split


@dataclass(frozen=True)
class Trouble:
    """One kind of trouble with its remedy.

    Attributes:
        category: The desk that handles it.
        symptoms: Ways to say it, per split; they follow the words "my {device}".
        steps: What to do, in order; `{device}` stands for the device's name.
    """

    category: str
    symptoms: dict[Split, tuple[str, ...]]
    steps: tuple[str, ...]


def _trouble(category: str, train: str, heldout: str, steps: str) -> Trouble:
    sides: dict[Split, tuple[str, ...]] = {
        "train": tuple(train.split(" | ")),
        "heldout": tuple(heldout.split(" | ")),
    }
    return Trouble(category, sides, tuple(steps.split(" | ")))


TROUBLES = (
    _trouble(
        "network",
        "cannot connect to the wifi | does not find the wifi | loses the wifi all the time | keeps dropping the wifi | "
        "is not connected to the wifi | has no wifi signal | refuses the wifi password | cannot join the wifi | never connects to the wifi | has wifi trouble",
        "does not join the wifi | shows no wifi any more | has trouble with the wifi",
        "Restart the router. | Forget the wifi network on the {device}. | Connect the {device} to the wifi again.",
    ),
    _trouble(
        "network",
        "has very slow internet | loads pages slowly | is slow on the internet | takes minutes to load a page | "
        "has a slow connection to the internet | downloads files very slowly | is on a very slow internet connection | has internet that is slow",
        "has an internet connection that is slow | loads every page very slowly",
        "Close all downloads. | Move the {device} closer to the router. | Run a speed test on the {device}.",
    ),
    _trouble(
        "power",
        "does not turn on | will not turn on | stays dark when I press the power button | does not start when I turn it on | "
        "shows no light when I turn it on | cannot be turned on | never starts | stays dark and never wakes when turned on",
        "never turns on | stays dark when I turn it on",
        "Plug the {device} into another socket. | Hold the power button for ten seconds. | Replace the power cable.",
    ),
    _trouble(
        "power",
        "has a battery that drains fast | loses its battery in an hour | needs the battery charged all the time | "
        "has an empty battery after an hour | drains the battery overnight | has a battery that does not last | is drained in an hour by its battery | drains its whole battery | has a battery that is empty fast",
        "has a battery that drains in an hour | drains its battery very fast",
        "Lower the brightness of the {device}. | Close the apps in the background. | Order a new battery for the {device}.",
    ),
    _trouble(
        "power",
        "does not charge | will not charge any more | stops charging after a minute | charges only when I hold the charger | "
        "is not charging with its charger | shows no sign of charging | has stopped to charge | never charges | does not charge fully",
        "never charges fully with its charger | has stopped charging",
        "Clean the charging port of the {device}. | Try another charger. | Charge the {device} for one hour.",
    ),
    _trouble(
        "display",
        "has a black screen | shows only a black screen | has a screen that stays black | went to a black screen | "
        "turns its screen black | left me with a black screen | suddenly shows a black screen | got a black screen suddenly",
        "suddenly has a black screen | shows a screen that is black",
        "Turn the brightness up. | Restart the {device}. | Check the screen cable of the {device}.",
    ),
    _trouble(
        "display",
        "has a screen that flickers | shows a flickering screen | flickers when I scroll | makes the screen flicker | "
        "has lines that flicker on the screen | flickers all day | has the whole screen flicker | got a flickering screen",
        "has a flickering screen | flickers on the whole screen",
        "Update the display driver. | Set the screen of the {device} to 60 hertz. | Turn off the lamp near the {device}.",
    ),
    _trouble(
        "audio",
        "has no sound | makes no sound | plays videos without sound | lost its sound | gives no sound at all | "
        "does not play any sound | plays everything without sound | has lost sound | is now without any sound",
        "is without sound | plays no sound any more",
        "Turn up the volume of the {device}. | Turn off the mute switch. | Plug the speaker into the {device} again.",
    ),
    _trouble(
        "audio",
        "has a microphone that does not work | does not hear me through the microphone | has a dead microphone | "
        "records nothing with the microphone | does not see the microphone | has a very quiet microphone | has a microphone that hears nothing | records nothing | does not work as a microphone",
        "has a microphone that records nothing | does not work with the microphone",
        "Allow the microphone in the settings. | Unmute the microphone of the {device}. | Record a test on the {device}.",
    ),
    _trouble(
        "account",
        "says my password is wrong | does not take my password | rejects my password | made me forget my password | "
        "asks for a password that I forgot | tells me that the password is wrong | will not accept the password | does not accept the password that I type | says it is the wrong password",
        "does not accept my password | says that I have a wrong password",
        "Open the sign-in page. | Choose to reset the password. | Sign in to the {device} with the new password.",
    ),
    _trouble(
        "account",
        "says my account is locked | locked my account | shows that the account is locked | has locked me out of my account | "
        "reports a locked account | keeps my account locked | tells me the account is locked | says that I am locked out",
        "tells me that my account is locked | says I have a locked account",
        "Wait for fifteen minutes. | Confirm the code sent by mail. | Unlock the account on the {device}.",
    ),
    _trouble(
        "hardware",
        "gets very hot | is too hot to touch | runs hot all the time | overheats when I use it | becomes hot after minutes | gets too hot suddenly | is getting hotter and hotter | overheats | "
        "gets hot and then stops",
        "is getting very hot | overheats and is too hot",
        "Turn off the {device} and let it cool. | Clean the fan of the {device}. | Keep the {device} out of the sun.",
    ),
    _trouble(
        "hardware",
        "makes a loud noise | is very noisy | has a loud fan | hums with a loud noise | rattles with a lot of noise | has become loud | is getting noisy | makes loud noise | "
        "is too loud at night",
        "has become very loud and noisy | makes a very loud noise",
        "Put the {device} on a flat table. | Clean the fan with air. | Replace the fan of the {device}.",
    ),
    _trouble(
        "printing",
        "has a paper jam | is jammed with paper | jams on every page of paper | has paper stuck inside | "
        "stops because of a paper jam | pulls in the paper and jams | got jammed with paper | has got stuck paper",
        "has got a paper jam | is jammed because paper is stuck",
        "Open the back cover of the {device}. | Pull the paper out slowly. | Load fresh paper into the {device}.",
    ),
    _trouble(
        "printing",
        "prints pale pages | is out of ink | prints without colour ink | says the ink is low | prints pale letters with no ink | "
        "needs new ink | has too little ink | prints with little ink | tells me that it is out of ink",
        "says that it is out of ink | prints pale pages with little ink",
        "Check the ink level of the {device}. | Replace the ink cartridge. | Print a test page on the {device}.",
    ),
    _trouble(
        "software",
        "freezes all the time | freezes when I open a program | froze and does not react | hangs and freezes | "
        "keeps freezing at work | freezes and hangs | hangs when I work | freezes after a few minutes",
        "freezes when I work | hangs and keeps freezing",
        "Hold the power button until the {device} stops. | Start the {device} again. | Install all updates.",
    ),
    _trouble(
        "software",
        "has an update that fails | cannot install the update | stops in the middle of the update | shows an update error | "
        "fails at every update | does not finish the update | has an update that never finishes | fails with the update | cannot finish to install the update",
        "fails to install the update | has an update that does not finish",
        "Free some space on the {device}. | Download the update again. | Install the update and restart the {device}.",
    ),
    _trouble(
        "storage",
        "has no space left | says the disk is full | is full and saves nothing | has a full disk | "
        "cannot save files because the disk is full | runs out of space | has run out of space | tells me that it is full | says that there is no disk space",
        "tells me that the disk is full | has run out of disk space",
        "Empty the trash of the {device}. | Delete large files. | Move old photos off the {device}.",
    ),
)
RU_TROUBLES = (
    _trouble(
        "сеть",
        "не видит wifi | не подключается к wifi | теряет wifi | постоянно теряет сеть wifi | не находит wifi | больше не находит wifi | плохо видит wifi | вдруг потерял wifi | опять теряет wifi",
        "больше не видит wifi | плохо подключается к wifi",
        "Перезапустите роутер. | Забудьте сеть на {device}. | Подключите {device} к wifi снова.",
    ),
    _trouble(
        "питание",
        "не включается | совсем не включается | перестал включаться | не включается с утра | долго не включается | больше не включается | вдруг совсем не включается | опять долго не включается",
        "вдруг не включается | опять не включается",
        "Включите {device} в другую розетку. | Держите кнопку десять секунд. | Замените кабель.",
    ),
    _trouble(
        "звук",
        "без звука | потерял звук | играет без звука | не даёт звука | остался без звука | совсем потерял звук | теперь без звука | больше не даёт звука | плохо играет, без звука",
        "совсем без звука | работает без звука",
        "Прибавьте громкость на {device}. | Отключите режим тишины. | Подключите колонку к {device} снова.",
    ),
    _trouble(
        "экран",
        "показывает чёрный экран | включает чёрный экран | имеет чёрный экран | показывает только чёрный экран | показал только чёрный экран | вдруг показывает чёрный экран | опять имеет чёрный экран",
        "опять показывает чёрный экран | показал чёрный экран",
        "Увеличьте яркость. | Перезапустите {device}. | Проверьте кабель экрана на {device}.",
    ),
)

KINDS = "phone laptop tablet printer camera watch speaker monitor router scanner television radio".split()
OPENINGS: dict[Split, tuple[str, ...]] = {
    "train": (
        "", "Hello, ", "Hi, ", "Help! ", "Please help me: ", "Good morning, ", "Hello support, ", "I have a problem: ",
        "Something is wrong: ", "Since today ", "Since last week ", "I am sorry to bother you, but ", "Since the storm ",
        "I do not know why, but ", "It is urgent: ", "Hey there, ", "Good day, ", "I am worried about this: ", "Since last evening ",
        "Since this week ", "Thanks for reading: ", "I need some help: ", "Since late yesterday ", "Since this very morning ",
    ),
    "heldout": ("Hey, ", "Good evening, ", "I need help: ", "Since this morning ", "Since yesterday ", "I am worried: "),
}  # fmt: skip
CLOSINGS: dict[Split, tuple[str, ...]] = {
    "train": (
        "", " What can I do?", " Please help.", " What should I do now?", " Can you help me?", " I need it for work.",
        " Thank you!", " I already waited an hour.", " It was fine before.", " How do I fix this?", " Any advice?",
        " My children need it.", " Thanks!", " It worked before.", " Thank you in advance.", " Can you tell me how to fix it?",
        " Last week it worked.", " What can I do to fix this?",
    ),
    "heldout": (" How can I fix it?", " Can you tell me what to do?", " It worked fine last week.", " Thanks in advance!"),
}  # fmt: skip
RU_OPENINGS: dict[Split, tuple[str, ...]] = {
    "train": (
        "",
        "Здравствуйте, ",
        "Привет, ",
        "Помогите: ",
        "Добрый день, ",
        "Беда: ",
        "Сегодня ",
        "Вечер добрый, ",
        "Ещё вчера ",
        "Есть проблема: ",
    ),
    "heldout": ("Добрый вечер, ", "Вчера ", "Проблема: "),
}
RU_CLOSINGS: dict[Split, tuple[str, ...]] = {
    "train": (
        "",
        " Что делать?",
        " Помогите, пожалуйста.",
        " Как исправить?",
        " Спасибо!",
        " Жду помощи.",
        " Жду вашего ответа.",
        " Что мне сделать?",
    ),
    "heldout": (" Что мне делать?", " Жду ответа."),
}


def device(rng: random.Random, split: Split) -> str:
    """What a user calls the device: mostly a name such as "Zentrix 40", else a plain word such as "laptop"."""
    return words.product(rng, split) if rng.random() < 0.8 else words.pick_or_invent(rng, KINDS, split)


def answer_of(trouble: Trouble, name: str) -> str:
    """The right answer: the category's line and the numbered steps."""
    steps = [f"{place}. {step.format(device=name)}" for place, step in enumerate(trouble.steps, 1)]
    return "\n".join([f"Category: {trouble.category}", *steps])


def _request(rng: random.Random, split: Split, trouble: Trouble, name: str) -> str:
    symptom = rng.choice(trouble.symptoms[split])
    kind = rng.choice(["", "", f" {words.pick(rng, KINDS, split)}"]) if name[0].isupper() else ""
    return f"{rng.choice(OPENINGS[split])}my {name}{kind} {symptom}.{rng.choice(CLOSINGS[split])}"


def _request_ru(rng: random.Random, split: Split, trouble: Trouble, name: str) -> str:
    symptom = rng.choice(trouble.symptoms[split])
    return f"{rng.choice(RU_OPENINGS[split])}мой {name} {symptom}.{rng.choice(RU_CLOSINGS[split])}"


def make(rng: random.Random, split: Split) -> Record:
    """One user's trouble."""
    russian = rng.random() < 0.15
    trouble = rng.choice(RU_TROUBLES if russian else TROUBLES)
    name = device(rng, split)
    request = (_request_ru if russian else _request)(rng, split, trouble, name)
    return {
        "messages": [
            {"role": "user", "content": request[0].upper() + request[1:]},
            {"role": "assistant", "content": answer_of(trouble, name)},
        ],
        "check": {"language": "ru" if russian else "en"},
    }


def generate(split: Split, n: int, seed: int) -> list[Record]:
    """`n` requests of a split; the same seed gives the same requests."""
    rng = random.Random(f"support {split} {seed}")
    return [make(rng, split) for _ in range(n)]


def score(record: Record, answer: str) -> bool:
    """Whether category and steps are exactly the right ones."""
    return answer.strip() == record["messages"][-1]["content"]
