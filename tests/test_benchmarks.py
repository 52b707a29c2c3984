"""Each benchmark runs, on the smallest shape, and says what it is to say."""

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import adapter_load, decode_step, memory, serving
from benchmarks.common import in_turn, parser, ratio
from benchmarks.traffic import Arrival, Clock, summary

TINY = ["--shape", "tiny", "--rank", "4"]
Run = Callable[..., dict[str, Any]]

# PEFT and transformers warn about what a benchmark cannot change.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def run(capsys) -> Run:
    def run(main: Callable[[list[str]], None], *arguments: str) -> dict[str, Any]:
        main([*TINY, *arguments, "--json"])
        return json.loads(capsys.readouterr().out)

    return run


def test_decode_step(run: Run):
    found = run(
        decode_step.main,
        "--rows",
        "2",
        "--adapters",
        "1",
        "2",
        "--rounds",
        "3",
        "--prompt",
        "8",
        "--quantization",
        "none",
    )
    contenders = {(one["contender"], one["adapters"]) for one in found["steps"]}
    assert {
        (decode_step.BASE, 0),
        (decode_step.FRESH, 0),
        (decode_step.IDLE, 0),
        (decode_step.CONTINUOUS, 0),
    } < contenders
    assert {(decode_step.OURS, 1), (decode_step.OURS, 2), (decode_step.PEFT_MIXED, 2)} < contenders
    assert all(one["milliseconds"] > 0 and one["over_base"] > 0 for one in found["steps"])
    assert {one["over_base"] for one in found["steps"] if one["contender"] == decode_step.BASE} == {1.0}
    assert found["machine"]["versions"]["torch"]


def test_operations_do_not_grow_with_the_adapters(run: Run):
    found = run(decode_step.main, "--rows", "4", "--adapters", "4", "--rounds", "2", "--prompt", "8")
    ours, peft = found["operations"][decode_step.OURS], found["operations"][decode_step.PEFT_MIXED]
    # Whether rows must be put in order once more for their logits depends on how they stand: a few operations a step.
    assert abs(ours["2"] - ours["4"]) <= 4
    assert ours["4"] < peft["4"]
    assert peft["1"] < peft["2"] < peft["4"]


def test_serving(run: Run):
    found = run(
        serving.main,
        *("--adapters", "2", "--overload", "1", "4", "--slots", "2", "--rows", "2"),
        *("--requests", "6", "--rate", "50", "--clock", "cpu", "--tokens", "3", "--prompt", "4"),
    )
    served = {one["contender"]: one for one in found["served"]}
    assert set(served) == {"base", "ours", "peft-grouped", "peft-switching"}
    assert all(one["tokens_per_second"] > 0 for one in served.values())
    assert all(
        0 < one["first_token_p50"] < one["latency_p50"] <= one["latency_p99"] for one in served.values()
    )
    few, many = found["overload"]
    assert (few["evictions"], few["loads"]) == (0, 1)
    assert many["evictions"] > 0
    assert many["peak_mib"] >= many["engine_mib"] > 0


def test_adapter_load(run: Run):
    found = run(adapter_load.main, "--adapters", "1", "2", "--rounds", "3")
    assert set(found["switch"]) == {"1", "2"}
    assert found["switch"]["2"]["ours"] < found["switch"]["2"]["PEFT"]
    ours = found["load"]["ours"]
    assert set(ours) == {"in its slot", "in host memory", "on disk, cached", "on disk", "evict"}
    assert set(found["load"]["PEFT, 2 loaded"]) == {"in its slot", "on disk, cached", "on disk", "evict"}


def test_memory(run: Run):
    found = run(memory.main, "--adapters", "1", "4", "--slots", "2", "--host", "3", "--rows", "2")[
        "mebibytes"
    ]
    sizes = {(one["contender"], one["adapters"]): one for one in found}
    assert sizes["ours", 1]["slots"] == sizes["ours", 4]["slots"]  # as many slots, whatever is in them
    assert sizes["PEFT", 4]["slots"] == pytest.approx(4 * sizes["PEFT", 1]["slots"])
    assert sizes["ours", 4]["slots"] == pytest.approx(2 * sizes["PEFT", 1]["slots"])
    assert sizes["ours", 4]["host"] == pytest.approx(3 * sizes["ours", 1]["host"])


def test_a_table_is_printed(capsys):
    memory.main([*TINY, "--adapters", "1", "--rows", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"tiny, nf4, cpu; .+ threads", lines[0])
    assert lines[1].split()[:2] == ["adapters", "contender"]


def test_contenders_take_turns_and_the_first_round_is_dropped():
    calls: list[str] = []
    options = parser("").parse_args(["--rounds", "3"])
    times = in_turn({name: lambda name=name: calls.append(name) for name in "ab"}, options)
    assert calls == list("ababab")
    assert [len(taken) for taken in times.values()] == [2, 2]


def test_a_ratio_is_taken_round_by_round():
    assert ratio([2.0, 20.0, 200.0], [1.0, 10.0, 200.0]) == 2.0


def test_throughput_counts_from_the_first_arrival_to_the_last_token():
    requests = [Arrival(1.0, None, [], first=0.5, last=1.0), Arrival(2.0, None, [], first=1.0, last=4.0)]  # type: ignore[arg-type]
    assert summary(requests, tokens=10)["tokens_per_second"] == pytest.approx(20 / 5)
    assert summary(requests, tokens=10)["latency_p50"] == pytest.approx(2.5)


def test_a_clock_of_the_process_does_not_wait():
    clock, started = Clock("cpu"), time.perf_counter()
    clock.idle_until(30.0)
    assert clock.now() >= 30.0
    assert time.perf_counter() - started < 20.0


def test_a_clock_of_the_wall_waits():
    clock, started = Clock("wall"), time.perf_counter()
    clock.idle_until(0.05)
    assert time.perf_counter() - started >= 0.05
