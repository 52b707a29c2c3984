"""Many threads, cancellations, malformed requests, hostile templates: each request ends once, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub import AdapterHub, AdapterHubError, AdapterRegistry, Generation
from adapterhub.engine.scheduling.sequence import SequenceState
from adapterhub.errors import CapacityError
from tests.engine.maker import NOTHING, counts, engine_threads, in_threads

SOON = 30.0
NAMES = ("json", "code", "support", None, "json:0.5+code:0.5")
PROMPTS = ("the quick brown fox", "one two three four", "my printer is broken")
HOSTILE = {
    "output": "{{ 'a' * 2000000000 }}",
    "loop": "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "growth": "{% set n = namespace(s='a') %}{% for i in range(999) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "division": "{{ 1 // 0 }}",
    "escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "syntax": "{% for %}",
}
MALFORMED: list[dict[str, Any]] = [
    {"priority": 10**400},
    {"priority": "high"},
    {"adapter": 5},
    {"adapter": "missing"},
    {"adapter": "json@999"},
    {"adapter": "json:nan"},
    {"prompt": "\udc80"},
    {"prompt": 5},
    {"prompt": ""},
    {"prompt": "word " * 10_000},
    {"prompt": [{"role": "nobody", "content": "x"}]},
    {"max_tokens": 10**5000},
    {"temperature": float("nan")},
    {"top_p": 0},
    {"repetition_penalty": 1e-50},
    {"stop": ["\udc80"]},
    {"stop_token_ids": [-5]},
    {"stop_token_ids": [10**9]},
    {"seed": 10**400},
    {"tools": 5},
    {"schema": {"type": "\udc80"}},
    {"schema": {"$ref": "#/nowhere"}},
    {"regex": "("},
    {"grammar": "start: start"},
    {"choices": []},
    {"choices": ["a"], "max_tokens": 5, "ignore_eos": True},
    {"choices": ["a"], "regex": "a"},
    {"unknown_option": 1},
]


@pytest.fixture
def hub(tmp_path: Path, tiny_base: Path, tiny_adapters: dict[str, Path]) -> Iterator[AdapterHub]:
    registry = AdapterRegistry(tmp_path / "registry")
    for name, folder in tiny_adapters.items():
        registry.register(name, folder, base=tiny_base, description=f"The {name} adapter.")
    for name, template in HOSTILE.items():
        prompt = {"chat_template": template}
        registry.register(f"hostile-{name}", tiny_adapters["json"], base=tiny_base, prompt=prompt)
    with AdapterHub.from_pretrained(
        tiny_base, registry.root, quantization=None, device="cpu", kv_cache_mib=32, max_loras=2
    ) as hub:
        yield hub


class Users:
    """Threads that ask in every way, and note how each request ends."""

    def __init__(self, hub: AdapterHub) -> None:
        self._hub = hub
        self._wanted = {(text, name): self._answer(text, name) for text in PROMPTS for name in NAMES}
        self._lock = threading.Lock()
        self.ends: dict[tuple[int, int], list[str]] = {}
        self.faults: list[str] = []

    def ask(self, thread: int, requests: int) -> None:
        """The requests of one thread, one after the other."""
        chance = random.Random(thread)
        ways: list[Callable[[random.Random], str]] = [
            self._one, self._stream, self._close, self._batch, self._task, self._cancel, self._abandon,
            self._form, self._malformed, self._hostile,
        ]  # fmt: skip
        for number in range(requests):
            way = ways[chance.randrange(len(ways))]
            try:
                end = way(chance)
            except (
                CapacityError
            ):  # hostile templates may fill the threads that prepare requests; one may ask again
                end = "refused"
            except BaseException as error:  # noqa: BLE001
                end = f"{way.__name__}: {error!r}"
                self.faults.append(end)
            with self._lock:
                self.ends.setdefault((thread, number), []).append(end)

    def _answer(self, text: str, name: str | None) -> str:
        return self._hub.generate(text, name, max_tokens=6, ignore_eos=True).text

    def _pick(self, chance: random.Random) -> tuple[str, str | None]:
        return chance.choice(PROMPTS), chance.choice(NAMES)

    def _check(self, asked: tuple[str, str | None], text: str, *, whole: bool = True) -> str:
        wanted = self._wanted[asked]
        if not (text == wanted if whole else wanted.startswith(text)):
            self.faults.append(f"{asked}: {text!r} instead of {wanted!r}")
        return "answered" if whole else "aborted"

    def _one(self, chance: random.Random) -> str:
        asked = self._pick(chance)
        return self._check(asked, self._answer(*asked))

    def _stream(self, chance: random.Random) -> str:
        asked = self._pick(chance)
        return self._check(asked, "".join(self._hub.stream(*asked, max_tokens=6, ignore_eos=True)))

    def _close(self, chance: random.Random) -> str:
        asked, after = self._pick(chance), chance.randrange(4)
        with self._hub.stream(*asked, max_tokens=6, ignore_eos=True) as stream:
            text = "".join(part for part, _ in zip(stream, range(after), strict=False))
        return self._check(asked, text, whole=False)

    def _batch(self, chance: random.Random) -> str:
        asked = [self._pick(chance) for _ in range(3)]
        texts, names = [text for text, _ in asked], [name for _, name in asked]
        for one, answer in zip(
            asked, self._hub.generate_batch(texts, names, max_tokens=6, ignore_eos=True), strict=True
        ):
            self._check(one, answer.text)
        return "answered"

    def _task(self, chance: random.Random) -> str:
        asked = self._pick(chance)
        answer: Generation = asyncio.run(self._hub.agenerate(*asked, max_tokens=6, ignore_eos=True))
        return self._check(asked, answer.text)

    def _cancel(self, chance: random.Random) -> str:
        asked, after = self._pick(chance), chance.random() * 0.05

        async def cancelled() -> str:
            task = asyncio.create_task(self._hub.agenerate(*asked, max_tokens=200, ignore_eos=True))
            await asyncio.sleep(after)
            task.cancel()
            (end,) = await asyncio.gather(task, return_exceptions=True)
            return "cancelled" if isinstance(end, asyncio.CancelledError) else "answered"

        return asyncio.run(cancelled())

    def _abandon(self, chance: random.Random) -> str:
        asked, after = self._pick(chance), chance.randrange(4)

        async def abandoned() -> str:
            text = ""
            async with self._hub.astream(*asked, max_tokens=6, ignore_eos=True) as stream:
                for _ in range(after):
                    text += await anext(stream, "")
            return text

        return self._check(asked, asyncio.run(abandoned()), whole=False)

    def _form(self, chance: random.Random) -> str:
        text, name = self._pick(chance)
        answer = self._hub.generate(text, name, choices=["yes", "no"])
        if answer.text not in ("yes", "no"):
            self.faults.append(f"a choice: {answer.text!r}")
        return "answered"

    def _malformed(self, chance: random.Random) -> str:
        wrong = {"prompt": "Hi", "adapter": "json", "max_tokens": 6, **chance.choice(MALFORMED)}
        return self._refused(chance, wrong.pop("prompt"), wrong.pop("adapter"), **wrong)

    def _hostile(self, chance: random.Random) -> str:
        return self._refused(chance, "Hi", f"hostile-{chance.choice(list(HOSTILE))}", max_tokens=6)

    def _refused(self, chance: random.Random, prompt: Any, adapter: Any, **options: Any) -> str:
        try:
            if chance.random() < 0.5:
                self._hub.generate(prompt, adapter, **options)
            else:
                asyncio.run(self._hub.agenerate(prompt, adapter, **options))
        except AdapterHubError as error:
            str(error).encode()
            return "refused"
        self.faults.append(f"not refused: {prompt!r:.50} {adapter!r:.50} {options!r:.50}")
        return "answered"


def open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def sequences() -> int:
    """Sequences that are still referred to."""
    gc.collect()
    return sum(isinstance(one, SequenceState) for one in gc.get_objects())


@pytest.mark.parametrize(
    ("requests", "threads"),
    [(160, 16), pytest.param(2000, 64, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_each_request_ends_once_and_nothing_is_left(hub: AdapterHub, requests: int, threads: int):
    users, others = Users(hub), set(threading.enumerate()) - engine_threads()
    asyncio.run(hub.agenerate("Hi", "json", max_tokens=2))  # the asynchronous door's threads and files
    files, share = open_files(), -(-requests // threads)
    in_threads([lambda n=n: users.ask(n, share) for n in range(threads)], 1200)  # type: ignore[misc]
    assert users.faults == []
    assert all(len(ends) == 1 for ends in users.ends.values())
    assert len(users.ends) == threads * share >= requests
    ends = Counter(end for (end,) in users.ends.values())
    assert set(ends) == {"answered", "aborted", "cancelled", "refused"}
    end = time.monotonic() + SOON
    while counts(hub.engine) != NOTHING and time.monotonic() < end:  # type: ignore[arg-type]
        time.sleep(0.01)  # the background thread frees what was cancelled
    assert counts(hub.engine) == NOTHING  # type: ignore[arg-type]
    assert sequences() == 0
    assert set(threading.enumerate()) - engine_threads() == others
    assert open_files() <= files + 2  # the compile pool's threads open none, a cached card none
    users.ask(threads, 5)
    assert users.faults == []
