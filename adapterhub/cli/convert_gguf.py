"""`adapterhub convert-gguf`: what a configuration trains, as GGUF files in its output folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli import output
from adapterhub.cli.chat import UNDERSCORES
from adapterhub.cli.export_gguf import said, type_names
from adapterhub.cli.options import json_option, open_registry, registry_option
from adapterhub.cli.progress import progress

if TYPE_CHECKING:
    from adapterhub.export import LlamaCppCheckout
    from adapterhub.registry import AdapterRegistry
    from adapterhub.training import FinetuneConfig

FOLDER = "gguf"
_UNQUANTIZED = "f16"
_LEVELS = ("q8_0", "q5_0", "q4_0", "q4_k_m", "q2_k")


def _levels(context: click.Context, parameter: click.Parameter, given: str | None) -> tuple[str, ...] | None:
    """Names with commas between them, or a list of JSON as in a recipe."""
    if given is None:
        return None
    try:
        return type_names(",".join(json.loads(given)) if given.lstrip().startswith("[") else given)
    except (ValueError, TypeError) as error:
        raise click.BadParameter('Give types with commas between them: q8_0,q4_k_m, or ["q8_0"].') from error


_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command("convert-gguf", context_settings=UNDERSCORES)
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path),
    help="Convert the last checkpoint in this folder.  [default: the registered adapter, into output_dir]",
)
@click.option(
    "--quantization-levels",
    metavar="TYPE,...",
    callback=_levels,
    help=f"Types besides f16.  [default: those of {','.join(_LEVELS)} that can be written here]",
)
@click.option(
    "--llama-cpp-convert-script", type=_FILE, help="llama.cpp's converter, for other architectures."
)
@click.option("--llama-cpp-quantize-bin", type=_FILE, help="llama.cpp's quantiser.")
@click.option("--pre-tokenizer", metavar="NAME", help="As for `adapterhub export --format gguf`.")
@click.option("--no-verify", is_flag=True, help="Write the files without checking them.")
@click.option("--no-modelfile", is_flag=True, help="Write no Modelfiles for Ollama.")
@click.option("--no-modelfile-tools", is_flag=True, help="Leave tools out of the Modelfiles.")
@registry_option
@json_option
def convert_gguf(
    config: Path,
    output_dir: Path | None,
    quantization_levels: tuple[str, ...] | None,
    llama_cpp_convert_script: Path | None,
    llama_cpp_quantize_bin: Path | None,
    pre_tokenizer: str | None,
    no_verify: bool,
    no_modelfile: bool,
    no_modelfile_tools: bool,
    registry: str | Path | None,
    as_json: bool,
) -> None:
    """Convert the adapter that CONFIG trains to GGUF files in the folder gguf of its output_dir.

    \b
    Examples:
      adapterhub convert-gguf finetune.yaml
      adapterhub convert-gguf finetune.yaml --quantization-levels q8_0,q4_k_m
    """
    from adapterhub.base.locating import locate_base
    from adapterhub.errors import ConfigError
    from adapterhub.export import LlamaCppCheckout, adapter_folders, export_gguf
    from adapterhub.training import FinetuneConfig

    trained = FinetuneConfig.load(config)
    folder = output_dir or trained.output_dir
    if folder is None:
        raise ConfigError(
            "The configuration has no output_dir.",
            hint="Set it, or give --output-dir, or use `adapterhub export`.",
        )
    checkout = LlamaCppCheckout(llama_cpp_convert_script, llama_cpp_quantize_bin)
    with _adapter(trained, output_dir, registry) as (adapters, name), progress(f"Converting {name}") as show:
        report = export_gguf(
            locate_base(trained.base, revision=trained.revision),
            adapter_folders(adapters, name),
            folder / FOLDER,
            types=(_UNQUANTIZED, *(quantization_levels or _possible(checkout))),
            verify=not no_verify,
            modelfiles=not no_modelfile,
            modelfile_tools=not no_modelfile_tools,
            pre_tokenizer=pre_tokenizer,
            checkout=checkout,
            progress=show,
        )
    if as_json:
        output.emit_json(asdict(report))
    else:
        output.emit(str(folder / FOLDER))
        output.note(said(report))


@contextmanager
def _adapter(
    trained: FinetuneConfig, output_dir: Path | None, registry: str | Path | None
) -> Iterator[tuple[AdapterRegistry, str]]:
    """The registered adapter, or the last checkpoint in a folder."""
    from adapterhub.cli.output_dir import registry_of_checkpoint

    if output_dir is None:
        yield open_registry(registry), trained.name
        return
    with registry_of_checkpoint(output_dir, trained.base, trained.name) as found:
        yield found


def _possible(checkout: LlamaCppCheckout) -> tuple[str, ...]:
    """The usual types, without those that need llama.cpp where it is not there."""
    from adapterhub.export.llama_cpp_file import has_llama_cpp
    from adapterhub.gguf.quantization import WITHOUT_LLAMA_CPP

    if has_llama_cpp() or checkout.quantize_bin:
        return _LEVELS
    left_out = [level for level in _LEVELS if level not in WITHOUT_LLAMA_CPP]
    output.note(f"Without llama-cpp-python {', '.join(left_out)} are left out.")
    return tuple(level for level in _LEVELS if level in WITHOUT_LLAMA_CPP)
