"""Keys: their files, their forms, and that nothing of them is in a message."""

import hmac
import json
from pathlib import Path

import pytest

from adapterhub.errors import ConfigError
from adapterhub.server.access.keys import ApiKey, find_key, keys_of_environment, read_key_file

ALICE, BOB = "alice-key-0123456789", "bob-key-0123456789ab"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def test_a_text_file_has_a_key_a_line(tmp_path: Path):
    path = write(tmp_path / "keys", f"# of the team\n\nalice {ALICE}\n  bob\t{BOB}\n")
    keys = read_key_file(path, is_admin=False)
    assert [(key.name, key.is_admin, key.adapters) for key in keys] == [
        ("alice", False, None),
        ("bob", False, None),
    ]
    assert find_key(keys, BOB) is keys[1]
    assert find_key(keys, BOB + "x") is None
    assert find_key(keys, "ключ\udcff") is None


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_structured_file_has_lists_of_adapters_and_limits(tmp_path: Path, suffix: str):
    entry = {
        "name": "alice",
        "key": ALICE,
        "adapters": ["json", "support"],
        "requests_per_minute": 60,
        "max_concurrent_requests": 4,
    }
    path = write(tmp_path / f"keys.{suffix}", json.dumps([entry, {"name": "bob", "key": BOB}]))
    alice, bob = read_key_file(path, is_admin=False)
    assert alice.adapters == {"json", "support"}
    assert (alice.requests_per_minute, alice.max_concurrent_requests) == (60, 4)
    assert (bob.adapters, bob.requests_per_minute) == (None, None)


def test_keys_are_kept_as_digests_alone(tmp_path: Path):
    (key,) = read_key_file(write(tmp_path / "keys", f"alice {ALICE}"), is_admin=True)
    assert ALICE not in repr(key)
    assert ALICE.encode() not in key.digest


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o602])
def test_a_file_that_others_could_read_or_change_is_refused(tmp_path: Path, mode: int):
    path = write(tmp_path / "keys", f"alice {ALICE}", mode)
    with pytest.raises(ConfigError, match="permissions"):
        read_key_file(path, is_admin=False)


def test_a_mounted_secret_is_a_link(tmp_path: Path):
    write(tmp_path / "data", f"alice {ALICE}", 0o440)
    (tmp_path / "keys").symlink_to("data")
    assert [key.name for key in read_key_file(tmp_path / "keys", is_admin=False)] == ["alice"]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("keys", "", "holds no key"),
        ("keys", f"{ALICE}", "Line 1"),
        ("keys", f"alice {ALICE} x", "Line 1"),
        ("keys", "alice short-secret", "at least 16"),
        ("keys", "alice " + "é" * 20, "visible ASCII"),
        ("keys", f"alice {ALICE}\nalice {BOB}", "same name twice"),
        ("keys", f"alice {ALICE}\nbob {ALICE}", "same key twice"),
        ("keys.yaml", f"name: alice\nkey: {ALICE}", "must be a list"),
        ("keys.yaml", f"- name: alice\n  key: {ALICE}\n  adapter: [json]", "adapter"),
        ("keys.yaml", f"- name: alice\n  key: {ALICE}\n  adapters: ['../x']", "not an adapter's name"),
        ("keys.yaml", f"- name: alice\n  key: {ALICE}\n  requests_per_minute: 0", "requests_per_minute"),
        ("keys.json", "[", "not YAML or JSON"),
    ],
)
def test_a_damaged_file_is_refused_without_its_keys(tmp_path: Path, name: str, text: str, reason: str):
    with pytest.raises(ConfigError, match=reason) as caught:
        read_key_file(write(tmp_path / name, text), is_admin=False)
    shown = f"{caught.value} {caught.value.__cause__} {caught.value.__context__}"
    assert not any(secret in shown for secret in (ALICE, BOB, "short-secret", "é" * 20))


def test_an_admin_key_has_no_list_of_adapters(tmp_path: Path):
    path = write(tmp_path / "keys.json", json.dumps([{"name": "root", "key": ALICE, "adapters": ["json"]}]))
    with pytest.raises(ConfigError, match="admin"):
        read_key_file(path, is_admin=True)


def test_a_missing_file_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key_file(tmp_path / "keys", is_admin=False)


def test_the_environment_has_a_key_of_each_kind():
    keys = keys_of_environment({"ADAPTERHUB_API_KEY": ALICE, "ADAPTERHUB_ADMIN_KEY": BOB})
    assert [(key.name, key.is_admin) for key in keys] == [
        ("ADAPTERHUB_API_KEY", False),
        ("ADAPTERHUB_ADMIN_KEY", True),
    ]
    assert keys_of_environment({}) == ()
    with pytest.raises(ConfigError, match="ADAPTERHUB_API_KEY"):
        keys_of_environment({"ADAPTERHUB_API_KEY": "short"})


def test_every_key_is_compared(monkeypatch: pytest.MonkeyPatch):
    """The time says neither how much of a key was right, nor which one."""
    compared, compare = [], hmac.compare_digest

    def counted(left: bytes, right: bytes) -> bool:
        compared.append(left)
        return compare(left, right)

    known = [ApiKey(str(n), bytes([n]) * 32) for n in range(5)]
    monkeypatch.setattr(hmac, "compare_digest", counted)
    find_key(known, "unknown")
    assert len(compared) == 5
