"""`adapterhub chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import output
from adapterhub.cli.options import (
    base_options,
    complete_adapter,
    named_card,
    open_hub,
    own_base,
    quantization_option,
    registry_option,
    sampling_options,
)
from adapterhub.errors import AdapterHubError, ConfigError

if TYPE_CHECKING:
    from adapterhub.cli.chat_config import ChatConfig
    from adapterhub.cli.chat_session import ChatSession

_BASE_SETTINGS = ("base", "quantization", "device", "trust_remote_code")
_SETTINGS = (
    *_BASE_SETTINGS, "registry", "system_prompt", "system_prompt_file", "history_limit", "history_tokens",
)  # fmt: skip
_WITH_UNDERSCORES = {"token_normalize_func": lambda name: name.replace("_", "-")}


@click.command(context_settings=_WITH_UNDERSCORES)
@click.argument("name", required=False, metavar="[NAME|auto|base]", shell_complete=complete_adapter)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A YAML or JSON file of settings; options win over it.",
)
@click.option("--system-prompt", help="What the model is told first, in place of the card's system prompt.")
@click.option(
    "--system-prompt-file", type=click.Path(dir_okay=False, path_type=Path), help="A file that holds it."
)
@click.option(
    "--history-limit", type=int, help="The most earlier messages that a request takes along.  [default: 10]"
)
@click.option(
    "--history-tokens", type=int, help="The most tokens of a prompt.  [default: what leaves room to answer]"
)
@click.option("--do-sample", type=bool, help="false is greedy, as --temperature 0 is.")
@sampling_options
@registry_option
@base_options
@quantization_option
def chat(name: str | None, config: Path | None, **options: Any) -> None:
    """Chat in the terminal with an adapter, a blend, the router's choice (auto) or the bare base.

    Ctrl-C stops an answer, Ctrl-D leaves. /help shows the commands: /adapter, /system, /reset, /save. Lines may also
    come from a pipe. Options may be written with underscores.

    \b
    Examples:
      adapterhub chat json
      adapterhub chat                       the router chooses for each message
      adapterhub chat json:0.7+support:0.3  a blend
      adapterhub chat base --system-prompt-file designer.md --temperature 0.7 --history-limit 4
    """
    from adapterhub.cli.chat_config import ChatConfig

    given = {setting: options.pop(setting) for setting in _SETTINGS}
    generation = {option: value for option, value in options.items() if value not in (None, ())}
    run_chat(ChatConfig.load(config, adapter=name, generation=generation, **given))


def run_chat(config: ChatConfig) -> None:
    """Chats until the input ends."""
    from adapterhub.cli.chat_history import ChatHistory
    from adapterhub.cli.chat_session import ChatSession

    history = ChatHistory(config.history_limit, config.system())
    settings: dict[str, Any] = config.model_dump(include=set(_BASE_SETTINGS))
    card = named_card(config.adapter, config.registry)
    if card and config.base is None:
        settings |= own_base(card)
    interactive = sys.stdin.isatty()
    if interactive:
        output.note("Loading the base ...")
    with open_hub(config.registry, **settings) as hub:
        hub.set_adapter(config.adapter)
        session = ChatSession(hub, history, config.generation, config.history_tokens)
        if interactive:
            output.note(f"{config.adapter} answers on {hub.engine.base_name}. /help shows the commands.")
            _chat_with_person(session)
        else:
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
