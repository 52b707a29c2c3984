"""`adapterhub export`, run as a person would."""

from pathlib import Path

import pytest

from adapterhub.peft_format import WEIGHTS_FILE
from tests.tiny import make_adapter


class TestPeft:
    def test_it_writes_a_folder_and_says_what_is_in_it(self, run, tmp_path: Path, tiny_adapters):
        shown = run("export", "json", tmp_path / "out", "--format", "peft")
        assert (shown.code, shown.out) == (0, f"{tmp_path / 'out'}\n")
        assert "json@1: rank 4, " in shown.err
        written = (tmp_path / "out" / WEIGHTS_FILE).read_bytes()
        assert written == (tiny_adapters["json"] / WEIGHTS_FILE).read_bytes()

    def test_json_has_the_report(self, run, tmp_path: Path):
        options = ("--format", "peft", "--rank", 2, "--max-error", 1, "--json")
        report = run("export", "json:0.6+code:0.4", tmp_path / "out", *options).json
        assert (report["adapter"], report["rank"]) == ("json@1:0.6+code@1:0.4", 2)
        assert 0 < report["error"] < report["worst_error"] < 1
        shown = run("export", "json:0.6+code:0.4", tmp_path / "again", *options[:-1])
        assert f"differs from the adapter's by {report['error']:.2%}" in shown.err

    @pytest.mark.parametrize("bound", [0.01, 0])
    def test_what_differs_too_much_is_not_written(self, run, tmp_path: Path, bound: float):
        options = ("--format", "peft", "--rank", 1, "--max-error", bound)
        shown = run("export", "json", tmp_path / "out", *options)
        assert (shown.code, "would differ from json@1" in shown.err) == (1, True)
        assert not (tmp_path / "out").exists()

    def test_the_base_is_taken_from_the_option(self, own, tmp_path: Path, tiny_base, tiny_adapters):
        own("add", "json", make_adapter(tmp_path / "dora", tiny_base, use_dora=True))
        options = ("--format", "peft", "--dora", "svd", "--rank", 64)
        refused = own("export", "json", tmp_path / "out", *options, "--base", tmp_path / "nothing")
        assert (refused.code, "nothing" in refused.err) == (1, True)
        assert own("export", "json", tmp_path / "out", *options, "--base", tiny_base).code == 0

    def test_a_folder_in_use_is_refused(self, run, tmp_path: Path):
        (tmp_path / "file").touch()
        refused = run("export", "json", tmp_path, "--format", "peft")
        assert (refused.code, "not empty" in refused.err) == (1, True)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


class TestMlx:
    def test_it_writes_mlx_lms_files(self, run, tmp_path: Path):
        shown = run("export", "json", tmp_path / "out", "--format", "mlx", "--rank", 2, "--max-error", 1)
        assert (shown.code, shown.out) == (0, f"{tmp_path / 'out'}\n")
        assert "json@1: rank 2, " in shown.err
        assert (tmp_path / "out" / "adapters.safetensors").is_file()

    def test_an_option_of_another_format_is_wrong_usage(self, run, tmp_path: Path):
        shown = run("export", "json", tmp_path / "out", "--format", "mlx", "--plain")
        assert (shown.code, "--plain is not an option of --format mlx" in shown.err) == (2, True)


def test_an_adapter_alone_as_gguf(run, tmp_path: Path):
    shown = run("export", "json", tmp_path / "out", "--format", "gguf-adapter")
    assert (shown.code, shown.out) == (0, f"{tmp_path / 'out'}\n")
    assert "json@1: rank 4, " in shown.err
    assert (tmp_path / "out" / "adapter-f32.gguf").read_bytes()[:4] == b"GGUF"
    half = run("export", "json", tmp_path / "half", "--format", "gguf-adapter", "--quant", "f16")
    assert (half.code, (tmp_path / "half" / "adapter-f16.gguf").is_file()) == (0, True)
    wrong = run("export", "json", tmp_path / "wrong", "--format", "gguf-adapter", "--quant", "q4_0")
    assert (wrong.code, "--quant f32 (its default) and f16" in wrong.err) == (2, True)


def test_an_unknown_adapter_gets_a_suggestion(run, tmp_path: Path):
    shown = run("export", "jsn", tmp_path / "out", "--format", "peft")
    assert (shown.code, "Did you mean 'json'?" in shown.err) == (1, True)


