"""Keys and values in llama.cpp's memory: each running sequence and each cached prompt is one of its sequences.

All of them share one buffer. A cached prompt is handed to a sequence without a copy: llama.cpp notes that its tokens
belong to both.

Not thread-safe: the thread that steps uses it. Any thread may read the counts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from adapterhub.llama_cpp.bindings import library

MAX_SEQUENCES = 256
"""llama.cpp's limit (`LLAMA_MAX_SEQ`)."""
MAX_PROMPTS = 8
"""Cached prompts; few, since attention passes over every token in the buffer, whichever sequence it belongs to."""
_MIN_PROMPT_TOKENS = 32


@dataclass(eq=False)
class LlamaSequence:
    """A running sequence in llama.cpp's memory.

    Attributes:
        seq_id: llama.cpp's number of it.
        capacity: Maximum number of tokens.
        length: Number of tokens in it.
        stored: Tokens that llama.cpp may hold of it: more than `length` after a step that failed.
    """

    seq_id: int
    capacity: int
    length: int = 0
    stored: int = 0


class LlamaKVCache:
    """The running sequences; see `SlotCache`.

    Args:
        memory: llama.cpp's memory.
        max_tokens: Maximum number of tokens of all sequences together.
        max_sequences: Maximum number of sequences.
        bytes_per_token: Memory of one token's keys and values.
    """

    def __init__(self, memory: Any, max_tokens: int, max_sequences: int, bytes_per_token: int) -> None:
        self.max_tokens = max_tokens
        self._memory, self._bytes_per_token = memory, bytes_per_token
        self._free_ids = list(reversed(range(max_sequences)))
        self._used: dict[int, LlamaSequence] = {}
        self._closed = False

    def close(self) -> None:
        """Notes that llama.cpp's memory is freed."""
        self._closed = True

    @property
    def num_slots(self) -> int:
        """Number of running sequences."""
        return len(self._used)

    @property
    def allocated_tokens(self) -> int:
        """Tokens that llama.cpp has memory for, used or not: it is allocated at once."""
        return 0 if self._closed else self.max_tokens

    @property
    def bytes(self) -> int:
        """Bytes of that memory."""
        return self.allocated_tokens * self._bytes_per_token

    @property
    def usage(self) -> float:
        """The share of that memory that running sequences may take, 0 to 1."""
        reserved = sum(sequence.capacity for sequence in list(self._used.values()))
        return reserved / self.max_tokens if self.max_tokens else 0.0

    def can_ever_fit(self, num_tokens: int) -> bool:
        """Whether a sequence of this many tokens fits the empty cache."""
        return num_tokens <= self.max_tokens

    def allocate(self, num_tokens: int) -> LlamaSequence | None:
        """A sequence of at most this many tokens; None if there is no room now."""
        reserved = sum(sequence.capacity for sequence in self._used.values())
        if not self._free_ids or reserved + num_tokens > self.max_tokens:
            return None
        sequence = LlamaSequence(self._free_ids.pop(), num_tokens)
        self._used[sequence.seq_id] = sequence
        return sequence

    def free(self, slot: LlamaSequence, *, zero: bool = False) -> None:
        """Frees a sequence; what it held is never read again, so nothing has to be set to zero."""
        del self._used[slot.seq_id]
        self._free_ids.append(slot.seq_id)
        remove(self._memory, slot.seq_id)

    def clear(self) -> None:
        """Frees all sequences."""
        for sequence in list(self._used.values()):
            self.free(sequence)


