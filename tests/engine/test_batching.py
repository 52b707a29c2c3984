"""The engine against transformers' own `generate`: completions, limits, aborting, errors, adapters, threads."""

import asyncio
import itertools
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from adapterhub.base.loading import load_base
from adapterhub.base.quantized_weights import is_packed
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine, adapter_loader
from adapterhub.engine.decoding.sampler import Logits, Sampler, StepLogits
from adapterhub.engine.interface import Completion, Request
from adapterhub.engine.kv.prefix_cache import PrefixCache
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import (
    AdapterHubError,
    AdapterInvalidError,
    CapacityError,
    EngineClosedError,
    EngineError,
    GenerationError,
    InvalidRequestError,
    RequestTooLongError,
)
from adapterhub.lora.request import StoredLoraRequest
from tests.engine.maker import (
    NOTHING,
    Seams,
    counts,
    engine_threads,
    in_threads,
    outcomes,
    prompt_of,
    seams_of,
    stored_request,
    twin_of,
)
from tests.tiny import make_base

PROMPTS = [[5, 6, 7, 8, 9, 10, 50, 60], [100, 20], [30, 40, 50, 60, 70]]


LIMITS = EngineLimits(max_loras=2, max_cpu_loras=2, kv_cache_mib=64)


@pytest.fixture
def seams(tiny_base: Path) -> Iterator[Seams]:
    seams = seams_of(load_base(tiny_base, quantization=None, device="cpu"), LIMITS)
    yield seams
    seams.engine.close()


@pytest.fixture
def engine(seams: Seams) -> BatchingEngine:
    return seams.engine


@pytest.fixture(scope="module")
def sources(tiny_adapters: dict[str, Path]) -> dict[str, StoredLoraRequest]:
    return {name: stored_request(name, folder) for name, folder in tiny_adapters.items()}


def request(prompt: list[int], adapter: StoredLoraRequest | None = None, **sampling: object) -> Request:
    return Request(prompt, adapter, SamplingParams.of({"max_tokens": 12, "ignore_eos": True}, sampling))


def tokens(engine: BatchingEngine, one: Request) -> list[int]:
    return list(engine.generate([one])[0][0].token_ids)


def prompt_scores(completion: Completion) -> list[float]:
    return [one.logprob for one in completion.prompt_logprobs or () if one]


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


@pytest.mark.spec("2-I1")
def test_the_repetition_penalty_equals_transformers(engine, sources, tiny_base, tiny_adapters):
    wanted = reference(tiny_base, tiny_adapters["json"], PROMPTS[0], repetition_penalty=1.7)
    assert tokens(engine, request(PROMPTS[0], sources["json"], repetition_penalty=1.7)) == wanted
    assert wanted != reference(tiny_base, tiny_adapters["json"], PROMPTS[0])


def test_a_batch_gives_what_single_requests_give(engine, sources):
    batch = [request(prompt, adapter) for prompt in PROMPTS for adapter in (None, *sources.values())]
    batched = [list(one[0].token_ids) for one in engine.generate(batch)]
    assert batched == [tokens(engine, one) for one in batch]


def test_streams_for_different_adapters_interleave(engine, sources):
    wanted = [tokens(engine, request(PROMPTS[0], source)) for source in sources.values()]
    streams = [engine.stream(request(PROMPTS[0], source)) for source in sources.values()]
    got = [[output.token_id for output in step] for step in zip(*streams, strict=True)]
    assert [list(row) for row in zip(*got, strict=True)] == wanted


def test_threads_get_the_completion_of_their_own_adapter(engine, sources):
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


def test_the_number_of_loaded_adapters_is_bounded(engine, sources):
    for source in sources.values():
        tokens(engine, request(PROMPTS[0], source))
    assert engine.stats().resident == engine.stats().host_adapters == 2
    assert engine.stats().evictions == 1


def test_an_adapter_in_use_is_not_evicted(engine, sources):
    wanted = tokens(engine, request(PROMPTS[0], sources["json"]))
    stream = engine.stream(request(PROMPTS[0], sources["json"]))
    got = [next(stream).token_id]
    for name in ("code", "support"):
        tokens(engine, request(PROMPTS[1], sources[name]))
    assert [*got, *(output.token_id for output in stream)] == wanted


