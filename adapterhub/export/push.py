"""Sending an exported folder to the Hugging Face Hub, in one commit; nothing is sent unless it is asked for.

Only files of known kinds are sent, and none if a text among them holds a secret or a path of this machine. A new
repository is private unless it is to be public.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from adapterhub import __version__
from adapterhub._files import is_folder, os_errors_as, read_bounded, scratch_folder, user_path
from adapterhub.agent_tools.content_rules import MAX_CHARACTERS, validate_text
from adapterhub.agent_tools.content_rules.secret_rule import NoSecrets
from adapterhub.errors import ExportError, InvalidRequestError
from adapterhub.registry.hub_address import HubAddress
from adapterhub.registry.model_card import MODEL_CARD_FILE

if TYPE_CHECKING:
    from adapterhub.export.lora_form import LoraForm
    from adapterhub.registry import AdapterRegistry

_WEIGHTS = ("*.safetensors", "*.gguf")
_TEXTS = ("*.json", "*.jinja", "*.txt", "*.md", "*.yaml", "Modelfile*", "LICENSE*", "NOTICE*", "SHA256SUMS")
_SENT = (*_WEIGHTS, *_TEXTS, "*.model")
# Vocabularies and lists of tensors are no texts that somebody wrote.
_NOT_READ = ("tokenizer.json", "vocab.json", "added_tokens.json", "merges.txt", "*.index.json", "SHA256SUMS")
_MAX_TEXT_BYTES = 16 * 2**20
# Longer than any secret's pattern: blocks of a long text overlap by as much.
_OVERLAP = 2**14
_HOMES = re.compile(r"(?:/home/|/Users/|[A-Za-z]:\\+Users\\+)[\w.-]+")
_PATHS = re.compile(r"(?<![\w.:/~-])/[\w.-]+/[\w.-]+")  # the first two names decide
_SYSTEM_FOLDERS = ("/bin/", "/dev/", "/etc/", "/lib/", "/proc/", "/sbin/", "/sys/", "/usr/")
_MAX_MESSAGE = 200
_HINTS = {
    401: "Log in with `hf auth login`, or set HF_TOKEN to a token that may write.",
    403: "Use a token that may write to that organisation or user.",
    404: "Check the repository's name and its revision.",
}


@dataclass(frozen=True)
class PushedFile:
    """One file.

    Attributes:
        path: Its path in the repository.
        size_bytes: Its size.
    """

    path: str
    size_bytes: int


@dataclass(frozen=True)
class Push:
    """What was sent, or would be.

    Attributes:
        repo: The repository.
        files: Its files.
        skipped: Files of the folder that are not sent: hidden, links, or of unknown kinds.
        url: The commit's address; None if nothing was sent.
    """

    repo: str
    files: tuple[PushedFile, ...]
    skipped: tuple[str, ...]
    url: str | None = None


def push_folder(
    folder: str | Path,
    repo: str,
    *,
    dry_run: bool = True,
    private: bool = True,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Push:
    """Sends an exported folder to a repository of the Hub, which is created if need be.

    The token is huggingface_hub's: HF_TOKEN, or that of `hf auth login`. HF_ENDPOINT names another Hub.

    Args:
        folder: What an export or a merge wrote.
        repo: `organisation/name`.
        dry_run: Check everything that needs no network, and send nothing.
        private: Whether a repository that is created is private.
        revision: The branch; the repository's main one if not given.
        create_pr: Open a pull request instead of changing the branch.
        message: The commit's message.
        progress: Called with the number of bytes sent so far and in total.

    Raises:
        InvalidRequestError: There is no such folder, or `repo` is no repository's name.
        ExportError: The folder holds no weights or a text that must not be published, or sending failed; then the
            repository has no new commit.
    """
    path = user_path(folder, InvalidRequestError).absolute()
    _check_repo(repo)
    with os_errors_as(ExportError, f"The folder {path.name!r} cannot be read"):
        files, skipped = _select(path)
        for file in files:
            _check_content(file, path)
        sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in files}
    push = Push(repo, tuple(PushedFile(name, size) for name, size in sizes.items()), skipped)
    if dry_run:
        return push
    with _hub_errors(repo):
        url = _send(
            path, sizes, progress or (lambda done, total: None), repo, private, revision, create_pr, message
        )
    return replace(push, url=url)


class PushOptions(TypedDict, total=False):
    """The keyword arguments of `push_folder`."""

    dry_run: bool
    private: bool
    revision: str | None
    create_pr: bool
    message: str | None
    progress: Callable[[int, int], None] | None


def push_adapter(
    registry: AdapterRegistry,
    adapter: str | Mapping[str, float],
    repo: str,
    form: LoraForm | None = None,
    **options: Unpack[PushOptions],
) -> Push:
    """Sends an adapter, or a blend, as a PEFT folder with its card as `README.md`.

    Args:
        registry: As in `export_peft`.
        adapter: As in `export_peft`.
        repo: As in `push_folder`.
        form: As in `export_peft`.
        **options: As in `push_folder`.

    Raises:
        AdapterHubError: As `export_peft` and `push_folder`.
    """
    # Sending a folder needs no torch.
    from adapterhub.export.adapter_card import PLACE
    from adapterhub.export.peft_folder import export_peft

    _check_repo(repo)
    with scratch_folder(ExportError, "The adapter could not be prepared") as scratch:
        folder = scratch / "adapter"
        export_peft(registry, adapter, folder, form)
        readme = folder / MODEL_CARD_FILE
        readme.write_text(readme.read_text(encoding="utf-8").replace(PLACE, repo), encoding="utf-8")
        return push_folder(folder, repo, **options)


def _send(
    folder: Path,
    sizes: Mapping[str, int],
    progress: Callable[[int, int], None],
    repo: str,
    private: bool,
    revision: str | None,
    create_pr: bool,
    message: str | None,
) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    api, done = HfApi(library_name="adapterhub", library_version=__version__), 0
    api.create_repo(repo, private=private, exist_ok=True)
    additions = [CommitOperationAdd(name, folder / name) for name in sizes]
    for addition, size in zip(additions, sizes.values(), strict=True):
        # Large files first, one by one; nobody sees them before the commit.
        api.preupload_lfs_files(repo, [addition], revision=revision, create_pr=create_pr)
        progress(done := done + size, sum(sizes.values()))
    text = message or "Upload with adapterhub"
    commit = api.create_commit(repo, additions, commit_message=text, revision=revision, create_pr=create_pr)
    return str(commit.pr_url or commit.commit_url)


def _check_repo(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        address = HubAddress.parse(repo)
        if address is not None and address.repo == repo:
            validate_repo_id(repo)
            return
    except HFValidationError:
        pass
    raise InvalidRequestError(
        f"{repo[:200]!r} is not the name of a repository.",
        hint="Give organisation/name, or user/name: letters, digits, '-', '_' and '.'; no '--', '..' or '.git'.",
    )


def _select(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The files to send, and the names of those that are not."""
    if not is_folder(folder, InvalidRequestError):
        raise InvalidRequestError(f"There is no folder {folder.name!r}.", hint="Give what an export wrote.")
    if not _is_sent(
        folder / MODEL_CARD_FILE, folder
    ):  # first, for a folder that is no export may have no end
        raise ExportError(
            f"The folder {folder.name!r} has no {MODEL_CARD_FILE}.", hint="Write a model card first."
        )
    found = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    sent = [path for path in found if _is_sent(path, folder)]
    if not any(_matches(path, _WEIGHTS) for path in sent):
        raise ExportError(
            f"The folder {folder.name!r} holds no weights.",
            hint="Give what an export wrote: *.safetensors or *.gguf.",
        )
    return sent, tuple(path.relative_to(folder).as_posix() for path in found if path not in sent)


