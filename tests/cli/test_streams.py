"""Standard streams as shells, cron and services leave them: another encoding, closed, full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub import AdapterRegistry

TEXT = "Пишет JSON, naïve 日本"


@pytest.fixture
def shell(tiny_adapters, tmp_path: Path):
    """Runs `adapterhub ARGUMENTS` in a shell; returns its exit code, stdout and stderr as bytes."""
    AdapterRegistry(tmp_path / "registry").register("json", tiny_adapters["json"], description=TEXT)

    def run(arguments: str, **environment: str) -> tuple[int, bytes, bytes]:
        command = f"{sys.executable} -m adapterhub.cli.main {arguments}"
        paths = {"ADAPTERHUB_REGISTRY": str(tmp_path / "registry"), "COLUMNS": "200"}
        done = subprocess.run(
            command, shell=True, capture_output=True, env={**os.environ, **paths, **environment}
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize(
    ("command", "encoding"),
    [("show json", "ascii"), ("list", "cp1251"), ("show json --json", "latin-1"), ("show json", "utf-8")],
)
def test_an_encoding_that_lacks_characters_loses_no_line(shell, command: str, encoding: str):
    code, out, err = shell(command, PYTHONIOENCODING=encoding)
    text = out.decode(encoding)
    assert code == 0
    if "--json" in command:
        assert json.loads(text)["description"] == TEXT
        assert b"Standard output" not in err
    else:
        assert TEXT.encode(encoding, "replace").decode(encoding) in text
        assert err.count(b"Warning: Standard output is") == (encoding != "utf-8")


def test_the_c_locale(shell):
    for settings in ({"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        code, out, _ = shell("show json", **settings)
        assert code == 0
        assert b"JSON, na" in out


def test_closed_output_is_told_and_is_no_error(shell):
    code, out, err = shell("list >&-")
    assert (code, out) == (0, b"")
    assert err == b"Warning: Standard output is closed: what is printed there is lost.\n"
    assert shell("list >&- 2>&-") == (0, b"", b"")
    code, out, err = shell("show nothing 2>&-")
    assert (code, out, err) == (1, b"", b"")


def test_a_change_with_closed_streams_is_made_and_no_file_receives_what_is_printed(shell, tmp_path: Path):
    code, _, _ = shell("alias json prod 1 <&- >&- 2>&-")
    assert code == 0
    assert AdapterRegistry(tmp_path / "registry").get("json@prod").version == 1
    assert AdapterRegistry(tmp_path / "registry").verify() == []


@pytest.mark.parametrize("command", ["route -", "run json -", "run json hello --schema -"])
def test_closed_input_is_an_error_that_says_so(shell, command: str):
    code, out, err = shell(f"{command} <&-")
    assert (code, out) == (1, b"")
    assert err.startswith(b"Error: Standard input is closed")
    assert b"fault of adapterhub" not in err


def test_closed_input_does_not_matter_where_nothing_is_read(shell):
    code, out, err = shell("list --json <&-")
    assert (code, err, json.loads(out)[0]["name"]) == (0, b"", "json")
    code, _, err = shell("rm json <&-")
    assert code == 2
    assert b"add --yes" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
def test_a_full_disk_is_reported_once(shell):
    code, _, err = shell("list > /dev/full")
    assert code == 1
    assert err.count(b"No space left") == 1
    assert b"Exception ignored" not in err


def test_half_of_a_surrogate_pair_does_not_lose_the_rest():
    script = (
        "from adapterhub.cli import output; from adapterhub.cli.streams import open_streams;"
        r"open_streams(output.warn); output.emit('a\ud800b'); output.emit('c\udfffd')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env={**os.environ})
    assert (done.returncode, done.stdout) == (0, b"a?b\nc?d\n")
    assert done.stderr.count(b"Warning") == 1


def test_a_schema_file_may_begin_with_a_byte_order_mark(shell, tmp_path: Path):
    (tmp_path / "schema.json").write_text("\ufeff[]", encoding="utf-8")
    _, _, err = shell(f"run json hello --schema {tmp_path / 'schema.json'}")
    assert b"must hold a JSON Schema" in err
