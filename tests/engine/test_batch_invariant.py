"""With `batch_invariant` an answer is bit for bit the same in any company, and it is still the right one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapterhub import AdapterHub
from adapterhub.base.loading import Base, load_base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.interface import Completion, Request
from adapterhub.engine.kv.cache import KVCache
from adapterhub.engine.kv.decode_kernel import DecodeKernel
from adapterhub.engine.kv.probing import AttentionLayer
from adapterhub.engine.kv.shape import KVShape, LayerShape
from adapterhub.engine.kv.token_attention import Query, TokenAttention
from adapterhub.engine.runner import ScheduledSequence
from adapterhub.engine.runners.batch_invariant import BatchInvariantRunner
from adapterhub.errors import EngineError
from adapterhub.lora.kernels.torch_ops import TorchOps
from adapterhub.lora.loading import load_folder_deltas
from adapterhub.lora.request import StoredLoraRequest
from tests.engine.hybrids import hybrid_config
from tests.engine.maker import Reference, adapter_settings, make_adapters, prompt_of, request, sources_of
from tests.tiny import ATTENTION, make_base, make_tokenizer

ADAPTERS = ("lora-4", "mlp-8", "all-16", "dora-16", "rslora-24", "everything-64")
LENGTHS = (3, 40, 75)
BASES = {
    "llama": ("llama", None, "float32"),
    "llama-bfloat16": ("llama", None, "bfloat16"),
    "llama-nf4": ("llama", "nf4", "auto"),
    "llama-int8": ("llama", "int8", "float32"),
    "qwen2": ("qwen2", None, "float32"),  # its biases meet DoRA
    "gemma3": ("gemma3", None, "float32"),  # a window
    "gpt_oss": ("gpt_oss", None, "float32"),  # sinks, and a mixture
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Callable[[str], tuple[Path, dict[str, Path]]]:
    """The folder of a base and those of adapters for it, by its kind."""

    @cache
    def make(kind: str) -> tuple[Path, dict[str, Path]]:
        root = tmp_path_factory.mktemp(kind)
        base = make_base(root / "base", kind)
        every = {name: adapter_settings(kind)[name] for name in ADAPTERS}
        if kind == "gpt_oss":  # its experts are no linear layers
            every = {name: {"r": one["r"], "target_modules": ATTENTION[kind]} for name, one in every.items()}
        return base, make_adapters(root / "adapters", base, every)

    return make


@pytest.fixture
def made(world) -> Callable[..., tuple[Base, dict[str, StoredLoraRequest]]]:
    """Loads a base, and finds its adapters."""

    def make(name: str) -> tuple[Base, dict[str, StoredLoraRequest]]:
        kind, quantization, dtype = BASES[name]
        base, folders = world(kind)
        loaded = load_base(base, quantization=quantization, compute_dtype=dtype, device="cpu")
        return loaded, sources_of(folders)

    return make


def engine_of(base: Base, **limits: Any) -> BatchingEngine:
    limits = {"max_loras": 8, "kv_cache_mib": 16, **limits}
    return BatchingEngine(base, EngineLimits(**limits), batch_invariant=True)


def questions(sources: dict[str, StoredLoraRequest]) -> list[Request]:
    """Those whose answers are compared: prompts of some lengths, with adapters of several kinds and without."""
    asked = zip(LENGTHS, (None, sources["all-16"], sources["dora-16"]), strict=True)
    settings = {"logprobs": 3, "frequency_penalty": 0.5, "logit_bias": {7: 1.0}}
    return [request(prompt_of(length, length), adapter, **settings) for length, adapter in asked]


def company(sources: dict[str, StoredLoraRequest], count: int) -> list[Request]:
    """Other requests, of other lengths, with all adapters in turn and the base."""
    choices = [*sources.values(), None]
    return [
        request(prompt_of(100 + n, 2 + 7 * n % 50), choices[n % len(choices)], max_tokens=3 + n % 9)
        for n in range(count)
    ]


def alone(engine: BatchingEngine, asked: Sequence[Request]) -> list[Completion]:
    return [engine.generate([one])[0][0] for one in asked]


def together(engine: BatchingEngine, asked: Sequence[Request], others: Sequence[Request]) -> list[Completion]:
    """The answers to some requests among others, which come before and after them."""
    half = len(others) // 2
    completions = engine.generate([*others[:half], *asked, *others[half:]])
    return [one[0] for one in completions[half : half + len(asked)]]


# Row by row, which takes long.
SLOW = {"llama-int8", "gpt_oss"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in BASES]
)
def test_company_chunks_and_the_prefix_cache_change_no_bit(made, name: str):
    base, sources = made(name)
    engine = engine_of(base)
    asked = questions(sources)
    expected = alone(engine, asked)
    assert all(one.logprobs for one in expected)
    for others in (3, 16):
        assert together(engine, asked, company(sources, others)) == expected, (
            "the prefix cache has the prompts"
        )
    assert engine.stats().prefix_cache_hit_tokens > 0
    engine.close()
    for tokens in (16, 37):
        engine = engine_of(made(name)[0], max_num_batched_tokens=tokens, max_batch_size=9)
        assert together(engine, asked, company(sources, 9)) == expected, (
            f"prompts in chunks of {tokens} tokens"
        )
        engine.close()


def test_logits_are_those_of_another_batch_bit_for_bit(made):
    base, sources = made("llama")
    runner = BatchInvariantRunner(base, max_loras=3)
    for slot, name in enumerate(("all-16", "dora-16", "lora-4")):
        deltas = load_folder_deltas(
            sources[name].folder, base.model, base.linear_layers, dtype=base.compute_dtype
        )
        runner.load_adapter(slot, deltas)
    cache, _ = runner.make_caches(1 << 24)
    prompt = prompt_of(1, 70)

    def scheduled(ids: Sequence[int], lora_slot: int | None, slot: Any = None) -> ScheduledSequence:
        return ScheduledSequence(slot or cache.allocate(100), ids, lora_slot, needs_logits=True)

    one = scheduled(prompt, 1)
    (expected,) = runner.step([one])
    (expected_next,) = runner.step([scheduled([5], 1, one.kv_slot)])
    for lora_slot in (None, 0, 2):
        others = [scheduled(prompt_of(n, n), lora_slot) for n in (1, 9, 30)]
        again = scheduled(prompt, 1)
        assert torch.equal(runner.step([*others, again])[-1], expected)
        steps = [scheduled([7], lora_slot, other.kv_slot) for other in others]
        assert torch.equal(runner.step([scheduled([5], 1, again.kv_slot), *steps])[0], expected_next)
    assert torch.equal(runner.score([prompt], [[69]], 1)[0], expected), "scoring computes the same bits"
    assert torch.equal(runner.score([[*prompt, 5]], [[70]], 1)[0], expected_next), (
        "and decoding those of a prompt"
    )


@pytest.mark.parametrize("variable", ["auto", "torch"])
def test_threads_change_no_bit(monkeypatch, variable: str):
    """Heads of SmolLM2's shape, whose scratch memory is laid out otherwise for the second thread in torch."""
    monkeypatch.setenv("ADAPTERHUB_ATTENTION_KERNEL", variable)
    shape, layer = LayerShape(3, 64, 64), AttentionLayer(0)
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(60, heads, 64, generator=random) for heads in (9, 3, 3))
    cpu, kernel = torch.device("cpu"), DecodeKernel.find(torch.device("cpu"), torch.float32)

    def attend(chunk: int) -> torch.Tensor:
        cache = KVCache(KVShape((shape,), torch.float32, cpu), 1 << 12)
        slot, parts = cache.allocate(60), []
        for tokens in torch.arange(60).split(chunk):
            queries = [Query(slot, int(position)) for position in tokens]
            step = TokenAttention(queries, 0, cpu, torch.float32, [layer], kernel)
            parts.append(step.attend_tokens(q[tokens], k[tokens], v[tokens], 0.125))
        return torch.cat(parts)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        whole = attend(60)
        for chunk in (1, 5, 8, 16, 31):
            assert torch.equal(attend(chunk), whole), chunk
    finally:
        torch.set_num_threads(before)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *(one.transpose(0, 1) for one in (q, k, v)), is_causal=True, scale=0.125, enable_gqa=True
    )
    torch.testing.assert_close(whole, wanted.transpose(0, 1))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
