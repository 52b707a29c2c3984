"""The LLM over a hub: text in, text out; each call selects its adapter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation as Answer
from langchain_core.outputs import GenerationChunk, LLMResult
from langchain_core.runnables.config import get_executor_for_config
from pydantic import Field, model_validator

from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.langchain.adapter_selection import selected_adapter, without_adapter
from adapterhub.langchain.arguments import check_arguments
from adapterhub.langchain.base import MODEL_CONFIG, SAMPLING_FIELDS, BaseHubModel
from adapterhub.langchain.batching import AdapterBatch, group_by_adapter, restore_order
from adapterhub.langchain.context_overflow import context_overflow
from adapterhub.langchain.results import create_response_metadata, create_text_chunks, create_usage_metadata
from adapterhub.requests.generation import Generation

_OPTIONS = frozenset(
    {*SamplingParams.model_fields, "priority"} - {"logprobs", "prompt_logprobs", *SAMPLING_FIELDS}
)
_RUN_OPTIONS = frozenset({"tags", "metadata", "run_name", "run_id"})


class AdapterHubLLM(BaseHubModel[str], BaseLLM):
    """A LangChain LLM on a hub; all prompts of a `batch` or `generate` are one request to it.

    The adapter of a call is selected as in `ChatAdapterHub`. The `generation_info` of an answer is the
    `response_metadata` of a message plus `usage_metadata`; `llm_output` adds up the tokens of all answers.

    Attributes:
        hub: The hub that serves the calls. The model does not close it.
        model: `"name"`, `"name@3"`, `"name@alias"`, a blend, `"auto"` (the router chooses) or `"base"`.

    Raises:
        AdapterNotFoundError: There is no such adapter.
        ValidationError: There is no such option.
    """

    model_config = MODEL_CONFIG

    raw: bool = False
    """Send prompts without a chat template; otherwise a prompt is one user message in the adapter's chat template."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `AdapterHub.generate`, such as `min_p`, `n` or `priority`."""

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        check_arguments(self.options, _OPTIONS, "an LLM")
        return self

    # LangChain's entry points

    def batch(
        self, inputs: list[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[str]:
        """As in LangChain; if the configs name several adapters, there is one request for each."""
        batches = group_by_adapter(inputs, config, kwargs)
        given = {"return_exceptions": return_exceptions, **without_adapter(kwargs)}
        run_batch = super().batch

        def answer(batch: AdapterBatch) -> list[str]:
            return run_batch(batch.inputs, batch.configs, model=batch.adapter, **given)

        if len(batches) < 2:
            return restore_order(batches, map(answer, batches))
        with get_executor_for_config({"max_concurrency": len(batches)}) as executor:
            return restore_order(batches, executor.map(answer, batches))

    async def abatch(
        self, inputs: list[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[str]:
        """As `batch`; cancelling the task aborts the requests."""
        batches = group_by_adapter(inputs, config, kwargs)
        given = {"return_exceptions": return_exceptions, **without_adapter(kwargs)}
        run_batch = super().abatch
        answers = (run_batch(batch.inputs, batch.configs, model=batch.adapter, **given) for batch in batches)
        return restore_order(batches, await asyncio.gather(*answers))

    def generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """As in LangChain."""
        model, run = self._with_call_arguments(kwargs)
        return super(AdapterHubLLM, model).generate(prompts, stop, callbacks, **run)

    async def agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """As `generate`; cancelling the task aborts the requests."""
        model, run = self._with_call_arguments(kwargs)
        return await super(AdapterHubLLM, model).agenerate(prompts, stop, callbacks, **run)

    def _with_call_arguments(self, kwargs: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """A copy of the model with the call's arguments as fields, and the arguments of the run.

        langchain-core's cache key of an LLM covers its fields only, not the arguments of a call.
        """
        run = {name: value for name, value in kwargs.items() if name in _RUN_OPTIONS}
        given = {
            name: value
            for name, value in without_adapter(kwargs).items()
            if name not in run and value is not None
        }
        adapter = selected_adapter(kwargs, {})
        if not given and adapter in (None, self.model):
            return self, run
        check_arguments(given, _OPTIONS.union(SAMPLING_FIELDS), "an LLM")
        fields = {name: given.pop(name) for name in SAMPLING_FIELDS if name in given}
        model = self.with_adapter(adapter) if adapter else self
        return model._with(**fields, options={**self.options, **given}), run

    # Generating

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        with context_overflow():
            answers = self.hub.generate_batch(prompts, **self._request(stop, kwargs, "adapters"))
            return self._result(answers, kwargs)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        with context_overflow():
            answers = await self.hub.agenerate_batch(prompts, **self._request(stop, kwargs, "adapters"))
            return self._result(answers, kwargs)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        with context_overflow():
            with self.hub.stream(prompt, **self._request(stop, kwargs, "adapter")) as stream:
                yield from create_text_chunks(stream, run_manager)
            if stream.result:
                yield GenerationChunk(text="", generation_info=self._generation_info(stream.result, kwargs))

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        with context_overflow():
            stream = self.hub.astream(prompt, **self._request(stop, kwargs, "adapter"))
            async with aclosing(stream):
                async for text in stream:
                    chunk = GenerationChunk(text=text)
                    if run_manager:
                        await run_manager.on_llm_new_token(text, chunk=chunk)
                    yield chunk
            if stream.result:
                yield GenerationChunk(text="", generation_info=self._generation_info(stream.result, kwargs))

    def _request(self, stop: list[str] | None, kwargs: dict[str, Any], adapter: str) -> dict[str, Any]:
        arguments = {**self.options, **self._arguments(stop, kwargs)}
        check_arguments(arguments, _OPTIONS.union(SAMPLING_FIELDS), "an LLM")
        given = {name: value for name, value in arguments.items() if value is not None}
        return {adapter: self._adapter(kwargs), "raw": self.raw, **given}

    def _generation_info(self, generation: Generation, kwargs: dict[str, Any]) -> dict[str, Any]:
        metadata = create_response_metadata(generation, self._adapter(kwargs), self.hub.engine.base_name)
        return metadata | {"usage_metadata": create_usage_metadata(generation.usage)}

    def _result(self, generations: Sequence[Generation], kwargs: dict[str, Any]) -> LLMResult:
        answers = [
            [
                Answer(
                    text=one.text,
                    generation_info={
                        **self._generation_info(generation, kwargs),
                        "finish_reason": one.finish_reason,
                    },
                )
                for one in generation.completions
            ]
            for generation in generations
        ]
        return LLMResult(generations=answers, llm_output=_token_usage(generations))

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**super()._identifying_params, "raw": self.raw, "options": self.options}


def _token_usage(generations: Sequence[Generation]) -> dict[str, Any]:
    prompt = sum(one.usage.prompt_tokens for one in generations)
    completion = sum(one.usage.completion_tokens for one in generations)
    names = {one.adapter or "base" for one in generations}
    return {
        "token_usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
        "model_name": names.pop() if len(names) == 1 else "auto",
    }
