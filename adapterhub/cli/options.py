"""Options that several commands share, and the hub or registry that they describe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from adapterhub.hub import AdapterHub
    from adapterhub.registry import AdapterRegistry

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
registry_option = click.option(
    "--registry",
    type=click.Path(path_type=Path),
    help="The folder of adapters.  [default: ADAPTERHUB_REGISTRY, ./adapters, or the user's data folder]",
)


def base_options(function: F) -> F:
    """The options that say which base to load, and how."""
    options = [
        click.option(
            "--base", help="adapterhub-demo, a folder or a hub id.  [default: the one the cards name]"
        ),
        click.option(
            "--quantization",
            type=click.Choice(["nf4", "fp4", "int8", "none"]),
            default=None,
            help="How the base is stored.  [default: nf4]",
        ),
        click.option("--device", default=None, help="auto, cpu, cuda or cuda:N.  [default: auto]"),
        click.option(
            "--trust-remote-code", is_flag=True, default=None, help="Run the base's own Python code."
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def complete_adapter(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Completes adapter names in the shell; where they cannot be read, it keeps quiet."""
    from adapterhub.errors import AdapterHubError

    try:
        cards = open_registry(context.params.get("registry")).list()
    except (AdapterHubError, OSError):
        return []
    return [CompletionItem(card.name) for card in cards if card.name.startswith(begun)]


def open_registry(folder: Path | None) -> AdapterRegistry:
    """The registry that the option, or the settings, name."""
    from adapterhub.config import HubConfig, registry_folder
    from adapterhub.registry import AdapterRegistry

    return AdapterRegistry(registry_folder(HubConfig.load(registry=folder).registry))


def open_hub(registry: Path | None, **settings: Any) -> AdapterHub:
    """The hub that the options describe."""
    from adapterhub.hub import AdapterHub

    if settings.get("quantization") is None:
        settings.pop("quantization", None)
    return AdapterHub.from_pretrained(registry=registry, **settings)
