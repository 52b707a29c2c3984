"""Which replica answers."""

import time

from adapterhub.fleet import ReplicaLoad, by_affinity, home


def fleet(
    *in_flight: int, adapters: dict[int, set[str]] | None = None, maximum: int = 100
) -> list[ReplicaLoad]:
    loaded = adapters or {}
    return [
        ReplicaLoad(f"http://replica-{i}", count, maximum, frozenset(own := loaded.get(i, ())), len(own))
        for i, count in enumerate(in_flight)
    ]


def first(replicas: list[ReplicaLoad], adapter: str | None) -> int:
    return replicas.index(by_affinity(replicas, adapter)[0])


def test_a_request_goes_where_its_adapter_is():
    for holder in range(3):
        replicas = fleet(2, 2, 2, adapters={holder: {"sql"}})
        assert first(replicas, "sql") == holder


def test_of_two_that_have_it_the_less_busy_one():
    assert first(fleet(3, 1, 2, adapters={0: {"sql"}, 1: {"sql"}}), "sql") == 1


def test_a_much_busier_replica_is_passed_over():
    replicas = fleet(20, 1, 0, adapters={0: {"sql"}})
    assert first(replicas, "sql") != 0
    assert by_affinity(replicas, "sql")[-1].name == "http://replica-0"


def test_a_nearly_idle_replica_keeps_its_adapters():
    """Seven requests are no load for one that takes 64, though they are more than its share."""
    assert first(fleet(7, 0, 0, adapters={0: {"sql"}}, maximum=64), "sql") == 0
    assert first(fleet(8, 0, 0, adapters={0: {"sql"}}, maximum=64), "sql") != 0


def test_an_idle_fleet_takes_a_first_request():
    assert len(by_affinity(fleet(0, 0, 0), "sql")) == 3


def test_a_full_replica_takes_nothing():
    replicas = fleet(4, 3, adapters={0: {"sql"}}, maximum=4)
    assert [one.name for one in by_affinity(replicas, "sql")] == ["http://replica-1"]
    assert by_affinity(fleet(4, 4, maximum=4), "sql") == []
    assert by_affinity(fleet(4, 4, maximum=4), None) == []


def test_the_bare_base_goes_to_the_least_busy():
    assert first(fleet(3, 1, 2, adapters={0: {"sql"}}), None) == 1


def test_the_home_is_where_requests_go_while_nothing_is_loaded():
    replicas = fleet(0, 0, 0)
    for name in (f"adapter-{i}" for i in range(20)):
        assert home([one.name for one in replicas], name) == by_affinity(replicas, name)[0].name


def destinations(replicas: list[ReplicaLoad], count: int = 100) -> set[str]:
    """Where new adapters go."""
    return {by_affinity(replicas, f"adapter-{i}")[0].name for i in range(count)}


def test_a_new_adapter_drops_none_while_another_replica_has_room_for_it():
    """As many adapters as there are places, here two times twelve, are all loaded in the end."""
    loaded = {0: {str(i) for i in range(12)}, 1: {str(i) for i in range(12, 23)}}
    assert destinations(fleet(0, 0, adapters=loaded)) == {"http://replica-1"}


def test_a_replica_that_has_just_started_does_not_get_every_new_adapter():
    loaded = {i: {f"{i}-{j}" for j in range(9)} for i in range(3)}
    assert destinations(fleet(0, 0, 0, 0, adapters=loaded)) == {f"http://replica-{i}" for i in range(4)}


def test_a_new_adapter_goes_to_none_that_has_more_than_its_share_to_do():
    assert destinations(fleet(3, 1, 1)) == {"http://replica-1", "http://replica-2"}


def test_homes_are_even_and_stay_when_a_replica_goes():
    names = [f"adapter-{i}" for i in range(300)]
    three = fleet(0, 0, 0)
    homes = {name: by_affinity(three, name)[0].name for name in names}
    assert all(70 < list(homes.values()).count(one.name) < 130 for one in three)
    for name in names:
        left = by_affinity(three[:2], name)[0].name
        assert left == homes[name] or homes[name] == "http://replica-2"


def test_what_leaves_a_full_home_spreads_over_all_others():
    """Not to one neighbour, which would be the next to be full."""
    fifty = fleet(*[0] * 50)
    order = [[one.name for one in by_affinity(fifty, f"adapter-{i}")[:2]] for i in range(3000)]
    seconds = [second for first, second in order if first == "http://replica-7"]
    assert len(set(seconds)) > 30
    assert max(map(seconds.count, seconds)) < len(seconds) / 5


def test_a_thousand_replicas_are_ordered_in_a_few_milliseconds():
    many = fleet(*range(1000), adapters={3: {"sql"}}, maximum=2000)
    started = time.process_time()
    for i in range(20):
        by_affinity(many, f"adapter-{i}")
    assert (time.process_time() - started) / 20 < 0.01  # 1 ms, if nothing else runs
