"""`adapterhub compare`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli import output
from adapterhub.cli.options import (
    base_options,
    complete_adapter,
    json_option,
    named_card,
    open_registry,
    quantization_option,
    registry_option,
)
from adapterhub.cli.progress import Show, progress
from adapterhub.errors import ConfigError, InvalidRequestError

if TYPE_CHECKING:
    from adapterhub.base import Base
    from adapterhub.evaluation import Comparison, ComparisonSettings
    from adapterhub.registry import AdapterCard, AdapterRegistry
    from adapterhub.training import FinetuneConfig

F = TypeVar("F", bound=Callable[..., Any])


def comparison_options(function: F) -> F:
    """The options of how contenders are measured."""
    options = [
        click.option(
            "--temperature", "temperatures", type=float, multiple=True,
            help="Answer at this temperature; may be given several times.  [default: 0, greedy]",
        ),
        click.option(
            "--top-p", "top_ps", type=float, multiple=True,
            help="Answer at this top-p, with each temperature; may be given several times.  [default: 1]",
        ),
        click.option("--max-tokens", type=int, help="The maximum number of tokens of an answer.  [default: 256]"),
        click.option("--top-k", type=int, help="Keep only this many most probable tokens."),
        click.option(
            "--repetition-penalty", type=float, help="Above 1 makes used tokens less probable."
        ),
        click.option("--seed", type=int, help="Of sampling and intervals.  [default: 0]"),
        click.option("--max-length", type=int, help="Cut held-out records to so many tokens.  [default: 1024]"),
        click.option("--max-records", type=click.IntRange(1), help="Read so many held-out records.  [default: all]"),
        click.option(
            "--max-prompts", type=click.IntRange(1), default=50, show_default=True, help="Answer so many prompts."
        ),
        click.option("--scorer", help="A function (answer, reference) -> number: module:function or file.py:function."),
        click.option(
            "--out", type=click.Path(path_type=Path), help="The report's folder.  [default: comparison-NAME]"
        ),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@click.command()
@click.argument("name", shell_complete=complete_adapter)
@click.option(
    "--against", multiple=True, metavar="base|NAME@VERSION", shell_complete=complete_adapter,
    help="What to compare with; may be given several times.  [default: base]",
)  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path), help="Held-out JSON Lines of conversations.")
@click.option("--prompts", type=click.Path(path_type=Path), help="Prompts: a line each, or JSON Lines.")
@comparison_options
@click.option("--no-store", is_flag=True, help="Leave the adapter's card as it is.")
@click.option("--no-cache", is_flag=True, help="Measure the base anew, and do not keep it as the baseline.")
@registry_option
@base_options
@quantization_option
@json_option
def compare(
    name: str,
    against: tuple[str, ...],
    data: Path | None,
    prompts: Path | None,
    no_store: bool,
    no_cache: bool,
    registry: str | Path | None,
    as_json: bool,
    base: str | None,
    quantization: str | None,
    device: str | None,
    trust_remote_code: bool | None,
    **options: Any,
) -> None:
    """Compare an adapter with the bare base, or with other adapters, and write a report.

    Perplexity is that of the answers in held-out DATA. The answers are those to PROMPTS, or to the data's own prompts.
    All contenders read the same tokens, with the same settings.

    \b
    Examples:
      adapterhub compare jokes --data held-out.jsonl
      adapterhub compare jokes --against jokes@1 --prompts prompts.txt --temperature 0.7 --temperature 1
      adapterhub compare maths --data test.jsonl --scorer scoring.py:last_number
    """
    from adapterhub.evaluation.data import read_data
    from adapterhub.evaluation.metrics import load_scorer

    limits = {"max_records": options.pop("max_records"), "max_prompts": options.pop("max_prompts")}
    out, scorer = options.pop("out"), options.pop("scorer")
    settings = _settings(options)
    score = load_scorer(scorer) if scorer else None
    inputs = read_data(data, prompts, **limits)
    card = named_card(name, registry)
    if card is None:
        raise InvalidRequestError(f"{name!r} is no adapter to compare.", hint="Name an adapter or a blend.")
    folder = report_folder(out, card.name)
    adapters = open_registry(registry)
    # torch and transformers take seconds to import, so everything above has been checked first.
    from adapterhub.evaluation.comparing import compare as run_comparison

    with progress(f"Comparing {name}") as show:
        comparison = run_comparison(
            _load_base(
                card,
                registry=registry,
                base=base,
                quantization=quantization,
                device=device,
                trust_remote_code=trust_remote_code,
            ),
            adapters,
            name,
            inputs,
            against=against or ("base",),
            scorer=score,
            settings=settings,
            baselines=None if no_cache else baselines_folder(),
            progress=show,
        )
    write(comparison, folder, None if no_store else adapters)
    if as_json:
        from adapterhub.evaluation.report import results

        output.emit_json(results(comparison))
    else:
        emit(comparison, folder)


def compare_options(function: F) -> F:
    """The options of a run that is compared with the base."""
    options = [
        click.option(
            "--compare",
            "held_out",
            metavar="DATA|validation",
            help="Measure the base before the run, and the adapter after it, on held-out DATA or on the run's own "
            "validation records, and write a report.",
        ),
        click.option(
            "--compare-prompts",
            type=click.Path(path_type=Path),
            help="With --compare: answer these prompts, as for `adapterhub compare`.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


class ComparedRun:
    """A training run with the base's measurement before it and a report after it.

    Args:
        config: The run.
        held_out: The file of held-out data, or `validation`.
        prompts: The file of prompts; None takes those of the held-out data.
    """

    def __init__(self, config: FinetuneConfig, held_out: str, prompts: Path | None) -> None:
        from adapterhub.evaluation.data import read_data
        from adapterhub.evaluation.finetuning import ComparedTraining

        own = held_out == "validation"
        data = None if own else read_data(held_out, prompts)
        asked = read_data(prompts=prompts) if own and prompts else None
        out = config.output_dir / "comparison" if config.output_dir else None
        self._config = config
        self._training = ComparedTraining(baselines_folder(), data, prompts=asked)
        self._folder = report_folder(out, config.name)

    def measure_base(self, config: FinetuneConfig, show: Show) -> None:
        """Measures the base, once the run's dataset is composed."""
        self._training.measure_base(config, show)

    def finish(self, card: AdapterCard, registry: AdapterRegistry, *, quiet: bool) -> AdapterCard:
        """Compares the adapter with the base, and writes the report.

        Args:
            card: The adapter's.
            registry: Where it is.
            quiet: Print nothing on stdout.

        Returns:
            The card with the figures.
        """
        with progress(f"Comparing {card.ref}") as show:
            comparison = self._training.compare(self._config, registry, card, show)
        write(comparison, self._folder, registry)
        if not quiet:
            emit(comparison, self._folder)
        return registry.get(card.ref)


