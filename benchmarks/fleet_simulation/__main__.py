"""The command; see the package."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace

import benchmarks.fleet_simulation
from benchmarks.fleet_simulation.planning import Target, merged_replicas_for, replicas_for
from benchmarks.fleet_simulation.policies import POLICIES
from benchmarks.fleet_simulation.replica import ReplicaLimits
from benchmarks.fleet_simulation.service_times import ServiceTimes, about, recorded, recorded_names
from benchmarks.fleet_simulation.simulation import WARM_UP, Figures, figures, simulate
from benchmarks.fleet_simulation.workload import Workload, draw
from benchmarks.output import table

COLUMNS = {
    "loads/request": "loads_per_request",
    "slot hits": "slot_hit_rate",
    "first token p50 s": "first_token_p50",
    "p95": "first_token_p95",
    "p99": "first_token_p99",
    "latency p50 s": "latency_p50",
    "requests/s": "requests_per_second",
    "tokens/s": "tokens_per_second",
    "refused": "refused",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one of the commands."""
    options = _parser().parse_args(arguments)
    options.run(options)


def _parser() -> argparse.ArgumentParser:
    commands = argparse.ArgumentParser(
        description=benchmarks.fleet_simulation.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = commands.add_subparsers(required=True)
    compare = parts.add_parser("compare", help="the policies, with the same requests")
    compare.add_argument("--replicas", type=int, nargs="+", default=[3])
    compare.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    compare.add_argument(
        "--warm", type=float, default=0.0, help="share of the requests that load for nothing"
    )
    compare.add_argument("--restart-seconds", type=float, help="how long a replica lives on average")
    _fleet_options(compare)
    compare.set_defaults(run=_compare)
    plan = parts.add_parser("plan", help="the fewest replicas that are enough")
    plan.add_argument("--first-token", type=float, default=1.0, help="seconds, for 99 of 100 requests")
    plan.add_argument("--policies", nargs="+", choices=POLICIES, default=["affinity", "random"])
    plan.add_argument("--merged", action="store_true", help="also with a merged model on each replica")
    _fleet_options(plan)
    plan.set_defaults(run=_plan)
    return commands


def _fleet_options(options: argparse.ArgumentParser) -> None:
    options.add_argument("--times", choices=recorded_names(), default="demo", help="of a replica's work")
    options.add_argument(
        "--disk-load", type=float, help="seconds to read an adapter, such as from a far store"
    )
    options.add_argument("--adapters", type=int, default=200)
    options.add_argument("--rate", type=float, default=20.0, help="requests a second, of the whole fleet")
    options.add_argument("--requests", type=int, default=10_000)
    options.add_argument("--zipf", type=float, default=1.0, help="exponent of the adapters' popularity")
    options.add_argument("--burst", type=float, default=1.0, help="how many times as fast bursts are")
    options.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    options.add_argument("--tokens", type=int, default=32, help="of an answer, on average")
    options.add_argument("--seed", type=int, default=0)
    for name, value in asdict(ReplicaLimits()).items():
        options.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    options.add_argument("--json", action="store_true")


def workload_of(options: argparse.Namespace) -> Workload:
    """The workload that the options describe."""
    return Workload(
        options.adapters,
        options.rate,
        options.requests,
        options.zipf,
        options.prompt,
        options.tokens,
        burst=options.burst,
    )


def limits_of(options: argparse.Namespace) -> ReplicaLimits:
    """The sizes of a replica that the options describe."""
    return ReplicaLimits(**{name: getattr(options, name) for name in asdict(ReplicaLimits())})


def times_of(options: argparse.Namespace) -> ServiceTimes:
    """The service times that the options name, with another time of loading if they give one."""
    times = recorded(options.times)
    return times if options.disk_load is None else replace(times, disk_load=options.disk_load)


def _compare(options: argparse.Namespace) -> None:
    trace = draw(workload_of(options), options.seed)
    times, limits = times_of(options), limits_of(options)
    found = {
        (count, policy): figures(
            simulate(
                trace,
                replicas=count,
                policy=policy,
                times=times,
                limits=limits,
                seed=options.seed,
                free_loads=options.warm,
                restart_seconds=options.restart_seconds,
            ),
            max(options.warm, WARM_UP),
        )
        for count in options.replicas
        for policy in options.policies
    }
    if options.json:
        rows = [
            {"replicas": count, "policy": policy, **asdict(one)} for (count, policy), one in found.items()
        ]
        print(
            json.dumps(
                {"options": _asked(options), "service_times": about(options.times), "found": rows}, indent=2
            )
        )
        return
    for count in options.replicas:
        print(
            f"\n{count} replicas, {options.adapters} adapters, {options.rate:g} requests/s, {options.times}"
        )
        table(["", *COLUMNS], [[policy, *_row(found[count, policy])] for policy in options.policies])


def _plan(options: argparse.Namespace) -> None:
    workload, target = workload_of(options), Target(options.first_token)
    times, limits = times_of(options), limits_of(options)
    trace = draw(workload, options.seed)
    found = {
        policy: replicas_for(trace, target, policy=policy, times=times, limits=limits)
        for policy in options.policies
    }
    counts = {policy: one[0] if one else None for policy, one in found.items()}
    if options.merged:
        counts["merged"] = merged_replicas_for(
            workload, target, times=times, limits=limits, seed=options.seed
        )
    if options.json:
        print(json.dumps({"options": _asked(options), "replicas": counts}, indent=2))
        return
    print(f"99 of 100 first tokens within {options.first_token:g} s: {options.adapters} adapters, ", end="")
    print(f"{options.rate:g} requests/s, {options.times}")
    rows = [
        [policy, count, *(_row(found[policy][1]) if found.get(policy) else [])]
        for policy, count in counts.items()
    ]
    table(["", "replicas", *COLUMNS], [[*row, *[None] * (2 + len(COLUMNS) - len(row))] for row in rows])


def _asked(options: argparse.Namespace) -> dict[str, object]:
    return {name: value for name, value in vars(options).items() if name != "run"}


def _row(one: Figures) -> list[float]:
    return [getattr(one, name) for name in COLUMNS.values()]


if __name__ == "__main__":
    main()
