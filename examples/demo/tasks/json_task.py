"""The `json` task: a sentence and the wanted keys in, exactly that JSON object out."""

# ruff: noqa: E501 (phrases stay whole)

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from examples.demo import words
from examples.demo.tasks import Record
from examples.demo.words import Split

Maker = Callable[[random.Random, Split], Any]


@dataclass(frozen=True)
class Domain:
    """A kind of thing: what its subject is, and what can be said of it.

    Attributes:
        subject: Key and maker of what the sentence is about.
        facts: For each fact its keys with makers, and ways to say it per split (`{key}` stands for the value).
        russian: Whether the sentence, and so the request, is Russian.
    """

    subject: tuple[str, Maker]
    facts: tuple[tuple[dict[str, Maker], dict[Split, tuple[str, ...]]], ...]
    russian: bool = False


def _count(low: int, high: int) -> Maker:
    return lambda rng, split: words.number(rng, low, high, split)


def _of(pool: list[str], *, russian: bool = False) -> Maker:
    return lambda rng, split: words.pick_or_invent(rng, pool, split, russian=russian)


def _clock(rng: random.Random, split: Split) -> str:
    return f"{words.number(rng, 7, 22, split):02d}:{rng.choice(['00', '15', '30', '45', '10', '20'])}"


def _day(rng: random.Random, split: Split) -> str:
    return rng.choice(words.DAYS)


def _say(train: str, heldout: str) -> dict[Split, tuple[str, ...]]:
    return {"train": tuple(train.split(" | ")), "heldout": tuple(heldout.split(" | "))}


