"""The chat model: any adapter of a hub, chosen call by call."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, PrivateAttr, SecretStr

from adapterhub.langchain.answers import as_chunk, as_result, last_chunk
from adapterhub.langchain.asking import Question, response_schema
from adapterhub.langchain.batches import together
from adapterhub.langchain.call_probe import CallFormats
from adapterhub.langchain.call_reader import CallReader
from adapterhub.langchain.calls import ToolChoice
from adapterhub.langchain.choice import cards_of, without_choice
from adapterhub.langchain.deadline import ain_time, in_time, within
from adapterhub.langchain.model import CONFIG, HubModel
from adapterhub.langchain.structured_output import (
    Method,
    function_name,
    parser_of,
    response_format,
    traced,
    with_parser,
)
from adapterhub.requests.generation import Generation
from adapterhub.requests.prompts import conversation, render


class ChatAdapterHub(HubModel[AIMessage], BaseChatModel):
    """A LangChain chat model on a hub; many of them may share one hub, and their calls share its forward passes.

    A call's adapter is what it names by `model=` or `adapter=`, else by `config={"configurable": {"adapter": ...}}`,
    else the field `model`. Names that are not registered are an error; the base never answers in an adapter's place.

    Attributes:
        hub: What answers. It stays open when the model is gone.
        model: `"name"`, `"name@3"`, `"name@alias"`, a blend, `"auto"` (the router chooses) or `"base"`.

    Raises:
        AdapterNotFoundError: There is no such adapter.
    """

    model_config = CONFIG

    streaming: bool = False
    """Whether `invoke` streams too, for callbacks that read tokens."""
    timeout: float | None = Field(None, gt=0)
    """Seconds after which an answer is given up with a `DeadlineError`."""
    max_retries: int | None = None
    """Without effect, as on every model that is not behind a network; for a full queue use `with_retry`."""
    api_key: SecretStr | None = Field(None, exclude=True, repr=False)
    """Without effect; for code that gives one to every model."""
    _formats: CallFormats = PrivateAttr(default_factory=CallFormats)

    # What a model of it may do

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
            InvalidRequestError: `tool_choice` names no tool, or `response_format` is not valid.
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
            InvalidRequestError: There is no such method, or it needs a schema.
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

    def batch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[AIMessage]:
        """As in LangChain; unless `max_concurrency` says otherwise, all requests reach the hub together."""
        return super().batch(inputs, together(config, len(inputs)), **kwargs)

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
        ask = await self.hub._run_off_loop(self._question, messages, stop, kwargs)
        answer = self.hub.agenerate(ask.turns, ask.adapter, tools=ask.tools, **ask.options)
        return as_result(await within(answer, self.timeout), ask, self.hub.engine.base_name)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        ask = self._question(messages, stop, kwargs)
        reader = CallReader(ask.form)
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
        ask = await self.hub._run_off_loop(self._question, messages, stop, kwargs)
        reader = CallReader(ask.form)
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
        given = self._arguments(stop, kwargs)
        return Question.of(self.hub, self._adapter(kwargs), messages, given, self._formats)

    # What tells about the model

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        params = super()._get_invocation_params(stop=stop or self.stop, **without_choice(kwargs))
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
        """How many tokens the messages and tools take in the adapter's form of prompt, with its system prompt."""
        ask = Question.of(self.hub, self.model, messages, {"tools": list(tools or ())}, self._formats)
        cards = [] if self.model == "auto" else cards_of(self.hub, self.model)
        system = cards[0].prompt.system if cards else None
        style = self.hub.prompt_style(self.model if cards else None)
        tokenizer = self.hub.engine.tokenizer
        text = render(conversation(ask.turns, system), style, tokenizer, tools=ask.tools)
        return len(tokenizer.encode(text, add_special_tokens=style.format != "chat"))
