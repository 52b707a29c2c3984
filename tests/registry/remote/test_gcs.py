"""A registry in Google Cloud Storage: the real gcsfs, against a fake of the part of its JSON API that a registry uses.

pip install gcsfs && python -m pytest tests/registry/remote/test_gcs.py
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from adapterhub import AdapterNotFoundError, RegistryError
from adapterhub.capabilities import AdapterFeatures
from adapterhub.peft_format.config import WEIGHTS_FILE
from adapterhub.registry.remote import RemoteRegistry, open_registry
from tests.registry.remote.test_remote_registry import wait_until

# Else it asks Google, and not the endpoint, what kind of bucket it is.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
pytest.importorskip(
    "gcsfs", reason="gcsfs is not installed: its pins are not ours, so in an environment of its own"
)
BUCKET = "bucket"


class FakeGcs:
    """The objects of one bucket: key -> (generation, content)."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.lock, self.forbids, self.endpoint = threading.Lock(), False, ""
        self._generation = 0

    def put(self, key: str, content: bytes, generation: str | None) -> dict[str, Any] | None:
        """Stores an object; None if it has another generation than this."""
        with self.lock:
            if generation is not None and int(generation) != self.objects.get(key, (0, b""))[0]:
                return None
            self._generation += 1
            self.objects[key] = (self._generation, content)
            return self.describe(key)

    def describe(self, key: str) -> dict[str, Any]:
        generation, content = self.objects[key]
        return {"name": key, "bucket": BUCKET, "generation": str(generation), "size": str(len(content))}


def handler(gcs: FakeGcs) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            key, query = self.asked()
            if gcs.forbids:
                self.answer(403, {"error": {"message": "Forbidden for key hf_secret"}})
            elif key is None:
                prefix = query.get("prefix", [""])[0]
                found = [gcs.describe(name) for name in sorted(gcs.objects) if name.startswith(prefix)]
                self.answer(200, {"kind": "storage#objects", "items": found})
            elif key not in gcs.objects:
                self.answer(404, {"error": {"message": "not found"}})
            elif query.get("alt") == ["media"]:
                self.answer_content(gcs.objects[key][1])
            else:
                self.answer(200, gcs.describe(key))

        def do_POST(self) -> None:
            key, query = self.asked()
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if query["uploadType"] == ["multipart"]:
                boundary = self.headers["Content-Type"].partition("boundary=")[2].strip("'\"").encode()
                _, described, file, _ = body.split(b"--" + boundary)
                key = json.loads(described.partition(b"\n\n")[2])["name"]
                body = file.partition(b"\n\n")[2].removesuffix(b"\n")
            stored = gcs.put(key or query["name"][0], body, query.get("ifGenerationMatch", [None])[0])
            self.answer(200 if stored else 412, stored or {"error": {"message": "precondition"}})

        def do_DELETE(self) -> None:
            key, _ = self.asked()
            status = 204 if gcs.objects.pop(key or "", None) else 404
            self.send(status, b"")

        def asked(self) -> tuple[str | None, dict[str, list[str]]]:
            url = urlsplit(self.path)
            return unquote(url.path.partition("/o/")[2]) or None, parse_qs(url.query)

        def answer_content(self, content: bytes) -> None:
            wanted = self.headers.get("Range", "").removeprefix("bytes=")
            if wanted and not content:
                self.send(416, b"")
                return
            first, _, last = wanted.partition("-")
            self.send(206 if wanted else 200, content[int(first or 0) : int(last) + 1 if last else None])

        def answer(self, status: int, content: object) -> None:
            self.send(status, json.dumps(content).encode())

        def send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


@pytest.fixture
def gcs() -> Iterator[FakeGcs]:
    fake = FakeGcs()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(fake))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    fake.endpoint = f"http://127.0.0.1:{server.server_port}"
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


Opener = Callable[[], RemoteRegistry]


@pytest.fixture
def opened_gcs(gcs: FakeGcs, tmp_path: Path) -> Iterator[Opener]:
    registries: list[RemoteRegistry] = []

    def open_one() -> RemoteRegistry:
        options = {"token": "anon", "endpoint_url": gcs.endpoint}
        cache = tmp_path / f"gcs-{uuid.uuid4().hex}"
        registry = open_registry(
            f"gs://{BUCKET}/team/adapters", cache=cache, refresh=0.02, storage_options=options
        )
        assert isinstance(registry, RemoteRegistry)
        registries.append(registry)
        return registry

    yield open_one
    for registry in registries:
        registry.close()


def test_versions_aliases_and_removals(opened_gcs: Opener, gcs: FakeGcs, adapter: Path):
    writer, reader = opened_gcs(), opened_gcs()
    card = writer.register("json", adapter)
    assert "team/adapters/json/1/card.json" in gcs.objects
    assert reader.features(card) == AdapterFeatures.of_folder(adapter)
    assert (reader.folder(card) / WEIGHTS_FILE).read_bytes() == (adapter / WEIGHTS_FILE).read_bytes()
    writer.register("json", adapter)
    writer.alias("json", "prod", 1)
    wait_until(lambda: reader.get("json@prod").version == 1)
    assert reader.verify() == []
    writer.remove("json@2")
    with pytest.raises(AdapterNotFoundError):
        opened_gcs().get("json@2")
    assert writer.register("json", adapter).version == 3


def test_writers_that_race_lose_nothing(opened_gcs: Opener, adapter: Path):
    opened_gcs().register("json", adapter)
    names = [f"alias-{n}" for n in range(4)]
    threads = [threading.Thread(target=opened_gcs().alias, args=("json", name, 1)) for name in names]
    threads += [threading.Thread(target=opened_gcs().register, args=("json", adapter)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader = opened_gcs()
    assert sorted(reader.aliases("json")) == names
    assert [card.version for card in reader.versions("json")] == [1, 2, 3, 4]


def test_who_may_not_read_is_told_so(opened_gcs: Opener, gcs: FakeGcs):
    gcs.forbids = True
    with pytest.raises(RegistryError, match="could not be") as error:
        opened_gcs().list()
    assert not error.value.retryable
    assert "secret" not in str(error.value)


def test_an_empty_card_hides_one_adapter(opened_gcs: Opener, gcs: FakeGcs, adapter: Path):
    """A request for a part of an empty object is refused."""
    writer = opened_gcs()
    writer.register("json", adapter)
    writer.register("sql", adapter)
    gcs.put("team/adapters/json/1/card.json", b"", None)
    assert [card.ref for card in opened_gcs().list()] == ["sql@1"]
