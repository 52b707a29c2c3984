"""`/metrics` on a real engine: vLLM's names with the right values, in both text formats."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from starlette.types import Message

from adapterhub import AdapterHub
from adapterhub.errors import InvalidRequestError
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


def test_vllms_board_finds_its_names(server: TestClient):
    ask(server, "json", max_tokens=3)
    ask(server, "base", max_tokens=3)
    scraped = Scraped(server)
    names = {sample.name for sample in scraped.samples}
    histograms = {
        "e2e_request_latency_seconds", "inter_token_latency_seconds", "time_to_first_token_seconds",
        "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
        "request_prompt_tokens", "request_generation_tokens", "request_max_num_generation_tokens",
    }  # fmt: skip
    singles = {
        "prompt_tokens_total", "generation_tokens_total", "request_success_total", "num_requests_running",
        "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total", "prefix_cache_hits_total",
        "cache_config_info", "lora_requests_info",
    }  # fmt: skip
    suffixes = ("bucket", "sum", "count")
    assert names >= {f"vllm:{name}" for name in singles}
    assert names >= {f"vllm:{name}_{suffix}" for name in histograms for suffix in suffixes}


def test_histograms_count_every_answer_and_their_buckets_rise(server: TestClient):
    before = Scraped(server)
    for _ in range(3):
        ask(server, "code", max_tokens=4, ignore_eos=True)
    after = Scraped(server)
    for name, values in (("request_generation_tokens", 12), ("time_to_first_token_seconds", None)):
        count, total = f"vllm:{name}_count", f"vllm:{name}_sum"
        assert after(count) - before(count) == 3
        if values:
            assert after(total) - before(total) == values
        buckets = [one.value for one in after.samples if one.name == f"vllm:{name}_bucket"]
        assert buckets == sorted(buckets)
        assert buckets[-1] == after(count)
    assert (
        after("vllm:inter_token_latency_seconds_count") - before("vllm:inter_token_latency_seconds_count")
        == 9
    )


def test_work_adds_up_whatever_became_of_it(server: TestClient, tiny_hub: AdapterHub):
    """Answered, aborted and refused: each request is counted once, in all and by adapter."""
    before = Scraped(server)
    ask(server, "json", max_tokens=2, ignore_eos=True, n=2)
    ask(server, "json@1", max_tokens=2, ignore_eos=True)
    stream = tiny_hub.stream("hello", "code", max_tokens=50, ignore_eos=True)
    next(stream)
    assert Scraped(server)("adapterhub_adapter_requests_running", adapter="code") == 1
    stream.close()
    body = {"model": "json", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 10_000}
    assert server.post("/v1/chat/completions", json=body).json()["error"]["code"] == "context_length_exceeded"
    with pytest.raises(InvalidRequestError, match="max_queue"):
        tiny_hub.generate_batch(["hello"] * 5, "support", max_tokens=1)
    after = Scraped(server)

    def more(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    assert more("vllm:request_success_total", finished_reason="length") == 3
    assert more("vllm:request_success_total", finished_reason="abort") == 1
    assert more("adapterhub_requests_queued_total") == 4
    assert more("adapterhub_adapter_requests_total", adapter="json", finished_reason="length") == 3
    assert more("adapterhub_adapter_requests_total", adapter="code", finished_reason="abort") == 1
    assert more("adapterhub_adapter_generation_tokens_total", adapter="json") == 6
    refused = {
        one.labels["reason"]: one.value
        for one in after.samples
        if one.name == "vllm:admission_rejections_total"
    }
    assert refused == {"context_length_exceeded": 1, "invalid_value": 5}
    ended = after("vllm:request_success_total") + after("vllm:num_requests_running")
    assert ended + after("vllm:num_requests_waiting") == after("adapterhub_requests_queued_total")
    for ours, vllms in (
        ("adapterhub_adapter_generation_tokens_total", "vllm:generation_tokens_total"),
        ("adapterhub_adapter_prompt_tokens_total", "vllm:prompt_tokens_total"),
        ("adapterhub_adapter_requests_total", "vllm:request_success_total"),
    ):
        assert after(ours) == after(vllms)


def test_adapters_without_requests_have_their_series(server: TestClient):
    """An adapter that idles does not vanish, and no label joins names."""
    scraped = Scraped(server)
    labels = {"base", "code", "json", "support", "other"}
    for name in ("adapterhub_adapter_requests_running", "adapterhub_adapter_generation_tokens_total"):
        assert scraped.labels(name, "adapter") == labels
        assert len([one for one in scraped.samples if one.name == name]) == len(labels)


def test_blends_are_counted_together(server: TestClient):
    before = Scraped(server)
    for weight in (0.1, 0.2, 0.3):
        ask(server, f"json:{weight}+code:0.5", max_tokens=2, ignore_eos=True)
    after = Scraped(server)
    name = "adapterhub_adapter_generation_tokens_total"
    assert after(name, adapter="other") - before(name, adapter="other") == 6
    assert len(after.samples) == len(before.samples)


def test_the_gateway_reads_one_series_with_the_adapters_in_slots(server: TestClient, tiny_hub: AdapterHub):
    for model in ("json", "code", "support"):
        ask(server, model, max_tokens=1)
    started = time.time()
    (found,) = [one for one in Scraped(server).samples if one.name == "vllm:lora_requests_info"]
    assert found.labels == {
        "max_lora": "2", "running_lora_adapters": "code,support", "waiting_lora_adapters": "",
    }  # fmt: skip
    assert abs(found.value - started) < 60
    scraped = Scraped(server)
    assert scraped("adapterhub_adapter_in_slots", adapter="support") == 1
    assert scraped("adapterhub_adapter_in_slots", adapter="json") == 0
    assert scraped("adapterhub_adapter_in_host_memory", adapter="json") == 1


def test_the_size_of_the_cache_is_told_in_blocks(server: TestClient, tiny_hub: AdapterHub):
    (found,) = [one for one in Scraped(server).samples if one.name == "vllm:cache_config_info"]
    tokens = int(found.labels["block_size"]) * int(found.labels["num_gpu_blocks"])
    assert found.labels["block_size"] == "32"
    assert tokens == pytest.approx(tiny_hub.stats().kv_max_tokens, abs=32)


def test_series_of_a_removed_adapter_vanish(server: TestClient, tiny_hub: AdapterHub, tiny_adapters):
    tiny_hub.registry.register("brief", tiny_adapters["json"])
    ask(server, "brief", max_tokens=1)
    assert "brief" in Scraped(server).labels("adapterhub_adapter_requests_running", "adapter")
    tiny_hub.delete_adapter("brief")
    assert "brief" not in server.get("/metrics").text


def test_a_board_asks_for_nothing_that_is_not_there(server: TestClient):
    board = (Path(__file__).parents[2] / "examples" / "deploy" / "grafana.json").read_text()
    asked = set(re.findall(r"(?:vllm:|adapterhub_|http_)\w+", board)) - {"adapterhub"}
    assert asked <= {sample.name for sample in Scraped(server).samples}
    assert len(asked) > 10


async def test_a_client_that_leaves_is_counted_as_one_and_its_answer_as_aborted(
    server: TestClient, tiny_hub: AdapterHub
):
    before = Scraped(server)
    body = {
        "model": "json",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 200,
        "ignore_eos": True,
    }
    sent: list[Message] = []
    incoming: asyncio.Queue[Message] = asyncio.Queue()
    incoming.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
    path = "/v1/chat/completions"
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": path,
        "raw_path": path.encode(), "root_path": "", "scheme": "http", "query_string": b"", "headers": [],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip

    async def send(message: Message) -> None:
        sent.append(message)

    answering = asyncio.ensure_future(server.app(scope, incoming.get, send))
    async with asyncio.timeout(60):
        while tiny_hub.stats().submitted == before("adapterhub_requests_queued_total"):
            await asyncio.sleep(0.005)
        incoming.put_nowait({"type": "http.disconnect"})
        await answering
        while tiny_hub.stats().running or tiny_hub.stats().waiting:
            await asyncio.sleep(0.005)
    assert sent == []
    after = Scraped(server)
    aborted = {"finished_reason": "abort"}
    assert (
        after("vllm:request_success_total", **aborted) - before("vllm:request_success_total", **aborted) == 1
    )
    assert after("http_requests_total", handler=path, status="499") == 1
