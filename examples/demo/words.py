"""Words for the demo's texts, each on one side of the train/heldout line.

Names of people, places and products are invented from syllables, so there is no finite list of them to learn by heart.
Which side a name is on follows from its checksum; a plain word's side follows from its place in its list. Nothing that
is made for `heldout` is ever made for `train`.
"""

# ruff: noqa: SIM905 (a list of words reads better as text)

from __future__ import annotations

import builtins
import keyword
import random
import zlib
from collections.abc import Callable, Sequence
from typing import Literal

Split = Literal["train", "heldout"]

_ONSETS = "b br c ch cl d dr f fl g gr h j k kl kr l m n p pl pr qu r s sh sk sl st t th tr v w y z".split()
_VOWELS = "a e i o u a e i o u a e i o ai ea io ou".split()
_CODAS = ["", "", "", "n", "r", "l", "s", "m", "k", "t", "nd", "rn", "x", "sh", "lt"]
_TOWN_ENDINGS = ["", "", "ville", "port", "ford", "burg", "ton", "dale", "stad"]
_STEMS = (
    "about account active address advice album amber anchor answer apple archive area artist autumn "
    "balance basket battle bishop border bottom branch breath brother butter button camera candle castle "
    "center chance change channel charge chicken choice circle class client cloud coffee color column "
    "comfort common corner cotton country course cover credit crystal current danger daughter decade "
    "degree delta desert detail diamond dinner distance doctor double dragon driver eagle earth editor "
    "effect empire energy engine evening event example expert factor family farmer father feather fiction "
    "field figure filter finger flower forest format fortune frame friend future galaxy garage garden "
    "gentle giant ginger global golden grace gravity guard guitar hammer harbor health heart helper "
    "history holiday honey hotel hunter husband image index insect island jacket journal journey jungle "
    "justice kernel kitchen knight label ladder language laptop lawyer leader leather legend lemon letter "
    "level library limit liquid little load logic machine magic magnet manager marble margin market "
    "master matter meadow measure medal member memory mercury message metal method middle million mineral "
    "minute mirror mission model modern moment monster month morning mother motion mountain muscle museum "
    "music mystery nation nature needle network nickel night noble north notebook notice number object "
    "ocean office olive onion opera orange order organ origin output oxygen paint palace panel paper "
    "parent partner passage pastor pattern pebble pencil people pepper person phone picture pilot pioneer "
    "planet plastic plate player pocket poem police potato powder power prince prison problem profit "
    "project promise public purple puzzle quality quarter question quiet rabbit radio random record "
    "region report rescue result reward ribbon river rocket root salad sample scale scanner school "
    "science score screen search season second secret select senior series server session shadow shelter "
    "shoulder signal silver simple singer sister smooth soldier source south speaker special spider "
    "spirit spoon spring square stable station status stone storage storm story strange stream street "
    "student summer supper surface switch symbol system table talent target teacher temple texture "
    "theater thunder ticket timber title tomato tower track trade travel treasure triangle trouble tunnel "
    "turtle twelve umbrella uncle union update valley value velvet version village violin vision voice "
    "volume wagon walker warrior water weather weight western window winter wisdom wonder worker world "
    "writer yellow young zebra"
).split()
_RU_ONSETS = "б в г д ж з к л м н п р с т ф х ш бр вр гр др кл кр пл пр ст тр".split()
_RU_VOWELS = list("аеиоуаоиыя")
_RU_CODAS = ["", "", "", "н", "р", "л", "с", "м", "к", "т", "нд", "в"]

JOBS = (
    "baker nurse pilot teacher farmer painter lawyer driver singer plumber cook tailor writer dentist gardener "
    "engineer mechanic florist barber sailor judge welder potter actor miner"
).split()
ITEMS = (
    "lamps chairs books pencils plates boxes candles jackets bottles mirrors carpets tables clocks shovels brushes "
    "baskets helmets pillows ladders spoons kettles blankets towels buckets batteries"
).split()
COLOURS = "red blue green black white grey yellow purple orange brown silver pink golden beige violet".split()
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
TOPICS = (
    "rivers bridges insects music bread trains maps storms poetry glass horses paper islands planets cheese "
    "chess castles gardens whales clay"
).split()
RU_JOBS = (
    "врач пекарь повар учитель водитель художник юрист певец слесарь портной писатель садовник инженер механик "
    "флорист моряк судья сварщик актёр шахтёр"
).split()
RU_ITEMS = (
    "ламп стульев книг тарелок коробок свечей курток бутылок зеркал ковров столов часов лопат щёток корзин "
    "подушек ложек чайников одеял полотенец"
).split()


