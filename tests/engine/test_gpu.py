"""The engine on a GPU: mixed batches against PEFT's at equal shapes, and what differs from a CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, DynamicCache

from adapterhub.base.loading import Base, ComputeDtype, Quantization, load_base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.interface import Request
from adapterhub.engine.kv.cache import KVCache
from adapterhub.engine.output_format import OutputFormat
from adapterhub.engine.runner import ScheduledSequence
from adapterhub.engine.runners.cuda_graphs import CudaGraphs, MakeGraph
from adapterhub.engine.runners.packed import PackedRunner
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.lora.loading import load_folder_deltas
from adapterhub.lora.model_manager import LoraModelManager
from tests.engine.maker import (
    NOTHING,
    Reference,
    adapter_settings,
    counts,
    make_adapters,
    prompt_of,
    request,
    sources_of,
)
from tests.engine.test_mixed import World, about_equal, differences, run
from tests.tiny import make_adapter, make_base

gpu = pytest.mark.gpu

LENGTH = 9
STEPS = 6
# Largest and typical (root mean square) difference of a logit, of which most are below 2. In float32 only the order of
# sums differs. bfloat16 rounds every layer's output to 8 bits, and PEFT rounds thrice where the engine rounds once: the
# low-rank product, its scaling, and its sum with the base's. A CPU gives 0.17 and 0.011 for it.
BOUNDS = {"float32": (1e-4, 1e-5), "bfloat16": (0.3, 0.03)}
KINDS: list[tuple[ComputeDtype, Quantization | None]] = [
    ("float32", None),
    ("float32", "nf4"),
    ("bfloat16", None),
    ("bfloat16", "nf4"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base, sixteen kinds of adapters for it, and PEFT with them in float32."""
    root = tmp_path_factory.mktemp("gpu")
    base = make_base(root / "base")
    adapters = make_adapters(root, base, adapter_settings("llama"))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(_device())
    return World(base, adapters, Reference(model, adapters))


@pytest.fixture(scope="module")
def engine(world: World) -> Iterator[BatchingEngine]:
    limits = EngineLimits(max_loras=6, max_cpu_loras=16, kv_cache_mib=64)
    base = load_base(world.base, quantization=None, compute_dtype="float32", device=_device())
    engine = BatchingEngine(base, limits)
    yield engine
    assert counts(engine) == NOTHING
    engine.close()


def _device() -> str:
    return "cuda"


def ours(
    base: Base, names: Sequence[str | None], world: World, make_graph: MakeGraph | None = None
) -> torch.Tensor:
    """Logits of greedy decoding, one sequence for each name in one batch: (steps, sequences, vocabulary)."""
    runner = PackedRunner(base, max_loras=len(names), make_graph=make_graph)
    slots = {name: index for index, name in enumerate(names) if name}
    for name, slot in slots.items():
        deltas = load_folder_deltas(
            world.adapters[name], base.model, base.linear_layers, dtype=base.compute_dtype
        )
        runner.load_adapter(slot, deltas)
    cache = KVCache(runner.kv_shape, 64 * len(names))
    kv_slots = [cache.allocate(LENGTH + STEPS) for _ in names]
    new: list[list[int]] = [prompt_of(index, LENGTH) for index in range(len(names))]
    steps = []
    for _ in range(STEPS):
        scheduled = [
            ScheduledSequence(kv_slot, token_ids, slots.get(name or ""), needs_logits=True)
            for kv_slot, token_ids, name in zip(kv_slots, new, names, strict=True)
            if kv_slot
        ]
        steps.append(runner.step(scheduled).clone())
        assert runner.has_graphs == (make_graph is not None)
        new = [[token] for token in steps[-1].argmax(-1).tolist()]
    return torch.stack(steps)


