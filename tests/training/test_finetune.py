"""Training runs on a tiny base: what they register, that they learn, and that a failure leaves nothing."""

import importlib
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from trl import SFTTrainer

from adapterhub import AdapterHub, AdapterRegistry
from adapterhub._files import sha256_file
from adapterhub.base import loading
from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.cli.output_dir import registry_of_checkpoint
from adapterhub.errors import (
    AdapterHubError,
    AdapterIncompatibleError,
    AdapterInvalidError,
    ConfigError,
    DatasetError,
    RegistryLockedError,
    TrainingError,
)
from adapterhub.export import merge_adapter
from adapterhub.registry import importing, store
from adapterhub.training import sft, trainer
from adapterhub.training.config import FinetuneConfig
from adapterhub.training.finetuning import finetune
from adapterhub.training.losses import TrainingStep
from adapterhub.training.planning import plan_finetune
from adapterhub.training.tokenizing import IGNORE_INDEX
from adapterhub.training.trainer import TrainingResult, train_adapter
from tests.tiny import make_base
from tests.training.runs import ANSWERS, run, write_pairs


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "train.jsonl")


@pytest.fixture(scope="module")
def loud_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random base with weights large enough that the tokens before a position change its prediction."""
    folder = make_base(tmp_path_factory.mktemp("base") / "loud")
    weights = load_file(folder / "model.safetensors")
    louder = {name: tensor * (12 if "embed" in name else 4) for name, tensor in weights.items()}
    norms = {name: weights[name] for name in weights if "norm" in name}
    save_file({**louder, **norms}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def base_with_another_end(tmp_path_factory: pytest.TempPathFactory, loud_base: Path) -> Path:
    """A base that stops at `<|endoftext|>`, and whose chat template ends turns with `<|im_end|>`, as Qwen2.5's do."""
    folder = tmp_path_factory.mktemp("base") / "qwen-like"
    shutil.copytree(loud_base, folder)
    for name, field, value in (
        ("tokenizer_config.json", "eos_token", "<|endoftext|>"),
        ("config.json", "eos_token_id", 0),
        ("generation_config.json", "eos_token_id", 0),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, field: value}))
    return folder


def trained(
    config: FinetuneConfig, out: Path
) -> tuple[TrainingResult, dict[str, torch.Tensor], list[TrainingStep]]:
    steps: list[TrainingStep] = []
    out.mkdir()
    result = train_adapter(config, out, progress=steps.append)
    return result, load_file(out / "adapter_model.safetensors"), steps


def test_a_run_registers_an_adapter_that_has_learned(
    loud_base: Path, dataset: Path, registry: AdapterRegistry
):
    config = run(
        loud_base,
        dataset,
        data={"validation": str(dataset)},
        train={"max_steps": 50, "batch_size": 8},
        card={"description": "Says what comes next.", "routing": {"examples": ["fox"]}},
    )
    steps: list[TrainingStep] = []

    card = finetune(config, registry, progress=steps.append)

    assert registry.resolve("pairs") == card
    assert registry.verify() == []
    assert (card.description, card.routing.examples) == ("Says what comes next.", ("fox",))
    assert (card.base.name, card.base.quantization) == (str(loud_base), "nf4")
    assert card.base.fingerprint == BaseFingerprint.of(loud_base)
    assert card.datasets[0].startswith("train.jsonl sha256:")
    assert card.lineage.method == "finetune"
    assert (card.lineage.settings["records"], card.lineage.settings["steps"]) == (40, 50)
    assert card.evaluation[0].metric_value < 0.1
    assert [step.step for step in steps] == list(range(1, 51))
    assert steps[-1].steps == 50
    assert steps[-1].loss < 0.1 < 3 < steps[0].loss
    with AdapterHub.from_pretrained(loud_base, registry.root) as hub:
        answers = {
            word: hub.generate(word, adapter="pairs", max_tokens=8, temperature=0).text for word in ANSWERS
        }
    assert answers == ANSWERS


