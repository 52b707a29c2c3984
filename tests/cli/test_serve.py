"""`adapterhub serve`, up to where the server begins; tests/server has the rest."""

from __future__ import annotations

import sys

import pytest

import adapterhub.server
from adapterhub.hub import AdapterHub
from adapterhub.server import ServerConfig


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServerConfig]:
    """The settings that the server is started with; it ends at once."""
    configs: list[ServerConfig] = []

    def serve(open_hub: object, config: ServerConfig, report: object) -> int:
        configs.append(config)
        return 0

    monkeypatch.setattr(adapterhub.server, "serve", serve, raising=False)
    return configs


def test_options_become_settings(run, served: list[ServerConfig]):
    options = ("--port", 0, "--max-body-mib", 2, "--drain-seconds", 5, "--cors-origin", "https://a.example")
    assert run("serve", *options, "--cors-origin", "https://b.example", "--no-access-log").code == 0
    origins = ("https://a.example", "https://b.example")
    assert served == [
        ServerConfig(
            port=0, max_body_bytes=2 * 2**20, drain_seconds=5, cors_origins=origins, access_log=False
        )
    ]


def test_defaults_are_those_of_the_settings(run, served: list[ServerConfig]):
    assert run("serve").code == 0
    assert served == [ServerConfig()]
    assert served[0].host == "127.0.0.1"


def test_limits_reach_the_hub(run, monkeypatch: pytest.MonkeyPatch):
    given = {}

    def open_hub(**settings: object) -> None:
        given.update(settings)

    def serve(open_the_hub, config: ServerConfig, report: object) -> int:
        open_the_hub()
        return 0

    monkeypatch.setattr(AdapterHub, "from_pretrained", open_hub)
    monkeypatch.setattr(adapterhub.server, "serve", serve, raising=False)
    options = ("--max-num-seqs", 4, "--max-queue", 9, "--kv-cache-mib", 64, "--base", "somewhere")
    assert run("serve", *options).code == 0
    assert (given["max_batch_size"], given["max_queue"], given["kv_cache_mib"]) == (4, 9, 64)
    assert given["base"] == "somewhere"
    assert given["max_loras"] is None


def test_answers_that_were_cut_off_are_an_error(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adapterhub.server, "serve", lambda *_, **__: 3, raising=False)
    result = run("serve")
    assert result.code == 1
    assert "3 answers were cut off" in result.err


def test_without_keys_nobody_else_reaches_it(run):
    result = run("serve", "--host", "0.0.0.0")
    assert result.code == 1
    assert "--api-key-file" in result.err


def test_a_setting_that_is_not_valid(run):
    result = run("serve", "--ping-seconds", 0)
    assert result.code == 1
    assert "ping_seconds" in result.err


def test_without_the_extra_it_says_how_to_install_it(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "adapterhub.server.running", raising=False)
    monkeypatch.delitem(adapterhub.server.__dict__, "serve", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = run("serve")
    assert result.code == 1
    assert "'uvicorn'" in result.err
    assert 'pip install "adapterhub[server]"' in result.err
