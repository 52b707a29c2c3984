"""`adapterhub router`: fitting, evaluating and correcting the router."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import output
from adapterhub.cli.options import SuggestingGroup, json_option, open_registry, registry_option
from adapterhub.cli.routes import router_of, served_base, warn, warn_of_routes
from adapterhub.errors import RoutingError

if TYPE_CHECKING:
    from adapterhub.registry import AdapterRegistry
    from adapterhub.routing import LabelledRequests
    from adapterhub.routing.classifier.model import RouterModel

_file = click.Path(exists=True, dir_okay=False, path_type=Path)
_new_file = click.Path(dir_okay=False, path_type=Path)


@click.group(cls=SuggestingGroup)
def router() -> None:
    """Fit, evaluate and correct the router, which chooses the adapter for a request.

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
    help="The minimum share of in-scope requests that an adapter answers.  [default: 0.95]",
)
@click.option(
    "--precision",
    type=click.FloatRange(0, 1, min_open=True),
    help="Instead: the target share of correct decisions among requests sent to an adapter.",
)
@registry_option
@json_option
def fit(
    out: Path | None,
    retention: float | None,
    precision: float | None,
    registry: str | Path | None,
    as_json: bool,
) -> None:
    """Fit the router on the cards of the adapters for this base and save it for commands and hubs.

    \b
    Examples:
      adapterhub router fit
      adapterhub router fit --precision 0.98 --out router.skops
    """
    from adapterhub.routing import AdapterRouter, Policy, candidates, saved_router

    if retention is not None and precision is not None:
        raise click.UsageError("Give --retention or --precision, not both.")
    adapters = open_registry(registry)
    targets = {"retention": retention, "precision": precision}
    policy = Policy(**{name: value for name, value in targets.items() if value is not None})
    fitted = AdapterRouter.from_cards(candidates(adapters, served_base(adapters)), policy=policy)
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
def evaluate(data: Path, registry: str | Path | None, as_json: bool) -> None:
    """Evaluate the router on DATA: lines of JSON with "text" and "adapter", null for out-of-scope requests.

    The requests must not be among the examples on the cards.

    \b
    Example:
      adapterhub router eval requests.jsonl
    """
    from adapterhub.routing import measures

    adapters = open_registry(registry)
    labelled = _labelled(data, adapters)
    found = router_of(adapters).evaluate(*labelled)
    if as_json:
        # `asdict` makes other Counters of Counters.
        confusion = {name: dict(row) for name, row in found.confusion.items()}
        output.emit_json(asdict(replace(found, confusion=confusion)))
    else:
        output.table(["measure", "value"], measures(found))


@router.command()
@click.argument("out", type=_new_file)
@click.option("--data", type=_file, help="Requests to evaluate it on, as for `eval`.")
@registry_option
def report(out: Path, data: Path | None, registry: str | Path | None) -> None:
    """Write an evaluation of the router to one HTML file, OUT, which loads nothing from elsewhere.

    Without --data it is evaluated on its own examples, held out in folds.

    \b
    Examples:
      adapterhub router report router.html
      adapterhub router report router.html --data requests.jsonl
    """
    from adapterhub._files import os_errors_as, write_atomic
    from adapterhub.routing import evaluate_held_out, html_report

    adapters = open_registry(registry)
    labelled = _labelled(data, adapters) if data else None
    current = router_of(adapters)
    measured = current.evaluate(*labelled) if labelled else evaluate_held_out(current.model)
    source = f"the requests in {data.name}" if data else "its own examples, held out in folds"
    page = html_report(measured, current.health(), note=f"Router {current.version}, measured on {source}.")
    with os_errors_as(RoutingError, "The report could not be written"):
        write_atomic(out, page.encode(errors="replace"))
    output.note(f"Written to {out}.")


@router.command()
@click.argument("file", type=_file)
@registry_option
@json_option
def learn(file: Path, registry: str | Path | None, as_json: bool) -> None:
    """Add the corrections in FILE to the cards: lines of JSON with "text" and "correct", the right adapter or null.

    The right adapter gains the text as an example. With null, the adapter named by "best" gains it as a negative.
    A decision log with texts can be used once "correct" is added to lines of it; the other lines are skipped.

    \b
    Example:
      adapterhub router learn decisions.jsonl
    """
    from adapterhub.routing import learn_corrections

    adapters = open_registry(registry)
    by_card, known = learn_corrections(file, adapters)
    learned = [
        {
            "adapter": one.card.ref,
            "new_examples": len(one.examples),
            "new_negatives": len(one.negatives),
        }
        for one in by_card
    ]
    if as_json:
        output.emit_json({"learned": learned, "known_already": known})
        return
    if learned:
        _show(learned)
    output.note(f"Corrections that the cards had already: {known}.")
    warn_of_routes(adapters, [one.card.name for one in by_card])


def _learned(model: RouterModel) -> dict[str, Any]:
    """The router's training data and thresholds."""
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


def _labelled(data: Path, adapters: AdapterRegistry) -> LabelledRequests:
    """Requests to evaluate on; mistakes in them are reported before anything is fitted."""
    from adapterhub.routing import read_labelled_requests, routes_from_cards

    return read_labelled_requests(data, [one.name for one in routes_from_cards(adapters.list())])