def test_an_aborted_stream_frees_its_slots(engine, sources):
    stream = engine.stream(request(PROMPTS[0], sources["json"]))
    next(stream)
    assert (engine.stats().slot_users, engine.stats().kv_slots) == (1, 1)
    stream.close()
    assert (engine.stats().slot_users, engine.stats().kv_slots) == (0, 0)


def test_seeds_repeat_and_completions_differ(engine):
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
    assert {sampler.draw(Logits.of(torch.tensor([[0.5, 0.3, 0.2]]).log())[0])[0] for _ in range(50)} == {0}


@pytest.mark.parametrize("temperature", [0, 1])
def test_nan_is_an_error_and_no_token(temperature):
    sampler = Sampler(SamplingParams(temperature=temperature), 0, torch.device("cpu"))
    with pytest.raises(GenerationError, match="NaN"):
        sampler.draw(Logits.of(torch.tensor([[0.0, float("nan")]]))[0])


def test_logprobs_are_the_models(engine, tiny_base):
    answer = engine.generate([request(PROMPTS[0], logprobs=2, max_tokens=1)])[0][0]
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].log_softmax(-1)
    assert answer.logprobs is not None
    first = answer.logprobs[0]
    assert first.logprob == pytest.approx(float(wanted.max()), abs=1e-4)
    assert list(first.top) == wanted.topk(2).indices.tolist()


def test_a_stop_token_ends_the_completion(engine):
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


def test_a_special_token_can_be_a_stop_string(seams, engine):
    number = engine.tokenizer.convert_tokens_to_ids("<|im_start|>")
    certain = torch.nn.functional.one_hot(torch.tensor(number), 320).float()
    handle = seams.base.model.lm_head.register_forward_hook(lambda _, __, out: certain.expand_as(out))
    answer = engine.generate([request(PROMPTS[0], stop="<|im_start|>")])[0][0]
    handle.remove()
    assert (answer.token_ids, answer.text, answer.finish_reason) == ((number,), "", "stop")


def test_too_long_a_request_is_refused_and_nothing_runs(engine, sources):
    with pytest.raises(RequestTooLongError, match="256"):
        engine.generate([request(PROMPTS[0], sources["json"]), request([5] * 250)])
    assert (engine.stats().steps, engine.stats().waiting, engine.stats().host_adapters) == (0, 0, 0)


def test_a_completion_may_fill_the_context_to_the_last_token(engine):
    assert len(tokens(engine, request([5] * 250, max_tokens=6))) == 6
    assert (
        engine.generate([Request([5] * 250, None, SamplingParams(ignore_eos=True))])[0][0].finish_reason
        == "length"
    )


def test_a_prompt_without_tokens_is_refused(engine):
    with pytest.raises(InvalidRequestError, match="empty"):
        engine.generate([request([])])


def test_a_completion_that_ends_at_the_contexts_end_does_not_disturb_the_others(tmp_path: Path):
    # GPT-2 has a table of positions as long as its context.
    engine = BatchingEngine(load_base(make_base(tmp_path, "gpt2"), quantization=None, device="cpu"))
    long, short = request([5] * 250, max_tokens=6), request([5, 6], max_tokens=20)
    batched = [list(one[0].token_ids) for one in engine.generate([long, short])]
    assert batched == [tokens(engine, long), tokens(engine, short)]


def test_a_missing_adapter_fails_alone(engine, sources, tmp_path: Path):
    wanted = tokens(engine, request(PROMPTS[0], sources["json"]))
    with pytest.raises(AdapterHubError):
        engine.generate([request(PROMPTS[0], StoredLoraRequest("broken", "sha256:broken", tmp_path))])
    assert tokens(engine, request(PROMPTS[0], sources["json"])) == wanted


