"""The engine against transformers' own `generate`: answers, limits, cancelling, errors."""

import asyncio
import itertools
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from adapterhub.base.loading import load_base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.decoding.sampler import Logits, Sampler
from adapterhub.engine.interface import Request
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import (
    AdapterHubError,
    EngineError,
    GenerationError,
    InvalidRequestError,
    RequestTooLongError,
)
from adapterhub.lora.request import StoredLoraRequest
from tests.engine.maker import NOTHING, counts, engine_threads, in_threads, outcomes, prompt_of
from tests.tiny import make_base

PROMPTS = [[5, 6, 7, 8, 9, 10, 50, 60], [100, 20], [30, 40, 50, 60, 70]]


LIMITS = EngineLimits(max_loras=2, max_cpu_loras=2, kv_cache_mib=64)


@pytest.fixture
def engine(tiny_base: Path) -> Iterator[BatchingEngine]:
    engine = BatchingEngine(load_base(tiny_base, quantization=None, device="cpu"), LIMITS)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def sources(tiny_adapters: dict[str, Path]) -> dict[str, StoredLoraRequest]:
    return {name: StoredLoraRequest(name, f"sha256:{name}", folder) for name, folder in tiny_adapters.items()}


def request(prompt: list[int], adapter: StoredLoraRequest | None = None, **sampling: object) -> Request:
    return Request(prompt, adapter, SamplingParams.of({"max_tokens": 12, "ignore_eos": True}, sampling))


def tokens(engine: BatchingEngine, one: Request) -> list[int]:
    return list(engine.generate([one])[0][0].token_ids)


def reference(base: Path, adapter: Path | None, prompt: list[int], **settings: object) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    config = GenerationConfig(max_new_tokens=12, eos_token_id=None, pad_token_id=0, **settings)
    with torch.inference_mode():
        out = model.eval().generate(input_ids=torch.tensor([prompt]), generation_config=config)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", [None, "json", "code", "support"])
def test_greedy_tokens_equal_transformers(engine, sources, tiny_base, tiny_adapters, name):
    for prompt in PROMPTS:
        wanted = reference(tiny_base, tiny_adapters[name] if name else None, prompt)
        assert tokens(engine, request(prompt, sources[name] if name else None)) == wanted


def test_the_repetition_penalty_equals_transformers(engine, sources, tiny_base, tiny_adapters):
    wanted = reference(tiny_base, tiny_adapters["json"], PROMPTS[0], repetition_penalty=1.7)
    assert tokens(engine, request(PROMPTS[0], sources["json"], repetition_penalty=1.7)) == wanted
    assert wanted != reference(tiny_base, tiny_adapters["json"], PROMPTS[0])


def test_a_batch_gives_what_single_requests_give(engine, sources):
    batch = [request(prompt, adapter) for prompt in PROMPTS for adapter in (None, *sources.values())]
    together = [list(one[0].token_ids) for one in engine.generate(batch)]
    assert together == [tokens(engine, one) for one in batch]


def test_streams_for_different_adapters_take_turns(engine, sources):
    wanted = [tokens(engine, request(PROMPTS[0], source)) for source in sources.values()]
    streams = [engine.stream(request(PROMPTS[0], source)) for source in sources.values()]
    got = [[piece.token_id for piece in step] for step in zip(*streams, strict=True)]
    assert [list(row) for row in zip(*got, strict=True)] == wanted


