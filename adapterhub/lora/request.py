"""An adapter as a request to the engine names it: an identity, and where the weights come from. Does not need torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from adapterhub.registry import AdapterCard, AdapterRegistry


@dataclass(frozen=True)
class LoraRequest:
    """An adapter that a request asks for, as vLLM's `LoRARequest`: a stored adapter or a blend.

    Attributes:
        name: For messages, and for the name under which a vLLM server knows it: `name@3`, or a blend's reference.
        digest: Identity of the adapter; equal digests mean equal weights and config.
    """

    name: str
    digest: str


def _nothing() -> None:
    """The download of files that are there."""


@dataclass(frozen=True)
class StoredLoraRequest(LoraRequest):
    """An adapter in a folder.

    Attributes:
        folder: Holds PEFT's files, once `fetch` has returned.
        download: Puts them there if they are in a registry in a store and not on this machine yet.
    """

    folder: Path
    download: Callable[[], object] = field(default=_nothing, compare=False, repr=False)

    @property
    def may_download(self) -> bool:
        """Whether the files may have to be downloaded first, which can take long."""
        return self.download is not _nothing

    @classmethod
    def of(cls, registry: AdapterRegistry, card: AdapterCard) -> Self:
        """The version of a card; nothing is downloaded yet."""
        return cls(card.ref, card.digest, registry.expected_folder(card), partial(registry.folder, card))


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


def fetch_files(adapter: LoraRequest) -> None:
    """Has the files of a stored adapter, or of every part of a blend, on this machine; call it before they are read.

    Raises:
        AdapterInvalidError: The files in the store are not those that were registered.
        RegistryError: The store does not answer or refuses.
    """
    for part in stored_parts(adapter):
        part.download()


def stored_parts(adapter: LoraRequest) -> Iterator[StoredLoraRequest]:
    """The stored adapter, or the stored adapters that a blend consists of."""
    match adapter:
        case StoredLoraRequest():
            yield adapter
        case BlendedLoraRequest(parts=parts):
            for part, _ in parts:
                yield from stored_parts(part)
