"""Addresses of adapters on the Hugging Face Hub: ids, sub-folders, pasted URLs, folders of the hub's cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import unquote

_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_FOLDER = r"[\w-][\w.-]{0,95}"  # neither hidden nor `..`
_ID = re.compile(
    rf"(?:hf://)?(?P<repo>{_PART}/{_PART})(?:/(?P<subfolder>{_FOLDER}(?:/{_FOLDER}){{0,7}}))?/?"
    r"(?:@(?P<revision>[\w./-]{1,100}))?"
)
_URL = re.compile(
    rf"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?!(?:datasets|spaces|docs)/)(?P<repo>{_PART}/{_PART})"
    rf"(?:/(?P<view>tree|blob|resolve)/(?P<revision>[\w.%-]{{1,100}})(?:/(?P<path>{_FOLDER}(?:/{_FOLDER}){{0,7}}))?)?"
    r"/?(?:[?#].*)?"
)
_CACHE_FOLDER = "models--"


@dataclass(frozen=True)
class HubAddress:
    """Where an adapter is on the hub.

    Attributes:
        repo: `organisation/name`.
        subfolder: The adapter's folder in the repository, such as `checkpoint-500`; None for the repository itself.
        revision: A branch, tag or commit; None for the default branch.
    """

    repo: str
    subfolder: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}/{self.subfolder}" if self.subfolder else self.repo

    @property
    def uri(self) -> str:
        """The address without the revision, as cards record it."""
        return f"hf://{self}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parses an id (`organisation/name`, `organisation/name/checkpoint-500@revision`) or a page's URL."""
        if match := _URL.fullmatch(text):
            revision, path = match["revision"], match["path"]
            if match["view"] in ("blob", "resolve"):  # the page of a file
                path = (path or "").rpartition("/")[0]
            return cls(match["repo"], path or None, unquote(revision) if revision else None)
        if match := _ID.fullmatch(text):
            return cls(match["repo"], match["subfolder"], match["revision"])
        return None

    @classmethod
    def of_cached(cls, folder: Path) -> tuple[Self, Path] | None:
        """The address of a folder in a snapshot of the hub's cache.

        Returns:
            The address, and the folder in the cache that all links of the snapshot stay in; None for other folders.
        """
        path = folder.resolve()
        for root in path.parents:
            match path.relative_to(root).parts:
                case ("snapshots", commit, *rest) if root.name.startswith(_CACHE_FOLDER):
                    repo = root.name.removeprefix(_CACHE_FOLDER).replace("--", "/")
                    return cls(repo, "/".join(rest) or None, commit), root
        return None
