"""Steps on llama.cpp: the sequences of one adapter are decoded together, and one adapter after the other.

A llama.cpp context applies its adapters to every token of a batch, so a step with rows of three adapters is three
batches.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from adapterhub.config import EngineLimits
from adapterhub.engine.runner import PROMPT_CACHE_SHARE, ScheduledSequence
from adapterhub.errors import ConfigError, EngineError, GenerationError
from adapterhub.gguf.adapter import write_adapter
from adapterhub.llama_cpp.base import GgufBase
from adapterhub.llama_cpp.batch import LlamaBatch
from adapterhub.llama_cpp.bindings import library, load_adapter, reported_error
from adapterhub.llama_cpp.kv import (
    MAX_PROMPTS,
    MAX_SEQUENCES,
    LlamaKVCache,
    LlamaPromptCache,
    can_continue,
    remove,
)
from adapterhub.lora.delta import ModuleDelta

_UNKNOWN = -1


class LlamaCppRunner:
    """Runs steps on a GGUF base; see `Runner`.

    Args:
        base: From `load_gguf_base`; the runner owns its model from then on, and frees it.
        limits: Maximum sizes.

    Raises:
        ConfigError: `max_batch_size` is above what llama.cpp allows.
        EngineError: Another engine owns the model.
    """

    name = forward = "llama.cpp"
    proof = None

    def __init__(self, base: GgufBase, limits: EngineLimits) -> None:
        if limits.max_batch_size + MAX_PROMPTS > MAX_SEQUENCES:
            raise ConfigError(
                f"max_batch_size={limits.max_batch_size} is more than llama.cpp's {MAX_SEQUENCES - MAX_PROMPTS}."
            )
        self._base, self._limits = base, limits
        self._model, self._context, self._memory = base.llama_model.claim(), None, None
        self._kv_cache: LlamaKVCache | None = None
        self._window: int = library().llama_model_n_swa(self._model)
        self._batch = LlamaBatch(limits.max_num_batched_tokens)
        self._adapters: dict[int, tuple[Any, int]] = {}  # LoRA slot -> llama.cpp's adapter, its bytes
        self._current: int | None = None  # the LoRA slot whose adapter the context applies
        # Where llama.cpp has the logits, and the tensors over them: number of rows -> tensor.
        self._address = 0
        self._views: dict[int, torch.Tensor] = {}

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the adapters in LoRA slots."""
        return sum(size for _, size in list(self._adapters.values()))

    def make_caches(self, max_bytes: int) -> tuple[LlamaKVCache, LlamaPromptCache]:
        """Makes llama.cpp's context, which allocates all keys and values; see `Runner.make_caches`."""
        per_token, rows = self._base.kv_bytes_per_token, self._limits.max_batch_size
        tokens = min(max_bytes // per_token, 2 * rows * self._base.context_length)
        llama = library()
        settings = llama.llama_context_default_params()
        settings.n_ctx, settings.kv_unified = tokens, True
        settings.n_seq_max = rows + MAX_PROMPTS
        settings.n_batch = self._limits.max_num_batched_tokens
        settings.n_ubatch = min(settings.n_ubatch, settings.n_batch)
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        self._context = llama.llama_init_from_model(self._model, settings)
        if not self._context:
            raise EngineError(
                f"llama.cpp cannot make room for the keys and values of {tokens} tokens: {reported_error()}.",
                hint="Lower kv_cache_mib.",
            )
        self._memory = llama.llama_get_memory(self._context)
        prompt_tokens = tokens // PROMPT_CACHE_SHARE
        self._kv_cache = LlamaKVCache(self._memory, tokens - prompt_tokens, rows, per_token)
        return self._kv_cache, LlamaPromptCache(self._memory, prompt_tokens, rows, self._window)

    def step(self, sequences: Sequence[ScheduledSequence]) -> torch.Tensor:
        """Computes the next tokens of some sequences; see `Runner.step`. The logits are valid until the next step."""
        groups = self._groups(sequences)
        if len(groups) == 1:
            ((lora_slot, _),) = groups
            logits = self._decode(lora_slot, sequences)
        else:
            logits = self._decode_groups(groups, sequences)
        for sequence in sequences:
            sequence.kv_slot.length += len(sequence.token_ids)
        return logits

    def load_adapter(self, slot: int, deltas: Mapping[str, ModuleDelta]) -> None:
        """Puts the weights of an adapter into a LoRA slot: llama.cpp reads them from a file that has no name."""
        self.clear_adapter(slot)
        with tempfile.TemporaryFile() as file:
            write_adapter(file, self._base.architecture, deltas)
            size = file.tell()  # before llama.cpp, which shares the place in the file, reads it
            self._adapters[slot] = (load_adapter(self._model, file), size)

    def clear_adapter(self, slot: int) -> None:
        """Empties a LoRA slot."""
        if slot in self._adapters:
            if self._current == slot:
                self._apply(None)
            library().llama_adapter_lora_free(self._adapters.pop(slot)[0])

    def close(self) -> None:
        """Frees the context, the adapters and the model; may be called twice."""
        llama = library()
        if self._context:
            llama.llama_free(self._context)
        if self._kv_cache:
            self._kv_cache.close()
        self._base.llama_model.free()  # and its adapters
        self._adapters.clear()
        self._context = self._memory = None

    def _groups(self, sequences: Sequence[ScheduledSequence]) -> list[tuple[int | None, list[int]]]:
        """The sequences by LoRA slot. The adapter of the last batch comes first: a change costs llama.cpp a graph."""
        groups: dict[int | None, list[int]] = {}
        for index, sequence in enumerate(sequences):
            groups.setdefault(sequence.lora_slot, []).append(index)
        return sorted(groups.items(), key=lambda group: group[0] != self._current)

    def _decode_groups(
        self, groups: Sequence[tuple[int | None, list[int]]], sequences: Sequence[ScheduledSequence]
    ) -> torch.Tensor:
        """Computes one batch after the other; the logits are put together in the order of the sequences."""
        ends = list(accumulate(len(sequence.logit_positions) for sequence in sequences))
        logits = torch.empty(ends[-1], self._base.vocabulary_size)
        for lora_slot, members in groups:
            computed = self._decode(lora_slot, [sequences[index] for index in members])
            rows = [
                row
                for index in members
                for row in range(ends[index] - len(sequences[index].logit_positions), ends[index])
            ]
            if rows:
                logits[rows] = computed  # llama.cpp's own memory, which the next batch overwrites
        return logits

    def _apply(self, lora_slot: int | None) -> None:
        if lora_slot == self._current:
            return
        llama = library()
        self._current = _UNKNOWN  # an interrupt may come between the call and its note
        if lora_slot is None:
            llama.llama_set_adapters_lora(self._context, None, 0, None)
        else:
            adapters = (llama.llama_adapter_lora_p_ctypes * 1)(self._adapters[lora_slot][0])
            llama.llama_set_adapters_lora(self._context, adapters, 1, (ctypes.c_float * 1)(1.0))
        self._current = lora_slot

    def _decode(self, lora_slot: int | None, group: Sequence[ScheduledSequence]) -> torch.Tensor:
        """Computes one batch; the logits of the sequences that need them are in llama.cpp's own memory."""
        llama = library()
        self._apply(lora_slot)
        self._batch.clear()
        for one in group:
            slot = one.kv_slot
            if slot.stored > slot.length:
                remove(self._memory, slot.seq_id, slot.length)
                if not can_continue(self._memory, slot.seq_id, slot.length, self._window):
                    raise GenerationError(
                        "llama.cpp no longer has what the undone step was computed from.", hint="Ask again."
                    )
            slot.stored = slot.length + len(one.token_ids)
            self._batch.add(slot.seq_id, slot.length, one.token_ids, one.logit_positions)
        if code := llama.llama_decode(self._context, self._batch.native):
            raise GenerationError(f"llama.cpp could not compute a step (code {code}): {reported_error()}.")
        return self._logits(sum(len(one.logit_positions) for one in group))

    def _logits(self, rows: int) -> torch.Tensor:
        """The logits of the last batch, shape (rows, vocabulary)."""
        width = self._base.vocabulary_size
        if not rows:
            return torch.empty(0, width)
        computed = library().llama_get_logits(self._context)
        address = ctypes.addressof(computed.contents)
        if address != self._address:
            self._address, self._views = address, {}
        if rows not in self._views:  # making one takes longer than finding the most probable token
            self._views[rows] = torch.from_numpy(np.ctypeslib.as_array(computed, (rows, width)))
        return self._views[rows]
