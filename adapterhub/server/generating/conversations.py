"""A conversation with tools and an output format, as a request to the hub; and the parts of its answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Self

from adapterhub.errors import GenerationError
from adapterhub.requests.generation import Generation
from adapterhub.server.errors import FieldError
from adapterhub.server.generating.model_names import AUTO, adapter_of
from adapterhub.server.shadow_traffic import LOWEST_PRIORITY
from adapterhub.server.state import ServerState
from adapterhub.tool_calling import (
    ChatRequest,
    ToolCallChunk,
    ToolCallParser,
    ToolChoice,
    argument_violations,
    needs_call_format,
)


def chat_request(
    state: ServerState,
    adapter: str,
    messages: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    *,
    functions: Sequence[Mapping[str, Any]],
    choice: ToolChoice,
    output_format: Mapping[str, Any],
) -> ChatRequest:
    """Prepares a request; call it off the event loop, for tools take long.

    Args:
        state: The server's.
        adapter: Who answers.
        messages: The conversation.
        options: Further options of the hub.
        functions: All tools.
        choice: Those that the answer may call.
        output_format: What an answer without calls has to match, as an option of the hub; empty for any text.

    Raises:
        FieldError: The answer may call tools, and the output format is no JSON Schema.
        InvalidRequestError: No grammar can enforce a schema.
    """
    schema = output_format.get("schema")
    if choice.tools and output_format and schema is None:
        raise FieldError(
            "An answer that may call tools can have a JSON Schema, and no other output format.",
            "structured_outputs",
            hint="Send tool_choice 'none', or no tools.",
        )
    if needs_call_format(functions, messages):  # which is that of the version that answers
        adapter = state.hub._choose_version(adapter, options.get("user"))
    engine, styled = state.hub.engine, None if adapter == AUTO else adapter
    return ChatRequest.of(
        adapter,
        messages,
        options if choice.tools else {**options, **output_format},
        tools=functions,
        choice=choice,
        schema=schema,
        tokenizer=engine.tokenizer,
        detect_format=lambda: state.call_formats.of(state.hub.prompt_style(styled), engine.tokenizer),
    )


def copy_to_shadow(
    state: ServerState,
    model: str,
    generation: Generation | None,
    make_request: Callable[[str], ChatRequest],
) -> None:
    """Sends a conversation to the shadow of its alias too, in the background; see `ShadowTraffic`.

    Args:
        state: The server's.
        model: As the request names it.
        generation: Its answer; None is one that was aborted.
        make_request: The same request, to the version of a reference; called off the event loop.
    """

    async def ask(version: str) -> list[Generation]:
        request = await state.hub._run_off_loop(make_request, version)
        options = {**request.options, "priority": LOWEST_PRIORITY}
        return [await state.hub.agenerate(request.messages, version, tools=request.tools, **options)]

    state.shadows.copy(adapter_of(model, state), [generation], ask)


@dataclass(frozen=True)
class Call:
    """A call of an answer.

    Attributes:
        id: What its result names.
        name: The function.
        arguments: The text of a JSON object.
    """

    id: str
    name: str
    arguments: str

    @classmethod
    def of(cls, chunks: Sequence[ToolCallChunk]) -> Self:
        """The call whose parts these are."""
        arguments = "".join(chunk["args"] for chunk in chunks)
        return cls(chunks[0]["id"] or "", chunks[0]["name"] or "", arguments)


@dataclass
class AnswerParser:
    """Separates text and calls of a streamed answer.

    Attributes:
        request: The request that is answered.
        is_cut: Whether a stop string ended the answer within a call.
    """

    request: ChatRequest
    is_cut: bool = field(default=False, init=False)
    _parser: ToolCallParser = field(init=False, repr=False)
    _chunks: list[ToolCallChunk] = field(default_factory=list, init=False, repr=False)
    _received: str = field(default="", init=False, repr=False)
    _passed_on: int = field(default=0, init=False, repr=False)  # characters of text

    def __post_init__(self) -> None:
        self._parser = ToolCallParser(self.request.call_format)

    @property
    def calls(self) -> list[Call]:
        """The calls so far; none of an answer that was cut within one."""
        if self.is_cut:
            return []
        by_index = groupby(self._chunks, key=lambda chunk: chunk["index"])
        return [Call.of(list(chunks)) for _, chunks in by_index]

    def push(self, text: str, *, ended: bool = False) -> Sequence[str | ToolCallChunk]:
        """The parts that are certain after some more text.

        Args:
            text: The text.
            ended: Whether it is the last.

        Raises:
            GenerationError: It ended within a call, and no stop string may have cut it.
        """
        if not self.request.may_call_tools:
            return [text] if text else []
        self._received += text
        certain = self._parser.push(text)
        self._chunks += [part for part in certain if not isinstance(part, str)]
        self._passed_on += sum(len(part) for part in certain if isinstance(part, str))
        return [*certain, *self._rest()] if ended else certain

    def _rest(self) -> list[str]:
        try:
            return self._parser.flush()
        except GenerationError:
            if not self.request.options.get("stop"):
                raise
        self.is_cut = True
        if self._chunks:  # what a client was told of a call cannot be taken back
            return []
        return [self._received[self._passed_on :]]


def split_answer(text: str, request: ChatRequest) -> tuple[str, list[Call]]:
    """The text and the calls of a whole answer; one that a stop string cut within a call is all text, as in vLLM.

    Raises:
        GenerationError: It ended within a call, and no stop string may have cut it.
    """
    parser = AnswerParser(request)
    parts = parser.push(text, ended=True)
    if parser.is_cut:
        return text, []
    return "".join(part for part in parts if isinstance(part, str)), parser.calls


def violations_of(calls: Sequence[Call], request: ChatRequest) -> dict[str, Any]:
    """What the arguments of calls violate of their schemas, where no grammar enforces it; takes long.

    Returns:
        `invalid_arguments`, for the `adapterhub` field of the answer; empty if they violate nothing.
    """
    read = [{"name": call.name, "args": json.loads(call.arguments)} for call in calls]
    violations = argument_violations(request.callable_tools, read)
    return {"invalid_arguments": violations} if violations else {}
