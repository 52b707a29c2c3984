"""Blends as people write them: `json:0.7+support:0.3`, adapters with weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real

from adapterhub.errors import InvalidRequestError
from adapterhub.registry.cards import AdapterCard
from adapterhub.registry.references import RESERVED

MAX_PARTS = 8
MAX_WEIGHT = 10.0

_NUMBER = re.compile(r"-?(\d{1,20}(\.\d{0,20})?|\.\d{1,20})(e-?\d{1,3})?", re.ASCII)


@dataclass(frozen=True)
class Blend:
    """Versions of adapters with weights; one alone with the weight 1 is that adapter itself.

    Attributes:
        parts: By falling weight, of equal ones by name, so that the order in which they were written does not matter.
    """

    parts: tuple[tuple[AdapterCard, float], ...]

    @classmethod
    def find(cls, wanted: str | Mapping[str, float], resolve: Callable[[str], AdapterCard]) -> Blend:
        """Finds the adapters that a reference or a mapping means.

        Args:
            wanted: `"json"`, `"json@3"`, `"json:0.7+support:0.3"` (a weight that is not given is 1), or reference ->
                weight. At most 8 parts, weights from -10 to 10.
            resolve: From one reference to its card, as `AdapterRegistry.resolve`.

        Raises:
            AdapterNotFoundError: There is no such adapter.
            InvalidRequestError: It is no reference, a weight is not valid, or an adapter is named twice.
        """
        weights = parse_weights(wanted) if isinstance(wanted, str) else list(wanted.items())
        if not 1 <= len(weights) <= MAX_PARTS:
            raise InvalidRequestError(f"A blend has 1 to {MAX_PARTS} parts, not {len(weights)}.")
        for ref, weight in weights:
            _check_weight(ref, weight)
            if ref in RESERVED and ref != wanted:
                raise InvalidRequestError(f"{ref!r} is no adapter, so it cannot be part of a blend.")
        parts = [(resolve(ref), float(weight) + 0.0) for ref, weight in weights]  # -0.0 becomes 0.0
        refs = [card.ref for card, _ in parts]
        twice = next((ref for ref in refs if refs.count(ref) > 1), None)
        if twice:
            raise InvalidRequestError(f"The blend names {twice} twice.", hint="Give it one weight, the sum.")
        return cls(tuple(sorted(parts, key=lambda part: (-part[1], part[0].ref))))

    @property
    def main(self) -> AdapterCard:
        """The part with the largest weight; its prompt profile is the blend's."""
        return self.parts[0][0]

    @property
    def is_plain(self) -> bool:
        """Whether it is one adapter as it stands."""
        return len(self.parts) == 1 and self.parts[0][1] == 1

    @property
    def ref(self) -> str:
        """The reference that always means this: `json@1`, `json@1:0.7+support@2:0.3`."""
        if self.is_plain:
            return self.main.ref
        return "+".join(f"{card.ref}:{_spelled(weight)}" for card, weight in self.parts)

    @property
    def name(self) -> str:
        """The adapter's name, or the blend's reference."""
        return self.main.name if self.is_plain else self.ref

    @property
    def version(self) -> int | None:
        """The adapter's version; None of a blend, whose reference holds those of its parts."""
        return self.main.version if self.is_plain else None


def parse_weights(text: str) -> list[tuple[str, float]]:
    """Reads `json:0.7+support:0.3` into references and weights; names hold neither `:` nor `+`.

    Raises:
        InvalidRequestError: A weight is no number.
    """
    return [_parse_part(part) for part in text.split("+", MAX_PARTS)]


def _parse_part(text: str) -> tuple[str, float]:
    ref, colon, weight = text.partition(":")
    if not colon:
        return ref, 1.0
    if not _NUMBER.fullmatch(weight):
        raise InvalidRequestError(
            f"{weight[:80]!r} is not the weight of a part of a blend.",
            hint="Write name:weight, joined by '+': json:0.7+support:0.3.",
        )
    return ref, float(weight)


def _check_weight(ref: str, weight: object) -> None:
    number = isinstance(weight, Real) and not isinstance(weight, bool)
    if not number or not abs(weight) <= MAX_WEIGHT:  # type: ignore[arg-type]  # NaN compares as false
        raise InvalidRequestError(
            f"The weight of {ref[:80]!r} is no number from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}.",
            hint="Weights usually add up to about 1.",
        )


def _spelled(weight: float) -> str:
    short = f"{weight:g}"
    return short if float(short) == weight and "e+" not in short else repr(weight)