def write(comparison: Comparison, folder: Path, registry: AdapterRegistry | None) -> None:
    """Writes the report, and stores the figures on the adapter's card unless there is no registry."""
    from adapterhub.evaluation.card_figures import record_on_card
    from adapterhub.evaluation.report import write_report

    write_report(comparison, folder)
    for warning in comparison.warnings:
        output.warn(f"{warning}.")
    is_blend = ":" in comparison.adapter
    if registry and not is_blend:
        record_on_card(comparison, registry)


def emit(comparison: Comparison, folder: Path) -> None:
    """Prints what a comparison found, and where the report is."""
    from adapterhub.evaluation.report import findings

    for finding in findings(comparison):
        output.emit(finding)
    output.emit(str(folder / "report.html"))


def report_folder(out: Path | None, name: str) -> Path:
    """The folder of the report, checked to be one that can be written; a comparison takes minutes."""
    from adapterhub.evaluation.report import check_report_folder

    folder = out or Path(f"comparison-{name}")
    check_report_folder(folder)
    return folder


def baselines_folder() -> Path:
    """Where the base's losses and answers are kept for the next comparison."""
    from adapterhub.config import cache_folder

    return cache_folder("baselines")


def _settings(options: dict[str, Any]) -> ComparisonSettings:
    from adapterhub.evaluation.comparison import ComparisonSettings

    return ComparisonSettings.of(
        **{name: value for name, value in options.items() if value not in (None, ())}
    )


def _load_base(card: AdapterCard, **settings: Any) -> Base:
    from adapterhub.base.loading import load_base
    from adapterhub.config import HubConfig

    # None is no default there, but an unquantised base.
    config = HubConfig.load(**{name: value for name, value in settings.items() if value is not None})
    base = config.base or card.base.name
    if base is None:
        raise ConfigError(f"The card of {card.ref!r} names no base.", hint="Give it with --base.")
    return load_base(
        base,
        quantization=config.quantization,
        compute_dtype=config.compute_dtype,
        device=config.device,
        revision=config.revision or card.base.revision_of(base),
        trust_remote_code=config.trust_remote_code,
    )
