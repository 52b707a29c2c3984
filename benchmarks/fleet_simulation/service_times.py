"""How long a replica takes for what it does, as measured and recorded in `service_times.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

Measured = dict[tuple[int, int], float]
"""(rows, adapters) -> seconds of a step."""
RECORDED = Path(__file__).with_name("service_times.json")


@dataclass(frozen=True)
class ServiceTimes:
    """Seconds of a step, and of loading an adapter.

    A step takes `step + row * rows + adapter * adapters + prefill_token * tokens` seconds: `rows` are the requests that
    run, `adapters` the different ones among theirs, `tokens` those of the prompts that are read in this step.

    Attributes:
        step: Of any step.
        row: More for each request that runs.
        adapter: More for each different adapter.
        prefill_token: More for each token of a prompt.
        slot_load: Host memory to LoRA slot; the steps wait for it.
        disk_load: Disk to host memory.
        disk_load_stops_steps: Whether steps wait for that, as vLLM's do, or a thread reads beside them, as ours.
        base_step: `step` of a replica that serves a merged model, without LoRA.
        base_row: `row` of such a replica.
    """

    step: float
    row: float
    adapter: float
    prefill_token: float
    slot_load: float
    disk_load: float
    disk_load_stops_steps: bool = False
    base_step: float = 0.0
    base_row: float = 0.0

    def step_seconds(self, rows: int, adapters: int, prefill_tokens: int = 0) -> float:
        """The seconds of one step."""
        return self.step + self.row * rows + self.adapter * adapters + self.prefill_token * prefill_tokens

    @property
    def merged(self) -> ServiceTimes:
        """Those of a replica that serves one merged model."""
        return replace(
            self, step=self.base_step, row=self.base_row, adapter=0.0, slot_load=0.0, disk_load=0.0
        )


def fit(steps: Measured) -> tuple[tuple[float, float, float], float]:
    """Least squares of the relative errors: (a step, more for a row, more for an adapter), and the largest error.

    None of the three is below 0: what measures so is 0.
    """
    taken = np.array(list(steps.values()))
    columns = np.array([[1.0, rows, count] for rows, count in steps]) / taken[:, None]
    used = [column for column in range(3) if columns[:, column].any()]
    while True:
        found = np.zeros(3)
        found[used] = np.linalg.lstsq(columns[:, used], np.ones(len(taken)), rcond=None)[0]
        if (found >= 0).all():
            break
        used.remove(int(found.argmin()))
    return (found[0], found[1], found[2]), round(float(np.abs(columns @ found - 1).max()), 3)


def recorded(name: str, file: Path = RECORDED) -> ServiceTimes:
    """Recorded times by their name; `KeyError` if there are none."""
    return ServiceTimes(**_read(file)[name]["times"])


def recorded_names(file: Path = RECORDED) -> list[str]:
    """The names under which times are recorded."""
    return list(_read(file))


def record(name: str, times: ServiceTimes, about: Mapping[str, Any], file: Path = RECORDED) -> None:
    """Records times under a name, with what is to be known about them; others stay."""
    rounded = {
        one.name: value if isinstance(value, bool) else float(f"{value:.4g}")
        for one in fields(times)
        for value in [getattr(times, one.name)]
    }
    everything = _read(file) | {name: {"about": dict(about), "times": rounded}}
    file.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


def about(name: str, file: Path = RECORDED) -> dict[str, Any]:
    """What is recorded about times, and the times."""
    entry: dict[str, Any] = _read(file)[name]
    return entry | {"times": asdict(recorded(name, file))}


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_bytes()) if file.exists() else {}
