"""Training LoRA weights on a frozen, quantised base (QLoRA, https://arxiv.org/abs/2305.14314).

peft creates the LoRA layers and TRL's `SFTTrainer` runs the training loop, on records that `tokenizing.py`
labels. A run fails unless every `lora_B` has changed: an unchanged one got no gradient, and the adapter would answer
like the base.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, TrainerCallback

from adapterhub.base.loading import Base, load_base
from adapterhub.base.quantized_weights import is_packed
from adapterhub.dataset.records import Record, read_records
from adapterhub.errors import ConfigError, TrainingError
from adapterhub.requests import prompts
from adapterhub.training.config import FinetuneConfig
from adapterhub.training.initial_weights import load_initial_weights
from adapterhub.training.tokenizing import IGNORE_INDEX, TokenizedDataset, TokenizedExample, tokenize

try:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
except ImportError as missing:
    raise TrainingError(
        f"Fine-tuning needs the package {missing.name!r}, which is not installed.",
        hint='pip install "adapterhub[train]"',
    ) from missing


@dataclass(frozen=True)
class TrainingStep:
    """The progress of a run after a step.

    Attributes:
        step: Optimiser steps done.
        steps: Optimiser steps of the whole run.
        loss: The last training loss, in nats per answer token; None before the first.
        eval_loss: The loss of the last evaluation; None before the first.
        steps_per_second: Mean so far, with the time of evaluations.
    """

    step: int
    steps: int
    loss: float | None
    eval_loss: float | None
    steps_per_second: float


@dataclass(frozen=True)
class TrainingResult:
    """The result of a run.

    Attributes:
        base: The base that was trained on.
        style: How the prompts were rendered.
        stop: The special tokens that end the training answers, where the base does not stop at them by itself.
        train: The tokenised training records.
        validation: The tokenised validation records; None without any.
        steps: Optimiser steps taken.
        loss: Mean training loss over the last tenth of the steps.
        eval_loss: Loss of the last evaluation, the mean over batches; None without one.
        steps_per_second: Mean over the run.
        initial_adapter: The digest of the adapter that the run started from; None for new weights.
    """

    base: Base
    style: prompts.PromptStyle
    stop: tuple[str, ...]
    train: TokenizedDataset
    validation: TokenizedDataset | None
    steps: int
    loss: float
    eval_loss: float | None
    steps_per_second: float
    initial_adapter: str | None


def train_adapter(
    config: FinetuneConfig,
    out: Path,
    *,
    check: Callable[[Path, tuple[str, ...]], None] | None = None,
    progress: Callable[[TrainingStep], None] | None = None,
) -> TrainingResult:
    """Trains an adapter and writes `adapter_config.json`, `adapter_model.safetensors` and the chat template.

    Args:
        config: The run.
        out: An existing, empty folder. The files are there before the last evaluation begins.
        check: Called before the first step with a folder of the same files with untrained weights, and with the
            result's `stop`; what it raises ends the run.
        progress: Called after every step.

    Raises:
        ConfigError: The base cannot be loaded, or has no layer of a name in `lora.target_modules`.
        DatasetError: The data cannot be used.
        TrainingError: The loss became NaN or infinite, a lora_B did not change, or memory ran out.
        AdapterInvalidError: The initial adapter's files are damaged.
        AdapterIncompatibleError: The initial adapter is of a kind that cannot be trained.
    """
    records, held_out = _records(config)
    base = load_base(
        config.base,
        quantization=config.quantization,
        compute_dtype=config.compute_dtype,
        device=config.device,
        revision=config.revision,
        training=True,
    )
    prompt = config.card.prompt
    style = prompts.choose_style(base.tokenizer.chat_template, prompt.format, prompt.chat_template)

    def tokenized(part: list[Record]) -> TokenizedDataset:
        return tokenize(part, base.tokenizer, style, max_length=config.train.max_length, system=prompt.system)

    train, validation = tokenized(records), tokenized(held_out) if held_out else None
    callback = _ProgressCallback(progress)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(config, base, train, validation, callback, scratch)
        initial_adapter = _load_initial(config, trainer.model, base)
        files = Path(scratch, "adapter")
        if check:
            _save(trainer.model, files, style)  # which keeps the room that the trained files need
            check(files, _stop(base, train))
        before = {name: weight.detach().clone() for name, weight in _lora_b_weights(trainer.model)}
        with _memory_errors():
            trainer.train()
            _check_learned(trainer.model, before)
            _save(trainer.model, files, style)
            for file in files.iterdir():
                shutil.move(file, out)
            if trainer.eval_dataset is not None:
                trainer.evaluate()
    return callback.result(base, style, train, validation, initial_adapter)


def _stop(base: Base, train: TokenizedDataset) -> tuple[str, ...]:
    return tuple(base.tokenizer.convert_ids_to_tokens(sorted(train.end_token_ids - base.end_token_ids)))


def _load_initial(config: FinetuneConfig, model: Any, base: Base) -> str | None:
    if config.initial_adapter is None:
        return None
    return load_initial_weights(config.initial_adapter, model, config.lora, base.folder, base.linear_layers)


def _records(config: FinetuneConfig) -> tuple[list[Record], list[Record]]:
    data = config.data
    records = read_records(data.train, max_records=data.max_records)
    if data.validation is not None:
        return records, read_records(data.validation, max_records=data.max_records)
    order = np.random.default_rng(config.train.seed).permutation(len(records))
    held_out = min(round(len(records) * data.validation_share), len(records) - 1)
    return [records[i] for i in sorted(order[held_out:])], [records[i] for i in sorted(order[:held_out])]


def _trainer(
    config: FinetuneConfig,
    base: Base,
    train: TokenizedDataset,
    validation: TokenizedDataset | None,
    callback: _ProgressCallback,
    scratch: str,
) -> SFTTrainer:
    # peft writes the base's name into the adapter's config; a cache path of this machine does not belong there.
    base.model.name_or_path = base.model.config._name_or_path = config.base
    with warnings.catch_warnings():
        # peft 0.21 reads a property that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        trainer = _SFTTrainer(
            model=base.model,
            args=_arguments(config, base, scratch, evaluates=validation is not None),
            train_dataset=_dataset(train.examples),
            eval_dataset=_dataset(validation.examples) if validation else None,
            processing_class=base.tokenizer,
            peft_config=_lora(config, base),
            callbacks=[callback],
        )
    trainer.remove_callback(PrinterCallback)
    # TRL casts the LoRA weights to bfloat16 on a quantised base, which costs accuracy.
    dtype = getattr(torch, config.train.adapter_dtype)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return trainer


def _lora(config: FinetuneConfig, base: Base) -> LoraConfig:
    lora = config.lora
    return LoraConfig(
        task_type="CAUSAL_LM",
        revision=config.revision,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_target_modules(config, base),
        exclude_modules=_layers_without_text(base) or None,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
    )


def _target_modules(config: FinetuneConfig, base: Base) -> list[str]:
    """The last parts of the names of the layers to adapt; peft's "all-linear" would write every full name."""
    layers = _text_layers(base)
    known, targets = sorted({name.rpartition(".")[2] for name in layers}), config.lora.target_modules
    if targets == "all-linear":
        return known
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in layers)]
    if unknown:
        raise ConfigError(
            f"lora.target_modules names {unknown[0]!r}, which base {config.base!r} has no layer for.",
            hint=f"Its layers: {', '.join(known)}.",
        )
    return targets


