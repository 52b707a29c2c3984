"""Writes under a condition, which fsspec has no common call for: create if absent, replace if unchanged.

S3 and stores with its protocol compare ETags (`If-None-Match`, `If-Match`), Google Cloud Storage compares generations.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol
from urllib.parse import quote

from adapterhub.errors import RegistryError
from adapterhub.registry.remote.errors import ConflictError

_memory_lock = threading.Lock()


class ConditionalWrites(Protocol):
    """How a file system writes an object under a condition; both raise `ConflictError` where it does not hold."""

    def create(self, path: str, content: bytes) -> None:
        """Creates an object that does not exist."""
        ...

    def replace(self, path: str, content: bytes, tag: str) -> None:
        """Replaces an object that still has this tag."""
        ...


class S3Writes:
    """Through s3fs.

    Args:
        fs: An `s3fs.S3FileSystem`.
    """

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def create(self, path: str, content: bytes) -> None:
        """With `If-None-Match: *`."""
        self._put(path, content, IfNoneMatch="*")

    def replace(self, path: str, content: bytes, tag: str) -> None:
        """With `If-Match`."""
        self._put(path, content, IfMatch=tag)

    def _put(self, path: str, content: bytes, **condition: str) -> None:
        _check_botocore()
        bucket, key, _ = self._fs.split_path(path)
        try:
            self._fs.call_s3("put_object", Bucket=bucket, Key=key, Body=content, **condition)
        except FileNotFoundError as error:
            if "IfMatch" in condition:  # it has been deleted
                raise ConflictError(path) from error
            raise
        except Exception as error:
            if isinstance(error, FileExistsError) or _s3_status(error) in (409, 412):
                raise ConflictError(path) from error
            raise


class GcsWrites:
    """Through gcsfs.

    Args:
        fs: A `gcsfs.GCSFileSystem`.
    """

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def create(self, path: str, content: bytes) -> None:
        """With generation 0, which means that there is none."""
        self.replace(path, content, "0")

    def replace(self, path: str, content: bytes, tag: str) -> None:
        """With the generation that was read."""
        bucket, key, _ = self._fs.split_path(path)
        try:
            self._fs.call(
                "POST",
                f"{self._fs.base.replace('/storage/', '/upload/storage/', 1)}b/{quote(bucket, safe='')}/o",
                uploadType="media",
                name=key,
                ifGenerationMatch=tag,
                headers={"Content-Type": "application/octet-stream"},
                data=content,
            )
        except Exception as error:
            if str(getattr(error, "code", "")) == "412" or isinstance(error, FileExistsError):
                raise ConflictError(path) from error
            raise


class MemoryWrites:
    """In fsspec's file system in memory, which only this process sees.

    Args:
        fs: A `fsspec.implementations.memory.MemoryFileSystem`.
    """

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def create(self, path: str, content: bytes) -> None:
        """Under a lock of this process."""
        with _memory_lock:
            if self._fs.exists(path):
                raise ConflictError(path)
            self._fs.pipe_file(path, content)

    def replace(self, path: str, content: bytes, tag: str) -> None:
        """Under a lock of this process."""
        with _memory_lock:
            if not self._fs.exists(path) or str(self._fs.info(path)["created"]) != tag:
                raise ConflictError(path)
            self._fs.pipe_file(path, content)


class NoWrites:
    """Of a file system that is only read, because it cannot write under a condition.

    Args:
        url: The registry's URL, for the message.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def create(self, path: str, content: bytes) -> None:
        """Refuses."""
        raise RegistryError(
            f"{self._url} can only be read: this store has no writes under a condition, so that two writers could "
            "overwrite each other's changes.",
            hint="Change the registry in a folder or in S3, Google Cloud Storage or the Hub, and copy it there.",
        )

    def replace(self, path: str, content: bytes, tag: str) -> None:
        """Refuses."""
        self.create(path, content)


def conditional_writes(protocol: str, fs: Any, url: str) -> ConditionalWrites:
    """How the file system of a protocol writes under a condition."""
    match protocol:
        case "s3" | "s3a":
            return S3Writes(fs)
        case "gs" | "gcs":
            return GcsWrites(fs)
        case "memory":
            return MemoryWrites(fs)
    return NoWrites(url)


def _check_botocore() -> None:
    """s3fs leaves out a condition that an old botocore does not know: then it would overwrite."""
    from botocore import __version__

    if tuple(map(int, __version__.split(".")[:3])) < (1, 36, 0):
        raise RegistryError(
            f"botocore {__version__} has no conditional writes.", hint="pip install -U s3fs botocore"
        )


def _s3_status(error: BaseException | None) -> int:
    """The HTTP status of a botocore error, which s3fs may have wrapped."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        error = error.__cause__
    return 0