def test_its_answers_are_those_of_peft(made, world, kind: str):
    base, sources = made(kind)
    folder, folders = world(kind)
    peft = Reference(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), folders)
    engine = engine_of(base)
    names = [None, *ADAPTERS]
    asked = [request(prompt_of(n, 4 + 9 * n), name and sources[name]) for n, name in enumerate(names)]
    for n, (name, (completion,)) in enumerate(zip(names, engine.generate(asked), strict=True)):
        assert list(completion.token_ids) == peft.generate(name, prompt_of(n, 4 + 9 * n), 12), name
    engine.close()


def test_torch_computes_lora_apart_from_other_adapters_too(made, monkeypatch):
    """Where no compiled kernel is: a higher rank beside it is no change."""
    monkeypatch.setattr("adapterhub.lora.stacked_weights.choose_kernels", lambda *_: TorchOps)
    base, sources = made("qwen2")
    engine = engine_of(base)
    asked = [request(prompt_of(3, 20), sources["lora-4"], logprobs=2)]
    expected = alone(engine, asked)
    assert together(engine, asked, company(sources, 14)) == expected
    assert alone(engine, asked) == expected, "with the others in their slots"
    engine.close()


@pytest.mark.parametrize(("name", "is_one"), [("llama", False), ("llama-int8", True), ("gpt_oss", True)])
def test_what_depends_on_the_tokens_is_computed_one_by_one(made, name: str, is_one: bool):
    sizes = BatchInvariantRunner(made(name)[0], max_loras=1).sizes
    assert (sizes == (1,)) == is_one
    assert list(sizes) == sorted(set(sizes))


