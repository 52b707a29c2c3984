"""Conversion of the hub's generations to LangChain's results and chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.messages import AIMessage, AIMessageChunk, UsageMetadata
from langchain_core.messages.tool import tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, GenerationChunk

from adapterhub.requests.generation import Generation, Usage
from adapterhub.routing.decision import RouteDecision
from adapterhub.tool_calling import ChatRequest, ToolCallChunk, argument_violations, parse_tool_calls

PROVIDER = "adapterhub"


def create_chat_result(generation: Generation, request: ChatRequest, base: str) -> ChatResult:
    """Converts a whole answer.

    Args:
        generation: The hub's answer.
        request: What was requested.
        base: The base's name.
    """
    text, calls = (
        parse_tool_calls(generation.text, request.call_format)
        if request.may_call_tools
        else (generation.text, [])
    )
    message = AIMessage(
        content=text,
        tool_calls=[tool_call(**call) for call in calls],
        usage_metadata=create_usage_metadata(generation.usage),
        response_metadata=_metadata(generation, request, base, bool(calls)),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def create_chat_chunk(delta: str | ToolCallChunk) -> ChatGenerationChunk:
    """Converts a delta of an answer: text, or a chunk of a tool call."""
    if isinstance(delta, str):
        return ChatGenerationChunk(message=AIMessageChunk(content=delta))
    return ChatGenerationChunk(
        message=AIMessageChunk(content="", tool_call_chunks=[tool_call_chunk(**delta)])
    )


def create_last_chunk(
    generation: Generation, request: ChatRequest, base: str, has_calls: bool
) -> ChatGenerationChunk:
    """The end of a stream. Only it has metadata, because LangChain adds the chunks up."""
    message = AIMessageChunk(
        content="",
        usage_metadata=create_usage_metadata(generation.usage),
        response_metadata=_metadata(generation, request, base, has_calls),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)


def create_text_chunks(
    texts: Iterable[str], run_manager: CallbackManagerForLLMRun | None
) -> Iterator[GenerationChunk]:
    """Converts the deltas of an LLM's answer and reports each to the callbacks."""
    for text in texts:
        chunk = GenerationChunk(text=text)
        if run_manager:
            run_manager.on_llm_new_token(text, chunk=chunk)
        yield chunk


def create_usage_metadata(usage: Usage) -> UsageMetadata:
    """Converts the token counts."""
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
    )


def create_response_metadata(generation: Generation, requested: str, base: str) -> dict[str, Any]:
    """The metadata of an answer: adapter, version, base, finish reason, route.

    Args:
        generation: The hub's answer.
        requested: The adapter that was requested.
        base: The base's name.
    """
    metadata: dict[str, Any] = {
        "model_name": generation.adapter or "base",
        "model_provider": PROVIDER,
        "requested": requested,
        "adapter": generation.adapter,
        "adapter_version": generation.version,
        "base_model": base,
        "finish_reason": generation.finish_reason,
    }
    return metadata | ({"route": _route(generation.route)} if generation.route else {})


def _metadata(generation: Generation, request: ChatRequest, base: str, has_calls: bool) -> dict[str, Any]:
    metadata = create_response_metadata(generation, request.adapter, base)
    if not has_calls:
        return metadata
    _, calls = parse_tool_calls(generation.text, request.call_format)
    violations = argument_violations(request.callable_tools, calls)
    return (
        metadata | {"finish_reason": "tool_calls"} | ({"invalid_arguments": violations} if violations else {})
    )


def _route(route: RouteDecision) -> dict[str, Any]:
    return {
        "adapter": route.adapter,
        "reason": route.reason,
        "confidence": route.confidence,
        "threshold": route.threshold,
        "fallback": route.fallback,
        "scores": dict(route.ranked()),
    }
