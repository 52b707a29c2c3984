"""A stand-in for the Hugging Face Hub on this machine: it takes uploads, and keeps what it was sent."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HubStandIn(ThreadingHTTPServer):
    """The paths that huggingface_hub calls to create a repository and to commit files to it.

    Attributes:
        repos: Repository -> the request that created it.
        objects: sha256 -> content, of large files.
        commits: (repository, branch, files, header of the commit) of each commit.
        tokens: The `Authorization` headers that came.
        refuse: Path -> (status, message) of requests to refuse.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[tuple[str, str, dict[str, bytes], dict[str, Any]]] = []
        self.tokens: set[str] = set()
        self.refuse: dict[str, tuple[int, str]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub_stand_in() -> Iterator[HubStandIn]:
    """Runs the stand-in for as long as the block does."""
    with HubStandIn() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, value: object, status: int = 200, **headers: str) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, header in {"Content-Type": "application/json", "Content-Length": str(len(content))}.items():
            self.send_header(name, header)
        for name, header in headers.items():
            self.send_header(name.replace("_", "-"), header)
        self.end_headers()
        self.wfile.write(content)

    def do_PUT(self) -> None:
        content = self._body()
        name = self.path.rpartition("/")[2]
        good = hashlib.sha256(content).hexdigest() == name
        if good:
            self.server.objects[name] = content
        self._answer({}, 200 if good else 400)

    def do_POST(self) -> None:
        body, (path, _, query) = self._body(), self.path.partition("?")
        self.server.tokens.add(self.headers.get("Authorization", ""))
        for part, (status, message) in self.server.refuse.items():
            if part in path:
                self._answer({"error": message}, status, X_Error_Message=message)
                return
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            large = (".safetensors", ".gguf")
            modes = ["lfs" if file["path"].endswith(large) else "regular" for file in files]
            answers = zip(files, modes, strict=True)
            self._answer(
                {
                    "files": [
                        {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
                        for file, mode in answers
                    ]
                }
            )
        elif "/commit/" in path:
            self._commit(path, body.decode(), is_pull_request="create_pr=1" in query)
        else:
            self._answer({"error": path}, 404)

    def _create(self, request: dict[str, Any]) -> None:
        repo = f"{request['organization']}/{request['name']}"
        known = repo in self.server.repos
        self.server.repos.setdefault(repo, request)
        self._answer({"url": f"{self.server.url}/{repo}"}, 409 if known else 200)

    def _batch(self, request: dict[str, Any]) -> None:
        objects = [
            {
                "oid": one["oid"],
                "size": one["size"],
                "actions": {"upload": {"href": f"{self.server.url}/objects/{one['oid']}"}},
            }
            for one in request["objects"]
        ]
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, path: str, lines: str, *, is_pull_request: bool) -> None:
        repo, _, branch = path.removeprefix("/api/models/").partition("/commit/")
        files, header = {}, {}
        for line in lines.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    header = value
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.objects[value["oid"]]
        number = len(self.server.commits) + 1
        url = f"{self.server.url}/{repo}"
        answer = {"commitUrl": f"{url}/commit/{number:040x}", "commitOid": f"{number:040x}"}
        if is_pull_request:
            branch, answer["pullRequestUrl"] = f"refs/pr/{number}", f"{url}/discussions/{number}"
        self.server.commits.append((repo, branch, files, header))
        self._answer(answer)
