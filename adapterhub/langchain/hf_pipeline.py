"""langchain-huggingface's `HuggingFacePipeline` on a hub's base and one adapter, for chains that hold one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from itertools import chain
from typing import Any, Self, cast

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.outputs import Generation as Answer
from langchain_core.outputs import GenerationChunk, LLMResult
from langchain_huggingface import HuggingFacePipeline

from adapterhub.base.locating import DEMO_BASE, is_local_base, locate_base
from adapterhub.engine.tokenizer import Tokenizer
from adapterhub.hub import AdapterHub
from adapterhub.langchain.adapter_selection import cache_identity, check_adapter
from adapterhub.langchain.arguments import check_arguments
from adapterhub.langchain.context_overflow import context_overflow
from adapterhub.langchain.results import create_text_chunks
from adapterhub.requests.streaming import GenerationStream

_PARAMETERS = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "suppress_tokens": "suppress_tokens",
    "bad_words_ids": "bad_words_ids",
    "min_new_tokens": "min_tokens",
    "stop_strings": "stop",
    "num_return_sequences": "n",
}
"""transformers' names of generation parameters -> ours."""


def huggingface_pipeline(hub: AdapterHub, adapter: str, **pipeline_kwargs: Any) -> HuggingFacePipeline:
    """A `HuggingFacePipeline` on a hub's base with one adapter, without a second copy of the base.

    It replaces one in existing chains and under `ChatHuggingFace`. As there, prompts are sent without a chat template,
    and `invoke` returns the prompt and the answer. Unlike there, `stop` ends answers, prompts are batched, and a cache
    does not mix adapters.

    Its pipeline has the interface of transformers' but submits requests to the engine: a forward of the base outside
    the engine's steps would have neither its attention nor its adapters. Apart from the names of the arguments it is
    `AdapterHub.generate` with `raw=True`.

    Args:
        hub: The hub that serves the calls.
        adapter: As in `AdapterHub.generate`.
        **pipeline_kwargs: Defaults of every call: `max_new_tokens`, `do_sample`, `temperature`, `top_p`, `top_k`,
            `min_p`, `repetition_penalty`, `suppress_tokens`, `bad_words_ids`, `min_new_tokens`, `stop_strings`,
            `num_return_sequences`, `return_full_text`.

    Raises:
        AdapterNotFoundError: There is no such adapter.
        InvalidRequestError: There is no such argument.
    """
    pipeline = AdapterPipeline(hub, adapter, pipeline_kwargs)
    base = hub.engine.base_name
    # `ChatHuggingFace` loads the tokenizer from there.
    folder = str(locate_base(base)) if base == DEMO_BASE or is_local_base(base) else base
    return _HubPipeline(pipeline=pipeline, model_id=folder, pipeline_kwargs=pipeline_kwargs)


class AdapterPipeline:
    """The interface of transformers' `text-generation` pipeline on a hub and one of its adapters.

    Args:
        hub: The hub that serves the calls.
        adapter: As in `AdapterHub.generate`.
        defaults: Default arguments of calls, under transformers' names.

    Raises:
        AdapterNotFoundError: There is no such adapter.
        InvalidRequestError: There is no such argument.
    """

    task = "text-generation"

    def __init__(self, hub: AdapterHub, adapter: str, defaults: Mapping[str, Any]) -> None:
        check_adapter(hub, adapter)
        self._hub = hub
        self._adapter = adapter
        self._defaults = dict(defaults)
        self._options({})

    @property
    def tokenizer(self) -> Tokenizer:
        """The base's tokenizer."""
        return self._hub.engine.tokenizer

    @property
    def identity(self) -> dict[str, Any]:
        """The adapter and its cache identity."""
        return {"adapter": self._adapter} | cache_identity(self._hub, self._adapter)

    def __call__(self, text_inputs: str | list[str], **kwargs: Any) -> list[Any]:
        """Answers one text or several, in one request.

        Args:
            text_inputs: Texts, without a chat template.
            **kwargs: See `huggingface_pipeline`.

        Returns:
            For a text, a list of `{"generated_text": ...}`, one for each of `num_return_sequences`; for several, a list
            of such lists.
        """
        if isinstance(text_inputs, str):
            (answers,) = self([text_inputs], **kwargs)
            return cast(list[Any], answers)
        full_text = (self._defaults | kwargs).get("return_full_text") is not False
        generations = self._hub.generate_batch(text_inputs, self._adapter, raw=True, **self._options(kwargs))
        return [
            [{"generated_text": (prompt if full_text else "") + one.text} for one in generation.completions]
            for prompt, generation in zip(text_inputs, generations, strict=True)
        ]

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy that shares the hub, which holds a model and threads."""
        return copy(self)

    def stream(self, text: str, **kwargs: Any) -> GenerationStream:
        """Streams the answer to one text, without the prompt; arguments as for a call."""
        return self._hub.stream(text, self._adapter, raw=True, **self._options(kwargs))

    def _options(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in {**self._defaults, **kwargs}.items() if value is not None}
        given.pop("return_full_text", None)
        sample = given.pop("do_sample", None)
        check_arguments(given, set(_PARAMETERS), "a pipeline on a hub", {"do_sample", "return_full_text"})
        options = {_PARAMETERS[name]: value for name, value in given.items()}
        if sample is False:
            return options | {"temperature": 0.0}
        default = self._hub.engine.default_sampling_params.get("temperature", 1.0)
        return {"temperature": default, **options} if sample else options


class _HubPipeline(HuggingFacePipeline):
    """Calls the pipeline directly, where the parent uses transformers' threads and streamers."""

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {**super()._identifying_params, **self.pipeline.identity}

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        arguments = _with_stop(kwargs, stop)
        if kwargs.get("skip_prompt"):
            arguments["return_full_text"] = False
        with context_overflow():
            outputs = self.pipeline(prompts, **arguments)
        return LLMResult(
            generations=[[Answer(text=one["generated_text"]) for one in answers] for answers in outputs]
        )

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        with context_overflow(), self.pipeline.stream(prompt, **_with_stop(kwargs, stop)) as answer:
            prefix = [] if kwargs.get("skip_prompt", True) else [prompt]
            yield from create_text_chunks(chain(prefix, answer), run_manager)


def _with_stop(kwargs: Mapping[str, Any], stop: Sequence[str] | None) -> dict[str, Any]:
    return {**kwargs.get("pipeline_kwargs", {}), **({"stop_strings": stop} if stop else {})}
