"""The decision log: what fails under it never fails routing."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from adapterhub.errors import ConfigError, RoutingError
from adapterhub.routing import AdapterRouter
from adapterhub.routing.feedback import decision_log
from adapterhub.routing.feedback.decision_log import DecisionLog
from adapterhub.routing.feedback.json_lines import read_json_lines
from tests.faults import failures

EXAMPLES = {
    "json": ["as json please", "turn it into json", "make json of this"],
    "sql": ["select all users", "write a query", "join two tables"],
}


def test_a_full_disk_does_not_fail_routing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.jsonl"
    router = AdapterRouter.fit(EXAMPLES, log=DecisionLog(path))
    expected = router.route("turn it into json")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(decision_log, "_append", full)
        assert [router.route("turn it into json") for _ in range(3)] == [expected] * 3
    assert [record.getMessage() for record in caplog.records] == [
        f"Decisions cannot be logged to {path}: No space left on device"
    ]
    assert router.route("turn it into json") == expected
    assert len(list(read_json_lines(path))) == 2  # the first and the last


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    router = AdapterRouter.fit(EXAMPLES, log=DecisionLog(path))
    router.route("turn it into json")
    whole = path.read_bytes()
    opened = Path.open

    class Short:
        """A file on a disk with room for ten bytes."""

        def __init__(self, path: Path) -> None:
            self.file = opened(path, "ab", buffering=0)

        def __enter__(self) -> Short:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            return int(self.file.write(data[:10]))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, *_, **__: Short(path))
        router.route("select all users")
    assert path.read_bytes() == whole


def test_a_log_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "log.jsonl", "a\0b"):
        with pytest.raises(ConfigError) as caught:
            DecisionLog(path)
        assert caught.value.hint


def test_lone_surrogates_are_logged_escaped(tmp_path: Path) -> None:
    router = AdapterRouter.fit(EXAMPLES, log=DecisionLog(tmp_path / "log.jsonl", texts=True))
    router.route("json \ud800")
    ((_, entry),) = read_json_lines(tmp_path / "log.jsonl")
    assert json.dumps(entry["text"]) == json.dumps("json \ud800")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_router_that_cannot_be_saved(tmp_path: Path, code: int) -> None:
    path = tmp_path / "router.skops"
    router = AdapterRouter.fit(EXAMPLES)
    router.save(path)
    for error in failures(lambda: router.save(path), code):
        assert isinstance(error, RoutingError), repr(error)
        assert error.hint
        AdapterRouter.load(path)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