def test_serving_stops_at_the_token_that_training_put_at_the_end_of_answers(
    base_with_another_end: Path, dataset: Path, registry: AdapterRegistry, tmp_path: Path
):
    """Also where the output folder or a checkpoint is registered, or chatted with as it is."""
    base, results = base_with_another_end, tmp_path / "results"
    train = {"max_steps": 50, "batch_size": 8}
    cards = [finetune(run(base, dataset, train=train, output_dir=results), registry)]
    cards += [registry.register("copy", folder, base=base) for folder in (results, results / "checkpoint-50")]
    assert [(card.prompt.stop, card.prompt.chat_template) for card in cards] == [(("<|im_end|>",), None)] * 3
    with registry_of_checkpoint(results, str(base)) as (temporary, reference):
        for root, adapter in ((registry.root, "pairs"), (temporary.root, reference)):
            with AdapterHub.from_pretrained(base, root) as hub:
                answers = {word: hub.generate(word, adapter=adapter, max_tokens=8) for word in ANSWERS}
            assert {word: answer.text for word, answer in answers.items()} == ANSWERS
            assert {answer.finish_reason for answer in answers.values()} == {"stop"}


@pytest.mark.parametrize(
    ("prompt", "stop"),
    [
        ({"stop": ["STOP"]}, ("STOP", "<|im_end|>")),
        ({"stop": ["<|im_end|>"]}, ("<|im_end|>",)),
        ({"format": "instruction"}, ()),
    ],
    ids=["with the card's own", "already there", "the base's own end"],
)
def test_the_end_of_answers_goes_onto_the_card_once_and_only_where_the_base_does_not_stop(
    base_with_another_end: Path, dataset: Path, registry: AdapterRegistry, prompt: dict, stop: tuple[str, ...]
):
    card = finetune(run(base_with_another_end, dataset, card={"prompt": prompt}), registry)
    assert card.prompt.stop == stop


def test_the_files_name_no_folder_but_the_base_as_given(
    tiny_base: Path, dataset: Path, tmp_path: Path, scratch: Path
):
    (tmp_path / "here").symlink_to(tiny_base)
    config = run(tmp_path / "here", dataset)
    trained(config, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
    ]
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings.pop("base_model_name_or_path") == config.base
    assert settings["target_modules"] == sorted(settings["target_modules"])
    assert str(tmp_path) not in json.dumps(settings)
    assert list(scratch.iterdir()) == []


def test_the_same_seed_gives_the_same_adapter(tiny_base: Path, dataset: Path, registry: AdapterRegistry):
    dropout = {"dropout": 0.1}
    first, again = (finetune(run(tiny_base, dataset, lora=dropout), registry) for _ in range(2))
    other = finetune(run(tiny_base, dataset, lora=dropout, train={"seed": 1}), registry)
    assert first.digest == again.digest != other.digest
    assert (first.version, again.version, other.version) == (1, 2, 3)


def test_a_run_starts_from_an_initial_adapter(tiny_base: Path, dataset: Path, registry: AdapterRegistry):
    first = finetune(run(tiny_base, dataset), registry)
    first_run = registry.root / "pairs" / "1"
    second = finetune(
        run(tiny_base, dataset, initial_adapter=first_run, train={"max_steps": 1, "learning_rate": 1e-7}),
        registry,
    )
    assert second.lineage.settings["initial_adapter"] == first.digest != second.digest
    before, after = (
        load_file(registry.root / "pairs" / version / "adapter_model.safetensors") for version in "12"
    )
    assert before.keys() == after.keys()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-6, rtol=0)


def test_weights_that_equal_the_initial_adapters_have_not_learned(
    tiny_base: Path, dataset: Path, registry: AdapterRegistry
):
    finetune(run(tiny_base, dataset), registry)
    first_run = registry.root / "pairs" / "1"
    warming = run(
        tiny_base, dataset, initial_adapter=first_run, train={"max_steps": 1, "warmup": 1}
    )  # its rate is 0
    with pytest.raises(TrainingError, match="14 of 14 lora_B weights did not change"):
        finetune(warming, registry)
    assert [card.ref for card in registry.list()] == ["pairs@1"]


def test_an_initial_adapter_of_another_shape_or_none_is_an_error(
    tiny_base: Path, dataset: Path, registry: AdapterRegistry
):
    finetune(run(tiny_base, dataset), registry)
    first_run = registry.root / "pairs" / "1"
    for lora in ({"r": 4}, {"alpha": 8}, {"rslora": True}, {"target_modules": ["q_proj"]}):
        with pytest.raises(ConfigError, match="another shape"):
            finetune(run(tiny_base, dataset, initial_adapter=first_run, lora=lora), registry)
    with pytest.raises(AdapterInvalidError):
        finetune(run(tiny_base, dataset, initial_adapter=registry.root / "nothing"), registry)
    assert [card.ref for card in registry.list()] == ["pairs@1"]


