"""`adapterhub run` and `adapterhub route`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from adapterhub.cli import output
from adapterhub.cli.options import (
    base_options,
    complete_adapter,
    json_option,
    open_hub,
    open_registry,
    registry_option,
)
from adapterhub.errors import ConfigError

if TYPE_CHECKING:
    from adapterhub.generation import Generation

_MAX_INPUT_BYTES = 16 * 2**20


@click.command()
@click.argument(
    "words", nargs=-1, required=True, metavar="[NAME|auto|base] TEXT|-", shell_complete=complete_adapter
)
@click.option("--max-tokens", type=click.IntRange(1), help="Most tokens to generate.")
@click.option("--temperature", type=click.FloatRange(0), help="0 is greedy.  [default: 0]")
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), help="Keep the tokens that reach this probability."
)
@click.option("--seed", type=click.IntRange(0), help="Makes sampling repeatable.")
@click.option("--stop", multiple=True, help="A text that ends the answer; may be given several times.")
@click.option("--raw", is_flag=True, help="Take the text as it stands, without a chat template.")
@click.option("--tools", type=click.File(encoding="utf-8"), help="A JSON file of tools to show the model.")
@registry_option
@base_options
@json_option
def run(
    words: tuple[str, ...],
    registry: Path | None,
    raw: bool,
    tools: IO[str] | None,
    as_json: bool,
    base: str | None,
    quantization: str | None,
    device: str | None,
    trust_remote_code: bool | None,
    **sampling: Any,
) -> None:
    """Answer TEXT (or standard input, with -) with an adapter, the router's choice (auto) or the bare base.

    \b
    Examples:
      adapterhub run json "Ann Lee from Oslo. Keys: name, city"
      adapterhub run "My printer shows error 41"      the router chooses
      adapterhub run json:0.7+support:0.3 "Error 41"  a blend for this request
      cat notes.txt | adapterhub run support -
    """
    adapter, text = _adapter_and_text(words)
    given = {name: value for name, value in sampling.items() if value not in (None, ())}
    arguments = {"raw": raw, "tools": _tools(tools), **given}
    settings = {
        "base": base,
        "quantization": quantization,
        "device": device,
        "trust_remote_code": trust_remote_code,
    }
    _check_first(adapter, text, raw, registry)
    with open_hub(registry, **settings) as hub:
        if as_json:
            output.emit_json(describe(hub.generate(text, adapter, **arguments)))
            return
        with hub.stream(text, adapter, **arguments) as stream:
            for piece in stream:
                output.emit(piece, newline=False)
            output.emit("")
            if stream.result:
                output.note(_footer(stream.result))


@click.command()
@click.argument("text")
@registry_option
@json_option
def route(text: str, registry: Path | None, as_json: bool) -> None:
    """Say which adapter should answer TEXT (or standard input, with -), and how sure that is. Loads no model.

    \b
    Example:
      adapterhub route "My printer shows error 41"
    """
    from adapterhub.prompts import conversation
    from adapterhub.routing.router import AdapterRouter

    message = conversation(_read(text))[0]["content"]
    decision = AdapterRouter.from_cards(open_registry(registry).list()).route(message)
    if as_json:
        output.emit_json({**asdict(decision), "fallback": decision.fallback})
        return
    output.fields(
        [
            ("adapter", decision.adapter or "base (no adapter is sure enough)"),
            ("confidence", f"{decision.confidence:.2f} (needs {decision.threshold:.2f})"),
            ("reason", decision.reason),
            ("scores", "  ".join(f"{name} {score:.2f}" for name, score in list(decision.scores.items())[:5])),
        ]
    )


def describe(generation: Generation) -> dict[str, Any]:
    """A generation as JSON-ready fields."""
    usage = generation.usage
    return {
        "text": generation.text,
        "adapter": generation.adapter,
        "version": generation.version,
        "route": asdict(generation.route) if generation.route else None,
        "usage": {**asdict(usage), "tokens_per_second": round(usage.tokens_per_second, 1)},
        "finish_reason": generation.finish_reason,
    }


def _adapter_and_text(words: tuple[str, ...]) -> tuple[str, str]:
    if len(words) > 2:
        raise click.UsageError("Put the text in quotes: adapterhub run [NAME|auto|base] TEXT")
    adapter, text = words if len(words) == 2 else ("auto", words[0])
    return adapter, _read(text)


def _check_first(adapter: str, text: str, raw: bool, registry: Path | None) -> None:
    """Tells of a mistake before the base is loaded, which takes seconds."""
    from adapterhub.hub import BASE_NAMES
    from adapterhub.prompts import conversation
    from adapterhub.registry.blends import Blend

    if not raw:
        conversation(text)
    if adapter != "auto" and adapter not in BASE_NAMES:
        Blend.find(adapter, open_registry(registry).resolve)


def _read(text: str) -> str:
    if text != "-":
        return text
    read = sys.stdin.buffer.read(_MAX_INPUT_BYTES + 1)
    if len(read) > _MAX_INPUT_BYTES:
        raise ConfigError("The input is larger than 16 MiB.", hint="Give a part of it.")
    try:
        # As in `$(...)`, the end of the last line is not part of the text, nor is the mark that Windows puts first.
        return read.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ConfigError(
            "The input is not UTF-8 text.", hint="Convert it, for example with iconv."
        ) from error


def _tools(file: IO[str] | None) -> list[dict[str, Any]] | None:
    if file is None:
        return None
    try:
        tools = json.loads(file.read(_MAX_INPUT_BYTES))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested too deep
        raise ConfigError(f"{file.name} is not JSON: {error}.") from error
    if not isinstance(tools, list):
        raise ConfigError(f"{file.name} must hold a JSON list of tools.")
    return tools


def _footer(generation: Generation) -> str:
    # A blend's name holds the versions of its parts.
    version = f"@{generation.version}" if generation.version else ""
    who = f"{generation.adapter or 'base'}{version}"
    sure = f", confidence {generation.route.confidence:.2f}" if generation.route else ""
    usage = generation.usage
    cut = ", cut off at max_tokens" if generation.finish_reason == "length" else ""
    return f"[{who}{sure}, {usage.completion_tokens} tokens, {usage.tokens_per_second:.0f} tokens/s{cut}]"
