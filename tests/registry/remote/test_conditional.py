"""Writes under a condition, as the libraries of S3 and Google Cloud Storage are called for them.

`test_s3.py` asks a server; of Google Cloud Storage there is none here, so its library is played by a fake.
"""

from __future__ import annotations

from typing import Any

import pytest

from adapterhub.registry.remote.conditional import GcsWrites, NoWrites, S3Writes, conditional_writes
from adapterhub.registry.remote.errors import ConflictError


class RefusedError(Exception):
    """As `gcsfs.retry.HttpError`."""

    def __init__(self, code: int) -> None:
        self.code = code


class FakeGcs:
    """An object of a bucket, by its generation, as `gcsfs.GCSFileSystem` reaches it."""

    base = "https://storage.googleapis.com/storage/v1/"

    def __init__(self) -> None:
        self.generation, self.content = 0, b""

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def call(self, method: str, url: str, *, name: str, data: bytes, **rest: Any) -> None:
        assert (method, url) == ("POST", "https://storage.googleapis.com/upload/storage/v1/b/bucket/o")
        assert (name, rest["uploadType"]) == ("a/refs.json", "media")
        if int(rest["ifGenerationMatch"]) != self.generation:
            raise RefusedError(412)
        self.generation, self.content = self.generation + 1, data


def test_google_cloud_storage_compares_generations():
    fs = FakeGcs()
    writes = GcsWrites(fs)
    writes.create("bucket/a/refs.json", b"1")
    with pytest.raises(ConflictError):
        writes.create("bucket/a/refs.json", b"2")
    writes.replace("bucket/a/refs.json", b"3", "1")
    with pytest.raises(ConflictError):
        writes.replace("bucket/a/refs.json", b"4", "1")
    assert fs.content == b"3"


def test_other_refusals_are_no_conflicts():
    class Forbidding(FakeGcs):
        def call(self, *arguments: Any, **options: Any) -> None:
            raise RefusedError(403)

    with pytest.raises(RefusedError):
        GcsWrites(Forbidding()).create("bucket/a/refs.json", b"1")


@pytest.mark.parametrize(
    ("protocol", "kind"), [("s3", S3Writes), ("gs", GcsWrites), ("az", NoWrites), ("file", NoWrites)]
)
def test_who_can(protocol: str, kind: type):
    assert type(conditional_writes(protocol, None, f"{protocol}://a")) is kind