def test_repeated_records_are_never_trained_on_and_evaluated_on(tiny_base: Path, tmp_path: Path):
    path = tmp_path / "repeated.jsonl"
    lines = dataset_lines(f"{word} {word}" for word in ANSWERS)
    path.write_text("\n".join(lines * 10))
    seen: list[tuple[str, int, int | None]] = []
    config = run(tiny_base, path, data={"validation_share": 0.25})
    (tmp_path / "out").mkdir()
    result = train_adapter(config, tmp_path / "out", composing=lambda *shown: seen.append(shown))
    assert len(result.train.examples) == 30
    assert len({tuple(example.input_ids) for example in result.train.examples}) == 3
    assert result.eval_loss is not None
    assert seen[-1] == ("comparing near duplicates", 40, 40)  # what is searched is shown
    path.write_text("\n".join(lines[:1] * 10))
    with pytest.raises(DatasetError, match="near duplicates stay on one side"):
        trained(run(tiny_base, path, data={"validation_share": 0.25}), tmp_path / "none")


def dataset_lines(questions: Iterable[str]) -> list[str]:
    """Records of the questions, each answered with the question in capital letters."""
    turns = ([("user", text), ("assistant", text.upper())] for text in questions)
    return [
        json.dumps({"messages": [{"role": role, "content": text} for role, text in pair]}) for pair in turns
    ]


def test_evaluating_changes_nothing_that_is_trained(tiny_base: Path, dataset: Path, tmp_path: Path):
    """With the weights repacked by the first evaluation, no gradient would flow afterwards."""
    plain = run(
        tiny_base, dataset, data={"validation_share": 0.2}, lora={"dropout": 0.1}, train={"max_steps": 6}
    )
    often = plain.model_copy(update={"train": plain.train.model_copy(update={"eval_every": 2})})

    result, weights, steps = trained(plain, tmp_path / "plain")
    result_often, weights_often, steps_often = trained(often, tmp_path / "often")

    assert [step.loss for step in steps_often] == [step.loss for step in steps]
    assert result_often.eval_loss == result.eval_loss
    assert steps[0].eval_loss is None
    assert len({step.eval_loss for step in steps_often}) == 3  # before the first step, after two, after four
    assert all(torch.equal(weights_often[name], weight) for name, weight in weights.items())
    assert all(weight.any() for name, weight in weights_often.items() if "lora_B" in name)


@pytest.mark.skipif(not has_avx512bf16(), reason="bitsandbytes repacks weights only with AVX512-BF16")
@pytest.mark.filterwarnings(
    "ignore:bitsandbytes..gemv_4bit. an autograd kernel was not registered:UserWarning"
)
@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "v_proj"], "4 of 4 lora_B weights did not change"),
        ("all-linear", "re-ordered the base's weights"),
    ],
    ids=["attention", "all-linear"],
)
def test_without_the_fix_the_run_fails_and_registers_nothing(
    tiny_base: Path,
    dataset: Path,
    registry: AdapterRegistry,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    targets: list[str] | str,
    message: str,
):
    """With all layers adapted every lora_B changes, by wrong gradients; only the packed layout shows the fault."""
    monkeypatch.setattr(loading, "disable_weight_packing", lambda *_, **__: None)
    config = run(
        tiny_base,
        dataset,
        data={"validation_share": 0.2},
        train={"eval_every": 2},
        lora={"target_modules": targets},
    )
    with pytest.raises(TrainingError, match=message):
        finetune(config, registry)
    assert registry.list() == []
    assert list(scratch.iterdir()) == []


def test_a_base_loaded_for_training_is_never_packed(tiny_base: Path):
    model = loading.load_base(tiny_base, training=True).model
    flags = [layer.support_avx512bf16_for_cpu for layer in model.modules() if isinstance(layer, Linear4bit)]
    assert flags == [False] * 14


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"quantization": None}),
        ("llama", {"quantization": "fp4", "compute_dtype": "bfloat16"}),
        ("llama", {"quantization": "int8"}),
        ("llama", {"lora": {"rslora": True, "target_modules": ["q_proj", "v_proj"]}}),
        ("llama", {"lora": {"dora": True}}),
        ("llama", {"train": {"optimizer": "adamw_8bit", "warmup": 0.5, "scheduler": "cosine"}}),
        ("llama", {"train": {"gradient_checkpointing": True, "adapter_dtype": "bfloat16"}}),
        ("llama", {"card": {"prompt": {"format": "instruction", "system": "be brief"}}}),
        ("gpt2", {}),
        ("qwen2", {"train": {"max_steps": None, "epochs": 0.2}}),
    ],
    ids=str,
)
def test_every_option_trains(
    kind: str, changes: dict[str, Any], dataset: Path, registry: AdapterRegistry, tmp_path: Path
):
    card = finetune(run(make_base(tmp_path / kind, kind), dataset, **changes), registry)
    lora = changes.get("lora", {})
    assert (card.peft.use_rslora, card.peft.use_dora) == (lora.get("rslora", False), lora.get("dora", False))
    assert card.peft.dtype == (
        "BF16" if changes.get("train", {}).get("adapter_dtype") == "bfloat16" else "F32"
    )
    assert card.base.quantization == changes.get("quantization", "nf4")
    assert registry.verify() == []