def test_a_closed_engine_refuses(engine, sources):
    stream = engine.stream(request(PROMPTS[0], sources["json"]))
    next(stream)
    engine.close()
    engine.close()
    with pytest.raises(EngineClosedError, match="closed"):
        next(stream)
    with pytest.raises(EngineClosedError, match="closed"):
        engine.generate([request(PROMPTS[0])])
    with pytest.raises(EngineClosedError, match="closed"):
        engine.preload(sources["code"])


def test_a_stream_is_checked_before_its_first_output(engine):
    with pytest.raises(RequestTooLongError):
        engine.stream(request([5] * 250))
    stream = engine.stream(request(PROMPTS[0]))
    assert counts(engine) == NOTHING, "it is queued at the first `next`"
    stream.close()


@pytest.mark.parametrize("prove_base", [True, False])
def test_4_bit_weights_never_change_once_the_engine_is_made(tiny_base: Path, sources, prove_base: bool):
    """bitsandbytes packs them at the first forward pass, which must not be one of a request's."""
    base = load_base(tiny_base, device="cpu")
    layers = [layer for layer in base.model.modules() if isinstance(layer, Linear4bit)]
    forwards: list[object] = []
    handle = base.model.register_forward_pre_hook(lambda *_: forwards.append(_))
    engine = BatchingEngine(base, LIMITS, prove_base=prove_base)
    handle.remove()
    assert prove_base or len(forwards) == 1
    assert engine.stats().steps == 0
    before = [(layer.weight.data_ptr(), is_packed(layer), layer.weight.data.clone()) for layer in layers]
    tokens(engine, request(PROMPTS[0], sources["json"]))
    engine.close()
    assert before
    for layer, (pointer, packed, weight) in zip(layers, before, strict=True):
        assert (layer.weight.data_ptr(), is_packed(layer)) == (pointer, packed)
        assert torch.equal(layer.weight.data, weight)


def test_a_base_has_one_owner(engine, seams: Seams):
    with pytest.raises(EngineError, match="belongs to another engine"):
        BatchingEngine(seams.base, LIMITS)


# Failures are isolated


@pytest.fixture
def batch(sources) -> list[Request]:
    """Six requests, for the base and two adapters."""
    adapters = itertools.cycle([None, sources["json"], sources["code"]])
    return [request(prompt_of(number, 4 + 3 * number), next(adapters)) for number in range(6)]


def damaged_copy(
    source: StoredLoraRequest, folder: Path, tensor_value: float | None = None
) -> StoredLoraRequest:
    """An adapter whose file is truncated, or has this value in place of a weight."""
    assert source.folder
    shutil.copytree(source.folder, folder)
    file = folder / "adapter_model.safetensors"
    if tensor_value is None:
        file.write_bytes(file.read_bytes()[:-8])
    else:
        weights = load_file(file)
        next(iter(weights.values()))[0, 0] = tensor_value
        save_file(weights, file, {"format": "pt"})
    return stored_request("bad", folder)


def test_completions_do_not_depend_on_the_order_of_joining(engine, batch):
    wanted = [tokens(engine, one) for one in batch]
    for order in [(5, 3, 1, 0, 2, 4), (2, 4, 0, 5, 1, 3)]:
        streams, got = {}, {number: [] for number in order}
        for number in order:  # each joins when the earlier ones have some tokens
            streams[number] = engine.stream(batch[number])
            for earlier in streams:
                got[earlier].append(next(streams[earlier]).token_id)
        for number in sorted(order):
            got[number] += [output.token_id for output in streams[number]]
        assert [got[number] for number in range(6)] == wanted


