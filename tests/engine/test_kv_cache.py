"""Lanes: every one keeps its own content through moves and resizes, and all together stay within the limit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adapterhub.engine.kv.cache import SMALLEST_LANE, KVCache, KVShape, KVSlot

SHAPE = KVShape(layers=2, heads=2, head_dim=3, dtype=torch.float32, device=torch.device("cpu"))


def tokens(count: int, value: float) -> torch.Tensor:
    return torch.full((2, SHAPE.layers, SHAPE.heads, count, SHAPE.head_dim), value)


def test_a_shape_is_read_from_a_configuration():
    class Config:
        num_hidden_layers, num_attention_heads, hidden_size = 3, 8, 64

    shape = KVShape.of(Config, torch.bfloat16, torch.device("cpu"))
    assert (shape.layers, shape.heads, shape.head_dim) == (3, 8, 8)
    assert shape.bytes_per_token == 2 * 3 * 8 * 8 * 2


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_what_can_ever_be_held_is_held_by_the_empty_cache(max_tokens: int, wanted: int):
    cache = KVCache(SHAPE, max_tokens)
    assert cache.can_ever_hold(wanted) == (wanted <= max_tokens)
    lane = cache.take(wanted)
    assert (lane is not None) == (wanted <= max_tokens)
    if lane:
        assert wanted <= lane.pool.capacity <= max_tokens
        assert lane.pool.capacity < 2 * max(wanted, SMALLEST_LANE)


def test_lanes_that_nobody_uses_make_room_for_larger_ones():
    cache = KVCache(SHAPE, 512)
    for lane in [cache.take(64) for _ in range(8)]:
        assert lane
        cache.give_back(lane)
    assert (cache.tokens, cache.lanes) == (512, 0)
    assert cache.take(500)
    assert cache.take(1) is None


def test_memory_that_cannot_be_had_leaves_the_cache_as_it_was(monkeypatch: pytest.MonkeyPatch):
    cache = KVCache(SHAPE, 1024)
    lane = cache.take(64)
    assert lane
    lane.write(0, tokens(5, 1.0))

    def no_memory(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            cache.take(64)
    assert (cache.lanes, cache.tokens) == (1, 64)
    assert torch.equal(lane.read(0, 5), tokens(5, 1.0))
    assert cache.take(64) is not None


@pytest.mark.parametrize("who", [0, 1, 2])
def test_what_is_not_finite_is_wiped_out(who: int):
    cache = KVCache(SHAPE, 1024)
    lanes = [lane for _ in range(3) if (lane := cache.take(64))]
    for number, lane in enumerate(lanes):
        lane.write(0, tokens(10 * (3 - number), float("nan") if number == who else number + 1.0))
    cache.give_back(lanes[who], clean=False)
    pool = lanes[0].pool
    assert pool.memory.isfinite().all()
    for number, lane in enumerate(lanes):
        if number != who:
            assert torch.equal(lane.read(0, lane.length), tokens(10 * (3 - number), number + 1.0))


class Lanes(RuleBasedStateMachine):
    """Answers of any length come, grow and end, in any order."""

    MAX_TOKENS = 700

    def __init__(self) -> None:
        super().__init__()
        self.cache = KVCache(SHAPE, self.MAX_TOKENS)
        self.lanes: dict[KVSlot, tuple[int, torch.Tensor]] = {}
        self.written = 0.0

    @rule(wanted=st.integers(1, 600))
    def take(self, wanted: int) -> None:
        lane = self.cache.take(wanted)
        if lane:
            assert lane.pool.capacity >= wanted
            self.lanes[lane] = (wanted, tokens(0, 0.0))
        else:
            assert self.lanes, "the empty cache has room"

    @precondition(lambda self: self.lanes)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from(list(self.lanes)))
        wanted, content = self.lanes[lane]
        if lane.length < wanted:
            count = data.draw(st.integers(1, wanted - lane.length))
            self.written += 1
            new = tokens(count, self.written)
            lane.write(lane.length, new)
            self.lanes[lane] = (wanted, torch.cat([content, new], dim=3))

    @precondition(lambda self: self.lanes)
    @rule(data=st.data(), clean=st.booleans())
    def give_back(self, data: st.DataObject, clean: bool) -> None:
        lane = data.draw(st.sampled_from(list(self.lanes)))
        self.cache.give_back(lane, clean=clean)
        del self.lanes[lane]

    @rule()
    def give_all_back(self) -> None:
        for lane in self.lanes:
            self.cache.give_back(lane)
        self.lanes.clear()
        assert self.cache.take(self.MAX_TOKENS) is not None, "the empty cache holds what fits it exactly"
        self.__init__()  # type: ignore[misc]

    @invariant()
    def every_lane_keeps_its_content(self) -> None:
        for lane, (_, content) in self.lanes.items():
            assert lane.length == content.shape[3]
            assert torch.equal(lane.read(0, lane.length), content)

    @invariant()
    def lanes_are_told_apart_and_the_used_ones_first(self) -> None:
        places = {(lane.pool, lane.index) for lane in self.lanes}
        assert len(places) == len(self.lanes) == self.cache.lanes
        for pool in {lane.pool for lane in self.lanes}:
            assert [lane.index for lane in pool.lanes] == list(range(len(pool.lanes)))

    @invariant()
    def the_limit_holds(self) -> None:
        held = sum(pool.memory.nbytes for pool in self.cache._pools.values())
        assert self.cache.bytes == held <= self.MAX_TOKENS * SHAPE.bytes_per_token


TestLanes = Lanes.TestCase
TestLanes.settings = settings(max_examples=50, stateful_step_count=30)