def test_the_file_can_have_half_the_bits_of_the_training(tiny_base: Path, dataset: Path, tmp_path: Path):
    _, full, _ = trained(run(tiny_base, dataset), tmp_path / "full")
    _, half, _ = trained(run(tiny_base, dataset, train={"save_dtype": "bfloat16"}), tmp_path / "half")
    assert full.keys() == half.keys()
    assert all(torch.equal(half[name], weight.to(torch.bfloat16)) for name, weight in full.items())


def test_accumulated_batches_equal_one_large_batch(tiny_base: Path, dataset: Path, tmp_path: Path):
    def weights(name: str, **train: int) -> dict[str, torch.Tensor]:
        # bfloat16 rounds by the shape of a batch
        return trained(run(tiny_base, dataset, train=train, compute_dtype="float32"), tmp_path / name)[1]

    large = weights("large", batch_size=8)
    small = weights("small", batch_size=2, gradient_accumulation=4)
    assert all(torch.allclose(small[name], weight, atol=2e-4) for name, weight in large.items())


@pytest.mark.spec("2-F14")
def test_the_loss_is_trls(tiny_base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = run(tiny_base, dataset, data={"validation_share": 0.2})
    ours, _, steps = trained(config, tmp_path / "ours")
    monkeypatch.setattr(sft.AnswerTrainer, "compute_loss", SFTTrainer.compute_loss)
    theirs, _, steps_theirs = trained(config, tmp_path / "theirs")
    assert [step.loss for step in steps] == pytest.approx([step.loss for step in steps_theirs], rel=1e-5)
    assert ours.eval_loss == pytest.approx(theirs.eval_loss, rel=1e-5)


def test_in_bfloat16_it_is_as_near_to_float32_as_trls(
    tiny_base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def first_step(name: str, dtype: str) -> tuple[float, torch.Tensor]:
        """The loss, and the gradients of all LoRA weights."""
        gradients: list[torch.Tensor] = []

        def training_step(self: Any, *args: Any) -> torch.Tensor:
            loss = SFTTrainer.training_step(self, *args)
            given = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
            gradients.append(torch.cat([gradient.flatten() for gradient in given]))
            return loss

        config = run(
            tiny_base,
            dataset,
            quantization=None,
            compute_dtype=dtype,
            train={"max_steps": 1, "batch_size": 16},
        )
        with monkeypatch.context() as watched:
            watched.setattr(sft.AnswerTrainer, "training_step", training_step)
            _, _, (step,) = trained(config, tmp_path / name)
        return step.loss, gradients[0].float()

    loss, gradient = first_step("exact", "float32")
    ours, our_gradient = first_step("ours", "bfloat16")
    monkeypatch.setattr(sft.AnswerTrainer, "compute_loss", SFTTrainer.compute_loss)
    theirs, their_gradient = first_step("theirs", "bfloat16")
    errors = [((one - gradient).norm() / gradient.norm()).item() for one in (our_gradient, their_gradient)]
    assert 1e-4 < errors[0] < 1.1 * errors[1] < 0.05
    assert abs(ours - loss) < 1.1 * abs(theirs - loss) + 1e-4


@pytest.mark.parametrize("packing", [False, True], ids=["batches", "packed"])
def test_the_evaluation_loss_is_the_mean_over_answer_tokens(
    packing: bool, tiny_base: Path, dataset: Path, tmp_path: Path
):
    """The same in batches of any size, and what peft's model says of each record alone."""
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text("\n".join(dataset_lines(" ".join(["fox"] * length) for length in (1, 2, 7, 19, 40))))

    def evaluated(size: int) -> TrainingResult:
        train = {"eval_batch_size": size, "learning_rate": 0.1, "packing": packing}
        config = run(
            tiny_base,
            dataset,
            data={"validation": str(held_out)},
            train=train,
            quantization=None,
            compute_dtype="float32",
        )
        return trained(config, tmp_path / str(size))[0]

    results = [evaluated(size) for size in (1, 2, 5)]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), tmp_path / "1")
    losses = [
        torch.nn.functional.cross_entropy(
            model(torch.tensor([example.input_ids])).logits[0, :-1],
            torch.tensor(example.labels[1:]),
            reduction="sum",
        ).item()
        for example in results[0].validation.examples
    ]
    counts = [
        sum(label != IGNORE_INDEX for label in example.labels) for example in results[0].validation.examples
    ]
    assert counts[-1] > 10 * counts[0]
    means = [loss / count for loss, count in zip(losses, counts, strict=True)]
    assert abs(sum(losses) / sum(counts) - sum(means) / len(means)) > 1e-2  # what a mean of batches would say
    assert [result.eval_loss for result in results] == pytest.approx(
        [sum(losses) / sum(counts)] * 3, rel=1e-5
    )


