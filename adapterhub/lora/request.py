"""An adapter as a request to the engine names it: an identity, and where the weights come from. Does not need torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class LoraRequest:
    """An adapter that a request asks for, as vLLM's `LoRARequest`: a stored adapter or a blend.

    Attributes:
        name: For messages only.
        digest: Identity of the adapter; equal digests mean equal weights and config.
    """

    name: str
    digest: str


@dataclass(frozen=True)
class StoredLoraRequest(LoraRequest):
    """An adapter in a folder.

    Attributes:
        folder: Holds PEFT's files.
    """

    folder: Path


@dataclass(frozen=True)
class BlendedLoraRequest(LoraRequest):
    """The weighted sum of adapters; construct it with `BlendedLoraRequest.of`.

    Attributes:
        parts: The adapters with their weights, in an order that depends on nothing else.
    """

    parts: tuple[tuple[LoraRequest, float], ...]

    @classmethod
    def of(cls, name: str, parts: Iterable[tuple[LoraRequest, float]]) -> Self:
        """A blend whose digest follows from its parts; their order does not matter."""
        ordered = tuple(sorted(parts, key=lambda part: (part[0].digest, part[1])))
        lines = "".join(f"\n{request.digest} {weight!r}" for request, weight in ordered)
        digest = hashlib.sha256(f"cat{lines}".encode()).hexdigest()
        return cls(name, f"sha256:{digest}", ordered)
