"""`adapterhub serve --engine URL,URL` as a process in front of two vLLM servers: keys, affinity, faults, drain.

The tests share one process, and the last of them ends it.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapterhub import AdapterRegistry
from adapterhub.base import DEMO_BASE, demo_base_folder
from adapterhub.requests.traffic_split import versions_by_preference
from tests.fake_vllm import FakeServer, FakeVllm

pytestmark = pytest.mark.slow
KEY, ADMIN = "any-key-0123456789abc", "root-key-0123456789ab"
SECONDS = 90


@dataclass(frozen=True)
class Front:
    """The process, its servers and its registry."""

    url: str
    process: subprocess.Popen[str]
    servers: tuple[FakeServer, FakeServer]
    registry: AdapterRegistry

    def call(self, method: str, path: str, key: str | None = KEY, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.request(method, self.url + path, headers=headers, timeout=60, **options)

    def ask(self, model: str, text: str = "Hi", **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 12, **fields}
        return self.call("POST", "/v1/chat/completions", json=body)

    def replicas(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("GET", "/v1/fleet", ADMIN).json()["data"]
        return found

    def all_ready(self) -> bool:
        return all(replica["ready"] for replica in self.replicas())


def eventually(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    from adapterhub.base.loading import load_tokenizer

    root = tmp_path_factory.mktemp("front")
    registry = AdapterRegistry(shutil.copytree(Path(__file__).parents[2] / "adapters", root / "registry"))
    registry.register("json", registry.folder(registry.get("json@1")), trust_card=True)
    tokenizer = load_tokenizer(DEMO_BASE)
    with _server(tokenizer) as first, _server(tokenizer) as second:
        command = [sys.executable, "-m", "adapterhub.cli.main", "serve", "--port", "0"]
        command += ["--engine", f"{first.url},{second.url}", "--registry", str(registry.root)]
        command += [
            "--api-key-file",
            _keys(root / "keys", KEY),
            "--admin-key-file",
            _keys(root / "admins", ADMIN),
        ]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            url = process.stderr.readline().removeprefix("Listening on ").strip()
            threading.Thread(target=process.stderr.read, daemon=True).start()
            try:
                front = Front(url, process, (first, second), registry)
                eventually(lambda: front.call("GET", "/ready", None).status_code == 200)
                eventually(front.all_ready)
                yield front
            finally:
                process.kill()


def _server(tokenizer: Any) -> FakeServer:
    fake = FakeVllm(
        base=DEMO_BASE,
        root=str(demo_base_folder()),
        max_model_len=512,
        max_lora_rank=32,
        tokenizer=tokenizer,
        end_token_id=tokenizer.eos_token_id,
        answer=lambda model, prompt: f"I am {model}, and this is a long answer of many words for nobody.",
    )
    return FakeServer(fake)


def _keys(path: Path, key: str) -> str:
    path.write_text(f"name {key}\n")
    path.chmod(0o600)
    return str(path)


def test_keys_are_asked_for(front: Front):
    assert front.call("GET", "/v1/models", None).status_code == 401
    assert front.call("GET", "/v1/fleet").status_code == 403
    assert {model["id"] for model in front.call("GET", "/v1/models").json()["data"]} >= {"json", "auto"}


def test_a_text_is_routed_and_answered_by_a_server(front: Front):
    answer = front.ask("auto", "My Zorbex printer does not turn on.")
    assert (answer.status_code, answer.headers["x-adapterhub-adapter"]) == (200, "support")
    assert answer.json()["choices"][0]["message"]["content"].startswith("I am support--v1-")


def test_requests_go_where_their_adapter_is_loaded(front: Front):
    names = [card.name for card in front.registry.list()]
    for _ in range(4):
        for name in names:
            assert front.ask(name).headers["x-adapterhub-adapter"] == name
    loads = Counter(name.split("--")[0] for server in front.servers for name in server.fake.loads)
    assert {name: loads[name] for name in names} == dict.fromkeys(names, 1)


def test_a_canary_gets_its_share(front: Front):
    front.call(
        "PUT", "/v1/adapterhub/adapters/json/aliases/prod", ADMIN, json={"weights": {"1": 75, "2": 25}}
    )
    alias = front.registry.aliases("json")["prod"]
    users = [f"user-{number}" for number in range(60)]
    answered = {
        user: int(front.ask("json@prod", user=user).headers["x-adapterhub-version"]) for user in users
    }
    expected = {user: versions_by_preference(alias, f"json@prod\nuser {user}")[0] for user in users}
    assert answered == expected  # the same in every process
    assert abs(list(answered.values()).count(2) - 15) <= 4 * (60 * 0.25 * 0.75) ** 0.5


def test_an_answer_that_loses_its_server_ends_with_an_error_and_the_next_is_answered(front: Front):
    for server in front.servers:
        server.fake.token_seconds = 0.2
    body = {"model": "json", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.stream(
        "POST", f"{front.url}/v1/chat/completions", json=body, headers=headers, timeout=60
    ) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: {"))
        next(lines)  # the role
        next(lines)  # a text
        home = next(server for server in front.servers if server.fake.in_flight)
        home.kill()
        error = json.loads(list(lines)[-1].removeprefix("data: "))["error"]
    assert error["code"] == "overloaded"
    for server in front.servers:
        server.fake.token_seconds = 0
    answered = front.ask("json")
    assert answered.json()["choices"][0]["message"]["content"].startswith("I am json--v2-")
    assert front.call("GET", "/health", None).status_code == 200
    home.start()
    eventually(front.all_ready)
    assert front.ask("json").status_code == 200


def test_sigterm_drains(front: Front):
    """The last: a running answer ends as it would, new ones are refused, and the process ends with 0."""
    for server in front.servers:
        server.fake.token_seconds = 0.5  # it runs on for ten seconds
    ended: list[httpx.Response] = []
    running = threading.Thread(target=lambda: ended.append(front.ask("json", max_tokens=20)))
    running.start()
    eventually(lambda: any(server.fake.in_flight for server in front.servers))
    front.process.send_signal(signal.SIGTERM)
    eventually(lambda: front.call("GET", "/health", None).status_code == 503)
    refused = front.ask("json")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    running.join()
    assert ended[0].json()["usage"]["completion_tokens"] == 20
    assert front.process.wait(SECONDS) == 0