def test_an_adapter_that_was_evicted_and_loaded_again_gives_the_same_completion(seams, engine, sources):
    """With two slots, each of the three adapters is evicted and loaded again while another sequence goes on."""
    wanted = {name: tokens(engine, request(PROMPTS[0], source)) for name, source in sources.items()}
    long = request(PROMPTS[1], sources["json"], max_tokens=60)
    whole = tokens(engine, long)
    stream = engine.stream(long)
    got = [next(stream).token_id]
    loads = engine.stats().loads
    for name in ["code", "support", "code", "support"]:
        assert tokens(engine, request(PROMPTS[0], sources[name])) == wanted[name]
        got.append(next(stream).token_id)
    engine.unload(sources["json"])  # once no sequence uses it
    assert [*got, *(output.token_id for output in stream)] == whole
    assert engine.stats().loads >= loads + 3
    seams.loader.loaded.clear()
    assert tokens(engine, long) == whole
    assert seams.loader.loaded == ["json"], "it is neither in a slot nor in host memory"


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")], ids=["cut", "nan", "inf"])
def test_a_damaged_adapter_fails_its_own_requests(engine, sources, batch, tmp_path: Path, value):
    wanted = [tokens(engine, one) for one in batch]
    bad = damaged_copy(sources["support"], tmp_path / "bad", value)
    mixed = [*batch[:3], request(PROMPTS[0], bad), request(PROMPTS[1], bad), *batch[3:]]
    got = outcomes(engine, mixed)
    assert all(isinstance(one, AdapterHubError) for one in got[3:5])
    assert [*got[:3], *got[5:]] == wanted
    assert counts(engine) == NOTHING
    # Also in the slots that it had.
    assert [tokens(engine, one) for one in batch] == wanted


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
@pytest.mark.parametrize("where", ["disk", "slot"])
def test_no_memory_for_an_adapter_fails_its_own_requests(seams: Seams, sources, batch, error, where):
    engine, failing = seams.engine, sources["support"]
    wanted = [tokens(engine, one) for one in batch]
    weights = {name: delta.a for name, delta in adapter_loader(seams.base)(failing).items()}

    def no_slot(_: int, deltas) -> None:  # after the weights were written
        if all(torch.equal(delta.a, weights[name]) for name, delta in deltas.items()):
            raise error("no memory")

    def no_host(adapter: StoredLoraRequest) -> None:
        if adapter is failing:
            raise error("no memory")

    if where == "slot":
        seams.runner.after_load = no_slot
    else:
        seams.loader.before_load = no_host
    got = outcomes(engine, [*batch, request(PROMPTS[0], failing), request(PROMPTS[1], failing)])
    with pytest.raises(GenerationError, match="memory"):
        engine.preload(failing)
    seams.runner.after_load, seams.loader.before_load = lambda *_: None, lambda _: None
    assert got[:6] == wanted
    for one in got[6:]:
        assert isinstance(one, GenerationError)
        assert "memory" in one.message
    assert counts(engine) == NOTHING
    assert len(tokens(engine, request(PROMPTS[0], failing))) == 12


def test_no_memory_for_a_prefill_fails_that_request(seams: Seams, engine, batch):
    """The others complete, also those that prefill in the same step."""
    wanted, failed = [tokens(engine, one) for one in batch], []

    def no_memory(sequences):
        if any(len(one.token_ids) > 50 for one in sequences):
            failed.append(len(sequences))
            raise torch.OutOfMemoryError("no memory")

    seams.runner.before_step = no_memory
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
def test_a_step_that_fails_once_fails_no_sequence_of_a_batch(seams: Seams, engine, batch, at: int):
    wanted, calls = [tokens(engine, one) for one in batch], []

    def fails_once(sequences):
        calls.append(sequences)
        if len(calls) == at:
            raise RuntimeError("once")

    seams.runner.before_step = fails_once
    assert [list(one[0].token_ids) for one in engine.generate(batch)] == wanted
    assert len(calls) > at


def test_a_forward_that_fails_after_a_layer_leaves_the_kv_slots_right(seams: Seams, engine, batch):
    """Keys and values are written by then."""
    wanted, calls = [tokens(engine, one) for one in batch], []

    def fails(*_: object) -> None:
        calls.append(1)
        if len(calls) in (1, 4):
            raise RuntimeError("in the output layer")

    handle = seams.base.model.lm_head.register_forward_pre_hook(fails)
    got = [list(one[0].token_ids) for one in engine.generate(batch)]
    handle.remove()
    assert got == wanted


