"""Compares an adapter with the base or with other adapters: the same tokens, the same settings, one base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from adapterhub.engine.interface import LoraRequest, Request
from adapterhub.errors import InvalidRequestError
from adapterhub.evaluation import bootstrap
from adapterhub.evaluation.baselines import Baselines
from adapterhub.evaluation.comparison import (
    BASE,
    Answer,
    Answers,
    Comparison,
    ComparisonSettings,
    Perplexity,
    Sampling,
)
from adapterhub.evaluation.data import EvaluationData, EvaluationFile
from adapterhub.evaluation.measuring import Measurer, labelled_positions
from adapterhub.evaluation.metrics import Scorer, measure
from adapterhub.registry import AdapterCard, AdapterRegistry, PromptProfile
from adapterhub.requests.preparing import RequestPreparer, names_adapter
from adapterhub.training.tokenizing import TokenizedDataset

if TYPE_CHECKING:
    from adapterhub.base import Base

Result = TypeVar("Result")
Progress = Callable[[int, int, str], None]
"""Called with how many records and answers are done, how many there are, and what is measured."""


def compare(
    base: Base,
    registry: AdapterRegistry,
    adapter: str,
    data: EvaluationData,
    *,
    against: Sequence[str] = (BASE,),
    scorer: Scorer | None = None,
    settings: ComparisonSettings | None = None,
    baselines: Path | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Measures an adapter, and what it is compared with, on held-out records and prompts.

    All read the same tokens: conversations are written in the prompt style of the adapter, with its system prompt and
    its sampling defaults.

    Args:
        base: From `load_base`; it belongs to the comparison from then on.
        registry: The adapters.
        adapter: A reference or a blend.
        data: From `read_data`.
        against: `"base"`, references and blends to compare with.
        scorer: Called with each answer and its reference, None without one; returns a number, higher is better.
        settings: How all are measured; the defaults if not given.
        baselines: The folder that keeps the base's losses and answers for the next comparison; None keeps nothing.
        progress: Called as records and answers are done.

    Raises:
        AdapterNotFoundError: There is no such adapter.
        AdapterIncompatibleError: One was made for another base.
        DatasetError: No record has an answer that can be scored.
        InvalidRequestError: The adapter is compared with itself or with nothing, a prompt does not fit the context, or
            the scorer fails.
    """
    settings = settings or ComparisonSettings()
    with Measurer(base) as measurer:
        preparer = RequestPreparer(registry, measurer.engine)
        subject, profile, _ = preparer.resolve_for_base(_named(adapter))
        contenders = _contenders(preparer, adapter, against)
        inputs = Inputs.of(measurer, data, profile, settings)
        run = _Run(measurer, inputs, settings, _kept(baselines), progress, len(contenders))
        perplexities = run.perplexities(contenders)
        answers = tuple(run.answers(contenders))
        environment = measurer.environment
    scored = inputs.records
    return Comparison(
        adapter=subject.ref,
        against=tuple(contenders)[:-1],
        base=base.name,
        environment=environment,
        files=data.files,
        settings=settings,
        records=len(scored.examples) if scored else 0,
        truncated=scored.truncated if scored else 0,
        dropped=scored.dropped if scored else 0,
        perplexities=perplexities,
        ratios=_ratios(perplexities, subject.ref, settings),
        prompts=data.prompts,
        answers=answers,
        metrics=tuple(metric for one in answers for metric in measure(data.prompts, one, settings, scorer)),
        warnings=known_files([card for card, _ in subject.parts], data.files),
    )


def measure_base(
    base: Base,
    profile: PromptProfile,
    data: EvaluationData,
    *,
    settings: ComparisonSettings,
    baselines: Path,
    progress: Progress | None = None,
) -> None:
    """Measures the base alone and keeps the result, for comparisons with adapters of this prompt profile.

    Args:
        base: As for `compare`.
        profile: The prompt profile that the adapters have, or will have.
        data: As for `compare`.
        settings: As for `compare`.
        baselines: As for `compare`.
        progress: As for `compare`.

    Raises:
        AdapterHubError: As `compare`, for the data.
    """
    with Measurer(base) as measurer:
        inputs = Inputs.of(measurer, data, profile, settings)
        run = _Run(measurer, inputs, settings, Baselines(baselines), progress, 1)
        run.perplexities({BASE: None})
        list(run.answers({BASE: None}))


@dataclass(frozen=True)
class Inputs:
    """The tokens that every contender reads.

    Attributes:
        records: The held-out records; None without any.
        requests: The requests to the bare base, by setting of the sweep; empty without prompts.
    """

    records: TokenizedDataset | None
    requests: Mapping[Sampling, Sequence[Request]]

    @classmethod
    def of(
        cls, measurer: Measurer, data: EvaluationData, profile: PromptProfile, settings: ComparisonSettings
    ) -> Inputs:
        """Tokenizes records and prompts; what cannot be used is found here, before anything is measured."""
        records = measurer.tokenize(data.records, profile, settings) if data.records else None
        sweep = settings.sweep if data.prompts else []
        return cls(records, {one: measurer.requests(data.prompts, profile, one, settings) for one in sweep})

    @property
    def count(self) -> int:
        """The number of records and of answers of one contender."""
        records = len(self.records.examples) if self.records else 0
        return records + sum(map(len, self.requests.values()))


