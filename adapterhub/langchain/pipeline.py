"""langchain-huggingface's `HuggingFacePipeline` on a hub's base and one adapter, for chains that hold one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, cast

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.outputs import Generation as Answer
from langchain_core.outputs import GenerationChunk, LLMResult
from langchain_huggingface import HuggingFacePipeline

from adapterhub.base.locating import DEMO_BASE, demo_base_folder
from adapterhub.engine.tokenizer import Tokenizer
from adapterhub.errors import InvalidRequestError
from adapterhub.hub import AdapterHub
from adapterhub.langchain.choice import check, identity
from adapterhub.requests.generation import GenerationStream

_OURS = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "stop_strings": "stop",
    "num_return_sequences": "n",
}
"""transformers' names of arguments, and ours."""


def huggingface_pipeline(hub: AdapterHub, adapter: str, **pipeline_kwargs: Any) -> HuggingFacePipeline:
    """A `HuggingFacePipeline` whose answers come from a hub's base with one adapter; no second copy of the base.

    Chains that hold one go on working, `ChatHuggingFace` over it too. Prompts are taken as they stand, and `invoke`
    returns the prompt and the answer, as there. Unlike there, `stop` ends answers, several prompts share forward
    passes, an error arrives at once, and a cache does not mix adapters.

    Its pipeline has the shape of transformers' and is none: a forward of the base outside the engine has neither
    attention nor adapters, both of which the engine sets for its own steps, and would run beside the steps of others.
    So the pipeline asks the engine; but for the names of arguments it is `AdapterHub.generate` with `raw=True`.

    Args:
        hub: What answers.
        adapter: As in `AdapterHub.generate`.
        **pipeline_kwargs: Defaults of every call: `max_new_tokens`, `do_sample`, `temperature`, `top_p`, `top_k`,
            `min_p`, `repetition_penalty`, `stop_strings`, `num_return_sequences`, `return_full_text`.

    Raises:
        AdapterNotFoundError: There is no such adapter.
        InvalidRequestError: There is no such argument.
    """
    pipeline = AdapterPipeline(hub, adapter, pipeline_kwargs)
    base = hub.engine.base_name
    # `ChatHuggingFace` loads the tokenizer from there.
    folder = str(demo_base_folder()) if base == DEMO_BASE else base
    return _OnHub(pipeline=pipeline, model_id=folder, pipeline_kwargs=pipeline_kwargs)


class AdapterPipeline:
    """What a `text-generation` pipeline of transformers is to its callers, on a hub and one of its adapters.

    Args:
        hub: What answers.
        adapter: Whose answers.
        defaults: Arguments of calls that do not give them, under transformers' names.

    Raises:
        AdapterNotFoundError: There is no such adapter.
        InvalidRequestError: There is no such argument.
    """

    task = "text-generation"

    def __init__(self, hub: AdapterHub, adapter: str, defaults: Mapping[str, Any]) -> None:
        check(hub, adapter)
        self._hub = hub
        self._adapter = adapter
        self._defaults = dict(defaults)
        self._options({})

    @property
    def tokenizer(self) -> Tokenizer:
        """The base's."""
        return self._hub.engine.tokenizer

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its answers beside the arguments."""
        return {"adapter": self._adapter} | identity(self._hub, self._adapter)

    def __call__(self, text_inputs: str | list[str], **kwargs: Any) -> list[Any]:
        """Answers one text or several, all in one request.

        Args:
            text_inputs: Texts, taken as they stand.
            **kwargs: See `huggingface_pipeline`.

        Returns:
            For a text, a list of `{"generated_text": ...}`, one for each of `num_return_sequences`; for several, a list
            of such lists.
        """
        if isinstance(text_inputs, str):
            (answers,) = self([text_inputs], **kwargs)
            return cast(list[Any], answers)
        whole = (self._defaults | kwargs).get("return_full_text") is not False
        found = self._hub.generate_batch(text_inputs, self._adapter, raw=True, **self._options(kwargs))
        return [
            [{"generated_text": (prompt if whole else "") + one.text} for one in generation.completions]
            for prompt, generation in zip(text_inputs, found, strict=True)
        ]

    def stream(self, text: str, **kwargs: Any) -> GenerationStream:
        """Answers one text piece by piece, without the prompt; arguments as for a call."""
        return self._hub.stream(text, self._adapter, raw=True, **self._options(kwargs))

    def _options(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in {**self._defaults, **kwargs}.items() if value is not None}
        given.pop("return_full_text", None)
        sample = given.pop("do_sample", None)
        unknown = given.keys() - _OURS
        if unknown:
            raise InvalidRequestError(
                f"{', '.join(sorted(unknown))}: no such argument of a pipeline on a hub.",
                hint=f"Known: {', '.join(sorted([*_OURS, 'do_sample', 'return_full_text']))}.",
            )
        options = {_OURS[name]: value for name, value in given.items()}
        if sample is False:
            return options | {"temperature": 0.0}
        return {"temperature": 1.0, **options} if sample else options


class _OnHub(HuggingFacePipeline):
    """Asks the pipeline in the terms that it has, where the parent goes by transformers' threads and token streams."""

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
        asked = _with_stop(kwargs, stop)
        if kwargs.get("skip_prompt"):
            asked["return_full_text"] = False
        found = self.pipeline(prompts, **asked)
        return LLMResult(
            generations=[[Answer(text=one["generated_text"]) for one in answers] for answers in found]
        )

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        with self.pipeline.stream(prompt, **_with_stop(kwargs, stop)) as answer:
            for piece in chain([] if kwargs.get("skip_prompt", True) else [prompt], answer):
                chunk = GenerationChunk(text=piece)
                if run_manager:
                    run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk


def _with_stop(kwargs: Mapping[str, Any], stop: Sequence[str] | None) -> dict[str, Any]:
    return {**kwargs.get("pipeline_kwargs", {}), **({"stop_strings": stop} if stop else {})}
