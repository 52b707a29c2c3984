"""One family served: alone, with an adapter, and both mixed in one batch, against transformers and PEFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from adapterhub.base import check_against_base, load_base
from adapterhub.config import EngineLimits
from adapterhub.engine import BatchingEngine
from adapterhub.errors import AdapterHubError
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.peft_format import inspect_adapter
from tests.engine.maker import request, stored_request
from tests.families.building import (
    LENGTHS,
    NEW_TOKENS,
    Answer,
    adapted,
    adapter_targets,
    generated,
    make_family,
    prompt_of,
)

LOGPROB_BOUND = 1e-3
"""Of the difference between two log-probabilities of a token, in float32."""
_TRIES = 30
# A prompt is prefilled in chunks while others decode.
_LIMITS = EngineLimits(max_loras=2, max_batch_size=8, max_num_batched_tokens=16, kv_cache_mib=64)


class WrongAnswerError(AssertionError):
    """A token, or its log-probability, is not that of transformers or PEFT."""


@dataclass(frozen=True)
class TableRow:
    """What the table says of a family.

    Attributes:
        family: Its `model_type`.
        served: The runner: "packed" or "row by row"; or "refused".
        adapter: What the compared adapter changes; empty if none was compared.
        note: Why the base, or a larger adapter, is refused.
    """

    family: str
    served: str
    adapter: str = ""
    note: str = ""


@dataclass(frozen=True)
class Adapter:
    """An adapter that both PEFT and the hub take.

    Attributes:
        request: Asks the engine for it; None if there is none.
        peft: PEFT with it on a base of its own.
        name: What it changes.
        problems: Why it does not change more.
    """

    request: StoredLoraRequest | None
    peft: Any
    name: str
    problems: str


def compare(family: str, folder: Path) -> TableRow:
    """Serves the tiny base of a family, and returns the family's row.

    Args:
        family: A key of `FAMILIES`.
        folder: An empty folder for its files.

    Raises:
        WrongAnswerError: A token, or its log-probability, is not that of transformers or PEFT.
    """
    base = make_family(family, folder / "base")
    adapter = _adapter(base, folder)
    asked, plain, changed = _answers(_model(base), adapter.peft)
    try:
        engine = BatchingEngine(load_base(base, quantization=None, compute_dtype="float32"), _LIMITS)
    except AdapterHubError as error:
        return TableRow(family, "refused", note=error.message)
    try:
        _check(engine, "the base", asked, [None] * len(asked), plain)
        if adapter.request:
            who = [None] * len(asked) + [adapter.request] * len(asked)
            _check(engine, "a mixed batch", [*asked, *asked], who, [*plain, *changed])
        return TableRow(family, engine.stats().runner, adapter.name, adapter.problems)
    finally:
        engine.close()


def _check(
    engine: BatchingEngine,
    what: str,
    asked: Sequence[Sequence[int]],
    adapters: Sequence[StoredLoraRequest | None],
    expected: Sequence[Answer],
) -> None:
    requests = [
        request(prompt, adapter, max_tokens=NEW_TOKENS, logprobs=0)
        for prompt, adapter in zip(asked, adapters, strict=True)
    ]
    for prompt, (completion,), answer in zip(asked, engine.generate(requests), expected, strict=True):
        where = f"{what}, prompt of {len(prompt)} tokens"
        if completion.token_ids != answer.token_ids:
            raise WrongAnswerError(f"{where}: {completion.token_ids}, not {answer.token_ids}")
        given = [one.logprob for one in completion.logprobs or ()]
        largest = max(abs(one - other) for one, other in zip(given, answer.logprobs, strict=True))
        if not largest < LOGPROB_BOUND:
            raise WrongAnswerError(f"{where}: a log-probability differs by {largest:.2g}")


def _adapter(base: Path, folder: Path) -> Adapter:
    """The one that changes the most, of those that PEFT can train and the hub can register."""
    problems: dict[str, list[str]] = {}
    for name, settings in adapter_targets(_model(base)):
        target = folder / name
        try:
            peft = adapted(_model(base), settings)
            generated(peft, [3])
            peft.save_pretrained(target)
        except Exception as error:  # noqa: BLE001  PEFT fails on some models, each in its own way
            problems.setdefault(f"peft fails ({type(error).__name__})", []).append(name)
            continue
        try:
            check_against_base(inspect_adapter(target), target, base)
        except AdapterHubError as error:
            problems.setdefault(error.message, []).append(name)
            continue
        return Adapter(stored_request("adapter", target), peft, name, _joined(problems))
    return Adapter(None, None, "", _joined(problems))


def _joined(problems: Mapping[str, Sequence[str]]) -> str:
    return " ".join(f"{', '.join(names)}: {problem}" for problem, names in problems.items())


def _answers(plain: Any, peft: Any) -> tuple[list[list[int]], list[Answer], list[Answer]]:
    """A prompt of each length; transformers' answers; PEFT's, if there is an adapter."""
    found = [_answered(plain, peft, length) for length in LENGTHS]
    changed = [own for *_, own in found if own]
    return [asked for asked, *_ in found], [answer for _, answer, _ in found], changed


def _answered(plain: Any, peft: Any, length: int) -> tuple[list[int], Answer, Answer | None]:
    """A prompt without near ties whose answer the adapter changes, that answer without it, and with it."""
    for seed in range(_TRIES):
        asked = prompt_of(length, seed)
        answer = generated(plain, asked)
        if answer is None:
            continue
        if peft is None:
            return asked, answer, None
        changed = generated(peft, asked)
        if changed and changed.token_ids != answer.token_ids:
            return asked, answer, changed
    raise AssertionError(
        f"all of {_TRIES} prompts of {length} tokens have a near tie, or an answer that the adapter does not change"
    )


def _model(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype="float32").eval()
