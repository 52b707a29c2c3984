"""One sequence through transformers' model, as `generate` computes it: inputs that the model prepares itself, and the
cache that it makes.

How far a model can continue its own cache is found out by a trial, not from its class: `measure` compares pieces of a
text with the text computed at once.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate
from typing import Any

import torch

from adapterhub.errors import EngineError

State = Mapping[str, Any]
"""What the next forward pass of a sequence takes: the name of the model's argument -> its cache; empty at the start."""

TRIAL_TOKENS = 24
_COMPARED = 6
"""The last tokens of a trial, which are computed in two ways."""
_MAX_RATIO = 10
"""How much more than by rounding the two may differ. A chunk that does not continue a state may change little in so
short a text, so it is not enough that the difference is small."""
_CACHE_NAMES = ("past_key_values", "cache_params", "state")


class Continuation(Enum):
    """What a model can compute on top of a cache; the value says it in messages."""

    CHUNKS = "each sequence continues its cache"
    TOKENS = "each sequence continues its cache token by token, after its whole prompt"
    NOTHING = "each sequence is computed anew for every token, since the model returns no cache that it can continue"


@dataclass(frozen=True)
class Continued:
    """How a model continues a sequence.

    Attributes:
        how: What it can compute on top of a cache.
        bytes_per_token: Bytes by which a cache grows with a token.
        bytes_per_sequence: Bytes of a cache apart from that, and of a token's logits, which are kept with it.
    """

    how: Continuation
    bytes_per_token: int = 0
    bytes_per_sequence: int = 0


@dataclass(frozen=True)
class _Trial:
    logits: torch.Tensor
    bytes_per_token: int
    bytes_per_sequence: int


class RowForward:
    """Runs a causal language model on one sequence at a time.

    Args:
        model: A transformers model that `generate` can use.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        parameters = inspect.signature(model.forward).parameters
        self._takes = {name: name in parameters for name in ("attention_mask", "position_ids")}
        self._can_leave_out_logits = "logits_to_keep" in parameters

    @torch.inference_mode()
    def __call__(
        self, token_ids: Sequence[int], state: State, start: int, *, logits: int, use_cache: bool = True
    ) -> tuple[torch.Tensor, State]:
        """Computes the tokens of a sequence from `start` on.

        Args:
            token_ids: All tokens of the sequence.
            state: What the pass over the tokens before `start` returned; it may be changed.
            start: Number of tokens computed before.
            logits: Number of last tokens whose logits are needed.
            use_cache: Whether the sequence will be continued.

        Returns:
            The logits, shape (logits, vocabulary), and the state after the last token.
        """
        output = self._model(
            **self._inputs(token_ids, state, start, logits=logits, use_cache=use_cache), return_dict=True
        )
        caches = {name: output[name] for name in _CACHE_NAMES if use_cache and output.get(name) is not None}
        return output.logits[0, -logits:], caches

    def _inputs(
        self, token_ids: Sequence[int], state: State, start: int, *, logits: int, use_cache: bool
    ) -> dict[str, Any]:
        device, length = self._model.device, len(token_ids)
        arguments: dict[str, Any] = {"use_cache": use_cache, **state}
        if self._takes["attention_mask"]:
            arguments["attention_mask"] = torch.ones(1, length, dtype=torch.long, device=device)
        if self._takes["position_ids"]:
            arguments["position_ids"] = torch.arange(length, device=device)[None]
        inputs: dict[str, Any] = self._model.prepare_inputs_for_generation(
            torch.tensor([token_ids], device=device),
            next_sequence_length=length - start,
            is_first_iteration=not start,
            **arguments,
        )
        if self._can_leave_out_logits:  # after the model, which may set it
            inputs["logits_to_keep"] = logits
        return inputs

    def measure(self, token_ids: Sequence[int], *, rounding: float | None) -> Continued:
        """Finds out how the model continues a sequence, and how large its cache is.

        Args:
            token_ids: A text of some `TRIAL_TOKENS` tokens.
            rounding: By how much logits may differ, relative to their spread; None if nothing can be said, as of 8-bit
                layers, which round a token by the largest values of the whole pass.

        Raises:
            EngineError: The model fails, or is no decoder: what it computes of a token depends on later ones.
        """
        count = len(token_ids)
        half, first = count // 2, count - _COMPARED
        try:
            whole, _ = self(token_ids, {}, 0, logits=count, use_cache=False)
            changed, _ = self([*token_ids[:half], *token_ids[:half]], {}, 0, logits=2 * half, use_cache=False)
        except Exception as error:
            raise EngineError(f"its forward pass fails ({type(error).__name__}: {error})") from error
        if rounding is not None and _difference(changed[:half], whole[:half]) > rounding:
            raise EngineError("it is no decoder: its output for a token depends on later tokens")
        tokens = self._try(token_ids, [first, *[1] * _COMPARED])
        if tokens is None:
            return Continued(Continuation.NOTHING)
        # Token by token is what `generate` does, also of the models that compute a token otherwise after a prompt than
        # in it (MiniMax). By how much the two differ elsewhere is what rounding does.
        chunks = self._try(token_ids, [first, 1, _COMPARED - 2, 1])
        rounded = max(_difference(tokens.logits, whole[first:]), torch.finfo(whole.dtype).eps)
        allowed = min(rounding or 0.0, _MAX_RATIO * rounded)
        if chunks and _difference(chunks.logits, tokens.logits) <= allowed:
            return Continued(Continuation.CHUNKS, chunks.bytes_per_token, chunks.bytes_per_sequence)
        return Continued(Continuation.TOKENS, tokens.bytes_per_token, tokens.bytes_per_sequence)

    def _try(self, token_ids: Sequence[int], pieces: Sequence[int]) -> _Trial | None:
        """Computes a text piece by piece, each on top of the cache of those before; the second and last are tokens.

        Returns:
            None if the model fails, or returns no cache.
        """
        state: State = {}
        logits, sizes = [], []
        try:
            for end, piece in zip(accumulate(pieces), pieces, strict=True):
                of_piece, state = self(token_ids[:end], state, end - piece, logits=piece)
                if not state:
                    return None
                logits.append(of_piece)
                sizes.append(state_bytes(state))
        except Exception:  # noqa: BLE001  whatever a model raises: this is not a way to continue it
            return None
        # From one token to another, since the cache of a window is larger after a chunk.
        per_token = -(-(sizes[-1] - sizes[1]) // sum(pieces[2:]))
        per_sequence = max(0, sizes[-1] - per_token * len(token_ids))
        return _Trial(torch.cat(logits[1:]), per_token, per_sequence + logits[-1][-1].nbytes)


def state_bytes(state: object) -> int:
    """Bytes of all tensors that an object refers to, each piece of memory counted once."""
    storages = {
        storage.data_ptr(): storage.nbytes() for storage in (one.untyped_storage() for one in _tensors(state))
    }
    return sum(storages.values())


def _tensors(root: object) -> Iterator[torch.Tensor]:
    seen: set[int] = set()
    objects = [root]
    while objects:
        one = objects.pop()
        if id(one) in seen or isinstance(one, torch.nn.Module | type):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            yield one
        elif isinstance(one, Mapping):
            objects += one.values()
        elif isinstance(one, list | tuple):
            objects += one
        else:
            objects += getattr(one, "__dict__", {}).values()


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The difference of two sets of logits, relative to the spread of the second; infinite if it is not a number."""
    if one.shape != other.shape:
        return math.inf
    one, other = one.float(), other.float()
    difference = float((one - other).norm() / (other - other.mean(-1, keepdim=True)).norm())
    return math.inf if math.isnan(difference) else difference
