"""A server with keys, and a registry of its own, for tests of what admins do."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.engine import Engine
from adapterhub.server import ServerConfig, create_app

ANY, JSON_ONLY, ADMIN = "any-key-0123456789abc", "json-key-0123456789ab", "root-key-0123456789ab"
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64}


@dataclass
class Served:
    """A running application."""

    client: TestClient
    hub: AdapterHub
    folder: Path

    def call(self, method: str, path: str, key: str | None = ADMIN, **options: Any) -> Any:
        """Sends a request with a key."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return self.client.request(method, path, headers={**headers, **options.pop("headers", {})}, **options)

    def answer(self, model: str, key: str | None = ANY) -> Any:
        """Sends a chat request to a model."""
        return self.call("POST", "/v1/chat/completions", key, json={**HELLO, "model": model})

    def models(self, key: str | None = ANY) -> list[str]:
        """The ids of the models that exist for a key."""
        return [model["id"] for model in self.call("GET", "/v1/models", key).json()["data"]]

    @property
    def audit(self) -> list[dict[str, str]]:
        """The audit log."""
        path = self.hub.registry.root / ".audit.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def served(
    registry: Path, adapters: dict[str, Path], tmp_path: Path, engine: Engine | None = None, **settings: Any
) -> Iterator[Served]:
    """Serves a copy of a registry; `tmp_path/adapters`, with copies of PEFT folders, may be registered from."""
    copy = shutil.copytree(registry, tmp_path / "registry")
    folder = tmp_path / "adapters"
    for name, source in adapters.items():
        shutil.copytree(source, folder / name)
    config = ServerConfig(adapter_folders=(folder,), **settings)
    with (
        AdapterHub(engine or EchoEngine(), AdapterRegistry(copy)) as hub,
        TestClient(create_app(hub, config), raise_server_exceptions=False) as client,
    ):
        yield Served(client, hub, folder)


def write_keys(folder: Path) -> dict[str, Path]:
    """Key files with a key for all adapters, one for `json` alone, and an admin's."""
    api, admin = folder / "keys.yaml", folder / "admin-keys"
    api.write_text(
        json.dumps(
            [{"name": "any", "key": ANY}, {"name": "json-only", "key": JSON_ONLY, "adapters": ["json"]}]
        )
    )
    admin.write_text(f"root {ADMIN}\n")
    for path in (api, admin):
        path.chmod(0o600)
    return {"api_key_file": api, "admin_key_file": admin}


def zipped(folder: Path) -> bytes:
    """A zip archive of a folder's files."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    return content.getvalue()
