"""The simulated fleet: against queueing theory, by hand on small cases, and affinity against random routing."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from benchmarks.fleet_simulation import charts
from benchmarks.fleet_simulation.__main__ import main
from benchmarks.fleet_simulation.planning import fewest
from benchmarks.fleet_simulation.policies import POLICIES
from benchmarks.fleet_simulation.replica import ReplicaLimits, SimulatedRequest
from benchmarks.fleet_simulation.service_times import ServiceTimes, fit, record, recorded, recorded_names
from benchmarks.fleet_simulation.simulation import figures, simulate
from benchmarks.fleet_simulation.workload import Trace, Workload, draw

STEP = ServiceTimes(step=1.0, row=0.0, adapter=0.0, prefill_token=0.0, slot_load=0.0, disk_load=0.0)
"""A step takes a second, and nothing else takes time."""
GPU_LIKE = ServiceTimes(
    step=0.02, row=0.0005, adapter=0.0002, prefill_token=0.00005, slot_load=0.005, disk_load=0.1
)


def one_replica(trace: Trace, times: ServiceTimes, **limits: int) -> list[SimulatedRequest]:
    return simulate(trace, replicas=1, policy="affinity", times=times, limits=ReplicaLimits(**limits))


def trace(*requests: tuple[float, int, int], prompt_tokens: int = 1) -> Trace:
    """Requests as (arrival, adapter, output tokens)."""
    at, adapter, tokens = (list(column) for column in zip(*requests, strict=True))
    return Trace(at, adapter, tokens, prompt_tokens, [f"a{number}" for number in range(max(adapter) + 1)])


def mean_wait(requests: list[SimulatedRequest], service: Callable[[SimulatedRequest], float]) -> float:
    return float(np.mean([one.end - one.at - service(one) for one in requests[len(requests) // 10 :]]))


# Against theory


def test_one_server_with_equal_service_times_is_md1():
    """Mean wait of M/D/1: rho * service / (2 * (1 - rho))."""
    service, rate = 2.0, 0.4
    workload = Workload(
        adapters=1, rate=rate, requests=30_000, prompt_tokens=1, output_tokens=2, fixed_output=True
    )
    done = one_replica(draw(workload, 1), STEP, max_num_seqs=1, max_in_flight=10_000)
    expected = rate * service * service / (2 * (1 - rate * service))
    assert mean_wait(done, lambda one: service) == pytest.approx(expected, rel=0.06)


def test_one_server_with_geometric_service_times_follows_pollaczek_and_khinchine():
    """Mean wait of M/G/1: rate * E[service^2] / (2 * (1 - rho)), near M/M/1 for answers of many steps."""
    tokens, rate = 20, 0.03
    workload = Workload(adapters=1, rate=rate, requests=40_000, prompt_tokens=1, output_tokens=tokens)
    done = one_replica(draw(workload, 2), STEP, max_num_seqs=1, max_in_flight=10_000)
    second_moment = tokens * (2 * tokens - 1)  # of a geometric distribution
    expected = rate * second_moment / (2 * (1 - rate * tokens))
    assert mean_wait(done, lambda one: one.output_tokens) == pytest.approx(expected, rel=0.08)


def test_a_trace_has_the_workloads_rate_lengths_and_popularity():
    workload = Workload(adapters=50, rate=7.0, requests=40_000, zipf=1.2, output_tokens=16)
    drawn = draw(workload, 3)
    assert len(drawn) / drawn.at[-1] == pytest.approx(7.0, rel=0.03)
    assert np.mean(drawn.output_tokens) == pytest.approx(16, rel=0.03)
    assert min(drawn.output_tokens) == 1
    assert drawn.adapter.count(0) / len(drawn) == pytest.approx(workload.popularity[0], rel=0.05)
    assert drawn.adapter.count(0) / drawn.adapter.count(1) == pytest.approx(2**1.2, rel=0.1)


def test_bursts_keep_the_mean_rate():
    even, bursty = (
        draw(Workload(adapters=1, rate=50.0, requests=50_000, burst=burst), 4) for burst in (1, 8)
    )
    assert bursty.at[-1] == pytest.approx(even.at[-1], rel=0.03)
    busy, quiet = (
        [sum(begin <= at % 10 < end for at in one.at) / len(one) for one in (even, bursty)]
        for begin, end in ((0, 1), (1, 10))
    )
    assert busy == [pytest.approx(0.1, rel=0.05), pytest.approx(8 / 17, rel=0.05)]
    assert quiet[1] == pytest.approx(9 / 17, rel=0.05)


# By hand


def test_requests_share_steps():
    first, second = one_replica(trace((0.0, 0, 3), (0.5, 0, 2)), STEP)
    assert (first.first_token, first.end) == (1.0, 3.0)
    assert (second.first_token, second.end) == (2.0, 3.0)  # it joins after the step that ran when it came


def test_an_arrival_ends_a_run_of_steps_at_the_next_boundary():
    long, late = one_replica(trace((0.0, 0, 100), (41.3, 0, 1)), STEP)
    assert (long.end, late.first_token) == (100.0, 43.0)


def test_a_full_batch_waits_for_a_row():
    done = one_replica(trace((0.0, 0, 5), (0.0, 0, 9), (0.1, 0, 1)), STEP, max_num_seqs=2)
    assert [one.end for one in done] == [5.0, 10.0, 6.0]


def test_prompts_and_rows_take_their_time():
    times = ServiceTimes(step=1.0, row=0.1, adapter=0.01, prefill_token=0.001, slot_load=0.5, disk_load=3.0)
    (one,) = one_replica(trace((0.0, 0, 3), prompt_tokens=100), times)
    prefill, decode = 1.0 + 0.1 + 0.01 + 0.1, 1.0 + 0.1 + 0.01
    assert one.first_token == pytest.approx(3.0 + 0.5 + prefill)
    assert one.end == pytest.approx(one.first_token + 2 * decode)
    assert (one.disk_load, one.slot_hit) == (True, False)


def test_prompts_beyond_the_token_budget_wait_a_step():
    done = one_replica(
        trace((0.0, 0, 1), (0.0, 0, 1), (0.0, 0, 1), prompt_tokens=40),
        replace(STEP, disk_load=0.5),
        max_num_batched_tokens=80,
    )
    assert [one.first_token for one in done] == [1.5, 1.5, 2.5]


def test_reading_from_disk_goes_on_beside_steps_or_stops_them():
    beside = replace(STEP, disk_load=10.0)
    requests = trace((0.0, 0, 40), (15.0, 1, 1))
    running, new = one_replica(requests, beside)
    assert (running.end, new.first_token) == (50.0, 26.0)
    running, new = one_replica(requests, replace(beside, disk_load_stops_steps=True))
    assert (running.first_token, running.end, new.first_token) == (11.0, 60.0, 26.0)


def test_one_slot_alternates_where_many_slots_batch():
    requests = trace(*((0.0, number % 4, 10) for number in range(8)))
    alone = one_replica(requests, STEP, max_loras=1)
    together = one_replica(requests, STEP, max_loras=4)
    assert max(one.end for one in together) == pytest.approx(11.0, abs=1.0)
    assert max(one.end for one in alone) == pytest.approx(40.0, abs=4.0)
    assert sum(one.slot_hit for one in together) == 4


def test_the_least_recently_used_adapter_leaves_its_slot():
    done = one_replica(
        trace(*((100.0 * i, adapter, 1) for i, adapter in enumerate([0, 1, 0, 2, 0, 1]))), STEP, max_loras=2
    )
    assert [one.slot_hit for one in done] == [False, False, True, False, True, False]


def test_host_memory_holds_so_many_adapters():
    done = one_replica(
        trace(*((100.0 * i, adapter, 1) for i, adapter in enumerate([0, 1, 0, 2, 0, 1]))),
        STEP,
        max_cpu_loras=2,
    )
    assert [one.disk_load for one in done] == [True, True, False, True, False, True]


def test_a_cold_adapter_is_bypassed_only_so_often():
    """Hot requests keep the only slot busy; after 4 * max_num_seqs of them nothing more starts before the cold one."""
    hot = [(0.5 * number, 0, 4) for number in range(400)]
    done = one_replica(
        trace((0.0, 0, 4), (0.2, 1, 1), *hot[1:]), STEP, max_loras=1, max_num_seqs=8, max_in_flight=1000
    )
    cold = next(one for one in done if one.adapter == "a1")
    before = sum(one.first_token < cold.first_token for one in done)
    assert 32 <= before <= 48


def test_a_full_replica_refuses():
    done = one_replica(trace(*((0.0, 0, 5) for _ in range(6))), STEP, max_in_flight=4)
    assert [one.replica is None for one in done] == [False] * 4 + [True] * 2
    assert figures(done, warm_up=0).refused == pytest.approx(1 / 3)


# Fleets


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_ends_once(policy: str):
    requests = draw(Workload(adapters=300, rate=300.0, requests=3000, burst=5), 5)
    done = simulate(
        requests, replicas=4, policy=policy, times=GPU_LIKE, limits=ReplicaLimits(max_in_flight=48)
    )
    taken = [one for one in done if one.replica is not None]
    assert 0 < len(taken) < len(done) == 3000  # overloaded: some are refused
    assert all(one.at < one.first_token <= one.end < math.inf for one in taken)
    assert all(math.isnan(one.end) for one in done if one.replica is None)
    assert {one.replica for one in taken} == {f"replica-{number}" for number in range(4)}


@pytest.mark.parametrize("policy", POLICIES)
def test_one_seed_gives_one_result(policy: str):
    def run(seed: int) -> dict[str, float]:
        requests = draw(Workload(adapters=100, rate=60.0, requests=1000), seed)
        return asdict(figures(simulate(requests, replicas=3, policy=policy, times=GPU_LIKE, seed=seed)))

    assert run(1) == run(1) != run(2)


def test_affinity_at_least_halves_the_loads_of_random_routing():
    """3 replicas, 200 adapters, 2,000 requests, from a fifth of what they can do to most of it."""
    for rate in (20.0, 40.0, 60.0):
        requests = draw(Workload(adapters=200, rate=rate, requests=2000), 6)
        loads = {
            policy: sum(
                one.disk_load for one in simulate(requests, replicas=3, policy=policy, times=GPU_LIKE)
            )
            for policy in ("random", "affinity")
        }
        assert loads["affinity"] <= loads["random"] / 2


def test_a_popular_adapter_spreads_and_sticky_hashing_does_not():
    requests = draw(Workload(adapters=1, rate=100.0, requests=2000), 7)
    homes = {
        policy: {one.replica for one in simulate(requests, replicas=4, policy=policy, times=GPU_LIKE)}
        - {None}
        for policy in ("affinity", "sticky")
    }
    assert len(homes["affinity"]) == 4
    assert len(homes["sticky"]) == 1


def test_the_warm_up_is_left_out():
    done = one_replica(trace(*((10.0 * number, 0, 1) for number in range(10))), STEP)
    assert figures(done, warm_up=0).loads_per_request == pytest.approx(0.1)
    assert figures(done, warm_up=0.2).loads_per_request == 0
    assert figures(done, warm_up=0.2).requests == 8


def test_a_warm_up_may_load_in_no_time():
    times = replace(STEP, disk_load=10.0)
    requests = trace(*((100.0 * number, number, 1) for number in range(4)))
    done = simulate(requests, replicas=1, policy="affinity", times=times, free_loads=0.5)
    assert [one.end - one.at for one in done] == [1.0, 1.0, 11.0, 11.0]


# Service times


def test_a_replica_that_restarts_reads_its_adapters_again_and_takes_nothing_meanwhile():
    asked = trace(*((float(second), 0, 1) for second in range(200)))
    done = simulate(asked, replicas=1, policy="affinity", times=STEP, restart_seconds=20.0)
    away = [one for one in done if one.replica is None]
    assert 3 <= len(away) < 100  # three seconds each time
    reads = sum(one.disk_load for one in done)
    assert 1 < reads <= 1 + len(away) / 2
    assert all(one.end >= one.at + 1 for one in done if one.replica)


@pytest.mark.parametrize("policy", POLICIES)
def test_requests_end_once_while_replicas_restart(policy: str):
    asked = draw(Workload(adapters=60, rate=30.0, requests=1500), 5)
    done = simulate(asked, replicas=4, policy=policy, times=GPU_LIKE, restart_seconds=10.0)
    taken = [one for one in done if one.replica]
    assert len(taken) > 1200
    assert all(one.at < one.first_token <= one.end for one in taken)


def test_a_fit_finds_what_steps_are_made_of():
    steps = {(rows, count): 5.0 + 0.5 * rows + 0.25 * count for rows in (1, 8, 32) for count in (1, rows)}
    found, off = fit(steps)
    assert found == pytest.approx((5.0, 0.5, 0.25))
    assert off == 0
    assert fit({(1, 0): 3.0, (2, 0): 4.0})[0] == pytest.approx((2.0, 1.0, 0.0))


def test_what_measures_below_nothing_is_nothing():
    (step, row, adapter), _ = fit({(1, 1): 1.0, (8, 1): 1.7, (8, 8): 1.6, (32, 1): 4.1, (32, 32): 4.0})
    assert adapter == 0
    assert step > 0 < row


def test_recorded_times_come_back(tmp_path):
    file = tmp_path / "times.json"
    record("one", GPU_LIKE, {"processor": "a fast one"}, file)
    record("two", replace(GPU_LIKE, step=0.5, disk_load_stops_steps=True), {}, file)
    assert recorded("one", file) == GPU_LIKE
    assert recorded("two", file).disk_load_stops_steps is True
    assert recorded_names(file) == ["one", "two"]


@pytest.mark.parametrize("name", recorded_names())
def test_times_that_ship_say_where_they_come_from(name: str):
    times = recorded(name)
    assert times.step > 0 <= min(times.row, times.adapter, times.slot_load)
    assert times.merged.step_seconds(8, 8) <= times.step_seconds(8, 8)


# The command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    main([*arguments, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_compare(capsys):
    sizes = ["--requests", "500", "--rate", "30", "--replicas", "2", "5", "--policies", "random", "affinity"]
    found = run(capsys, "compare", *sizes)
    assert [(one["replicas"], one["policy"]) for one in found["found"]] == [
        (2, "random"),
        (2, "affinity"),
        (5, "random"),
        (5, "affinity"),
    ]
    assert all(one["requests"] == 400 and one["first_token_p50"] > 0 for one in found["found"])
    assert "processor" in json.dumps(found["service_times"])
    main(["compare", *sizes])
    assert "loads/request" in capsys.readouterr().out


def test_another_time_of_loading_is_taken(capsys):
    sizes = ["--requests", "400", "--rate", "10", "--policies", "random"]
    near = run(capsys, "compare", *sizes, "--disk-load", "0.001")["found"][0]
    far = run(capsys, "compare", *sizes, "--disk-load", "2")["found"][0]
    assert near["first_token_p95"] < 1 < far["first_token_p95"]


def test_a_warm_fleet_loads_less_and_one_that_restarts_more(capsys):
    sizes = ["--requests", "1000", "--rate", "20", "--policies", "affinity", "--seed", "1"]
    cold, warm, restarting = (
        run(capsys, "compare", *sizes, *more)["found"][0]["loads_per_request"]
        for more in ([], ["--warm", "0.5"], ["--warm", "0.5", "--restart-seconds", "10"])
    )
    assert warm < cold
    assert warm < restarting


def test_plan(capsys):
    sizes = ["--requests", "1000", "--rate", "40", "--adapters", "5", "--first-token", "0.2", "--merged"]
    found = run(capsys, "plan", *sizes)["replicas"]
    assert 1 <= found["affinity"] <= found["random"] <= found["merged"]
    assert found["merged"] >= 5  # one model on each
    main(["plan", *sizes])
    assert "replicas" in capsys.readouterr().out


@pytest.mark.parametrize("needed", [1, 2, 3, 5, 8, 13, 100])
def test_the_fewest_that_are_enough(needed: int):
    assert fewest(lambda count: count >= needed, 100) == needed


def test_no_number_may_be_enough():
    assert fewest(lambda count: False, 100) is None


def test_charts(tmp_path, capsys):
    charts.main([str(tmp_path), "--most", "1", "--requests", "10", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"slots", "adapters", "replicas"}
    assert found["replicas"]["affinity"]["1"] == found["replicas"]["random"]["1"]  # of one there is no choice
    names = ["scaling-adapters.svg", "scaling-replicas.svg", "scaling-slots.svg"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert all(file.read_text().startswith("<svg") for file in tmp_path.iterdir())


@pytest.mark.slow
def test_real_engines_do_what_was_predicted(capsys):
    """What does not depend on how busy the machine is: loads, and that every request is answered."""
    from benchmarks.fleet_simulation import validating  # which imports torch

    sizes = ["--replicas", "2", "--requests", "20", "--adapters", "6", "--rate", "8", "--tokens", "3"]
    validating.main([*sizes, "--policies", "affinity", "--max-cpu-loras", "6", "--json"])
    found = {one["figure"]: one for one in json.loads(capsys.readouterr().out)["found"]}
    assert found["loads_per_request"]["measured"] == pytest.approx(
        found["loads_per_request"]["predicted"], abs=0.1
    )
    assert found["refused"]["measured"] == found["refused"]["predicted"] == 0
    assert found["first_token_p50"]["measured"] > 0.08  # a step
