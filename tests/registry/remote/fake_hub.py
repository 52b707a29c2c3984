"""The part of the Hugging Face Hub's HTTP API that a registry uses: commits with parents, trees, files."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REPOSITORY = "organisation/adapters"
TOKEN = "hf_secret_token"


@dataclass
class FakeHub:
    """One repository.

    Attributes:
        commits: Commit -> path -> content, oldest first.
        before_commit: Called before a commit is applied.
        asked: The paths and queries of reading requests, oldest first.
        is_down: Whether nothing can be read.
        ranges: The `Range` headers of reading requests, oldest first.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    before_commit: Callable[[], object] = lambda: None
    endpoint: str = ""
    asked: list[str] = field(default_factory=list)
    is_down: bool = False
    ranges: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def head(self) -> str:
        """The last commit."""
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the last commit."""
        return self.commits[self.head]

    def commit(self, lines: list[dict[str, Any]]) -> str | None:
        """Applies a commit; None if its parent is not the last one."""
        with self.lock:
            header, files = lines[0]["value"], dict(self.files)
            if header.get("parentCommit") not in (None, self.head):
                return None
            for line in lines[1:]:
                match line["key"]:
                    case "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    case "deletedFile":
                        del files[line["value"]["path"]]
            sha = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
            self.commits[sha] = files
            return sha


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """Serves a repository for as long as the block runs."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.asked.append(self.path)
            if hub.is_down:
                self.answer({"error": "Down"}, 500)
            elif path.startswith(f"api/models/{REPOSITORY}/revision/"):
                self.answer({"id": REPOSITORY, "sha": hub.head, "siblings": []})
            elif path.startswith(f"api/models/{REPOSITORY}/tree/"):
                commit, _, folder = path.removeprefix(f"api/models/{REPOSITORY}/tree/").partition("/")
                self.answer_tree(hub.commits[commit], folder)
            elif path.startswith(f"{REPOSITORY}/resolve/"):
                commit, _, file = path.removeprefix(f"{REPOSITORY}/resolve/").partition("/")
                self.answer_file(hub.commits[commit].get(file))
            else:
                self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self.chunks()
            path = unquote(urlsplit(self.path).path).strip("/")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}" and "paths-info" not in path:
                self.answer({"error": "Invalid credentials"}, 401)
            elif "/preupload/" in path:
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                self.answer({"files": files})
            elif "/paths-info/" in path:
                files = hub.commits[path.rpartition("/")[2]]
                wanted = parse_qs(body.decode())["paths"]
                self.answer([_entry(name, files[name]) for name in wanted if name in files])
            else:
                hub.before_commit()
                sha = hub.commit([json.loads(line) for line in body.splitlines() if line])
                if sha is None:
                    self.answer({"error": "A commit has happened since."}, 412)
                else:
                    url = f"{hub.endpoint}/{REPOSITORY}/commit/{sha}"
                    self.answer({"commitUrl": url, "commitOid": sha, "success": True})

        def chunks(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            return body

        def answer_tree(self, files: dict[str, bytes], folder: str) -> None:
            inside = {
                name: content
                for name, content in files.items()
                if name.startswith(f"{folder}/") or not folder
            }
            if folder and not inside:
                self.answer({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            else:
                self.answer([_entry(name, content) for name, content in inside.items()])

        def answer_file(self, content: bytes | None) -> None:
            if content is None:
                self.answer({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            else:
                wanted = self.headers.get("Range", "")
                hub.ranges += [wanted] if wanted else []
                end = int(wanted.removeprefix("bytes=0-")) + 1 if wanted else len(content)
                self.send(206 if wanted else 200, content[:end], {})

        def answer(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
            self.send(
                status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})}
            )

        def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


def _entry(path: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": oid}
