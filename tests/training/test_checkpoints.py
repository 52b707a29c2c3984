"""A run that was interrupted goes on to the same losses and the same bytes."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from adapterhub import AdapterRegistry
from adapterhub.errors import AdapterHubError, ConfigError, TrainingError
from adapterhub.training.checkpoints import RUN_FILE
from adapterhub.training.config import FinetuneConfig
from adapterhub.training.finetuning import finetune
from adapterhub.training.losses import TrainingStep
from adapterhub.training.trainer import train_adapter
from adapterhub.training.training_result import TrainingResult
from tests.training.runs import run, write_pairs

# 40 records in batches of 4: an epoch has 10 steps.
LONG = {"max_steps": 14, "save_every": 3}
HELD_OUT = {"validation_share": 0.2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "train.jsonl")


def changed(config: FinetuneConfig, **train: Any) -> FinetuneConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


def trained(
    config: FinetuneConfig, out: Path, progress: Callable[[TrainingStep], None] | None = None
) -> TrainingResult:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return train_adapter(config, out, progress=progress)


def stop_at(step: int) -> Callable[[TrainingStep], None]:
    def progress(done: TrainingStep) -> None:
        if done.step == step:
            raise KeyboardInterrupt

    return progress


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def checkpoints(folder: Path) -> list[str]:
    """The names of all entries that are a checkpoint, or the beginning of one."""
    return sorted(path.name for path in folder.iterdir() if "checkpoint" in path.name)


def compare(config: FinetuneConfig, tmp_path: Path, *interruptions: int) -> TrainingResult:
    """Runs to the end at once, and in parts; both have to give the same."""
    whole = config.model_copy(update={"output_dir": tmp_path / "whole"})
    parts = config.model_copy(update={"output_dir": tmp_path / "parts"})
    expected = trained(whole, tmp_path / "expected")
    for step in interruptions:
        with pytest.raises(KeyboardInterrupt):
            trained(changed(parts, resume=True), tmp_path / "found", stop_at(step))
    result = trained(changed(parts, resume=True), tmp_path / "found")
    assert files(tmp_path / "found") == files(tmp_path / "expected")
    assert files(tmp_path / "parts") == files(tmp_path / "whole")  # the losses
    assert checkpoints(tmp_path / "parts") == checkpoints(tmp_path / "whole")
    assert (result.steps, result.loss, result.eval_loss) == (
        expected.steps,
        expected.loss,
        expected.eval_loss,
    )
    return result


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": {"dropout": 0.2}},
        {"train": {"optimizer": "adamw_8bit", "scheduler": "cosine", "warmup": 4}},
        {"train": {"adapter_dtype": "bfloat16", "optimizer": "adafactor"}},
        {"train": {"gradient_accumulation": 2, "eval_every": 4}, "data": HELD_OUT, "lora": {"dropout": 0.1}},
        {"compute_dtype": "float16", "lora": {"dora": True}},
        {"train": {"gradient_checkpointing": True}, "lora": {"dropout": 0.1}, "quantization": None},
    ],
    ids=str,
)
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    tiny_base: Path, dataset: Path, tmp_path: Path, changes: dict[str, Any]
):
    """The first part ends within the first epoch, the second within the next."""
    train = {**LONG, **changes.get("train", {})}
    compare(run(tiny_base, dataset, output_dir="-", **{**changes, "train": train}), tmp_path, 4, 13)


def test_a_run_goes_on_from_the_end_of_an_epoch(tiny_base: Path, dataset: Path, tmp_path: Path):
    config = run(tiny_base, dataset, output_dir="-", lora={"dropout": 0.2}, train={**LONG, "save_every": 10})
    compare(config, tmp_path, 11)


def test_a_run_that_had_ended_is_not_trained_further(tiny_base: Path, dataset: Path, tmp_path: Path):
    config = run(tiny_base, dataset, output_dir=str(tmp_path / "run"), train={"max_steps": 6})
    expected = trained(config, tmp_path / "expected")
    assert checkpoints(tmp_path / "run") == ["checkpoint-6"]
    result = trained(changed(config, resume=True), tmp_path / "found", stop_at(7))
    assert files(tmp_path / "found") == files(tmp_path / "expected")
    assert (result.steps, result.loss) == (6, expected.loss)


def test_early_stopping_and_the_best_weights_survive_an_interruption(
    tiny_base: Path, dataset: Path, tmp_path: Path
):
    """So high a learning rate makes the loss rise soon."""
    config = run(
        tiny_base,
        dataset,
        output_dir="-",
        data=HELD_OUT,
        train={
            "max_steps": 40,
            "learning_rate": 0.3,
            "eval_every": 2,
            "early_stopping_patience": 3,
            "load_best": True,
            "save_every": 3,
        },
    )
    result = compare(config, tmp_path, 8)
    assert result.steps == result.chosen_step + 6 < 40
    again = trained(
        changed(config.model_copy(update={"output_dir": tmp_path / "parts"}), resume=True), tmp_path / "again"
    )
    assert files(tmp_path / "again") == files(tmp_path / "found")
    assert (again.steps, again.chosen_step) == (result.steps, result.chosen_step)


def test_a_checkpoint_at_the_end_of_an_epoch_holds_its_evaluation(
    tiny_base: Path, dataset: Path, tmp_path: Path
):
    train = {"max_steps": None, "epochs": 2, "eval_every": "epoch", "save_every": 3, "load_best": True}
    compare(run(tiny_base, dataset, output_dir="-", data=HELD_OUT, train=train), tmp_path, 11)
    for step, evaluated in ((6, [0]), (9, [0, 9]), (12, [0, 9]), (18, [0, 9, 18])):
        state = json.loads((tmp_path / "whole" / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert [entry["step"] for entry in state["log_history"] if "eval_loss" in entry] == evaluated


KILLED = """
import os, signal, sys
from pathlib import Path
from adapterhub.training import FinetuneConfig, train_adapter
from adapterhub.training import sft

