"""An interrupt ends the answers of its own thread; those of other threads are right, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapterhub.base.loading import load_base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.decoding.sampler import Sampler
from adapterhub.engine.interface import Request
from adapterhub.engine.kv.cache import KVCache
from adapterhub.engine.kv.prefix_cache import PrefixCache
from adapterhub.engine.meter import Meter
from adapterhub.engine.scheduling.deferred_signals import DeferredSignals
from adapterhub.engine.scheduling.lora_slots import LoraSlotTable
from adapterhub.engine.scheduling.output_queue import OutputQueue
from adapterhub.engine.scheduling.sequence import SequenceState
from adapterhub.engine.scheduling.waiting_queue import WaitingQueue
from adapterhub.errors import AdapterHubError, EngineError, GenerationError
from tests.engine.maker import (
    NOTHING,
    Seams,
    counts,
    in_threads,
    outcomes,
    prompt_of,
    request,
    seams_of,
    sources_of,
    tokens,
)

SOON = 20.0


@pytest.fixture
def seams(tiny_base: Path) -> Iterator[Seams]:
    seams = seams_of(load_base(tiny_base, quantization=None, device="cpu"), EngineLimits(kv_cache_mib=64))
    yield seams
    seams.engine.close()


@pytest.fixture
def engine(seams: Seams) -> BatchingEngine:
    return seams.engine


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, "it never happens"
        time.sleep(0.002)


# Signals wait for the end of a step


def ends_in_threads(
    engine: BatchingEngine, batch: Sequence[Request], interrupt: type[BaseException]
) -> dict[int, object]:
    """How each request of its own thread ends: tokens, or what was raised."""
    ends: dict[int, object] = {}

    def ask(number: int) -> None:
        try:
            ends[number] = tokens(engine, batch[number])
        except (interrupt, AdapterHubError) as raised:
            ends[number] = raised

    in_threads([lambda number=number: ask(number) for number in range(len(batch))])  # type: ignore[misc]
    return ends


def interrupt(times: int, after: list[str], contexts: int = 1) -> None:
    """Sends SIGINT within contexts, and notes what runs after it."""
    with DeferredSignals() as signals:
        if contexts > 1:
            interrupt(times, after, contexts - 1)
        else:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        after.append(f"{contexts} {signals.received}")


@pytest.mark.parametrize(
    ("times", "contexts", "after"), [(1, 1, ["1 True"]), (1, 2, ["1 True", "2 True"]), (2, 1, [])]
)
def test_a_signal_is_held_back_to_the_end_unless_it_comes_twice(times: int, contexts: int, after: list[str]):
    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupt(times, seen, contexts)
    assert seen == after
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_raises_nothing_only_runs_later():
    order: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: order.append("handled"))
    try:
        with DeferredSignals():
            signal.raise_signal(signal.SIGTERM)
            order.append("within")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert order == ["within", "handled"]


def test_other_threads_have_no_signals():
    def ask() -> None:
        with DeferredSignals() as signals:
            assert not signals.received

    in_threads([ask])


# Ctrl-C in the main thread


def test_ctrl_c_at_random_moments_ends_only_the_main_threads_answers(engine: BatchingEngine):
    """The main thread asks and is interrupted, again and again, while eight others ask."""
    batch = [request(prompt_of(number, 5), max_tokens=10) for number in range(8)]
    wanted = [tokens(engine, one) for one in batch]
    stop, wrong, answered = threading.Event(), [], [0] * len(batch)

    def ask(number: int) -> None:
        while not stop.is_set():
            try:
                if tokens(engine, batch[number]) != wanted[number]:
                    wrong.append(number)
            except BaseException as error:  # noqa: BLE001
                wrong.append(error)
            answered[number] += 1

    asking = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(len(batch))]
    for thread in asking:
        thread.start()
    chance, interrupted = random.Random(0), 0
    try:
        for go in range(60):
            timer = threading.Timer(chance.random() * 0.02, signal.raise_signal, [signal.SIGINT])
            try:
                timer.start()
                if go % 2:
                    tokens(engine, request(prompt_of(1, 5), max_tokens=200))
                else:
                    for _ in engine.stream(request(prompt_of(1, 5), max_tokens=200)):
                        pass
                timer.join()
                time.sleep(0.01)
            except KeyboardInterrupt:
                interrupted += 1
            timer.join()
    finally:
        stop.set()
    for thread in asking:
        thread.join(SOON)
        assert not thread.is_alive()
    assert wrong == []
    assert interrupted >= 50
    assert min(answered) > 0
    wait_for(lambda: counts(engine) == NOTHING)
    assert tokens(engine, batch[0]) == wanted[0]


# Interrupts that are raised within a step, whatever sends them


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(
    ("part", "method"),
    [(WaitingQueue, "schedule"), (SequenceState, "next_token_ids"), (Meter, "record"), (Sampler, "draw")],
)
def test_an_interrupt_within_a_step_ends_the_leaders_answer(engine, monkeypatch, part, method, error):
    batch = [request(prompt_of(number, 5), max_tokens=30) for number in range(6)]
    wanted = [tokens(engine, one) for one in batch]
    original, broken = getattr(part, method), []

    def breaks(*args: object, **kwargs: object) -> object:
        if not broken:
            wait_for(lambda: engine.stats().running + engine.stats().waiting == len(batch))
        if not broken and (engine.stats().running == len(batch) or method == "schedule"):
            broken.append(threading.get_ident())
            raise error("interrupted")
        return original(*args, **kwargs)

    monkeypatch.setattr(part, method, breaks)
    ends = ends_in_threads(engine, batch, error)
    interrupted = [number for number, end in ends.items() if isinstance(end, error)]
    others = {number: end for number, end in ends.items() if number not in interrupted}
    assert len(interrupted) == 1
    failed = [end for end in others.values() if isinstance(end, Exception)]
    # An interrupt within one sequence's own sampler ends that one too, since its state is not known.
    assert len(failed) <= (method == "draw")
    assert all(end == wanted[number] for number, end in others.items() if end not in failed)
    assert counts(engine) == NOTHING


def test_an_interrupt_of_the_runner_ends_the_leaders_answer(seams: Seams):
    engine = seams.engine
    batch = [request(prompt_of(number, 5), max_tokens=30) for number in range(6)]
    wanted = [tokens(engine, one) for one in batch]
    calls: list[int] = []

    def breaks(sequences: object) -> None:
        calls.append(1)
        if len(calls) in (10, 20):
            raise KeyboardInterrupt

    seams.runner.before_step = breaks
    ends: dict[int, object] = {}

    def ask(number: int) -> None:
        try:
            ends[number] = tokens(engine, batch[number])
        except BaseException as raised:  # noqa: BLE001
            ends[number] = raised

    in_threads([lambda number=number: ask(number) for number in range(len(batch))])  # type: ignore[misc]
    assert sum(isinstance(end, KeyboardInterrupt) for end in ends.values()) == 2
    assert all(end == wanted[number] for number, end in ends.items() if isinstance(end, list))
    assert sum(isinstance(end, list) for end in ends.values()) == len(batch) - 2
    assert counts(engine) == NOTHING


@pytest.mark.parametrize(
    ("part", "method"),
    [(KVCache, "free"), (KVCache, "allocate"), (LoraSlotTable, "release"), (LoraSlotTable, "acquire")],
)
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_in_the_middle_of_a_change_leaves_nothing(
    engine, tiny_adapters, monkeypatch, part, method, after
):
    """As a second Ctrl-C may: what it tore is not known, so all may end, but no slot stays taken."""
    (adapter, *_) = sources_of(tiny_adapters).values()
    batch = [request(prompt_of(number, 5), adapter, max_tokens=4 + number) for number in range(6)]
    wanted, original, broken = [tokens(engine, one) for one in batch], getattr(part, method), []
    engine.unload(adapter)  # so that it is loaded again meanwhile

    def breaks(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs) if after or broken else None
        if not broken:
            broken.append(1)
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(part, method, breaks)
    ends = ends_in_threads(engine, batch, KeyboardInterrupt)
    assert sum(isinstance(end, KeyboardInterrupt) for end in ends.values()) == 1
    assert all(isinstance(end, BaseException) or end == wanted[number] for number, end in ends.items())
    assert counts(engine) == NOTHING
    assert [tokens(engine, one) for one in batch] == wanted


def test_an_interrupt_of_the_engines_thread_does_not_end_the_asynchronous_door(seams: Seams):
    """Its own answers end with an error; those of threads go on, and later tasks are answered."""
    engine, one = seams.engine, request(prompt_of(0, 5), max_tokens=30)
    wanted, broken = tokens(engine, one), []

    def breaks(_: object) -> None:
        if threading.current_thread().name == "adapterhub-steps" and len(broken) < 2:
            broken.append(1)
            raise SystemExit

    async def ask() -> list[int]:
        return list((await asyncio.wait_for(engine.agenerate([one]), SOON))[0][0].token_ids)

    async def thrice() -> list[int]:
        for _ in range(2):
            with pytest.raises(EngineError, match="Ask again"):
                await ask()
        return await ask()

    seams.runner.before_step = breaks
    assert asyncio.run(thrice()) == wanted
    assert len(broken) == 2
    wait_for(lambda: counts(engine) == NOTHING)


class PanicException(BaseException):
    """As pyo3 raises it where Rust code panics; it is no `Exception`."""


def test_a_panic_while_sampling_ends_that_sequence(engine: BatchingEngine, monkeypatch: pytest.MonkeyPatch):
    batch = [request(prompt_of(number, 5), seed=number) for number in range(6)]
    wanted, draw, drawn = [tokens(engine, one) for one in batch], Sampler.draw, []

    def panics(self: Sampler, *args: Any) -> Any:
        drawn.append(self._params.seed)
        if self._params.seed == 2 and drawn.count(2) == 5:
            raise PanicException("in Rust")
        return draw(self, *args)

    monkeypatch.setattr(Sampler, "draw", panics)
    ends = outcomes(engine, batch)
    assert isinstance(ends[2], GenerationError)
    assert [end for number, end in enumerate(ends) if number != 2] == wanted[:2] + wanted[3:]
    assert counts(engine) == NOTHING


@pytest.mark.parametrize(
    ("part", "method"),
    [(SequenceState, "next_token_ids"), (PrefixCache, "load"), (OutputQueue, "put"), (KVCache, "allocate")],
)
def test_a_failure_while_one_sequence_is_handled_ends_that_sequence(engine, monkeypatch, part, method):
    batch = [request(prompt_of(number, 5), max_tokens=6) for number in range(6)]
    wanted, original, broken = [tokens(engine, one) for one in batch], getattr(part, method), []

    def fails(self: Any, *args: Any) -> Any:
        if not broken:
            broken.append(1)
            raise ZeroDivisionError("a defect")
        return original(self, *args)

    monkeypatch.setattr(part, method, fails)
    ends = outcomes(engine, batch)
    failed = [number for number, end in enumerate(ends) if isinstance(end, AdapterHubError)]
    assert len(failed) == 1
    assert "ZeroDivisionError" in str(ends[failed[0]])
    assert "a defect" not in str(ends[failed[0]])  # it might quote the prompt
    assert all(end == wanted[number] for number, end in enumerate(ends) if number not in failed)
    assert counts(engine) == NOTHING


@pytest.mark.parametrize("closed", [False, True])
def test_a_lost_device_ends_every_request_and_hangs_none(
    seams: Seams, tiny_adapters, monkeypatch, caplog, closed: bool
):
    """Once a kernel has failed, CUDA refuses everything: steps, and also clearing slots."""
    engine, one = seams.engine, replace(request(prompt_of(0, 5)), adapter=sources_of(tiny_adapters)["json"])
    wanted, lost = tokens(engine, one), [True]

    def refuse(original: Callable[..., Any]) -> Callable[..., Any]:
        def refusing(*args: Any, **kwargs: Any) -> Any:
            if lost:
                raise RuntimeError("CUDA error: device-side assert triggered")
            return original(*args, **kwargs)

        return refusing

    monkeypatch.setattr(seams.runner, "step", refuse(seams.runner.step))
    monkeypatch.setattr(seams.runner, "clear_adapter", refuse(seams.runner.clear_adapter))
    monkeypatch.setattr(KVCache, "free", refuse(KVCache.free))
    ends = outcomes(engine, [one, request([5]), one])
    assert all(isinstance(end, AdapterHubError) for end in ends)
    assert "in refusing" in caplog.text  # the traceback of the step
    assert not any("CUDA" in str(end) for end in ends)
    if closed:
        engine.close()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("adapterhub-load")]
    assert counts(engine) == NOTHING
    lost.clear()
    if not closed:
        assert tokens(engine, one) == wanted


def test_a_sequence_that_cannot_be_queued_ends_alone(engine: BatchingEngine):
    batch = [request(prompt_of(number, 5)) for number in range(4)]
    wanted = [tokens(engine, one) for one in batch]
    object.__setattr__(batch[1], "priority", 10**400)
    ends = outcomes(engine, batch)
    assert isinstance(ends[1], GenerationError)
    assert [end for number, end in enumerate(ends) if number != 1] == [wanted[0], *wanted[2:]]


def test_an_adapter_for_which_no_thread_can_be_started_ends_its_own_request(
    seams: Seams, tiny_adapters, monkeypatch
):
    engine, one = seams.engine, request(prompt_of(0, 5))
    wanted = tokens(engine, one)
    cold = replace(one, adapter=sources_of(tiny_adapters)["json"])

    def refuses(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(ThreadPoolExecutor, "submit", refuses)
        ends = outcomes(engine, [one, cold, one])
    assert isinstance(ends[1], GenerationError)
    assert [ends[0], ends[2]] == [wanted, wanted]
    assert tokens(engine, cold)


# Processes

LOADED = """
import asyncio, os, signal, sys, threading, time
from adapterhub import AdapterHub, AdapterHubError
from adapterhub.demo import demo_registry_folder
hub = AdapterHub.from_pretrained("adapterhub-demo", demo_registry_folder())
name = hub.registry.list()[0].name
def ask(tokens=5): return hub.generate("Hi", name, max_tokens=tokens, ignore_eos=True).text
"""


def run(script: str, before: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", before + LOADED + script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


EXITS = {
    "threads": "for _ in range(3): threading.Thread(target=ask, args=(10_000,), daemon=True).start()",
    "stream": """
