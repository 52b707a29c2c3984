"""Resolves a caller's reference: one adapter, or a blend such as `json:0.7+support:0.3`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TypeAlias

from adapterhub.errors import InvalidRequestError
from adapterhub.registry.cards import AdapterCard
from adapterhub.registry.references import RESERVED, check_reference

MAX_PARTS = 8
MAX_WEIGHT = 10.0

_HOW_TO_WRITE = "Write name:weight, joined by '+': json:0.7+support:0.3."
_NUMBER = re.compile(r"-?(\d{1,20}(\.\d{0,20})?|\.\d{1,20})(e-?\d{1,3})?", re.ASCII)


@dataclass(frozen=True)
class SingleAdapter:
    """One version of an adapter, as it stands.

    Attributes:
        main_card: Its card.
    """

    main_card: AdapterCard

    @property
    def parts(self) -> tuple[tuple[AdapterCard, float], ...]:
        """The card with the weight 1."""
        return ((self.main_card, 1.0),)

    @property
    def ref(self) -> str:
        """The reference that always means this version: `json@1`."""
        return self.main_card.ref

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.main_card.name

    @property
    def version(self) -> int:
        """The adapter's version."""
        return self.main_card.version


@dataclass(frozen=True)
class Blend:
    """The weighted sum of versions of adapters.

    Attributes:
        parts: Cards with weights by falling weight, of equal ones by reference, so that the order in which they were
            written does not matter.
    """

    parts: tuple[tuple[AdapterCard, float], ...]

    @property
    def main_card(self) -> AdapterCard:
        """The part with the largest weight; its prompt profile is the blend's."""
        return self.parts[0][0]

    @property
    def ref(self) -> str:
        """The reference that always means this blend: `json@1:0.7+support@2:0.3`."""
        return "+".join(f"{card.ref}:{format_weight(weight)}" for card, weight in self.parts)

    @property
    def name(self) -> str:
        """The blend's reference."""
        return self.ref

    @property
    def version(self) -> None:
        """None: the reference has the versions of the parts."""
        return None


ResolvedAdapter: TypeAlias = SingleAdapter | Blend
"""What a reference means."""


def resolve_adapter(
    wanted: str | Mapping[str, float], resolve: Callable[[str], AdapterCard]
) -> ResolvedAdapter:
    """Resolves a reference or a mapping to one adapter or a blend.

    Args:
        wanted: `"json"`, `"json@3"`, `"json:0.7+support:0.3"` (a missing weight is 1), or reference -> weight.
            At most 8 parts, weights from -10 to 10. One part with the weight 1 is that adapter itself.
        resolve: From one reference to its card, as `AdapterRegistry.resolve`.

    Raises:
        AdapterNotFoundError: There is no such adapter.
        InvalidRequestError: A reference or a weight is not valid, or an adapter is named twice.
    """
    weights = list(wanted.items()) if isinstance(wanted, Mapping) else parse_weights(check_reference(wanted))
    check_parts(weights, wanted)
    parts = [(resolve(ref), float(weight) + 0.0) for ref, weight in weights]  # -0.0 becomes 0.0
    refs = [card.ref for card, _ in parts]
    duplicate = next((ref for ref in refs if refs.count(ref) > 1), None)
    if duplicate:
        raise InvalidRequestError(f"The blend names {duplicate} twice.", hint="Give it one weight, the sum.")
    if len(parts) == 1 and parts[0][1] == 1:
        return SingleAdapter(parts[0][0])
    return Blend(tuple(sorted(parts, key=lambda part: (-part[1], part[0].ref))))


def check_parts(weights: Sequence[tuple[str, float]], wanted: str | Mapping[str, float] = "") -> None:
    """Checks what can be said of a blend without the registry.

    Args:
        weights: References and weights.
        wanted: What the caller wrote; a reserved name alone is no blend.

    Raises:
        InvalidRequestError: A reference or a weight is not valid, or there are too many.
    """
    if not 1 <= len(weights) <= MAX_PARTS:
        raise InvalidRequestError(f"A blend has 1 to {MAX_PARTS} parts, not {len(weights)}.")
    for ref, weight in weights:
        check_reference(ref)
        check_weight(ref, weight)
        if ref in RESERVED and ref != wanted:
            raise InvalidRequestError(f"{ref!r} is no adapter, so it cannot be part of a blend.")


def parse_weights(text: str) -> list[tuple[str, float]]:
    """Parses `json:0.7+support:0.3` into references and weights; names contain neither `:` nor `+`.

    Raises:
        InvalidRequestError: A weight is not a number.
    """
    return [_parse_part(part) for part in text.split("+", MAX_PARTS)]


def _parse_part(text: str) -> tuple[str, float]:
    ref, colon, weight = text.partition(":")
    if not colon and re.search("[=*]", ref):  # as in `json=0.7` and `0.7*json`, which other commands write
        raise InvalidRequestError(f"{ref[:80]!r} is not a part of a blend.", hint=_HOW_TO_WRITE)
    if not colon:
        return ref, 1.0
    if not _NUMBER.fullmatch(weight):
        raise InvalidRequestError(
            f"{weight[:80]!r} is not the weight of a part of a blend.", hint=_HOW_TO_WRITE
        )
    return ref, float(weight)


def check_weight(ref: str, weight: object) -> None:
    """Checks the weight of a part of a blend.

    Raises:
        InvalidRequestError: It is no number, or too far from 0.
    """
    is_number = isinstance(weight, Real) and not isinstance(weight, bool)
    if not is_number or not abs(weight) <= MAX_WEIGHT:  # type: ignore[arg-type]  # NaN compares as false
        raise InvalidRequestError(
            f"The weight of {ref[:80]!r} is no number from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}.",
            hint="Weights usually add up to about 1.",
        )


def format_weight(weight: float) -> str:
    """A weight as references have it: as short as gives the same number."""
    short = f"{weight:g}"
    return short if float(short) == weight and "e+" not in short else repr(weight)
