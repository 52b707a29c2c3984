"""Measured figures, their targets, and how both are printed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.output import table
from benchmarks.routing.rivals import Answers

RETENTION = 0.95


class Bar(NamedTuple):
    """The target range of a figure; None where it is open."""

    low: float | None = None
    high: float | None = None

    def reached(self, value: float) -> bool:
        """Whether a figure lies in it."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return f">= {self.low:g}" if self.low is not None else f"<= {self.high:g}"


ROUTER, SHIPPED, WITH_NEGATIVES = "router", "router, shipped negatives", "router, 100 negatives"
_RETENTION, _ECE = Bar(93, 97), Bar(high=0.035)
BARS: Mapping[tuple[str, str], Mapping[str, Bar]] = {
    ("150 routes, all", ROUTER): {"accuracy": Bar(92.5), "AUROC": Bar(96.0), "OOS recall": Bar(80)},
    ("10 domains, all", ROUTER): {"accuracy": Bar(97.0), "AUROC": Bar(95.5), "OOS recall": Bar(82)},
    ("150 routes, 5 each", ROUTER): {"accuracy": Bar(76.5), "retention": _RETENTION},
    ("150 routes, 10 each", ROUTER): {"accuracy": Bar(82.5), "retention": _RETENTION, "ECE": _ECE},
    ("150 routes, 20 each", ROUTER): {"accuracy": Bar(87.0), "retention": _RETENTION, "ECE": _ECE},
    ("10 domains, 10 each", ROUTER): {"accuracy": Bar(75), "AUROC": Bar(83)},
    ("10 domains, 10 each", WITH_NEGATIVES): {"AUROC": Bar(86)},
    ("150 routes x 10", SHIPPED): {"p50 ms": Bar(high=0.25), "p99 ms": Bar(high=0.6), "file MB": Bar(high=2)},
    ("1,000 routes x 10", SHIPPED): {
        "p50 ms": Bar(high=0.6),
        "p99 ms": Bar(high=1.5),
        "fit s": Bar(high=15),
        "add s": Bar(high=0.1),
        "file MB": Bar(high=15),
    },
    ("10 routes added to 140", SHIPPED): {"difference": Bar(-0.3, 0.3)},
    ("English", SHIPPED): {"retention": Bar(92, 98)},
    ("Russian", SHIPPED): {"retention": Bar(92, 98)},
    ("25 words of filler", SHIPPED): {"loss": Bar(high=5)},
    ("one typo", SHIPPED): {"loss": Bar(high=6)},
    ("four shipped adapters", SHIPPED): {"right adapter": Bar(97), "OOS to base": Bar(90)},
    ("150 routes, 10 each", "router, base's embeddings"): {"accuracy": Bar(86.5)},
}
"""Setting and contender -> measure -> target."""


@dataclass
class Figures:
    """The figures of one part.

    Attributes:
        part: Its name.
        values: Setting and contender -> measure -> one value for each draw.
    """

    part: str
    values: dict[tuple[str, str], dict[str, list[float]]] = field(default_factory=dict)

    def add(self, setting: str, contender: str, found: Mapping[str, float]) -> None:
        """Adds the values of one draw."""
        own = self.values.setdefault((setting, contender), {})
        for measure, value in found.items():
            own.setdefault(measure, []).append(float(value))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row for each figure, with its bar if it has one."""
        found = []
        for (setting, contender), measures in self.values.items():
            for measure, values in measures.items():
                bar, mean = BARS.get((setting, contender), {}).get(measure), statistics.fmean(values)
                found.append(
                    {
                        "part": self.part,
                        "setting": setting,
                        "contender": contender,
                        "measure": measure,
                        "mean": mean,
                        "draws": values,
                        "bar": str(bar) if bar else None,
                        "reached": bar.reached(mean) if bar else None,
                    }
                )
        return found

    def show(self) -> None:
        """Prints all means, then those that have a target, with it."""
        measures = list(dict.fromkeys(measure for own in self.values.values() for measure in own))
        print(f"\n{self.part}\n")
        table(
            ["", "", *measures],
            [
                [setting, contender, *(_mean(own.get(measure)) for measure in measures)]
                for (setting, contender), own in self.values.items()
            ],
        )
        barred = [row for row in self.rows if row["bar"]]
        if barred:
            print()
            table(
                ["", "", "", "measured", "draws", "bar", ""],
                [
                    [
                        *(row[key] for key in ("setting", "contender", "measure")),
                        shown(row["mean"]),
                        f"{shown(min(row['draws']))} to {shown(max(row['draws']))}",
                        row["bar"],
                        "reached" if row["reached"] else "MISSED",
                    ]
                    for row in barred
                ],
            )


def shown(value: float) -> str:
    """A figure with its significant digits."""
    return f"{value:.1f}" if abs(value) >= 5 else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def _mean(values: Sequence[float] | None) -> str:
    return shown(statistics.fmean(values)) if values else ""


def three(truth: Sequence[str], inside: Answers, outside: Answers) -> dict[str, float]:
    """Accuracy, AUROC and out-of-scope recall of any contender, in %.

    Args:
        truth: The right routes of the requests in scope (n).
        inside: The answers to them (n).
        outside: The answers to requests for no route (m).
    """
    right = [best == wanted for best, wanted in zip(inside.best, truth, strict=True)]
    labels = np.repeat([1, 0], [len(inside.sure), len(outside.sure)])
    threshold = np.quantile(inside.sure, 1 - RETENTION)
    return {
        "accuracy": 100 * float(np.mean(right)),
        "AUROC": 100 * float(roc_auc_score(labels, np.concatenate([inside.sure, outside.sure]))),
        "OOS recall": 100 * float((outside.sure < threshold).mean()),
    }
