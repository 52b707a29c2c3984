"""Options that several commands share, and opening the registry, hub or text that they name."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from adapterhub.errors import AdapterHubError, ConfigError

if TYPE_CHECKING:
    from adapterhub.hub import AdapterHub
    from adapterhub.registry import AdapterCard, AdapterRegistry

F = TypeVar("F", bound=Callable[..., Any])

MAX_INPUT_BYTES = 16 * 2**20

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


class RegistryLocation(click.ParamType[str | Path]):
    """A folder, or a URL of a registry."""

    name = "path"

    def convert(
        self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | Path:
        """The URL as a text, anything else as a path."""
        from adapterhub.config import is_url

        return value if is_url(value) else Path(value)


registry_option = click.option(
    "--registry",
    type=RegistryLocation(),
    help="The folder of adapters, or a URL such as s3://bucket/prefix.  "
    "[default: ADAPTERHUB_REGISTRY, ./adapters, or the user's data folder]",
)


class SuggestingGroup(click.Group):
    """A group that suggests the nearest command for a mistyped one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click's, with a suggestion."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if near:
                raise click.UsageError(
                    f"No such command {args[0]!r}. Did you mean {near[0]!r}?", ctx
                ) from error
            raise


quantization_option = click.option(
    "--quantization",
    type=click.Choice(["auto", "nf4", "fp4", "int4", "int8", "int8_weight_only", "none"]),
    help="How the base is stored; auto is nf4 or int4, by the processor.  [default: auto]",
)