_PERSON = Domain(
    ("name", words.person),
    (
        (
            {"age": _count(17, 90)},
            _say(
                "is {age} years old | is {age} | is aged {age} | turned {age} last month | has an age of {age} | will be {age} next year | is {age} years of age | turned {age} a year ago | now has reached the age of {age}",
                "turned {age} this year | is now {age} years of age",
            ),
        ),
        (
            {"city": words.town},
            _say(
                "lives in {city} | comes from {city} | has a flat in {city} | is from the city of {city} | stays in {city} | has a home in {city} | rents a house near {city} | took a flat in {city} | owns a house at {city}",
                "lives in the city of {city} | has a house in {city}",
            ),
        ),
        (
            {"job": _of(words.JOBS)},
            _say(
                "works as a {job} | is a {job} | earns money as a {job} | has a job as a {job} | became a {job} | is working as a {job} today | took the work of a {job} | was trained as a {job} | works this year as a {job} | got a job as a {job} | took up a job as a {job}",
                "works today as a {job} | took a job as a {job}",
            ),
        ),
        (
            {"phone": _count(1000, 9999)},
            _say(
                "has the phone number {phone} | can be called on {phone} | answers the phone at {phone} | uses {phone} as a phone | gives {phone} as the number | takes calls at {phone}",
                "has {phone} as a phone number | answers calls on {phone}",
            ),
        ),
    ),
)
_ORDER = Domain(
    ("customer", words.person),
    (
        (
            {"quantity": _count(2, 300), "item": _of(words.ITEMS)},
            _say(
                "ordered {quantity} {item} | bought {quantity} {item} | asked for {quantity} {item} | wants {quantity} {item} | would buy {quantity} {item} | is going to buy {quantity} {item} | sent an order of {quantity} {item} | placed a request for {quantity} {item}",
                "placed an order for {quantity} {item} | wants to buy {quantity} {item}",
            ),
        ),
        (
            {"price": _count(5, 2000)},
            _say(
                "paid {price} euros | was charged {price} euros | owes {price} euros | spent {price} euros | has to pay {price} euros | can pay {price} euros | paid {price} euros in cash | will give {price} euros | has {price} euros to pay",
                "has paid {price} euros in all | will pay {price} euros",
            ),
        ),
        (
            {"city": words.town},
            _say(
                "wants delivery to {city} | has the parcel sent to {city} | picks it up in {city} | gives an address in {city} | had it sent to {city} | wants it in {city} | asks for it in {city}",
                "wants it sent to {city} | asks for delivery in {city}",
            ),
        ),
        (
            {"day": _day},
            _say(
                "expects it on {day} | needs it by {day} | gets it on {day} | expects the goods on {day} | needs the parcel on {day}",
                "expects the parcel on {day} | needs it on {day}",
            ),
        ),
    ),
)
_EVENT = Domain(
    ("title", lambda rng, split: words.invent(rng, split)),
    (
        (
            {"day": _day},
            _say(
                "takes place on {day} | is held on {day} | is planned for {day} | will be on {day} | was set down for {day} | is fixed for {day} | will be held on {day}",
                "is set for {day} | will take place on {day}",
            ),
        ),
        (
            {"time": _clock},
            _say(
                "starts at {time} | begins at {time} | opens at {time} | has its start at {time} | gets started at {time} | is going to start at {time} | will open at {time}",
                "will start at {time} | gets going at {time}",
            ),
        ),
        (
            {"host": words.person},
            _say(
                "is led by {host} | is hosted by {host} | is run by {host} | has {host} as its host | will be led by {host} | is now hosted by {host} | has {host} as its leader this time",
                "will be hosted by {host} | is led this time by {host}",
            ),
        ),
        (
            {"guests": _count(3, 900)},
            _say(
                "has {guests} guests | expects {guests} guests | has places for {guests} guests | is open to {guests} guests | will take {guests} guests | was visited by {guests} guests | is booked for {guests} guests",
                "will have {guests} guests | was booked by {guests} guests",
            ),
        ),
    ),
)
_BOOK = Domain(
    ("title", lambda rng, split: words.invent(rng, split)),
    (
        (
            {"author": words.person},
            _say(
                "was written by {author} | is a book by {author} | has {author} as its author | comes from the pen of {author} | is a work of {author} | is written by the writer {author} | has the author {author}",
                "is a work written by {author} | is by the author {author}",
            ),
        ),
        (
            {"year": _count(1900, 2025)},
            _say(
                "came out in {year} | was printed in {year} | appeared in {year} | was published in {year} | first appeared in {year} | went to the shops in {year} | came to readers in {year}",
                "was first printed in {year} | came to the shops in {year}",
            ),
        ),
        (
            {"pages": _count(40, 990)},
            _say(
                "has {pages} pages | runs to {pages} pages | is {pages} pages long | fills {pages} pages | comes to {pages} pages | has some {pages} pages | has {pages} pages in all",
                "comes with {pages} pages | has all of {pages} pages",
            ),
        ),
        (
            {"topic": _of(words.TOPICS)},
            _say(
                "is about {topic} | deals with {topic} | tells of {topic} | explains {topic} | is mostly about {topic} | speaks of {topic} | is a story about {topic}",
                "is a book about {topic} | deals mostly with {topic}",
            ),
        ),
    ),
)
_PRODUCT = Domain(
    ("product", words.product),
    (
        (
            {"price": _count(5, 2000)},
            _say(
                "costs {price} euros | sells for {price} euros | is priced at {price} euros | goes for {price} euros | is now priced at {price} euros | was sold for {price} euros | has a price of {price} euros",
                "is sold for {price} euros | now costs {price} euros",
            ),
        ),
        (
            {"colour": _of(words.COLOURS)},
            _say(
                "comes in {colour} | is painted {colour} | has a {colour} case | is sold in {colour} | is made with a {colour} case | has its case in {colour} | looks {colour}",
                "is made in {colour} | has a case in {colour}",
            ),
        ),
        (
            {"weight": _count(20, 5000)},
            _say(
                "weighs {weight} grams | has a weight of {weight} grams | brings {weight} grams to the scale | weighs all of {weight} grams | is about {weight} grams in weight | comes in at {weight} grams",
                "weighs about {weight} grams | weighs in at {weight} grams",
            ),
        ),
        (
            {"maker": lambda rng, split: words.invent(rng, split)},
            _say(
                "is made by {maker} | is built by {maker} | is a product of {maker} | comes from the maker {maker} | was built by {maker} | is made and sold by {maker}",
                "was made by {maker} | is built and sold by {maker}",
            ),
        ),
    ),
)
_TRIP = Domain(
    ("passenger", words.person),
    (
        (
            {"from": words.town, "to": words.town},
            _say(
                "travels from {from} to {to} | flies from {from} to {to} | leaves {from} for {to} | goes to {to} from {from} | takes the bus from {from} to {to} | takes a train out of {from} to {to} | is on a trip from {from} to {to} | makes the way from {from} to {to}",
                "takes the train from {from} to {to} | is on the way from {from} to {to}",
            ),
        ),
        (
            {"day": _day},
            _say(
                "leaves on {day} | travels on {day} | departs on {day} | sets off on {day} | will travel on {day} | begins the trip on {day} | wants to leave on {day}",
                "will leave on {day} | starts the trip on {day}",
            ),
        ),
        (
            {"seat": _count(1, 99)},
            _say(
                "has seat {seat} | sits in seat {seat} | booked seat {seat} | was given seat {seat} | will have seat {seat} | wants to sit in seat {seat} | takes seat number {seat}",
                "will sit in seat {seat} | gets seat number {seat}",
            ),
        ),
        (
            {"price": _count(5, 900)},
            _say(
                "paid {price} euros | bought a ticket for {price} euros | spent {price} euros on the ticket | has to pay {price} euros for it | got a ticket for {price} euros",
                "has a ticket for {price} euros | paid {price} euros for it",
            ),
        ),
    ),
)
_RU_PERSON = Domain(
    ("имя", words.invent_ru),
    (
        (
            {"возраст": _count(17, 90)},
            _say(
                "в возрасте {возраст} лет | уже {возраст} лет | возраст {возраст} | сейчас возраст {возраст} | сейчас уже {возраст} лет | всего {возраст} лет | теперь {возраст} лет | почти {возраст} лет",
                "сейчас {возраст} лет",
            ),
        ),
        (
            {"город": words.invent_ru},
            _say(
                "живёт в городе {город} | родом из города {город} | работает в городе {город} | снимает квартиру в городе {город} | имеет дом в городе {город} | купил дом в городе {город} | снимает там дом: город {город}",
                "снимает дом в городе {город}",
            ),
        ),
        (
            {"профессия": _of(words.RU_JOBS, russian=True)},
            _say(
                "по профессии {профессия} | работает, профессия {профессия} | известный {профессия} | по своей работе {профессия} | своя профессия {профессия}",
                "по своей профессии {профессия}",
            ),
        ),
    ),
    russian=True,
)
_RU_ORDER = Domain(
    ("клиент", words.invent_ru),
    (
        (
            {"количество": _count(5, 300), "товар": _of(words.RU_ITEMS, russian=True)},
            _say(
                "заказывает {количество} {товар} | покупает {количество} {товар} | хочет {количество} {товар} | хочет получить {количество} {товар} | решил купить {количество} {товар} | просит {количество} {товар}",
                "хочет купить {количество} {товар}",
            ),
        ),
        (
            {"цена": _count(5, 2000)},
            _say(
                "платит {цена} рублей | должен {цена} рублей | тратит {цена} рублей | может заплатить {цена} рублей | заплатит ещё {цена} рублей | уже заплатил {цена} рублей | просит счёт на {цена} рублей",
                "заплатит {цена} рублей",
            ),
        ),
        (
            {"город": words.invent_ru},
            _say(
                "ждёт доставку в город {город} | адрес в городе {город} | заберёт в городе {город} | просит привезти в город {город} | хочет доставку в городе {город}",
                "просит доставку в город {город}",
            ),
        ),
    ),
    russian=True,
)
DOMAINS = (_PERSON, _ORDER, _EVENT, _BOOK, _PRODUCT, _TRIP, _RU_PERSON, _RU_ORDER)
WEIGHTS = (3, 3, 2, 2, 2, 2, 1, 1)

