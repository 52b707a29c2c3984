"""Compares a merged model with base and adapter in the same precision, so that a perfect merge shows as one.

The adapter answers greedily on the base's 16-bit weights. Both models then predict each token of these answers, in
float32; what differs is the merged weights' rounding alone. PEFT computes the adapter's side.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.errors import InvalidRequestError
from adapterhub.registry import AdapterRegistry
from adapterhub.requests.options import RequestOptions
from adapterhub.requests.preparing import Prompt, RequestPreparer

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MergeComparison:
    """How a merged model differs from base and adapter.

    Attributes:
        requests: Number of requests.
        tokens: Number of predictions in their answers, the end of an answer included.
        agreement: Share of requests, 0 to 1, with the same answer, token for token.
        top1_agreement: Share of predictions, 0 to 1, with the same most probable token.
        kl_divergence: Mean KL divergence of the merged model's predictions from the adapter's, nats.
        perplexity_adapter: Perplexity of the answers under base and adapter.
        perplexity_merged: Perplexity of the answers under the merged model.
    """

    requests: int
    tokens: int
    agreement: float
    top1_agreement: float
    kl_divergence: float
    perplexity_adapter: float
    perplexity_merged: float


@dataclass(frozen=True)
class _Answer:
    prompt: list[int]
    tokens: list[int]
    ended: bool


def compare_merged(
    registry: AdapterRegistry,
    adapter: str,
    base: str | Path,
    merged: str | Path,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int = 64,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> MergeComparison:
    """Compares a merged model with the adapter on the unquantised base; loads three models, one after another.

    Args:
        registry: Where the adapter is.
        adapter: Its reference.
        base: The base that it was merged into, in 16 or 32 bits.
        merged: The folder that `merge_adapter` wrote.
        prompts: The requests to answer.
        max_tokens: Maximum number of tokens of each answer.
        device: As for `load_base`.
        trust_remote_code: As for `load_base`.

    Raises:
        InvalidRequestError: There are no prompts.
        AdapterIncompatibleError: The adapter is for another base.
        ConfigError: A folder holds no model.
    """
    from peft import PeftModel

    from adapterhub.base.loading import Base, load_base
    from adapterhub.engine.batching import BatchingEngine

    if not prompts:
        raise InvalidRequestError("There are no prompts to compare the models by.", hint="Give some.")

    def load(folder: str | Path) -> Base:
        return load_base(
            folder,
            quantization=None,
            compute_dtype="float32",
            device=device,
            trust_remote_code=trust_remote_code,
        )

    engine = BatchingEngine(load(base))
    try:
        preparer, greedy = RequestPreparer(registry, engine), {"max_tokens": max_tokens, "temperature": 0.0}
        requests = [
            preparer.prepare(prompt, adapter, RequestOptions(greedy, {})).request for prompt in prompts
        ]
        completions = [one[0] for one in engine.generate(requests)]
    finally:
        engine.close()
    answers = [
        _Answer(list(request.prompt), list(completion.token_ids), completion.finish_reason == "stop")
        for request, completion in zip(requests, completions, strict=True)
    ]
    del engine, preparer  # one model at a time
    folder = registry.folder(registry.resolve(adapter))
    with warnings.catch_warnings():
        # peft 0.21 reads a property that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        adapted = PeftModel.from_pretrained(load(base).model, folder).eval()
    expected = _predictions(adapted, answers)
    del adapted
    actual = _predictions(load(merged).model, answers)
    return _comparison(answers, expected, actual)


def _predictions(model: Any, answers: Sequence[_Answer]) -> list[torch.Tensor]:
    """The log-probabilities of every token at each position of each answer: (positions, vocabulary), float32."""
    import torch

    predictions = []
    with torch.inference_mode():
        for answer in answers:
            ids = torch.tensor([answer.prompt + answer.tokens], device=model.device)
            positions = slice(
                len(answer.prompt) - 1, len(answer.prompt) - 1 + len(answer.tokens) + answer.ended
            )
            predictions.append(model(input_ids=ids).logits[0, positions].float().log_softmax(-1).cpu())
    return predictions


def _comparison(
    answers: Sequence[_Answer], expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor]
) -> MergeComparison:
    same, divergences = [], []
    for one, other in zip(expected, actual, strict=True):
        same.append(one.argmax(-1) == other.argmax(-1))
        divergences.append((one.exp() * (one - other)).nan_to_num(0.0).sum(-1))
    tokens = sum(map(len, same))
    return MergeComparison(
        requests=len(answers),
        tokens=tokens,
        agreement=sum(bool(positions.all()) for positions in same) / len(answers),
        top1_agreement=sum(int(positions.sum()) for positions in same) / max(1, tokens),
        kl_divergence=max(0.0, sum(float(positions.sum()) for positions in divergences) / max(1, tokens)),
        perplexity_adapter=_perplexity(answers, expected),
        perplexity_merged=_perplexity(answers, actual),
    )


def _perplexity(answers: Sequence[_Answer], predictions: Sequence[torch.Tensor]) -> float:
    loss, tokens = 0.0, 0
    for answer, positions in zip(answers, predictions, strict=True):
        loss -= sum(float(positions[index, token]) for index, token in enumerate(answer.tokens))
        tokens += len(answer.tokens)
    return exp(loss / max(1, tokens))
