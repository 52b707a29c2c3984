"""`adapterhub push`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import output
from adapterhub.cli.options import complete_adapter, json_option, open_registry, registry_option
from adapterhub.cli.progress import progress
from adapterhub.errors import AdapterNotFoundError

if TYPE_CHECKING:
    from adapterhub.export import Push


@click.command()
@click.argument("source", metavar="NAME_OR_FOLDER", shell_complete=complete_adapter)
@click.argument("repo", metavar="ORGANISATION/NAME")
@click.option("--yes", is_flag=True, help="Send it; without this nothing leaves this machine.")
@click.option("--public", is_flag=True, help="Make a repository that is created public.  [default: private]")
@click.option("--revision", help="The branch.  [default: the repository's main one]")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of changing the branch.")
@click.option("--message", help="The commit's message.")
@registry_option
@json_option
def push(
    source: str,
    repo: str,
    yes: bool,
    public: bool,
    registry: str | Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show what would be sent to a repository of the Hugging Face Hub; with --yes, send it.

    NAME is an adapter or a blend, which is sent in PEFT's format. A folder is what an export or a merge wrote; give it
    with a '/', as in ./json-merged. Log in with `hf auth login`, or set HF_TOKEN.

    \b
    Examples:
      adapterhub push json organisation/json-lora
      adapterhub push ./json-merged organisation/json-merged --yes
    """
    settings = {**options, "dry_run": not yes, "private": not public}
    send = _sender(source, registry)
    try:
        if yes:
            with progress(f"Sending to {repo}") as show:
                report = send(repo, progress=lambda done, total: show(done, total, "bytes"), **settings)
        else:
            report = send(repo, **settings)
    except AdapterNotFoundError as error:
        if Path(source).is_dir():
            raise AdapterNotFoundError(
                error.message, hint=f"For the folder of that name give ./{source}"
            ) from error
        raise
    if as_json:
        output.emit_json(asdict(report))
    else:
        _show(report)


def _sender(source: str, registry: str | Path | None) -> Callable[..., Push]:
    from functools import partial

    from adapterhub.export import push_adapter, push_folder

    if os.sep in source or source in (".", ".."):
        return partial(push_folder, source)
    return partial(push_adapter, open_registry(registry), source)


def _show(report: Push) -> None:
    if report.url:
        output.emit(report.url)
    else:
        output.table(("file", "bytes"), [(file.path, f"{file.size_bytes:,}") for file in report.files])
        output.note(f"Nothing was sent to {report.repo}; --yes sends these files.")
    for name in report.skipped:
        output.warn(f"{name} is not sent.")
