"""Which version of a split alias answers: shares, stickiness, and what changes when weights do."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.errors import AdapterDisabledError, AdapterNotFoundError, InvalidRequestError
from adapterhub.registry import Alias
from adapterhub.requests.traffic_split import versions_by_preference

USERS = [f"user-{number}" for number in range(2000)]


@pytest.fixture
def hub(tmp_path: Path, tiny_adapters: dict[str, Path]) -> AdapterHub:
    """json@1 to json@3, of which 1 and 2 share `prod`, 9 to 1."""
    registry = AdapterRegistry(tmp_path / "registry")
    for name in ("json", "code", "support"):
        registry.register("json", tiny_adapters[name])
    registry.alias("json", "prod", {1: 90, 2: 10})
    return AdapterHub(EchoEngine(), registry)


def first(alias: Alias) -> dict[str, int]:
    return {user: versions_by_preference(alias, user)[0] for user in USERS}


@pytest.mark.parametrize("weights", [{1: 90, 2: 10}, {1: 1, 2: 1}, {1: 7, 2: 2, 3: 1}, {5: 3}])
def test_users_are_shared_by_weight(weights: dict[int, int]) -> None:
    """Each count is within four standard deviations of a binomial distribution."""
    alias = Alias(weights=weights)
    counts = Counter(first(alias).values())
    for version, share in alias.shares.items():
        deviation = (len(USERS) * share * (1 - share)) ** 0.5
        assert abs(counts[version] - len(USERS) * share) <= 4 * deviation, counts


def test_growing_a_version_moves_users_to_it_and_no_others() -> None:
    before, after = first(Alias(weights={3: 90, 4: 10})), first(Alias(weights={3: 70, 4: 30}))
    assert {after[user] for user in USERS if before[user] == 4} == {4}
    moved = sum(before[user] != after[user] for user in USERS)
    assert 300 < moved < 500  # a fifth of them


def test_a_new_version_takes_from_the_others_and_moves_no_user_between_them() -> None:
    before, after = first(Alias(weights={1: 5, 2: 5})), first(Alias(weights={1: 5, 2: 5, 3: 5}))
    assert {after[user] for user in USERS if before[user] != after[user]} == {3}


def test_every_version_is_in_the_order_once() -> None:
    assert sorted(versions_by_preference(Alias(weights={1: 1, 2: 50, 3: 7}), "a")) == [1, 2, 3]


@pytest.mark.parametrize("digest", [b"\x00" * 8, b"\xff" * 8])
def test_the_lowest_and_the_highest_digest_have_a_score(
    digest: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashlib, "blake2b", lambda *_, **__: SimpleNamespace(digest=lambda: digest))
    assert versions_by_preference(Alias(weights={1: 1, 2: 50}), "a") == [2, 1]


def test_a_request_is_answered_by_a_share_of_its_versions(hub: AdapterHub) -> None:
    random.seed(19)
    answers = [hub.generate("Hi", "json@prod") for _ in range(300)]
    counts = Counter(answer.version for answer in answers)
    assert counts.keys() == {1, 2}
    assert abs(counts[2] - 30) <= 4 * (300 * 0.1 * 0.9) ** 0.5
    assert all(answer.text.startswith(f"[json@{answer.version}]") for answer in answers)


def test_one_user_keeps_one_version(hub: AdapterHub) -> None:
    versions = {
        user: {hub.generate("Hi", "json@prod", user=user).version for _ in range(3)} for user in USERS[:40]
    }
    assert all(len(of_one) == 1 for of_one in versions.values())
    assert {version for of_one in versions.values() for version in of_one} == {1, 2}


def test_a_user_is_not_in_the_canary_of_every_adapter(hub: AdapterHub) -> None:
    hub.registry.alias("json", "test", {1: 90, 2: 10})
    chosen = {
        alias: {user for user in USERS[:400] if hub._choose_version(f"json@{alias}", user) == "json@2"}
        for alias in ("prod", "test")
    }
    assert chosen["prod"] != chosen["test"]


async def test_streams_and_batches_choose_for_each_request(hub: AdapterHub) -> None:
    random.seed(7)
    hub.registry.alias("json", "prod", {1: 1, 2: 1})
    batch = hub.generate_batch(["Hi"] * 40, "json@prod")
    assert {answer.version for answer in batch} == {1, 2}
    streamed = set()
    for user in USERS[:20]:
        async with hub.astream("Hi", "json@prod", user=user) as stream:
            await stream.start()
            streamed.add(stream.version)
            assert f"json@{stream.version}" == hub._choose_version("json@prod", user)
    assert streamed == {1, 2}


def test_a_part_of_a_blend_is_chosen_too(hub: AdapterHub) -> None:
    references = {hub.generate("Hi", "json@prod:0.5", user=user).adapter for user in USERS[:60]}
    assert references == {"json@1:0.5", "json@2:0.5"}


def test_what_reads_is_not_random(hub: AdapterHub) -> None:
    """Tokens are counted for, and the registry resolves to, the version with the largest share."""
    assert {hub.registry.resolve("json@prod").version for _ in range(50)} == {1}
    hub.registry.update("json@2", prompt={"system": "Be brief."})
    assert len({tuple(hub.encode_prompt("Hi", "json@prod")) for _ in range(50)}) == 1


def test_a_disabled_version_gets_no_requests(hub: AdapterHub) -> None:
    hub.registry.update("json@1", status="disabled")
    assert {hub.generate("Hi", "json@prod").version for _ in range(20)} == {2}
    hub.registry.update("json@2", status="disabled")
    with pytest.raises(AdapterDisabledError):
        hub.generate("Hi", "json@prod")


def test_a_version_that_is_removed_meanwhile_leaves_its_requests_to_the_others(
    hub: AdapterHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hub.registry.aliases("json")
    hub.registry.remove("json@2", force=True)
    monkeypatch.setattr(hub.registry, "aliases", lambda name: before)
    assert {hub.generate("Hi", "json@prod", user=user).version for user in USERS[:40]} == {1}


@pytest.mark.parametrize(
    ("reference", "means"),
    [("json@prod", "json@1"), ("json@latest", "json@3"), ("json", "json@3"), ("json@2", "json@2"),
     ("auto", "auto"), ("base", "base")],
)  # fmt: skip
def test_other_references_mean_what_they_meant(hub: AdapterHub, reference: str, means: str) -> None:
    hub.registry.alias("json", "prod", 1)
    assert hub._choose_version(reference, "ann") == means


def test_bad_input(hub: AdapterHub) -> None:
    with pytest.raises(InvalidRequestError, match="user="):
        hub.generate("Hi", "json@prod", user=5)  # type: ignore[arg-type]
    with pytest.raises(AdapterNotFoundError):
        hub.generate("Hi", "json@absent", user="ann")
