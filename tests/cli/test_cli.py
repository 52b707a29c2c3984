"""The command line, run as a person would; what loads a model runs on the tiny base."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from adapterhub.cli.main import cli, main

COMMANDS = sorted(cli.commands)


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(monkeypatch, capfd, tiny_registry: Path):
    """Runs `adapterhub ARGUMENTS` in this process, on a registry of three tiny adapters."""
    monkeypatch.setenv("ADAPTERHUB_REGISTRY", str(tiny_registry))

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["adapterhub", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def own(monkeypatch, tmp_path: Path, run, tiny_adapters):
    """The same on an empty registry that the test may change."""
    monkeypatch.setenv("ADAPTERHUB_REGISTRY", str(tmp_path / "registry"))
    return run


def test_the_commands_are_these():
    assert " ".join(COMMANDS) == "add alias demo doctor finetune list merge rm route run show verify"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(run, command):
    shown = run(command, "--help")
    assert shown.code == 0
    assert "Example" in shown.out
    assert f"adapterhub {command}" in shown.out


class TestReading:
    def test_list(self, run):
        shown = run("list")
        assert [line.split()[0] for line in shown.out.splitlines()] == ["name", "code", "json", "support"]
        assert [card["name"] for card in run("list", "--json").json] == ["code", "json", "support"]

    def test_list_of_nothing_says_what_to_do(self, own):
        shown = own("list")
        assert (shown.code, shown.out) == (0, "")
        assert "adapterhub add" in shown.err
        assert own("list", "--json").json == []

    def test_show(self, run, tiny_registry):
        shown = run("show", "json")
        assert "LoRA, rank 4, alpha 8" in shown.out
        assert "chat template of the tokenizer" in shown.out
        as_json = run("show", "json@1", "--json").json
        assert as_json["prompt_in_use"] == "chat template of the tokenizer"
        assert as_json["folder"] == str(tiny_registry / "json" / "1")

    def test_route(self, run):
        assert run("route", "my router shows an error", "--json").json["adapter"] == "support"
        assert "base (no adapter is sure enough)" in run("route", "Good morning").out

    def test_verify(self, run):
        assert run("verify").code == 0
        assert run("verify", "--json").json == []

    def test_verify_of_a_damaged_adapter_exits_with_1(self, own, tmp_path, tiny_adapters):
        own("add", "json", tiny_adapters["json"])
        weights = tmp_path / "registry" / "json" / "1" / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
        shown = own("verify")
        assert shown.code == 1
        assert "json@1" in shown.out

    def test_doctor(self, run, tiny_registry):
        report = run("doctor", "--json").json
        assert report["4-bit"] == "works (nf4)"
        assert str(tiny_registry) in report["registry"]
        assert "3 adapters" in run("doctor").out


class TestChanging:
    def test_add_alias_and_rm(self, own, tiny_base, tiny_adapters):
        added = own(
            "add", "json", tiny_adapters["json"], "--base", tiny_base, "--tag", "t", "--example", "as json"
        )
        assert (added.code, added.out, added.err) == (0, "json@1\n", "")
        assert own("add", "json", tiny_adapters["code"], "--base", tiny_base, "--json").json["version"] == 2
        own("alias", "json", "prod", 1)
        card = own("show", "json@prod", "--json").json
        assert (card["version"], card["tags"], card["routing"]["examples"]) == (1, ["t"], ["as json"])
        refused = own("rm", "json@1", "--yes")
        assert (refused.code, "prod" in refused.err) == (1, True)
        assert own("rm", "json@1", "--yes", "--force").code == 0
        assert own("show", "json@1").code == 1
        own("alias", "json", "live")
        assert own("show", "json@live", "--json").json["version"] == 2
        own("alias", "json", "live", "--delete")
        assert own("show", "json@live").code == 1

    def test_rm_asks_first(self, own, tiny_adapters, monkeypatch):
        own("add", "json", tiny_adapters["json"])
        refused = own("rm", "json")
        assert (refused.code, "--yes" in refused.err) == (2, True)
        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        monkeypatch.setattr("click.confirm", lambda *_, **__: True)
        assert own("rm", "json").code == 0
        assert own("list", "--json").json == []

    def test_adding_without_a_base_warns(self, own, tiny_adapters):
        assert "not checked against a base" in own("add", "json", tiny_adapters["json"]).err


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("show", "jsn"), "Did you mean 'json'?"),
            (("show", "json@7"), "json"),
            (("show", "a:b"), "name"),
            (("run", "jsn", "Hi"), "Did you mean 'json'?"),
            (("run", "json", ""), "empty"),
            (("run", "json", "x " * 500), "context"),
            (("add", "x", "/no/such/folder"), "Hint:"),
            (("add", "auto", "."), "reserved"),
            (("finetune", "/no/such/file.yaml"), "file.yaml"),
            (("merge", "nothing", "out"), "nothing"),
        ],
    )
    def test_what_the_user_can_mend_exits_with_1(self, run, arguments, words):
        shown = run(*arguments)
        assert (shown.code, shown.out) == (1, "")
        assert words in shown.err
        assert "\nError: " in f"\n{shown.err}"
        assert "Traceback" not in shown.err

    @pytest.mark.parametrize(
        "arguments", [("lsit",), ("show",), ("run",), ("run", "a", "b", "c"), ("list", "--jsno")]
    )
    def test_wrong_usage_exits_with_2(self, run, arguments):
        assert run(*arguments).code == 2

    def test_a_mistyped_command_gets_a_suggestion(self, run):
        assert "Did you mean 'list'?" in run("lsit").err

    def test_a_fault_of_ours_has_no_traceback_but_with_debug(self, run, monkeypatch):
        monkeypatch.setattr("adapterhub.registry.AdapterRegistry.list", lambda _: 1 / 0)
        shown = run("list")
        assert shown.code == 1
        assert "ZeroDivisionError" in shown.err
        assert "--debug" in shown.err
        assert "Traceback" not in shown.err
        monkeypatch.setattr(sys, "argv", ["adapterhub", "--debug", "list"])
        with pytest.raises(ZeroDivisionError):
            main()


class TestRun:
    def test_run_streams_the_answer_to_stdout_and_the_rest_to_stderr(self, run):
        as_json = run("run", "json", "Hi", "--max-tokens", 8, "--json").json
        shown = run("run", "json", "Hi", "--max-tokens", 8)
        assert shown.out == as_json["text"] + "\n"
        assert "json@1" in shown.err
        assert (as_json["adapter"], as_json["usage"]["completion_tokens"] <= 8) == ("json", True)

    def test_base_and_auto(self, run):
        assert run("run", "base", "Hi", "--max-tokens", 2, "--json").json["adapter"] is None
        routed = run("run", "my router shows an error", "--max-tokens", 2, "--json").json
        assert routed["route"]["adapter"] == routed["adapter"] == "support"

    def test_standard_input(self, tiny_registry):
        command = [
            sys.executable,
            "-m",
            "adapterhub.cli.main",
            "run",
            "json",
            "-",
            "--max-tokens",
            "2",
            "--json",
        ]
        command += ["--registry", str(tiny_registry)]
        done = subprocess.run(command, input="Привет", capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["adapter"] == "json"
        assert done.stderr == ""

    def test_tools_are_read_from_a_file(self, run, tmp_path):
        (tmp_path / "tools.json").write_text('{"name": "not a list"}')
        shown = run("run", "json", "Hi", "--tools", tmp_path / "tools.json")
        assert (shown.code, "list" in shown.err) == (1, True)


class TestMerge:
    def test_it_writes_a_model_and_tells_how_far_the_answers_agree(self, run, tmp_path):
        merged = run(
            "merge", "json", tmp_path / "merged", "--check", 2, "--quantization", "none", "--json"
        ).json
        assert (merged["adapter"], merged["requests_compared"], merged["agreement"]) == ("json@1", 2, 1)
        assert (tmp_path / "merged" / "model.safetensors").is_file()

    def test_without_a_check_no_model_is_loaded(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr("adapterhub.hub.AdapterHub.from_pretrained", None)
        merged = run("merge", "json", tmp_path / "merged", "--check", 0)
        assert (merged.code, merged.out) == (0, f"{tmp_path / 'merged'}\n")

    def test_a_folder_in_use_is_refused(self, run, tmp_path):
        (tmp_path / "file").touch()
        refused = run("merge", "json", tmp_path, "--check", 0)
        assert (refused.code, "not empty" in refused.err) == (1, True)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_reader_that_stops_early_is_no_error(tiny_registry):
    command = f"{sys.executable} -m adapterhub.cli.main list --json --registry {tiny_registry} | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[", "")
