"""The LLM for chains of text templates: a text in, a text out, by any adapter of a hub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import aclosing
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation as Answer
from langchain_core.outputs import GenerationChunk, LLMResult
from langchain_core.runnables.config import get_executor_for_config
from pydantic import Field, model_validator

from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import InvalidRequestError
from adapterhub.langchain.answers import told_of, usage_of
from adapterhub.langchain.batches import Part, in_order, parts_of
from adapterhub.langchain.choice import chosen, without_choice
from adapterhub.langchain.model import CONFIG, SETTINGS, HubModel
from adapterhub.requests.generation import Generation

_OPTIONS = frozenset({*SamplingParams.model_fields, "priority"} - {"logprobs", *SETTINGS})
_OF_THE_RUN = frozenset({"tags", "metadata", "run_name", "run_id"})


class AdapterHubLLM(HubModel[str], BaseLLM):
    """A LangChain LLM on a hub; all prompts of a `batch` or `generate` reach it as one request.

    The adapter of a call is chosen as for `ChatAdapterHub`. The `generation_info` of an answer tells what the
    `response_metadata` of a message tells, and `usage_metadata`; `llm_output` adds up the tokens of all answers.

    Attributes:
        hub: What answers. It stays open when the model is gone.
        model: `"name"`, `"name@3"`, `"name@alias"`, a blend, `"auto"` (the router chooses) or `"base"`.

    Raises:
        AdapterNotFoundError: There is no such adapter.
        ValidationError: There is no such option.
    """

    model_config = CONFIG

    raw: bool = False
    """Take a prompt as it stands; else it is one message of the user, in the adapter's own form of prompt."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `AdapterHub.generate`, such as `min_p`, `n` or `priority`."""

    @model_validator(mode="after")
    def _known_options(self) -> Self:
        _check(self.options, _OPTIONS)
        return self

    # LangChain's entry points

    def batch(
        self, inputs: list[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[str]:
        """As in LangChain; where the configs name several adapters, each has a request of its own."""
        parts = parts_of(inputs, config, kwargs)
        given = {"return_exceptions": return_exceptions, **without_choice(kwargs)}
        all_of_one = super().batch

        def answer(part: Part) -> list[str]:
            return all_of_one(part.inputs, part.configs, model=part.adapter, **given)

        if len(parts) < 2:
            return in_order(parts, map(answer, parts))
        with get_executor_for_config({"max_concurrency": len(parts)}) as executor:
            return in_order(parts, executor.map(answer, parts))

    async def abatch(
        self, inputs: list[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> list[str]:
        """As `batch`; cancelling the task ends the answers."""
        parts = parts_of(inputs, config, kwargs)
        given = {"return_exceptions": return_exceptions, **without_choice(kwargs)}
        all_of_one = super().abatch
        answers = (all_of_one(part.inputs, part.configs, model=part.adapter, **given) for part in parts)
        return in_order(parts, await asyncio.gather(*answers))

    def generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """As in LangChain: every prompt's answers."""
        asked, run = self._asked(kwargs)
        return super(AdapterHubLLM, asked).generate(prompts, stop, callbacks, **run)

    async def agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """As `generate`; cancelling the task ends the answers."""
        asked, run = self._asked(kwargs)
        return await super(AdapterHubLLM, asked).agenerate(prompts, stop, callbacks, **run)

    def _asked(self, kwargs: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """The model that has what the call asks for as its fields, and what is left.

        In langchain-core an LLM's fields are all that the key of its cache holds, whatever a call says.
        """
        run = {name: value for name, value in kwargs.items() if name in _OF_THE_RUN}
        given = {
            name: value
            for name, value in without_choice(kwargs).items()
            if name not in run and value is not None
        }
        adapter = chosen(kwargs, {})
        if not given and adapter in (None, self.model):
            return self, run
        _check(given, _OPTIONS.union(SETTINGS))
        settings = {name: given.pop(name) for name in SETTINGS if name in given}
        asked = self.with_adapter(adapter) if adapter else self
        return asked._with(**settings, options={**self.options, **given}), run

    # Answering

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        answers = self.hub.generate_batch(prompts, **self._request(stop, kwargs, "adapters"))
        return self._result(answers, kwargs)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        answers = await self.hub.agenerate_batch(prompts, **self._request(stop, kwargs, "adapters"))
        return self._result(answers, kwargs)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        with self.hub.stream(prompt, **self._request(stop, kwargs, "adapter")) as stream:
            for piece in stream:
                chunk = GenerationChunk(text=piece)
                if run_manager:
                    run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
        if stream.result:
            yield GenerationChunk(text="", generation_info=self._told(stream.result, kwargs))

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        stream = self.hub.astream(prompt, **self._request(stop, kwargs, "adapter"))
        async with aclosing(stream):
            async for piece in stream:
                chunk = GenerationChunk(text=piece)
                if run_manager:
                    await run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
        if stream.result:
            yield GenerationChunk(text="", generation_info=self._told(stream.result, kwargs))

    def _request(self, stop: list[str] | None, kwargs: dict[str, Any], adapter: str) -> dict[str, Any]:
        arguments = {**self.options, **self._arguments(stop, kwargs)}
        _check(arguments, _OPTIONS.union(SETTINGS))
        given = {name: value for name, value in arguments.items() if value is not None}
        return {adapter: self._adapter(kwargs), "raw": self.raw, **given}

    def _told(self, generation: Generation, kwargs: dict[str, Any]) -> dict[str, Any]:
        told = told_of(generation, self._adapter(kwargs), self.hub.engine.base_name)
        return told | {"usage_metadata": usage_of(generation.usage)}

    def _result(self, generations: Sequence[Generation], kwargs: dict[str, Any]) -> LLMResult:
        answers = [
            [
                Answer(
                    text=one.text,
                    generation_info={**self._told(generation, kwargs), "finish_reason": one.finish_reason},
                )
                for one in generation.completions
            ]
            for generation in generations
        ]
        return LLMResult(generations=answers, llm_output=_summed(generations))

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**super()._identifying_params, "raw": self.raw, "options": self.options}


def _check(arguments: Iterable[str], known: Set[str]) -> None:
    unknown = set(arguments) - known
    if unknown:
        raise InvalidRequestError(
            f"{', '.join(sorted(unknown))}: no such argument of an LLM.",
            hint=f"Known: {', '.join(sorted(known))}.",
        )


def _summed(generations: Sequence[Generation]) -> dict[str, Any]:
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