@pytest.mark.parametrize("prompt_logprobs", [None, 1])
def test_a_failure_after_a_forward_leaves_the_kv_slots_right(
    seams: Seams, engine, sources, monkeypatch, prompt_logprobs
):
    batch = [
        request(list(range(3, 20)), prompt_logprobs=prompt_logprobs),
        request(list(range(9, 40)), sources["json"]),
        request(list(range(5, 30)), prompt_logprobs=prompt_logprobs),
    ]
    wanted = [tokens(engine, one) for one in batch]
    of_prompts = [prompt_scores(completion) for (completion,) in engine.generate(batch)]
    calls: list[int] = []

    class FailsTwice(StepLogits):
        def __init__(self, rows: torch.Tensor) -> None:
            calls.append(len(rows))
            if len(calls) in (1, 6):
                raise MemoryError
            super().__init__(rows)

    monkeypatch.setattr("adapterhub.engine.scheduling.scheduler.StepLogits", FailsTwice)
    got = [completion for (completion,) in engine.generate(batch)]
    assert [list(one.token_ids) for one in got] == wanted
    assert list(map(prompt_scores, got)) == [pytest.approx(scores, abs=1e-4) for scores in of_prompts]
    assert len(calls) > 6


def test_an_error_in_one_sampler_fails_its_sequence(engine, batch, monkeypatch):
    one, other = (
        request(PROMPTS[0], temperature=1.0, seed=seed, repetition_penalty=1.1) for seed in (666, 7)
    )
    wanted, draw = [tokens(engine, each) for each in [*batch, other]], Sampler.draw

    def fails(self, *args):
        if self._params.seed == 666:
            raise ZeroDivisionError("in the sampler")
        return draw(self, *args)

    monkeypatch.setattr(Sampler, "draw", fails)
    got = outcomes(engine, [one, *batch, other])
    assert isinstance(got[0], GenerationError)
    assert "ZeroDivisionError" in got[0].message
    assert got[1:] == wanted
    assert counts(engine) == NOTHING


@pytest.mark.parametrize("method", ["load", "store"])
def test_no_memory_for_the_prefix_cache_fails_that_request(engine, batch, monkeypatch, method: str):
    wanted, original = [tokens(engine, one) for one in batch], getattr(PrefixCache, method)
    long = request([5] * 60)

    def no_memory(self, slot, digest, prompt):
        if len(prompt) == 60:
            raise MemoryError
        return original(self, slot, digest, prompt)

    with monkeypatch.context() as patch:
        patch.setattr(PrefixCache, method, no_memory)
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
        except EngineClosedError as error:
            ends.append(error)

    def generate(one: Request) -> None:
        try:
            while True:
                engine.generate([one])
        except EngineClosedError as error:
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
    with pytest.raises(EngineClosedError, match="closed"):
        list(paused)
    assert len(ends) == 12
    assert all(type(end) is EngineClosedError and "closed" in str(end) for end in ends)
    assert engine_threads() <= others
    assert counts(engine) == NOTHING


# Commands, from any thread


def test_a_preloaded_adapter_takes_a_free_slot_and_evicts_none(seams: Seams, sources):
    engine = seams.engine
    for name in ("json", "code", "json"):
        engine.preload(sources[name])
    stats = engine.stats()
    assert (stats.resident, stats.host_adapters, stats.slot_users, stats.steps) == (2, 2, 0, 0)
    engine.preload(sources["support"])
    assert (engine.stats().resident, engine.stats().evictions) == (2, 0)
    assert seams.loader.loaded == ["json", "code", "support"]
    for name in ("json", "code", "support"):
        tokens(engine, request(PROMPTS[0], sources[name]))
    assert seams.loader.loaded == ["json", "code", "support"], "all of them were loaded by then"
    assert counts(engine) == NOTHING


def test_preloading_fails_as_a_request_does(engine, sources, tmp_path: Path):
    bad = damaged_copy(sources["support"], tmp_path / "bad")
    for _ in range(2):
        with pytest.raises(AdapterInvalidError, match="bad cannot be served"):
            engine.preload(bad)
    engine.preload(sources["json"])
    assert engine.stats().resident == 1


