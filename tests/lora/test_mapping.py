"""The mapping from tokens to adapters: both ways of computing give one sum, and `unpad` is the inverse of `pad`."""

import weakref

import torch
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.kernels.interface import MakeKernels
from adapterhub.lora.kernels.torch_ops import TorchOps
from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.stacked_weights import StackedLoraWeights

SLOTS = 6
runs = st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(1, 4)), min_size=1, unique_by=lambda run: run[0]).map(
    sorted
)  # fmt: skip


@given(runs, st.integers(0, 3))
def test_unpad_is_the_inverse_of_pad(runs: list[tuple[int, int]], base: int):
    mapping = LoraMapping(runs, num_base_tokens=base)
    selected = torch.arange(2.0 * (mapping.end - mapping.start)).view(-1, 2)
    padded = mapping.pad(selected)
    assert torch.equal(mapping.unpad(padded), selected)
    assert mapping.needs_padding == (len(padded.flatten(0, 1)) != len(selected))
    for slot, start, stop in mapping.runs:
        assert torch.equal(padded[slot - mapping.first_slot, : stop - start], selected[start:stop])


@given(runs, st.integers(0, 3))
def test_the_slot_of_every_token(runs: list[tuple[int, int]], base: int):
    mapping = LoraMapping(runs, num_base_tokens=base)
    wanted = [slot for slot, count in runs for _ in range(count)]
    assert mapping.token_slots.tolist() == wanted
    assert (mapping.start, mapping.end) == (base, base + len(wanted))
    assert mapping.slots == {slot for slot, _ in runs}
    tokens = torch.arange(base + len(wanted))
    assert mapping.select(tokens).tolist() == list(range(base, base + len(wanted)))


def delta(seed: int, rank: int, out: int, dora: bool) -> LoraDelta:
    random = torch.Generator().manual_seed(seed)
    scale = torch.rand(out, generator=random) + 0.5 if dora else None
    return LoraDelta(torch.randn(rank, 5, generator=random), torch.randn(out, rank, generator=random), scale)


def full_weights(
    make_kernels: MakeKernels | None = None,
) -> tuple[StackedLoraWeights, dict[int, dict[str, LoraDelta]]]:
    """Adapters of different ranks; some do not target a layer, some are DoRA."""
    weights = StackedLoraWeights(SLOTS, 5, torch.float32, torch.device("cpu"), make_kernels)
    adapters = {
        slot: {
            name: delta(10 * slot + number, slot + 1, out, dora=slot % 3 == 0)
            for number, (name, out) in enumerate([("q", 4), ("v", 7)])
            if (slot, name) != (2, "v")
        }
        for slot in range(SLOTS)
    }
    for slot, deltas in adapters.items():
        weights.load(slot, deltas)
    return weights, adapters


WEIGHTS, ADAPTERS = full_weights()
OF_TORCH, _ = full_weights(TorchOps)


def expected(
    name: str, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor, slots: list[int]
) -> torch.Tensor:
    """Token by token, as in the papers."""
    rows = []
    for position, slot in enumerate(slots):
        change, row = ADAPTERS[slot].get(name) if slot >= 0 else None, y[position]
        if change:
            row = row - bias + change.b @ (change.a @ x[position])
            row = (row if change.magnitude_scale is None else row * change.magnitude_scale) + bias
        rows.append(row)
    return torch.stack(rows)


@given(runs, st.integers(0, 3), st.sampled_from([("q", 4), ("v", 7)]), st.booleans())
def test_per_adapter_batched_and_compiled_are_the_same_sum(
    runs: list[tuple[int, int]], base: int, layer: tuple[str, int], biased: bool
):
    name, out = layer
    slots = [-1] * base + [slot for slot, count in runs for _ in range(count)]
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(len(slots), 5, generator=random), torch.randn(len(slots), out, generator=random)
    bias = torch.randn(out, generator=random) if biased else None
    wanted = expected(name, x, y, bias if biased else torch.zeros(out), slots)
    for weights, batched in ((OF_TORCH, True), (OF_TORCH, False), (WEIGHTS, None)):
        mapping = LoraMapping(runs, num_base_tokens=base, batched=batched)
        got = weights.apply(name, x, y.clone(), bias, mapping)
        assert torch.allclose(got, wanted, atol=1e-4), f"batched={batched}"
        assert torch.equal(got[:base], y[:base]), "the bare base gets exactly what its layer returns"


def test_a_layer_that_no_adapter_targets_is_not_changed():
    y = torch.randn(2, 4)
    assert WEIGHTS.apply("k", torch.randn(2, 5), y.clone(), None, LoraMapping([(1, 2)])).equal(y)


def test_batched_is_chosen_for_many_adapters_with_few_tokens():
    assert LoraMapping([(slot, 1) for slot in range(16)]).batched, "decoding with many adapters"
    assert not LoraMapping([(3, 16)]).batched, "one adapter"
    assert not LoraMapping([(0, 500), (1, 500)]).batched, "long prompts"


def test_an_input_is_released_when_the_next_one_comes():
    mapping, x = LoraMapping([(0, 1)]), torch.zeros(1, 2)
    released = weakref.ref(x)
    mapping.compute_once("weights", x, lambda x, _: (x + 1,))
    mapping.compute_once("other", torch.zeros(1, 2), lambda x, _: (x,))
    del x
    assert released() is None


def test_a_cached_result_belongs_to_one_input():
    mapping, calls = LoraMapping([(0, 1)]), []
    x, other = torch.ones(1, 2), torch.zeros(1, 2)

    def compute(tensor: torch.Tensor, _: LoraMapping) -> torch.Tensor:
        calls.append(tensor)
        return tensor + 1

    assert mapping.compute_once("weights", x, compute) is mapping.compute_once("weights", x, compute)
    assert torch.equal(mapping.compute_once("weights", other, compute), torch.ones(1, 2))
    assert len(calls) == 2