def _is_sent(path: Path, folder: Path) -> bool:
    below = path.relative_to(folder)
    linked = any((folder / part).is_symlink() for part in (below, *below.parents))
    hidden = any(part.startswith(".") for part in below.parts)
    return not linked and not hidden and path.is_file() and _matches(path, _SENT)


def _matches(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path.name, pattern) for pattern in patterns)


def _check_content(path: Path, folder: Path) -> None:
    """Refuses a file with a secret or a path of this machine; what it is, is not in the message."""
    text = _text_of(path)
    step = MAX_CHARACTERS - _OVERLAP
    blocks = (text[start : start + MAX_CHARACTERS] for start in range(0, len(text), step))
    results = (result for block in blocks for result in validate_text(block, [NoSecrets()]).results)
    secret = next((result for result in results if not result.passed), None)
    if secret or _has_local_path(text, folder):
        what = secret.reason if secret else "a path of this machine is in it"
        raise ExportError(
            f"{path.relative_to(folder).as_posix()} must not be published: {what}.",
            hint="Remove it there, or from the adapter's card, and export again.",
        )


def _text_of(path: Path) -> str:
    """What somebody may have written in a file; of safetensors that is the metadata."""
    if path.suffix == ".safetensors":
        return "\n".join(_metadata(path).values())
    if not _matches(path, _TEXTS) or _matches(path, _NOT_READ):
        return ""
    return read_bounded(path, _MAX_TEXT_BYTES).decode(errors="replace")


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ExportError(f"{path.name} is no valid safetensors file.", hint="Export again.") from error


def _has_local_path(text: str, folder: Path) -> bool:
    """Whether a text names a home folder, the place of the exported folder, or a file or folder that is here."""
    places = {str(folder.resolve().parent), os.environ.get("HOME", "").rstrip("/")} - {"/", ""}
    if _HOMES.search(text) or any(f"{place}/" in text for place in places):
        return True
    paths = {path for path in _PATHS.findall(text) if not path.startswith(_SYSTEM_FOLDERS)}
    return any(Path(path).exists() for path in paths)


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    import httpx  # huggingface_hub's
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ExportError(f"{repo} was not sent to: HF_HUB_OFFLINE is set.", hint="Unset it.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        message = " ".join((error.server_message or "").split()).rstrip(".")[:_MAX_MESSAGE]
        said = f": {message}" if message else ""
        hint = _HINTS.get(status, "Try again later.")
        raise ExportError(f"The Hub refused ({status}) what was sent to {repo}{said}.", hint=hint) from error
    except ValueError as error:  # the Hub found fault with the model card's metadata
        message = " ".join(str(error).split())[:_MAX_MESSAGE]
        hint = "Correct README.md." if "README" in message else "Check HF_ENDPOINT."
        raise ExportError(f"{repo} has no new commit: {message}", hint=hint) from error
    except (OSError, RuntimeError, httpx.HTTPError) as error:
        kind = type(error).__name__
        raise ExportError(
            f"The Hub could not be reached, or the folder not be read ({kind}); {repo} has no new commit.",
            hint="Check the network and HF_ENDPOINT, and try again.",
        ) from error
