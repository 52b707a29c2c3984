"""Requests to measure the router on: CLINC150, and what is made of it.

CLINC150 (Larson et al., EMNLP 2019) has 150 intents in 10 domains and out-of-scope requests; it comes from
github.com/clinc/oos-eval, folder `data`, under CC BY 3.0, and is not part of this project. A folder needs its
`data_full.json` and `domains.json`.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

Requests = dict[str, list[str]]
"""Route -> its requests."""

FILLER = (
    "I have been thinking about this since the last time.",
    "My colleague was sitting next to me a moment ago.",
    "It has been on my mind for some while now.",
    "There was a long queue in front of the building.",
    "We had talked about something else before that.",
    "The window behind me is still open.",
    "Somebody left a green chair in the corridor.",
    "My sister and her neighbour came by earlier.",
    "This took longer than all of us had expected.",
    "The cat is asleep on the old sofa again.",
    "I wrote the first half of this while standing.",
    "A few people in the other room are laughing.",
)
"""Sentences that ask for nothing and belong to no intent."""
FILLER_WORDS = 25


@dataclass(frozen=True)
class Clinc:
    """The data set.

    Attributes:
        train: Intent -> requests to train on.
        test: Intent -> requests to measure on.
        negatives: Out-of-scope requests to train on.
        out_of_scope: Out-of-scope requests to measure on.
        domains: Domain -> its intents.
    """

    train: Requests
    test: Requests
    negatives: list[str]
    out_of_scope: list[str]
    domains: dict[str, list[str]]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads a folder."""
        data, domains = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in ("data_full.json", "domains.json")
        )
        return cls(
            _by_intent(data["train"]),
            _by_intent(data["test"]),
            [text for text, _ in data["oos_train"]],
            [text for text, _ in data["oos_test"]],
            domains,
        )

    def by_domain(self, requests: Mapping[str, Iterable[str]]) -> Requests:
        """Intents' requests as those of the domains."""
        return {
            domain: [text for intent in intents for text in requests[intent]]
            for domain, intents in self.domains.items()
        }

    @property
    def tags(self) -> Requests:
        """Domain -> the names of its intents, in words."""
        return {domain: [spaced(name) for name in intents] for domain, intents in self.domains.items()}


def _by_intent(pairs: Iterable[tuple[str, str]]) -> Requests:
    found: Requests = {}
    for text, intent in pairs:
        found.setdefault(intent, []).append(text)
    return found


def spaced(name: str) -> str:
    """A name as words."""
    return name.replace("_", " ")


def draw(requests: Requests, count: int | None, seed: int) -> Requests:
    """`count` random requests of each route; all of them if it is None."""
    rng = random.Random(seed)
    return {
        name: rng.sample(texts, min(count or len(texts), len(texts)))
        for name, texts in sorted(requests.items())
    }


def ciphered(requests: Requests, routes: int) -> Requests:
    """`routes` routes: the given ones, then copies of them with permuted letters.

    Time and size are those of so many routes with n-grams of their own; accuracy has no meaning.
    """
    found: Requests = {}
    for repeat in range(-(-routes // len(requests))):
        shuffled = (
            random.Random(repeat).sample(string.ascii_lowercase, 26) if repeat else string.ascii_lowercase
        )
        cipher = str.maketrans(string.ascii_lowercase, "".join(shuffled))
        for name, texts in requests.items():
            found[f"{name}_{repeat}"] = [text.lower().translate(cipher) for text in texts]
    return dict(list(found.items())[:routes])


def with_filler(text: str, rng: random.Random, *, sentence: bool = True) -> str:
    """A request amid at least `FILLER_WORDS` words of filler.

    Args:
        text: The request.
        rng: What chooses and places the filler.
        sentence: End the request with a full stop, as a sentence of its own, or let it run into what follows.
    """
    sentences: list[str] = []
    for one in rng.sample(FILLER, len(FILLER)):
        if sum(len(chosen.split()) for chosen in sentences) >= FILLER_WORDS:
            break
        sentences.append(one)
    index = rng.randint(0, len(sentences))
    request = text.rstrip(".!?") + "." if sentence and not text.endswith(("!", "?")) else text
    parts = [*sentences[:index], request, *sentences[index:]]
    return " ".join(parts) if sentence else " ".join(part.rstrip(".") for part in parts)


def with_typo(text: str, rng: random.Random) -> str:
    """A request with one typo in its longest word: a letter left out, doubled, exchanged or in the wrong place."""
    words = text.split()
    longest = max(range(len(words)), key=lambda one: len(words[one]))
    word = words[longest]
    at = rng.randrange(len(word))
    left, right = word[:at], word[at + 1 :]
    words[longest] = rng.choice(
        [
            left + right,
            left + word[at] * 2 + right,
            left + rng.choice(string.ascii_lowercase) + right,
            left + right[:1] + word[at] + right[1:],
        ]
    )
    return " ".join(words)
