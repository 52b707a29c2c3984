"""Charts as SVG text, drawn by matplotlib.

The same values give the same bytes. Texts stay texts, so that a picture can be searched, and needs no font of ours.
They are taken as they stand: `$` begins no formula.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from adapterhub.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Interval = tuple[float, float]
Point = tuple[float, float]

_STYLE = {
    "svg.hashsalt": "adapterhub",  # else ids are random
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "figure.constrained_layout.use": True,
}
_LEGEND_COLUMNS = 3
_STYLE_LOCK = Lock()  # matplotlib reads its style from one place for all threads


def line_chart(
    series: Mapping[str, Sequence[Point]], *, title: str = "", x_label: str = "", y_label: str = ""
) -> str:
    """Draws lines, such as the losses of a run.

    Args:
        series: The (x, y) points of each line, under its name in the legend; points that are not finite are left out.
        title: Above the chart.
        x_label: Below the x axis.
        y_label: Beside the y axis.

    Returns:
        An `<svg>` element.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    with _chart(title, x_label, y_label) as (axes, svg):
        for name, points in series.items():
            finite = [point for point in points if all(map(math.isfinite, point))]
            marker = "o" if len(finite) == 1 else ""  # a line of one point would be invisible
            axes.plot([x for x, _ in finite], [y for _, y in finite], label=name, marker=marker)
        _legend(axes, series)
    return svg.getvalue()


def bar_chart(
    values: Mapping[str, Mapping[str, float]],
    *,
    intervals: Mapping[str, Mapping[str, Interval]] | None = None,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
) -> str:
    """Draws bars side by side, such as the perplexity of base and adapter.

    Args:
        values: For each series, under its name in the legend, the height of the bar of each group.
        intervals: The lower and upper end of the interval of some or all bars, under the same names.
        title: Above the chart.
        x_label: Below the x axis.
        y_label: Beside the y axis.

    Returns:
        An `<svg>` element.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    groups = list(dict.fromkeys(group for bars in values.values() for group in bars))
    width = 0.8 / max(1, len(values))
    with _chart(title, x_label, y_label) as (axes, svg):
        for position, (name, bars) in enumerate(values.items()):
            ends = (intervals or {}).get(name, {})
            places = [groups.index(group) + (position + 0.5) * width - 0.4 for group in bars]
            heights = [value if math.isfinite(value) else 0.0 for value in bars.values()]
            axes.bar(places, heights, width, label=name)
            for place, group in zip(places, bars, strict=True):
                if group in ends and all(map(math.isfinite, ends[group])):
                    axes.vlines(place, *ends[group], color="black", linewidth=1)
        axes.set_xticks(range(len(groups)), groups)
        axes.grid(axis="x", visible=False)
        _legend(axes, values)
    return svg.getvalue()


def histogram(
    values: Mapping[str, Sequence[float]],
    *,
    bins: int = 40,
    title: str = "",
    x_label: str = "",
    y_label: str = "count",
) -> str:
    """Draws how often values occur, such as the lengths of records.

    Args:
        values: The values of each series, under its name in the legend; those that are not finite are left out. All
            series have the same bins.
        bins: The number of bins.
        title: Above the chart.
        x_label: Below the x axis.
        y_label: Beside the y axis.

    Returns:
        An `<svg>` element.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    finite = {name: [one for one in series if math.isfinite(one)] for name, series in values.items()}
    everything = [one for series in finite.values() for one in series]
    with _chart(title, x_label, y_label) as (axes, svg):
        for name, series in finite.items():
            ends = (min(everything), max(everything)) if everything else (0.0, 1.0)
            axes.hist(series, bins, range=ends, label=name, alpha=0.6 if len(finite) > 1 else 1.0)
        _legend(axes, values)
    return svg.getvalue()


@contextmanager
def _chart(title: str, x_label: str, y_label: str) -> Iterator[tuple[Axes, io.StringIO]]:
    """The axes to draw on, and where the SVG text is once the block has ended."""
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise ConfigError(
            f"Pictures need the package {missing.name!r}, which is not installed.",
            hint='pip install "adapterhub[train]"',
        ) from missing
    svg = io.StringIO()
    with _STYLE_LOCK, style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # only their widths are guessed
        warnings.filterwarnings("ignore", "constrained_layout not applied")  # names too long for any layout
        figure = Figure(figsize=(7.2, 3.6))
        axes = figure.subplots()
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        yield axes, svg
        figure.savefig(svg, format="svg", metadata={"Date": None})
        # The XML declaration and the document type have no place within HTML, and a file does without.
        text = svg.getvalue()
        svg.seek(0)
        svg.truncate()
        svg.write(text[text.index("<svg") :])


def _legend(axes: Axes, series: Mapping[str, object]) -> None:
    """Above the chart: to look for a free place in it takes time, and matplotlib warns after a second."""
    if len(series) > 1:
        columns = min(len(series), _LEGEND_COLUMNS)
        axes.figure.legend(loc="outside upper right", ncols=columns, frameon=False)
