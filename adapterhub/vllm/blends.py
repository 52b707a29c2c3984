"""Blends for servers, which have none: written as LoRA adapters beside the registry's, and removed after their use.

A blend is the exact sum of its parts, whose ranks add up; above the servers' highest rank it is cut by SVD, which the
log says. Fronts of one registry share what is written.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from adapterhub.capabilities import HIGHEST_RANK, AdapterFeatures, Backend, check_adapter
from adapterhub.errors import InvalidRequestError
from adapterhub.lora.request import (
    BlendedLoraRequest,
    LoraRequest,
    StoredLoraRequest,
    fetch_files,
    stored_parts,
)
from adapterhub.peft_format.config import WEIGHTS_FILE
from adapterhub.registry.store import AdapterRegistry

FOLDER = ".blends"
"""In the registry's folder, which the servers see."""
MAX_BLENDS = 32
"""How many are kept; more stay only while requests use them."""
IDLE_SECONDS = 300.0
"""How long one is kept after its last use."""


class MaterialisedBlends:
    """The blends that servers are given as adapters. `check` is for any thread, the rest for one event loop.

    Args:
        registry: Where the parts are; without it blends are refused.
        max_lora_rank: The servers' `--max-lora-rank`; None for the highest that there is.
    """

    def __init__(self, registry: AdapterRegistry | None, max_lora_rank: int | None) -> None:
        self._registry = registry
        self._rank = max_lora_rank or HIGHEST_RANK[Backend.VLLM]
        self._written: dict[str, StoredLoraRequest] = {}  # by the blend's digest
        self._users = Counter[str]()
        self._writing = asyncio.Lock()  # one at a time: it takes memory and a processor

    def check(self, adapter: LoraRequest | None) -> None:
        """Returns if an adapter is no blend, or one that can be given to a server.

        Raises:
            AdapterIncompatibleError: vLLM does not run it; the hint says what makes it fit.
            InvalidRequestError: There is no registry.
        """
        if not isinstance(adapter, BlendedLoraRequest) or adapter.digest in self._written:
            return
        self._source()
        folders = [part.folder for part in stored_parts(adapter)]
        if all((folder / WEIGHTS_FILE).is_file() for folder in folders):  # else they are not downloaded yet
            blend = AdapterFeatures.of_blend(map(AdapterFeatures.of_folder, folders))
            check_adapter(blend.rewritten(rank=self._rank), Backend.VLLM, name=f"The blend {adapter.name}")

    @asynccontextmanager
    async def stored(self, adapter: LoraRequest) -> AsyncIterator[LoraRequest]:
        """The adapter, or the one that a blend was written as, which is not removed meanwhile.

        Raises:
            AdapterHubError: The blend cannot be written.
        """
        if not isinstance(adapter, BlendedLoraRequest):
            yield adapter
            return
        self._users[adapter.digest] += 1
        try:
            yield await self._found(adapter) or await self._write(adapter)
        finally:
            self._users -= Counter([adapter.digest])  # drops what has none left

    def written(self, adapter: LoraRequest) -> LoraRequest | None:
        """The adapter, or the one that a blend was written as, if it was."""
        return self._written.get(adapter.digest) if isinstance(adapter, BlendedLoraRequest) else adapter

    async def reap(self) -> list[StoredLoraRequest]:
        """Removes what nobody has used for a while; returns the others, those of other fronts too.

        Marks what is in use here, so that other fronts do not remove it; call it well within `IDLE_SECONDS`.

        Raises:
            ExportError: The folder cannot be read.
            InvalidRequestError: There is no registry.
        """
        kept = await asyncio.to_thread(self._reap, self._in_use())
        folders = {blend.folder for blend in kept}
        for digest, blend in list(self._written.items()):
            if blend.folder not in folders and digest not in self._users:
                del self._written[digest]
        return kept

    async def _found(self, blend: BlendedLoraRequest) -> StoredLoraRequest | None:
        """The adapter that a blend was written as, if it is still there."""
        written = self._written.get(blend.digest)
        if written is None or not await asyncio.to_thread(_mark_used, written):
            return None
        return written

    async def _write(self, blend: BlendedLoraRequest) -> StoredLoraRequest:
        """Writes a blend; the next one waits until it is written, also if who asked for it has given up."""
        await self._writing.acquire()
        writing = asyncio.create_task(self._find_or_write(blend))
        writing.add_done_callback(lambda _: self._writing.release())
        return await asyncio.shield(writing)

    async def _find_or_write(self, blend: BlendedLoraRequest) -> StoredLoraRequest:
        if found := await self._found(blend):  # another request has written it meanwhile
            return found
        found = await asyncio.to_thread(self._materialise, blend, self._in_use())
        self._written[blend.digest] = found
        return found

    def _in_use(self) -> list[StoredLoraRequest]:
        return [self._written[digest] for digest in self._users if digest in self._written]

    def _source(self) -> AdapterRegistry:
        if self._registry is None:
            raise InvalidRequestError(
                "A vLLM server blends no adapters, and an engine without a registry cannot do it in its place.",
                hint="Give VLLMEngine the registry, or register the blend with `adapterhub blend`.",
            )
        return self._registry

    def _materialise(
        self, blend: BlendedLoraRequest, in_use: Sequence[StoredLoraRequest]
    ) -> StoredLoraRequest:
        # They need torch, whose import takes seconds.
        from adapterhub.export.lora_form import LoraForm
        from adapterhub.export.materialising import materialise

        fetch_files(blend)
        self.check(blend)  # what was not there when the request came
        registry, form = self._source(), LoraForm(plain=True, rank=self._rank)
        cache, used = registry.root / FOLDER, {one.folder for one in in_use}
        return materialise(registry, blend, form, cache=cache, maximum=MAX_BLENDS, in_use=used)

    def _reap(self, in_use: Sequence[StoredLoraRequest]) -> list[StoredLoraRequest]:
        cache = self._source().root / FOLDER
        if not cache.is_dir():
            return []
        from adapterhub.export.materialising import mark_used, materialised_blends, remove_unused

        for blend in in_use:  # other fronts see only this of an answer that takes long
            mark_used(blend)
        remove_unused(cache, seconds=IDLE_SECONDS, in_use={blend.folder for blend in in_use})
        return materialised_blends(cache)


def _mark_used(blend: StoredLoraRequest) -> bool:
    from adapterhub.export.materialising import mark_used  # it needs torch

    return mark_used(blend)
