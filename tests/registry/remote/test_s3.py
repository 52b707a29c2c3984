"""A registry in S3, over S3's protocol to moto's server.

Needs s3fs beside the package, and a server at `ADAPTERHUB_TEST_S3`, for example from an environment of its own:

    python -m venv moto && moto/bin/pip install "moto[server]" && moto/bin/moto_server -p 5555
    ADAPTERHUB_TEST_S3=http://127.0.0.1:5555 pytest -m slow tests/registry/remote/test_s3.py
"""

from __future__ import annotations

import os
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from adapterhub import AdapterInvalidError, AdapterNotFoundError, AdapterRegistry, RegistryError
from adapterhub.peft_format.config import WEIGHTS_FILE
from adapterhub.registry.remote import RemoteRegistry, open_registry, sync_registry
from adapterhub.registry.remote.conditional import S3Writes
from adapterhub.registry.remote.errors import ConflictError

ENDPOINT = os.environ.get("ADAPTERHUB_TEST_S3")
OPTIONS: dict[str, Any] = {"endpoint_url": ENDPOINT, "key": "test", "secret": "test"}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(ENDPOINT is None, reason="no S3 server at ADAPTERHUB_TEST_S3"),
]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs = pytest.importorskip("s3fs")
    name = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem(**OPTIONS).mkdir(name)
    return name


def opened(bucket: str, cache: Path) -> RemoteRegistry:
    registry = open_registry(f"s3://{bucket}/a/b", cache=cache, refresh=0.1, storage_options=OPTIONS)
    assert isinstance(registry, RemoteRegistry)
    return registry


def test_a_registry_in_s3(bucket: str, adapter: Path, tmp_path: Path):
    writer, reader = opened(bucket, tmp_path / "writer"), opened(bucket, tmp_path / "reader")
    card = writer.register("json", adapter)
    writer.alias("json", "prod", 1)
    assert reader.get("json@prod").digest == card.digest
    assert (reader.folder(card) / WEIGHTS_FILE).read_bytes() == (adapter / WEIGHTS_FILE).read_bytes()
    writer.register("json", adapter)
    writer.remove("json@2")
    assert writer.register("json", adapter).version == 3
    assert writer.verify() == []
    local = AdapterRegistry(tmp_path / "local")
    sync_registry(reader, local)
    assert [card.version for card in local.versions("json")] == [1, 3]


def test_writers_that_race(bucket: str, adapter: Path, tmp_path: Path):
    opened(bucket, tmp_path / "first").register("json", adapter)
    versions: list[int] = []

    def work(number: int) -> None:
        registry = opened(bucket, tmp_path / f"{number}")
        versions.append(registry.register("json", adapter).version)
        registry.revise("json@1", lambda card: {"tags": [*card.tags, str(number)]})
        registry.alias("json", f"alias-{number}", 1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    card = opened(bucket, tmp_path / "last").get("json@1")
    assert sorted(versions) == [2, 3, 4, 5]
    assert sorted(card.tags) == ["0", "1", "2", "3"]
    assert len(card.aliases) == 4


def test_conditions(bucket: str):
    import s3fs

    fs = s3fs.S3FileSystem(**OPTIONS, use_listings_cache=False)
    writes = S3Writes(fs)
    writes.create(f"{bucket}/object", b"1")
    with pytest.raises(ConflictError):
        writes.create(f"{bucket}/object", b"2")
    tag = fs.info(f"{bucket}/object")["ETag"]
    writes.replace(f"{bucket}/object", b"3", tag)
    with pytest.raises(ConflictError):
        writes.replace(f"{bucket}/object", b"4", tag)
    with pytest.raises(ConflictError):
        writes.replace(f"{bucket}/absent", b"5", tag)
    assert fs.cat_file(f"{bucket}/object") == b"3"


def test_tampered_weights(bucket: str, adapter: Path, tmp_path: Path):
    import s3fs

    card = opened(bucket, tmp_path / "writer").register("json", adapter)
    path, fs = f"{bucket}/a/b/json/1/{WEIGHTS_FILE}", s3fs.S3FileSystem(**OPTIONS)
    content = bytearray(fs.cat_file(path))
    content[-1] ^= 1
    fs.pipe_file(path, bytes(content))
    with pytest.raises(AdapterInvalidError):
        opened(bucket, tmp_path / "reader").folder(card)


def test_a_bucket_that_is_not_there(adapter: Path, tmp_path: Path):
    registry = opened(f"absent-{uuid.uuid4().hex}", tmp_path)
    with pytest.raises(AdapterNotFoundError):
        registry.get("json")
    with pytest.raises(RegistryError, match="does not exist"):
        registry.register("json", adapter)
