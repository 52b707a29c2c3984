"""Measures contenders on one base: losses of held-out answers, and answers to prompts.

Both come from what serves: the engine's forward pass, attention and LoRA layers. Every contender reads the same tokens.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Self

from adapterhub.engine.interface import Completion, LoraRequest, Request
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import InvalidRequestError
from adapterhub.evaluation.comparison import Answer, ComparisonSettings, Sampling
from adapterhub.evaluation.data import EvaluationPrompt
from adapterhub.evaluation.metrics import repetition
from adapterhub.registry import PromptProfile
from adapterhub.requests.encoding import PromptEncoder
from adapterhub.requests.prompts import choose_style, conversation
from adapterhub.training.tokenizing import IGNORE_INDEX, TokenizedDataset, TokenizedExample, tokenize

if TYPE_CHECKING:
    from adapterhub.base import Base
    from adapterhub.dataset.records import Record

_LIBRARIES = ("torch", "transformers", "bitsandbytes", "adapterhub")
_TOKENS_IN_PASS = 512
_REQUESTS_AT_ONCE = 64  # between two reports of progress; a new batch starts when all have ended

Progress = Callable[[int], None]
"""Called with how many more records or answers are done."""


class Measurer:
    """Scores and answers with one base and any adapter, in one thread.

    Args:
        base: From `load_base`; it belongs to this object from then on.
    """

    def __init__(self, base: Base) -> None:
        from adapterhub.config import EngineLimits
        from adapterhub.engine.batching import BatchingEngine, adapter_loader
        from adapterhub.engine.runners.choosing import make_runner

        self.base, limits = base, EngineLimits()
        self._load = adapter_loader(base, limits)  # before layers are wrapped
        self._runner = make_runner(base, max_loras=limits.max_loras)
        self.engine = BatchingEngine(base, limits, runner=self._runner, load_adapter=self._load)
        self._encoder = PromptEncoder(base.tokenizer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    @property
    def environment(self) -> dict[str, str | None]:
        """What decides the figures besides the base's weights, the adapter and the data."""
        return {
            "quantization": self.base.quantization,
            "compute_dtype": str(self.base.compute_dtype).removeprefix("torch."),
            "matmul_dtype": str(self.base.matmul_dtype).removeprefix("torch."),
            "device": self.base.device.type,
            "machine": platform.machine(),
            **{name: version(name) for name in _LIBRARIES},
        }

    def tokenize(
        self, records: Sequence[Record], profile: PromptProfile, settings: ComparisonSettings
    ) -> TokenizedDataset:
        """The tokens and labels of held-out records, as in training; raises as `tokenize`."""
        return tokenize(
            records,
            self.base.tokenizer,
            self._style(profile),
            max_length=min(settings.max_length, self.base.context_length),
            system=profile.system,
        )

    def requests(
        self,
        prompts: Sequence[EvaluationPrompt],
        profile: PromptProfile,
        sampling: Sampling,
        settings: ComparisonSettings,
    ) -> list[Request]:
        """The requests of some prompts to the bare base, in the prompt style of a profile.

        Raises:
            InvalidRequestError: A prompt and its answer do not fit the context, or the template refuses one.
        """
        style = self._style(profile)
        chosen = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": settings.max_tokens,
            "seed": settings.seed,
            "n": 1,
            **settings.model_dump(include={"repetition_penalty", "top_k"}, exclude_none=True),
        }
        params = SamplingParams.of(
            self.engine.default_sampling_params,
            {"stop": (*style.stop, *profile.stop)},
            profile.generation,
            chosen,
        )
        requests = []
        for number, prompt in enumerate(prompts, start=1):
            rendered = self._encoder.render(
                conversation(prompt.messages, profile.system), style, tools=prompt.tools
            )
            token_ids = self._encoder.encode(rendered)
            if len(token_ids) + (settings.max_tokens or 1) > self.base.context_length:
                suffix = f", and {settings.max_tokens} for the answer" if settings.max_tokens else ""
                raise InvalidRequestError(
                    f"Prompt {number} has {len(token_ids)} tokens{suffix}, which does not fit the context of "
                    f"{self.base.context_length} tokens.",
                    hint="Leave it out, or lower the maximum number of tokens of an answer.",
                )
            requests.append(Request(token_ids, sampling=params))
        return requests

    def losses(
        self, examples: Sequence[TokenizedExample], adapter: LoraRequest | None, progress: Progress
    ) -> list[float]:
        """The sum of the losses of each example's labelled tokens, nats."""
        slot = None if adapter is None else 0
        if adapter:
            self._runner.load_adapter(0, self._load(adapter))
        try:
            losses = []
            for group in _groups(examples):
                losses += self._losses_of(group, slot)
                progress(len(group))
            return losses
        finally:
            self._runner.clear_adapter(0)  # the engine knows nothing of it

    def answers(
        self, requests: Sequence[Request], adapter: LoraRequest | None, progress: Progress
    ) -> list[Answer]:
        """The answers to requests for the base, given by an adapter or by the base itself."""
        answers = []
        for start in range(0, len(requests), _REQUESTS_AT_ONCE):
            group = [replace(one, adapter=adapter) for one in requests[start : start + _REQUESTS_AT_ONCE]]
            answers += [_answer(completions[0]) for completions in self.engine.generate(group)]
            progress(len(group))
        return answers

    def _style(self, profile: PromptProfile) -> Any:
        return choose_style(self.base.tokenizer.chat_template, profile.format, profile.chat_template)

    def _losses_of(self, examples: Sequence[TokenizedExample], slot: int | None) -> list[float]:
        import torch
        from torch.nn.functional import cross_entropy

        targets = [labelled_positions(example) for example in examples]
        # The logits at a position predict the token after it.
        positions = [[position - 1 for position in each] for each in targets]
        logits = self._runner.score([example.input_ids for example in examples], positions, slot)
        labels = [example.labels[i] for example, each in zip(examples, targets, strict=True) for i in each]
        target = torch.tensor(labels, device=logits.device)
        losses = cross_entropy(logits.float(), target, reduction="none").double()
        ends = list(accumulate(map(len, targets), initial=0))
        return [float(losses[start:end].sum()) for start, end in pairwise(ends)]


def labelled_positions(example: TokenizedExample) -> list[int]:
    """The positions of the tokens that carry loss; nothing predicts the first token."""
    return [i for i, label in enumerate(example.labels) if i and label != IGNORE_INDEX]


def _groups(examples: Sequence[TokenizedExample]) -> Iterator[list[TokenizedExample]]:
    """Examples for one forward pass each."""
    group: list[TokenizedExample] = []
    for example in examples:
        tokens = sum(len(one.input_ids) for one in group)
        if group and tokens + len(example.input_ids) > _TOKENS_IN_PASS:
            yield group
            group = []
        group.append(example)
    if group:
        yield group


def _answer(completion: Completion) -> Answer:
    return Answer(
        text=completion.text,
        tokens=len(completion.token_ids),
        truncated=completion.finish_reason == "length",
        repetition=repetition(completion.token_ids),
    )