class EngineType(click.Choice[str]):
    """An engine's name, or the URLs of vLLM servers."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The value itself, if it is one of these."""
        from adapterhub.config import ENGINE_PATTERN  # pydantic's import would slow down --help

        if not re.fullmatch(ENGINE_PATTERN, str(value)):
            names = ", ".join(map(repr, self.choices))
            url = "the URL of a vLLM server, such as http://127.0.0.1:8000"
            self.fail(f"{value!r} is not {names} or {url}.", param, ctx)
        return str(value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """As help shows it."""
        return "[transformers|llama.cpp|URL[,URL...]]"


engine_option = click.option(
    "--engine",
    type=EngineType(["transformers", "llama.cpp"]),
    help="What computes; llama.cpp is fast for one row on CPUs, a URL is a vLLM server's.  [default: transformers]",
)


proof_option = click.option(
    "--proof/--no-proof",
    "prove_base",
    default=None,
    help="Compare what serves with the model's own forward pass before the first answer.  [default: --proof]",
)


batch_invariant_option = click.option(
    "--batch-invariant/--no-batch-invariant",
    "batch_invariant",
    default=None,
    help="Compute the same bits alone and in any company, which is slower.  [default: --no-batch-invariant]",
)


def base_options(function: F) -> F:
    """The options of the base: its name, its device, and whether its code may run."""
    options = [
        click.option(
            "--base",
            help="adapterhub-demo, a folder, a GGUF file or a hub id.  [default: the one the cards name]",
        ),
        click.option("--device", default=None, help="auto, cpu, cuda or cuda:N.  [default: auto]"),
        click.option(
            "--trust-remote-code", is_flag=True, default=None, help="Run the base's own Python code."
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _token_ids(
    context: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> tuple[tuple[int, ...], ...]:
    try:
        return tuple(tuple(map(int, word.split(","))) for word in given)
    except ValueError as error:
        raise click.BadParameter("Give token ids with commas between them: 12,7.") from error


def _logit_bias(
    context: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> dict[int, float] | None:
    try:
        pairs = (one.split("=") for one in given)
        return {int(token): float(bias) for token, bias in pairs} or None
    except ValueError as error:
        raise click.BadParameter("Give a token id and what is added: 12=-5.") from error


def sampling_options(function: F) -> F:
    """The fields of `SamplingParams` for one answer; it checks their values."""
    options = [
        click.option(
            "--max-tokens", "--max-new-tokens", type=int, help="The maximum number of tokens to generate."
        ),
        click.option(
            "--temperature", type=float, help="0 is greedy.  [default: the card's, the base's, or 0]"
        ),
        click.option("--top-p", type=float, help="Keep the tokens that reach this probability."),
        click.option("--top-k", type=int, help="Keep only this many most probable tokens."),
        click.option("--min-p", type=float, help="Keep tokens of this share of the most probable one's."),
        click.option("--repetition-penalty", type=float, help="Above 1 makes used tokens less probable."),
        click.option(
            "--frequency-penalty",
            type=float,
            help="Above 0 makes a token less probable each time it is used.",
        ),
        click.option("--presence-penalty", type=float, help="Above 0 makes used tokens less probable."),
        click.option(
            "--logit-bias",
            multiple=True,
            callback=_logit_bias,
            help="A token id and what is added to its logit, as 12=-5; may be given several times.",
        ),
        click.option("--seed", type=int, help="Makes sampling repeatable."),
        click.option(
            "--stop", multiple=True, help="A text that ends the answer; may be given several times."
        ),
        click.option(
            "--stop-token-id", "stop_token_ids", type=int, multiple=True, help="A token that ends the answer."
        ),
        click.option(
            "--suppress-token-id",
            "suppress_tokens",
            type=int,
            multiple=True,
            help="A token that is never generated.",
        ),
        click.option(
            "--bad-word-ids",
            "bad_words_ids",
            multiple=True,
            callback=_token_ids,
            help="Tokens, as 12,7, that are never generated one after the other.",
        ),
        click.option(
            "--bad-word", "bad_words", multiple=True, help="A word that is never generated as its own tokens."
        ),
        click.option("--min-tokens", type=int, help="The answer does not end before so many tokens."),
        click.option("--ignore-eos", is_flag=True, default=None, help="Continue past the end token."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def complete_adapter(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Completes adapter names in the shell; an unreadable registry has no completions."""
    try:
        cards = open_registry(context.params.get("registry")).list()
    except (AdapterHubError, OSError):
        return []
    return [CompletionItem(card.name) for card in cards if card.name.startswith(begun)]


def open_registry(location: str | Path | None) -> AdapterRegistry:
    """The registry that the option, or the settings, name."""
    from adapterhub.config import HubConfig
    from adapterhub.registry.remote import configured_registry

    return configured_registry(HubConfig.load(registry=location))


def named_card(adapter: str, registry: str | Path | None) -> AdapterCard | None:
    """The card of the adapter, or of a blend's main one; None for the router's choice and the base.

    Raises:
        AdapterHubError: There is no such adapter. Loading a base takes seconds, so this is found out before.
    """
    from adapterhub.lora.blending.resolving import resolve_adapter
    from adapterhub.requests.preparing import names_adapter

    if adapter == "auto" or not names_adapter(adapter):
        return None
    return resolve_adapter(adapter, open_registry(registry).resolve).main_card


def own_base(card: AdapterCard) -> dict[str, str | None]:
    """The base of a card, unless the settings name one; most cards of the registry may be for another."""
    from adapterhub.config import HubConfig

    config = HubConfig.load()
    if config.base or not card.base.name:
        return {}
    return {"base": card.base.name, "revision": config.revision or card.base.revision}


def open_hub(registry: str | Path | None, **settings: Any) -> AdapterHub:
    """The hub that the options describe."""
    from adapterhub.hub import AdapterHub

    if settings.get("quantization") is None:
        settings.pop("quantization", None)
    return AdapterHub.from_pretrained(registry=registry, **settings)


def read_text(text: str) -> str:
    """A text that was given as an argument; `-` stands for standard input."""
    if text != "-":
        return text
    content = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    if len(content) > MAX_INPUT_BYTES:
        raise ConfigError("The input is larger than 16 MiB.", hint="Give a part of it.")
    try:
        # As in `$(...)`, the last line break is not part of the text; neither is a byte order mark.
        return content.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ConfigError(
            "The input is not UTF-8 text.", hint="Convert it, for example with iconv."
        ) from error
