"""Beginnings of prompts: the longest known one in whole blocks, of the same adapter only, and no more than allowed."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from adapterhub.engine.kv.cache import KVCache, KVShape, KVSlot
from adapterhub.engine.kv.prefix_cache import BLOCK, PrefixCache

SHAPE = KVShape(layers=2, heads=1, head_dim=2, dtype=torch.float32, device=torch.device("cpu"))
digests = st.sampled_from(["", "sha256:a", "sha256:b"])
# A few tokens in few orders, so that prompts share beginnings of any length.
blocks = st.lists(st.sampled_from([1, 2]), max_size=5)
prompts = st.builds(lambda kinds, rest: [kind for kind in kinds for _ in range(BLOCK)] + [3] * rest,
                    blocks, st.integers(1, BLOCK + 1))  # fmt: skip


def content(digest: str, prompt: list[int]) -> torch.Tensor:
    """Keys and values of a prompt: each token's depend on the adapter and all tokens up to it, as a model's do."""
    numbers = [float(hash((digest, tuple(prompt[: end + 1]))) % 9973) for end in range(len(prompt))]
    tokens = torch.tensor(numbers)[:, None].expand(2, SHAPE.layers, SHAPE.heads, len(prompt), SHAPE.head_dim)
    return tokens.clone()


def lane_with(digest: str, prompt: list[int]) -> KVSlot:
    lane = KVCache(SHAPE, 4096).take(len(prompt))
    assert lane
    lane.write(0, content(digest, prompt))
    return lane


def filled(cache: PrefixCache, digest: str, prompt: list[int]) -> int:
    """How many tokens the cache knows; checks that they are the right ones."""
    lane = KVCache(SHAPE, 4096).take(len(prompt))
    assert lane
    known = cache.fill(lane, digest, prompt)
    assert lane.length == known
    assert torch.equal(lane.read(0, known), content(digest, prompt)[:, :, :, :known])
    return known


def cache_of(max_blocks: int) -> PrefixCache:
    return PrefixCache(KVCache(SHAPE, 4096), max_blocks * BLOCK)


def common(one: list[int], other: list[int]) -> int:
    """Tokens of the longest common beginning, in whole blocks, without the last token of `one`."""
    same = 0
    for a, b in zip(one[:-1], other, strict=False):
        if a != b:
            break
        same += 1
    return same // BLOCK * BLOCK


@given(st.lists(st.tuples(digests, prompts), max_size=8), digests, prompts)
def test_the_longest_common_beginning_of_the_same_adapter(
    kept: list[tuple[str, list[int]]], digest: str, prompt: list[int]
):
    cache = cache_of(1000)
    for own, one in kept:
        cache.keep(lane_with(own, one), own, one)
    wanted = max((common(prompt, one) for own, one in kept if own == digest), default=0)
    assert filled(cache, digest, prompt) == wanted
    assert cache.hit_tokens == wanted


def test_the_last_token_is_always_computed():
    cache, prompt = cache_of(10), [5] * (2 * BLOCK)
    cache.keep(lane_with("a", prompt), "a", prompt)
    assert filled(cache, "a", prompt) == BLOCK
    assert filled(cache, "a", [*prompt, 5]) == 2 * BLOCK


def test_nothing_is_kept_where_nothing_may_be():
    cache = cache_of(0)
    cache.keep(lane_with("a", [5] * 100), "a", [5] * 100)
    assert (cache.tokens, cache.bytes, filled(cache, "a", [5] * 100)) == (0, 0, 0)


def test_the_least_recently_used_beginning_goes_first_and_from_its_end():
    cache, old, new = cache_of(4), [1] * (2 * BLOCK + 1), [2] * (2 * BLOCK + 1)
    cache.keep(lane_with("a", old), "a", old)
    cache.keep(lane_with("a", new), "a", new)
    assert filled(cache, "a", old) == 2 * BLOCK  # used again
    cache.keep(lane_with("a", [3] * BLOCK), "a", [3] * BLOCK)
    assert (filled(cache, "a", old), filled(cache, "a", new)) == (2 * BLOCK, BLOCK)


def test_a_prompt_longer_than_the_cache_keeps_its_beginning():
    cache, prompt = cache_of(3), [1] * (5 * BLOCK + 1)
    cache.keep(lane_with("a", prompt), "a", prompt)
    assert filled(cache, "a", prompt) == 3 * BLOCK


class Prefixes(RuleBasedStateMachine):
    """Any order of uses: the bound holds, the chain of blocks stays whole, and a hit is never wrong."""

    BLOCKS = 6

    def __init__(self) -> None:
        super().__init__()
        self.cache = cache_of(self.BLOCKS)

    @rule(digest=digests, prompt=prompts)
    def keep(self, digest: str, prompt: list[int]) -> None:
        self.cache.keep(lane_with(digest, prompt), digest, prompt)
        # What has just been kept is there, as far as it fits.
        assert filled(self.cache, digest, [*prompt, 0]) >= min(len(prompt) // BLOCK, self.BLOCKS) * BLOCK

    @rule(digest=digests, prompt=prompts)
    def fill(self, digest: str, prompt: list[int]) -> None:
        assert filled(self.cache, digest, prompt) % BLOCK == 0

    @rule(digest=digests, prompt=prompts)
    def forget(self, digest: str, prompt: list[int]) -> None:
        self.cache.forget(digest)
        assert filled(self.cache, digest, prompt) == 0

    @invariant()
    def it_is_bounded(self) -> None:
        assert self.cache.tokens <= self.BLOCKS * BLOCK
        assert self.cache.bytes == self.cache.tokens * SHAPE.bytes_per_token

    @invariant()
    def every_block_follows_one_that_is_there(self) -> None:
        blocks = list(self.cache._blocks.values())
        numbers = {block.number: block for block in blocks}
        assert self.cache._numbers == numbers
        assert all(block.key[0] == 0 or block.key[0] in numbers for block in blocks)
        assert all(
            block.children == sum(other.key[0] == block.number for other in blocks) for block in blocks
        )


TestPrefixes = Prefixes.TestCase
TestPrefixes.settings = settings(max_examples=25, stateful_step_count=30)