def test_threads_get_their_own_adapters_answer(engine, sources):
    wanted = {name: tokens(engine, request(PROMPTS[0], source)) for name, source in sources.items()}
    wrong: list[str] = []

    def ask(name: str) -> None:
        for _ in range(5):
            wrong.extend([name] * (tokens(engine, request(PROMPTS[0], sources[name])) != wanted[name]))

    threads = [threading.Thread(target=ask, args=(name,)) for name in sources for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_only_so_many_adapters_stay_loaded(engine, sources):
    for source in sources.values():
        tokens(engine, request(PROMPTS[0], source))
    assert engine.stats().resident == engine.stats().host_adapters == 2
    assert engine.stats().evictions == 1


def test_an_adapter_in_use_is_not_dropped(engine, sources):
    wanted = tokens(engine, request(PROMPTS[0], sources["json"]))
    stream = engine.stream(request(PROMPTS[0], sources["json"]))
    got = [next(stream).token_id]
    for name in ("code", "support"):
        tokens(engine, request(PROMPTS[1], sources[name]))
    assert [*got, *(piece.token_id for piece in stream)] == wanted


def test_a_cancelled_stream_lets_go_of_its_adapter(engine, sources):
    stream = engine.stream(request(PROMPTS[0], sources["json"]))
    next(stream)
    assert (engine.stats().slot_users, engine.stats().kv_lanes) == (1, 1)
    stream.close()
    assert (engine.stats().slot_users, engine.stats().kv_lanes) == (0, 0)


def test_seeds_repeat_and_answers_differ(engine):
    drawn = [engine.generate([request(PROMPTS[0], temperature=2.0, seed=7, n=3)])[0] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len({one.token_ids for one in drawn[0]}) == 3
    assert tokens(engine, request(PROMPTS[0], temperature=2.0)) != tokens(
        engine, request(PROMPTS[0], temperature=2.0)
    )


def test_a_seed_gives_the_same_whatever_the_neighbours(engine):
    one = request(PROMPTS[0], temperature=2.0, seed=7)
    others = [request(prompt, temperature=1.0) for prompt in PROMPTS]
    assert list(engine.generate([*others, one])[-1][0].token_ids) == tokens(engine, one)


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_a_narrow_choice_is_greedy(engine, settings):
    assert tokens(engine, request(PROMPTS[0], temperature=1.0, **settings)) == tokens(
        engine, request(PROMPTS[0])
    )


def test_almost_no_temperature_is_greedy(engine):
    assert tokens(engine, request(PROMPTS[0], temperature=1e-40)) == tokens(engine, request(PROMPTS[0]))


def test_min_p_comes_before_top_p():
    # As in vLLM: of 50, 30 and 20 % min_p leaves the first two, of which the first alone reaches 60 %.
    sampler = Sampler(SamplingParams(temperature=1, min_p=0.5, top_p=0.6, seed=0), 0, torch.device("cpu"))
    assert {sampler.draw(Logits.of(torch.tensor([[0.5, 0.3, 0.2]]).log())[0], [0])[0] for _ in range(50)} == {
        0
    }


@pytest.mark.parametrize("temperature", [0, 1])
def test_nan_is_an_error_and_no_token(temperature):
    sampler = Sampler(SamplingParams(temperature=temperature), 0, torch.device("cpu"))
    with pytest.raises(GenerationError, match="NaN"):
        sampler.draw(Logits.of(torch.tensor([[0.0, float("nan")]]))[0], [0])


def test_logprobs_are_the_models(engine, tiny_base):
    answer = engine.generate([request(PROMPTS[0], logprobs=2, max_tokens=1)])[0][0]
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].log_softmax(-1)
    assert answer.logprobs is not None
    first = answer.logprobs[0]
    assert first.logprob == pytest.approx(float(wanted.max()), abs=1e-4)
    assert list(first.top) == wanted.topk(2).indices.tolist()


def test_the_base_ends_an_answer_itself(engine):
    wanted = tokens(engine, request(PROMPTS[0]))
    stop = wanted[4]
    answer = engine.generate([request(PROMPTS[0], stop_token_ids=[stop])])[0][0]
    assert list(answer.token_ids) == wanted[: wanted.index(stop) + 1]
    assert answer.finish_reason == "stop"


def test_a_stop_string_ends_the_text_before_it(engine):
    whole = engine.generate([request(PROMPTS[0])])[0][0].text
    stop = whole[3:5]
    answer = engine.generate([request(PROMPTS[0], stop=stop)])[0][0]
    assert answer.text == whole[: whole.index(stop)]
    assert answer.finish_reason == "stop"


def test_a_special_token_can_be_a_stop_string(engine):
    number = engine.tokenizer.convert_tokens_to_ids("<|im_start|>")
    certain = torch.nn.functional.one_hot(torch.tensor(number), 320).float()
    handle = engine._base.model.lm_head.register_forward_hook(lambda *_: certain.expand(1, 1, -1))
    answer = engine.generate([request(PROMPTS[0], stop="<|im_start|>")])[0][0]
    handle.remove()
    assert (answer.token_ids, answer.text, answer.finish_reason) == ((number,), "", "stop")


def test_too_long_a_request_is_refused_and_nothing_runs(engine, sources):
    with pytest.raises(RequestTooLongError, match="256"):
        engine.generate([request(PROMPTS[0], sources["json"]), request([5] * 250)])
    assert (engine.stats().steps, engine.stats().waiting, engine.stats().host_adapters) == (0, 0, 0)


def test_an_answer_may_fill_the_context_to_the_last_token(engine):
    assert len(tokens(engine, request([5] * 250, max_tokens=6))) == 6
    assert (
        engine.generate([Request([5] * 250, None, SamplingParams(ignore_eos=True))])[0][0].finish_reason
        == "length"
    )


def test_a_prompt_without_tokens_is_refused(engine):
    with pytest.raises(InvalidRequestError, match="empty"):
        engine.generate([request([])])


def test_an_answer_that_has_ended_at_the_contexts_end_waits_for_the_others(tmp_path: Path):
    # GPT-2 looks positions up in a table as long as its context.
    engine = BatchingEngine(load_base(make_base(tmp_path, "gpt2"), quantization=None, device="cpu"))
    long, short = request([5] * 250, max_tokens=6), request([5, 6], max_tokens=20)
    together = [list(one[0].token_ids) for one in engine.generate([long, short])]
    assert together == [tokens(engine, long), tokens(engine, short)]


def test_a_broken_adapter_harms_no_other(engine, sources, tmp_path: Path):
    wanted = tokens(engine, request(PROMPTS[0], sources["json"]))
    with pytest.raises(AdapterHubError):
        engine.generate([request(PROMPTS[0], StoredLoraRequest("broken", "sha256:broken", tmp_path))])
    assert tokens(engine, request(PROMPTS[0], sources["json"])) == wanted


def test_a_closed_engine_refuses(engine, sources):
    stream = engine.stream(request(PROMPTS[0], sources["json"]))
    next(stream)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        next(stream)
    with pytest.raises(EngineError, match="closed"):
        engine.generate([request(PROMPTS[0])])


# What goes wrong for one goes wrong for one


@pytest.fixture
def batch(sources) -> list[Request]:
    """Six requests, of the base and of two adapters."""
    adapters = itertools.cycle([None, sources["json"], sources["code"]])
    return [request(prompt_of(number, 4 + 3 * number), next(adapters)) for number in range(6)]


def damaged_copy(
    source: StoredLoraRequest, folder: Path, tensor_value: float | None = None
) -> StoredLoraRequest:
    """An adapter whose file is cut short, or has this value in place of a weight."""
    assert source.folder
    shutil.copytree(source.folder, folder)
    file = folder / "adapter_model.safetensors"
    if tensor_value is None:
        file.write_bytes(file.read_bytes()[:-8])
    else:
        weights = load_file(file)
        next(iter(weights.values()))[0, 0] = tensor_value
        save_file(weights, file, {"format": "pt"})
    return StoredLoraRequest("bad", "sha256:bad", folder)


def test_answers_do_not_depend_on_the_order_of_joining(engine, batch):
    wanted = [tokens(engine, one) for one in batch]
    for order in [(5, 3, 1, 0, 2, 4), (2, 4, 0, 5, 1, 3)]:
        streams, got = {}, {number: [] for number in order}
        for number in order:  # each joins when the earlier ones have some tokens
            streams[number] = engine.stream(batch[number])
            for earlier in streams:
                got[earlier].append(next(streams[earlier]).token_id)
        for number in sorted(order):
            got[number] += [piece.token_id for piece in streams[number]]
        assert [got[number] for number in range(6)] == wanted


def test_an_adapter_that_left_and_came_back_gives_the_same_answer(engine, sources, batch):
    """With two slots, each of the three adapters is pushed out and read again, while another answer goes on."""
    wanted = {name: tokens(engine, request(PROMPTS[0], source)) for name, source in sources.items()}
    long = request(PROMPTS[1], sources["json"], max_tokens=60)
    whole = tokens(engine, long)
    stream = engine.stream(long)
    got = [next(stream).token_id]
    loads = engine.stats().loads
    for name in ["code", "support", "code", "support"]:
        assert tokens(engine, request(PROMPTS[0], sources[name])) == wanted[name]
        got.append(next(stream).token_id)
    engine.unload(sources["json"])  # once it is not needed any more
    assert [*got, *(piece.token_id for piece in stream)] == whole
    assert engine.stats().loads >= loads + 3
    assert "sha256:json" not in engine._scheduler._slots.resident
    assert tokens(engine, long) == whole


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")], ids=["cut", "nan", "inf"])
def test_a_damaged_adapter_fails_its_own_requests(engine, sources, batch, tmp_path: Path, value):
    wanted = [tokens(engine, one) for one in batch]
    bad = damaged_copy(sources["support"], tmp_path / "bad", value)
    mixed = [*batch[:3], request(PROMPTS[0], bad), request(PROMPTS[1], bad), *batch[3:]]
    got = outcomes(engine, mixed)
    assert all(isinstance(one, AdapterHubError) for one in got[3:5])
    assert [*got[:3], *got[5:]] == wanted
    assert counts(engine) == NOTHING
    # Also in the slot and the lanes that it had.
    assert [tokens(engine, one) for one in batch] == wanted


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
@pytest.mark.parametrize("where", ["disk", "slot"])
def test_no_memory_for_an_adapter_fails_its_own_requests(engine, sources, batch, monkeypatch, error, where):
    wanted, failing = [tokens(engine, one) for one in batch], sources["support"]
    scheduler = engine._scheduler
    layers, load, read = scheduler._runner.layers, scheduler._runner.layers.load, scheduler._load

    def no_slot(slot: int, deltas: object) -> None:
        load(slot, deltas)
        if scheduler._slots.slot_of(failing.digest) == slot:
            raise error("no memory")

    def no_host(adapter: StoredLoraRequest) -> object:
        if adapter is failing:
            raise error("no memory")
        return read(adapter)

    with monkeypatch.context() as patch:
        if where == "slot":
            patch.setattr(layers, "load", no_slot)
        else:
            patch.setattr(scheduler._host, "_load", no_host)
        got = outcomes(engine, [*batch, request(PROMPTS[0], failing), request(PROMPTS[1], failing)])
    assert got[:6] == wanted
    for one in got[6:]:
        assert isinstance(one, GenerationError)
        assert "memory" in one.message
    assert counts(engine) == NOTHING
    assert len(tokens(engine, request(PROMPTS[0], failing))) == 12


def test_no_memory_for_a_prompt_fails_that_request(engine, batch, monkeypatch):
    """The others are answered, those that are read in the same step too."""
    wanted, step = [tokens(engine, one) for one in batch], engine._scheduler._runner.step
    failed = []

    def no_memory(rows):
        if any(len(row.tokens) > 50 for row in rows):
            failed.append(len(rows))
            raise torch.OutOfMemoryError("no memory")
        return step(rows)

    monkeypatch.setattr(engine._scheduler._runner, "step", no_memory)
    got = outcomes(engine, [*batch[:4], request([5] * 60), *batch[4:]])
    assert isinstance(got.pop(4), GenerationError)
    assert got == wanted
    # In one call all of them are in one step.
    failed.clear()
    with pytest.raises(GenerationError, match="memory"):
        engine.generate([*batch, request([5] * 60)])
    assert failed[0] == 7
    assert failed[-1] == 1
    assert counts(engine) == NOTHING


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_forward_that_fails_once_fails_no_answer_of_a_batch(engine, batch, monkeypatch, at: int):
    wanted, step, calls = [tokens(engine, one) for one in batch], engine._scheduler._runner.step, []

    def fails_once(rows):
        calls.append(rows)
        if len(calls) == at:
            raise RuntimeError("once")
        return step(rows)

    monkeypatch.setattr(engine._scheduler._runner, "step", fails_once)
    assert [list(one[0].token_ids) for one in engine.generate(batch)] == wanted
    assert len(calls) > at


def test_a_forward_that_fails_within_a_layer_leaves_the_lanes_right(engine, batch):
    """Keys and values of the first layer are written by then."""
    wanted, calls = [tokens(engine, one) for one in batch], []

    def fails(*_: object) -> None:
        calls.append(1)
        if len(calls) in (1, 4):
            raise RuntimeError("in the last layer")

    handle = engine._base.model.model.layers[-1].register_forward_pre_hook(fails)
    got = [list(one[0].token_ids) for one in engine.generate(batch)]
    handle.remove()
    assert got == wanted


def test_an_error_in_one_rows_sampler_fails_that_row(engine, batch, monkeypatch):
    one, other = (request(PROMPTS[0], temperature=1.0, seed=seed) for seed in (666, 7))
    wanted, draw = [tokens(engine, each) for each in [*batch, other]], Sampler.draw

    def fails(self, *args, **kwargs):
        if self._params.seed == 666:
            raise ZeroDivisionError("in the sampler")
        return draw(self, *args, **kwargs)

    monkeypatch.setattr(Sampler, "draw", fails)
    got = outcomes(engine, [one, *batch, other])
    assert isinstance(got[0], GenerationError)
    assert "ZeroDivisionError" in got[0].message
    assert got[1:] == wanted
    assert counts(engine) == NOTHING


@pytest.mark.parametrize("method", ["fill", "keep"])
def test_no_memory_for_beginnings_of_prompts_fails_that_request(engine, batch, monkeypatch, method: str):
    wanted, prefixes = [tokens(engine, one) for one in batch], engine._scheduler._prefixes
    whole, long = getattr(prefixes, method), request([5] * 60)

    def no_memory(lane, digest, prompt):
        if len(prompt) == 60:
            raise MemoryError
        return whole(lane, digest, prompt)

    with monkeypatch.context() as patch:
        patch.setattr(prefixes, method, no_memory)
        got = outcomes(engine, [*batch[:3], long, *batch[3:]])
    assert isinstance(got.pop(3), GenerationError)
    assert got == wanted
    assert counts(engine) == NOTHING
    assert len(tokens(engine, long)) == 12


def test_closing_in_mid_stream_ends_every_thread_and_task(tiny_base: Path, sources):
    others = engine_threads()
    engine = BatchingEngine(load_base(tiny_base, quantization=None, device="cpu"), LIMITS)
    long = [request(PROMPTS[0], source, max_tokens=240) for source in (None, *sources.values())]
    ends: list[BaseException] = []
    begun = threading.Semaphore(0)

    def stream(one: Request) -> None:
        try:
            while True:  # until it is closed
                for _ in engine.stream(one):
                    begun.release()
        except EngineError as error:
            ends.append(error)

    def generate(one: Request) -> None:
        try:
            while True:
                engine.generate([one])
        except EngineError as error:
            ends.append(error)

    async def tasks() -> None:
        async def task(one: Request) -> None:
            while True:
                await engine.agenerate([one])

        got = await asyncio.gather(*map(task, long), return_exceptions=True)
        ends.extend(one for one in got if isinstance(one, BaseException))

    def close() -> None:
        for _ in range(20):
            begun.acquire()
        started = time.monotonic()
        engine.close()
        assert time.monotonic() - started < 5

    paused = engine.stream(long[1])
    next(paused)
    work = [close, lambda: asyncio.run(tasks())]
    work += [lambda one=one, ask=ask: ask(one) for one in long for ask in (stream, generate)]  # type: ignore[misc]
    in_threads(work, 30)
    with pytest.raises(EngineError, match="closed"):
        list(paused)
    assert len(ends) == 12
    assert all(type(end) is EngineError and "closed" in str(end) for end in ends)
    assert engine_threads() <= others
    assert counts(engine) == NOTHING
