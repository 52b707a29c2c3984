"""Charts as SVG text: what is drawn, that it is the same each time, and that nothing of matplotlib's stays changed."""

import re
import subprocess
import sys
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib
import pytest

from adapterhub.errors import ConfigError
from adapterhub.reports import bar_chart, histogram, line_chart

SVG = "{http://www.w3.org/2000/svg}"
CHARTS: dict[str, Callable[[], str]] = {
    "line": lambda: line_chart({"train": [(1, 3.0), (2, 2.0)], "validation": [(2, 2.5)]}, title="Losses"),
    "bar": lambda: bar_chart(
        {"base": {"jokes": 20.0}, "adapter": {"jokes": 10.0}},
        intervals={"adapter": {"jokes": (9.0, 11.0)}},
        title="Perplexity",
    ),
    "histogram": lambda: histogram({"tokens": [1, 2, 2, 3]}, bins=3, title="Lengths"),
}


def texts(svg: str) -> list[str]:
    return ["".join(one.itertext()) for one in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def bars(svg: str) -> list[tuple[float, float]]:
    """The position and the height of each filled rectangle within the axes, from the left."""
    found = []
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        if re.fullmatch(r"patch_\d+", group.get("id", "")):
            path = group.find(f"{SVG}path")
            if path is not None and "clip-path" in path.attrib:
                numbers = [float(one) for one in re.findall(r"-?\d+\.?\d*", path.attrib["d"])]
                xs, ys = numbers[::2], numbers[1::2]
                found.append((min(xs), max(ys) - min(ys)))
    return [(x, height) for x, height in sorted(found)]


@pytest.mark.parametrize("draw", CHARTS.values(), ids=CHARTS)
def test_the_same_values_give_the_same_bytes_in_another_process_too(draw: Callable[[], str]):
    svg = draw()
    assert svg.startswith("<svg")
    assert svg == draw()
    name = next(name for name, one in CHARTS.items() if one is draw)
    code = f"import sys; from tests.reports.test_charts import CHARTS; sys.stdout.write(CHARTS[{name!r}]())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == svg


def test_texts_are_shown_as_they_stand():
    svg = line_chart({"a<b": [(0, 1)], "шутки 笑话": [(0, 2)]}, title="$5 & $6", x_label="x", y_label="y")
    assert {"a<b", "шутки 笑话", "$5 & $6", "x", "y"} <= set(texts(svg))


def test_the_heights_of_bars_are_the_values():
    heights = [height for _, height in bars(bar_chart({"base": {"a": 20.0, "b": 5.0}, "new": {"a": 10.0}}))]
    assert [height / heights[0] for height in heights] == pytest.approx([1.0, 0.5, 0.25], abs=1e-3)


def test_the_heights_of_a_histogram_are_the_counts():
    heights = [height for _, height in bars(histogram({"tokens": [1, 2, 2, 2, 3]}, bins=3))]
    assert [height / heights[0] for height in heights] == pytest.approx([1.0, 3.0, 1.0], abs=1e-3)


def test_values_that_are_not_finite_are_left_out():
    nan, infinity = float("nan"), float("inf")
    assert line_chart({"a": [(0, 1), (1, nan), (2, infinity), (3, 2)]}) == line_chart({"a": [(0, 1), (3, 2)]})
    assert histogram({"a": [1, nan, 2, infinity]}) == histogram({"a": [1, 2]})
    assert bar_chart({"a": {"x": infinity, "y": 1.0}}, intervals={"a": {"x": (1.0, infinity)}}) == bar_chart(
        {"a": {"x": 0.0, "y": 1.0}}
    )


def test_there_may_be_no_values():
    assert [texts(chart({}, title="None"))[-1] for chart in (line_chart, bar_chart, histogram)] == [
        "None"
    ] * 3
    assert "None" in texts(histogram({"a": []}, title="None"))


def test_the_style_of_the_process_stays_and_does_not_count():
    with matplotlib.rc_context({"lines.linewidth": 9.0, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        changed = CHARTS["line"]()
        assert dict(matplotlib.rcParams) == before
    assert changed == CHARTS["line"]()


def test_the_room_imports_matplotlib_when_it_draws_and_never_pyplot():
    code = """if True:
        import sys, adapterhub.reports
        print('matplotlib' in sys.modules)
        adapterhub.reports.line_chart({'a': [(0, 1)]})
        print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="not installed") as raised:
        line_chart({"a": [(0, 1)]})
    assert "adapterhub[train]" in raised.value.hint


def test_many_and_long_names_draw_without_a_warning():
    """Warnings are errors here. A search for a free place for the legend would give one on a busy machine."""
    long = "a name that is far too long for the picture " * 10
    assert long.strip() in " ".join(texts(bar_chart({"a": {long: 1.0}, "b": {long: 2.0}})))
    names = [f"series {number}" for number in range(30)]
    assert set(names) <= set(texts(histogram({name: [1.0, 2.0] for name in names})))


@pytest.mark.parametrize("draw", CHARTS.values(), ids=CHARTS)
def test_no_place_is_searched_for_the_legend(draw: Callable[[], str], monkeypatch: pytest.MonkeyPatch):
    from matplotlib.legend import Legend

    monkeypatch.setattr(Legend, "_find_best_position", lambda *_: pytest.fail("it takes time"))
    draw()