def test_more_adapters_than_fit_are_preloaded_from_many_threads_while_others_generate(
    seams: Seams, sources, tmp_path: Path
):
    engine = seams.engine
    copies = [twin_of(one, tmp_path / f"copy-{n}") for n, one in enumerate([*sources.values()] * 4)]
    wanted = tokens(engine, request(PROMPTS[0], sources["json"], max_tokens=60))
    got: list[list[int]] = []
    work = [lambda copy=copy: engine.preload(copy) for copy in copies]  # type: ignore[misc]
    long = request(PROMPTS[0], sources["json"], max_tokens=60)
    in_threads([*work, *[lambda: got.append(tokens(engine, long))] * 3])
    assert got == [wanted] * 3
    assert {*seams.loader.loaded} == {"json", *(copy.name for copy in copies)}
    assert engine.stats().host_adapters <= LIMITS.max_cpu_loras
    assert counts(engine) == NOTHING


def test_closing_ends_a_preload(seams: Seams, sources):
    loading = threading.Event()

    def slow(_: StoredLoraRequest) -> None:
        loading.set()
        time.sleep(0.3)

    seams.loader.before_load = slow
    errors: list[EngineClosedError] = []

    def preload() -> None:
        try:
            seams.engine.preload(sources["json"])
        except EngineClosedError as error:
            errors.append(error)

    def close() -> None:
        loading.wait(20)
        seams.engine.close()

    in_threads([preload, close])
    assert len(errors) == 1


def test_pins_from_many_threads_leave_one_slot_unpinned(engine, sources):
    """While others step: of two slots one may be pinned, by whichever thread is first."""
    refused, pinned, pinned_now = [], [], []
    stop = threading.Event()

    def pin(source: StoredLoraRequest) -> None:
        for _ in range(50):
            try:
                engine.pin(source)
            except CapacityError:
                refused.append(source)
            else:
                pinned_now.append(source)
                pinned.append(list(pinned_now))
                pinned_now.remove(source)
                engine.pin(source, pinned=False)

    def generate() -> None:
        while not stop.is_set():
            tokens(engine, request(PROMPTS[1], sources["json"]))

    def pins() -> None:
        try:
            in_threads([lambda source=source: pin(source) for source in sources.values()])  # type: ignore[misc]
        finally:
            stop.set()

    in_threads([generate, pins], 60)
    assert len(refused) + len(pinned) == 150
    assert pinned
    assert all(len(holders) == 1 for holders in pinned)
    engine.pin(sources["json"])
    with pytest.raises(CapacityError):
        engine.pin(sources["code"])


def test_pins_and_unloads_run_between_steps_only(seams: Seams, sources):
    """From other threads, while one steps: within a step no slot is loaded or cleared."""
    engine, stepping, wrong = seams.engine, threading.Event(), []
    whole_step, clear, load = seams.runner.step, seams.runner.clear_adapter, seams.runner.load_adapter

    def step(sequences):
        stepping.set()
        time.sleep(0.001)
        logits = whole_step(sequences)
        stepping.clear()
        return logits

    def noting(change):
        def noted(*arguments):
            wrong.extend(["within a step"] * stepping.is_set())
            return change(*arguments)

        return noted

    seams.runner.step = step  # type: ignore[method-assign]
    seams.runner.clear_adapter, seams.runner.load_adapter = noting(clear), noting(load)  # type: ignore[method-assign]
    wanted = {name: tokens(engine, request(PROMPTS[0], source)) for name, source in sources.items()}
    cleared: list[int] = []
    clear_noted = seams.runner.clear_adapter
    seams.runner.clear_adapter = lambda slot: (cleared.append(slot), clear_noted(slot))  # type: ignore[method-assign]
    stop = threading.Event()

    def unload() -> None:
        while not stop.is_set():
            for source in sources.values():
                engine.unload(source)
                engine.pin(source)
                engine.pin(source, pinned=False)

    def generate() -> None:
        try:
            for _ in range(10):
                for name, source in sources.items():
                    assert tokens(engine, request(PROMPTS[0], source)) == wanted[name]
        finally:
            stop.set()

    in_threads([unload, generate], 60)
    assert wrong == []
    assert cleared, "adapters were unloaded meanwhile"
    engine.unload(sources["json"])
    assert counts(engine) == NOTHING