@torch.inference_mode()
def pefts(base: Base, names: Sequence[str | None], world: World, tokens: torch.Tensor) -> torch.Tensor:
    """The same by PEFT's mixed batch, which is fed the given tokens, shape (steps, sequences)."""
    first, *others = filter(None, names)
    model = PeftModel.from_pretrained(
        base.model, world.adapters[first], adapter_name=first, autocast_adapter_dtype=False
    )
    for name in others:
        model.load_adapter(world.adapters[name], name, autocast_adapter_dtype=False)
    for name, parameter in model.eval().named_parameters():
        if ".lora_" in name:  # `autocast_adapter_dtype=False` leaves them in the dtype of their file
            parameter.data = parameter.data.to(base.compute_dtype)
    given = torch.tensor([prompt_of(index, LENGTH) for index in range(len(names))], device=base.device)
    cache, steps = DynamicCache(config=base.model.config), []
    for chosen in tokens:
        output = model(
            input_ids=given,
            past_key_values=cache,
            logits_to_keep=1,
            adapter_names=[name or "__base__" for name in names],
        )
        steps.append(output.logits[:, -1])
        given = chosen[:, None]
    return torch.stack(steps)


@gpu
@pytest.mark.parametrize(("dtype", "quantization"), KINDS, ids=lambda value: str(value))
def test_a_mixed_batch_is_pefts_at_equal_shapes(
    world: World, dtype: ComputeDtype, quantization: Quantization | None
):
    """The base's products have equal shapes in both, and so use the same kernels. PEFT cannot mix DoRA."""
    names = [
        None,
        *(name for name, one in adapter_settings("llama").items() if not one.get("use_dora")),
        None,
    ]
    one, other = (
        load_base(world.base, quantization=quantization, compute_dtype=dtype, device=_device())
        for _ in range(2)
    )
    got = ours(one, names, world)
    tokens = got.argmax(-1)
    wanted = pefts(other, names, world, tokens).float()
    error = (got.float() - wanted).abs()
    largest, typical = float(error.max()), float(error.pow(2).mean().sqrt())
    same = float((tokens == wanted.argmax(-1)).float().mean())
    print(f"largest {largest:.2g}, typical {typical:.2g}, same tokens {same:.3f}")
    assert largest <= BOUNDS[dtype][0]
    assert typical <= BOUNDS[dtype][1]
    # Where a first and second choice are closer than the rounding of bfloat16, either may come first.
    assert same == 1 if dtype == "float32" else same > 0.95


@gpu
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_adapters_of_every_kind_that_join_and_leave_are_pefts(
    world: World, quantization: Quantization | None
):
    """With DoRA, prompts of many lengths prefilled in chunks, and each sequence alone under PEFT; in float32."""
    base, other = (
        load_base(world.base, quantization=quantization, compute_dtype="float32", device=_device())
        for _ in range(2)
    )
    answers = run(base, world, joining=True)
    with torch.device(_device()):
        reference = world.peft if quantization is None else Reference(other.model, world.adapters)
        assert max(differences(answers, reference)) <= 1e-4


@gpu
def test_greedy_tokens_are_those_of_generate(world: World, engine: BatchingEngine):
    sources, prompts = sources_of(world.adapters), [prompt_of(20 + n, 4 + n) for n in range(18)]
    batch = [request(p, sources[n] if n else None) for n, p in zip(world.names, prompts, strict=True)]
    got = [list(one.token_ids) for (one,) in engine.generate(batch)]
    with torch.device(_device()):
        assert got == [world.peft.generate(n, p, 12) for n, p in zip(world.names, prompts, strict=True)]


@gpu
def test_every_request_keeps_its_own_settings(world: World, engine: BatchingEngine):
    """More adapters than slots; seeded sampling and log-probabilities are those of each request alone."""
    settings: list[dict[str, object]] = [
        {"n": 3, "temperature": 1.5, "seed": 11},
        {"logprobs": 4},
        {"temperature": 0.7, "seed": 5, "top_p": 0.8},
        {"temperature": 2.0, "seed": 6, "top_k": 5, "max_tokens": 20},
        {"temperature": 1.0, "seed": 7, "min_p": 0.1, "logprobs": 0},
        {"repetition_penalty": 1.8},
    ]
    batch = [
        request(prompt_of(index, 40), source, **settings[index % len(settings)])
        for index, source in enumerate([None, *sources_of(world.adapters).values()])
    ]
    singles = [engine.generate([one])[0] for one in batch]
    for got, wanted in zip(engine.generate(batch), singles, strict=True):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            about_equal(one, other)
    assert engine.stats().evictions > 0
    assert engine.stats().prefix_cache_hit_tokens > 0


