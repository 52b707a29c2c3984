"""Keys and values of the running answers, in lanes: one lane holds one answer from its first token to its last.

How long an answer can get is known when it starts, so its lane has room for all of it, rounded up to a power of two.
Lanes of one size lie side by side in a pool, the used ones first, so that one attention call reads all of them
where they are: nothing is gathered or copied in a step. When an answer ends, the pool's last lane moves into its
place; that is one copy for an answer, not one for each of its tokens.

The sum of all pools, used lanes or not, never exceeds the cache's size; a request for more than that never fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

SMALLEST_LANE = 64


@dataclass(frozen=True)
class KVShape:
    """What one token's keys and values look like.

    Attributes:
        layers: Attention layers of the model.
        heads: Key and value heads of each.
        head_dim: Width of each head.
        dtype: What they are kept in.
        device: Where they are.
    """

    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, config: Any, dtype: torch.dtype, device: torch.device) -> KVShape:
        """Reads the shape from a transformers configuration."""
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            dtype=dtype,
            device=device,
        )

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.heads * self.head_dim * self.dtype.itemsize


@dataclass(eq=False)
class KVSlot:
    """The place of one answer in a pool.

    Attributes:
        pool: Where it is.
        index: Which lane of the pool; it changes when another answer ends.
        length: How many tokens are in it.
    """

    pool: KVSlotPool
    index: int
    length: int = 0

    def read(self, start: int, stop: int) -> torch.Tensor:
        """A copy of some tokens' keys and values, shape (2, layers, heads, tokens, head_dim)."""
        return self.pool.memory[:, :, self.index, :, start:stop].clone()

    def write(self, start: int, tokens: torch.Tensor) -> None:
        """Puts what `read` returned at a place, after which the lane ends."""
        self.length = start + tokens.shape[3]
        self.pool.memory[:, :, self.index, :, start : self.length] = tokens


class KVSlotPool:
    """Lanes of one capacity, the used ones first.

    Args:
        shape: Of one token's keys and values.
        capacity: Tokens that a lane has room for.
    """

    def __init__(self, shape: KVShape, capacity: int) -> None:
        self.capacity = capacity
        self.lanes: list[KVSlot] = []
        self._shape = shape
        self._allocate(0)

    @property
    def tokens(self) -> int:
        """Room in all lanes, used or not."""
        return int(self.memory.shape[2]) * self.capacity

    @property
    def full(self) -> bool:
        """Whether every lane is used."""
        return len(self.lanes) == self.memory.shape[2]

    def resize(self, lanes: int) -> None:
        """Changes the number of lanes, which must not be below those in use."""
        old, used = self.memory, len(self.lanes)
        self._allocate(lanes)
        self.memory[:, :, :used] = old[:, :, :used]

    def take(self) -> KVSlot:
        """A lane that nobody uses."""
        lane = KVSlot(self, len(self.lanes))
        self.lanes.append(lane)
        return lane

    def give_back(self, lane: KVSlot, *, clean: bool) -> None:
        """Frees a lane; `clean` says that all its numbers are finite, else they are wiped out."""
        last = self.lanes.pop()
        if last is not lane:
            self.memory[:, :, lane.index, :, : last.length] = self.memory[:, :, last.index, :, : last.length]
            self.lanes[lane.index], last.index = last, lane.index
        if not clean:
            # Attention multiplies what it masks by zero, and NaN times zero is NaN. What was moved is wiped from the
            # old place, and the new place may have held more than came.
            self.memory[:, :, len(self.lanes)] = 0
            if last is not lane:
                self.memory[:, :, last.index, :, last.length :] = 0

    def _allocate(self, lanes: int) -> None:
        shape = self._shape
        # Zeros, not whatever is there: see `give_back`.
        self.memory = torch.zeros(
            2, shape.layers, lanes, shape.heads, self.capacity, shape.head_dim,
            dtype=shape.dtype, device=shape.device,
        )  # fmt: skip
        self.keys, self.values = self.memory[0].unbind(0), self.memory[1].unbind(0)


class KVCache:
    """All lanes of an engine.

    Args:
        shape: Of one token's keys and values.
        max_tokens: Most tokens that all lanes together have room for.
    """

    def __init__(self, shape: KVShape, max_tokens: int) -> None:
        self.shape = shape
        self.max_tokens = max_tokens
        self._pools: dict[int, KVSlotPool] = {}

    @property
    def lanes(self) -> int:
        """How many lanes are in use; as `tokens`, any thread may ask, and so of a copy of the pools."""
        return sum(len(pool.lanes) for pool in list(self._pools.values()))

    @property
    def tokens(self) -> int:
        """Room in all lanes, used or not."""
        return sum(pool.tokens for pool in list(self._pools.values()))

    @property
    def bytes(self) -> int:
        """What all lanes take."""
        return self.tokens * self.shape.bytes_per_token

    def can_ever_hold(self, tokens: int) -> bool:
        """Whether an answer of this many tokens, its prompt included, fits into the empty cache."""
        return self._capacity(tokens) <= self.max_tokens

    def take(self, tokens: int) -> KVSlot | None:
        """A lane for an answer of at most this many tokens, its prompt included; None if there is no room now."""
        capacity = self._capacity(tokens)
        pool = self._pools.setdefault(capacity, KVSlotPool(self.shape, capacity))
        if pool.full and not self._grow(pool):
            return None
        return pool.take()

    def give_back(self, lane: KVSlot, *, clean: bool = True) -> None:
        """Frees a lane; see `KVSlotPool.give_back`."""
        lane.pool.give_back(lane, clean=clean)

    def _capacity(self, tokens: int) -> int:
        power = 1 << (max(tokens, SMALLEST_LANE) - 1).bit_length()
        # The largest lane need not be a power of two: an answer that fits the cache exactly gets all of it.
        return min(power, max(tokens, self.max_tokens)) if power > self.max_tokens else power

    def _grow(self, pool: KVSlotPool) -> bool:
        """Makes room for at least one more lane, twice as many if possible."""
        used = len(pool.lanes)
        if self.tokens + pool.capacity > self.max_tokens:
            self._shrink()
        room = (self.max_tokens - self.tokens) // pool.capacity
        if room < 1:
            return False
        pool.resize(used + min(max(used, 1), room))
        return True

    def _shrink(self) -> None:
        """Gives up the lanes that nobody uses."""
        for pool in self._pools.values():
            if not pool.full:
                pool.resize(len(pool.lanes))
