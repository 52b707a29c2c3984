"""The adapter of each token in one forward pass, and whether the pass is computed adapter by adapter or batched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Self

import torch

MIN_ADAPTERS_FOR_BATCHED = 2
"""With fewer adapters, one product for each is at least as fast as a batched one."""
MAX_TOKENS_PER_ADAPTER_FOR_BATCHED = 8
"""With more tokens for one adapter, a product's own work outweighs the cost of starting it."""
TILE_TOKENS = 16
"""Tokens that one program of a GPU's kernel computes: the fewest that its matrix units take."""
MAX_PADDING_RATIO = 3
"""A batched product may read and compute this many times what the tokens need: unused slots and padding rows."""


@dataclass(frozen=True)
class RunTable:
    """The runs of a pass as compiled code reads them.

    Attributes:
        table: (slot, start, stop) of each run among all tokens of a layer, shape (runs, 3), int64, in host memory.
        address: The address of `table`.
        count: Number of runs.
        tokens: Number of tokens in runs.
        longest: Number of tokens of the longest run.
        threads: Number of threads that torch uses.
    """

    table: torch.Tensor
    address: int
    count: int
    tokens: int
    longest: int
    threads: int

    @classmethod
    def of(cls, runs: Sequence[tuple[int, int, int]]) -> Self:
        """The table of runs (slot, start, stop), of which there is at least one."""
        lengths = [stop - start for _, start, stop in runs]
        table = torch.tensor(runs, dtype=torch.int64)
        return cls(table, table.data_ptr(), len(runs), sum(lengths), max(lengths), torch.get_num_threads())


