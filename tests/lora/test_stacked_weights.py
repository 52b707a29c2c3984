"""Stacked weights: loading, clearing and reallocating one slot keeps the others, and so does a failure."""

from dataclasses import replace

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.kernels.choosing import compiled_library
from adapterhub.lora.kernels.torch_ops import TorchOps
from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.stacked_weights import StackedLoraWeights

IN, SLOTS = 5, 4
OUT = {"q": 4, "k": 3, "v": 6}
CPU = torch.device("cpu")
X = torch.randn(1, IN, generator=torch.Generator().manual_seed(0))


def delta(name: str, rank: int, seed: int = 0, *, dora: bool = False) -> LoraDelta:
    random = torch.Generator().manual_seed(seed)
    scale = torch.rand(OUT[name], generator=random) + 0.5 if dora else None
    return LoraDelta(
        torch.randn(rank, IN, generator=random), torch.randn(OUT[name], rank, generator=random), scale
    )


def in_bfloat16(change: LoraDelta) -> LoraDelta:
    """The change with rounded factors, as one that was stored in bfloat16 is loaded."""
    return replace(change, a=change.a.bfloat16(), b=change.b.bfloat16())


def changed(stacked: StackedLoraWeights, slot: int, name: str) -> torch.Tensor:
    """A layer's output under the adapter in a slot; the base layer returns ones."""
    return stacked.apply(name, X, torch.ones(1, OUT[name]), None, LoraMapping([(slot, 1)]))


def wanted(change: LoraDelta | None, name: str) -> torch.Tensor:
    y = torch.ones(1, OUT[name])
    if change is None:
        return y
    y = y + X @ change.a.float().T @ change.b.float().T
    return y if change.magnitude_scale is None else y * change.magnitude_scale


def check(stacked: StackedLoraWeights, adapters: dict[int, dict[str, LoraDelta]]) -> None:
    for slot in range(SLOTS):
        for name in OUT:
            got, right = changed(stacked, slot, name), wanted(adapters.get(slot, {}).get(name), name)
            assert torch.allclose(got, right, atol=1e-5), f"slot {slot}, layer {name}"


class Loading(RuleBasedStateMachine):
    """Adapters of any rank, layers and kind are loaded into slots and cleared."""

    def __init__(self) -> None:
        super().__init__()
        self.stacked = StackedLoraWeights(SLOTS, IN, torch.float32, CPU)
        self.adapters: dict[int, dict[str, LoraDelta]] = {}

    @rule(
        slot=st.integers(0, SLOTS - 1),
        names=st.sets(st.sampled_from(sorted(OUT)), min_size=1),
        rank=st.integers(1, 6),
        seed=st.integers(0, 100),
        dora=st.booleans(),
        narrow=st.booleans(),
    )
    def load(self, slot: int, names: set[str], rank: int, seed: int, dora: bool, narrow: bool) -> None:
        deltas = {
            name: delta(name, rank + number, seed + number, dora=dora)
            for number, name in enumerate(sorted(names))
        }
        if narrow:
            deltas = {name: in_bfloat16(one) for name, one in deltas.items()}
        self.stacked.load(slot, deltas)
        self.adapters[slot] = deltas

    @rule(slot=st.integers(0, SLOTS - 1))
    def clear(self, slot: int) -> None:
        self.stacked.clear(slot)
        self.adapters.pop(slot, None)

    @invariant()
    def every_slot_is_right(self) -> None:
        check(self.stacked, self.adapters)


TestLoading = Loading.TestCase
TestLoading.settings = settings(max_examples=40, stateful_step_count=15)


def test_nan_weights_are_gone_once_their_slot_is_loaded_again():
    stacked = StackedLoraWeights(SLOTS, IN, torch.float32, CPU)
    bad = delta("q", 3, dora=True)
    for tensor in (bad.a, bad.b, bad.magnitude_scale):
        assert tensor is not None
        tensor.fill_(torch.nan)
    stacked.load(0, {"q": delta("q", 2)})
    stacked.load(1, {"q": bad})
    assert changed(stacked, 1, "q").isnan().all()
    assert torch.allclose(changed(stacked, 0, "q"), wanted(delta("q", 2), "q"))
    stacked.load(1, {"q": delta("q", 1)})
    assert torch.allclose(changed(stacked, 1, "q"), wanted(delta("q", 1), "q"))