def test_a_separate_validation_file(tiny_base: Path, dataset: Path, tmp_path: Path):
    result, _, _ = trained(
        run(tiny_base, dataset, data={"validation": dataset, "max_records": 16}), tmp_path / "out"
    )
    assert result.validation is not None
    assert (len(result.train.examples), len(result.validation.examples)) == (16, 16)
    assert result.train.examples == result.validation.examples


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train": {"max_steps": 1, "warmup": 5}}, TrainingError, "did not change"),
        ({"train": {"learning_rate": 1e30}}, TrainingError, "loss at step"),
        ({"train": {"max_length": 4}}, DatasetError, "Not one of 40 records"),
        ({"lora": {"target_modules": ["q_proj", "w_proj"]}}, ConfigError, "'w_proj'"),
        ({"lora": {"target_modules": ["lm_head"]}}, ConfigError, "'lm_head'"),
        ({"base": "/no/such/base"}, ConfigError, "/no/such/base"),
        ({"data": {"train": "no-such-file.jsonl"}}, DatasetError, "no-such-file"),
    ],
    ids=str,
)
def test_a_failed_run_leaves_nothing(
    tiny_base: Path,
    dataset: Path,
    registry: AdapterRegistry,
    scratch: Path,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
):
    with pytest.raises(error, match=message) as caught:
        finetune(run(tiny_base, dataset, **changes), registry)
    assert getattr(caught.value, "hint", None) or error is DatasetError
    assert registry.list() == []
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]], ids=str)
def test_a_base_without_layers_is_refused(
    targets: str | list[str], dataset: Path, registry: AdapterRegistry, tmp_path: Path
):
    config = run(
        make_base(tmp_path / "empty", num_hidden_layers=0), dataset, lora={"target_modules": targets}
    )
    for start in (lambda: finetune(config, registry), lambda: plan_finetune(config, measure=0)):
        with pytest.raises(ConfigError, match="has no linear layers") as caught:
            start()
        assert caught.value.hint == "Check the number of hidden layers in its config.json."
    assert registry.list() == []


def test_running_out_of_memory_has_a_hint(
    tiny_base: Path, dataset: Path, registry: AdapterRegistry, monkeypatch: pytest.MonkeyPatch
):
    def out_of_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sft.AnswerTrainer, "train", out_of_memory)
    with pytest.raises(TrainingError, match="Memory ran out") as caught:
        finetune(run(tiny_base, dataset), registry)
    assert "batch_size" in (caught.value.hint or "")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "adapterhub.training.sft")
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(TrainingError, match="'trl'") as caught:
        importlib.import_module("adapterhub.training.sft")
    assert caught.value.hint == 'pip install "adapterhub[train]"'