@gpu
@pytest.mark.parametrize(("dtype", "quantization"), KINDS, ids=lambda value: str(value))
def test_steps_in_cuda_graphs_are_computed_ones(
    world: World, dtype: ComputeDtype, quantization: Quantization | None
):
    """What is captured, replayed and captured again, with the adapters that graphs can have."""
    names = [None, *(name for name in world.names if name and "dora" not in name and name != "everything-64")]
    graphs, plain = (
        load_base(world.base, quantization=quantization, compute_dtype=dtype, device=_device())
        for _ in range(2)
    )
    made = CudaGraphs()
    got, wanted = ours(graphs, names, world, made), ours(plain, names, world)
    largest, typical = BOUNDS[dtype]
    apart = (got - wanted).float()
    assert float(apart.abs().max()) <= largest
    assert float(apart.square().mean().sqrt()) <= typical


@gpu
@pytest.mark.parametrize("async_scheduling", [False, True])
def test_an_engine_with_cuda_graphs_answers_as_generate_does(world: World, async_scheduling: bool):
    base = load_base(world.base, quantization=None, compute_dtype="float32", device=_device())
    engine = BatchingEngine(
        base,
        EngineLimits(max_loras=6, kv_cache_mib=64),
        use_cuda_graph=True,
        async_scheduling=async_scheduling,
    )
    prompts = [prompt_of(n, 4 + n) for n in range(9)]
    got = [list(one.token_ids) for (one,) in engine.generate([request(p, None) for p in prompts])]
    engine.close()
    with torch.device(_device()):
        assert got == [world.peft.generate(None, p, 12) for p in prompts]


@gpu
def test_structured_output(world: World, engine: BatchingEngine):
    output_format = OutputFormat.of(regex="[a-c]{3}-[0-9]{4}")
    (source, *_) = sources_of(world.adapters).values()
    sampling = SamplingParams(temperature=1.0, seed=1, max_tokens=16)
    ((answer,),) = engine.generate([Request(prompt_of(1, 9), source, sampling, output_format)])
    letters, _, digits = answer.text.partition("-")
    assert (len(letters), set(letters) <= set("abc"), digits.isdecimal()) == (3, True, True)


@gpu
def test_adapters_in_host_memory_take_no_gpu_memory(world: World):
    """DoRA's norms are computed on the GPU; the result is on the host."""
    base = load_base(world.base, compute_dtype="float32", device=_device())
    before = torch.cuda.memory_allocated()
    loaded = [
        load_folder_deltas(folder, base.model, base.linear_layers, dtype=torch.float32)
        for folder in world.adapters.values()
    ]
    devices = {delta.a.device.type for deltas in loaded for delta in deltas.values()}
    scales = {
        delta.magnitude_scale.device.type
        for deltas in loaded
        for delta in deltas.values()
        if delta.magnitude_scale is not None
    }
    assert devices == scales == {"cpu"}
    assert torch.cuda.memory_allocated() - before < 2**20


def test_adapters_stay_in_host_memory_whatever_the_device_of_the_base(tmp_path: Path):
    """On PyTorch's meta device, which every machine has."""
    folder = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", folder)
    base = load_base(folder, quantization=None, device="cpu")
    shapes, elsewhere = base.linear_layers, base.model.to("meta")
    deltas = load_folder_deltas(adapter, elsewhere, shapes, dtype=torch.bfloat16)
    assert {tensor.device.type for delta in deltas.values() for tensor in (delta.a, delta.b)} == {"cpu"}
    LoraModelManager(elsewhere, slots=2, dtype=torch.bfloat16).load(1, deltas)
