"""`adapterhub check`, and what `add` and `show` say of back ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.capabilities import Backend
from adapterhub.cli.check import BACKENDS
from tests.tiny import make_adapter


@pytest.fixture
def dora(tmp_path: Path, tiny_base: Path) -> Path:
    return make_adapter(tmp_path / "dora", tiny_base, use_dora=True)


def test_the_engines_are_those_of_the_table():
    assert tuple(map(str, Backend)) == BACKENDS


def test_a_plain_adapter_runs_on_every_back_end(run):
    shown = run("check", "json")
    assert shown.code == 0
    assert [line.split()[:2] for line in shown.out.splitlines()[1:]] == [
        ["in-process", "yes"],
        ["llama.cpp", "yes"],
        ["vllm", "yes"],
        ["sglang", "yes"],
    ]
    assert run("show", "json", "--json").json["runs_on"] == ["in-process", "llama.cpp", "vllm", "sglang"]


def test_a_rank_above_the_servers_is_not_run(run):
    assert run("check", "json", "--engine", "vllm", "--max-lora-rank", "4").code == 0  # its rank is 4
    shown = run("check", "json", "--engine", "vllm", "--max-lora-rank", "2", "--json")
    assert shown.code == 1
    assert shown.json == [
        {
            "backend": "vllm",
            "runs": False,
            "reasons": ["its rank is 4, above 2"],
            "export_options": "--format peft --plain --rank 2",
            "exact": False,
            "hint": "`adapterhub export NAME OUT --format peft --plain --rank 2` approximates it and tells the error.",
        }
    ]


def test_a_folder_is_checked_before_it_is_registered(run, dora: Path):
    shown = run("check", dora, "--engine", "vllm")
    assert shown.code == 1
    assert "it uses DoRA" in shown.out
    assert "--dora svd" in shown.out
    assert run("check", dora, "--engine", "in-process").code == 0


def test_what_is_registered_is_told_for_which_servers_it_is_not(own, dora: Path, tiny_base: Path):
    added = own("add", "dora", dora, "--base", tiny_base)
    assert added.code == 0
    told = [line.split(":")[0] for line in added.err.splitlines() if line.startswith("Not for")]
    assert told == ["Not for llama.cpp, vllm, sglang"]  # for one reason, so on one line
    assert own("show", "dora", "--json").json["runs_on"] == ["in-process"]
    assert "runs on" in own("show", "dora").out


def test_a_damaged_folder_runs_nowhere_and_is_shown_all_the_same(
    own, dora: Path, tiny_base: Path, tmp_path: Path
):
    own("add", "dora", dora, "--base", tiny_base)
    (tmp_path / "registry" / "dora" / "1" / "adapter_config.json").write_text("{")
    assert own("show", "dora", "--json").json["runs_on"] == []
    shown = own("check", "dora")
    assert shown.code == 1
    assert "adapter_config.json is not JSON" in shown.err


def test_an_unknown_adapter_is_an_error(run):
    shown = run("check", "nothing")
    assert shown.code == 1
    assert "There is no adapter 'nothing'" in shown.err


def test_what_was_uploaded_is_not_downloaded_to_tell_of_servers(
    own, dora: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    url = f"memory://{tmp_path.name}"
    assert own("add", "dora", dora, "--base", tiny_base, "--registry", url).code == 0
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert "it uses DoRA" in own("check", "dora", "--engine", "vllm", "--registry", url).out


def test_a_blend_counts_as_the_sum_of_its_parts(own, dora: Path, tmp_path: Path, tiny_base: Path):
    for name, folder in {
        "one": make_adapter(tmp_path / "one", tiny_base, r=4, use_rslora=True),
        "two": make_adapter(tmp_path / "two", tiny_base, r=6, seed=2),
        "dora": dora,
        "head": make_adapter(tmp_path / "head", tiny_base, modules_to_save=["lm_head"]),
    }.items():
        own("add", name, folder, "--base", tiny_base)
    assert own("check", "one:0.7+two:0.3").code == 0  # a blend is written plain for SGLang, too
    shown = own("check", "one:0.7+two:0.3", "--engine", "vllm", "--max-lora-rank", "8", "--json")
    assert shown.code == 1
    assert shown.json[0]["reasons"] == ["its rank is 10, above 8"]
    assert own("check", "one+dora", "--engine", "vllm", "--json").json[0]["reasons"] == ["it uses DoRA"]
    (reason,) = own("check", "one+head", "--engine", "vllm", "--json").json[0]["reasons"]
    assert "modules_to_save" in reason