def side(word: str) -> Split:
    """Which side of the line an invented word is on: about one in six is held out."""
    return "heldout" if zlib.crc32(word.lower().encode()) % 6 == 0 else "train"


def pool(words: Sequence[str], split: Split) -> list[str]:
    """The part of a finite list that a split may use: every fifth word is held out."""
    return [word for place, word in enumerate(words) if (place % 5 == 4) == (split == "heldout")]


def pick(rng: random.Random, words: Sequence[str], split: Split) -> str:
    """One word of `words` from the split's part of it."""
    return rng.choice(pool(words, split))


def pick_or_invent(rng: random.Random, words: Sequence[str], split: Split, *, russian: bool = False) -> str:
    """A lower-case word, in three of five cases an invented one: what can be anything must be read, not guessed."""
    if rng.random() < 0.4:
        return pick(rng, words, split)
    return invent_ru(rng, split).lower() if russian else identifier(rng, split)


def invent(rng: random.Random, split: Split, *, syllables: tuple[int, int] = (2, 3)) -> str:
    """A capitalised invented word, such as "Zorvani" or, of pieces of real words, "Hunder"."""

    def make() -> str:
        if rng.random() < 0.35:
            return _spliced(rng).capitalize()
        return _word(rng, _ONSETS, _VOWELS, _CODAS, rng.randint(*syllables)).capitalize()

    return _draw(make, split)


def invent_ru(rng: random.Random, split: Split) -> str:
    """A capitalised invented word in Cyrillic letters, such as "Дарник"."""
    return _draw(lambda: _word(rng, _RU_ONSETS, _RU_VOWELS, _RU_CODAS, rng.randint(2, 3)).capitalize(), split)


def person(rng: random.Random, split: Split) -> str:
    """An invented person: one name, or a name and a surname."""
    first = invent(rng, split)
    return f"{first} {invent(rng, split)}" if rng.random() < 0.3 else first


def town(rng: random.Random, split: Split) -> str:
    """An invented place."""
    return _draw(lambda: invent(rng, split, syllables=(1, 2)) + rng.choice(_TOWN_ENDINGS), split)


def product(rng: random.Random, split: Split) -> str:
    """An invented product with a model number, such as "Zentrix 40" or "Dalo X7"."""
    name = invent(rng, split)
    number = rng.choice(["", "X", "Q", "S", "T"]) + str(rng.randint(2, 990))
    return f"{name} {number}" if rng.random() < 0.6 else name


def identifier(rng: random.Random, split: Split, parts: int = 1) -> str:
    """An invented lower-case identifier, such as "dovar" or "dovar_klin", that means nothing in Python."""
    while True:
        name = "_".join(invent(rng, split, syllables=(1, 2)).lower() for _ in range(parts))
        if not keyword.iskeyword(name) and not hasattr(builtins, name):
            return name


def number(rng: random.Random, low: int, high: int, split: Split) -> int:
    """A whole number of `low..high` from the split's side (both sides are spread over the whole range)."""
    return int(_draw(lambda: str(rng.randint(low, high)), split))


def _word(
    rng: random.Random, onsets: Sequence[str], vowels: Sequence[str], codas: Sequence[str], count: int
) -> str:
    inner = "".join(rng.choice(onsets) + rng.choice(vowels) for _ in range(count - 1))
    return inner + rng.choice(onsets) + rng.choice(vowels) + rng.choice(codas)


def _spliced(rng: random.Random) -> str:
    head, tail = rng.sample(_STEMS, 2)
    return head[: rng.randint(2, 4)] + tail[-rng.randint(2, 4) :]


def _draw(make: Callable[[], str], split: Split) -> str:
    while True:
        word = make()
        if side(word) == split:
            return word
