"""Who is who, key files that change, and the limits of a key."""

import logging
from pathlib import Path

import pytest

from adapterhub.errors import ConfigError
from adapterhub.server.access.control import AccessControl
from adapterhub.server.access.errors import KeyLimitError
from adapterhub.server.access.keys import ApiKey
from adapterhub.server.access.levels import Level, level_of
from adapterhub.server.access.limits import KeyLimits

ALICE, BOB, ROOT = "alice-key-0123456789", "bob-key-0123456789ab", "root-key-0123456789a"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def key_file(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


def test_without_keys_everybody_is_an_admin():
    access = AccessControl(environment={})
    caller = access.caller(None)
    assert caller
    assert (caller.level, caller.adapters, access.needs_key) == (Level.ADMIN, None, False)


def test_keys_for_inference_alone_make_nobody_an_admin():
    access = AccessControl(environment={"ADAPTERHUB_API_KEY": ALICE})
    caller = access.caller(ALICE)
    assert caller
    assert caller.level is Level.OPERATOR
    assert access.caller(None) is None
    assert access.caller(BOB) is None


def test_with_an_admin_key_alone_inference_is_open():
    access = AccessControl(environment={"ADAPTERHUB_ADMIN_KEY": ROOT})
    callers = [access.caller(token) for token in (None, "none", ROOT)]  # OpenAI's clients always send a key
    assert [caller and caller.level for caller in callers] == [Level.OPERATOR, Level.OPERATOR, Level.ADMIN]


def test_a_key_with_a_list_sees_its_adapters_alone(tmp_path: Path):
    path = key_file(tmp_path / "keys.yaml", f"- {{name: alice, key: {ALICE}, adapters: [json]}}")
    caller = AccessControl(path, environment={}).caller(ALICE)
    assert caller
    assert caller.level is Level.INFERENCE
    assert (caller.may_use("json"), caller.may_use("support")) == (True, False)
    assert caller.route_filter.allow == {"json"}


def test_one_key_for_inference_and_admin_is_refused(tmp_path: Path):
    path = key_file(tmp_path / "keys", f"alice {ALICE}")
    with pytest.raises(ConfigError, match="Two keys are the same"):
        AccessControl(path, environment={"ADAPTERHUB_ADMIN_KEY": ALICE})


def test_a_changed_file_is_read_again_and_a_damaged_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    clock, path = Clock(), key_file(tmp_path / "keys", f"alice {ALICE}")
    access = AccessControl(path, environment={}, clock=clock)
    assert not access.is_due()
    clock.now += 1
    assert access.is_due()
    assert not access.is_due()  # another caller has seen to it
    key_file(path, f"alice {ALICE}\nbob {BOB}")
    access.reload_if_changed()
    assert access.caller(BOB)
    key_file(path, "nonsense")
    with caplog.at_level(logging.ERROR):
        access.reload_if_changed()
        access.reload_if_changed()
    assert access.caller(BOB)
    assert len(caplog.records) == 1
    key_file(path, f"bob {BOB}")
    access.reload_if_changed()
    assert access.caller(ALICE) is None


def test_a_key_may_send_a_burst_and_then_its_rate():
    clock = Clock()
    limits, key = KeyLimits(clock), ApiKey("alice", b"a", requests_per_minute=30)
    for _ in range(30):
        with limits.request(key):
            pass
    with pytest.raises(KeyLimitError) as caught, limits.request(key):
        pass
    assert caught.value.retry_after == 2  # one token in 60 / 30 seconds
    clock.now += caught.value.retry_after
    with limits.request(key):
        pass
    with limits.request(ApiKey("bob", b"b", requests_per_minute=30)):  # a bucket of its own
        pass


def test_a_key_may_run_a_number_of_requests_at_once():
    limits, key = KeyLimits(Clock()), ApiKey("alice", b"a", requests_per_minute=3, max_concurrent_requests=1)
    with limits.request(key):
        for _ in range(5):
            with pytest.raises(KeyLimitError, match="1 requests at once") as caught, limits.request(key):
                pass
        assert caught.value.retry_after == 1
    for _ in range(2):  # those that were refused cost no rate
        with limits.request(key):
            pass


@pytest.mark.parametrize(
    ("method", "path", "level"),
    [
        ("GET", "/health", Level.OPEN),
        ("GET", "/page/app.js", Level.OPEN),
        ("POST", "/v1/chat/completions", Level.INFERENCE),
        ("GET", "/v1/models/json@3", Level.INFERENCE),
        ("GET", "/v1/adapterhub/adapters", Level.INFERENCE),
        ("POST", "/v1/adapterhub/adapters", Level.ADMIN),
        ("DELETE", "/v1/adapterhub/adapters/json", Level.ADMIN),
        ("GET", "/metrics", Level.OPERATOR),
        ("POST", "/v1/load_lora_adapter", Level.ADMIN),
        ("POST", "/load_lora_adapter", Level.ADMIN),
        ("GET", "/a/path/that/was/forgotten", Level.ADMIN),
        ("GET", "/pages", Level.ADMIN),
        ("GET", "/v1/adapterhub/adapters2", Level.ADMIN),
    ],
)
def test_what_is_not_listed_is_for_admins(method: str, path: str, level: Level):
    assert level_of(method, path) is level