def rows_of(size: int, change: Callable[[torch.Tensor], None]) -> Callable[[Base], None]:
    """Makes a layer compute otherwise in passes of a number of tokens."""

    def patch(base: Base) -> None:
        layer = base.model.get_submodule("model.layers.0.mlp.down_proj")
        own = layer.forward

        def forward(x: torch.Tensor) -> torch.Tensor:
            y = own(x)
            if x[..., 0].numel() == size:
                change(y.view(size, -1))
            return y

        layer.forward = forward

    return patch


@pytest.mark.parametrize(
    ("defect", "left_out"),
    [
        (rows_of(16, lambda y: y.mul_(1.001)), 16),
        (rows_of(24, lambda y: y[-1].mul_(1.001)), 24),
        (rows_of(8, lambda y: y[3].mul_(1.001)), 8),
    ],
    ids=["all rows", "the last row", "one row"],
)
def test_a_number_of_rows_that_computes_otherwise_is_left_out(made, defect: Any, left_out: int):
    base, _ = made("llama")
    defect(base)
    sizes = BatchInvariantRunner(base, max_loras=1).sizes
    assert left_out not in sizes
    assert 64 in sizes


def test_a_model_with_a_state_is_refused_and_left_as_it_was(tmp_path):
    AutoModelForCausalLM.from_config(hybrid_config("lfm2")).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    base = load_base(tmp_path, quantization=None, device="cpu")
    with pytest.raises(EngineError) as refused:
        BatchingEngine(base, batch_invariant=True)
    assert "keeps a state for each sequence" in refused.value.message
    assert "batch_invariant" in (refused.value.hint or "")
    BatchingEngine(base).close()


def test_rotations_that_depend_on_the_longest_sequence_are_refused(made):
    base, _ = made("llama")
    base.model.model.rotary_emb.rope_type = "dynamic"
    with pytest.raises(EngineError, match="rotary embeddings depend on the longest sequence"):
        BatchInvariantRunner(base, max_loras=1)


@pytest.mark.parametrize("asked", [True, False])
def test_a_setting_switches_it_on(world, monkeypatch, tmp_path, asked: bool):
    monkeypatch.setenv("ADAPTERHUB_BATCH_INVARIANT", str(asked).lower())
    with AdapterHub.from_pretrained(world("llama")[0], tmp_path, quantization=None, device="cpu") as hub:
        assert hub.stats().batch_invariant == asked