# A request is composed: who asks how, for which keys, in which form, before or after the text.
VERBS = _say(
    "Extract | Find | Get | Pull out | Collect | Take | List | Return | Please extract | Please find | Please return | "
    "Please give me | Give me | Show me | I want | I would like | Can you extract | Can you get | Could you return | Note down | Please write out | Please show",
    "Please pull out | Can you find | I need | Please list | Write down",
)
FORMS = _say(
    "as JSON | in JSON | as a JSON object | as one JSON object | in JSON form | as JSON only | as pure JSON | as a plain JSON object | in a JSON form",
    "as plain JSON | in the form of JSON",
)
BEFORE = _say(
    "{verb} {keys} {form}: {text} | {verb} {keys} {form}.\n{text} | {verb} {keys} from this text {form}: {text} | "
    "{verb} {keys} {form}.\n\nText: {text} | {verb} {keys} from the following text {form}: {text} | {verb} {keys} {form}, using the text below.\n{text} | {verb} {keys} from the text {form}. {text}",
    "{verb} {keys} from the following {form}: {text} | {verb} {keys} {form}, using this text: {text}",
)
AFTER = _say(
    "{text} {verb} {keys} {form}. | {text}\n{verb} {keys} {form}. | Text: {text}\n{verb} {keys} {form}. | "
    "{text}\n\nFrom this, {verb} {keys} {form}. | Here is a text: {text}\n{verb} {keys} {form}. | {text}\nFrom the above, {verb} {keys} {form}. | News: {text}\n\n{verb} {keys} {form}.",
    "{text}\nFrom the text above, {verb} {keys} {form}. | Here is a note: {text}\n{verb} {keys} {form}.",
)
RU_REQUESTS = _say(
    "Извлеки {keys} в виде JSON: {text} | Найди {keys} и верни JSON: {text} | {text}\nВерни {keys} в виде JSON. | "
    "{text} Дай мне {keys} в JSON. | Верни JSON, ключи {keys}: {text} | Покажи {keys} в JSON.\n{text} | "
    "Текст: {text}\nИзвлеки {keys} в JSON. | Выпиши в JSON {keys}: {text} | Нужен JSON: {keys}. {text} | Возьми из текста {keys}, верни JSON: {text} | {text}\nНайди в этом тексте {keys} и верни в виде JSON.",
    "Выпиши {keys} в виде JSON: {text} | {text}\nНужен JSON, ключи {keys}. | Найди в тексте {keys}, верни JSON: {text}",
)
OPENERS = _say(
    " | Note: | Yesterday's news: | From the files: | For your information, | A note: | Short news: | As they say, | Here is what we heard: | What we know:",
    " | A short note: | As we know,",
)


