"""Stacked weights: loading, clearing and reallocating one slot keeps the others, and so does a failure."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from adapterhub.lora.delta import LoraDelta
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


def changed(stacked: StackedLoraWeights, slot: int, name: str) -> torch.Tensor:
    """A layer's output under the adapter in a slot; the base layer returns ones."""
    return stacked.apply(name, X, torch.ones(1, OUT[name]), None, LoraMapping([(slot, 1)]))


def wanted(change: LoraDelta | None, name: str) -> torch.Tensor:
    y = torch.ones(1, OUT[name])
    if change is None:
        return y
    y = y + X @ change.a.T @ change.b.T
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
    )
    def load(self, slot: int, names: set[str], rank: int, seed: int, dora: bool) -> None:
        deltas = {
            name: delta(name, rank + number, seed + number, dora=dora)
            for number, name in enumerate(sorted(names))
        }
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
