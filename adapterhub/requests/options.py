"""The options of a request: sampling, output format and priority, under vLLM's names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypedDict

from adapterhub.engine.interface import check_priority
from adapterhub.engine.output_format import OUTPUT_FORMAT_ARGUMENTS, Schema
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import InvalidRequestError
from adapterhub.requests.template_options import (
    TEMPLATE_ARGUMENTS,
    TemplateArguments,
    TemplateOptions,
    as_json,
)
from adapterhub.routing.filters import RouteFilter

VLLM_NAMES = {"json": "schema", "choice": "choices"}
"""Names of vLLM's structured outputs -> ours."""


class SamplingOptions(TypedDict, total=False):
    """Fields of `SamplingParams`, the priority, what the router may choose, and for whom the request is."""

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float] | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    suppress_tokens: Sequence[int] | None
    bad_words_ids: Sequence[Sequence[int]] | None
    bad_words: str | Sequence[str] | None
    min_tokens: int
    seed: int | None
    ignore_eos: bool
    n: int
    logprobs: int | None
    prompt_logprobs: int | None
    priority: int
    where: RouteFilter | None
    user: str | None


class GenerationOptions(SamplingOptions, TemplateArguments, total=False):
    """The options of one request. At most one output format; `json` is `schema`, `choice` is `choices`."""

    schema: Schema | None
    regex: str | None
    grammar: str | None
    choices: Sequence[str] | None
    json: Schema | None
    choice: Sequence[str] | None


class BatchGenerationOptions(SamplingOptions, TemplateArguments, total=False):
    """The options of a batch; an output format is one for all prompts, or a list with one or None for each."""

    schema: Schema | Sequence[Schema | None] | None
    regex: str | Sequence[str | None] | None
    grammar: str | Sequence[str | None] | None
    choices: Sequence[str] | Sequence[Sequence[str] | None] | None
    json: Schema | Sequence[Schema | None] | None
    choice: Sequence[str] | Sequence[Sequence[str] | None] | None


_KNOWN = tuple(GenerationOptions.__annotations__)


@dataclass(frozen=True)
class RequestOptions:
    """The options of a call, without prompt and adapter.

    Attributes:
        sampling: Fields of `SamplingParams` that the caller set.
        output_format: Arguments of `OutputFormat.of`.
        priority: Higher ones start first where requests wait; None means the card's.
        raw: The prompt is taken without chat template or system prompt.
        tools: JSON-Schema descriptions of functions for the chat template.
        template: How the chat template is rendered.
        where: Narrows the adapters that `"auto"` may choose.
        user: Whose requests one version of a split alias answers; None chooses anew for each request.
    """

    sampling: Mapping[str, Any]
    output_format: Mapping[str, Any]
    priority: int | None = None
    raw: bool = False
    tools: Sequence[Mapping[str, Any]] | None = None
    template: TemplateOptions = field(default_factory=TemplateOptions)
    where: RouteFilter | None = None
    user: str | None = None

    @classmethod
    def of(
        cls,
        options: Mapping[str, Any],
        sampling_params: SamplingParams | None = None,
        *,
        raw: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Self:
        """Splits keyword arguments by kind; a single option wins over the same field of `sampling_params`.

        Args:
            options: `GenerationOptions` or `BatchGenerationOptions`.
            sampling_params: Of these only the fields that were set count.
            raw: See the attribute.
            tools: See the attribute.

        Raises:
            InvalidRequestError: An unknown name, a name given twice, or a value of another type.
        """
        if sampling_params is not None and not isinstance(sampling_params, SamplingParams):
            raise InvalidRequestError(
                f"sampling_params= takes a SamplingParams, not {type(sampling_params).__name__}.",
                hint="Give single options as keyword arguments: generate(prompt, max_tokens=20).",
            )
        rest = _canonical(options)
        output_format = {name: rest.pop(name) for name in OUTPUT_FORMAT_ARGUMENTS if name in rest}
        template = {name: rest.pop(name) for name in TEMPLATE_ARGUMENTS if name in rest}
        if raw and any(template.values()):
            raise InvalidRequestError(f"raw=True takes no chat template, so no {', '.join(template)}.")
        priority = rest.pop("priority", None)
        if priority is not None:
            check_priority(priority)
        where, user = rest.pop("where", None), rest.pop("user", None)
        if not isinstance(user, str | None):
            raise InvalidRequestError(f"user= takes a text, not {type(user).__name__}.")
        if tools is not None:
            _check_tools(tools)
        fields = sampling_params.model_fields_set if sampling_params else ()
        return cls(
            {**{name: getattr(sampling_params, name) for name in fields}, **rest},
            output_format,
            priority,
            raw,
            tools,
            TemplateOptions.of(template),
            where,
            user,
        )

    def check_single_completion(self) -> None:
        """Checks that a stream can give the answer.

        Raises:
            InvalidRequestError: `n` is above 1.
        """
        if self.sampling.get("n", 1) != 1:
            raise InvalidRequestError("A stream has one completion, so n must be 1.")


def _check_tools(tools: object) -> None:
    valid = isinstance(tools, Sequence) and all(isinstance(tool, Mapping) for tool in tools)
    if not valid:
        raise InvalidRequestError("tools= takes a list of JSON-Schema descriptions of functions.")
    as_json(tools, "tools")


def _canonical(options: Mapping[str, Any]) -> dict[str, Any]:
    """Renames vLLM's options to ours."""
    renamed: dict[str, Any] = {}
    for given, value in options.items():
        if given not in _KNOWN:
            near = difflib.get_close_matches(given, _KNOWN, n=1)
            raise InvalidRequestError(
                f"There is no option {given!r}.",
                hint=f"Did you mean {near[0]!r}?" if near else f"Known options: {', '.join(_KNOWN)}.",
            )
        name = VLLM_NAMES.get(given, given)
        if name in renamed:
            raise InvalidRequestError(f"{_vllm_name(name)}= and {name}= mean the same; give one of them.")
        renamed[name] = value
    return renamed


def _vllm_name(name: str) -> str:
    return next(vllm for vllm, ours in VLLM_NAMES.items() if ours == name)