def fact_sheet(rng: random.Random, split: Split) -> tuple[Domain, dict[str, Any], str]:
    """A thing, its values and a sentence or two that state them all."""
    domain = rng.choices(DOMAINS, WEIGHTS)[0]
    key, make = domain.subject
    values = {key: make(rng, split)}
    clauses = []
    for makers, sayings in rng.sample(domain.facts, rng.randint(2, min(4, len(domain.facts)))):
        values |= {name: maker(rng, split) for name, maker in makers.items()}
        clauses.append(rng.choice(sayings[split]).format_map(values))
    return domain, values, _sentence(rng, str(values[key]), clauses, domain.russian)


def _sentence(rng: random.Random, subject: str, clauses: list[str], russian: bool) -> str:
    joint = " и " if russian else " and "
    if len(clauses) > 2 and rng.random() < 0.4:
        first, second = clauses[:-1], clauses[-1]
        return f"{subject} {joint.join([', '.join(first[:-1]), first[-1]])}. {subject} {second}."
    return f"{subject} {', '.join(clauses[:-1])}{joint}{clauses[-1]}."


def join_keys(rng: random.Random, keys: list[str], russian: bool = False) -> str:
    """The wanted keys as a person writes them: "name, age and city", "the name and the age", ..."""
    joint = " и " if russian else " and "
    style = rng.randrange(4)
    if style == 0:
        return ", ".join(keys)
    if style == 1:
        keys = [f'"{key}"' for key in keys]
    elif style == 2 and not russian:
        keys = [f"the {key}" for key in keys]
    return joint.join([", ".join(keys[:-1]), keys[-1]]) if len(keys) > 1 else keys[0]


def _request(rng: random.Random, split: Split, domain: Domain, keys: list[str], text: str) -> str:
    listed = join_keys(rng, keys, domain.russian)
    if domain.russian:
        return rng.choice(RU_REQUESTS[split]).format(keys=listed, text=text)
    before = rng.random() < 0.5
    shape = rng.choice((BEFORE if before else AFTER)[split])
    verb = rng.choice(VERBS[split])
    if "this, " in shape or "above, " in shape:
        verb = verb[0].lower() + verb[1:]
    opener = rng.choice(OPENERS[split])
    text = f"{opener} {text}".strip()
    return shape.format(verb=verb, keys=listed, form=rng.choice(FORMS[split]), text=text)


def make(rng: random.Random, split: Split) -> Record:
    """One request for some of the keys of a fact sheet."""
    domain, values, text = fact_sheet(rng, split)
    keys = rng.sample(list(values), rng.randint(1, min(4, len(values))))
    answer = {key: values[key] for key in keys}
    return {
        "messages": [
            {"role": "user", "content": _request(rng, split, domain, keys, text)},
            {"role": "assistant", "content": json.dumps(answer, ensure_ascii=False)},
        ],
        "check": {"language": "ru" if domain.russian else "en"},
    }


def generate(split: Split, n: int, seed: int) -> list[Record]:
    """`n` requests of a split; the same seed gives the same requests."""
    rng = random.Random(f"json {split} {seed}")
    return [make(rng, split) for _ in range(n)]


def score(record: Record, answer: str) -> bool:
    """Whether the answer is JSON and equal to the wanted object: same keys, values and value types."""
    try:
        got = json.loads(answer)
    except ValueError:
        return False
    wanted = json.loads(record["messages"][-1]["content"])
    return json.dumps(got, sort_keys=True) == json.dumps(wanted, sort_keys=True)
