"""`adapterhub run`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from adapterhub.cli import output
from adapterhub.cli.options import (
    MAX_INPUT_BYTES,
    base_options,
    batch_invariant_option,
    complete_adapter,
    engine_option,
    json_option,
    named_card,
    open_hub,
    own_base,
    proof_option,
    quantization_option,
    read_text,
    registry_option,
    sampling_options,
)
from adapterhub.errors import ConfigError

if TYPE_CHECKING:
    from adapterhub.registry import AdapterCard
    from adapterhub.requests.generation import Generation


@click.command()
@click.argument(
    "words", nargs=-1, required=True, metavar="[NAME|auto|base] TEXT|-", shell_complete=complete_adapter
)
@sampling_options
@click.option("--n", type=int, help="How many answers to sample.  [default: 1]")
@click.option("--logprobs", type=int, help="With --json: log-probabilities of so many tokens.")
@click.option("--prompt-logprobs", type=int, help="With --json: the same for each token of the prompt.")
@click.option(
    "--schema", type=click.File(encoding="utf-8-sig"), help="A JSON Schema file; the answer is such JSON."
)
@click.option("--regex", help="The answer matches it as a whole.")
@click.option("--choice", "choices", multiple=True, help="The answer is one of these; given several times.")
@click.option("--raw", is_flag=True, help="Take the text as it stands, without a chat template.")
@click.option(
    "--tools", type=click.File(encoding="utf-8-sig"), help="A JSON file of tools to show the model."
)
@registry_option
@base_options
@engine_option
@quantization_option
@proof_option
@batch_invariant_option
@json_option
def run(
    words: tuple[str, ...],
    registry: str | Path | None,
    raw: bool,
    tools: IO[str] | None,
    schema: IO[str] | None,
    as_json: bool,
    base: str | None,
    engine: str | None,
    quantization: str | None,
    device: str | None,
    trust_remote_code: bool | None,
    prove_base: bool | None,
    batch_invariant: bool | None,
    **options: Any,
) -> None:
    """Answer TEXT (or standard input, with -) with an adapter, the router's choice (auto) or the bare base.

    \b
    Examples:
      adapterhub run json "Ann Lee from Oslo. Keys: name, city"
      adapterhub run "My printer shows error 41"      the router chooses
      adapterhub run json:0.7+support:0.3 "Error 41"  a blend for this request
      adapterhub run support "Error 41" --choice hardware --choice software
      cat notes.txt | adapterhub run support -
    """
    adapter, text = _adapter_and_text(words)
    given = {name: value for name, value in options.items() if value not in (None, ())}
    arguments = {"raw": raw, "tools": _tools(tools), **given}
    if schema:
        arguments["schema"] = _schema(schema)
    settings = {
        "base": base,
        "engine": engine,
        "quantization": quantization,
        "device": device,
        "trust_remote_code": trust_remote_code,
        "prove_base": prove_base,
        "batch_invariant": batch_invariant,
    }
    if not as_json and not {"logprobs", "prompt_logprobs"}.isdisjoint(given):
        raise click.UsageError("Log-probabilities are part of the JSON: give --json too.")
    card = _check_before_loading(adapter, text, raw, registry)
    _check_options(arguments)
    if card and settings["base"] is None:
        settings |= own_base(card)
    with open_hub(registry, **settings) as hub:
        if as_json:
            output.emit_json(describe(hub.generate(text, adapter, **arguments)))
            return
        if given.get("n", 1) > 1:
            for completion in hub.generate(text, adapter, **arguments).completions:
                output.emit(completion.text)
            return
        with hub.stream(text, adapter, **arguments) as stream:
            for delta in stream:
                output.emit(delta, newline=False)
            output.emit("")
            if stream.result:
                output.note(footer(stream.result))


def describe(generation: Generation) -> dict[str, Any]:
    """A generation as JSON-ready fields; several answers, and log-probabilities, are in `completions`."""
    usage, completions = generation.usage, generation.completions
    fields: dict[str, Any] = {
        "text": generation.text,
        "adapter": generation.adapter,
        "version": generation.version,
        "route": asdict(generation.route) if generation.route else None,
        "usage": {**asdict(usage), "tokens_per_second": round(usage.tokens_per_second, 1)},
        "finish_reason": generation.finish_reason,
    }
    if len(completions) > 1 or any(one.logprobs or one.prompt_logprobs for one in completions):
        fields["completions"] = [asdict(completion) for completion in completions]
    return fields


def _adapter_and_text(words: tuple[str, ...]) -> tuple[str, str]:
    if len(words) > 2:
        raise click.UsageError("Put the text in quotes: adapterhub run [NAME|auto|base] TEXT")
    adapter, text = words if len(words) == 2 else ("auto", words[0])
    return adapter, read_text(text)


def _check_before_loading(
    adapter: str, text: str, raw: bool, registry: str | Path | None
) -> AdapterCard | None:
    """The card of the adapter that is named; raises errors that need no base, which takes seconds to load."""
    from adapterhub.requests.prompts import conversation

    if not raw:
        conversation(text)
    return named_card(adapter, registry)


def _check_options(arguments: Mapping[str, Any]) -> None:
    from adapterhub.engine.output_format import OUTPUT_FORMAT_ARGUMENTS, OutputFormat
    from adapterhub.engine.sampling_params import SamplingParams

    OutputFormat.of(**{name: value for name, value in arguments.items() if name in OUTPUT_FORMAT_ARGUMENTS})
    SamplingParams.of(
        {name: value for name, value in arguments.items() if name in SamplingParams.model_fields}
    )


def _tools(file: IO[str] | None) -> list[dict[str, Any]] | None:
    if file is None:
        return None
    tools = _loaded(file)
    if not isinstance(tools, list):
        raise ConfigError(f"{file.name} must hold a JSON list of tools.")
    return tools


def _schema(file: IO[str]) -> dict[str, Any]:
    schema = _loaded(file)
    if not isinstance(schema, dict):
        raise ConfigError(f"{file.name} must hold a JSON Schema, which is an object.")
    return schema


def _loaded(file: IO[str]) -> Any:
    try:
        return json.loads(file.read(MAX_INPUT_BYTES))
    except ConfigError:  # there is no standard input
        raise
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested too deep
        raise ConfigError(f"{file.name} is not JSON: {error}.") from error


def footer(generation: Generation) -> str:
    """Who answered, and how fast, in brackets."""
    # A blend's name holds the versions of its parts.
    version = f"@{generation.version}" if generation.version else ""
    adapter = f"{generation.adapter or 'base'}{version}"
    confidence = f", confidence {generation.route.confidence:.2f}" if generation.route else ""
    usage = generation.usage
    truncated = ", cut off at max_tokens" if generation.finish_reason == "length" else ""
    speed = f"{usage.completion_tokens} tokens, {usage.tokens_per_second:.0f} tokens/s"
    return f"[{adapter}{confidence}, {speed}{truncated}]"