def test_a_format_is_needed(run, tmp_path: Path):
    shown = run("export", "json", tmp_path / "out")
    assert (shown.code, "--format" in shown.err) == (2, True)


class TestVllm:
    def test_it_writes_a_launch_file_and_lists_the_adapters(self, run, tmp_path: Path):
        shown = run("export-vllm", tmp_path / "out")
        assert (shown.code, shown.out) == (0, f"{tmp_path / 'out'}\n")
        assert [line for line in shown.err.splitlines() if ", rank " in line] == [
            "code: code@1, rank 6",
            "json: json@1, rank 4",
            "support: support@1, rank 8",
        ]
        assert (tmp_path / "out" / "vllm.yaml").is_file()

    def test_json_has_the_report(self, run, tmp_path: Path):
        options = ("--base", "organisation/base", "--rank", 2, "--max-error", 1, "--max-loras", 4, "--json")
        report = run("export-vllm", tmp_path / "out", "json", "json:0.6+code:0.4", *options).json
        assert (report["model"], report["max_lora_rank"]) == ("organisation/base", 8)
        assert [one["rank"] for one in report["adapters"]] == [2, 2]
        assert all(0 < one["error"] < 1 for one in report["adapters"])


class TestPush:
    def test_it_sends_nothing_unless_it_is_asked_to(self, run, tmp_path: Path):
        shown = run("push", "json:0.6+code:0.4", "organisation/both")
        lines = [line.split()[0] for line in shown.out.splitlines()]
        assert (shown.code, lines) == (0, ["file", "README.md", "adapter_config.json", WEIGHTS_FILE])
        assert "Nothing was sent to organisation/both; --yes sends these files." in shown.err

    def test_a_folder_is_given_with_a_slash(self, run, tmp_path: Path):
        run("export", "json", tmp_path / "out", "--format", "mlx")
        (tmp_path / "out" / "run.py").touch()
        shown = run("push", tmp_path / "out", "organisation/json-mlx")
        assert "adapters.safetensors" in shown.out
        assert "run.py is not sent." in shown.err
        report = run("push", tmp_path / "out", "organisation/json-mlx", "--json").json
        assert (report["repo"], report["url"], report["skipped"]) == (
            "organisation/json-mlx",
            None,
            ["run.py"],
        )

    def test_a_folder_without_a_slash_gets_a_hint(self, run, tmp_path: Path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("json-merged").mkdir()
        refused = run("push", "json-merged", "organisation/json-merged")
        assert (refused.code, "give ./json-merged" in refused.err) == (1, True)

    def test_offline_is_an_error_with_a_hint(self, run):
        refused = run("push", "json", "organisation/json", "--yes")
        assert (refused.code, "HF_HUB_OFFLINE is set" in refused.err) == (1, True)

    def test_what_names_no_repository_is_refused(self, run):
        refused = run("push", "json", "json")
        assert (refused.code, "organisation/name" in refused.err) == (1, True)


class TestGguf:
    def test_it_writes_checked_files_and_says_what_was_found(self, run, tmp_path: Path):
        shown = run("export", "json", tmp_path / "out", "--format", "gguf", "--quant", "f16, q8_0")
        assert (shown.code, shown.out) == (0, f"{tmp_path / 'out'}\n"), shown.err
        assert "400 of 400 texts have the same tokens" in shown.err
        assert "model-q8_0.gguf: " in shown.err
        assert (tmp_path / "out" / "model-q8_0.gguf").is_file()

    def test_a_blend_and_the_base_in_json(self, run, tmp_path: Path):
        options = ("--format", "gguf", "--no-verify", "--no-modelfile", "--json")
        blend = run("export", "json:0.6+code:0.4", tmp_path / "blend", *options).json
        assert (blend["adapter"], blend["checked_with"]) == ("json@1:0.6+code@1:0.4", None)
        base = run("export", "base", tmp_path / "base", *options).json
        assert (base["adapter"], base["files"][0]["file"]) == (None, "model-f16.gguf")

    def test_wrong_types_and_checkouts(self, run, tmp_path: Path):
        options = ("--format", "gguf", "--quant", "f16,q99")
        shown = run("export", "json", tmp_path / "out", *options)
        assert (shown.code, "no GGUF type 'q99'" in shown.err) == (1, True)
        shown = run("export", "json", tmp_path / "out", "--format", "gguf", "--llama-cpp-dir", tmp_path)
        assert (shown.code, "is no checkout of llama.cpp" in shown.err) == (1, True)
        assert not (tmp_path / "out").exists()
