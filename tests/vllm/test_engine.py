"""The engine over fakes: answers, streams, retries, bounds and figures, as of any engine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from adapterhub.engine.echo import EchoEngine
from adapterhub.engine.interface import Completion, LoraRequest, Request, TokenLogprob, TokenOutput
from adapterhub.engine.output_format import OutputFormat
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import (
    AdapterIncompatibleError,
    CapacityError,
    ConfigError,
    EngineClosedError,
    EngineError,
    InvalidRequestError,
    RequestTooLongError,
)
from adapterhub.lora.request import BlendedLoraRequest, StoredLoraRequest
from adapterhub.vllm import FleetLimits, Timeouts, VLLMEngine
from adapterhub.vllm.unavailable import ReplicaUnavailableError
from tests.fake_vllm import FakeServer, FakeVllm
from tests.vllm.conftest import Connect, request
from tests.waiting import until, wait_for

MakeAdapter = Callable[..., StoredLoraRequest]


def answer(engine: VLLMEngine, one: Request) -> Completion:
    ((completion,),) = engine.generate([one])
    return completion


# Answers


@pytest.mark.parametrize("sampling", [{}, {"max_tokens": 4}, {"stop": ["e] "]}, {"stop": list("abcdefi")}])
def test_it_answers_as_the_in_process_echo_does(engine: VLLMEngine, sampling: dict[str, Any]):
    prompt = request("hello wide world", **sampling)
    ((expected,),) = EchoEngine("echo").generate([prompt])
    found = answer(engine, prompt)
    assert found == expected


def test_requests_one_after_the_other_share_a_connection(engine: VLLMEngine, fake: FakeVllm):
    for _ in range(4):
        assert answer(engine, request("hi")).text == "[base] hi"
        wait_for(lambda: not engine.replicas()[0].in_flight)  # the end of the stream has been read
    assert len(fake.connections) == 1


def test_an_adapter_is_loaded_at_its_first_use_and_answers(
    engine: VLLMEngine, fake: FakeVllm, adapter: MakeAdapter
):
    for _ in range(2):
        assert answer(engine, request("hi", adapter())).text == "[json--v1-abababab] hi"
    assert fake.loads == {"json--v1-abababab": 1}


def test_token_ids_go_there_and_come_back(engine: VLLMEngine, fake: FakeVllm):
    completion = answer(engine, request("hé"))
    assert completion.token_ids == tuple(map(ord, "[base] hé"))
    assert fake.bodies[0]["prompt"] == [ord("h"), ord("é")]


def test_many_requests_at_once(engine: VLLMEngine, adapter: MakeAdapter):
    adapters = [None, adapter("json@1"), adapter("sql@2", "cd" * 32)]
    requests = [request(str(number), adapters[number % 3]) for number in range(60)]
    texts = [completion.text for (completion,) in engine.generate(requests)]
    models = ["base", "json--v1-abababab", "sql--v2-cdcdcdcd"]
    assert texts == [f"[{models[number % 3]}] {number}" for number in range(60)]


def test_n_completions_have_seeds_of_their_own(engine: VLLMEngine, fake: FakeVllm):
    ((first, second),) = engine.generate([request(n=2, seed=7, temperature=1.0)])
    assert first.text == second.text == "[base] hi"
    assert sorted(body["seed"] for body in fake.bodies) == [7, 8]


def test_log_probabilities_are_by_token_id(engine: VLLMEngine):
    completion = answer(engine, request("hi", logprobs=2, max_tokens=2))
    assert completion.logprobs
    first = completion.logprobs[0]
    assert (first.token_id, first.logprob) == (ord("["), -0.5)
    assert first.top == {ord("["): -0.5, ord("\\"): -1.5}


def test_without_alternatives_there_is_no_other_token(engine: VLLMEngine):
    completion = answer(engine, request("hi", logprobs=0, max_tokens=1))
    assert completion.logprobs
    assert completion.logprobs[0].top == {}


def test_log_probabilities_of_a_prompt(engine: VLLMEngine):
    ((first, second),) = engine.generate([request("hi", prompt_logprobs=2, max_tokens=3, n=2)])
    expected = TokenLogprob(ord("i"), -0.5, {ord("i"): -0.5, ord("j"): -1.5})
    assert first.prompt_logprobs == second.prompt_logprobs == (None, expected)
    assert first.logprobs is None
    assert first.text == "[ba"


def test_a_stop_string_ends_the_answer_in_the_server_too(engine: VLLMEngine, fake: FakeVllm):
    fake.token_seconds = 0.02
    assert answer(engine, request("x" * 200, stop=["e]"])).text == "[bas"
    wait_for(lambda: fake.aborted == 1)
    assert fake.in_flight == 0


def test_an_end_token_is_part_of_the_tokens_and_not_of_the_text(server: FakeServer, connect: Connect):
    from dataclasses import replace

    from tests.vllm.conftest import ECHO

    server.fake.end_token_id = 0
    completion = answer(connect(server, base=replace(ECHO, end_token_ids=frozenset({0}))), request("hi"))
    assert completion.text == "[base] hi"
    assert completion.token_ids[-1] == 0
    assert completion.finish_reason == "stop"


# Streams


def test_a_stream_gives_tokens_as_they_come(engine: VLLMEngine, fake: FakeVllm):
    fake.token_seconds = 0.1
    started = time.perf_counter()
    outputs, times = [], []
    for output in engine.stream(request("hi")):
        outputs.append(output)
        times.append(time.perf_counter() - started)
    assert "".join(output.text for output in outputs) == "[base] hi"
    assert times[-1] - times[0] > 0.2
    assert outputs[-1].finish_reason == "stop"
    assert outputs[-1].timings
    assert outputs[-1].timings.decode_seconds > 0.2


def test_closing_a_stream_ends_the_answer_in_the_server(engine: VLLMEngine, fake: FakeVllm):
    fake.token_seconds = 0.02
    stream = engine.stream(request("x" * 200))
    next(stream)
    stream.close()
    wait_for(lambda: fake.aborted == 1)
    wait_for(lambda: engine.stats().finished["abort"] == 1)


async def test_an_asynchronous_stream_has_the_n_completions_side_by_side(engine: VLLMEngine, fake: FakeVllm):
    fake.token_seconds = 0.01
    outputs: list[TokenOutput] = [output async for output in engine.astream(request("hi", n=2))]
    texts = ["".join(output.text for output in outputs if output.index == index) for index in (0, 1)]
    assert texts == ["[base] hi"] * 2
    order = [output.index for output in outputs]
    assert order.index(1) < len(order) - 1 - order[::-1].index(0), "the second began before the first ended"


async def test_cancelling_a_task_ends_its_answers_in_the_server(engine: VLLMEngine, fake: FakeVllm):
    fake.token_seconds = 0.02
    task = asyncio.create_task(engine.agenerate([request("x" * 200), request("y" * 200)]))
    await until(lambda: fake.in_flight == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: fake.aborted == 2)


async def test_start_queues_and_aclose_ends(engine: VLLMEngine, fake: FakeVllm):
    fake.first_token_seconds = 60
    stream = engine.astream(request("hi"))
    await stream.start()
    await until(lambda: fake.in_flight)
    await stream.aclose()
    assert await stream.get() == []
    await until(lambda: fake.aborted)


# What is refused before it is sent


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (request(""), InvalidRequestError, "empty"),
        (Request([0x110000]), InvalidRequestError, "vocabulary"),
        (request("x" * 8192), RequestTooLongError, "context"),
        (request("hi", max_tokens=8192), RequestTooLongError, "context"),
        (request("hi", BlendedLoraRequest.of("a+b", [])), InvalidRequestError, "blend"),
        (request("hi", bad_words_ids=[(1, 2)]), InvalidRequestError, "bad_words_ids"),
        (Request([1], output_format=OutputFormat.of(regex="a+")), InvalidRequestError, "tokenizer"),
    ],
)
def test_what_cannot_be_done_is_refused_before_it_is_sent(
    engine: VLLMEngine, fake: FakeVllm, wrong: Request, error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        engine.generate([request("good"), wrong])
    with pytest.raises(error, match=message):
        engine.stream(wrong)
    assert fake.bodies == []


def test_an_adapter_that_the_server_refuses(engine: VLLMEngine, adapter: MakeAdapter):
    with pytest.raises(AdapterIncompatibleError, match="LoRA rank 64 is greater than max_lora_rank 16"):
        answer(engine, request("hi", adapter(r=64)))
    assert answer(engine, request("hi")).text == "[base] hi"


def test_an_adapter_that_is_no_version_of_the_registry(engine: VLLMEngine):
    with pytest.raises(InvalidRequestError, match="not stored"):
        answer(engine, request("hi", LoraRequest("loose", "sha256:" + "ab" * 32)))


# Servers that fail


def test_a_server_that_was_restarted_loads_the_adapter_again(
    engine: VLLMEngine, fake: FakeVllm, adapter: MakeAdapter
):
    answer(engine, request("hi", adapter()))
    fake.restart()
    assert answer(engine, request("hi", adapter())).text == "[json--v1-abababab] hi"
    assert fake.loads["json--v1-abababab"] == 2


def test_another_server_answers_before_the_first_token(connect: Connect, adapter: MakeAdapter):
    with FakeServer(FakeVllm()) as first, FakeServer(FakeVllm()) as second:
        engine = connect(first, second)
        for up, down in ((first, second), (second, first)):
            wait_for(lambda: all(state.ready for state in engine.replicas()))
            up.fake.unavailable, down.fake.unavailable = False, True
            for _ in range(4):  # the second time the adapter is loaded on the one that is down
                assert answer(engine, request("hi", adapter())).text == "[json--v1-abababab] hi"
            assert len(up.fake.bodies) == 4
            down.fake.unavailable = False


def test_nothing_is_sent_again_after_the_first_token(engine: VLLMEngine, fake: FakeVllm):
    fake.cut_after = 3
    outputs = engine.stream(request("hi"))
    assert [next(outputs).text for _ in range(3)] == ["[", "b", "a"]
    with pytest.raises(ReplicaUnavailableError) as caught:
        next(outputs)
    assert caught.value.retryable
    assert len(fake.bodies) == 1
    assert engine.stats().finished["error"] == 1


def test_a_server_that_is_down_answers_again_when_it_is_back(server: FakeServer, connect: Connect):
    engine = connect(server)
    server.kill()
    with pytest.raises(ReplicaUnavailableError):
        answer(engine, request("hi"))
    server.start()
    wait_for(lambda: engine.replicas()[0].ready)
    assert answer(engine, request("hi")).text == "[base] hi"


def test_an_error_in_the_middle_of_an_answer(engine: VLLMEngine, fake: FakeVllm):
    fake.fail_after = 3
    with pytest.raises(EngineError, match="The engine failed"):
        answer(engine, request("hi"))


def test_time_out_of_the_first_token(server: FakeServer, connect: Connect):
    engine = connect(server, timeouts=Timeouts(first_token=0.1))
    server.fake.first_token_seconds = 60
    with pytest.raises(ReplicaUnavailableError, match=r"not answered for 0\.1 s"):
        answer(engine, request("hi"))


# Bounds


def test_concurrency_is_bounded_and_the_others_wait(server: FakeServer, connect: Connect):
    engine = connect(server, limits=FleetLimits(max_in_flight=3))
    server.fake.token_seconds = 0.001
    completions = engine.generate([request(str(number)) for number in range(30)])
    assert [one.text for (one,) in completions] == [f"[base] {number}" for number in range(30)]
    assert server.fake.max_in_flight == 3


def test_higher_priorities_start_first(server: FakeServer, connect: Connect):
    engine = connect(server, limits=FleetLimits(max_in_flight=1))
    server.fake.first_token_seconds = 0.05
    engine.generate([request(str(number), priority=number) for number in range(6)])
    order = [chr(body["prompt"][0]) for body in server.fake.bodies]
    assert order[1:] == sorted(order[1:], reverse=True)
    assert [body["priority"] for body in server.fake.bodies] == [-int(char) for char in order]


def test_a_full_queue_refuses_with_a_retryable_error(server: FakeServer, connect: Connect):
    engine = connect(server, limits=FleetLimits(max_in_flight=1), max_queue=2)
    server.fake.first_token_seconds = 60
    streams = [engine.stream(request("hi")) for _ in range(3)]
    threads = [threading.Thread(target=_drain, args=(stream,)) for stream in streams]
    threads[0].start()
    wait_for(lambda: engine.stats().running == 1)
    for thread in threads[1:]:
        thread.start()
    wait_for(lambda: engine.stats().waiting == 2)
    with pytest.raises(CapacityError) as caught:
        answer(engine, request("hi"))
    assert caught.value.retryable
    assert engine.stats().rejected == {"rate_limit_exceeded": 1}
    engine.close()
    for thread in threads:
        thread.join()


def _drain(stream: Any) -> None:
    with pytest.raises(EngineClosedError):
        list(stream)


def test_more_completions_in_a_call_than_the_queue_holds(server: FakeServer, connect: Connect):
    with pytest.raises(InvalidRequestError, match="max_queue"):
        connect(server, max_queue=2).generate([request(n=3)])


def test_who_waits_is_served_when_a_server_fails_and_comes_back(server: FakeServer, connect: Connect):
    engine = connect(server, limits=FleetLimits(max_in_flight=1))
    server.fake.token_seconds = 0.01
    results: list[object] = []

    def ask(number: int) -> None:
        try:
            results.append(answer(engine, request(str(number))).text)
        except EngineError as error:
            results.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: engine.stats().running)
    server.kill()
    server.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(isinstance(one, str) or getattr(one, "retryable", False) for one in results)


# Adapters, figures, life


def test_preload_loads_ahead_and_unload_unloads(engine: VLLMEngine, fake: FakeVllm, adapter: MakeAdapter):
    engine.preload(adapter())
    assert list(fake.loaded) == ["json--v1-abababab"]
    engine.unload(adapter())
    wait_for(lambda: not fake.loaded)


def test_a_pinned_adapter_makes_no_room(server: FakeServer, connect: Connect, adapter: MakeAdapter):
    engine = connect(server, limits=FleetLimits(max_adapters=2))
    engine.pin(adapter("json@1"))
    answer(engine, request("hi", adapter("json@1")))
    for name in ("sql@1", "code@1"):
        answer(engine, request("hi", adapter(name)))
    wait_for(lambda: len(server.fake.loaded) <= 2)
    assert "json--v1-abababab" in server.fake.loaded
    assert engine.stats().adapters["json@1"].pinned


def test_figures(engine: VLLMEngine, adapter: MakeAdapter):
    answer(engine, request("hi"))
    answer(engine, request("hello", adapter(), max_tokens=3))
    stats = engine.stats()
    assert (stats.submitted, stats.running, stats.waiting) == (2, 0, 0)
    assert stats.finished == {"stop": 1, "length": 1, "abort": 0, "error": 0}
    assert (stats.tokens, stats.prompt_tokens) == (len("[base] hi") + 3, 2 + 5)
    assert stats.adapters["json@1"].tokens == 3
    assert stats.adapters["json@1"].in_host_memory
    assert stats.host_adapters == 1
    assert stats.tokens_per_second > 0
    assert stats.histograms["e2e_request_latency_seconds"].count == 2


def test_closing_ends_what_runs_and_may_be_done_twice(engine: VLLMEngine, fake: FakeVllm):
    fake.first_token_seconds = 60
    stream = engine.stream(request("hi"))
    thread = threading.Thread(target=_drain, args=(stream,))
    thread.start()
    wait_for(lambda: fake.in_flight)
    engine.close()
    engine.close()
    thread.join()
    with pytest.raises(EngineClosedError):
        engine.generate([request("hi")])
    with pytest.raises(EngineClosedError):
        engine.preload(StoredLoraRequest("json@1", "sha256:" + "ab" * 32, None))  # type: ignore[arg-type]
    assert engine.replicas() == ()
    assert engine.stats().finished["abort"] == 1
    wait_for(lambda: fake.aborted == 1)


def test_who_asks_while_the_engine_closes_is_answered_or_told(engine: VLLMEngine):
    answers: list[str] = []

    def ask() -> None:
        while True:
            answers.append(answer(engine, request("hi")).text)

    def ask_until_closed() -> None:
        with pytest.raises(EngineClosedError):
            ask()

    threads = [threading.Thread(target=ask_until_closed) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: answers)
    engine.close()
    for thread in threads:
        thread.join()
    assert set(answers) == {"[base] hi"}


def test_after_closing_adapters_are_refused_too(engine: VLLMEngine, adapter: MakeAdapter):
    engine.close()
    with pytest.raises(EngineClosedError):
        engine.pin(adapter())
    engine.unload(adapter())


def test_an_engine_that_is_dropped_ends_its_thread(server: FakeServer):
    from tests.vllm.conftest import ECHO

    engine = VLLMEngine(server.url, ECHO)
    answer(engine, request("hi"))
    assert _loop_threads() == 1
    del engine
    wait_for(lambda: not _loop_threads())


def _loop_threads() -> int:
    return sum(thread.name == "adapterhub-vllm" for thread in threading.enumerate())


# Connecting


def test_the_context_is_the_servers_shortest(connect: Connect):
    with FakeServer(FakeVllm(max_model_len=100)) as first, FakeServer(FakeVllm(max_model_len=60)) as second:
        assert connect(first, second).context_length == 60


def test_servers_with_different_bases_are_refused(connect: Connect):
    other = FakeVllm(base="other", root="/models/other")
    with (
        FakeServer(FakeVllm()) as first,
        FakeServer(other) as second,
        pytest.raises(ConfigError, match="different bases: /models/echo, /models/other"),
    ):
        connect(first, second)
    assert not _loop_threads()


def test_one_server_that_is_down_does_not_matter(server: FakeServer, connect: Connect):
    with FakeServer(FakeVllm()) as other:
        other.kill()
        assert answer(connect(other, server), request("hi")).text == "[base] hi"


def test_no_server_answers(server: FakeServer, connect: Connect):
    server.kill()
    with pytest.raises(ReplicaUnavailableError):
        connect(server)
    assert not _loop_threads()


@pytest.mark.parametrize("urls", ["", " , ", [], ["http://127.0.0.1:1", "http://127.0.0.1:1/v1"]])
def test_urls_that_are_refused(urls: Any):
    with pytest.raises(ConfigError):
        VLLMEngine(urls, None)


def test_the_key_comes_from_the_environment(
    server: FakeServer, connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    server.fake.api_key = "secret-key"
    with pytest.raises(EngineError, match="refuses the API key"):
        connect(server)
    monkeypatch.setenv("ADAPTERHUB_UPSTREAM_API_KEY", "secret-key")
    with caplog.at_level("DEBUG"):
        assert answer(connect(server), request("hi")).text == "[base] hi"
    assert "secret-key" not in caplog.text


def test_sampling_defaults_of_the_base(server: FakeServer, connect: Connect):
    from dataclasses import replace

    from tests.vllm.conftest import ECHO

    base = replace(ECHO, generation_config={"do_sample": True, "top_p": 0.8})
    assert connect(server, base=base).default_sampling_params == {"temperature": 1.0, "top_p": 0.8}
    assert connect(server, base=base, generation_config="none").default_sampling_params == {}


def test_a_closed_loop_of_a_caller_disturbs_nobody(engine: VLLMEngine, fake: FakeVllm):
    fake.first_token_seconds = 0.2

    async def leave() -> None:
        await engine.astream(request("hi")).start()

    asyncio.run(leave())
    assert answer(engine, Request(list(map(ord, "hi")), None, SamplingParams())).text == "[base] hi"