def _text_layers(base: Base) -> list[str]:
    """The linear layers that a text passes: not those of a vision tower, which would never learn, and not the head."""
    decoder = {id(module) for module in base.model.get_decoder().modules()}
    return [name for name in base.linear_layers.shapes if id(base.model.get_submodule(name)) in decoder]


def _layers_without_text(base: Base) -> list[str]:
    layers = base.linear_layers
    return sorted(layers.shapes.keys() - {*_text_layers(base), layers.head})


def _arguments(config: FinetuneConfig, base: Base, scratch: str, *, evaluates: bool) -> SFTConfig:
    train = config.train
    every = train.eval_every if evaluates else None
    return SFTConfig(
        output_dir=scratch,
        num_train_epochs=train.epochs or 1,
        max_steps=train.max_steps or -1,
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation,
        learning_rate=train.learning_rate,
        warmup_steps=train.warmup,
        lr_scheduler_type=train.scheduler,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim=train.optimizer,
        seed=train.seed,
        activation_checkpointing=train.gradient_checkpointing,
        train_sampling_strategy="group_by_length",  # less padding: records of similar length form a batch
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        eval_strategy="steps" if every else "no",
        eval_steps=every,
        eval_on_start=bool(every),
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=base.device.type == "cpu",
        dataloader_pin_memory=base.device.type == "cuda",
        # The base is loaded in its compute dtype. Only float16 needs loss scaling, which autocast brings.
        bf16=False,
        fp16=base.compute_dtype == torch.float16,
    )