@pytest.mark.parametrize("fault", ["card", "names", "full disk", "lock"])
def test_what_registering_would_refuse_is_refused_before_training(
    tiny_base: Path,
    dataset: Path,
    registry: AdapterRegistry,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
):
    def raising(error: Exception) -> Callable[..., None]:
        def refuse(*_: Any, **__: Any) -> None:
            raise error

        return refuse

    changes: dict[str, Any] = {}
    if fault == "card":
        changes = {"card": {"routing": {"examples": ["x" * 2000] * 600}}}
    elif fault == "names":
        monkeypatch.setattr(importing, "check_against_base", raising(AdapterIncompatibleError("other names")))
    elif fault == "full disk":
        monkeypatch.setattr(importing, "copy_adapter", raising(OSError(28, "No space left on device")))
    else:
        monkeypatch.setattr(store, "writers_lock", raising(RegistryLockedError("held")))
    monkeypatch.setattr(sft.AnswerTrainer, "train", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(AdapterHubError, match=r"larger than|other names|No space left|held"):
        finetune(run(tiny_base, dataset, **changes), registry)
    assert registry.list() == []
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("fault", ["registering", "evaluating"])
def test_a_trained_adapter_is_kept_where_the_error_says(
    base_with_another_end: Path,
    dataset: Path,
    registry: AdapterRegistry,
    scratch: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
):
    profile = {"system": "Answer in one word."}

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left") if fault == "registering" else torch.OutOfMemoryError("CUDA")

    with monkeypatch.context() as broken:
        if fault == "registering":
            broken.setattr(AdapterRegistry, "_publish", fail)
        else:
            broken.setattr(sft.AnswerTrainer, "evaluate", fail)
        with pytest.raises(TrainingError, match=r"trained, but not registered: .*(space|Memory)") as caught:
            finetune(
                run(base_with_another_end, dataset, data={"validation_share": 0.2}, card={"prompt": profile}),
                registry,
            )
    (kept,) = scratch.iterdir()
    assert f". Its files are in {str(kept)!r}." in caught.value.message
    command = ["add", "pairs", str(kept), "--base", str(base_with_another_end), "--trust-card"]
    assert shlex.split(caught.value.hint or "")[3:] == command
    assert registry.list() == []
    card = registry.register("pairs", kept, base=base_with_another_end, trust_card=True)
    weights = load_file(registry.folder(card) / "adapter_model.safetensors")
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name)
    assert (card.prompt.system, card.prompt.stop) == ("Answer in one word.", ("<|im_end|>",))
    assert (card.datasets[0].split()[0], card.base.quantization) == ("train.jsonl", "nf4")
    if fault == "registering":
        assert card.lineage.method == "finetune"
        assert card.evaluation
        merge_adapter(base_with_another_end, kept, tmp_path / "merged")  # the card is that of these files


@pytest.mark.parametrize(
    "change", [lambda data: data.write_text("other"), Path.unlink], ids=["other", "gone"]
)
def test_the_card_names_the_data_that_the_run_read(
    tiny_base: Path,
    dataset: Path,
    registry: AdapterRegistry,
    tmp_path: Path,
    change: Callable[[Path], object],
):
    data = Path(shutil.copy(dataset, tmp_path / "train.jsonl"))
    config = run(tiny_base, data, train={"max_steps": 1})
    card = finetune(config, registry, progress=lambda step: change(data))
    assert card.datasets == (f"train.jsonl sha256:{sha256_file(dataset)}",)


def test_files_that_could_not_be_written_whole_are_not_said_to_be_kept(
    tiny_base: Path,
    dataset: Path,
    registry: AdapterRegistry,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    save, saves = trainer.save_adapter, []

    def fail_once_trained(model: Any, out: Path, style: Any, **options: Any) -> None:
        save(model, out, style, **options)
        saves.append(out)
        if len(saves) == 2:  # the first is that of the check
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "save_adapter", fail_once_trained)
    with pytest.raises(TrainingError, match=r"adapter could not be written.*No space left"):
        finetune(run(tiny_base, dataset), registry)
    assert (len(saves), list(scratch.iterdir())) == (2, [])


def test_without_a_temporary_folder_the_error_says_so(
    tiny_base: Path, dataset: Path, registry: AdapterRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(TrainingError, match="temporary folder") as caught:
        finetune(run(tiny_base, dataset), registry)
    assert "TMPDIR" in (caught.value.hint or "")


def test_the_bases_revision_is_loaded_and_goes_onto_the_card(
    tiny_base: Path, dataset: Path, registry: AdapterRegistry, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def locate(name: str, *, revision: str | None = None, **_: Any) -> Path:
        asked.append((name, revision))
        return tiny_base

    for module in (loading, importing):
        monkeypatch.setattr(module, "locate_base", locate)
    card = finetune(run(tiny_base, dataset, base="organisation/base", revision="v1"), registry)
    assert set(asked) == {("organisation/base", "v1")}
    assert (card.base.name, card.base.revision) == ("organisation/base", "v1")


def test_a_run_that_is_interrupted_leaves_nothing(
    tiny_base: Path, dataset: Path, registry: AdapterRegistry, scratch: Path
):
    def interrupt(step: TrainingStep) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(run(tiny_base, dataset), registry, progress=interrupt)
    assert registry.list() == []
    assert list(scratch.iterdir()) == []
