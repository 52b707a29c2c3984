"""What a `BatchingEngine` computes with: the interfaces of a base, of its forward passes, and of its caches.

`Base`, `PackedRunner`, `KVCache` and `PrefixCache` implement them for transformers' models, `RowRunner` and its caches
for those that cannot be packed, `adapterhub.llama_cpp` for GGUF files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.lora.delta import ModuleDelta

PROMPT_CACHE_SHARE = 4
"""A quarter of the memory for keys and values is for those of prompts."""


class EngineBase(Protocol):
    """What an engine has to know about its base.

    Attributes:
        name: The name, path or hub id that it was loaded by.
        folder: The folder with its files in transformers' format.
        model: transformers' model; None if it is of another kind.
        linear_layers: Its linear layers, from before any of them was wrapped.
        fingerprint: Identifies it independently of name and path.
        tokenizer: Its tokenizer.
        context_length: Maximum number of tokens of a sequence.
        vocabulary_size: Width of its logits.
        end_token_ids: Tokens that end an answer.
        generation_config: The settings in its `generation_config.json`.
        device: The device of its logits.
        compute_dtype: The dtype of activations, and of the adapters that it is given.
        matmul_dtype: The dtype in which it multiplies, or another name of it; for `EngineStats`.
        arithmetic: In words, how it multiplies and why; for `EngineStats`.
        quantization: How its linear layers are stored; None if unquantised.
        weight_bytes: Bytes of its weights.
    """

    @property
    def name(self) -> str: ...

    @property
    def folder(self) -> Path: ...

    @property
    def model(self) -> Any: ...

    @property
    def linear_layers(self) -> LinearLayers: ...

    @property
    def fingerprint(self) -> BaseFingerprint: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def context_length(self) -> int: ...

    @property
    def vocabulary_size(self) -> int: ...

    @property
    def end_token_ids(self) -> frozenset[int]: ...

    @property
    def generation_config(self) -> Mapping[str, Any]: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def compute_dtype(self) -> torch.dtype: ...

    @property
    def matmul_dtype(self) -> torch.dtype | str: ...

    @property
    def arithmetic(self) -> tuple[str, ...]: ...

    @property
    def quantization(self) -> str | None: ...

    @property
    def weight_bytes(self) -> int: ...


class SequenceSlot(Protocol):
    """The keys and values of one sequence.

    Attributes:
        length: Number of tokens in it; making it shorter drops the last ones.
    """

    length: int


@dataclass(frozen=True)
class ScheduledSequence:
    """What one sequence contributes to a step.

    Attributes:
        kv_slot: Its keys and values, a slot of the runner's own cache; the length is the number of tokens computed
            before.
        token_ids: The next tokens, at least one.
        lora_slot: The LoRA slot of its adapter; None for the base.
        needs_logits: Whether the logits of its last token are needed, from which the next one is sampled.
        needs_prompt_logits: Whether those of all its tokens are needed, which are of the prompt.
    """

    kv_slot: Any
    token_ids: Sequence[int]
    lora_slot: int | None
    needs_logits: bool
    needs_prompt_logits: bool = False

    @property
    def needs_any_logits(self) -> bool:
        """Whether it has `logit_positions`."""
        return self.needs_logits or self.needs_prompt_logits

    @property
    def logit_positions(self) -> Sequence[int]:
        """The places among its tokens, from 0, of those whose logits are needed."""
        count = len(self.token_ids)
        return range(0 if self.needs_prompt_logits else count - self.needs_logits, count)


class SlotCache(Protocol):
    """The keys and values of the running sequences; `KVCache` is one. The thread that steps calls its methods.

    Attributes:
        max_tokens: Maximum number of tokens of a sequence that has all of its memory.
        num_slots: Number of slots in use; any thread may read it and what follows.
        allocated_tokens: Tokens that the allocated slots have room for, used or not.
        bytes: Bytes of all allocated slots.
        usage: The share of its memory that running sequences have, 0 to 1.
    """

    max_tokens: int

    @property
    def num_slots(self) -> int: ...

    @property
    def allocated_tokens(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    @property
    def usage(self) -> float: ...

    def can_ever_fit(self, num_tokens: int) -> bool:
        """Whether a sequence of this many tokens, its prompt included, fits the empty cache; any thread may ask."""
        ...

    def allocate(self, num_tokens: int) -> Any | None:
        """A slot for a sequence of at most this many tokens, its prompt included; None if there is no room now."""
        ...

    def free(self, slot: Any, *, zero: bool = False) -> None:
        """Frees a slot; `zero` if it may hold NaN."""
        ...

    def clear(self) -> None:
        """Frees all slots."""
        ...


class PromptCache(Protocol):
    """Keys and values of prompts, by adapter; `PrefixCache` is one. The thread that steps calls its methods.

    Attributes:
        num_tokens: Number of cached tokens; any thread may read it and what follows.
        hit_tokens: Tokens of prompts that were found here since the start.
    """

    hit_tokens: int

    @property
    def num_tokens(self) -> int: ...

    def load(self, slot: Any, digest: str, prompt: Sequence[int]) -> int:
        """Fills an empty slot with the longest cached prefix of a prompt, and returns its length.

        The last token of the prompt is always left to compute, since its logits are needed.
        """
        ...

    def store(self, slot: Any, digest: str, prompt: Sequence[int]) -> None:
        """Caches a prompt whose keys and values are in a slot."""
        ...

    def remove(self, digest: str) -> None:
        """Removes what belongs to an adapter."""
        ...

    def clear(self) -> None:
        """Removes all prompts."""
        ...


@dataclass(frozen=True)
class Proof:
    """What shows that a runner computes its model: how near it came to the model's own `generate`.

    Attributes:
        difference: The largest difference of a token's logits, in their standard deviations.
        bound: By how much rounding may change them.
        seconds: How long the proof took.
    """

    difference: float
    bound: float
    seconds: float


class Runner(Protocol):
    """What runs the forward passes; `PackedRunner` is one. Only the thread that steps calls its methods.

    Attributes:
        name: How it computes a step, for `EngineStats.runner`.
        forward: What computes the layers, for `EngineStats.forward`.
        proof: What shows that it computes the model; None if nothing was proved.
        adapter_bytes: Bytes of the adapters in LoRA slots; any thread may read it.
    """

    @property
    def name(self) -> str: ...

    @property
    def forward(self) -> str: ...

    @property
    def proof(self) -> Proof | None: ...

    @property
    def adapter_bytes(self) -> int: ...

    def make_caches(self, max_bytes: int) -> tuple[SlotCache, PromptCache]:
        """Makes the caches of keys and values, which the engine then owns.

        Args:
            max_bytes: Maximum memory of both together.
        """
        ...

    def step(self, sequences: Sequence[ScheduledSequence]) -> torch.Tensor:
        """Computes the next tokens of some sequences, and lengthens their KV slots.

        After an exception every KV slot is as long as before, so the same step can be tried again.

        Args:
            sequences: Each with a KV slot of its own.

        Returns:
            The logits at the `logit_positions` of each sequence, sequence after sequence, shape (positions,
            vocabulary); valid until the next step.
        """
        ...

    def load_adapter(self, slot: int, deltas: Mapping[str, ModuleDelta]) -> None:
        """Puts the weights of an adapter into a LoRA slot: module name -> weights."""
        ...

    def clear_adapter(self, slot: int) -> None:
        """Empties a LoRA slot."""
        ...


@runtime_checkable
class AheadRunner(Runner, Protocol):
    """A runner that can queue a step on a GPU before the tokens of the last one are known to the host."""

    def step_ahead(
        self, sequences: Sequence[ScheduledSequence], argmax: torch.Tensor, rows: Sequence[int]
    ) -> torch.Tensor | None:
        """As `step`, one token of each sequence, which is taken from what the last step has computed.

        Args:
            sequences: Each with a KV slot of its own; `token_ids` is a placeholder of one token.
            argmax: The tokens, on the runner's device.
            rows: The index of each sequence's token in it.

        Returns:
            As `step`; None if this step cannot be computed before the tokens are known.
        """
        ...


class ScoringRunner(Runner, Protocol):
    """A runner that evaluation can use too."""

    def score(
        self, sequences: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], lora_slot: int | None
    ) -> torch.Tensor:
        """Computes logits within whole sequences, between steps.

        Args:
            sequences: The token ids of each.
            positions: The positions in each, from 0 and rising, whose logits are computed.
            lora_slot: The LoRA slot of the adapter of all of them; None for the base.

        Returns:
            The logits at those positions, sequence after sequence, shape (positions, vocabulary).
        """
        ...
