"""Which version of a split alias answers a request: a share of them each, and for one user always the same.

Weighted rendezvous hashing (Thaler and Ravishankar 1998, weights by the logarithmic method): a version's number for a
key is evenly distributed, and the highest score wins in proportion to its weight. When weights change, only keys
whose version loses or gains share move.
"""

from __future__ import annotations

import hashlib
import math
import random
from contextlib import suppress

from adapterhub.errors import AdapterNotFoundError
from adapterhub.registry import AdapterCard, AdapterRegistry, Alias, Ref
from adapterhub.registry.references import LATEST


def resolve_for_request(registry: AdapterRegistry, reference: str, user: str | None) -> AdapterCard:
    """The card of the version that answers a request: of a split alias, one of its versions that are not disabled.

    Args:
        registry: The adapters.
        reference: To one adapter.
        user: Whose requests keep one version; None chooses anew.

    Raises:
        AdapterHubError: As `AdapterRegistry.resolve`.
    """
    alias = _split_alias(registry, Ref.parse(reference))
    if alias is None:
        return registry.resolve(reference)
    name = Ref.parse(reference).name
    in_order = versions_by_preference(alias, f"{reference}\n{_key(user)}")
    cards = (registry.get(f"{name}@{version}") for version in in_order)
    with suppress(AdapterNotFoundError):  # removed since the alias was read, which goes on with the rest
        for card in cards:
            if card.status == "ready":
                return card
    return registry.resolve(reference)  # the version that is left, or the error that it is disabled


def versions_by_preference(alias: Alias, key: str) -> list[int]:
    """The versions of an alias, the one that answers first.

    Args:
        alias: The alias.
        key: Chooses; the same one gives the same order.
    """

    def score(version: int) -> float:
        return alias.weights[version] / -math.log(_evenly_distributed(f"{version}\n{key}"))

    return sorted(alias.weights, key=score, reverse=True)


def _split_alias(registry: AdapterRegistry, ref: Ref) -> Alias | None:
    if ref.alias is None or ref.alias == LATEST:
        return None
    alias = registry.aliases(ref.name).get(ref.alias)
    return alias if alias and alias.is_split else None


def _key(user: str | None) -> str:
    return f"user {user}" if user else f"request {random.getrandbits(64)}"


def _evenly_distributed(text: str) -> float:
    """A number between 0 and 1, exclusive, that belongs to a text."""
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    # 52 bits and a half are exact in a float; of 64 bits, the highest would be rounded to 1, whose logarithm is 0.
    return ((int.from_bytes(digest) >> 12) + 0.5) / 2**52
