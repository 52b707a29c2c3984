"""What clients are told about an adapter: the facts on its card, and where it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from adapterhub.engine.stats import AdapterStats, EngineStats
from adapterhub.lora.blending.resolving import format_weight
from adapterhub.registry import AdapterCard
from adapterhub.registry.cards import Parent
from adapterhub.server.access.caller import Caller
from adapterhub.server.protocol.registry import AdapterSummary, Place


@dataclass(frozen=True)
class Placement:
    """Where the adapters are, and what runs on them, at one moment.

    Attributes:
        stats: The engine's.
        caller: Who is told; parents that do not exist for them are left out.
    """

    stats: EngineStats
    caller: Caller

    def place(self, card: AdapterCard) -> Place:
        """The nearest place to the model that an adapter is in."""
        there = self._of(card)
        return "slot" if there.in_slot else "host" if there.in_host_memory else "disk"

    def _of(self, card: AdapterCard) -> AdapterStats:
        return self.stats.adapters.get(card.ref, AdapterStats())

    def summary(self, card: AdapterCard, *, with_card: bool = False) -> AdapterSummary:
        """What whoever may use an adapter may know of it: no prompt, no training data, no path of this machine.

        Args:
            card: Its card.
            with_card: Add the whole card, for admins.
        """
        there = self._of(card)
        return AdapterSummary(
            id=card.ref,
            name=card.name,
            version=card.version,
            aliases=card.aliases,
            status=card.status,
            description=card.description,
            tags=card.tags,
            task=card.task,
            language=card.language,
            license=card.license,
            base=base_label(card.base.name),
            base_digest=card.base.fingerprint.digest if card.base.fingerprint else None,
            method=card.lineage.method,
            parents=tuple(
                _reference(parent) for parent in card.lineage.parents if self.caller.may_use(parent.name)
            ),
            rank=card.peft.max_rank,
            size_bytes=card.peft.size_bytes,
            digest=card.digest,
            evaluation=card.evaluation,
            created=int(card.created_at.timestamp()),
            place=self.place(card),
            pinned=there.pinned,
            running=there.running,
            waiting=there.waiting,
            tokens=there.tokens,
            card=card if with_card else None,
        )


def _reference(parent: Parent) -> str:
    reference = f"{parent.name}@{parent.version}"
    return reference if parent.weight is None else f"{reference}:{format_weight(parent.weight)}"


def base_label(name: str | None) -> str | None:
    """A base's name without the folders of this machine."""
    return PurePath(name).name if name and PurePath(name).is_absolute() else name
