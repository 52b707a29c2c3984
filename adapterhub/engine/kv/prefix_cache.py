"""Keys and values of prompts' beginnings, so that what many prompts share is computed once.

Prompts are cut into blocks of a fixed number of tokens. A block is known by the adapter's digest, the block before it
and its own tokens, compared in full: the same text under two adapters shares nothing, and there are no collisions.
A hit is copied into the answer's lane, so an answer never depends on what is kept or dropped here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from adapterhub.engine.kv.cache import KVCache, KVSlot

BLOCK = 32


@dataclass(eq=False)
class _Block:
    key: tuple[int, str, tuple[int, ...]]
    number: int
    memory: torch.Tensor
    children: int = 0


class PrefixCache:
    """Blocks of prompts, the least recently used ones dropped first.

    Args:
        cache: Where the lanes are.
        max_tokens: How many tokens to keep; 0 keeps none.
    """

    def __init__(self, cache: KVCache, max_tokens: int) -> None:
        self._cache = cache
        self._max_blocks = max_tokens // BLOCK
        self._blocks: OrderedDict[tuple[int, str, tuple[int, ...]], _Block] = OrderedDict()
        self._numbers: dict[int, _Block] = {}
        self._next = 1
        self.hit_tokens = 0

    @property
    def tokens(self) -> int:
        """How many tokens are kept."""
        return len(self._blocks) * BLOCK

    @property
    def bytes(self) -> int:
        """What they take."""
        return self.tokens * self._cache.shape.bytes_per_token

    def fill(self, lane: KVSlot, digest: str, prompt: Sequence[int]) -> int:
        """Copies the longest known beginning of a prompt into an empty lane.

        At least one token of the prompt is left to be computed, since its logits are wanted.

        Returns:
            How many tokens were copied.
        """
        for start, key in self._keys(digest, prompt[:-1]):
            block = self._blocks.get(key)
            if block is None:
                break
            self._blocks.move_to_end(key)
            lane.write(start, block.memory)
        self.hit_tokens += lane.length
        return lane.length

    def keep(self, lane: KVSlot, digest: str, prompt: Sequence[int]) -> None:
        """Keeps a prompt that a lane holds."""
        parent: _Block | None = None
        for start, key in self._keys(digest, prompt):
            block = self._blocks.get(key)
            if block is None:
                if not self._make_room(parent):
                    return
                block = self._add(key, lane.read(start, start + BLOCK), parent)
            self._blocks.move_to_end(key)
            parent = block

    def forget(self, digest: str) -> None:
        """Drops an adapter's blocks."""
        for key in [key for key in self._blocks if key[1] == digest]:
            del self._numbers[self._blocks.pop(key).number]

    def clear(self) -> None:
        """Drops everything."""
        self._blocks.clear()
        self._numbers.clear()

    def _keys(
        self, digest: str, prompt: Sequence[int]
    ) -> Iterator[tuple[int, tuple[int, str, tuple[int, ...]]]]:
        """Where each whole block starts, and its key; the block before it must be known by then."""
        parent = 0
        for start in range(0, len(prompt) - BLOCK + 1, BLOCK):
            key = (parent, digest, tuple(prompt[start : start + BLOCK]))
            yield start, key
            block = self._blocks.get(key)
            if block is None:
                return
            parent = block.number

    def _add(
        self, key: tuple[int, str, tuple[int, ...]], memory: torch.Tensor, parent: _Block | None
    ) -> _Block:
        block = self._blocks[key] = _Block(key, self._next, memory)
        self._numbers[block.number] = block
        self._next += 1
        if parent:
            parent.children += 1
        return block

    def _make_room(self, parent: _Block | None) -> bool:
        """Drops blocks that none follows until there is room for one more; never the one it is to follow."""
        while len(self._blocks) >= self._max_blocks:
            oldest = next((b for b in self._blocks.values() if not b.children and b is not parent), None)
            if oldest is None:
                return False
            del self._blocks[oldest.key], self._numbers[oldest.number]
            before = self._numbers.get(oldest.key[0])
            if before:
                before.children -= 1
        return True
