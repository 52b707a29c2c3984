"""The chat model: any adapter of a hub, chosen call by call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Self, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field, SecretStr, model_validator

from adapterhub.generation import Generation
from adapterhub.hub import AdapterHub
from adapterhub.langchain.answers import PROVIDER, as_chunk, as_result, last_chunk
from adapterhub.langchain.asking import Question, response_schema
from adapterhub.langchain.calls import CallReader, ToolChoice
from adapterhub.langchain.choice import cards_of, chosen, identity, without_choice
from adapterhub.langchain.deadline import ain_time, in_time, within
from adapterhub.langchain.structured import (
    Method,
    function_name,
    parser_of,
    response_format,
    traced,
    with_parser,
)
from adapterhub.prompts import conversation, render

_MOST_THREADS = 128
_SETTINGS = ("temperature", "max_tokens", "top_p", "top_k", "seed", "stop")


class ChatAdapterHub(BaseChatModel):
    """A LangChain chat model on a hub; many of them may share one hub, and their calls share its forward passes.

    A call's adapter is what it names by `model=` or `adapter=`, else by `config={"configurable": {"adapter": ...}}`,
    else the field `model`. Names that are not registered are an error; the base never answers in an adapter's place.

    Args:
        hub: What answers. It stays open when the model is gone.
        model: `"name"`, `"name@3"`, `"name@alias"`, a blend, `"auto"` (the router chooses) or `"base"`.

    Raises:
        AdapterNotFoundError: There is no such adapter.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True)

    hub: AdapterHub = Field(exclude=True, repr=False)
    """What answers."""
    model: str = "base"
    """The adapter of calls that name none."""
    temperature: float | None = None
    """As in `SamplingParams`; what is None is left to the adapter's card."""
    max_tokens: int | None = None
    """Most tokens of an answer."""
    top_p: float | None = None
    """As in `SamplingParams`."""
    top_k: int | None = None
    """As in `SamplingParams`."""
    seed: int | None = None
    """As in `SamplingParams`."""
    stop: list[str] | None = None
    """Texts that end an answer; an answer that must have a form refuses them."""
    streaming: bool = False
    """Whether `invoke` streams too, for callbacks that read tokens."""
    timeout: float | None = Field(None, gt=0)
    """Seconds after which an answer is given up with a `DeadlineError`."""
    max_retries: int | None = None
    """Without effect, as on every model that is not behind a network; for a full queue use `with_retry`."""
    api_key: SecretStr | None = Field(None, exclude=True, repr=False)
    """Without effect; for code that gives one to every model."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        cards_of(self.hub, self.model)
        return self

    # Choosing an adapter

    def with_adapter(self, adapter: str) -> Self:
        """The same model with another adapter; it shares the hub.

        Args:
            adapter: As the field `model`.

        Raises:
            AdapterNotFoundError: There is no such adapter.
        """
        cards_of(self.hub, adapter)
        copy = self.model_copy(update={"model": adapter})
        copy.__dict__.pop("_serialized", None)  # langchain-core keeps there what traces say about the model
        return copy

    def bind(self, **kwargs: Any) -> Any:
        """As in LangChain; an adapter that is bound stays, also in `bind_tools` and `with_structured_output`."""
        adapter = chosen(kwargs, {})
        bound = self.with_adapter(adapter) if adapter else self
        return super(ChatAdapterHub, bound).bind(**without_choice(kwargs))

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: Any = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools that it may call; their arguments are always valid under the tools' schemas.

        Args:
            tools: Tools, functions, pydantic models, TypedDicts or JSON Schemas; none is fine.
            tool_choice: `"auto"` (if not given), `"none"`, `"any"` or `"required"`, or a tool's name; see
                `ToolChoice.of`.
            parallel_tool_calls: Whether an answer may hold several calls; if not given, it may.
            **kwargs: Further arguments of a call, such as `response_format`, `adapter` or `temperature`.

        Raises:
            ConfigError: `tool_choice` names no tool, or `response_format` is not valid.
        """
        described = [convert_to_openai_tool(tool) for tool in tools]
        ToolChoice.of(described, tool_choice)
        if kwargs.get("response_format") is not None:
            schema = response_schema(kwargs["response_format"])
            kwargs["response_format"] = response_format(schema) if schema else None
        extra = {"tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls, **kwargs}
        given = {name: value for name, value in extra.items() if value is not None}
        bound: Runnable[LanguageModelInput, AIMessage] = self.bind(tools=described, **given)
        return bound

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """The model with answers that are objects of a schema.

        Args:
            schema: A pydantic model (the answer is one), or a TypedDict or JSON Schema (the answer is a dict).
            method: `"json_schema"`: the answer's text is JSON of that schema; `"json_mode"`: the same, or any JSON
                object without a schema; `"function_calling"`: the answer calls a function of that schema.
            include_raw: Return `{"raw": message, "parsed": object or None, "parsing_error": exception or None}`.
            strict: Answers keep to the schema whatever it says.
            **kwargs: Further arguments of a call, such as `adapter` or `temperature`.

        Raises:
            ConfigError: There is no such method, or it needs a schema.
        """
        parser = parser_of(schema, method)
        kwargs |= traced(schema, method)
        if method == "function_calling" and schema is not None:
            model = self.bind_tools(
                [schema], tool_choice=function_name(schema), parallel_tool_calls=False, **kwargs
            )
        else:
            model = self.bind(response_format=response_format(schema), **kwargs)
        return with_parser(model, parser, include_raw)

    # LangChain's entry points: the config is known only here

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """As in LangChain."""
        return super().invoke(input, config, **_called(kwargs, config))

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """As in LangChain; cancelling the task ends the answer."""
        return await super().ainvoke(input, config, **_called(kwargs, config))

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """As in LangChain; closing the stream ends the answer."""
        return super().stream(input, config, **_called(kwargs, config))

    def astream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """As in LangChain; closing the stream ends the answer."""
        return super().astream(input, config, **_called(kwargs, config))

    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        """As in LangChain."""
        return super().stream_events(input, config, **_called(kwargs, config))

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002
        """As in LangChain."""
        return super().astream_events(input, config, **_called(kwargs, config))

    def batch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[AIMessage]:
        """As in LangChain; unless `max_concurrency` says otherwise, all requests reach the hub together."""
        return super().batch(inputs, _together(config, len(inputs)), **kwargs)

    def batch_as_completed(self, inputs: Sequence[Any], config: Any = None, **kwargs: Any) -> Iterator[Any]:
        """As `batch`, each answer with its place as soon as it is there."""
        return super().batch_as_completed(inputs, _together(config, len(inputs)), **kwargs)

    # Answering

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        ask = self._question(messages, stop, kwargs)
        return as_result(self._answer(ask), ask, self.hub.engine.base_name)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        ask = await asyncio.to_thread(self._question, messages, stop, kwargs)
        answer = self.hub.agenerate(ask.turns, ask.adapter, tools=ask.tools, **ask.options)
        return as_result(await within(answer, self.timeout), ask, self.hub.engine.base_name)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        ask, reader = self._question(messages, stop, kwargs), CallReader()
        with self.hub.stream(ask.turns, ask.adapter, tools=ask.tools, **ask.options) as stream:
            for piece in in_time(stream, self.timeout):
                yield from map(as_chunk, reader.push(piece) if ask.may_call else [piece])
        if stream.result:
            yield from map(as_chunk, reader.flush())
            yield last_chunk(stream.result, ask, self.hub.engine.base_name, reader.count > 0)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        ask, reader = await asyncio.to_thread(self._question, messages, stop, kwargs), CallReader()
        stream = self.hub.astream(ask.turns, ask.adapter, tools=ask.tools, **ask.options)
        async with aclosing(stream):
            async for piece in ain_time(stream, self.timeout):
                for part in reader.push(piece) if ask.may_call else [piece]:
                    yield as_chunk(part)
        if stream.result:
            for rest in reader.flush():
                yield as_chunk(rest)
            yield last_chunk(stream.result, ask, self.hub.engine.base_name, reader.count > 0)

    def _answer(self, ask: Question) -> Generation:
        if self.timeout is None:
            return self.hub.generate(ask.turns, ask.adapter, tools=ask.tools, **ask.options)
        with self.hub.stream(ask.turns, ask.adapter, tools=ask.tools, **ask.options) as stream:
            deque(in_time(stream, self.timeout), maxlen=0)
        return cast(Generation, stream.result)

    def _question(
        self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, kwargs: dict[str, Any]
    ) -> Question:
        own = {name: getattr(self, name) for name in _SETTINGS}
        given = {"stop": stop or None, **without_choice(kwargs)}
        arguments = own | {name: value for name, value in given.items() if value is not None}
        return Question.of(self.hub, self._adapter(kwargs), messages, arguments)

    def _adapter(self, kwargs: dict[str, Any]) -> str:
        return chosen(kwargs, {}) or self.model

    # What tells about the model

    @property
    def _llm_type(self) -> str:
        return PROVIDER

    @property
    def _identifying_params(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in ("model", *_SETTINGS)}
        return settings | identity(self.hub, self.model)

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        params = super()._get_invocation_params(stop=stop or self.stop, **without_choice(kwargs))
        adapter = self._adapter(kwargs)
        return params if adapter == self.model else params | {"model": adapter} | identity(self.hub, adapter)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = LangSmithParams(
            ls_provider=PROVIDER, ls_model_name=self._adapter(kwargs), ls_model_type="chat"
        )
        temperature = kwargs.get("temperature", self.temperature)
        max_tokens = kwargs.get("max_tokens", self.max_tokens)
        if temperature is not None:
            params["ls_temperature"] = temperature
        if max_tokens is not None:
            params["ls_max_tokens"] = max_tokens
        if stop or self.stop:
            params["ls_stop"] = stop or self.stop
        return params

    def _resolve_model_profile(self) -> ModelProfile:
        return ModelProfile(
            max_input_tokens=self.hub.engine.context_length,
            text_inputs=True,
            text_outputs=True,
            tool_calling=True,
            tool_choice=True,
            tool_call_streaming=True,
            structured_output=True,
        )

    def get_token_ids(self, text: str) -> list[int]:
        """The tokens of a text, by the base's own tokenizer."""
        return self.hub.engine.tokenizer.encode(text, add_special_tokens=False)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """How many tokens the messages and tools take in the adapter's form of prompt, with its system prompt."""
        ask = Question.of(self.hub, self.model, messages, {"tools": list(tools or ())})
        cards = [] if self.model == "auto" else cards_of(self.hub, self.model)
        system = cards[0].prompt.system if cards else None
        style = self.hub.prompt_style(self.model if cards else None)
        tokenizer = self.hub.engine.tokenizer
        text = render(conversation(ask.turns, system), style, tokenizer, tools=ask.tools)
        return len(tokenizer.encode(text, add_special_tokens=style.format != "chat"))


def _called(kwargs: dict[str, Any], config: RunnableConfig | None) -> dict[str, Any]:
    """The arguments with the adapter that the call or its config names, if they do, as `model`."""
    adapter = chosen(kwargs, config)
    return without_choice(kwargs) | ({"model": adapter} if adapter else {})


def _together(config: Any, count: int) -> list[RunnableConfig]:
    """Configs under which a batch's requests do not wait for each other in LangChain's pool of threads."""
    threads: RunnableConfig = {"max_concurrency": min(max(count, 1), _MOST_THREADS)}
    return [
        {**each, **threads} if each.get("max_concurrency") is None else each
        for each in get_config_list(config, count)
    ]