@dataclass
class _Run:
    measurer: Measurer
    inputs: Inputs
    settings: ComparisonSettings
    baselines: Baselines | None
    progress: Progress | None
    contenders: int
    done: int = field(default=0, init=False)

    def perplexities(self, contenders: Mapping[str, LoraRequest | None]) -> dict[str, Perplexity]:
        """The perplexity of each contender; none without held-out records."""
        if self.inputs.records is None:
            return {}
        examples = self.inputs.records.examples
        tokens = tuple(len(labelled_positions(example)) for example in examples)
        found = {}
        for name, adapter in contenders.items():
            losses = tuple(self._losses(name, adapter))
            estimate = bootstrap.perplexity(
                losses, tokens, resamples=self.settings.resamples, seed=self.settings.seed
            )
            found[name] = Perplexity(estimate, losses, tokens)
        return found

    def answers(self, contenders: Mapping[str, LoraRequest | None]) -> list[Answers]:
        """The answers of each contender at each setting."""
        return [
            Answers(name, sampling, tuple(self._answers(name, adapter, sampling)))
            for sampling in self.inputs.requests
            for name, adapter in contenders.items()
        ]

    def _losses(self, name: str, adapter: LoraRequest | None) -> list[float]:
        examples = self.inputs.records.examples if self.inputs.records else []
        before = self.done

        def compute() -> list[float]:
            return self.measurer.losses(examples, adapter, lambda count: self._show(count, f"{name}: losses"))

        key = {"losses": [asdict(example) for example in examples]}
        losses: list[float] = self._kept(key, compute) if adapter is None else compute()
        self.done = before + len(examples)
        return losses

    def _answers(self, name: str, adapter: LoraRequest | None, sampling: Sampling) -> list[Answer]:
        requests, before = self.inputs.requests[sampling], self.done

        def compute() -> list[Answer]:
            note = f"{name}: answers, {sampling}"
            return self.measurer.answers(requests, adapter, lambda count: self._show(count, note))

        if adapter is not None:
            answers = compute()
        else:
            key = {"answers": [[list(one.prompt), one.sampling.model_dump(mode="json")] for one in requests]}
            answers = [Answer(**one) for one in self._kept(key, lambda: [asdict(one) for one in compute()])]
        self.done = before + len(requests)
        return answers

    def _kept(self, key: Mapping[str, object], compute: Callable[[], Result]) -> Result:
        if self.baselines is None:
            return compute()
        base = {
            "fingerprint": self.measurer.base.fingerprint.model_dump(),
            "environment": self.measurer.environment,
        }
        result: Result = self.baselines.get({**base, **key}, compute)
        return result

    def _show(self, count: int, note: str) -> None:
        self.done += count
        if self.progress:
            self.progress(self.done, self.contenders * self.inputs.count, note)


def _kept(folder: Path | None) -> Baselines | None:
    return None if folder is None else Baselines(folder)


def _named(adapter: str) -> str:
    if adapter == "auto" or not names_adapter(adapter):
        raise InvalidRequestError(
            f"{adapter!r} is no adapter to compare.",
            hint="Name an adapter, or a blend such as json:0.7+code:0.3.",
        )
    return adapter


def _contenders(
    preparer: RequestPreparer, adapter: str, against: Sequence[str]
) -> dict[str, LoraRequest | None]:
    """What the engine loads for each, by name, the adapter last."""
    contenders: dict[str, LoraRequest | None] = {}
    for reference in against:
        if names_adapter(reference):
            other, _, request = preparer.resolve_for_base(_named(reference))
            contenders[other.ref] = request
        else:
            contenders[BASE] = None
    subject, _, request = preparer.resolve_for_base(adapter)
    if subject.ref in contenders:
        raise InvalidRequestError(f"{subject.ref!r} cannot be compared with itself.")
    if not contenders:
        raise InvalidRequestError("There is nothing to compare with.", hint="Give 'base' or another adapter.")
    return {**contenders, subject.ref: request}


def _ratios(
    perplexities: Mapping[str, Perplexity], subject: str, settings: ComparisonSettings
) -> dict[str, bootstrap.Estimate]:
    return {
        name: bootstrap.perplexity_ratio(
            perplexities[subject].losses,
            other.losses,
            other.tokens,
            resamples=settings.resamples,
            seed=settings.seed,
        )
        for name, other in perplexities.items()
        if name != subject
    }


def known_files(cards: Sequence[AdapterCard], files: Sequence[EvaluationFile]) -> tuple[str, ...]:
    """A warning for each file that is on one of the cards."""
    trained_on = {
        digest for card in cards for dataset in card.datasets for digest in dataset.split("sha256:")[1:]
    }
    return tuple(
        f"{file.name} is on the adapter's card as training or validation data, so its figures may be too good"
        for file in files
        if file.sha256 in trained_on
    )