save = sft.save_adapter
def save_and_die(model, folder, style):
    save(model, folder, style)
    if "checkpoint-6" in folder.name:
        os.kill(os.getpid(), signal.SIGKILL)
sft.save_adapter = save_and_die
train_adapter(FinetuneConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(
    tiny_base: Path, dataset: Path, tmp_path: Path
):
    config = run(tiny_base, dataset, output_dir=str(tmp_path / "parts"), train=LONG)
    (tmp_path / "found").mkdir()
    arguments = [sys.executable, "-c", KILLED, config.model_dump_json(), str(tmp_path / "found")]
    killed = subprocess.run(arguments, env=dict(os.environ), capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    left = checkpoints(tmp_path / "parts")
    assert left[1:] == ["checkpoint-3"]
    assert left[0].startswith(".checkpoint-6.")
    os.utime(tmp_path / "parts" / left[0], (0, 0))  # it is a moment old, when it could belong to a writer
    compare(config, tmp_path)


@pytest.mark.slow  # starts two processes for each
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda sent: sent.name)
def test_the_command_goes_on_after_a_signal(
    tiny_base: Path, dataset: Path, tmp_path: Path, sent: signal.Signals
):
    train = {"max_steps": 60, "save_every": 3, "save_total_limit": 2}
    config = run(tiny_base, dataset, output_dir=str(tmp_path / "run"), train=train)
    (tmp_path / "run.yaml").write_text(config.model_dump_json(exclude_unset=True))
    command = [sys.executable, "-m", "adapterhub.cli.main", "finetune", str(tmp_path / "run.yaml")]
    command += ["--registry", str(tmp_path / "registry")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list((tmp_path / "run").glob("checkpoint-*")):
            with suppress(subprocess.TimeoutExpired):
                pytest.fail(f"it ended with {process.wait(timeout=0.1)}")
        process.send_signal(sent)
        process.communicate()
    assert process.returncode != 0
    registry = AdapterRegistry(tmp_path / "registry")
    assert registry.list() == []

    subprocess.run([*command, "--resume"], check=True)
    whole = finetune(config.model_copy(update={"output_dir": tmp_path / "whole"}), registry)
    assert (registry.resolve("pairs@1").digest, whole.version) == (whole.digest, 2)


def test_the_newest_checkpoints_are_kept(tiny_base: Path, dataset: Path, tmp_path: Path):
    train = {"max_steps": 10, "save_every": 1, "save_total_limit": 2}
    trained(run(tiny_base, dataset, output_dir=str(tmp_path / "run"), train=train), tmp_path / "out")
    assert checkpoints(tmp_path / "run") == ["checkpoint-10", "checkpoint-9"]


def test_a_checkpoint_is_an_adapter_that_can_be_registered(tiny_base: Path, dataset: Path, tmp_path: Path):
    config = run(tiny_base, dataset, output_dir=str(tmp_path / "run"))
    registry = AdapterRegistry(tmp_path / "registry")
    card = finetune(config, registry)
    checkpoint = tmp_path / "run" / "checkpoint-4"
    assert registry.register("copy", checkpoint, base=tiny_base).digest == card.digest
    assert not {"resume", "save_every", "output_dir"} & card.lineage.settings.keys()
    assert not [path.name for path in checkpoint.iterdir() if str(tmp_path).encode() in path.read_bytes()]


def test_losses_are_written_as_a_table_and_a_picture(tiny_base: Path, dataset: Path, tmp_path: Path):
    config = run(
        tiny_base,
        dataset,
        output_dir=str(tmp_path / "run"),
        data=HELD_OUT,
        train={"max_steps": 3, "eval_every": 2},
    )
    steps: list[TrainingStep] = []
    result = trained(config, tmp_path / "out", steps.append)
    header, *rows = (tmp_path / "run" / "losses.csv").read_text().splitlines()
    assert header == "step,epoch,loss,eval_loss,learning_rate,grad_norm"
    table = [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]
    assert [row["step"] for row in table] == ["0", "1", "2", "3"]
    assert [float(row["loss"]) for row in table[1:]] == [step.loss for step in steps]
    assert [bool(row["eval_loss"]) for row in table] == [True, False, True, True]
    assert float(table[3]["eval_loss"]) == result.eval_loss
    assert float(table[1]["learning_rate"]) == config.train.learning_rate
    chart = (tmp_path / "run" / "losses.svg").read_text()
    assert all(text in chart for text in ("<svg", "training", "validation", "step"))


def test_a_new_run_does_not_mix_with_another_ones_checkpoints(tiny_base: Path, dataset: Path, tmp_path: Path):
    config = run(tiny_base, dataset, output_dir=str(tmp_path / "run"))
    trained(config, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(ConfigError, match="checkpoint-4 of an earlier run") as caught:
        trained(config, tmp_path / "out")
    assert "--resume" in (caught.value.hint or "")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"train": {"batch_size": 2}}, "train.batch_size"),
        ({"train": {"max_steps": 8, "learning_rate": 1e-3}}, "train.learning_rate, train.max_steps"),
        ({"lora": {"r": 4}}, "lora.r"),
        ({"data": {"max_records": 30}}, "data.max_records"),
        ({"card": {"prompt": {"system": "be brief"}}}, "card.prompt.system"),
        ({"dataset": 41}, "data.train"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_changed_run_is_not_continued(
    tiny_base: Path, dataset: Path, tmp_path: Path, changes: dict[str, Any], names: str
):
    output = {"output_dir": str(tmp_path / "run")}
    trained(run(tiny_base, dataset, **output), tmp_path / "out")
    if records := changes.pop("dataset", None):
        dataset = write_pairs(tmp_path / "other.jsonl", records)
    other = changed(run(tiny_base, dataset, **output, **changes), resume=True)
    with pytest.raises(ConfigError, match=f"belongs to another run: {names} changed"):
        trained(other, tmp_path / "out")


def test_what_does_not_change_the_weights_may_change(tiny_base: Path, dataset: Path, tmp_path: Path):
    trained(run(tiny_base, dataset, output_dir=str(tmp_path / "run")), tmp_path / "expected")
    elsewhere = Path(shutil.copytree(tmp_path / "run", tmp_path / "moved"))
    data = Path(shutil.copy(dataset, tmp_path / "renamed.jsonl"))
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    config = run(
        base,
        data,
        output_dir=str(elsewhere),
        card={"description": "Another."},
        train={"resume": True, "save_every": 1, "save_total_limit": 1},
    )
    trained(config, tmp_path / "found")
    weights = [files(tmp_path / name)["adapter_model.safetensors"] for name in ("found", "expected")]
    assert weights[0] == weights[1]


def test_a_damaged_checkpoint_is_an_error_that_names_the_file(tiny_base: Path, dataset: Path, tmp_path: Path):
    config = run(tiny_base, dataset, output_dir=str(tmp_path / "run"))
    trained(config, tmp_path / "out")
    checkpoint = tmp_path / "run" / "checkpoint-4"
    written = files(checkpoint)
    assert {RUN_FILE, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} < written.keys()
    for name, content in written.items():
        (checkpoint / name).write_bytes(content[:-20])
        with pytest.raises(ConfigError, match=f"checkpoint-4' cannot be continued: its {name} is"):
            trained(changed(config, resume=True), tmp_path / "out")
        (checkpoint / name).unlink()
        with pytest.raises(ConfigError, match=f"its {name} is missing"):
            trained(changed(config, resume=True), tmp_path / "out")
        (checkpoint / name).write_bytes(content)
    trained(changed(config, resume=True), tmp_path / "out")


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(
    tiny_base: Path, dataset: Path, tmp_path: Path
):
    """The limit on a file's size makes the writers of torch and safetensors fail as they do on a full disk."""
    config = run(tiny_base, dataset, output_dir=str(tmp_path / "parts"), train=LONG)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step: TrainingStep) -> None:
        if step.step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    try:
        with pytest.raises(TrainingError, match="checkpoint at step 6 could not be written") as caught:
            trained(config, tmp_path / "found", fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.hint
    assert checkpoints(tmp_path / "parts") == ["checkpoint-3"]
    compare(config, tmp_path)


@pytest.mark.parametrize("step", [0, 4])
def test_a_full_disk_for_the_adapter_is_one_message(
    tiny_base: Path, dataset: Path, tmp_path: Path, step: int
):
    """Before the first step and after the last; the limit on a file's size stands for it."""
    (tmp_path / "out").mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(done: int) -> None:
        if done == step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    try:
        fill(0)
        with pytest.raises(TrainingError, match="adapter could not be written") as caught:
            train_adapter(
                run(tiny_base, dataset),
                tmp_path / "out",
                check=lambda *_: None,
                progress=lambda done: fill(done.step),
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "TMPDIR" in (caught.value.hint or "")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_loss_that_is_not_a_number_leaves_the_checkpoint_before(
    tiny_base: Path, dataset: Path, tmp_path: Path
):
    """The rate of a warm-up's first step is 0."""
    train = {"max_steps": 14, "save_every": 1, "learning_rate": 1e30, "warmup": 8}
    config = run(tiny_base, dataset, output_dir=str(tmp_path / "run"), train=train)
    with pytest.raises(TrainingError, match=r"loss at step \d+ is (nan|inf)"):
        trained(config, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    assert "checkpoint-1" in checkpoints(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"save_every": 2}}, "need output_dir"),
        ({"train": {"resume": True}}, "need output_dir"),
        ({"train": {"load_best": True}}, "need eval_every"),
        ({"train": {"early_stopping_patience": 2, "eval_every": 2}}, "validation_share"),
        ({"train": {"save_total_limit": 0}}, "greater than 0"),
    ],
    ids=str,
)
def test_settings_that_need_others(dataset: Path, changes: dict[str, Any], message: str):
    with pytest.raises((ValueError, AdapterHubError), match=message):
        run(Path("base"), dataset, **changes)
