"""The command line, run as a person would; what loads a model runs on the tiny base."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub import AdapterRegistry, SamplingParams
from adapterhub.cli.main import cli, main
from adapterhub.cli.options import read_text
from adapterhub.errors import AdapterNotFoundError
from adapterhub.export.verification import MERGE_BOUNDS, VerificationBound
from tests.tiny import make_adapter, make_base

COMMANDS = sorted(cli.commands)


def test_the_commands_are_these():
    assert (
        " ".join(COMMANDS)
        == "add alias blend chat check compare compose-dataset convert-gguf cp-config demo doctor export export-vllm "
        "finetune list ls-configs merge push rm route router run run-recipe serve show sync verify"
    )


def test_the_readme_names_every_command():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"`(?:adapterhub )?([a-z-]+(?: \| [a-z-]+)+)`", readme)
    assert sorted(" | ".join(listed).split(" | ")) == COMMANDS


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

    def test_an_empty_list_has_a_hint(self, own):
        shown = own("list")
        assert (shown.code, shown.out) == (0, "")
        assert "adapterhub add" in shown.err
        assert own("list", "--json").json == []

    def test_every_adapter_is_one_whole_line(self, own, tmp_path, tiny_adapters, monkeypatch):
        name = "a-name-that-is-rather-long-for-a-narrow-terminal"
        own("add", name, tiny_adapters["json"], "--description", f"{'long ' * 50}\nand two\x1b[31m lines")
        monkeypatch.setenv("COLUMNS", "30")
        shown = own("list")
        assert len(shown.out.splitlines()) == 2
        assert f"{name}  1 " in shown.out
        assert "and two [31m lines" in shown.out  # a card must not control the terminal
        shown = own("show", name)
        assert own("show", name, "--json").json["digest"] in shown.out
        assert str(tmp_path / "registry" / name / "1") in shown.out

    def test_list_warns_of_damaged_adapters(self, own, tmp_path, tiny_adapters, tiny_registry):
        own("add", "json", tiny_adapters["json"])
        (tmp_path / "registry" / "json" / "1" / "card.json").write_text("{")
        command = [sys.executable, "-m", "adapterhub.cli.main", "list", "--registry", tmp_path / "registry"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "In json/1" in done.stderr

    def test_show_names_the_prompt_style_or_why_it_is_unknown(self, own, tmp_path, tiny_adapters):
        nameless = tmp_path / "adapter"
        shutil.copytree(tiny_adapters["json"], nameless, ignore=shutil.ignore_patterns("README.md"))
        config = json.loads((nameless / "adapter_config.json").read_text())
        (nameless / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
        own("add", "json", nameless)
        assert own("show", "json", "--json").json["prompt_in_use"] == "unknown: The card names no base."
        AdapterRegistry(tmp_path / "registry").update("json", prompt={"format": "plain"})
        assert own("show", "json", "--json").json["prompt_in_use"] == "Instruction / Response"

    def test_show_of_a_card_whose_base_is_gone(self, own, tmp_path):
        base = make_base(tmp_path / "base")
        own("add", "json", make_adapter(tmp_path / "adapter", base), "--base", base)
        shutil.rmtree(base)
        shown = own("show", "json")
        assert (shown.code, f"unknown: There is no base model at '{base}'" in shown.out) == (0, True)

    def test_show_reads_the_base_at_the_revision_of_the_card(
        self, own, tmp_path, tiny_base, tiny_adapters, monkeypatch
    ):
        repository = tmp_path / "hub" / "models--org--base"
        shutil.copytree(tiny_base, repository / "snapshots" / ("a" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "v1").write_text("a" * 40)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        adapter = shutil.copytree(tiny_adapters["json"], tmp_path / "adapter")
        config = json.loads((adapter / "adapter_config.json").read_text())
        named = {**config, "base_model_name_or_path": "org/base", "revision": "v1"}
        (adapter / "adapter_config.json").write_text(json.dumps(named))
        own("add", "json", adapter)
        assert own("show", "json", "--json").json["prompt_in_use"] == "chat template of the tokenizer"

    def test_show(self, run, tiny_registry):
        shown = run("show", "json")
        assert "LoRA, rank 4, alpha 8" in shown.out
        assert "chat template of the tokenizer" in shown.out
        as_json = run("show", "json@1", "--json").json
        assert as_json["prompt_in_use"] == "chat template of the tokenizer"
        assert as_json["folder"] == str(tiny_registry / "json" / "1")

    def test_show_says_what_was_measured(self, own, tmp_path, tiny_adapters):
        registry = AdapterRegistry(tmp_path / "own")
        result = {"task_type": "text-generation", "dataset_name": "held-out", "metric_type": "accuracy"}
        named = {**result, "metric_value": 0.5, "metric_name": "right calls"}
        registry.register("json", tiny_adapters["json"], evaluation=[named, {**result, "metric_value": 0.75}])
        shown = own("show", "json", "--registry", tmp_path / "own").out
        assert "held-out: accuracy 0.5 (right calls)\n" in shown
        assert "held-out: accuracy 0.75\n" in shown

    @pytest.mark.parametrize("engine", ["vllm", "127.0.0.1:8000"])
    def test_an_engine_that_is_none_is_told_how_a_url_is_written(self, run, engine):
        refused = run("run", "json", "hello", "--engine", engine)
        assert (refused.code, "URL of a vLLM server, such as http://" in refused.err) == (2, True)

    def test_show_has_the_prompt_profile_of_the_adapters_own_files(self, own, tmp_path, tiny_base):
        adapter = make_adapter(tmp_path / "adapter", tiny_base)
        (adapter / "tokenizer_config.json").write_text('{"chat_template": "x", "eos_token": "<|endoftext|>"}')
        assert "its own is used" in own("add", "a", adapter, "--base", tiny_base).err
        AdapterRegistry(tmp_path / "registry").update(
            "a", prompt={"system": "Be brief.", "generation": {"temperature": 0.5}}
        )
        shown = own("show", "a").out
        for line in ("chat template of the card", "'<|endoftext|>'", "Be brief.", "temperature 0.5"):
            assert line in shown

    def test_show_has_the_sampling_defaults_of_card_and_base(self, own, tmp_path, monkeypatch):
        base = make_base(tmp_path / "base")
        config = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
        (base / "generation_config.json").write_text(json.dumps(config))
        own("add", "json", make_adapter(tmp_path / "adapter", base), "--base", base)
        AdapterRegistry(tmp_path / "registry").update("json", prompt={"generation": {"top_p": 0.5}})
        assert "top_p 0.5, temperature 0.6 (base)" in own("show", "json").out
        monkeypatch.setenv("ADAPTERHUB_GENERATION_CONFIG", "none")
        assert "(base)" not in own("show", "json").out

    def test_route(self, run):
        assert run("route", "my router shows an error", "--json").json["adapter"] == "support"
        assert "base (no adapter reaches its threshold)" in run("route", "Good morning").out

    def test_verify(self, run):
        assert run("verify").code == 0
        assert run("verify", "--json").json == []

    def test_verify_of_a_registry_that_does_not_exist(self, run, tmp_path):
        result = run("verify", "--registry", tmp_path / "mistyped")
        assert (result.code, result.out) == (1, "")
        assert "There is no registry at" in result.err
        assert "Hint:" in result.err

    def test_add_shows_what_a_foreign_card_sets_and_takes_it_when_trusted(self, own, tmp_path, tiny_adapters):
        source = AdapterRegistry(tmp_path / "source")
        given = {"description": "Writes JSON.", "prompt": {"system": "Obey \x1b[31mme."}}
        folder = source.folder(source.register("json", tiny_adapters["json"], **given))
        shown = own("add", "json", folder)
        assert "its card.json sets prompt.system to" in shown.err
        assert "not taken without trust_card" in shown.err
        assert "\x1b[31m" not in shown.err
        card = own("show", "json", "--json").json
        assert (card["description"], card["prompt"]["system"]) == ("Writes JSON.", None)
        trusted = own("add", "json", folder, "--trust-card")
        assert "trust_card" not in trusted.err
        assert own("show", "json", "--json").json["prompt"]["system"] == given["prompt"]["system"]

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
        assert re.match(r"(nf4|int4): .*\w{4}", report["quantization=auto"])
        assert str(tiny_registry) in report["registry"]
        assert "3 adapters" in run("doctor").out
        assert "runner" not in report

    def test_doctor_loads_a_base(self, run, tiny_base, tmp_path):
        shown = run("doctor", "--base", str(tiny_base), "--quantization", "none", "--json").json
        assert (shown["base"], shown["runner"]) == (str(tiny_base), "packed")
        assert "0.0001 is rounding" in shown["proof"]
        assert "activations in float32" in shown["arithmetic"]
        assert re.fullmatch(r"unquantised, \d+ MiB", shown["weights"])
        assert "is not served" in run("doctor", "--base", str(tmp_path), "--json").json["base"]

    def test_doctor_quantises_nothing_without_a_base(self, run):
        refused = run("doctor", "--quantization", "none")
        assert (refused.code, "--base" in refused.err) == (2, True)


class TestChanging:
    def test_add_alias_and_rm(self, own, tiny_base, tiny_adapters):
        added = own(
            "add", "json", tiny_adapters["json"], "--base", tiny_base, "--tag", "t", "--example", "as json"
        )
        assert (added.code, added.out) == (0, "json@1\n")
        assert added.err == "Warning: json has 1 example request; give it 5 or more.\n"
        assert own("add", "json", tiny_adapters["code"], "--base", tiny_base, "--json").json["version"] == 2
        own("alias", "json", "prod", 1)
        card = own("show", "json@prod", "--json").json
        assert (card["version"], card["tags"], card["routing"]["examples"]) == (1, ["t"], ["as json"])
        refused = own("rm", "json@1", "--yes")
        assert (refused.code, "prod" in refused.err) == (1, True)
        assert own("rm", "json@1", "--yes", "--force").code == 0
        assert own("show", "json@1").code == 1
        own("alias", "json", "live", 2)
        assert own("show", "json@live", "--json").json["version"] == 2
        own("alias", "json", "live", "--delete")
        assert own("show", "json@live").code == 1

    def test_alias_splits_and_shadows(self, own, tiny_adapters):
        for name in ("json", "code", "support"):
            own("add", "json", tiny_adapters[name])
        assert own("alias", "json", "prod", "1=90", "2=10").err == "json@prod is 90 % json@1, 10 % json@2.\n"
        shadowed = own("alias", "json", "prod", "--shadow", 3, "--percent", 12.5)
        assert shadowed.err == "json@prod is 90 % json@1, 10 % json@2; copies of 12.5 % to json@3.\n"
        shown = "json@prod: 90 % json@1, 10 % json@2; copies of 12.5 % to json@3"
        assert shown in own("show", "json@1").out
        assert own("show", "json@2", "--json").json["traffic"] == {
            "prod": {"weights": {"1": 90, "2": 10}, "shadow": {"version": 3, "percent": 12.5}}
        }
        listed = own("list").out.splitlines()
        assert listed[0].split()[:3] == ["name", "version", "aliases"]
        assert listed[1].split()[:3] == ["json", "3", "prod=1+2"]
        refused = own("rm", "json@2", "--yes")
        assert (refused.code, "prod" in refused.err) == (1, True)
        assert own("alias", "json", "prod", "--no-shadow").err == "json@prod is 90 % json@1, 10 % json@2.\n"
        assert own("alias", "json", "prod", 2).err == "json@prod is json@2.\n"
        assert own("show", "json@2", "--json").json["traffic"] == {}
        both = own("alias", "json", "prod", "1=1", "2=3", "--shadow", 3)
        assert both.err == "json@prod is 25 % json@1, 75 % json@2; copies of 5 % to json@3.\n"
        assert own("alias", "json", "prod", 1, "--no-shadow").err == "json@prod is json@1.\n"

    @pytest.mark.parametrize(
        "arguments",
        [
            ["1", "2"],
            ["1=0", "2=1"],
            ["1=1", "1=2"],
            ["x"],
            ["1=1.5"],
            ["1", "--delete"],
            ["--delete", "--no-shadow"],
            ["--percent", "5"],
            ["--shadow", "2", "--percent", "0"],
            ["--shadow", "2", "--no-shadow"],
        ],
    )
    def test_alias_refuses_wrong_usage(self, own, tiny_adapters, arguments):
        own("add", "json", tiny_adapters["json"])
        own("alias", "json", "prod", 1)
        assert own("alias", "json", "prod", *arguments).code == 2
        assert own("show", "json@prod", "--json").json["traffic"] == {}

    @pytest.mark.parametrize("shadow", [2, 9])
    def test_alias_moves_nothing_if_its_shadow_cannot_be(self, own, tiny_adapters, shadow):
        for name in ("json", "code"):
            own("add", "json", tiny_adapters[name])
        own("alias", "json", "prod", 1)
        assert own("alias", "json", "prod", 2, "--shadow", shadow).code == 1
        assert own("show", "json@prod", "--json").json["version"] == 1

    def test_alias_without_a_version_says_what_it_means_and_moves_nothing(self, own, tiny_adapters):
        for name in ("json", "code"):
            own("add", "json", tiny_adapters[name])
        own("alias", "json", "prod", 1)
        own("alias", "json", "prod", "--shadow", 2)
        assert own("alias", "json", "prod").out == "json@prod is json@1; copies of 5 % to json@2.\n"
        assert own("show", "json@prod", "--json").json["version"] == 1
        absent = own("alias", "json", "live")
        assert (absent.code, "json@live" in absent.err, "alias json live VERSION" in absent.err) == (
            1,
            True,
            True,
        )
        assert own("show", "json@live").code == 1

    def test_rm_names_the_version_that_it_removed(self, own, tiny_adapters):
        for name in ("json", "code", "support"):
            own("add", "json", tiny_adapters[name])
        own("alias", "json", "prod", 1)
        assert own("rm", "json@latest", "--yes").err == "Removed json@3.\n"
        assert own("rm", "json@prod", "--yes", "--force").err == "Removed json@1.\n"
        assert own("rm", "json", "--yes").err == "Removed json.\n"

    def test_rm_asks_first(self, own, tiny_adapters, monkeypatch):
        own("add", "json", tiny_adapters["json"])
        refused = own("rm", "json")
        assert (refused.code, "--yes" in refused.err) == (2, True)
        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        monkeypatch.setattr("click.confirm", lambda *_, **__: True)
        assert own("rm", "json").code == 0
        assert own("list", "--json").json == []

    def test_damaged_versions_can_be_removed(self, own, tmp_path, tiny_adapters):
        own("add", "json", tiny_adapters["json"])
        (tmp_path / "registry" / "json" / "1" / "card.json").write_text("{")
        assert own("rm", "json", "--yes").code == 0
        assert not (tmp_path / "registry" / "json" / "1").exists()

    @pytest.mark.parametrize("limit", [None, 6, 7])
    def test_add_warns_of_a_rank_above_the_limit_that_is_set(
        self, own, monkeypatch, tmp_path, tiny_base, limit
    ):
        adapter = make_adapter(tmp_path / "adapter", tiny_base, rank_pattern={"layers.1.self_attn.q_proj": 7})
        if limit:
            monkeypatch.setenv("ADAPTERHUB_MAX_LORA_RANK", str(limit))
        warned = (
            "json@1 has rank 7; with max_lora_rank=6" in own("add", "json", adapter, "--base", tiny_base).err
        )
        assert warned == (limit == 6)

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
            (("run", "json", "\udcff"), "Unicode"),
            (("route", "\udcff"), "Unicode"),
            (("run", "json", "Hi", "--stop", ""), "stop"),
            (("add", "x", "/no/such/folder"), "Hint:"),
            (("add", "auto", "."), "reserved"),
            (("finetune", "/no/such/file.yaml"), "file.yaml"),
            (("merge", "nothing", "out"), "nothing"),
        ],
    )
    def test_errors_of_the_user_exit_with_1(self, run, arguments, words):
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

    def test_an_unexpected_error_has_a_traceback_only_with_debug(self, run, monkeypatch):
        monkeypatch.setattr("adapterhub.registry.AdapterRegistry.list", lambda _: 1 / 0)
        shown = run("list")
        assert shown.code == 1
        assert "ZeroDivisionError" in shown.err
        assert "--debug" in shown.err
        assert "Traceback" not in shown.err
        monkeypatch.setattr(sys, "argv", ["adapterhub", "--debug", "list"])
        with pytest.raises(ZeroDivisionError):
            main()

    @pytest.mark.parametrize(
        "arguments", [("jsn", "Hi"), ("json", ""), ("json", "Hi", "--tools", "not-a-list")]
    )
    def test_a_mistake_is_reported_before_the_base_is_loaded(self, run, monkeypatch, tmp_path, arguments):
        monkeypatch.setattr("adapterhub.hub.AdapterHub.from_pretrained", lambda **_: pytest.fail("loaded"))
        monkeypatch.chdir(tmp_path)
        Path("not-a-list").write_bytes(b"\xff")
        shown = run("run", *arguments)
        assert (shown.code, "fault of adapterhub" in shown.err) == (1, False)

    @pytest.mark.parametrize(("value", "kind"), [("0", SystemExit), ("1", AdapterNotFoundError)])
    def test_debug_in_the_environment(self, tiny_registry, monkeypatch, value, kind):
        monkeypatch.setenv("ADAPTERHUB_DEBUG", value)
        monkeypatch.setattr(sys, "argv", ["adapterhub", "show", "x", "--registry", str(tiny_registry)])
        with pytest.raises(kind):
            main()

    def test_a_full_disk_is_not_an_unexpected_error(self, tiny_registry):
        command = f"{sys.executable} -m adapterhub.cli.main list --registry {tiny_registry} > /dev/full"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "No space left" in done.stderr
        assert "fault" not in done.stderr

    def test_no_color_is_respected(self, run, monkeypatch):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setattr("click.utils.should_strip_ansi", lambda *_: False)
        assert "\x1b[31m" in run("show", "x").err
        monkeypatch.setenv("NO_COLOR", "1")
        assert "\x1b[31m" not in run("show", "x").err


class TestCompletion:
    def complete(self, words: str) -> tuple[str, str]:
        environment = {**os.environ, "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        environment["_ADAPTERHUB_COMPLETE"] = "bash_complete"
        code = "import sys; from adapterhub.cli.main import cli; cli(prog_name='adapterhub')"
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return done.stdout.strip(), done.stderr

    def test_names_are_completed(self, run):
        assert self.complete("adapterhub show js") == ("plain,json", "")

    def test_wrong_settings_give_no_completions(self, run, tmp_path, monkeypatch):
        monkeypatch.setenv("ADAPTERHUB_MAX_BATCH_SIZE", "many")
        assert self.complete("adapterhub show js") == ("", "")


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

    def test_the_last_line_break_is_not_part_of_the_text(self, monkeypatch):
        given = io.BytesIO(b"\xef\xbb\xbfmy router\nis broken\r\n")
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(given))
        assert read_text("-") == "my router\nis broken"

    def test_tools_are_read_from_a_file(self, run, tmp_path):
        (tmp_path / "tools.json").write_text('{"name": "not a list"}')
        shown = run("run", "json", "Hi", "--tools", tmp_path / "tools.json")
        assert (shown.code, "list" in shown.err) == (1, True)

    def test_structured_output(self, run, tmp_path):
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        (tmp_path / "schema.json").write_text(json.dumps(schema))
        answer = run(
            "run", "json", "Hi", "--schema", tmp_path / "schema.json", "--max-tokens", 12, "--json"
        ).json
        assert json.loads(answer["text"]).keys() == {"n"}
        assert run("run", "json", "Hi", "--choice", "left", "--choice", "right").out in ("left\n", "right\n")
        assert len(run("run", "json", "Hi", "--regex", "[0-9]{3}").out) == 4

    def test_every_sampling_parameter_is_an_option(self):
        options = {parameter.name for parameter in cli.commands["run"].params}
        assert set(SamplingParams.model_fields) - options == set()

    def test_banned_tokens_reach_the_request(self, run):
        def token_ids(*options: object) -> list[int]:
            arguments = ("--raw", "--logprobs", 0, "--max-tokens", 4, "--temperature", 0, *options, "--json")
            completions = run("run", "base", "one two", *arguments).json["completions"]
            return [one["token_id"] for one in completions[0]["logprobs"]]

        plain = token_ids()
        assert token_ids("--suppress-token-id", plain[0])[0] != plain[0]
        first, second, *_ = token_ids("--bad-word-ids", f"{plain[0]},{plain[1]}")
        assert (first, second) != (plain[0], plain[1])
        assert run("run", "base", "x", "--bad-word-ids", "1,x").code == 2
        biased = token_ids("--logit-bias", "50=100", "--logit-bias", "60=-100", "--min-tokens", 4)
        assert biased == [50] * 4
        assert len(set(token_ids("--logit-bias", "50=100", "--frequency-penalty", 2))) == 1
        assert run("run", "base", "x", "--logit-bias", "50").code == 2

    def test_log_probabilities_of_the_prompt_are_in_the_json(self, run):
        options = ("--raw", "--max-tokens", 1, "--prompt-logprobs", 0, "--json")
        (completion,) = run("run", "base", "one two", *options).json["completions"]
        first, *others = completion["prompt_logprobs"]
        assert first is None
        assert others
        assert all(one["logprob"] < 0 and one["rank"] >= 1 for one in others)

    def test_sampling_parameters_reach_the_request(self, run):
        options = (
            *("--temperature", 0.8, "--top-k", 40, "--min-p", 0.01, "--repetition-penalty", 1.2, "--seed", 3),
            *("--n", 2, "--logprobs", 1, "--max-tokens", 5, "--ignore-eos"),
        )
        answer = run("run", "json", "Hi", *options, "--json").json
        first, second = answer["completions"]
        assert len(first["logprobs"]) == len(first["token_ids"]) == 5
        assert first["token_ids"] != second["token_ids"]
        again = run("run", "json", "Hi", *options, "--json").json["completions"]
        for completion in (*again, *answer["completions"]):
            del completion["timings"]
        assert again == answer["completions"]
        greedy = run("run", "json", "Hi", "--max-tokens", 5, "--ignore-eos", "--logprobs", 0, "--json").json
        stop = greedy["completions"][0]["token_ids"][0]
        assert run("run", "json", "Hi", "--stop-token-id", stop).out == "\n"
        assert len(run("run", "json", "Hi", "--n", 3, "--max-tokens", 1).out.splitlines()) == 3

    @pytest.mark.parametrize(
        ("options", "code"),
        [
            (("--top-k", -2), 1),
            (("--repetition-penalty", 0), 1),
            (("--n", 0), 1),
            (("--logprobs", 1), 2),
            (("--prompt-logprobs", 1), 2),
        ],
    )
    def test_a_wrong_sampling_parameter_is_reported_before_the_base_is_loaded(
        self, run, monkeypatch, options, code
    ):
        monkeypatch.setattr("adapterhub.hub.AdapterHub.from_pretrained", None)
        assert run("run", "json", "Hi", *options).code == code

    def test_an_adapter_is_served_on_its_own_base_though_most_are_for_another(
        self, copy, tmp_path, monkeypatch
    ):
        other = make_base(tmp_path / "other", seed=7)
        adapter = make_adapter(tmp_path / "mine", other)
        copy("add", "mine", adapter, "--base", other)
        answer = copy("run", "mine", "Hi", "--max-tokens", 2, "--json")
        assert (answer.code, answer.json["adapter"]) == (0, "mine")
        assert copy("run", "json", "Hi", "--max-tokens", 2, "--json").json["adapter"] == "json"
        monkeypatch.setenv("ADAPTERHUB_BASE", str(tmp_path / "none"))  # what the user sets counts
        assert "none" in copy("run", "mine", "Hi").err

    def test_an_adapters_base_is_loaded_at_its_revision(self, copy, tmp_path, monkeypatch):
        path = tmp_path / "registry" / "json" / "1" / "card.json"
        card = json.loads(path.read_text())
        card["base"] |= {"name": "organisation/base", "revision": "v1"}
        path.write_text(json.dumps(card))
        asked = {}
        monkeypatch.setattr(
            "adapterhub.hub.AdapterHub.from_pretrained", lambda **settings: asked.update(settings) or 1 / 0
        )
        copy("run", "json", "Hi")
        assert (asked["base"], asked["revision"]) == ("organisation/base", "v1")

    def test_an_invalid_output_format_is_reported_before_the_base_is_loaded(self, run, tmp_path, monkeypatch):
        (tmp_path / "schema.json").write_text("[1]")
        monkeypatch.setattr("adapterhub.hub.AdapterHub.from_pretrained", None)
        two = run("run", "json", "Hi", "--regex", "a", "--choice", "b")
        assert (two.code, "at most one output format" in two.err) == (1, True)
        listed = run("run", "json", "Hi", "--schema", tmp_path / "schema.json")
        assert (listed.code, "JSON Schema" in listed.err) == (1, True)


class TestBlend:
    def test_it_registers_a_blend_with_its_lineage(self, own, tiny_adapters, tiny_base, monkeypatch):
        for name in ("json", "support"):
            own("add", name, tiny_adapters[name], "--base", tiny_base)
        monkeypatch.setattr("adapterhub.hub.AdapterHub.from_pretrained", None)
        blended = own("blend", "helper", "json:0.7", "support:0.3", "--method", "svd", "--rank", 6)
        assert (blended.code, blended.out, blended.err) == (0, "helper@1\n", "")
        card = own("blend", "helper", "json:0.7", "support@1", "--description", "Mine.", "--json").json
        assert (card["version"], card["peft"]["r"], card["description"]) == (2, 12, "Mine.")
        assert [(p["name"], p["weight"]) for p in card["lineage"]["parents"]] == [
            ("support", 1),
            ("json", 0.7),
        ]
        assert "json@1, weight 0.7" in own("show", "helper@1").out

    @pytest.mark.parametrize(
        ("parts", "words"),
        [
            (("json:0.7", "jsn:0.3"), "Did you mean 'json'?"),
            (("json:0.7", "json:0.3"), "twice"),
            (("json:much",), "weight"),
            (("json:1", "code:1", "--rank", 4), "rank"),
            (("json:1", "code:1", "--method", "ties"), "density"),
        ],
    )
    def test_mistakes_change_nothing(self, run, tiny_registry, parts, words):
        shown = run("blend", "helper", *parts)
        assert (shown.code, shown.out) == (1, "")
        assert words in shown.err
        assert not (tiny_registry / "helper").exists()

    def test_run_takes_a_blend(self, run):
        answer = run("run", "json:0.7+support:0.3", "Hi", "--max-tokens", 2, "--json").json
        assert (answer["adapter"], answer["version"]) == ("json@1:0.7+support@1:0.3", None)
        assert (
            "[json@1:0.7+support@1:0.3, " in run("run", "json:0.7+support:0.3", "Hi", "--max-tokens", 2).err
        )
        assert "Did you mean 'json'?" in run("run", "code+jsn", "Hi").err


class TestMerge:
    def test_it_writes_a_model_and_verifies_it(self, run, tmp_path):
        merged = run("merge", "json", tmp_path / "merged", "--json").json
        found = merged["verification"]["merged"]
        assert (merged["adapter"], found["top1_agreement"]) == ("json@1", 1)
        assert found["kl_divergence"] == pytest.approx(0, abs=1e-6)
        assert found["perplexity"] == pytest.approx(found["reference_perplexity"], rel=1e-5)
        assert found["texts"].startswith("shipped texts")
        shown = run("merge", "json", tmp_path / "again")
        assert shown.out == f"{tmp_path / 'again'}\n"
        assert "100.0% of the most probable tokens are the same" in shown.err
        assert (tmp_path / "merged" / "model.safetensors").is_file()

    def test_held_out_data_may_be_given(self, run, tmp_path):
        data = tmp_path / "heldout.jsonl"
        messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two three"}]
        data.write_text(json.dumps({"messages": messages}))
        merged = run("merge", "json", tmp_path / "merged", "--data", data, "--json").json
        assert merged["verification"]["merged"]["texts"] == "held-out answers of heldout.jsonl"
        assert run("merge", "json", tmp_path / "again", "--data", data, "--no-verify").code == 2
        refused = run("merge", "json", tmp_path / "again", "--data", tmp_path / "none.jsonl")
        assert (refused.code, refused.out, (tmp_path / "again").exists()) == (1, "", False)

    def test_a_merge_that_predicts_otherwise_is_not_kept(self, run, tmp_path, monkeypatch):
        bound = VerificationBound(kl_divergence=-1, perplexity_change=1)
        monkeypatch.setitem(MERGE_BOUNDS, "F32", bound)
        refused = run("merge", "json", tmp_path / "merged")
        assert (refused.code, refused.out, list(tmp_path.iterdir())) == (1, "", [])
        assert "does not predict as its reference does" in refused.err

    def test_a_blend_in_a_dtype_and_files_of_a_size(self, run, tmp_path):
        merged = run(
            *("merge", "json:0.6+code:0.4", tmp_path / "both", "--no-verify", "--json"),
            *("--dtype", "bfloat16", "--max-shard-size", "60KB"),
        ).json
        assert (merged["adapter"], merged["dtypes"]) == ("json@1:0.6+code@1:0.4", ["BF16"])
        assert len(list((tmp_path / "both").glob("model-*.safetensors"))) > 2

    def test_a_quantised_merge_shows_what_it_lost(self, run, tmp_path):
        shown = run("merge", "json", tmp_path / "merged", "--no-verify", "--quantize", "nf4")
        assert (shown.code, shown.out) == (0, f"{tmp_path / 'merged'}\n")
        assert re.search(r"Quantised to nf4\. Compared with the merged model: .*perplexity", shown.err)
        config = json.loads((tmp_path / "merged" / "config.json").read_text())
        assert config["quantization_config"]["bnb_4bit_quant_type"] == "nf4"

    def test_exact_needs_to_know_how_the_base_was_stored_in_training(self, run, tmp_path):
        refused = run("merge", "json", tmp_path / "merged", "--no-verify", "--exact")
        assert (refused.code, refused.out) == (1, "")
        assert "does not say that it was trained on a base in 4 bits" in refused.err
        told = ("--exact", "--quant-type", "nf4", "--no-double-quant")
        merged = run("merge", "json", tmp_path / "merged", "--no-verify", "--json", *told).json
        assert merged["exact"] == "nf4, single quantisation"

    @pytest.mark.parametrize(
        "options", [("--quant-type", "nf4"), ("--double-quant",), ("--exact", "--no-double-quant")]
    )
    def test_options_of_exact_need_what_they_belong_to(self, run, tmp_path, options):
        assert run("merge", "json", tmp_path / "merged", *options).code == 2

    def test_without_verification_no_model_is_loaded(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
        merged = run("merge", "json", tmp_path / "merged", "--no-verify")
        assert (merged.code, merged.out) == (0, f"{tmp_path / 'merged'}\n")
        assert "Not verified." in merged.err

    @pytest.mark.parametrize("options", [(), ("--revision", "v2")], ids=["card", "option"])
    def test_the_bases_revision_is_passed_on(
        self, own, tiny_adapters, tiny_base, tmp_path, monkeypatch, options
    ):
        own("add", "json", tiny_adapters["json"], "--base", tiny_base)
        path = tmp_path / "registry" / "json" / "1" / "card.json"
        card = json.loads(path.read_text())
        card["base"]["revision"] = "v1"
        path.write_text(json.dumps(card))
        located = []
        monkeypatch.setattr(
            "adapterhub.base.locating.locate_base",
            lambda name, *, revision=None: located.append((name, revision)) or tiny_base,
        )
        assert own("merge", "json", tmp_path / "merged", "--no-verify", *options).code == 0
        assert located == [(str(tiny_base), options[-1] if options else "v1")]

    def test_a_folder_in_use_is_refused(self, run, tmp_path):
        (tmp_path / "file").touch()
        refused = run("merge", "json", tmp_path, "--no-verify")
        assert (refused.code, "not empty" in refused.err) == (1, True)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_reader_that_stops_early_is_no_error(tiny_registry):
    command = f"{sys.executable} -m adapterhub.cli.main list --json --registry {tiny_registry} | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[", "")
