"""The charts and tables of docs/scaling.md.

python -m benchmarks.fleet_simulation.charts docs/images
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from adapterhub.reports import bar_chart
from benchmarks.fleet_simulation.replica import ReplicaLimits
from benchmarks.fleet_simulation.service_times import recorded, recorded_names
from benchmarks.fleet_simulation.simulation import Figures, figures, simulate
from benchmarks.fleet_simulation.workload import Workload, draw
from benchmarks.output import progress, table

TOKENS, PROMPT = 128, 200
WARM = 0.5
"""The share of the requests that fills host memories."""
LIMITS = ReplicaLimits(max_num_seqs=64)
MIN_REPLICAS = 40
"""Fewer get the requests of so many."""
Found = dict[str, dict[str, Figures]]
"""Series -> group -> figures."""


class Charts:
    """Runs the simulations of a chart, and draws it.

    Args:
        folder: Where the charts go.
        times: The name of the service times.
        rate: Requests a second of each replica.
        requests: Of each replica; those of `MIN_REPLICAS` at the least.
        most: The largest number of replicas.
    """

    def __init__(self, folder: Path, times: str, rate: float, requests: int, most: int) -> None:
        self._folder, self._name, self._times = folder, times, recorded(times)
        self._rate, self._requests, self._most = rate, requests, most

    def replicas(self) -> Found:
        """Affinity against random from one replica to 1,000, each with a share of 100 adapters."""
        counts = [count for count in (1, 10, 100, 1000) if count <= self._most]
        found = {
            policy: {str(count): self._run(count, 100 * count, policy=policy) for count in counts}
            for policy in ("affinity", "random")
        }
        self._draw("scaling-replicas", found, "first_token_p95", "replicas", "first token, p95, s")
        return found

    def adapters(self) -> Found:
        """Affinity against random for ever more adapters on 20 replicas."""
        replicas = min(20, self._most)
        found = {
            policy: {
                f"{count:,}": self._run(replicas, count, policy=policy)
                for count in (10, 100, 1000, 10_000, 100_000)
            }
            for policy in ("affinity", "least in flight", "random")
        }
        self._draw("scaling-adapters", found, "loads_per_request", "adapters", "loads for each request")
        return found

    def slots(self) -> Found:
        """LoRA slots of one replica with 64 adapters in host memory, at three loads."""
        found: Found = {
            f"{share:.0%} of the load": {
                str(slots): self._run(
                    1, 64, rate=share * self._rate, limits=ReplicaLimits(slots, max_num_seqs=64)
                )
                for slots in (2, 4, 8, 16, 32)
            }
            for share in (0.5, 1.0, 1.5)
        }
        self._draw("scaling-slots", found, "first_token_p95", "LoRA slots", "first token, p95, s")
        return found

    def _run(
        self,
        replicas: int,
        adapters: int,
        *,
        policy: str = "affinity",
        rate: float | None = None,
        limits: ReplicaLimits = LIMITS,
    ) -> Figures:
        progress(f"{replicas} replicas, {adapters} adapters, {policy}")
        requests = self._requests * max(MIN_REPLICAS, replicas)
        workload = Workload(
            adapters, (rate or self._rate) * replicas, requests, prompt_tokens=PROMPT, output_tokens=TOKENS
        )
        done = simulate(draw(workload, 0), replicas=replicas, policy=policy, times=self._times, limits=limits)
        return figures(done, WARM)

    def _draw(self, name: str, found: Found, figure: str, x_label: str, y_label: str) -> None:
        values = {
            series: {group: getattr(one, figure) for group, one in of.items()} for series, of in found.items()
        }
        svg = bar_chart(values, x_label=x_label, y_label=y_label)
        (self._folder / f"{name}.svg").write_text(svg, encoding="utf-8")


def show(found: Mapping[str, Found]) -> None:
    """Prints the figures of all charts."""
    for name, of in found.items():
        print(f"\n{name}")
        titles = [
            "",
            "",
            "loads/request",
            "slot hits",
            "first token p50",
            "p95",
            "p99",
            "tokens/s",
            "refused",
        ]
        table(titles, list(_rows(of)))


def _rows(found: Found) -> Iterator[list[object]]:
    for series, groups in found.items():
        for group, one in groups.items():
            shown = (one.loads_per_request, one.slot_hit_rate, one.first_token_p50, one.first_token_p95)
            yield [series, group, *shown, one.first_token_p99, one.tokens_per_second, one.refused]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs, draws and prints."""
    commands = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands.add_argument("folder", type=Path, help="where the charts go")
    commands.add_argument("--times", choices=recorded_names(), default="published-8b")
    commands.add_argument("--rate", type=float, default=8.0, help="requests a second of each replica")
    commands.add_argument("--requests", type=int, default=200, help="of each replica")
    commands.add_argument("--most", type=int, default=100, help="the largest number of replicas")
    commands.add_argument("--json", action="store_true")
    options = commands.parse_args(arguments)
    charts = Charts(options.folder, options.times, options.rate, options.requests, options.most)
    found = {"slots": charts.slots(), "adapters": charts.adapters(), "replicas": charts.replicas()}
    if options.json:
        plain = {
            name: {series: {group: asdict(one) for group, one in of.items()} for series, of in chart.items()}
            for name, chart in found.items()
        }
        print(json.dumps(plain, indent=2))
        return
    show(found)


if __name__ == "__main__":
    main()
