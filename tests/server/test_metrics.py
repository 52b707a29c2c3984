"""`/metrics` on a real engine: vLLM's names with the right values, in both text formats."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from adapterhub import AdapterHub
from adapterhub.server import create_app

OPENMETRICS = {"accept": "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3"}


@pytest.fixture(scope="module")
def tiny_hub(
    tiny_base: Path, tiny_registry: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AdapterHub]:
    registry = shutil.copytree(tiny_registry, tmp_path_factory.mktemp("metrics") / "registry")
    with AdapterHub.from_pretrained(tiny_base, registry, device="cpu", max_loras=2, max_queue=4) as hub:
        yield hub


@pytest.fixture(scope="module")
def server(tiny_hub: AdapterHub) -> Iterator[TestClient]:
    with TestClient(create_app(tiny_hub), raise_server_exceptions=False) as client:
        yield client


class Scraped:
    """One scrape: sample name and some labels -> value."""

    def __init__(self, client: TestClient, headers: Mapping[str, str] = {}) -> None:
        answer = client.get("/metrics", headers=dict(headers))
        assert answer.status_code == 200
        self.content_type = answer.headers["content-type"]
        parse = parse_openmetrics if headers else parse_text
        self.families = list(parse(answer.text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        found = [
            one.value for one in self.samples if one.name == name and labels.items() <= one.labels.items()
        ]
        assert found, f"{name} {labels} is not there"
        return sum(found)

    def labels(self, name: str, label: str) -> set[str]:
        return {one.labels[label] for one in self.samples if one.name == name}


def ask(client: TestClient, model: str, **fields: object) -> dict[str, object]:
    answer = client.post(
        "/v1/chat/completions",
        json={"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, **fields},
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_both_formats_are_valid_and_agree(server: TestClient):
    ask(server, "json")
    text, openmetrics = Scraped(server), Scraped(server, OPENMETRICS)
    assert text.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert openmetrics.content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    for name in ("vllm:generation_tokens_total", "vllm:num_requests_running", "adapterhub_lora_slots"):
        assert text(name) == openmetrics(name)
    assert {family.name for family in openmetrics.families} >= {"vllm:generation_tokens", "http_requests"}


def test_every_series_of_the_engine_names_the_base(server: TestClient, tiny_base: Path):
    scraped = Scraped(server)
    for name in ("vllm:num_requests_waiting", "vllm:generation_tokens_total"):
        assert scraped.labels(name, "model_name") == {tiny_base.name}
        assert scraped.labels(name, "engine") == {"0"}


def test_tokens_are_those_of_the_answers(server: TestClient):
    before = Scraped(server)
    usages = [ask(server, model, ignore_eos=True)["usage"] for model in ("json", "base", "code")]
    after = Scraped(server)
    generated = sum(usage["completion_tokens"] for usage in usages)
    assert after("vllm:generation_tokens_total") - before("vllm:generation_tokens_total") == generated == 15


def test_requests_are_counted_by_route_and_status(server: TestClient):
    before = Scraped(server)
    ask(server, "json")
    server.get("/v1/models/json@1")
    server.get("/v1/models/no-such-adapter")
    server.post("/v1/chat/completions", json={"model": "json"})
    server.get("/nowhere")
    server.request("BREW", "/nowhere/else")
    after = Scraped(server)

    def more(**labels: str) -> float:
        name = "http_requests_total"
        known = [one for one in before.samples if one.name == name and labels.items() <= one.labels.items()]
        return after(name, **labels) - sum(one.value for one in known)

    assert more(handler="/v1/chat/completions", method="POST", status="200") == 1
    assert more(handler="/v1/chat/completions", method="POST", status="400") == 1
    assert more(handler="/v1/models/{model:path}", method="GET", status="200") == 1
    assert more(handler="/v1/models/{model:path}", method="GET", status="404") == 1
    assert more(handler="none", method="GET", status="404") == 1
    assert more(handler="none", method="other", status="404") == 1
    timed = "http_request_duration_seconds_count"
    assert after(timed) == after("http_requests_total")


def test_a_request_whose_handler_fails_is_a_500(server: TestClient, tiny_hub: AdapterHub, monkeypatch):
    monkeypatch.setattr(tiny_hub.registry, "list", lambda: 1 / 0)
    assert server.get("/v1/models").status_code == 500
    monkeypatch.undo()
    assert Scraped(server)("http_requests_total", handler="/v1/models", status="500") == 1


def test_scrapes_side_by_side_agree(server: TestClient):
    with ThreadPoolExecutor(4) as threads:
        scrapes = list(threads.map(lambda _: Scraped(server), range(8)))
    assert {scrape("vllm:generation_tokens_total") for scrape in scrapes} == {
        scrapes[0]("vllm:generation_tokens_total")
    }
    assert {len(scrape.families) for scrape in scrapes} == {len(scrapes[0].families)}


def test_no_text_and_no_path_of_the_machine_is_in_them(server: TestClient, tiny_base: Path):
    ask(server, "json", user="ann-the-user")
    text = server.get("/metrics").text
    assert "hello" not in text
    assert "ann-the-user" not in text
    assert str(tiny_base.parent) not in text