class LoraMapping:
    """The adapters of the tokens of one forward pass; vLLM's `LoRAMapping`.

    The tokens of one adapter form one run. Runs are in order of their slots, and the tokens of the bare base come
    before them. What layers share within the pass is cached here, so that it lives no longer than the pass.

    Args:
        runs: (slot, number of tokens) of each run, by rising slot.
        num_base_tokens: Number of tokens before the runs that have no adapter.
        device: The device of the tokens.
        batched: Force one way of computing; None chooses the faster one. For benchmarks and tests.

    Attributes:
        runs: (slot, start, stop) of each run; positions count from the first token with an adapter.
        slots: The slots of the runs.
        first_slot: The lowest of them.
        end_slot: One above the highest.
        start: Position of the first token with an adapter among all tokens.
        end: One behind the last.
        batched: Whether all adapters are computed in one batched product.
        token_by_token: Whether what is added to a token must not depend on any other token, nor on other adapters.
        needs_padding: Whether `pad` adds rows, since runs differ in length or leave out slots.
    """

    def __init__(
        self,
        runs: Sequence[tuple[int, int]],
        *,
        num_base_tokens: int = 0,
        device: torch.device | None = None,
        batched: bool | None = None,
    ) -> None:
        self.slots = frozenset(slot for slot, _ in runs)
        self.first_slot, self.end_slot = min(self.slots, default=0), max(self.slots, default=-1) + 1
        self.start, self.end = num_base_tokens, num_base_tokens + sum(count for _, count in runs)
        self.runs: list[tuple[int, int, int]] = []
        for slot, count in runs:
            start = self.runs[-1][2] if self.runs else 0
            self.runs.append((slot, start, start + count))
        self._longest_run = max((count for _, count in runs), default=0)
        self._device = device
        tokens, padded = self.end - self.start, (self.end_slot - self.first_slot) * self._longest_run
        self.needs_padding = padded != tokens
        self.batched = self._is_batched_faster(tokens, padded) if batched is None else batched
        self.token_by_token = False
        self._tiles: dict[int, torch.Tensor] = {}
        self._last: tuple[object, torch.Tensor, Sequence[torch.Tensor]] | None = None
        self._tables: dict[int, RunTable] = {}

    @classmethod
    def of_tokens(cls, slots: Sequence[int | None], *, device: torch.device | None = None) -> LoraMapping:
        """The mapping that computes each token apart, so that its company changes no bit of it.

        Args:
            slots: The slot of each token, rising; None for those of the base, which come first.
            device: The device of the tokens.
        """
        runs = [(slot, 1) for slot in slots if slot is not None]
        mapping = cls(runs, num_base_tokens=len(slots) - len(runs), device=device, batched=False)
        mapping.token_by_token = True
        return mapping

    def compute_once(
        self,
        owner: object,
        x: torch.Tensor,
        compute: Callable[[torch.Tensor, LoraMapping], Sequence[torch.Tensor]],
    ) -> Sequence[torch.Tensor]:
        """`compute(x, self)`, computed once while the same owner asks with the same tensor.

        Only the last result is cached. One for each layer would fill memory in a long prompt, and would keep malloc
        from reusing the large blocks that are freed after each layer.
        """
        if self._last is None or self._last[0] is not owner or self._last[1] is not x:
            self._last = owner, x, compute(x, self)
        return self._last[2]

    @property
    def has_adapters(self) -> bool:
        """Whether any token has an adapter."""
        return bool(self.runs)

    def select(self, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens with an adapter: a view of (tokens, features)."""
        return tokens if self.end - self.start == len(tokens) else tokens[self.start : self.end]

    def pad(self, selected: torch.Tensor) -> torch.Tensor:
        """From (selected tokens, features) to (slots, longest run, features); the padding is any token."""
        if self.needs_padding:
            selected = selected.index_select(0, self._padding_indices[0])
        return selected.view(self.end_slot - self.first_slot, self._longest_run, -1)

    def unpad(self, padded: torch.Tensor) -> torch.Tensor:
        """The inverse of `pad`: (selected tokens, features)."""
        return padded.flatten(0, 1).index_select(0, self._padding_indices[1])

    @property
    def only_slot(self) -> int | None:
        """The slot of all tokens; None if they differ."""
        return self.first_slot if len(self.runs) == 1 and not self.start else None

    @cached_property
    def token_slots(self) -> torch.Tensor:
        """The slot of each selected token, shape (selected tokens,); vLLM's `token_lora_indices`."""
        slots = [slot for slot, start, stop in self.runs for _ in range(start, stop)]
        return torch.tensor(slots, device=self._device)

    def runs_of(self, tokens: int) -> list[tuple[int | None, int, int]]:
        """(slot, start, stop) of each run among all tokens of a layer; the base's, which come first, have no slot."""
        base: list[tuple[int | None, int, int]] = [(None, 0, self.start)] if self.start else []
        return [*base, *((slot, self.start + start, self.start + stop) for slot, start, stop in self.runs)]

    def tiles(self, tokens: int) -> torch.Tensor:
        """The tokens with an adapter in pieces of at most `TILE_TOKENS` of one slot.

        Args:
            tokens: Number of tokens that a layer has.

        Returns:
            (slot, start, stop) of each among all tokens, shape (tiles, 3).
        """
        if tokens not in self._tiles:
            flat = cut_into_tiles((slot, stop - start) for slot, start, stop in self.runs_of(tokens))
            self._tiles[tokens] = torch.tensor(flat, dtype=torch.long, device=self._device).view(-1, 3)
        return self._tiles[tokens]

    def run_table(self, tokens: int) -> RunTable:
        """The runs for compiled code, made once for each number of tokens that a layer of the pass gets.

        Raises:
            ValueError: The layer has fewer tokens than the runs, or a slot is negative.
        """
        if tokens not in self._tables:
            runs = [(slot, start, stop) for slot, start, stop in self.runs_of(tokens) if slot is not None]
            if any(slot < 0 or start < 0 or stop > tokens for slot, start, stop in runs):
                raise ValueError(f"A layer has {tokens} tokens, and the runs are {runs}.")
            self._tables[tokens] = RunTable.of(runs)
        return self._tables[tokens]

    @cached_property
    def _padding_indices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """For each padded position its token, and for each token its padded position."""
        positions = [
            (slot - self.first_slot) * self._longest_run + offset
            for slot, start, stop in self.runs
            for offset in range(stop - start)
        ]
        tokens = [0] * ((self.end_slot - self.first_slot) * self._longest_run)
        for token, position in enumerate(positions):
            tokens[position] = token
        return torch.tensor(tokens, device=self._device), torch.tensor(positions, device=self._device)

    def _is_batched_faster(self, tokens: int, padded: int) -> bool:
        return (
            len(self.runs) >= MIN_ADAPTERS_FOR_BATCHED
            and self._longest_run <= MAX_TOKENS_PER_ADAPTER_FOR_BATCHED
            and padded <= MAX_PADDING_RATIO * tokens
            and self.end_slot - self.first_slot <= MAX_PADDING_RATIO * len(self.runs)
        )


class OneAdapterMapping(LoraMapping):
    """One adapter for a whole forward pass, however many tokens of it a layer gets.

    Experts and output layers get some of the tokens only; where all have the same adapter, it does not matter which.

    Args:
        slot: The slot of the adapter.
        device: The device of the tokens.
    """

    def __init__(self, slot: int, *, device: torch.device | None = None) -> None:
        super().__init__([(slot, 1)], device=device, batched=False)

    def select(self, tokens: torch.Tensor) -> torch.Tensor:
        """All tokens."""
        return tokens

    def runs_of(self, tokens: int) -> list[tuple[int | None, int, int]]:
        """One run, of all tokens."""
        return [(self.first_slot, 0, tokens)]


class StaticLoraMapping(LoraMapping):
    """The adapters of a step that is replayed: which ones those are is read on the device, and known to no Python.

    Args:
        tiles: What `tiles` returns, refilled before each replay; tiles at the end may be empty.
    """

    def __init__(self, tiles: torch.Tensor) -> None:
        super().__init__([], device=tiles.device)
        self._static_tiles = tiles

    @property
    def has_adapters(self) -> bool:
        """Whatever the tiles are."""
        return True

    def tiles(self, tokens: int) -> torch.Tensor:
        """The static ones."""
        return self._static_tiles


def cut_into_tiles(runs: Iterable[tuple[int | None, int]]) -> list[int]:
    """(slot, start, stop) of tiles of at most `TILE_TOKENS` tokens, one after the other.

    Args:
        runs: (slot, number of tokens) of successive tokens; None for the base, which gets no tile. Neighbours of one
            slot share their tiles.
    """
    tiles: list[int] = []
    start = 0
    for slot, of_slot in groupby(runs, key=lambda run: run[0]):
        stop = start + sum(count for _, count in of_slot)
        if slot is not None:
            for first in range(start, stop, TILE_TOKENS):
                tiles += (slot, first, min(first + TILE_TOKENS, stop))
        start = stop
    return tiles
