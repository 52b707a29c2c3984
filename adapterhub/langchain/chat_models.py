"""The chat model over a hub; each call selects its adapter."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import Field, PrivateAttr, SecretStr

from adapterhub.langchain.adapter_selection import without_adapter
from adapterhub.langchain.base import MODEL_CONFIG, BaseHubModel
from adapterhub.langchain.batching import with_concurrency
from adapterhub.langchain.chat_request import chat_request, response_schema
from adapterhub.langchain.context_overflow import context_overflow
from adapterhub.langchain.results import create_chat_chunk, create_chat_result, create_last_chunk
from adapterhub.langchain.structured_output import (
    Method,
    chain_parser,
    create_parser,
    function_name,
    response_format,
    tracing_format,
)
from adapterhub.langchain.timeouts import aiterate_with_timeout, await_with_timeout, iterate_with_timeout
from adapterhub.langchain.tool_schema import functions_of
from adapterhub.requests.generation import Generation
from adapterhub.tool_calling import ChatRequest, ToolCallFormats, ToolCallParser, ToolChoice
from adapterhub.tool_calling.tool_choice import arguments_grammar

Converted = TypeVar("Converted", ChatResult, ChatGenerationChunk)


class ChatAdapterHub(BaseHubModel[AIMessage], BaseChatModel):
    """A LangChain chat model on a hub. Many models may share a hub; their concurrent calls are batched.

    A call's adapter is its argument `model` or `adapter`, else `config={"configurable": {"adapter": ...}}`, else the
    field `model`. A name that is not registered is an error: the base never answers in an adapter's place.

    Attributes:
        hub: The hub that serves the calls. The model does not close it.
        model: `"name"`, `"name@3"`, `"name@alias"`, a blend, `"auto"` (the router chooses) or `"base"`.

    Raises:
        AdapterNotFoundError: There is no such adapter.
    """

    model_config = MODEL_CONFIG

    streaming: bool = False
    """Whether `invoke` streams too, for callbacks on new tokens."""
    timeout: float | None = Field(None, gt=0)
    """Seconds after which an answer fails with a `DeadlineError`."""
    max_retries: int | None = None
    """No effect, because no network is involved; for a full queue use `with_retry`."""
    api_key: SecretStr | None = Field(None, exclude=True, repr=False)
    """No effect; for code that passes one to every model."""
    _formats: ToolCallFormats = PrivateAttr(default_factory=ToolCallFormats)

    # Binding

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: Any = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Binds tools that the model may call; the arguments of calls are always valid under the tools' schemas.

        Args:
            tools: Tools, functions, pydantic models, TypedDicts or JSON Schemas; the list may be empty.
            tool_choice: `"auto"` (if not given), `"none"`, `"any"` or `"required"`, or a tool's name; see
                `ToolChoice.of`.
            parallel_tool_calls: Whether an answer may contain several calls; True if not given.
            **kwargs: Further arguments of a call, such as `response_format`, `adapter` or `temperature`.

        Raises:
            InvalidRequestError: A tool cannot run here, `tool_choice` names no tool, `response_format` is not valid, or
                no grammar can enforce a tool's schema.
        """
        functions = functions_of(tools)
        for function in ToolChoice.of(functions, tool_choice).tools:
            arguments_grammar(function["function"])
        if kwargs.get("response_format") is not None:
            schema = response_schema(kwargs["response_format"])
            kwargs["response_format"] = response_format(schema) if schema else None
        extra = {"tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls, **kwargs}
        given = {name: value for name, value in extra.items() if value is not None}
        bound: Runnable[LanguageModelInput, AIMessage] = self.bind(tools=functions, **given)
        return bound

    def with_structured_output(
        self,
        schema: Any = None,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Binds a schema; the answers are objects of it.

        Args:
            schema: A pydantic model or another type that pydantic understands, such as `list[int]` (the answer is one);
                or a TypedDict or JSON Schema (the answer is a JSON value).
            method: `"json_schema"`: the answer's text is JSON of that schema; `"json_mode"`: the same, or any JSON
                object without a schema; `"function_calling"`: the answer calls a function of that schema.
            include_raw: Return `{"raw": message, "parsed": object or None, "parsing_error": exception or None}`.
            strict: No effect: answers always match the schema.
            **kwargs: Further arguments of a call, such as `adapter` or `temperature`.

        Raises:
            InvalidRequestError: There is no such method, it needs a schema, or the schema is not one of objects and the
                method is `"function_calling"`.
        """
        parser = create_parser(schema, method)
        kwargs |= tracing_format(schema, method)
        if method == "function_calling" and schema is not None:
            model = self.bind_tools(
                [schema], tool_choice=function_name(schema), parallel_tool_calls=False, **kwargs
            )
        else:
            model = self.bind(response_format=response_format(schema), **kwargs)
        return chain_parser(model, parser, include_raw)

    def batch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[AIMessage]:
        """As in LangChain; without `max_concurrency`, all requests are submitted concurrently."""
        return super().batch(inputs, with_concurrency(config, len(inputs)), **kwargs)

    # Generating

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with context_overflow():
            request = self._request(messages, stop, kwargs)
            return create_chat_result(self._answer(request), request, self.hub.engine.base_name)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with context_overflow():
            request = await self._arequest(messages, stop, kwargs)
            answer = self.hub.agenerate(
                request.messages, request.adapter, tools=request.tools, **request.options
            )
            generation = await await_with_timeout(answer, self.timeout)
            return await self._off_loop(request, create_chat_result, generation)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with context_overflow():
            request = self._request(messages, stop, kwargs)
            parser = ToolCallParser(request.call_format)
            with self.hub.stream(
                request.messages, request.adapter, tools=request.tools, **request.options
            ) as stream:
                for text in iterate_with_timeout(stream, self.timeout):
                    yield from map(create_chat_chunk, parser.push(text) if request.may_call_tools else [text])
            if stream.result:
                yield from map(create_chat_chunk, parser.flush())
                yield create_last_chunk(stream.result, request, self.hub.engine.base_name, parser.count > 0)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        with context_overflow():
            request = await self._arequest(messages, stop, kwargs)
            parser = ToolCallParser(request.call_format)
            stream = self.hub.astream(
                request.messages, request.adapter, tools=request.tools, **request.options
            )
            async with aclosing(stream):
                async for text in aiterate_with_timeout(stream, self.timeout):
                    for delta in parser.push(text) if request.may_call_tools else [text]:
                        yield create_chat_chunk(delta)
            if stream.result:
                for rest in parser.flush():
                    yield create_chat_chunk(rest)
                yield await self._off_loop(request, create_last_chunk, stream.result, parser.count > 0)

    def _answer(self, request: ChatRequest) -> Generation:
        if self.timeout is None:
            return self.hub.generate(
                request.messages, request.adapter, tools=request.tools, **request.options
            )
        with self.hub.stream(
            request.messages, request.adapter, tools=request.tools, **request.options
        ) as stream:
            deque(iterate_with_timeout(stream, self.timeout), maxlen=0)
        return cast(Generation, stream.result)

    async def _off_loop(
        self, request: ChatRequest, convert: Callable[..., Converted], generation: Generation, *more: bool
    ) -> Converted:
        """Converts an answer; off the event loop if it may have calls, since checking their arguments takes long."""
        arguments = (generation, request, self.hub.engine.base_name, *more)
        if not request.may_call_tools:
            return convert(*arguments)
        return await self.hub._run_off_loop(convert, *arguments)

    async def _arequest(
        self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, kwargs: dict[str, Any]
    ) -> ChatRequest:
        return await self.hub._run_off_loop(self._request, messages, stop, kwargs)

    def _request(
        self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, kwargs: dict[str, Any]
    ) -> ChatRequest:
        given = self._arguments(stop, kwargs)
        return chat_request(self.hub, self._adapter(kwargs), messages, given, self._formats)

    # Description of the model

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        params = super()._get_invocation_params(stop=stop or self.stop, **without_adapter(kwargs))
        adapter = self._adapter(kwargs)
        return params if adapter == self.model else params | {"model": adapter} | self._identity(adapter)

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

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """The number of prompt tokens of messages and tools in the adapter's chat template, with its system prompt."""
        request = chat_request(self.hub, self.model, messages, {"tools": list(tools or ())}, self._formats)
        return self.hub._count_prompt_tokens(request.messages, self.model, request.tools)
