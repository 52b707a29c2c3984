"""`adapterhub route`: which adapter should answer a request, and why."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import output
from adapterhub.cli.options import json_option, open_registry, read_text, registry_option
from adapterhub.cli.routes import router_of

if TYPE_CHECKING:
    from adapterhub.routing import Explanation, RouteDecision

_WHY_BASE = {
    "ambiguous": "two adapters are too close",
    "filtered": "no adapter is enabled",
    "empty": "there is no text",
}


@click.command()
@click.argument("text")
@click.option("--explain", is_flag=True, help="Show the reasons of the decision.")
@click.option(
    "--log",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Add the decision to this file, without the text.",
)
@click.option("--log-texts", is_flag=True, help="With --log: add the text too.")
@registry_option
@json_option
def route(
    text: str, explain: bool, log: Path | None, log_texts: bool, registry: str | Path | None, as_json: bool
) -> None:
    """Print which adapter should answer TEXT (or standard input, with -), and its confidence. Loads no model.

    \b
    Examples:
      adapterhub route "My printer shows error 41"
      adapterhub route "My printer shows error 41" --explain
      adapterhub route "My printer shows error 41" --log decisions.jsonl --log-texts
    """
    from adapterhub.requests.prompts import conversation
    from adapterhub.routing import DecisionLog

    if log_texts and not log:
        raise click.UsageError("--log-texts needs --log FILE.")
    request = conversation(read_text(text))
    router = router_of(open_registry(registry), log=DecisionLog(log, texts=log_texts) if log else None)
    decision = router.route(request)
    why = router.explain(request) if explain else None
    if as_json:
        fields = {**asdict(decision), "scores": dict(decision.ranked())}
        output.emit_json({**fields, **({"explanation": _explanation(why)} if why else {})})
        return
    output.fields([*_decision(decision), *(_why(why) if why else [])])
    if why and why.evidence:
        output.emit("")
        _show_evidence(why)


def _decision(decision: RouteDecision) -> list[tuple[str, str]]:
    why = _WHY_BASE.get(decision.reason, "no adapter reaches its threshold")
    return [
        ("adapter", decision.adapter or f"base ({why})"),
        ("confidence", f"{decision.confidence:.4f} (needs {decision.threshold:.4f})"),
        ("reason", decision.reason),
        ("scores", "  ".join(f"{name} {score:.2f}" for name, score in decision.ranked(5))),
    ]


def _why(explanation: Explanation) -> list[tuple[str, str]]:
    decision = explanation.decision
    matched = "rule" if decision.reason == "rule" else "nearest"
    return [
        ("decided by", explanation.segment),
        (matched, decision.matched or ""),
        ("unknown", f"{explanation.unknown:.0%} of the n-grams" if explanation.evidence else ""),
    ]


def _show_evidence(explanation: Explanation) -> None:
    columns = ["n-gram", *(name for name, _ in explanation.decision.ranked(2))]
    output.table(
        columns,
        [
            (f"'{one.ngram}'", f"{one.best:+.3f}", f"{one.second:+.3f}")[: len(columns)]
            for one in explanation.evidence
        ],
    )


def _explanation(why: Explanation) -> dict[str, Any]:
    evidence = [one._asdict() for one in why.evidence]
    return {"segment": why.segment, "unknown": why.unknown, "evidence": evidence}
