"""The event loop goes on while many calls are answered."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import create_model

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.langchain import AdapterHubLLM, ChatAdapterHub

pytestmark = pytest.mark.alone  # how late a loop is, only the wall's time tells

NAMES = ("json", "code", "support")
MAX_LATENESS = 0.020


async def lateness(work: Callable[[], Awaitable[Any]]) -> float:
    """The longest that a coroutine which ticks each millisecond had to wait beyond that, in seconds."""
    worst, done = 0.0, False

    async def tick() -> None:
        nonlocal worst
        while not done:
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - started - 0.001)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    await work()
    done = True
    await ticking
    return worst


def texts(hub: AdapterHub, go: int) -> list[Awaitable[Any]]:
    model = ChatAdapterHub(hub=hub, max_tokens=24)
    return [model.ainvoke(f"Hi {go} {n}", adapter=NAMES[n % 3], ignore_eos=True) for n in range(8)]


def completions(hub: AdapterHub, go: int) -> list[Awaitable[Any]]:
    llm = AdapterHubLLM(hub=hub, max_tokens=24)
    return [llm.ainvoke(f"Hi {go} {n}", adapter=NAMES[n % 3], ignore_eos=True) for n in range(8)]


def calls(hub: AdapterHub, go: int) -> list[Awaitable[Any]]:
    """Each of a tool of its own, whose grammar has to be compiled first."""
    model = ChatAdapterHub(hub=hub, max_tokens=100)
    tools = [create_model(f"f{go}{n}", a=(bool, ...), __doc__="Does.") for n in range(8)]
    described = [convert_to_openai_tool(tool) for tool in tools]
    return [model.bind_tools([tool], tool_choice="any").ainvoke("Hi") for tool in described]


@pytest.mark.parametrize("kind", [texts, completions, calls])
async def test_eight_calls_do_not_block_it(live_hub: AdapterHub, kind: Any):
    await asyncio.gather(*kind(live_hub, 0))
    # The machine has other things to do, which only ever make it later and last for a while: what takes long each
    # time is ours.
    found: list[float] = []
    while len(found) < 8 and min(found, default=MAX_LATENESS) >= MAX_LATENESS:
        go = len(found) + 1
        await asyncio.sleep(10 if found else 0)
        found.append(await lateness(lambda go=go: asyncio.gather(*kind(live_hub, go))))  # type: ignore[misc]
    assert min(found) < MAX_LATENESS, found


FIRST_CALLS = """
import asyncio
from adapterhub import AdapterHub
from adapterhub.demo import demo_registry_folder
from tests.langchain.test_event_loop import calls, lateness
with AdapterHub.from_pretrained("adapterhub-demo", demo_registry_folder()) as hub:
    print(asyncio.run(lateness(lambda: asyncio.gather(*calls(hub, 0)))))
"""


def test_the_first_tool_calls_of_a_process_do_not_block_it():
    found: list[float] = []
    while len(found) < 5 and min(found, default=MAX_LATENESS) >= MAX_LATENESS:
        done = subprocess.run([sys.executable, "-c", FIRST_CALLS], capture_output=True, text=True, check=True)
        found.append(float(done.stdout))
    assert min(found) < MAX_LATENESS, found


@pytest.mark.parametrize("kind", [ChatAdapterHub, AdapterHubLLM])
async def test_only_a_cache_has_all_cards_read_on_it(
    tiny_registry: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
):
    hub, on_the_loop = AdapterHub(EchoEngine(), AdapterRegistry(tiny_registry)), []
    loop, cards = threading.get_ident(), hub.registry.list

    def listed() -> Any:
        on_the_loop.append(threading.get_ident() == loop)
        return cards()

    monkeypatch.setattr(hub.registry, "list", listed)
    model = kind(hub=hub, model="json")
    await model.ainvoke("turn this sentence into json", model="auto")
    await model.with_adapter("auto").ainvoke("turn this sentence into json")
    assert True not in on_the_loop
    await kind(hub=hub, model="json", cache=InMemoryCache()).ainvoke("Hi", model="auto")
    assert True in on_the_loop
