"""An adapter as an engine sees it: an identity, and where its weights come from. Knows no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LoraRequest:
    """An adapter to be loaded: a stored one has a folder, a blend has parts.

    Attributes:
        name: For messages only.
        digest: What the adapter is; equal digests mean equal weights and config.
        folder: PEFT's files; None of a blend.
        parts: The adapters of a blend with their weights.
    """

    name: str
    digest: str
    folder: Path | None = None
    parts: tuple[tuple[LoraRequest, float], ...] = ()

    @classmethod
    def blend(cls, name: str, parts: Iterable[tuple[LoraRequest, float]]) -> LoraRequest:
        """The weighted sum of adapters; what it is does not depend on their order."""
        ordered = tuple(sorted(parts, key=lambda part: (part[0].digest, part[1])))
        said = "".join(f"\n{source.digest} {weight!r}" for source, weight in ordered)
        digest = hashlib.sha256(f"cat{said}".encode()).hexdigest()
        return cls(name, f"sha256:{digest}", parts=ordered)
