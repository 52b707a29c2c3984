"""`adapterhub chat`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapterhub.cli import output
from adapterhub.cli.options import (
    base_options,
    batch_invariant_option,
    complete_adapter,
    engine_option,
    named_card,
    open_hub,
    own_base,
    proof_option,
    quantization_option,
    registry_option,
    sampling_options,
)
from adapterhub.cli.output_dir import registry_of_checkpoint
from adapterhub.errors import AdapterHubError, ConfigError

if TYPE_CHECKING:
    from adapterhub.cli.chat_config import ChatConfig
    from adapterhub.cli.chat_session import ChatSession

F = TypeVar("F", bound=Callable[..., Any])

_BASE_SETTINGS = (
    "base",
    "engine",
    "quantization",
    "device",
    "trust_remote_code",
    "prove_base",
    "batch_invariant",
)
_SETTINGS = (
    *_BASE_SETTINGS, "registry", "system_prompt", "system_prompt_file", "history_limit", "history_tokens",
)  # fmt: skip
UNDERSCORES = {"token_normalize_func": lambda name: name.replace("_", "-")}
"""Settings of a command whose options may be written with underscores."""


def chat_options(function: F) -> F:
    """The options of a chat, but for its adapter."""
    file = click.Path(dir_okay=False, path_type=Path)
    options = [
        click.option("--system-prompt", help="What the model is told first, in place of the card's."),
        click.option("--system-prompt-file", type=file, help="A file that holds it."),
        click.option(
            "--history-limit", type=int, help="The most earlier messages in a request.  [default: 10]"
        ),
        click.option(
            "--history-tokens",
            type=int,
            help="The most tokens of a prompt.  [default: what leaves room to answer]",
        ),
        click.option(
            "--output-dir",
            type=click.Path(path_type=Path),
            help="Chat with the last checkpoint in this folder.",
        ),
        click.option("--do-sample", type=bool, help="false is greedy, as --temperature 0 is."),
        sampling_options,
        registry_option,
        base_options,
        engine_option,
        quantization_option,
        proof_option,
        batch_invariant_option,
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.command(context_settings=UNDERSCORES)
@click.argument("name", required=False, metavar="[NAME|auto|base]", shell_complete=complete_adapter)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A YAML or JSON file of settings; options win over it.",
)
@chat_options
def chat(name: str | None, config: Path | None, output_dir: Path | None, **options: Any) -> None:
    """Chat in the terminal with an adapter, a blend, the router's choice (auto) or the bare base.

    Ctrl-C stops an answer, Ctrl-D leaves. /help shows the commands: /adapter, /system, /reset, /save. Lines may also
    come from a pipe. Options may be written with underscores.

    \b
    Examples:
      adapterhub chat json
      adapterhub chat                       the router chooses for each message
      adapterhub chat json:0.7+support:0.3  a blend
      adapterhub chat base --system-prompt-file designer.md --temperature 0.7 --history-limit 4
      adapterhub chat --output-dir results  what a fine-tune left there
    """
    from adapterhub.cli.chat_config import ChatConfig

    if name and output_dir:
        raise click.UsageError("Give a name or --output-dir.")
    run_chat(ChatConfig.load(config, adapter=name, **chat_settings(options)), output_dir)


def chat_settings(options: dict[str, Any]) -> dict[str, Any]:
    """The settings of `ChatConfig` from the options of the command."""
    generation = {
        option: value
        for option, value in options.items()
        if option not in _SETTINGS and value not in (None, ())
    }
    return {**{setting: options[setting] for setting in _SETTINGS}, "generation": generation}


def run_chat(config: ChatConfig, output_dir: Path | None = None) -> None:
    """Chats until the input ends.

    Args:
        config: The settings.
        output_dir: Chat with the last checkpoint in this folder of a fine-tune.
    """
    if output_dir is None:
        card = named_card(config.adapter, config.registry)
        _chat(config, own_base(card) if card and config.base is None else {})
        return
    with registry_of_checkpoint(output_dir, config.base) as (registry, reference):
        served = config.model_copy(update={"registry": registry.root, "adapter": reference})
        _chat(served, {"base": config.base or registry.resolve(reference).base.name})


def _chat(config: ChatConfig, base: dict[str, str | None]) -> None:
    from adapterhub.cli.chat_history import ChatHistory
    from adapterhub.cli.chat_session import ChatSession

    history = ChatHistory(config.history_limit, config.system())
    interactive = sys.stdin.isatty()
    if interactive:
        output.note("Loading the base ...")
    settings = {**config.model_dump(include=set(_BASE_SETTINGS)), **base}
    with open_hub(config.registry, **settings) as hub:
        hub.set_adapter(config.adapter)
        session = ChatSession(hub, history, config.generation, config.history_tokens)
        if interactive:
            output.note(f"{config.adapter} answers on {hub.engine.base_name}. /help shows the commands.")
            _chat_with_person(session)
            return
        for line in _lines():
            session.take(line)
            if session.has_ended:
                return


def _chat_with_person(session: ChatSession) -> None:
    """Chats on a terminal, where an error is shown and the chat goes on."""
    for line in _typed():
        try:
            session.take(line)
        except AdapterHubError as error:
            output.fail(error.message, error.hint)
        except KeyboardInterrupt:
            continue  # the answer has stopped
        if session.has_ended:
            return


def _typed() -> Iterator[str]:
    """The lines that a person types, until Ctrl-D, or Ctrl-C twice."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  # `input` edits and recalls lines with it
    interrupted = False
    while True:
        try:
            yield input("> " if sys.stdout.isatty() else "")
            interrupted = False
        except EOFError:
            output.note("")
            return
        except UnicodeDecodeError:
            output.fail("That is not text in the terminal's encoding.")
        except KeyboardInterrupt:
            output.note("")
            if interrupted:
                return
            interrupted = True
            output.note("Ctrl-C again, or Ctrl-D, leaves.")


def _lines() -> Iterator[str]:
    try:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ConfigError(
            "The input is not UTF-8 text.", hint="Convert it, for example with iconv."
        ) from error
