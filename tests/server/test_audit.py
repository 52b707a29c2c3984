import json
import logging
import stat
from pathlib import Path

import pytest

from adapterhub.errors import AdapterNotFoundError
from adapterhub.server.access.audit import AuditLog


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_action_is_a_line_with_its_result(tmp_path: Path):
    path = tmp_path / "new" / "audit.jsonl"
    log = AuditLog(path)
    with log.action("add", adapter="sql\n{}", key="root", request_id="r1"):
        pass
    with pytest.raises(AdapterNotFoundError), log.action("remove", adapter="no", key="root", request_id="r2"):
        raise AdapterNotFoundError("There is none.")
    with pytest.raises(RuntimeError), log.action("remove", adapter="no", key="root", request_id="r3"):
        raise RuntimeError("secret")
    records = lines(path)
    assert [(one["action"], one["result"], one["request_id"]) for one in records] == [
        ("add", "ok", "r1"),
        ("remove", "model_not_found", "r2"),
        ("remove", "internal_error", "r3"),
    ]
    assert records[0].keys() == {"time", "key", "action", "adapter", "result", "request_id"}
    assert records[0]["adapter"] == "sql\n{}"  # and still one line
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_may_be_rotated(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    for _ in range(2):
        with log.action("add", adapter="sql", key="root", request_id="r"):
            pass
        path.rename(path.with_suffix(".1"))
    assert not path.exists()
    assert len(lines(path.with_suffix(".1"))) == 1


def test_a_log_that_cannot_be_written_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "audit").mkdir()
    with (
        caplog.at_level(logging.ERROR),
        AuditLog(tmp_path / "audit").action("add", adapter="sql", key="root", request_id="r"),
    ):
        pass
    assert '"action": "add"' in caplog.text