def _dataset(examples: list[TokenizedExample]) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [example.input_ids for example in examples],
            "labels": [example.labels for example in examples],
        }
    )


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise TrainingError(
            "Memory ran out.",
            hint="Lower train.batch_size or train.max_length, or set train.gradient_checkpointing.",
        ) from None


def _lora_b_weights(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if "lora_B" in name]


def _check_learned(model: Any, before: dict[str, torch.Tensor]) -> None:
    unchanged = [name for name, weight in _lora_b_weights(model) if torch.equal(weight, before[name])]
    if unchanged or not before:
        raise TrainingError(
            f"{len(unchanged)} of {len(before)} lora_B weights did not change, so the adapter did not learn.",
            hint="Train for more steps: the first step of a warm-up has learning rate 0.",
        )
    if any(isinstance(layer, Linear4bit) and is_packed(layer) for layer in model.modules()):
        raise TrainingError(
            "bitsandbytes re-ordered the base's weights during the run, which makes gradients wrong.",
            hint="This is a fault of adapterhub with the installed bitsandbytes; please report it.",
        )


def _save(model: Any, out: Path, style: prompts.PromptStyle) -> None:
    out.mkdir(exist_ok=True)
    if style.template:  # the base's may change
        (out / "chat_template.jinja").write_text(style.template, encoding="utf-8")
    # The default, "auto", asks the hub whether the base's vocabulary changed.
    model.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink()  # peft's unfilled template
    path = out / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    # peft holds sets, whose order is arbitrary.
    for modules in ("target_modules", "exclude_modules"):
        settings[modules] = sorted(settings[modules] or ()) or None
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class _SFTTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with two changes.

    An evaluation leaves the state of the random number generator as it was, so that it does not change the training.
    On a CPU the output head computes logits only at positions that predict an answer token; TRL computes them for
    whole prompts there, which takes a quarter of the time on a small base.
    """

    def evaluate(self, *args: Any, **options: Any) -> Any:
        with torch.random.fork_rng():
            return super().evaluate(*args, **options)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if return_outputs or inputs["labels"].device.type != "cpu":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")[:, 1:]
        answer_positions = (labels != IGNORE_INDEX).any(dim=0).nonzero().squeeze(1)
        logits = model(**inputs, use_cache=False, logits_to_keep=answer_positions).logits.float()
        loss = cross_entropy(
            logits.flatten(0, 1),
            labels[:, answer_positions].flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
        )
        return loss / ((labels != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch)


class _ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """Records losses and time, reports progress, and stops a run whose loss is NaN or infinite."""

    def __init__(self, progress: Callable[[TrainingStep], None] | None) -> None:
        self._progress = progress
        self._losses: list[float] = []
        self._eval_loss: float | None = None
        self._started = time.perf_counter()
        self._seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        self._eval_loss = logs.get("eval_loss", self._eval_loss)
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise TrainingError(
                f"The loss at step {state.global_step} is {logs['loss']}.", hint="Lower train.learning_rate."
            )
        self._losses.append(logs["loss"])
        self._seconds = time.perf_counter() - self._started
        if self._progress:
            self._progress(
                TrainingStep(state.global_step, state.max_steps, logs["loss"], self._eval_loss, self._speed())
            )

    def result(
        self,
        base: Base,
        style: prompts.PromptStyle,
        train: TokenizedDataset,
        validation: TokenizedDataset | None,
        initial_adapter: str | None,
    ) -> TrainingResult:
        last = self._losses[-max(1, len(self._losses) // 10) :]
        return TrainingResult(
            base=base,
            style=style,
            stop=_stop(base, train),
            train=train,
            validation=validation,
            steps=len(self._losses),
            loss=sum(last) / len(last),
            eval_loss=self._eval_loss,
            steps_per_second=self._speed(),
            initial_adapter=initial_adapter,
        )

    def _speed(self) -> float:
        return len(self._losses) / self._seconds if self._seconds else 0.0
