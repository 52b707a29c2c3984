"""A hub over a real vLLM whose adapters come and go under traffic, and which is killed in the middle of an answer."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import httpx
import pytest

from adapterhub import AdapterHub
from adapterhub.errors import AdapterHubError
from tests.vllm.real import RealVllm, vllm_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # vLLM takes minutes to start

SHIPPED = Path(__file__).parents[2] / "adapters"
ADAPTERS = ("json", "code", "support", "tools")
PROMPT = "My Broplek printer shows error 41. What can I do?"
# A server that stays away is probed every 10 s, and then it loads the adapter.
LONGEST_HEALING_SECONDS = 20.0

Answer = tuple[int | None, str]
"""The version that a request resolved to, and the text."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealVllm]:
    with vllm_process(tmp_path_factory.mktemp("vllm") / "log") as server:
        yield server


@pytest.fixture
def hub(server: RealVllm, tmp_path: Path) -> Iterator[AdapterHub]:
    shutil.copytree(SHIPPED, tmp_path / "adapters")
    with AdapterHub.connect(server.url, tmp_path / "adapters") as hub:
        yield hub


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """What each adapter answers in this process."""
    settings = {"quantization": None, "compute_dtype": "float32", "kv_cache_mib": 64}
    with AdapterHub.from_pretrained("adapterhub-demo", SHIPPED, **settings) as hub:
        found = {name: ask(hub, name)[1] for name in ADAPTERS}
    assert len(set(found.values())) == len(ADAPTERS)
    return found


def ask(hub: AdapterHub, adapter: str) -> Answer:
    generation = hub.generate(PROMPT, adapter, max_tokens=24)
    return generation.version, generation.text


class Traffic:
    """Threads that ask until they are stopped.

    Attributes:
        answers: What they got.
        errors: What they got instead.
    """

    def __init__(self, ask: Callable[[str], Answer], references: tuple[str, ...], threads: int = 4) -> None:
        self.answers: list[Answer] = []
        self.errors: list[AdapterHubError] = []
        self._ask = ask
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=[references]) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, references: tuple[str, ...]) -> None:
        for reference in cycle(references):
            if self._stopped.is_set():
                return
            try:
                self.answers.append(self._ask(reference))
            except AdapterHubError as error:
                self.errors.append(error)

    def wait_for(self, more: int) -> None:
        """Returns after so many more answers."""
        wanted, deadline = len(self.answers) + more, time.monotonic() + 120
        while len(self.answers) < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def unload_behind_its_back(url: str) -> int:
    """Unloads all adapters; how many there were."""
    cards = httpx.get(f"{url}/v1/models").json()["data"]
    names = [card["id"] for card in cards if card["parent"]]
    for name in names:
        httpx.post(f"{url}/v1/unload_lora_adapter", json={"lora_name": name}, timeout=60)
    return len(names)


def test_versions_and_aliases_change_and_adapters_are_unloaded_under_traffic(
    server: RealVllm, hub: AdapterHub, texts: dict[str, str], capsys: pytest.CaptureFixture[str]
):
    # Version n of "moving" has the weights of the n-th shipped adapter, and so on in turn.
    weights = dict(enumerate(ADAPTERS * 2, start=1))
    hub.registry.register("moving", SHIPPED / weights[1] / "1")
    hub.registry.alias("moving", "prod", 1)
    traffic = Traffic(lambda reference: ask(hub, reference), ("moving", "moving@prod"))
    unloaded = 0
    try:
        traffic.wait_for(8)
        for version in list(weights)[1:]:
            hub.registry.register("moving", SHIPPED / weights[version] / "1")
            traffic.wait_for(4)
            unloaded += unload_behind_its_back(server.url)
            traffic.wait_for(4)
            hub.registry.alias("moving", "prod", version)
            traffic.wait_for(8)
    finally:
        traffic.stop()
    with capsys.disabled():
        print(f"\n{len(traffic.answers)} answers of {len(weights)} versions, {unloaded} unloaded, ", end="")
        print(f"{len(traffic.errors)} errors")
    assert {version for version, _ in traffic.answers} == set(weights)
    assert unloaded > len(weights) // 2
    assert [text for version, text in traffic.answers if text != texts[weights[version or 0]]] == []
    assert traffic.errors == []


def test_killed_in_the_middle_of_an_answer_and_started_again(
    server: RealVllm, hub: AdapterHub, texts: dict[str, str], capsys: pytest.CaptureFixture[str]
):
    stream = hub.stream(PROMPT, "support", max_tokens=400, ignore_eos=True)
    next(stream)
    server.kill()
    with pytest.raises(AdapterHubError) as caught:
        list(stream)
    assert caught.value.retryable
    with ThreadPoolExecutor(len(ADAPTERS)) as pool:
        healed = [pool.submit(first_answer, hub, name) for name in ADAPTERS]
        server.start()
        server.wait_until_healthy()
        healthy = time.monotonic()
        seconds = sorted(done.result()[0] - healthy for done in healed)
    with capsys.disabled():
        print(
            f"\nfrom vLLM's own start to each adapter's first answer: {[round(one, 2) for one in seconds]} s"
        )
    assert {name: done.result()[1] for name, done in zip(ADAPTERS, healed, strict=True)} == texts
    assert seconds[-1] < LONGEST_HEALING_SECONDS
    assert {name: ask(hub, name)[1] for name in ADAPTERS} == texts


def first_answer(hub: AdapterHub, adapter: str) -> tuple[float, str]:
    """Asks until there is an answer; when it came, and its text. What comes before it must be retryable."""
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        try:
            _, text = ask(hub, adapter)
        except AdapterHubError as error:
            if not error.retryable:
                raise
            time.sleep(0.1)
        else:
            return time.monotonic(), text
    raise AssertionError("there was no answer")
