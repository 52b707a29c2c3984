"""A registry in a repository of the Hugging Face Hub, in the same folders as on a disk.

A commit stores a version whole, and every commit names its parent: the Hub refuses it if somebody has committed in
between. What is read belongs to one commit, the last one that `stamp` has seen.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.errors import AdapterInvalidError, ConfigError, RegistryLockedError
from adapterhub.registry.cards import CARD_FILE
from adapterhub.registry.layout import REFS_FILE
from adapterhub.registry.refs import MAX_REFS_BYTES
from adapterhub.registry.remote.catalog import parse_refs
from adapterhub.registry.remote.errors import ConflictError, store_errors
from adapterhub.registry.remote.manifest import Manifest
from adapterhub.registry.remote.store import StoredObject
from adapterhub.registry.remote.urls import RegistryUrl

if TYPE_CHECKING:
    import httpx

_PATH = re.compile(
    r"(?P<datasets>datasets/)?(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/@]+))?(?:/(?P<prefix>[^@]+))?"
)
_ATTEMPTS = 5
_TIMEOUT_S = 30.0


class HubStore:
    """The files of a repository below a prefix. Any thread may call any method.

    Args:
        url: `hf://organisation/name`, `hf://datasets/organisation/name`, each also with `@revision` and a folder.
        options: Arguments of `HfApi`, such as `token` or `endpoint`.

    Raises:
        ConfigError: The URL names no repository.
    """

    def __init__(self, url: RegistryUrl, options: Mapping[str, Any]) -> None:
        from huggingface_hub import HfApi

        match = _PATH.fullmatch(url.path)
        if match is None:
            raise ConfigError(
                f"{url} names no repository of the Hub.", hint="Write it as hf://organisation/name@revision."
            )
        self._url, self._api = str(url), HfApi(**options)
        self._repo, self._repo_type = match["repo"], "dataset" if match["datasets"] else "model"
        self._revision = match["revision"] or "main"
        self._prefix = f"{match['prefix']}/" if match["prefix"] else ""
        self._head: str | None = None
        self._stamping = threading.Lock()  # so that a late answer does not replace a newer one

    def stamp(self) -> str:
        """The last commit."""
        with self._stamping, self._errors("read"):
            info = self._api.repo_info(
                self._repo,
                repo_type=self._repo_type,
                revision=self._revision,
                expand=["sha"],  # type: ignore[arg-type]  # a list, as is documented; else all files are listed
                timeout=_TIMEOUT_S,
            )
            self._head = str(info.sha)
            return self._head

    def objects(self, prefix: str = "") -> Mapping[str, StoredObject]:
        """All files below a prefix, in the last commit that was seen."""
        return self._objects(self._head or self.stamp(), prefix)

    def read(self, path: str, limit: int) -> tuple[bytes, str]:
        """The content of a file and its git object id."""
        head = self._head or self.stamp()
        return self._content(head, path, limit), self._tag(head, path) or ""

    def content(self, path: str, limit: int) -> bytes:
        """The content of a file."""
        return self._content(self._head or self.stamp(), path, limit)

    def read_start(self, path: str, size: int) -> bytes:
        """The first bytes of a file."""
        content = b""
        with self._opened(self._head or self.stamp(), path, {"Range": f"bytes=0-{size - 1}"}) as response:
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) >= size:  # of a server that knows no ranges
                    break
        return content[:size]

    def download(self, path: str, target: Path, limit: int) -> None:
        """Writes a file's content to a new file."""
        with target.open("xb") as file:
            for chunk in self._chunks(self._head or self.stamp(), path, limit):
                file.write(chunk)

    def replace(self, path: str, content: bytes, tag: str | None) -> None:
        """Commits the new content, if the file is still the one that was read."""
        from huggingface_hub import CommitOperationAdd

        def operations(head: str) -> list[Any]:
            if self._tag(head, path) != tag:
                raise ConflictError(path)
            return [CommitOperationAdd(self._prefix + path, content)]

        self._commit(f"Change {path}", operations)

    def publish(self, folder: Path, card: bytes, path: str, *, resume: bool) -> None:
        """Commits all files of a version at once."""
        from huggingface_hub import CommitOperationAdd

        contents: dict[str, Path | bytes] = {name: folder / name for name in Manifest.of(folder).files}
        contents[CARD_FILE] = card

        def operations(head: str) -> list[Any]:
            if self._objects(head, path) or self._was_removed(head, path):
                raise ConflictError(path)
            return [
                CommitOperationAdd(f"{self._prefix}{path}/{name}", file) for name, file in contents.items()
            ]

        self._commit(f"Add {path}", operations)

    def delete(self, paths: Sequence[str]) -> None:
        """Commits the deletion of files."""
        from huggingface_hub import CommitOperationDelete

        def operations(head: str) -> list[Any]:
            present = self._objects(head, "")
            return [CommitOperationDelete(self._prefix + path) for path in paths if path in present]

        self._commit(f"Remove {paths[0] if paths else 'nothing'}", operations)

    def _commit(self, message: str, operations: Callable[[str], list[Any]]) -> None:
        """Commits on the last commit, with operations made for it; on the next one if somebody was first."""
        for _ in range(_ATTEMPTS):
            head = self.stamp()
            made = operations(head)
            if not made:
                return
            try:
                with self._errors("changed"):
                    self._try_commit(message, made, head)
            except ConflictError:
                continue
            return
        raise RegistryLockedError(
            f"{self._url} could not be changed: others committed first {_ATTEMPTS} times.", hint="Try again."
        )

    def _try_commit(self, message: str, operations: list[Any], head: str) -> None:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            self._api.create_commit(
                self._repo,
                operations,
                commit_message=message,
                repo_type=self._repo_type,
                revision=self._revision,
                parent_commit=head,
            )
        except HfHubHTTPError as error:
            if error.response.status_code in (409, 412):
                raise ConflictError(message) from error
            raise

    def _objects(self, head: str, prefix: str) -> dict[str, StoredObject]:
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import EntryNotFoundError

        folder = (self._prefix + prefix).rstrip("/")
        with self._errors("listed"):
            try:
                tree = self._api.list_repo_tree(
                    self._repo, folder or None, recursive=True, revision=head, repo_type=self._repo_type
                )
                files = [entry for entry in tree if isinstance(entry, RepoFile)]
            except EntryNotFoundError:
                return {}
        return {file.path.removeprefix(self._prefix): StoredObject(file.size, file.blob_id) for file in files}

    def _was_removed(self, head: str, path: str) -> bool:
        """Whether a version was removed, whose number is not given again: readers would not see it."""
        name, _, version = path.partition("/")
        refs = f"{name}/{REFS_FILE}"
        try:
            return int(version) in parse_refs(refs, self._content(head, refs, MAX_REFS_BYTES)).removed
        except FileNotFoundError:
            return False

    def _content(self, head: str, path: str, limit: int) -> bytes:
        return b"".join(self._chunks(head, path, limit))

    def _chunks(self, head: str, path: str, limit: int) -> Iterator[bytes]:
        """The content in parts; errors of who writes them to a disk are not the Hub's."""
        with self._opened(head, path) as response:
            yield from _bounded(response, path, limit)

    def _tag(self, head: str, path: str) -> str | None:
        from huggingface_hub import RepoFile

        with self._errors("read"):
            found = self._api.get_paths_info(
                self._repo, [self._prefix + path], revision=head, repo_type=self._repo_type
            )
        return next((file.blob_id for file in found if isinstance(file, RepoFile)), None)

    @contextmanager
    def _opened(
        self, head: str, path: str, further: Mapping[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, and not listed
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        url = hf_hub_url(
            self._repo,
            self._prefix + path,
            repo_type=self._repo_type,
            revision=head,
            endpoint=self._api.endpoint,
        )
        headers = build_hf_headers(token=self._api.token) | dict(further or {})
        with self._errors("read"):
            try:
                with get_session().stream(
                    "GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_S
                ) as response:
                    hf_raise_for_status(response)
                    yield response
            except EntryNotFoundError as error:
                raise FileNotFoundError(path) from error

    def _errors(self, what: str) -> Any:
        return store_errors(self._url, what)


def _bounded(response: httpx.Response, path: str, limit: int) -> Iterator[bytes]:
    done = 0
    for chunk in response.iter_bytes():
        done += len(chunk)
        if done > limit:
            raise AdapterInvalidError(
                f"{path} has more than {limit:,} bytes, which is the most that is read."
            )
        yield chunk
