"""KV slots: each keeps its content when slots move and pools are resized, and memory stays within its bound."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adapterhub.engine.kv.cache import MIN_SLOT_TOKENS, KVCache, KVSlot, KVSlotPool
from adapterhub.engine.kv.shape import KVShape, LayerShape

# Layers differ in heads and widths, and keys from values.
SHAPE = KVShape((LayerShape(2, 3, 3), LayerShape(1, 5, 2)), torch.float32, torch.device("cpu"))


def tokens(count: int, value: float) -> list[torch.Tensor]:
    """As a slot reads them: the first layer's keys and values, which are alike, then those of the other."""
    sizes = [(2, 2, count, 3), (1, 1, count, 5), (1, 1, count, 2)]
    return [torch.full(size, value) for size in sizes]


def same(got: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return len(got) == len(expected) and all(map(torch.equal, got, expected))


class NoMemory:
    """`torch.zeros` that runs out of memory after some calls."""

    def __init__(self, calls: int) -> None:
        self._left, self._zeros = calls, torch.zeros

    def __call__(self, *shape: int, **settings: object) -> torch.Tensor:
        if self._left == 0:
            raise torch.OutOfMemoryError("no memory")
        self._left -= 1
        return self._zeros(*shape, **settings)  # type: ignore[call-overload]


def test_a_shape_is_taken_from_a_configuration():
    class Config:
        num_hidden_layers, num_attention_heads, hidden_size = 3, 8, 64

    shape = KVShape.of(Config, torch.bfloat16, torch.device("cpu"))
    assert shape.layers == (LayerShape(num_kv_heads=8, key_width=8, value_width=8),) * 3
    assert shape.bytes_per_token == 2 * 3 * 8 * 8 * 2


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_what_can_ever_fit_fits_the_empty_cache(max_tokens: int, num_tokens: int):
    cache = KVCache(SHAPE, max_tokens)
    assert cache.can_ever_fit(num_tokens) == (num_tokens <= max_tokens)
    slot = cache.allocate(num_tokens)
    assert (slot is not None) == (num_tokens <= max_tokens)
    if slot:
        assert num_tokens <= slot.pool.capacity <= max_tokens
        assert slot.pool.capacity < 2 * max(num_tokens, MIN_SLOT_TOKENS)


def test_unused_slots_make_room_for_larger_ones():
    cache = KVCache(SHAPE, 512)
    for slot in [cache.allocate(64) for _ in range(8)]:
        assert slot
        cache.free(slot)
    assert (cache.allocated_tokens, cache.num_slots) == (512, 0)
    assert cache.allocate(500)
    assert cache.allocate(1) is None


def test_a_token_of_unlike_layers():
    assert SHAPE.bytes_per_token == (2 * (3 + 3) + 1 * (5 + 2)) * 4
    slot = KVCache(SHAPE, 128).allocate(64)
    assert slot
    assert [tuple(part.shape) for part in slot.read(0, 7)] == [(2, 2, 7, 3), (1, 1, 7, 5), (1, 1, 7, 2)]


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_running_out_of_memory_leaves_the_cache_usable(monkeypatch: pytest.MonkeyPatch, calls: int):
    """At the first layer, or half-way: what was allocated by then is counted."""
    cache = KVCache(SHAPE, 128)
    slot = cache.allocate(64)
    assert slot
    slot.write(0, tokens(5, 1.0))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", NoMemory(calls))
        with pytest.raises(torch.OutOfMemoryError):
            cache.allocate(64)
    allocated = sum(tensor.nbytes for tensor in slot.pool.tensors)
    assert cache.num_slots == 1
    assert allocated <= cache.bytes < allocated + SHAPE.bytes_per_token
    assert same(slot.read(0, 5), tokens(5, 1.0))
    assert cache.allocate(64) is not None
    assert same(slot.read(0, 5), tokens(5, 1.0))


def test_the_peak_while_a_pool_is_resized_is_one_tensor_above_the_bound(monkeypatch: pytest.MonkeyPatch):
    shape = KVShape((LayerShape(1, 4, 4),) * 8, torch.float32, torch.device("cpu"))
    max_tokens, live, peak, zeros = 1024, 0, 0, torch.zeros

    def freed(nbytes: int) -> None:
        nonlocal live
        live -= nbytes

    def counted(*size: int, **options: object) -> torch.Tensor:
        nonlocal live, peak
        tensor = zeros(*size, **options)  # type: ignore[call-overload]
        # The storage and not the tensor: views keep it alive.
        weakref.finalize(tensor.untyped_storage(), freed, tensor.nbytes)
        live += tensor.nbytes
        peak = max(peak, live)
        return tensor

    monkeypatch.setattr(torch, "zeros", counted)
    cache = KVCache(shape, max_tokens)
    bound = max_tokens * shape.bytes_per_token
    for length in (64, 256, 64):
        slots = []
        while slot := cache.allocate(length):
            slots.append(slot)
            assert live == cache.bytes <= bound
        for slot in slots:
            cache.free(slot)
    assert bound < peak <= bound + bound // (2 * len(shape.layers))


@pytest.mark.parametrize("freed", [0, 1, 2])
def test_nan_is_overwritten(freed: int):
    cache = KVCache(SHAPE, 1024)
    slots = [slot for _ in range(3) if (slot := cache.allocate(64))]
    for index, slot in enumerate(slots):
        slot.write(0, tokens(10 * (3 - index), float("nan") if index == freed else index + 1.0))
    cache.free(slots[freed], zero=True)
    assert all(tensor.isfinite().all() for tensor in slots[0].pool.tensors)
    for index, slot in enumerate(slots):
        if index != freed:
            assert same(slot.read(0, slot.length), tokens(10 * (3 - index), index + 1.0))


def test_sizes_can_be_read_while_pools_are_made(monkeypatch: pytest.MonkeyPatch):
    """As by `stats` in another thread."""
    cache = KVCache(SHAPE, 4096)
    cache.allocate(64)

    lengths = iter([2000])

    def meanwhile(pool: KVSlotPool) -> int:
        for length in lengths:
            cache.allocate(length)
        return pool.capacity

    with monkeypatch.context() as patch:
        patch.setattr(KVSlotPool, "allocated_tokens", property(meanwhile))
        assert cache.allocated_tokens > 0


class Slots(RuleBasedStateMachine):
    """Sequences of any length start, grow and end, in any order."""

    MAX_TOKENS = 700

    def __init__(self) -> None:
        super().__init__()
        self.cache = KVCache(SHAPE, self.MAX_TOKENS)
        self.slots: dict[KVSlot, tuple[int, list[torch.Tensor]]] = {}
        self.written = 0.0

    @rule(num_tokens=st.integers(1, 600))
    def allocate(self, num_tokens: int) -> None:
        slot = self.cache.allocate(num_tokens)
        if slot:
            assert slot.pool.capacity >= num_tokens
            self.slots[slot] = (num_tokens, tokens(0, 0.0))
        else:
            assert self.slots, "the empty cache has room"

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(list(self.slots)))
        num_tokens, content = self.slots[slot]
        if slot.length < num_tokens:
            count = data.draw(st.integers(1, num_tokens - slot.length))
            self.written += 1
            new = tokens(count, self.written)
            slot.write(slot.length, new)
            joined = [torch.cat(parts, dim=2) for parts in zip(content, new, strict=True)]
            self.slots[slot] = (num_tokens, joined)

    @precondition(lambda self: self.slots)
    @rule(data=st.data(), zero=st.booleans())
    def free(self, data: st.DataObject, zero: bool) -> None:
        slot = data.draw(st.sampled_from(list(self.slots)))
        self.cache.free(slot, zero=zero)
        del self.slots[slot]

    @rule()
    def free_all(self) -> None:
        for slot in self.slots:
            self.cache.free(slot)
        self.slots.clear()
        assert self.cache.allocate(self.MAX_TOKENS) is not None, "the empty cache fits its maximum exactly"
        self.__init__()  # type: ignore[misc]

    @invariant()
    def every_slot_keeps_its_content(self) -> None:
        for slot, (_, content) in self.slots.items():
            assert slot.length == content[0].shape[2]
            assert same(slot.read(0, slot.length), content)

    @invariant()
    def slots_are_distinct_and_the_used_ones_first(self) -> None:
        positions = {(slot.pool, slot.index) for slot in self.slots}
        assert len(positions) == len(self.slots) == self.cache.num_slots
        for pool in {slot.pool for slot in self.slots}:
            assert [slot.index for slot in pool.slots] == list(range(len(pool.slots)))

    @invariant()
    def memory_is_bounded(self) -> None:
        pools = {slot.pool for slot in self.slots}
        allocated = sum(tensor.nbytes for pool in pools for tensor in pool.tensors)
        assert allocated <= self.cache.bytes <= self.MAX_TOKENS * SHAPE.bytes_per_token


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=50, stateful_step_count=30)
