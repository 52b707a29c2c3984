"""What a run writes into its output folder, and what a failed or tried one leaves."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from transformers import AutoTokenizer

from adapterhub import AdapterRegistry
from adapterhub._files import sha256_file, temporary_folder
from adapterhub.base import load_base
from adapterhub.base.tokenizer_files import TokenizerFiles
from adapterhub.dataset.records import Record
from adapterhub.errors import ConfigError, DatasetError, TrainingError
from adapterhub.requests import prompts
from adapterhub.training import (
    FinetuneConfig,
    FinetuneResult,
    MaskedExample,
    RunStart,
    TrainingStep,
    finetune,
    output_folder,
    reporting,
    smoke_test,
    train_adapter,
)
from adapterhub.training.tokenizing import tokenize
from tests.tiny import CHAT_TEMPLATE, make_tokenizer

QUESTIONS = {"fox": "dog", "one": "two", "three": "four", "quick": "brown"}


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def settings(config: FinetuneConfig) -> Any:
    """The settings of a run, without `..` in paths."""

    def normal(value: Any) -> Any:
        match value:
            case dict():
                return {name: normal(each) for name, each in value.items()}
            case list():
                return [normal(each) for each in value]
            case str():
                return os.path.normpath(value) if "/.." in value else value
        return value

    return normal(config.model_dump(mode="json"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    lines = [json.dumps({"messages": turns(one, other)}) for one, other in QUESTIONS.items()]
    path.write_text("\n".join(lines * 2))
    return path


@pytest.fixture
def run(tmp_path: Path, tiny_base: Path, data: Path) -> Any:
    def run(**changes: Any) -> FinetuneConfig:
        train = {"max_steps": 4, "batch_size": 2, "learning_rate": 5e-3, **changes.pop("train", {})}
        fields = {"name": "pairs", "base": str(tiny_base), "data": {"train": str(data)}, "train": train}
        return FinetuneConfig.model_validate({**fields, "output_dir": tmp_path / "results", **changes})

    return run


def test_the_folder_has_the_adapter_and_all_that_it_was_made_with(
    run: Any, tmp_path: Path, registry: AdapterRegistry
):
    config = run(data={"train": tmp_path / "train.jsonl", "validation_share": 0.25})
    card = finetune(config, registry)
    folder = tmp_path / "results"
    registered = tmp_path / "registry" / "pairs" / "1" / "adapter_model.safetensors"
    for place in (folder, folder / "checkpoint-4"):
        assert sha256_file(place / "adapter_model.safetensors") == sha256_file(registered)
        assert (
            AutoTokenizer.from_pretrained(place)("one two").input_ids == make_tokenizer()("one two").input_ids
        )
        assert settings(FinetuneConfig.load(place / "finetune.yaml")) == settings(config)
        assert str(tmp_path) not in (place / "finetune.yaml").read_text()
    result = FinetuneResult.load(folder)
    assert (result.status, result.last_train_step, result.final_model_name) == ("success", 4, card.ref)
    assert result.artifacts_dir == str(folder)
    assert round(result.metrics["eval_loss"], 4) == card.evaluation[0].metric_value
    assert round(result.metrics["train_loss"], 4) == card.lineage.settings["loss"]
    assert set(json.loads((folder / "result.json").read_text())) == {
        "artifactsDir", "status", "lastTrainStep", "finalModelName", "metrics",
    }  # fmt: skip


def test_the_card_has_versions_and_digests(run: Any, registry: AdapterRegistry, tiny_base: Path):
    card = finetune(run(output_dir=None), registry)
    settings = card.lineage.settings
    assert settings["libraries"]["torch"] == torch.__version__
    assert set(settings["libraries"]) == {
        "adapterhub", "torch", "transformers", "peft", "trl", "bitsandbytes", "datasets",
    }  # fmt: skip
    files = TokenizerFiles(tiny_base)
    assert card.base.fingerprint.tokenizer_digest == files.tokenizer_digest
    assert card.base.fingerprint.chat_template_digest == files.chat_template_digest
    assert settings["chat_template"].startswith("sha256:")
    assert settings["loss_tokens"] == "assistant"


def test_a_composed_dataset_is_kept_only_where_it_names_a_place(
    run: Any, tmp_path: Path, registry: AdapterRegistry, scratch: Path
):
    rows = [{"instruction": f"after {word}", "output": answer} for word, answer in QUESTIONS.items()]
    (tmp_path / "rows.json").write_text(json.dumps(rows))

    def composed(**compose: Any) -> FinetuneConfig:
        content = {"sources": [{"path": "rows.json"}], **compose}
        config = run(data={"compose": content}, output_dir=None)
        return config.in_folder(tmp_path)

    card = finetune(composed(), registry)
    assert card.lineage.settings["records"] == 4
    assert card.datasets[0] == "rows.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "registry", "rows.json", "scratch", "train.jsonl",
    ]  # fmt: skip
    assert list(scratch.iterdir()) == []
    finetune(composed(train_path="kept/pairs.jsonl"), registry)
    assert len((tmp_path / "kept" / "pairs.jsonl").read_text().splitlines()) == 4


def test_a_failed_run_leaves_no_folder(run: Any, tmp_path: Path, registry: AdapterRegistry, scratch: Path):
    cases = [
        (run(data={"train": tmp_path / "none.jsonl"}), DatasetError),
        (run(data={"compose": {"sources": [{"path": str(tmp_path / "none.jsonl")}]}}), DatasetError),
        (run(base=str(tmp_path / "none")), ConfigError),
        (run(lora={"target_modules": ["none"]}), ConfigError),
        (run(train={"learning_rate": 1e30, "max_grad_norm": 1e30}), TrainingError),
    ]
    for config, error in cases:
        below = config.model_copy(update={"output_dir": tmp_path / "results" / "of" / "runs"})
        for each in (config, below):
            with pytest.raises(error):
                finetune(each, registry)
            assert not (tmp_path / "results").exists()
    assert registry.list() == []
    assert list(scratch.iterdir()) == []


def test_a_folder_that_cannot_be_is_refused_before_the_run(
    run: Any, tmp_path: Path, registry: AdapterRegistry
):
    (tmp_path / "file").write_text("a file")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="is no folder: 'file' is a file"):
            finetune(run(output_dir=folder, base="no/such-base"), registry)


def test_an_earlier_run_is_not_mixed_with(run: Any, tmp_path: Path, registry: AdapterRegistry):
    (tmp_path / "results" / "checkpoint-7").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds checkpoint-7 of an earlier run"):
        finetune(run(base="no/such-base"), registry)


@pytest.mark.parametrize("resume", [False, True], ids=["new", "resumed"])
def test_one_run_at_a_time_writes_into_a_folder(
    resume: bool, run: Any, tmp_path: Path, registry: AdapterRegistry
):
    messages = []

    def start_another(step: TrainingStep) -> None:
        other = run(name="other", train={"resume": resume})
        for start in (lambda: finetune(other, registry), lambda: train_adapter(other, tmp_path / "other")):
            with pytest.raises(ConfigError) as refused:
                start()
            messages.append((refused.value.message, refused.value.hint))

    card = finetune(run(train={"max_steps": 2, "save_every": 1}), registry, progress=start_another)
    assert (
        messages
        == [
            (
                f"Another run is writing into the output folder {str(tmp_path / 'results')!r}.",
                "Wait until it has ended, or give another output_dir.",
            )
        ]
        * 4
    )
    assert [card.ref for card in registry.list()] == ["pairs@1"]
    assert FinetuneResult.load(tmp_path / "results").final_model_name == card.ref
    resumed = finetune(
        run(train={"max_steps": 2, "save_every": 1, "resume": True}), registry
    )  # the folder is free again
    assert (resumed.ref, resumed.digest) == ("pairs@2", card.digest)


@pytest.mark.parametrize("name", ["pairs", "tmp"])
def test_a_full_disk_at_the_end_keeps_the_adapter(
    name: str, run: Any, registry: AdapterRegistry, scratch: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output_folder, "write_atomic", full)
    with pytest.raises(
        TrainingError, match="was trained, but not registered: The output folder could not be"
    ):
        finetune(run(name=name), registry)
    (kept,) = scratch.iterdir()
    os.utime(kept, (0, 0))
    with temporary_folder():  # which removes what others have left
        assert (kept / "adapter_model.safetensors").is_file()
    assert registry.list() == []


def test_the_loss_may_be_over_the_whole_text():
    tokenizer = make_tokenizer()
    record = Record.model_validate({"messages": turns("one two", "three"), "line": 1})
    style = prompts.choose_style(CHAT_TEMPLATE)
    (whole,) = tokenize([record], tokenizer, style, max_length=64, loss="all").examples
    (answers,) = tokenize([record], tokenizer, style, max_length=64).examples
    assert whole.input_ids == whole.labels == answers.input_ids
    assert [label for label in answers.labels if label != -100] == tokenizer("three<|im_end|>").input_ids


def test_a_masked_example_shows_what_is_learned():
    tokenizer = make_tokenizer()
    record = Record.model_validate({"messages": turns("one", "two"), "line": 1})
    style = prompts.choose_style(CHAT_TEMPLATE)
    (example,) = tokenize([record], tokenizer, style, max_length=64).examples
    shown = MaskedExample.of(example, tokenizer)
    assert shown.parts == (
        ("<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n", False),
        ("two<|im_end|>", True),
    )
    assert (shown.tokens, shown.learned) == (
        len(example.input_ids),
        len(tokenizer("two<|im_end|>").input_ids),
    )


def test_an_end_that_the_text_does_not_have_is_shown():
    tokenizer = make_tokenizer()
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    record = Record.model_validate({"messages": [*turns("one", "two"), *turns("fox", "dog")], "line": 1})
    (example,) = tokenize([record], tokenizer, prompts.choose_style(template), max_length=99).examples
    learned = [text for text, is_learned in MaskedExample.of(example, tokenizer).parts if is_learned]
    assert all(text.endswith("<|im_end|>") for text in learned)


def test_training_computes_in_bfloat16_where_the_cpu_has_it(
    run: Any, tiny_base: Path, registry: AdapterRegistry
):
    starts: list[RunStart] = []
    card = finetune(run(output_dir=None), registry, started=starts.append)
    expected = "bfloat16" if has_avx512bf16() else "float32"
    assert [(start.compute_dtype, start.device, start.records) for start in starts] == [(expected, "cpu", 8)]
    assert card.lineage.settings["compute_dtype"] == expected
    assert load_base(tiny_base).compute_dtype == torch.float32  # serving


def test_evaluation_at_each_epoch(run: Any, data: Path, registry: AdapterRegistry, tmp_path: Path):
    config = run(
        data={"train": data, "validation": data},
        train={"eval_every": "epoch", "save_every": "epoch", "max_steps": 8, "eval_batch_size": 3},
    )
    finetune(config, registry)
    rows = [line.split(",") for line in (tmp_path / "results" / "losses.csv").read_text().splitlines()]
    column = rows[0].index("eval_loss")
    assert [row[0] for row in rows[1:] if row[column]] == ["0", "4", "8"]  # four batches of two are an epoch
    assert sorted(path.name for path in (tmp_path / "results").glob("checkpoint-*")) == [
        "checkpoint-4", "checkpoint-8",
    ]  # fmt: skip


@pytest.mark.spec("2-D3")
def test_losses_in_tensorboard(run: Any, tmp_path: Path, registry: AdapterRegistry):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    card = finetune(run(report_to="tensorboard"), registry)
    events = accumulator.EventAccumulator(str(tmp_path / "results" / "runs")).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert len(losses) == 4
    assert losses[-1] == pytest.approx(card.lineage.settings["loss"], abs=1e-4)


@pytest.mark.spec("2-D3")
@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_an_error_before_the_run(
    run: Any, tmp_path: Path, registry: AdapterRegistry, monkeypatch: pytest.MonkeyPatch, package: str
):
    monkeypatch.setattr(reporting, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"report_to is '{package}', which is not installed"):
        finetune(run(report_to=package), registry)
    assert not (tmp_path / "results").exists()


def test_tensorboard_needs_a_folder(run: Any):
    with pytest.raises(ValueError, match="report_to: tensorboard needs output_dir"):
        run(report_to="tensorboard", output_dir=None)


def test_a_smoke_test_registers_and_writes_nothing(
    run: Any, tmp_path: Path, registry: AdapterRegistry, scratch: Path
):
    config = run(train={"max_steps": 500, "save_every": 1, "eval_every": 1}, report_to="tensorboard")
    before = sorted(tmp_path.rglob("*"))
    result = smoke_test(config, registry)
    assert result.steps == 20
    written = {path for path in tmp_path.rglob("*") if registry.root not in (path, *path.parents)}
    assert written == set(before)
    assert registry.list() == []


def test_a_smoke_test_reads_few_records(run: Any, data: Path, registry: AdapterRegistry):
    lines = [json.dumps({"messages": turns(f"one {number}", "two")}) for number in range(50)]
    data.write_text("\n".join(lines))
    result = smoke_test(run(train={"max_steps": 3}), registry)
    assert (result.steps, len(result.train.examples)) == (3, 6)
