"""Which token has which adapter: the two ways to compute are one sum, and spreading is undone by collecting."""

import weakref

import torch
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.stacked_weights import StackedLoraWeights

SLOTS = 6
runs = st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(1, 4)), min_size=1, unique_by=lambda run: run[0]).map(
    sorted
)  # fmt: skip


@given(runs, st.integers(0, 3))
def test_what_is_spread_is_collected_again(runs: list[tuple[int, int]], base: int):
    step = LoraMapping(runs, base=base)
    own = torch.arange(2.0 * (step.last - step.first)).view(-1, 2)
    spread = step.spread(own)
    assert torch.equal(step.collect(spread), own)
    for slot, start, stop in step.runs:
        assert torch.equal(spread[slot - step.low, : stop - start], own[start:stop])


@given(runs, st.integers(0, 3))
def test_every_token_knows_its_slot(runs: list[tuple[int, int]], base: int):
    step = LoraMapping(runs, base=base)
    wanted = [slot for slot, count in runs for _ in range(count)]
    assert step.slot_of_token.tolist() == wanted
    assert (step.first, step.last) == (base, base + len(wanted))
    assert step.slots == {slot for slot, _ in runs}


def delta(seed: int, rank: int, out: int, dora: bool) -> LoraDelta:
    random = torch.Generator().manual_seed(seed)
    scale = torch.rand(out, generator=random) + 0.5 if dora else None
    return LoraDelta(torch.randn(rank, 5, generator=random), torch.randn(out, rank, generator=random), scale)


def full_bank() -> tuple[StackedLoraWeights, dict[int, dict[str, LoraDelta]]]:
    """Adapters of different ranks; some leave a layer alone, some are DoRA."""
    bank = StackedLoraWeights(SLOTS, 5, torch.float32, torch.device("cpu"))
    adapters = {
        slot: {
            name: delta(10 * slot + number, slot + 1, out, dora=slot % 3 == 0)
            for number, (name, out) in enumerate([("q", 4), ("v", 7)])
            if (slot, name) != (2, "v")
        }
        for slot in range(SLOTS)
    }
    for slot, deltas in adapters.items():
        bank.load(slot, deltas)
    return bank, adapters


BANK, ADAPTERS = full_bank()


def expected(
    name: str, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor, slots: list[int]
) -> torch.Tensor:
    """Token by token, as the papers have it."""
    rows = []
    for place, slot in enumerate(slots):
        change, row = ADAPTERS[slot].get(name) if slot >= 0 else None, y[place]
        if change:
            row = row - bias + change.b @ (change.a @ x[place])
            row = (row if change.magnitude_scale is None else row * change.magnitude_scale) + bias
        rows.append(row)
    return torch.stack(rows)


@given(runs, st.integers(0, 3), st.sampled_from([("q", 4), ("v", 7)]), st.booleans())
def test_each_and_together_are_the_same_sum(
    runs: list[tuple[int, int]], base: int, layer: tuple[str, int], biased: bool
):
    name, out = layer
    slots = [-1] * base + [slot for slot, count in runs for _ in range(count)]
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(len(slots), 5, generator=random), torch.randn(len(slots), out, generator=random)
    bias = torch.randn(out, generator=random) if biased else None
    wanted = expected(name, x, y, bias if biased else torch.zeros(out), slots)
    for together in (True, False):
        step = LoraMapping(runs, base=base, together=together)
        got = BANK.apply(name, x, y.clone(), bias, step)
        assert torch.allclose(got, wanted, atol=1e-4), f"together={together}"
        assert torch.equal(got[:base], y[:base]), "the bare base gets exactly what its layer returns"


def test_a_layer_that_no_adapter_changes_is_left_alone():
    y = torch.randn(2, 4)
    assert BANK.apply("k", torch.randn(2, 5), y.clone(), None, LoraMapping([(1, 2)])).equal(y)


def test_the_choice_follows_the_shape_of_the_step():
    assert LoraMapping([(slot, 1) for slot in range(16)]).together, "decoding with many adapters"
    assert not LoraMapping([(3, 16)]).together, "one adapter"
    assert not LoraMapping([(0, 500), (1, 500)]).together, "long prompts"


def test_an_input_is_let_go_of_when_the_next_one_comes():
    step, x = LoraMapping([(0, 1)]), torch.zeros(1, 2)
    gone = weakref.ref(x)
    step.remember("bank", x, lambda x, step: (x + 1,))
    step.remember("other", torch.zeros(1, 2), lambda x, step: (x,))
    del x
    assert gone() is None


def test_what_is_remembered_belongs_to_one_input():
    step, calls = LoraMapping([(0, 1)]), []
    x, other = torch.ones(1, 2), torch.zeros(1, 2)

    def compute(tensor: torch.Tensor, _: LoraMapping) -> torch.Tensor:
        calls.append(tensor)
        return tensor + 1

    assert step.remember("bank", x, compute) is step.remember("bank", x, compute)
    assert torch.equal(step.remember("bank", other, compute), torch.ones(1, 2))
    assert len(calls) == 2
