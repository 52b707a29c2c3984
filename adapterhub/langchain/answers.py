"""From an answer of the hub to LangChain's messages."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, UsageMetadata
from langchain_core.messages.tool import ToolCallChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from adapterhub.langchain.asking import Question
from adapterhub.langchain.call_reader import read_calls
from adapterhub.requests.generation import Generation, Usage
from adapterhub.routing.decision import RouteDecision

PROVIDER = "adapterhub"


def as_result(generation: Generation, question: Question, base: str) -> ChatResult:
    """A whole answer.

    Args:
        generation: What the hub answered.
        question: What it was asked.
        base: The base's name.
    """
    text, calls = read_calls(generation.text, question.form) if question.may_call else (generation.text, [])
    message = AIMessage(
        content=text,
        tool_calls=calls,
        usage_metadata=usage_of(generation.usage),
        response_metadata=_metadata(generation, question, base, bool(calls)),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def as_chunk(part: str | ToolCallChunk) -> ChatGenerationChunk:
    """A piece of an answer: text, or a part of a tool call."""
    if isinstance(part, str):
        return ChatGenerationChunk(message=AIMessageChunk(content=part))
    return ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[part]))


def last_chunk(generation: Generation, question: Question, base: str, called: bool) -> ChatGenerationChunk:
    """The end of a stream; only it tells about the answer, because chunks are added up."""
    message = AIMessageChunk(
        content="",
        usage_metadata=usage_of(generation.usage),
        response_metadata=_metadata(generation, question, base, called),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)


def usage_of(usage: Usage) -> UsageMetadata:
    """Tokens as LangChain counts them."""
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
    )


def told_of(generation: Generation, requested: str, base: str) -> dict[str, Any]:
    """What an answer tells about itself.

    Args:
        generation: The answer.
        requested: The adapter that was asked for.
        base: The base's name.
    """
    told: dict[str, Any] = {
        "model_name": generation.adapter or "base",
        "model_provider": PROVIDER,
        "requested": requested,
        "adapter": generation.adapter,
        "adapter_version": generation.version,
        "base_model": base,
        "finish_reason": generation.finish_reason,
    }
    return told | ({"route": _route(generation.route)} if generation.route else {})


def _metadata(generation: Generation, question: Question, base: str, called: bool) -> dict[str, Any]:
    told = told_of(generation, question.adapter, base)
    return told | {"finish_reason": "tool_calls"} if called else told


def _route(route: RouteDecision) -> dict[str, Any]:
    return {
        "adapter": route.adapter,
        "reason": route.reason,
        "confidence": route.confidence,
        "threshold": route.threshold,
        "fallback": route.fallback,
        "scores": dict(route.ranked()),
    }