class LlamaPromptCache:
    """The last prompts, whole; see `PromptCache`. The least recently used one is evicted first.

    Args:
        memory: llama.cpp's memory.
        max_tokens: Maximum number of tokens of all prompts together.
        first_id: llama.cpp's number of the first cached prompt; those of `MAX_PROMPTS` prompts are unused.
        window: As for `can_continue`.
    """

    def __init__(self, memory: Any, max_tokens: int, first_id: int, window: int) -> None:
        self._memory, self._max_tokens, self._window = memory, max_tokens, window
        self._free_ids = list(range(first_id, first_id + MAX_PROMPTS))
        # Sequence -> digest of the adapter and tokens; least recently used first.
        self._prompts: OrderedDict[int, tuple[str, tuple[int, ...]]] = OrderedDict()
        self.hit_tokens = 0

    @property
    def num_tokens(self) -> int:
        """Number of cached tokens; those that two prompts share are counted twice."""
        return sum(len(prompt) for _, prompt in list(self._prompts.values()))

    def load(self, slot: LlamaSequence, digest: str, prompt: Sequence[int]) -> int:
        """Fills an empty sequence with the longest cached prefix of a prompt, and returns its length."""
        seq_id, length = self._longest(digest, prompt[:-1])
        if length >= _MIN_PROMPT_TOKENS and self._can_continue(seq_id, length):
            library().llama_memory_seq_cp(self._memory, seq_id, slot.seq_id, 0, length)
            self._prompts.move_to_end(seq_id)
            slot.length = slot.stored = length
        self.hit_tokens += slot.length
        return slot.length

    def store(self, slot: LlamaSequence, digest: str, prompt: Sequence[int]) -> None:
        """Caches a prompt whose keys and values are in a sequence, in place of one that it continues."""
        if not _MIN_PROMPT_TOKENS <= len(prompt) <= self._max_tokens:
            return
        seq_id, length = self._longest(digest, prompt)
        if length == len(prompt) and self._can_continue(seq_id, length - 1):
            self._prompts.move_to_end(seq_id)
            return
        if seq_id >= 0 and length == len(self._prompts[seq_id][1]):
            self._remove(seq_id)
        while not self._free_ids or self.num_tokens + len(prompt) > self._max_tokens:
            self._remove(next(iter(self._prompts)))
        new = self._free_ids.pop()
        library().llama_memory_seq_cp(self._memory, slot.seq_id, new, 0, len(prompt))
        self._prompts[new] = (digest, tuple(prompt))

    def remove(self, digest: str) -> None:
        """Removes the prompts of an adapter."""
        for seq_id in [seq_id for seq_id, (owner, _) in self._prompts.items() if owner == digest]:
            self._remove(seq_id)

    def clear(self) -> None:
        """Removes all prompts."""
        for seq_id in list(self._prompts):
            self._remove(seq_id)

    def _longest(self, digest: str, prompt: Sequence[int]) -> tuple[int, int]:
        """The cached prompt of an adapter that shares the longest prefix, -1 if there is none, and its length."""
        lengths = [
            (_common_prefix(cached, prompt), seq_id)
            for seq_id, (owner, cached) in self._prompts.items()
            if owner == digest
        ]
        length, seq_id = max(lengths, default=(0, -1))
        return seq_id, length

    def _can_continue(self, seq_id: int, length: int) -> bool:
        return can_continue(self._memory, seq_id, length, self._window)

    def _remove(self, seq_id: int) -> None:
        del self._prompts[seq_id]
        self._free_ids.append(seq_id)
        remove(self._memory, seq_id)


def remove(memory: Any, seq_id: int, start: int = -1) -> None:
    """Removes a sequence from llama.cpp's memory, or its tokens from `start` on."""
    library().llama_memory_seq_rm(memory, seq_id, start, -1)


def can_continue(memory: Any, seq_id: int, length: int, window: int) -> bool:
    """Whether llama.cpp still has what the tokens after the first `length` of a sequence attend to.

    Where attention has a window, llama.cpp gives away the memory of tokens that the sequence's own end has left behind.

    Args:
        memory: llama.cpp's memory.
        seq_id: The sequence.
        length: Number of its first tokens.
        window: The number of tokens that a layer attends to; 0 if that is all of them.
    """
    first: int = library().llama_memory_seq_pos_min(memory, seq_id)
    return first <= max(0, length - window)


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