s = hub.stream("Hi", name, max_tokens=400, ignore_eos=True); next(s)
threading.Thread(target=ask, args=(10_000,), daemon=True).start()""",
    "tasks": """
async def main():
    for _ in range(4): asyncio.ensure_future(hub.agenerate("Hi", name, max_tokens=400, ignore_eos=True))
    await asyncio.sleep(0.2)
asyncio.new_event_loop().run_until_complete(main())""",
}


@pytest.mark.parametrize("kind", EXITS)
def test_exit_under_a_running_answer_does_not_abort(kind: str):
    done = run(EXITS[kind].replace("10_000", "400") + "\ntime.sleep(0.2)\nsys.exit(3)")
    assert done.returncode == 3, done.stderr
    assert "terminate called" not in done.stderr


AT_EXIT = """
import atexit
def at_exit():
    # Called after what torch has registered, so a model may not compute any more: then an error of ours, and no thread
    # waits. The thread that ends the process may lead; the engine's own may not.
    for one in (ask, lambda: asyncio.run(hub.agenerate("Hi", name))):
        try:
            one()
        except AdapterHubError:
            print("refused")
        else:
            print("answered")
    hub.close()
    print("closed")
atexit.register(at_exit)
"""


def test_functions_that_run_at_exit_are_answered_or_refused_and_may_close():
    done = run("ask(); threading.Thread(target=ask, args=(400,), daemon=True).start(); ask()", AT_EXIT)
    assert done.returncode == 0, done.stderr
    own, *others = done.stdout.split()
    assert own in ("answered", "refused")
    assert others == ["refused", "closed"]


FORKED = """
async def aask(): return (await hub.agenerate("Hi", name, max_tokens=5)).text
for _ in range(2): threading.Thread(target=ask, args=(400,), daemon=True).start()
asyncio.run(aask())  # starts the threads of the asynchronous door
open_stream = hub.stream("Hi", name, max_tokens=200); next(open_stream)
child = os.fork()
if child == 0:
    signal.alarm(30)
    for one in (ask, lambda: asyncio.run(aask()), lambda: next(hub.stream("Hi", name)), lambda: hub.pin(name),
                lambda: hub.unload(name), lambda: asyncio.run(hub.agenerate("Hi", name, choices=["a"]))):
        try:
            one()
        except AdapterHubError as error:
            assert "fork" in error.message and "spawn" in error.hint, error
        else:
            os._exit(9)
    open_stream.close()
    hub.stats(); hub.close()
    del hub, open_stream
    sys.exit(7)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
print(ask())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_is_told_and_hangs_nowhere():
    done = run(FORKED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