@pytest.mark.parametrize("allocation", range(6))
def test_running_out_of_memory_keeps_the_other_adapters(monkeypatch, allocation: int):
    """The first, second, ... allocation of a load fails, be it to grow or for DoRA's scales."""
    stacked = StackedLoraWeights(SLOTS, IN, torch.float32, CPU)
    adapters = {0: {"q": delta("q", 2, seed=1)}, 2: {"q": delta("q", 1, seed=2), "k": delta("k", 2, seed=3)}}
    for slot, deltas in adapters.items():
        stacked.load(slot, deltas)
    allocate, left = stacked._zeros, [allocation]

    def no_memory(*shape: int) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError("no memory")
        return allocate(*shape)

    # It needs a higher rank, a further layer and scales: all that can be allocated.
    large = {name: delta(name, 6, dora=True) for name in OUT}
    with monkeypatch.context() as patch:
        patch.setattr(stacked, "_zeros", no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            stacked.load(1, large)
    stacked.clear(1)  # as the engine does
    check(stacked, adapters)
    small = {"q": delta("q", 1, seed=4)}
    stacked.load(1, small)
    check(stacked, adapters | {1: small})
    stacked.load(3, large)
    check(stacked, adapters | {1: small, 3: large})


@pytest.mark.skipif(compiled_library()[0] is None, reason=f"no compiled kernels: {compiled_library()[1]}")
def test_adapters_in_bfloat16_are_kept_so_until_one_is_not():
    stacked = StackedLoraWeights(SLOTS, IN, torch.float32, CPU)
    stacked.load(0, {"q": in_bfloat16(delta("q", 3, 1))})
    size = stacked.bytes
    stacked.load(1, {"q": in_bfloat16(delta("q", 3, 2))})
    assert stacked.bytes == size == SLOTS * 3 * (IN + OUT["q"]) * 2
    outputs = [changed(stacked, slot, "q") for slot in (0, 1)]
    stacked.load(2, {"q": delta("q", 3, 3)})
    assert stacked.bytes == 2 * size
    assert [torch.equal(changed(stacked, slot, "q"), outputs[slot]) for slot in (0, 1)] == [True, True]
    check(
        stacked,
        {
            slot: {"q": one}
            for slot, one in enumerate(
                [in_bfloat16(delta("q", 3, 1)), in_bfloat16(delta("q", 3, 2)), delta("q", 3, 3)]
            )
        },
    )
    stacked.clear(2)
    stacked.load(
        3, {"v": in_bfloat16(delta("v", 3, 4))}
    )  # stacks are made anew, and none is in float32 any more
    assert stacked.bytes == SLOTS * 3 * (2 * IN + OUT["q"] + OUT["v"]) * 2


def test_without_a_kernel_that_reads_bfloat16_stacks_are_in_float32():
    stacked = StackedLoraWeights(SLOTS, IN, torch.float32, CPU, TorchOps)
    stacked.load(0, {"q": in_bfloat16(delta("q", 3, 1))})
    assert stacked.bytes == SLOTS * 3 * (IN + OUT["q"]) * 4


@pytest.mark.parametrize(
    ("scaling", "exact"), [(2.0, True), (0.5, True), (1.5, False), (2 / 3, False)], ids=str
)
def test_only_what_changes_no_number_becomes_bfloat16(scaling: float, exact: bool):
    stored = in_bfloat16(delta("q", 4))
    change = LoraDelta(stored.a.float(), stored.b.float() * scaling, torch.rand(OUT["q"]))
    got = change.in_bfloat16()
    assert got.a.dtype is got.b.dtype is (torch.bfloat16 if exact else torch.float32)
    assert torch.equal(got.a.float(), change.a)
    assert torch.equal(got.b.float(), change.b)
    assert got.magnitude_scale is change.magnitude_scale
    trained = delta("q", 4)
    assert trained.in_bfloat16() is trained
