"""The llama.cpp engine answers as our own engine does: adapters, batches, sampling, grammars, streams, and its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub.config import EngineLimits
from adapterhub.engine import BatchingEngine, Completion, OutputFormat, Request, SamplingParams
from adapterhub.errors import (
    AdapterIncompatibleError,
    CapacityError,
    ConfigError,
    EngineClosedError,
    EngineError,
    GenerationError,
    InvalidRequestError,
    RequestTooLongError,
)
from adapterhub.lora.request import BlendedLoraRequest, StoredLoraRequest
from tests.engine.maker import NOTHING, counts, outcomes, prompt_of, request, stored_request, tokens
from tests.tiny import make_adapter

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make test-gguf)")

from adapterhub.llama_cpp import LlamaCppEngine, load_gguf_base

LOGPROB_BOUND = 5e-3
"""llama.cpp keeps keys and values in float16."""


def assert_equal(one: Completion, other: Completion, bound: float = LOGPROB_BOUND) -> None:
    """The same tokens with the same log-probabilities, up to a tie of two tokens."""
    assert one.logprobs
    assert other.logprobs
    for ours, theirs in zip(one.logprobs, other.logprobs, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=bound)
        if ours.token_id != theirs.token_id:
            first, second = sorted(ours.top.values(), reverse=True)[:2]
            assert first - second < bound
            return  # what follows differs


def served(adapters: Mapping[str, StoredLoraRequest]) -> list[StoredLoraRequest | None]:
    """The base, and all adapters that llama.cpp can serve."""
    return [None, *(one for name, one in adapters.items() if "dora" not in name and name != "everything-64")]


def test_every_kind_of_adapter_gives_the_same_tokens_and_logprobs(
    ours: BatchingEngine, theirs: LlamaCppEngine, adapters: dict[str, StoredLoraRequest]
):
    batch = [
        request(prompt_of(number, 8 + 9 * number), adapter, logprobs=3)
        for number, adapter in enumerate(served(adapters))
    ]
    assert len(batch) == 13
    mixed, alone = theirs.generate(batch), [theirs.generate([one])[0] for one in batch]
    for (wanted,), (in_batch,), (by_itself,) in zip(ours.generate(batch), mixed, alone, strict=True):
        assert_equal(in_batch, wanted)
        assert_equal(by_itself, wanted)
    assert counts(theirs) == NOTHING


def test_the_log_probabilities_of_prompts_are_the_same(
    ours: BatchingEngine, theirs: LlamaCppEngine, adapters: dict[str, StoredLoraRequest]
):
    batch = [
        request(prompt_of(number, 8 + 9 * number), adapter, prompt_logprobs=0, max_tokens=2)
        for number, adapter in enumerate(served(adapters))
    ]
    for (wanted,), (got,) in zip(ours.generate(batch), theirs.generate(batch), strict=True):
        expected = [one.logprob for one in wanted.prompt_logprobs[1:]]
        assert [one.logprob for one in got.prompt_logprobs[1:]] == pytest.approx(expected, abs=LOGPROB_BOUND)


def test_adapters_change_the_answer(theirs: LlamaCppEngine, adapters: dict[str, StoredLoraRequest]):
    """Else the comparisons above would compare the base with itself."""
    answers = {tuple(tokens(theirs, request(prompt_of(1, 20), one))) for one in served(adapters)}
    assert len(answers) == 13


def test_a_blend_is_the_exact_sum(
    ours: BatchingEngine, theirs: LlamaCppEngine, adapters: dict[str, StoredLoraRequest]
):
    parts = [(adapters["all-16"], 0.6), (adapters["rslora-8"], 0.4)]
    one = request(prompt_of(3, 20), BlendedLoraRequest.of("both", parts), logprobs=3)
    assert_equal(theirs.generate([one])[0][0], ours.generate([one])[0][0])


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.8, "seed": 7},
        {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 1},
        {"repetition_penalty": 1.5},
        {"suppress_tokens": [5, 6, 7, 100]},
        {"stop": ["e"]},
        {"max_tokens": 3},
    ],
)
def test_sampling_parameters_mean_the_same(
    ours: BatchingEngine, theirs: LlamaCppEngine, sampling: dict[str, Any]
):
    """The same seed draws the same numbers, so sampled tokens are equal too."""
    one = request(prompt_of(5, 20), n=2, **sampling)
    for wanted, got in zip(ours.generate([one])[0], theirs.generate([one])[0], strict=True):
        assert (got.token_ids, got.text, got.finish_reason) == (
            wanted.token_ids,
            wanted.text,
            wanted.finish_reason,
        )


@pytest.mark.parametrize(
    "output_format",
    [
        OutputFormat.of(choices=["red", "green", "blue"]),
        OutputFormat.of(regex="[a-f]{4}-[0-9]{2}"),
        OutputFormat.of(
            schema={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        ),
    ],
)
def test_structured_output_is_enforced(
    ours: BatchingEngine,
    theirs: LlamaCppEngine,
    adapters: dict[str, StoredLoraRequest],
    output_format: OutputFormat,
):
    batch = [
        Request(prompt_of(number, 12), adapter, SamplingParams(max_tokens=40), output_format)
        for number, adapter in enumerate([None, adapters["all-4"]])
    ]
    for (wanted,), (got,) in zip(ours.generate(batch), theirs.generate(batch), strict=True):
        assert (got.text, got.finish_reason) == (wanted.text, "stop")


def test_a_structured_answer_is_valid_json(theirs: LlamaCppEngine):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    one = Request(prompt_of(1, 9), None, SamplingParams(max_tokens=30), OutputFormat.of(schema=schema))
    assert isinstance(json.loads(theirs.generate([one])[0][0].text)["n"], int)


def test_a_stream_gives_the_tokens_of_the_whole_answer(
    theirs: LlamaCppEngine, adapters: dict[str, StoredLoraRequest]
):
    one = request(prompt_of(2, 15), adapters["lora-4"])
    assert Completion.of(list(theirs.stream(one))) == theirs.generate([one])[0][0]


def test_an_abandoned_stream_frees_its_sequence(theirs: LlamaCppEngine):
    stream = theirs.stream(request(prompt_of(2, 15), max_tokens=100))
    next(stream)
    assert theirs.stats().running == 1
    stream.close()
    assert counts(theirs) == NOTHING


def test_tasks_are_answered_and_cancelled(theirs: LlamaCppEngine, adapters: dict[str, StoredLoraRequest]):
    one = request(prompt_of(2, 15), adapters["lora-6"])

    async def main() -> list[Completion]:
        long = asyncio.create_task(theirs.agenerate([request(prompt_of(1, 5), max_tokens=200)]))
        async with aclosing(theirs.astream(one)) as stream:
            outputs = [output async for output in stream]
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        return [Completion.of(outputs), (await theirs.agenerate([one]))[0][0]]

    streamed, whole = asyncio.run(main())
    assert streamed == whole == theirs.generate([one])[0][0]
    assert counts(theirs) == NOTHING


def test_threads_share_a_batch(theirs: LlamaCppEngine, adapters: dict[str, StoredLoraRequest]):
    batch = [
        request(prompt_of(number, 10 + number), adapter)
        for number, adapter in enumerate(served(adapters)[:6])
    ]
    alone = [tokens(theirs, one) for one in batch]
    assert outcomes(theirs, batch) == alone


def test_more_adapters_than_slots_take_turns(
    gguf_file: Path, adapters: dict[str, StoredLoraRequest], theirs: LlamaCppEngine
):
    wanted = [tokens(theirs, request(prompt_of(4, 10), one)) for one in served(adapters)]
    stats = theirs.stats()
    assert (stats.max_loras, stats.resident) == (3, 3)
    assert stats.evictions > 0
    again = [tokens(theirs, request(prompt_of(4, 10), one)) for one in reversed(served(adapters))]
    assert again == wanted[::-1]


def test_adapters_are_pinned_preloaded_and_unloaded(
    theirs: LlamaCppEngine, adapters: dict[str, StoredLoraRequest]
):
    pinned, others = adapters["all-32"], [adapters[name] for name in ("lora-4", "lora-6", "mlp-8")]
    theirs.pin(pinned)
    theirs.preload(pinned)
    tokens(theirs, request(prompt_of(1, 9), pinned))
    for one in others:
        tokens(theirs, request(prompt_of(1, 9), one))
    loads = theirs.stats().loads
    tokens(theirs, request(prompt_of(1, 9), pinned))
    assert theirs.stats().loads == loads
    assert theirs.stats().adapter_bytes > 32 * 2 * 64 * 4
    theirs.pin(others[0])
    with pytest.raises(CapacityError):
        theirs.pin(others[1])
    for one in (pinned, others[0]):
        theirs.pin(one, pinned=False)
    theirs.unload(pinned)
    assert theirs.stats().resident == 2


def test_a_prompt_that_was_seen_is_not_computed_again(
    theirs: LlamaCppEngine, adapters: dict[str, StoredLoraRequest]
):
    prompt, other = prompt_of(40, 60), adapters["mlp-8"]
    first = theirs.generate([request(prompt, logprobs=2)])[0][0]
    hits = theirs.stats().prefix_cache_hit_tokens
    again = theirs.generate([request(prompt, logprobs=2)])[0][0]
    assert theirs.stats().prefix_cache_hit_tokens == hits + len(prompt) - 1
    assert_equal(again, first)
    longer = [*prompt, *first.token_ids]
    tokens(theirs, request(longer))
    assert theirs.stats().prefix_cache_hit_tokens == hits + 2 * len(prompt) - 1
    tokens(theirs, request(prompt, other))  # another adapter shares nothing
    assert theirs.stats().prefix_cache_hit_tokens == hits + 2 * len(prompt) - 1


def test_what_llama_cpp_cannot_do_is_refused(theirs: LlamaCppEngine, adapters: dict[str, StoredLoraRequest]):
    with pytest.raises(AdapterIncompatibleError, match="DoRA"):
        theirs.generate([request(prompt_of(1, 5), adapters["dora-4"])])
    with pytest.raises(RequestTooLongError):
        theirs.generate([request(prompt_of(1, 250), max_tokens=50)])
    with pytest.raises(InvalidRequestError):
        theirs.generate([request([400])])
    assert counts(theirs) == NOTHING
    assert len(tokens(theirs, request(prompt_of(1, 5)))) == 12


def test_limits_beyond_llama_cpp_are_refused_and_the_base_stays(gguf_file: Path):
    base = load_gguf_base(gguf_file)
    with pytest.raises(ConfigError, match="248"):
        LlamaCppEngine(base, EngineLimits(max_batch_size=300))
    engine = LlamaCppEngine(base, EngineLimits(kv_cache_mib=4))
    assert len(tokens(engine, request(prompt_of(1, 5)))) == 12
    engine.close()


def test_a_base_belongs_to_one_engine(gguf_file: Path):
    """Two would free its model twice."""
    base = load_gguf_base(gguf_file)
    engine = LlamaCppEngine(base, EngineLimits(kv_cache_mib=4))
    with pytest.raises(EngineError, match="belongs to another engine"):
        LlamaCppEngine(base)
    assert len(tokens(engine, request(prompt_of(1, 5)))) == 12
    engine.close()
    with pytest.raises(EngineError, match="belongs to another engine"):
        LlamaCppEngine(base)


def test_nan_in_one_row_reaches_no_other(
    gguf_file: Path, adapters: dict[str, StoredLoraRequest], tmp_path: Path
):
    """Its keys and values are in the buffer that all rows share, beside theirs and, later, under theirs."""
    limits = EngineLimits(kv_cache_mib=4, max_batch_size=4)
    engine, good = LlamaCppEngine(load_gguf_base(gguf_file), limits), adapters["lora-4"]
    folder = make_adapter(tmp_path / "huge", gguf_file.parent / "base", std=1e18)
    huge = stored_request("huge", folder)
    batch = [
        request(prompt_of(1, 60), huge),
        request(prompt_of(2, 40), good),
        request(prompt_of(3, 150), good),
        request(prompt_of(4, 50)),
    ]
    wanted = [tokens(engine, one) for one in batch[1:]]
    for _ in range(3):
        first, *others = outcomes(engine, batch)
        assert isinstance(first, GenerationError)
        assert "NaN" in str(first)
        assert others == wanted
    assert [tokens(engine, one) for one in batch[1:]] == wanted
    assert counts(engine) == NOTHING
    engine.close()


def test_many_requests_take_turns_in_little_memory(
    gguf_file: Path, adapters: dict[str, StoredLoraRequest], theirs: LlamaCppEngine
):
    """64 requests at once for five adapters in three LoRA slots; a third of them fits into memory."""
    chosen = [adapters[name] for name in ("lora-4", "lora-6", "mlp-8", "all-4", "rslora-8")]
    batch = [request(prompt_of(number, 100 + number), chosen[number % 5], logprobs=2) for number in range(64)]
    engine = LlamaCppEngine(load_gguf_base(gguf_file), EngineLimits(max_loras=3, kv_cache_mib=1))
    assert sum(len(one.prompt) + 12 for one in batch) > 2.9 * engine.stats().kv_tokens
    for one, (completion,) in zip(batch, engine.generate(batch), strict=True):
        # llama.cpp sums values in float16, in another order where a prompt is computed in pieces.
        assert_equal(completion, theirs.generate([one])[0][0], bound=0.02)
    assert counts(engine) == NOTHING
    engine.close()


def test_a_failed_step_fails_its_own_request_and_no_other(
    gguf_file: Path, adapters: dict[str, StoredLoraRequest], monkeypatch: pytest.MonkeyPatch
):
    engine = LlamaCppEngine(load_gguf_base(gguf_file), EngineLimits(max_loras=2, kv_cache_mib=4))
    good, bad = request(prompt_of(1, 9), adapters["lora-4"]), request(prompt_of(2, 9), adapters["lora-6"])
    wanted = tokens(engine, good)
    from adapterhub.llama_cpp.bindings import library

    decode, calls = library().llama_decode, []

    def failing(context: Any, batch: Any) -> int:
        calls.append(batch.n_tokens)
        return 1 if batch.n_tokens == 9 and batch.token[0] == bad.prompt[0] else decode(context, batch)

    with monkeypatch.context() as patch:
        patch.setattr(library(), "llama_decode", failing)
        first, second = outcomes(engine, [good, bad])
    assert first == wanted
    assert isinstance(second, GenerationError)
    assert tokens(engine, bad) != wanted
    assert counts(engine) == NOTHING
    engine.close()


def test_a_closed_engine_frees_its_model_and_refuses_requests(gguf_file: Path):
    engine = LlamaCppEngine(load_gguf_base(gguf_file), EngineLimits(kv_cache_mib=4))
    stream = engine.stream(request(prompt_of(1, 9), max_tokens=100))
    next(stream)
    assert engine.stats().kv_bytes > 0
    engine.close()
    engine.close()
    assert engine.stats().kv_bytes == 0
    with pytest.raises(EngineClosedError):
        list(stream)
    with pytest.raises(EngineClosedError):
        engine.generate([request(prompt_of(1, 9))])


def test_quantised_files_are_served(gguf_file: Path, tmp_path: Path):
    """Q8_0 rounds weights to 8 bits, and llama.cpp activations too: the most probable token stays."""
    from adapterhub.base.loading import load_base
    from tests.tiny import make_gguf

    file = make_gguf(tmp_path / "tiny.gguf", gguf_file.parent / "base", quantization="Q8_0")
    engine = LlamaCppEngine(load_gguf_base(file), EngineLimits(kv_cache_mib=4))
    assert engine.stats().matmul_dtype == "Q8_0"
    model = load_base(file, quantization=None, compute_dtype="float32").model
    prompt = prompt_of(1, 30)
    with torch.inference_mode():
        wanted = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    got = engine.generate([request(prompt, max_tokens=1, logprobs=20)])[0][0].logprobs[0]
    assert max(abs(wanted[token].item() - logprob) for token, logprob in got.top.items()) < 0.1
    engine.close()
