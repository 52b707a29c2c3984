"""Steps whose result for a sequence is bit for bit the same alone and in any company; vLLM's batch invariance.

What makes a token's numbers depend on its company is that a product of matrices is computed otherwise for other numbers
of rows, and attention for other lengths. So a step is cut into blocks of a few sizes, filled up with padding: sizes at
which the model computes the same bits, found when the runner is made. Attention (`token_attention`) and LoRA
(`LoraMapping.of_tokens`) are computed token by token. So it does not matter what else is in the batch, where a prompt
was cut, or what the prefix cache had of it.

It holds within a process: other threads or another processor may round otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from adapterhub.base.loading import Base
from adapterhub.base.parameters import parameter_shapes
from adapterhub.engine.kv.token_attention import Query, TokenAttention
from adapterhub.engine.runner import ScheduledSequence
from adapterhub.engine.runners.packed import PackedRunner
from adapterhub.errors import EngineError
from adapterhub.lora.mapping import LoraMapping

_log = logging.getLogger(__name__)

_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
_ENOUGH = 16
"""Blocks of this size make good use of a processor; larger ones are better for prompts only."""
_TOKENS = 7
"""Tokens in a sequence of the trial: a number that divides no size, so that a token has many places in a block."""


@dataclass(frozen=True)
class _Token:
    """One token of a step."""

    query: Query
    token_id: int
    lora_slot: int | None
    needs_logits: bool


@dataclass(frozen=True)
class _Outputs:
    """Rows of logits in a forward pass: the token and the LoRA slot of each, and which of them are wanted."""

    indices: Sequence[int]
    slots: Sequence[int | None]
    wanted: Sequence[int]


class BatchInvariantRunner(PackedRunner):
    """A `PackedRunner` whose logits for a sequence do not depend on what else is in the batch.

    Args:
        base: As for `PackedRunner`.
        max_loras: As there.
        native: As there.

    Raises:
        EngineError: As there, or the model keeps a state for each sequence, or rotates its tokens by the longest
            sequence of a batch.

    Attributes:
        sizes: The numbers of tokens in a forward pass, rising.
    """

    def __init__(self, base: Base, *, max_loras: int, native: bool = True) -> None:
        super().__init__(base, max_loras=max_loras, native=native)
        self.sizes: tuple[int, ...] = (1,)
        try:
            if self._recurrent:
                raise EngineError(
                    "It keeps a state for each sequence, which depends on where a prompt is cut.",
                )
            if _rotations_depend_on_lengths(base):
                raise EngineError("Its rotary embeddings depend on the longest sequence in a batch.")
            if not _shapes_depend_on_tokens(base):
                self.sizes = self._find_sizes()
        except BaseException:
            self.release()
            raise
        _log.info("Base %s is batch invariant in blocks of %s tokens.", base.name, self.sizes)

    def _forward(
        self, sequences: Sequence[ScheduledSequence], positions_kept: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        tokens = [
            _Token(Query(one.kv_slot, one.kv_slot.length + offset), token_id, one.lora_slot, offset in kept)
            for one, kept in zip(sequences, positions_kept, strict=True)
            for offset, token_id in enumerate(one.token_ids)
        ]
        return torch.cat([self._compute(block) for block in self._blocks(tokens)])

    def _blocks(self, tokens: Sequence[_Token]) -> Iterator[Sequence[_Token]]:
        for start in range(0, len(tokens), self.sizes[-1]):
            yield tokens[start : start + self.sizes[-1]]

    @torch.inference_mode()
    def _compute(self, tokens: Sequence[_Token]) -> torch.Tensor:
        """The logits of those tokens that need them. The padding comes first: it has no adapter."""
        padding = self._padding(len(tokens))
        slots = [None] * padding + [token.lora_slot for token in tokens]
        kept = [padding + index for index, token in enumerate(tokens) if token.needs_logits]
        outputs = self._outputs(slots, kept)
        step = TokenAttention(
            [token.query for token in tokens],
            padding,
            self._device,
            self._base.compute_dtype,
            self._attention_layers,
            self._decode_kernel,
        )
        mapping = LoraMapping.of_tokens(slots, device=self._device)
        with self._lora.using(mapping, LoraMapping.of_tokens(outputs.slots, device=self._device)):
            logits = self._run_model(
                [0] * padding + [token.token_id for token in tokens],
                [0] * padding + [token.query.position for token in tokens],
                list(outputs.indices),
                step,
            )
        return logits[torch.tensor(outputs.wanted, dtype=torch.long, device=self._device)]

    def _outputs(self, slots: Sequence[int | None], kept: Sequence[int]) -> _Outputs:
        padding = self._padding(len(kept))
        if padding + len(kept) == len(slots):  # a forward pass takes as many for all of them, in their order
            return _Outputs(range(len(slots)), slots, kept)
        indices, of_kept = [0] * padding + [*kept], [slots[index] for index in kept]
        return _Outputs(indices, [None] * padding + of_kept, range(padding, len(indices)))

    def _padding(self, count: int) -> int:
        """How many rows fill a product of `count` rows up to one of the sizes; none if there is nothing to compute."""
        return next(size for size in self.sizes if size >= count) - count if count else 0

    def _find_sizes(self) -> tuple[int, ...]:
        """The sizes at which the model computes the same bits; the best ones, if there are several such sets."""
        alike: list[tuple[list[int], torch.Tensor]] = []
        for size in reversed(_SIZES):
            logits = self._trial(size)
            if logits is None:
                continue
            for sizes, expected in alike:
                if torch.equal(logits, expected[: len(logits)]):
                    sizes.append(size)
                    break
            else:
                alike.append(([size], logits))
        self.sizes = (1,)
        found = [tuple(reversed(sizes)) for sizes, _ in alike]
        return max(found, key=lambda sizes: (min(sizes[-1], _ENOUGH), -sizes[0], len(sizes)), default=(1,))

    def _trial(self, size: int) -> torch.Tensor | None:
        """The logits of some sequences in blocks of a size; None if they depend on a token's place in its block."""
        self.sizes = (size,)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self._base.vocabulary_size, (_SIZES[-1] // _TOKENS, _TOKENS), generator=generator)
        prompts = ids[: max(1, size // _TOKENS)].tolist()
        positions = [range(_TOKENS)] * len(prompts)
        logits = self.score(prompts, positions, None).view(len(prompts), _TOKENS, -1)
        turned = self.score(prompts[::-1], positions, None).view_as(logits) if len(prompts) > 1 else None
        return logits if turned is None or torch.equal(logits, turned.flip(0)) else None


def _shapes_depend_on_tokens(base: Base) -> bool:
    """Whether a product's rows, or what they are rounded to, depend on what the tokens are: mixtures, 8-bit layers."""
    experts = any(sum(part.isdigit() for part in name.split(".")) > 1 for name in base.linear_layers.shapes)
    fused_experts = any(shape.experts > 1 for shape in parameter_shapes(base.model).values())
    return base.quantization == "int8" or experts or fused_experts


def _rotations_depend_on_lengths(base: Base) -> bool:
    """Whether transformers chooses a token's rotation by the longest sequence beside it."""
    by_layer_type = [getattr(module, "rope_type", None) for module in base.model.modules()]
    kinds = [kind for one in by_layer_type for kind in (one.values() if isinstance(one, dict) else [one])]
    return any(kind == "longrope" or "dynamic" in kind for kind in kinds if isinstance(kind, str))
