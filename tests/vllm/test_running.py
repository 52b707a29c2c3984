"""Sequences on their way through a server: how those that are given up leave the figures."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from adapterhub.engine.meter import Residency
from adapterhub.vllm.client import VLLMClient
from adapterhub.vllm.fleet import Fleet
from adapterhub.vllm.running import SequenceRunner
from adapterhub.vllm.sequences import ServedSequence, ServedSequenceBuilder
from tests.fake_vllm import FakeServer, FakeVllm
from tests.vllm.conftest import ECHO, request
from tests.waiting import until


@pytest.fixture
async def runner(server: FakeServer) -> AsyncIterator[SequenceRunner]:
    fleet = Fleet([VLLMClient(server.url)])
    runner = SequenceRunner(fleet)
    yield runner
    await runner.aclose()
    await fleet.aclose()


def sequence() -> ServedSequence:
    (made,) = ServedSequenceBuilder(ECHO, 8192).build(request(), 1, lambda: None, stream=False)
    return made


async def finished(one: ServedSequence) -> None:
    await until(lambda: one.output.finished)


async def test_what_is_cancelled_before_its_first_step_waits_no_longer(
    runner: SequenceRunner, fake: FakeVllm
):
    given_up, other = sequence(), sequence()
    runner.add([given_up, other])
    runner.start([given_up, other])
    runner.cancel(given_up)
    await finished(other)
    stats = runner.stats(Residency())
    assert (stats.waiting, stats.running) == (0, 0)
    assert stats.finished == {"stop": 1, "length": 0, "abort": 1, "error": 0}
    assert len(fake.bodies) == 1


async def test_a_defect_ends_the_request_without_quoting_it(
    runner: SequenceRunner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    text = "the prompt"  # not in the line that raises, which a traceback shows

    def fail(self: ServedSequence, token: object) -> None:
        raise ValueError(text)

    monkeypatch.setattr(ServedSequence, "take", fail)
    one = sequence()
    runner.add([one])
    runner.start([one])
    await finished(one)
    with pytest.raises(Exception, match="ValueError") as caught:
        one.output.get()
    assert text not in str(caught.value) + caplog.text
    assert "builtins.ValueError" in caplog.text
    assert runner.stats(Residency()).finished["error"] == 1
