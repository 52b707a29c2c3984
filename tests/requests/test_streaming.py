"""A streamed answer of the hub: what is known when it starts, its chunks, and its result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub import AdapterHub, AdapterRegistry, CompletionChunk, EchoEngine
from adapterhub.engine.interface import TokenLogprob, TokenOutput
from adapterhub.errors import AdapterNotFoundError, GenerationError, InvalidRequestError, RequestTooLongError


@pytest.fixture(scope="module")
def echo(tiny_registry: Path) -> AdapterHub:
    return AdapterHub(EchoEngine(context_length=100), AdapterRegistry(tiny_registry))


async def test_a_started_stream_knows_who_answers(echo: AdapterHub):
    async with echo.astream("ab", "json", raw=True) as stream:
        with pytest.raises(InvalidRequestError, match="has not started"):
            _ = stream.adapter
        await stream.start()
        assert (stream.adapter, stream.version, stream.route, stream.prompt_tokens) == ("json", 1, None, 2)
        assert stream.result is None
    async with echo.astream("ab", None, raw=True) as stream:
        await stream.start()
        assert (stream.adapter, stream.version) == (None, None)


async def test_an_error_is_raised_by_start(echo: AdapterHub):
    with pytest.raises(AdapterNotFoundError):
        await echo.astream("Hi", "nothing").start()
    with pytest.raises(RequestTooLongError):
        await echo.astream("x" * 200, "json").start()


async def test_chunks_of_all_completions_come_side_by_side(echo: AdapterHub):
    expected = echo.generate("ab", "json", raw=True, n=2)
    stream = echo.astream("ab", "json", raw=True, n=2)
    chunks = [chunk async for chunk in stream.chunks()]
    assert [chunk.index for chunk in chunks[:4]] == [0, 1, 0, 1]
    for index, completion in enumerate(expected.completions):
        of_one = [chunk for chunk in chunks if chunk.index == index]
        assert "".join(chunk.text for chunk in of_one) == completion.text == "[json@1] ab"
        assert tuple(token for chunk in of_one for token in chunk.token_ids) == completion.token_ids
        assert [chunk.finish_reason for chunk in of_one] == [None] * (len(of_one) - 1) + ["stop"]
    assert stream.result is not None
    assert stream.result.completions == expected.completions
    assert stream.result.usage.completion_tokens == 2 * len("[json@1] ab")


async def test_an_interval_holds_tokens_back_but_for_the_first_and_the_last(echo: AdapterHub):
    whole = echo.generate("ab", "json", raw=True)  # 11 characters
    stream = echo.astream("ab", "json", raw=True)
    chunks = [chunk async for chunk in stream.chunks(4)]
    assert [chunk.text for chunk in chunks] == ["[", "json", "@1] ", "ab"]
    assert [chunk.finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == whole.completions[0].token_ids
    assert stream.result is not None
    assert stream.result.completions == whole.completions


async def test_an_interval_counts_the_tokens_of_each_completion(echo: AdapterHub):
    stream = echo.astream("ab", "json", raw=True, n=2)
    chunks = [(chunk.index, chunk.text) async for chunk in stream.chunks(6)]
    assert chunks == [(0, "["), (1, "["), (0, "json@1"), (1, "json@1"), (0, "] ab"), (1, "] ab")]


async def test_an_error_comes_behind_what_the_interval_held_back(echo: AdapterHub):
    class Failing:
        def __init__(self) -> None:
            self.texts = iter("abc")

        async def get(self) -> list[TokenOutput]:
            for text in self.texts:
                return [TokenOutput(text, 1)]
            raise GenerationError("The engine failed.")

    stream = echo.astream("ab", "json", raw=True)
    await stream.start()
    stream._started = replace(stream._started, outputs=Failing())  # type: ignore[type-var, assignment]
    chunks = stream.chunks(10)
    assert [(await anext(chunks)).text for _ in range(2)] == ["a", "bc"]
    with pytest.raises(GenerationError):
        await anext(chunks)


async def test_texts_are_those_of_the_first_completion(echo: AdapterHub):
    stream = echo.astream("ab", "json", raw=True, n=3)
    assert "".join([text async for text in stream]) == "[json@1] ab"
    assert stream.result is not None
    assert len(stream.result.completions) == 3


async def test_a_closed_stream_has_no_result(echo: AdapterHub):
    stream = echo.astream("ab", "json", raw=True)
    chunks = stream.chunks()
    assert (await anext(chunks)).text == "["
    await stream.aclose()
    assert [chunk async for chunk in chunks] == []
    assert stream.result is None
    unstarted = echo.astream("ab", "json", raw=True)
    await unstarted.aclose()
    assert [text async for text in unstarted] == []


def test_a_chunk_joins_what_came_at_once():
    logprobs = [TokenLogprob(token, -1.0, {}) for token in (4, 5)]
    outputs = [TokenOutput("a", 4, logprobs[0], None, 1), TokenOutput("b", 5, logprobs[1], "stop", 1)]
    assert CompletionChunk.of(outputs) == CompletionChunk(1, "ab", (4, 5), tuple(logprobs), "stop")
    assert CompletionChunk.of([TokenOutput("a", 4)]).logprobs is None
