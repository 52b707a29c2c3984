"""The prefix cache: keys and values of prompts, so that a prefix which many prompts share is computed once.

Prompts are cut into blocks of `BLOCK_SIZE` tokens. The key of a block is the digest of the adapter, the block before it
and its own tokens, compared in full: the same text under two adapters shares nothing, and no hash can collide. A hit
is copied into the slot of the sequence, so evicting a block never affects a running sequence.

Not thread-safe: the thread that steps uses it. Any thread may read `num_tokens` and `hit_tokens`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from adapterhub.engine.kv.cache import KVCache, KVSlot

BLOCK_SIZE = 32

_BlockKey = tuple[int, str, tuple[int, ...]]  # id of the parent block (0: none), digest, tokens


@dataclass(eq=False)
class _Block:
    key: _BlockKey
    block_id: int
    tokens: list[torch.Tensor]  # keys and values, as `KVSlot.read` returns them
    num_children: int = 0


class PrefixCache:
    """Blocks of prompts; the least recently used leaf is evicted first.

    Args:
        cache: The KV cache that the slots belong to.
        max_tokens: Maximum number of tokens to cache; 0 turns it off.
    """

    def __init__(self, cache: KVCache, max_tokens: int) -> None:
        self._cache = cache
        self._max_blocks = max_tokens // BLOCK_SIZE
        self._blocks: OrderedDict[_BlockKey, _Block] = OrderedDict()  # least recently used first
        self._by_id: dict[int, _Block] = {}
        self._next_id = 1
        self.hit_tokens = 0

    @property
    def num_tokens(self) -> int:
        """Number of cached tokens."""
        return len(self._blocks) * BLOCK_SIZE

    @property
    def bytes(self) -> int:
        """Bytes of all cached tokens."""
        return self.num_tokens * self._cache.shape.bytes_per_token

    def load(self, slot: KVSlot, digest: str, prompt: Sequence[int]) -> int:
        """Copies the longest cached prefix of a prompt into an empty slot.

        The last token of the prompt is always left to compute, since its logits are needed.

        Args:
            slot: Where to copy to.
            digest: The digest of the adapter; empty for the base without one.
            prompt: Token ids.

        Returns:
            Number of tokens copied.
        """
        for start, key in self._block_keys(digest, prompt[:-1]):
            block = self._blocks.get(key)
            if block is None:
                break
            self._blocks.move_to_end(key)
            slot.write(start, block.tokens)
        self.hit_tokens += slot.length
        return slot.length

    def store(self, slot: KVSlot, digest: str, prompt: Sequence[int]) -> None:
        """Caches the blocks of a prompt whose keys and values are in a slot; arguments as in `load`."""
        parent: _Block | None = None
        for start, key in self._block_keys(digest, prompt):
            block = self._blocks.get(key)
            if block is None:
                if not self._evict(parent):
                    return
                block = self._insert(key, slot.read(start, start + BLOCK_SIZE), parent)
            self._blocks.move_to_end(key)
            parent = block

    def remove(self, digest: str) -> None:
        """Removes the blocks of an adapter."""
        for key in [key for key in self._blocks if key[1] == digest]:
            del self._by_id[self._blocks.pop(key).block_id]

    def clear(self) -> None:
        """Removes all blocks."""
        self._blocks.clear()
        self._by_id.clear()

    def _block_keys(self, digest: str, prompt: Sequence[int]) -> Iterator[tuple[int, _BlockKey]]:
        """The position and key of each whole block; ends where the caller leaves one out of the cache."""
        parent_id = 0
        for start in range(0, len(prompt) - BLOCK_SIZE + 1, BLOCK_SIZE):
            key = (parent_id, digest, tuple(prompt[start : start + BLOCK_SIZE]))
            yield start, key
            block = self._blocks.get(key)
            if block is None:
                return
            parent_id = block.block_id

    def _insert(self, key: _BlockKey, tokens: list[torch.Tensor], parent: _Block | None) -> _Block:
        block = self._blocks[key] = _Block(key, self._next_id, tokens)
        self._by_id[block.block_id] = block
        self._next_id += 1
        if parent:
            parent.num_children += 1
        return block

    def _evict(self, parent: _Block | None) -> bool:
        """Evicts leaves until one more block fits; never `parent`, which the new block follows."""
        while len(self._blocks) >= self._max_blocks:
            leaf = next((b for b in self._blocks.values() if not b.num_children and b is not parent), None)
            if leaf is None:
                return False
            del self._blocks[leaf.key], self._by_id[leaf.block_id]
            before = self._by_id.get(leaf.key[0])
            if before:
                before.num_children -= 1
        return True
