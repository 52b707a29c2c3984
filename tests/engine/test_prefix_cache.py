"""The prefix cache: the longest cached prefix in whole blocks, of the same adapter only, within its bound."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from adapterhub.engine.kv.cache import KVCache, KVSlot
from adapterhub.engine.kv.prefix_cache import BLOCK_SIZE, PrefixCache
from adapterhub.engine.kv.shape import KVShape, LayerShape

SHAPE = KVShape((LayerShape(1, 2, 2), LayerShape(2, 3, 1)), torch.float32, torch.device("cpu"))
digests = st.sampled_from(["", "sha256:a", "sha256:b"])
# A few tokens in few orders, so that prompts share prefixes of any length.
blocks = st.lists(st.sampled_from([1, 2]), max_size=5)
prompts = st.builds(lambda kinds, rest: [kind for kind in kinds for _ in range(BLOCK_SIZE)] + [3] * rest,
                    blocks, st.integers(1, BLOCK_SIZE + 1))  # fmt: skip


def content(digest: str, prompt: list[int]) -> list[torch.Tensor]:
    """Keys and values of a prompt: each token's depend on the adapter and all tokens up to it, as a model's do."""
    numbers = [float(hash((digest, tuple(prompt[: end + 1]))) % 9973) for end in range(len(prompt))]
    # The first layer's keys and values are alike, the second's are not.
    sizes = [(2, 1, 2), (1, 2, 3), (1, 2, 1)]
    return [torch.tensor(numbers)[:, None].repeat(count, heads, 1, width) for count, heads, width in sizes]


def slot_with(digest: str, prompt: list[int]) -> KVSlot:
    slot = KVCache(SHAPE, 4096).allocate(len(prompt))
    assert slot
    slot.write(0, content(digest, prompt))
    return slot


def hit(cache: PrefixCache, digest: str, prompt: list[int]) -> int:
    """How many tokens of a prompt are cached; checks that they are the right ones."""
    slot = KVCache(SHAPE, 4096).allocate(len(prompt))
    assert slot
    cached = cache.load(slot, digest, prompt)
    assert slot.length == cached
    for got, expected in zip(slot.read(0, cached), content(digest, prompt), strict=True):
        assert torch.equal(got, expected[:, :, :cached])
    return cached


def cache_of(max_blocks: int) -> PrefixCache:
    return PrefixCache(KVCache(SHAPE, 4096), max_blocks * BLOCK_SIZE)


def common(one: list[int], other: list[int]) -> int:
    """Tokens of the longest common prefix, in whole blocks, without the last token of `one`."""
    same = 0
    for a, b in zip(one[:-1], other, strict=False):
        if a != b:
            break
        same += 1
    return same // BLOCK_SIZE * BLOCK_SIZE


@given(st.lists(st.tuples(digests, prompts), max_size=8), digests, prompts)
def test_the_longest_common_prefix_of_the_same_adapter(
    stored: list[tuple[str, list[int]]], digest: str, prompt: list[int]
):
    cache = cache_of(1000)
    for other, one in stored:
        cache.store(slot_with(other, one), other, one)
    expected = max((common(prompt, one) for other, one in stored if other == digest), default=0)
    assert hit(cache, digest, prompt) == expected
    assert cache.hit_tokens == expected


def test_the_last_token_is_always_computed():
    cache, prompt = cache_of(10), [5] * (2 * BLOCK_SIZE)
    cache.store(slot_with("a", prompt), "a", prompt)
    assert hit(cache, "a", prompt) == BLOCK_SIZE
    assert hit(cache, "a", [*prompt, 5]) == 2 * BLOCK_SIZE


def test_a_cache_of_no_tokens_is_off():
    cache = cache_of(0)
    cache.store(slot_with("a", [5] * 100), "a", [5] * 100)
    assert (cache.num_tokens, cache.bytes, hit(cache, "a", [5] * 100)) == (0, 0, 0)


def test_the_least_recently_used_prefix_is_evicted_from_its_end():
    cache, old, new = cache_of(4), [1] * (2 * BLOCK_SIZE + 1), [2] * (2 * BLOCK_SIZE + 1)
    cache.store(slot_with("a", old), "a", old)
    cache.store(slot_with("a", new), "a", new)
    assert hit(cache, "a", old) == 2 * BLOCK_SIZE  # used again
    cache.store(slot_with("a", [3] * BLOCK_SIZE), "a", [3] * BLOCK_SIZE)
    assert (hit(cache, "a", old), hit(cache, "a", new)) == (2 * BLOCK_SIZE, BLOCK_SIZE)


def test_of_a_prompt_longer_than_the_cache_a_prefix_is_stored():
    cache, prompt = cache_of(3), [1] * (5 * BLOCK_SIZE + 1)
    cache.store(slot_with("a", prompt), "a", prompt)
    assert hit(cache, "a", prompt) == 3 * BLOCK_SIZE


class Prefixes(RuleBasedStateMachine):
    """Any order of uses: the bound holds, the chain of blocks stays whole, and a hit is never wrong."""

    BLOCKS = 6

    def __init__(self) -> None:
        super().__init__()
        self.cache = cache_of(self.BLOCKS)

    @rule(digest=digests, prompt=prompts)
    def store(self, digest: str, prompt: list[int]) -> None:
        self.cache.store(slot_with(digest, prompt), digest, prompt)
        # What has just been stored is there, as far as it fits.
        assert (
            hit(self.cache, digest, [*prompt, 0]) >= min(len(prompt) // BLOCK_SIZE, self.BLOCKS) * BLOCK_SIZE
        )

    @rule(digest=digests, prompt=prompts)
    def load(self, digest: str, prompt: list[int]) -> None:
        assert hit(self.cache, digest, prompt) % BLOCK_SIZE == 0

    @rule(digest=digests, prompt=prompts)
    def remove(self, digest: str, prompt: list[int]) -> None:
        self.cache.remove(digest)
        assert hit(self.cache, digest, prompt) == 0

    @invariant()
    def it_is_bounded(self) -> None:
        assert self.cache.num_tokens <= self.BLOCKS * BLOCK_SIZE
        assert self.cache.bytes == self.cache.num_tokens * SHAPE.bytes_per_token

    @invariant()
    def every_block_has_its_parent(self) -> None:
        blocks = list(self.cache._blocks.values())
        by_id = {block.block_id: block for block in blocks}
        assert self.cache._by_id == by_id
        assert all(block.key[0] == 0 or block.key[0] in by_id for block in blocks)
        assert all(
            block.num_children == sum(other.key[0] == block.block_id for other in blocks) for block in blocks
        )


TestPrefixes = Prefixes.TestCase
TestPrefixes.settings = settings(max_examples=25, stateful_step_count=30)
