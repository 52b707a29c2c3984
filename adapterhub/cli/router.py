"""`adapterhub router`: fitting, measuring and teaching what chooses the adapter for a request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import output
from adapterhub.cli.options import SuggestingGroup, json_option, open_registry, registry_option
from adapterhub.cli.routes import current_router, warn, warn_of_routes

if TYPE_CHECKING:
    from adapterhub.cli.labels import Labelled
    from adapterhub.registry import AdapterRegistry
    from adapterhub.routing.classifier.model import RouterModel

_file = click.Path(exists=True, dir_okay=False, path_type=Path)
_new_file = click.Path(dir_okay=False, path_type=Path)


@click.group(cls=SuggestingGroup)
def router() -> None:
    """Fit, measure and teach the router, which chooses the adapter for a request.

    \b
    Examples:
      adapterhub router fit
      adapterhub router eval requests.jsonl
      adapterhub router report router.html
      adapterhub router learn corrections.jsonl
    """


@router.command()
@click.option("--out", type=_new_file, help="Where to save it.  [default: in the registry]")
@click.option(
    "--retention",
    type=click.FloatRange(0, 1, min_open=True),
    help="The share of requests for some adapter that shall not be sent to the base.  [default: 0.95]",
)
@click.option(
    "--precision",
    type=click.FloatRange(0, 1, min_open=True),
    help="Instead: the share of the requests sent to an adapter that shall be right.",
)
@registry_option
@json_option
def fit(
    out: Path | None, retention: float | None, precision: float | None, registry: Path | None, as_json: bool
) -> None:
    """Fit the router on the cards and save it, so that commands and hubs need not fit it themselves.

    \b
    Examples:
      adapterhub router fit
      adapterhub router fit --precision 0.98 --out router.skops
    """
    from adapterhub.routing.classifier.calibration import Policy
    from adapterhub.routing.registry_sync import saved_router
    from adapterhub.routing.router import AdapterRouter

    if retention is not None and precision is not None:
        raise click.UsageError("Give --retention or --precision, not both.")
    adapters = open_registry(registry)
    wish = {"retention": retention, "precision": precision}
    policy = Policy(**{name: value for name, value in wish.items() if value is not None})
    fitted = AdapterRouter.from_registry(adapters, policy=policy)
    path, found = out or saved_router(adapters), fitted.health()
    fitted.save(path)
    learned = _learned(fitted.model)
    if as_json:
        output.emit_json({"path": str(path), **learned, "findings": [asdict(one) for one in found]})
        return
    _show(learned["routes"])
    output.emit("")
    _show(learned["thresholds"])
    warn(found)
    output.note(f"Saved to {path}.")


@router.command("eval")
@click.argument("data", type=_file)
@registry_option
@json_option
def evaluate(data: Path, registry: Path | None, as_json: bool) -> None:
    """Measure the router on DATA: lines of JSON with "text" and "adapter", null for requests that are for none.

    Measure on requests that are not among the examples on the cards.

    \b
    Example:
      adapterhub router eval requests.jsonl
    """
    from adapterhub.routing.analysis.report import measures

    adapters = open_registry(registry)
    labelled = _labelled(data, adapters)
    found = current_router(adapters).evaluate(*labelled)
    if as_json:
        # `asdict` makes other Counters of Counters.
        confusion = {name: dict(row) for name, row in found.confusion.items()}
        output.emit_json(asdict(replace(found, confusion=confusion)))
    else:
        output.table(["measure", "value"], measures(found))


@router.command()
@click.argument("out", type=_new_file)
@click.option("--data", type=_file, help="Requests to measure it on, as for `eval`.")
@registry_option
def report(out: Path, data: Path | None, registry: Path | None) -> None:
    """Draw how good the router is as one HTML file, OUT, which fetches nothing.

    Without --data it is measured on what it learned from, each text held out in turn.

    \b
    Examples:
      adapterhub router report router.html
      adapterhub router report router.html --data requests.jsonl
    """
    from adapterhub._files import write_atomic
    from adapterhub.routing.analysis.report import evaluate_held_out, html_report

    adapters = open_registry(registry)
    labelled = _labelled(data, adapters) if data else None
    current = current_router(adapters)
    measured = current.evaluate(*labelled) if labelled else evaluate_held_out(current.model)
    source = (
        f"the requests in {data.name}" if data else "the texts that it learned from, each held out in turn"
    )
    page = html_report(measured, current.health(), note=f"Router {current.version}, measured on {source}.")
    write_atomic(out, page.encode())
    output.note(f"Written to {out}.")


@router.command()
@click.argument("file", type=_file)
@registry_option
@json_option
def learn(file: Path, registry: Path | None, as_json: bool) -> None:
    """Take corrections from FILE into the cards: lines of JSON with "text" and "correct", the right adapter or null.

    The right adapter gains the text as an example. With null, the adapter named by "best" gains it as a negative.
    A decision log that was kept with texts serves, once "correct" is added to lines of it; the others are passed over.

    \b
    Example:
      adapterhub router learn decisions.jsonl
    """
    from adapterhub.cli.labels import read_lessons

    adapters = open_registry(registry)
    lessons, known = read_lessons(file, adapters)
    for lesson in lessons:
        adapters.revise(lesson.card.ref, lesson.applied_to)
    learned = [
        {
            "adapter": lesson.card.ref,
            "new_examples": len(lesson.examples),
            "new_negatives": len(lesson.negatives),
        }
        for lesson in lessons
    ]
    if as_json:
        output.emit_json({"learned": learned, "known_already": known})
        return
    if learned:
        _show(learned)
    output.note(f"Corrections that told nothing new: {known}.")
    warn_of_routes(adapters, [lesson.card.name for lesson in lessons])


def _learned(model: RouterModel) -> dict[str, Any]:
    """What a router learned from, and the thresholds that came of it."""
    from adapterhub.routing.classifier.calibration import PRIOR

    calibration = model.calibration
    scripts = Counter(one.script for one in model.held_out if one.route in model.names)
    counts = "examples", "negatives"
    curves = [(script, curve, scripts[script]) for script, curve in calibration.by_script.items()]
    unmeasured = calibration.general == PRIOR
    curves.append(("any other", calibration.general, 0 if unmeasured else scripts.total()))
    return {
        "version": model.version,
        "routes": [
            {"adapter": route.name, **{name: len(getattr(route, name)) for name in counts}}
            for route in model.routes
        ],
        "thresholds": [
            {"script": script, "threshold": round(curve.threshold, 4), "measured_on": count}
            for script, curve, count in curves
        ],
    }


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints mappings with the same keys as a table."""
    output.table([name.replace("_", " ") for name in rows[0]], [[*map(str, row.values())] for row in rows])


def _labelled(data: Path, adapters: AdapterRegistry) -> Labelled:
    """Requests to measure on; mistakes in them are told before anything is fitted."""
    from adapterhub.cli.labels import read_labelled
    from adapterhub.routing.routes import from_cards

    return read_labelled(data, [one.name for one in from_cards(adapters.list())])
