"""Many clients of many adapters, of whom a third leaves: every answer is right or aborted, nothing is leaked."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from adapterhub import AdapterHub, AdapterRegistry
from adapterhub.server import ServerConfig, create_app
from tests.server.live import live
from tests.tiny import make_adapter
from tests.waiting import until

ADAPTERS = [f"a{number}" for number in range(32)]
TEXTS = ("Hello", "My printer is broken", "Write a function")
MAX_TOKENS = 24
PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def hub(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterHub]:
    """More adapters than slots; an answer is the same in any company."""
    folder = tmp_path_factory.mktemp("load")
    registry = AdapterRegistry(folder / "registry")
    for seed, name in enumerate(ADAPTERS, start=1):
        registry.register(name, make_adapter(folder / name, tiny_base, seed=seed, r=4), base=tiny_base)
    limits = {"max_loras": 8, "max_cpu_loras": 16, "kv_cache_mib": 64}
    with AdapterHub.from_pretrained(
        tiny_base, folder / "registry", quantization=None, batch_invariant=True, **limits
    ) as hub:
        yield hub


@pytest.fixture(scope="module")
def right(hub: AdapterHub) -> dict[tuple[str, str], str]:
    """The answer of each adapter to each text, one after the other."""
    return {
        (name, text): hub.generate(text, name, max_tokens=MAX_TOKENS, ignore_eos=True).text
        for name in ADAPTERS
        for text in TEXTS
    }


class Clients:
    """Sends requests and counts how they end.

    Args:
        url: The server.
        right: The right answers.
        seed: Of what is random.
    """

    def __init__(self, url: str, right: dict[tuple[str, str], str], seed: int) -> None:
        self.url, self._right, self._chance = url + PATH, right, random.Random(seed)
        self.ended: Counter[str] = Counter()

    async def work(self, requests: int) -> None:
        """One client: one request after the other, on connections of its own."""
        async with httpx.AsyncClient(timeout=120) as client:
            for _ in range(requests):
                name, text = self._chance.choice(ADAPTERS), self._chance.choice(TEXTS)
                stream, leaves = self._chance.random() < 0.5, self._chance.random() < 0.35
                body = {"model": name, "messages": [{"role": "user", "content": text}], "stream": stream}
                body |= {"max_tokens": MAX_TOKENS, "ignore_eos": True}
                asked = self._stream(client, body, leaves) if stream else self._whole(client, body, leaves)
                answer = await asked
                if answer is not None:
                    assert answer == self._right[name, text], (name, text, stream)
                self.ended["left" if answer is None else "answered"] += 1

    async def _whole(self, client: httpx.AsyncClient, body: dict[str, object], leaves: bool) -> str | None:
        try:
            async with asyncio.timeout(self._chance.random() * 0.05 if leaves else None):
                answer = await client.post(self.url, json=body)
        except TimeoutError:
            return None
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    async def _stream(self, client: httpx.AsyncClient, body: dict[str, object], leaves: bool) -> str | None:
        texts, last = [], self._chance.randrange(MAX_TOKENS // 2) if leaves else None
        async with client.stream("POST", self.url, json=body) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                if len(texts) == last:
                    return None
                if line == "data: [DONE]":
                    return "".join(texts)
                if line.startswith("data: "):
                    delta = json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
                    texts.append(delta.get("content", ""))
        raise AssertionError("the stream has no end")


async def settled(app: FastAPI) -> None:
    """Returns once the server has noticed that the last clients have left."""
    state = app.state.server
    await until(
        lambda: not (state.lifecycle.running or state.hub.stats().running or state.hub.stats().waiting)
    )


@pytest.mark.parametrize(("clients", "requests"), [(16, 160), pytest.param(64, 2000, marks=pytest.mark.slow)])
def test_every_answer_is_right_or_aborted(
    hub: AdapterHub, right: dict[tuple[str, str], str], clients: int, requests: int
):
    before, app = hub.stats(), create_app(hub, ServerConfig(access_log=False))

    async def load(url: str) -> Counter[str]:
        sent = Clients(url, right, seed=requests)
        shares = [requests // clients + (number < requests % clients) for number in range(clients)]
        await asyncio.gather(*map(sent.work, shares))
        await settled(app)
        return sent.ended

    with live(app) as url:
        ended = asyncio.run(load(url))
        metrics = httpx.get(f"{url}/metrics").text
    after = hub.stats()
    assert ended.total() == requests
    assert min(ended.values()) > requests // 10
    # The figures add up.
    done = {reason: after.finished[reason] - before.finished.get(reason, 0) for reason in after.finished}
    assert after.rejected == before.rejected
    assert sum(done.values()) == after.submitted - before.submitted <= requests
    assert done["length"] >= ended["answered"]  # some left when all was on its way
    assert done["length"] + done["abort"] == after.submitted - before.submitted
    lines = [
        line for line in metrics.splitlines() if line.startswith("http_requests_total{") and PATH in line
    ]
    counted = sum(float(line.split()[-1]) for line in lines)
    assert after.submitted - before.submitted <= counted <= requests  # some left before they had asked
    assert {re.findall('status="(.*?)"', line)[0] for line in lines} <= {"200", "499"}
    # Nothing is held.
    assert (after.running, after.waiting, after.kv_slots, after.slot_users) == (0, 0, 0, 0)
    assert all(one.running == one.waiting == 0 for one in after.adapters.values())
