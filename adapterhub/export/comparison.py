"""Compares a merged model with base and adapter in the same precision, so that a perfect merge shows as one.

The adapter answers greedily on the base's 16-bit weights. Both models then predict each token of these answers, in
float32; what differs is the merged weights' rounding alone. PEFT computes the adapter's side.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, inf
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
    expected = list(_predictions(adapted, answers))
    del adapted
    return _comparison(answers, expected, _predictions(load(merged).model, answers))


def _predictions(model: Any, answers: Sequence[_Answer]) -> Iterator[torch.Tensor]:
    """The log-probabilities of every token at each position of each answer: (positions, vocabulary), float32."""
    import torch

    for answer in answers:
        ids = torch.tensor([answer.prompt + answer.tokens], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, logits_to_keep=len(answer.tokens) + 1).logits[0]
        yield logits[: len(answer.tokens) + answer.ended].float().log_softmax(-1).cpu()


def _comparison(
    answers: Sequence[_Answer], expected: Sequence[torch.Tensor], actual: Iterable[torch.Tensor]
) -> MergeComparison:
    equal = predictions = tokens = same = 0
    divergence, loss, loss_merged = 0.0, 0.0, 0.0
    for answer, one, other in zip(answers, expected, actual, strict=True):
        matches = one.argmax(-1) == other.argmax(-1)
        equal, same, predictions = (
            equal + bool(matches.all()),
            same + int(matches.sum()),
            predictions + len(one),
        )
        divergence += float((one.exp() * (one - other)).nan_to_num(0.0).sum())
        chosen = (range(len(answer.tokens)), answer.tokens)
        loss, loss_merged = loss - float(one[chosen].sum()), loss_merged - float(other[chosen].sum())
        tokens += len(answer.tokens)
    return MergeComparison(
        requests=len(answers),
        tokens=predictions,
        agreement=equal / len(answers),
        top1_agreement=same / max(1, predictions),
        kl_divergence=max(0.0, divergence / max(1, predictions)),
        perplexity_adapter=_perplexity(loss, tokens),
        perplexity_merged=_perplexity(loss_merged, tokens),
    )


def _perplexity(loss: float, tokens: int) -> float:
    try:
        return exp(loss / max(1, tokens))
    except OverflowError:  # a merge that gives the answers no probability at all
        return inf
