"""The sequences of a `RowRunner`: each keeps its token ids, and the cache that transformers made for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from adapterhub.engine.runners.row_forward import Continued, State

_BYTES_PER_TOKEN_ID = 8


@dataclass(eq=False)
class RowSlot:
    """One sequence. What was computed is an aid: the token ids are all that a later step needs.

    After a step that failed or was taken back, a slot may have computed more tokens than are in it.

    Attributes:
        max_tokens: Maximum number of tokens in it.
        token_ids: Its tokens, computed or not.
    """

    max_tokens: int
    token_ids: list[int] = field(default_factory=list)
    _state: State = field(default_factory=dict)
    _computed: int = 0
    _last_pass: tuple[Sequence[int], torch.Tensor] | None = None  # its tokens, and the logits of the last one

    @property
    def length(self) -> int:
        """Number of tokens in it."""
        return len(self.token_ids)

    @length.setter
    def length(self, length: int) -> None:
        del self.token_ids[length:]
        if self._last_pass and length < self._computed - len(self._last_pass[0]):
            self.take_state()  # of tokens that are dropped

    def logits_of(self, next_token_ids: Sequence[int]) -> torch.Tensor | None:
        """The logits of the last of the next tokens, if a pass has computed them already."""
        if self._last_pass is None or self._computed != self.length + len(next_token_ids):
            return None
        computed, logits = self._last_pass
        return logits if computed == next_token_ids else None

    def take_state(self) -> tuple[State, int]:
        """Takes the cache out, and the number of tokens that it has.

        A pass that fails thus leaves no cache that is half written. One that has seen tokens which were dropped since
        is of no use either: most caches cannot be shortened.
        """
        state, computed = self._state, self._computed
        self._state, self._computed, self._last_pass = {}, 0, None
        return (state, computed) if computed <= self.length else ({}, 0)

    def put_state(self, state: State, next_token_ids: Sequence[int], logits: torch.Tensor) -> None:
        """Keeps what a pass over all tokens up to the next ones has computed; an empty cache counts as none."""
        if state:
            self._state, self._computed = state, self.length + len(next_token_ids)
            self._last_pass = next_token_ids, logits


class RowSlotCache:
    """Room for the sequences of a `RowRunner`; see `SlotCache`.

    transformers allocates as a sequence grows. What counts here is what each of them may take at its full length.

    Args:
        continued: How large a sequence's cache is.
        max_bytes: Maximum of all sequences together.
    """

    def __init__(self, continued: Continued, max_bytes: int) -> None:
        self._per_token = continued.bytes_per_token + _BYTES_PER_TOKEN_ID
        self._per_sequence = continued.bytes_per_sequence
        self._max_bytes = max_bytes
        self.max_tokens = max(0, (max_bytes - self._per_sequence) // self._per_token)
        self._slots: list[RowSlot] = []

    # Other threads read these four, so they iterate over a copy of the slots.

    @property
    def num_slots(self) -> int:
        """Number of slots in use."""
        return len(self._slots)

    @property
    def allocated_tokens(self) -> int:
        """Tokens that the slots have room for, used or not."""
        return sum(slot.max_tokens for slot in list(self._slots))

    @property
    def bytes(self) -> int:
        """Bytes that the slots may take."""
        return sum(self._bytes(slot.max_tokens) for slot in list(self._slots))

    @property
    def usage(self) -> float:
        """The share of its memory that the slots may take, 0 to 1."""
        return self.bytes / self._max_bytes if self._max_bytes else 0.0

    def can_ever_fit(self, num_tokens: int) -> bool:
        """Whether a sequence of this many tokens, its prompt included, fits the empty cache."""
        return self._bytes(num_tokens) <= self._max_bytes

    def allocate(self, num_tokens: int) -> RowSlot | None:
        """A slot for a sequence of at most this many tokens, its prompt included; None if there is no room now."""
        if self.bytes + self._bytes(num_tokens) > self._max_bytes:
            return None
        self._slots.append(RowSlot(num_tokens))
        return self._slots[-1]

    def free(self, slot: RowSlot, *, zero: bool = False) -> None:
        """Frees a slot; nothing of it is used again, so `zero` means nothing here."""
        self._slots.remove(slot)
        slot.take_state()

    def clear(self) -> None:
        """Frees all slots and their memory."""
        for slot in self._slots:
            slot.take_state()
        self._slots.clear()

    def _bytes(self, num_tokens: int) -> int:
        return self._per_sequence + num_tokens * self._per_token


class NoPromptCache:
    """A `PromptCache` that never has anything: the cache of a sequence is transformers' own, and not shared."""

    hit_tokens = 0
    num_tokens = 0

    def load(self, slot: Any, digest: str, prompt: Sequence[int]) -> int:
        """Finds nothing."""
        return 0

    def store(self, slot: Any, digest: str, prompt: Sequence[int]) -> None:
        """Keeps nothing."""

    def remove(self, digest: str) -> None:
        """Removes nothing."""

    def clear(self) -> None:
        """Removes nothing."""
