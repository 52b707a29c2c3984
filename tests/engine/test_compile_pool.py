"""Output formats are compiled within a limit of time, and one that takes long does not hold up others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub import SamplingParams
from adapterhub.base.loading import load_base
from adapterhub.config import EngineLimits
from adapterhub.engine import BatchingEngine, OutputFormat
from adapterhub.engine.decoding import grammar_compiler
from adapterhub.engine.decoding.completion_search import CompletionSearch, NoCompletion
from adapterhub.engine.decoding.grammar_compiler import GrammarCompiler
from adapterhub.engine.interface import Request
from adapterhub.errors import EngineClosedError, InvalidRequestError
from tests.engine.maker import answer, engine_threads, in_threads

SOON = 20.0
# Hundreds of timestamps: the search for the shortest answer takes many seconds.
LONG = {
    "type": "object",
    "properties": {f"p{n}": {"type": "string", "format": "date-time"} for n in range(300)},
    "required": [f"p{n}" for n in range(300)],
}
FORMS = {
    "long": OutputFormat.of(schema=LONG),
    "other": OutputFormat.of(choices=["maybe"]),
    "short": OutputFormat.of(choices=["yes", "no"]),
}


def asking(form: str) -> Request:
    return Request([5, 6], sampling=SamplingParams(max_tokens=20), output_format=FORMS[form])


@pytest.fixture
def engine(tiny_base: Path) -> Iterator[BatchingEngine]:
    others = engine_threads()
    engine = BatchingEngine(
        load_base(tiny_base, quantization=None, device="cpu"), EngineLimits(kv_cache_mib=16)
    )
    yield engine
    engine.close()
    assert engine_threads() <= others


@pytest.fixture
def held(engine: BatchingEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The long form takes until the event is set; its quick queue gives up."""
    may_end, find = threading.Event(), CompletionSearch.find

    def slow(self, matcher, max_states, max_seconds=0.0):
        if self is not first:
            return find(self, matcher, max_states)
        if max_seconds < grammar_compiler.MAX_SECONDS:
            return NoCompletion.TIME_UP
        may_end.wait(SOON)
        return NoCompletion.TIME_UP

    first: CompletionSearch | None = None
    init = CompletionSearch.__init__

    def noting(self, *args):
        nonlocal first
        init(self, *args)
        if current.form == "long":
            first = self

    class Current(threading.local):
        form = ""

    current, compile_one = Current(), GrammarCompiler._compile

    def compiling(self, output_format, max_seconds):
        current.form = next(name for name, form in FORMS.items() if form == output_format)
        return compile_one(self, output_format, max_seconds)

    monkeypatch.setattr(CompletionSearch, "__init__", noting)
    monkeypatch.setattr(CompletionSearch, "find", slow)
    monkeypatch.setattr(GrammarCompiler, "_compile", compiling)
    yield may_end
    may_end.set()


async def test_a_long_form_does_not_hold_up_a_short_one(engine: BatchingEngine, held: threading.Event):
    long = [asyncio.ensure_future(engine.agenerate([asking("long")])) for _ in range(8)]
    await asyncio.sleep(0.05)
    for form, texts in (("short", ("yes", "no")), ("other", ("maybe",))):
        ((short,),) = await asyncio.wait_for(engine.agenerate([asking(form)]), SOON)
        assert short.text in texts
    assert not any(task.done() for task in long)
    held.set()
    for refused in await asyncio.gather(*long, return_exceptions=True):
        assert isinstance(refused, InvalidRequestError)
        assert "takes too long" in refused.message


def test_nor_in_threads(engine: BatchingEngine, held: threading.Event):
    ends: list[str] = []

    def ask_long() -> None:
        with pytest.raises(InvalidRequestError, match="takes too long"):
            answer(engine, asking("long"))
        ends.append("long")

    def ask_short() -> None:
        ends.append(answer(engine, asking("short")).text)
        held.set()

    in_threads([ask_long, ask_long, ask_short])
    assert ends[0] in ("yes", "no")
    assert ends[1:] == ["long", "long"]


def test_the_time_is_limited(engine: BatchingEngine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grammar_compiler, "MAX_SECONDS", 0.2)
    with pytest.raises(
        InvalidRequestError, match=r"takes too long to find a complete answer, more than 0\.2 s"
    ):
        answer(engine, asking("long"))


async def test_forms_that_wait_when_the_engine_is_closed_end_with_it(
    engine: BatchingEngine, held: threading.Event
):
    tasks = [asyncio.ensure_future(engine.agenerate([asking("long")])) for _ in range(4)]
    await asyncio.sleep(0.05)
    closing = asyncio.ensure_future(asyncio.to_thread(engine.close))
    await asyncio.sleep(0.05)
    held.set()
    await closing
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    # The one that is being compiled may still end with its own error.
    assert all(isinstance(end, EngineClosedError | InvalidRequestError) for end in ends)
    assert sum(isinstance(end, EngineClosedError) for end in ends) >= len(ends) - 1
    with pytest.raises(EngineClosedError):
        await engine.agenerate([asking("other")])


@pytest.mark.parametrize("refused", [OutputFormat.of(regex="("), OutputFormat.of(grammar='start: "a" start')])
def test_a_form_that_is_refused_is_tried_once(
    engine: BatchingEngine, refused: OutputFormat, monkeypatch: pytest.MonkeyPatch
):
    tried: list[OutputFormat] = []
    compile_one = GrammarCompiler._compile

    def compiling(self, output_format, max_seconds):
        tried.append(output_format)
        return compile_one(self, output_format, max_seconds)

    monkeypatch.setattr(GrammarCompiler, "_compile", compiling)
    one, errors = Request([5], output_format=refused), []
    for _ in range(2):
        with pytest.raises(InvalidRequestError) as in_thread:
            engine.generate([one])
        with pytest.raises(InvalidRequestError) as in_task:
            asyncio.run(engine.agenerate([one]))
        errors += [in_thread.value, in_task.value]
    assert len({(error.message, error.hint) for error in errors}) == 1
    assert len(tried) == 1
