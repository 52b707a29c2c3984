from pathlib import Path

import pytest

from adapterhub import EchoEngine, SamplingParams
from adapterhub.engine.interface import Request
from adapterhub.errors import RequestTooLongError
from adapterhub.lora.request import StoredLoraRequest

JSON = StoredLoraRequest("json", "sha256:0", Path())


def ask(text: str, adapter: StoredLoraRequest | None = JSON, **sampling: object) -> Request:
    return Request(EchoEngine().tokenizer.encode(text), adapter, SamplingParams.of(sampling))


def test_it_completes_with_the_adapter_and_the_prompt():
    answer = EchoEngine().generate([ask("Hi"), ask("Hi", None)])
    assert [one[0].text for one in answer] == ["[json] Hi", "[base] Hi"]


def test_it_keeps_to_max_tokens_and_stop_strings():
    engine = EchoEngine()
    short, stopped = (
        one[0] for one in engine.generate([ask("Hi", max_tokens=3), ask("Hi there", stop="the")])
    )
    assert (short.text, short.finish_reason) == ("[js", "length")
    assert (stopped.text, stopped.finish_reason) == ("[json] Hi ", "stop")


def test_streaming_gives_the_same_text():
    assert "".join(output.text for output in EchoEngine().stream(ask("Привет"))) == "[json] Привет"


def test_it_has_a_context_too():
    with pytest.raises(RequestTooLongError):
        EchoEngine(context_length=4).generate([ask("Hello")])
    with pytest.raises(RequestTooLongError):  # before the first `next`, as in `BatchingEngine`
        EchoEngine(context_length=4).stream(ask("Hello"))
