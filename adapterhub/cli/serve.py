"""`adapterhub serve`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from adapterhub.cli import output
from adapterhub.cli.options import (
    base_options,
    batch_invariant_option,
    engine_option,
    open_hub,
    proof_option,
    quantization_option,
    registry_option,
)
from adapterhub.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])

_MIB = 1 << 20
_LIMITS = {
    "max_loras": "LoRA slots, and so different adapters in one batch.  [default: 16]",
    "max_lora_rank": "Maximum rank that is served.  [default: any]",
    "max_cpu_loras": "Adapters in host memory.  [default: 64]",
    "adapter_cache_mib": "Memory of the adapters in host memory.  [default: 2048]",
    "max_batch_size": "Sequences in one step; also --max-num-seqs.  [default: 32]",
    "max_num_batched_tokens": "Tokens in one step.  [default: 512]",
    "kv_cache_mib": "Memory for keys and values.  [default: 1024]",
    "max_queue": "Sequences that may wait; more get 429.  [default: 1024]",
}


def limit_options(function: F) -> F:
    """The limits of the engine, fields of `HubConfig`."""
    for name, text in reversed(_LIMITS.items()):
        flags = [f"--{name.replace('_', '-')}", *(["--max-num-seqs"] if name == "max_batch_size" else [])]
        function = click.option(*flags, name, type=click.IntRange(min=1), help=text)(function)
    return function


def server_options(function: F) -> F:
    """Fields of `ServerConfig`; one that is not given keeps its default."""
    key_file = click.Path(path_type=Path, dir_okay=False)
    seconds = click.FloatRange(min=0)
    options = [
        click.option("--host", help="The address to listen on.  [default: 127.0.0.1]"),
        click.option("--port", type=click.IntRange(0, 65535), help="0 takes a free one.  [default: 8000]"),
        click.option("--api-key-file", type=key_file, help="Keys for requests, one `name key` a line."),
        click.option("--admin-key-file", type=key_file, help="Keys for changing adapters."),
        click.option("--insecure", is_flag=True, help="Listen anywhere without keys: anybody may use it."),
        click.option(
            "--drain-seconds", type=seconds, help="For running answers after SIGTERM.  [default: 60]"
        ),
        click.option(
            "--ping-seconds", type=seconds, help="Between comments in silent streams.  [default: 15]"
        ),
        click.option(
            "--stream-interval",
            type=click.IntRange(1, 1024),
            help="Least tokens in a stream's chunk, but for the first and the last.  [default: 1]",
        ),
        click.option(
            "--max-body-mib", type=click.IntRange(min=1), help="Largest request body.  [default: 8]"
        ),
        click.option("--max-connections", type=click.IntRange(min=1), help="At a time.  [default: 4096]"),
        click.option(
            "--cors-origin", "cors_origins", multiple=True, help="A web page that may call the server."
        ),
        click.option(
            "--adapter-folder",
            "adapter_folders",
            multiple=True,
            type=click.Path(path_type=Path, file_okay=False),
            help="Admins may register adapters from it.",
        ),
        click.option(
            "--max-upload-mib", type=click.IntRange(min=1), help="Largest uploaded adapter.  [default: 1024]"
        ),
        click.option(
            "--audit-log",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Where the actions of admins are written.  [default: .audit.jsonl in the registry]",
        ),
        click.option(
            "--max-shadow-requests",
            type=click.IntRange(min=0),
            help="Copies of requests at a time on shadows of aliases; 0 sends none.  [default: 2]",
        ),
        click.option("--base-model", help="The name of the bare base in /v1/models."),
        click.option(
            "--unknown-fields",
            type=click.Choice(["refuse", "ignore"]),
            help="What becomes of fields that no API has.  [default: refuse]",
        ),
        click.option(
            "--helper-prompts",
            type=click.Choice(["route", "base"]),
            help="Where prompts of front ends for titles and tags go if the model is auto.  [default: route]",
        ),
        click.option(
            "--access-log/--no-access-log", "access_log", default=None, help="A line for each request."
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.command()
@server_options
@registry_option
@base_options
@engine_option
@quantization_option
@proof_option
@batch_invariant_option
@limit_options
def serve(
    registry: str | Path | None,
    base: str | None,
    engine: str | None,
    quantization: str | None,
    device: str | None,
    trust_remote_code: bool | None,
    prove_base: bool | None,
    batch_invariant: bool | None,
    **options: Any,
) -> None:
    """Serve OpenAI's API, and vLLM's for adapters, until SIGTERM or Ctrl-C.

    \b
    Examples:
      adapterhub serve                          the base that the cards name
      adapterhub serve --base adapterhub-demo --port 8080
      adapterhub serve --host 0.0.0.0 --api-key-file keys.txt --admin-key-file admins.txt
    """
    limits = {name: options.pop(name) for name in _LIMITS}
    server = {name: value for name, value in options.items() if value not in (None, ())}
    settings = {
        "base": base,
        "engine": engine,
        "quantization": quantization,
        "device": device,
        "trust_remote_code": trust_remote_code,
        "prove_base": prove_base,
        "batch_invariant": batch_invariant,
    }
    cut_off = _serve(partial(open_hub, registry, **settings, **limits), server)
    if cut_off:
        output.warn(f"{cut_off} answers were cut off.")
        sys.exit(1)


def _serve(open_the_hub: Callable[[], Any], settings: dict[str, Any]) -> int:
    try:
        from adapterhub.server import ServerConfig
        from adapterhub.server import serve as serve_hub
    except ImportError as error:
        raise ConfigError(
            f"The server needs the package {error.name!r}, which is not installed.",
            hint='pip install "adapterhub[server]"',
        ) from error
    for name in ("max_body", "max_upload"):
        if f"{name}_mib" in settings:
            settings[f"{name}_bytes"] = settings.pop(f"{name}_mib") * _MIB
    config = ServerConfig.load(**settings)
    if config.access_log:
        logging.getLogger("adapterhub.server").setLevel(logging.INFO)
    return serve_hub(open_the_hub, config, report=output.note)
