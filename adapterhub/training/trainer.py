"""Training LoRA weights on a frozen, quantised base (QLoRA, https://arxiv.org/abs/2305.14314).

peft makes the LoRA layers and TRL's `SFTTrainer` runs the loop, on records that are tokenised and labelled
here. The invariant: what is written has learned. A `lora_B` that is after the run what it was before got no
gradient, and the run fails instead of writing an adapter that answers as if it had not been trained.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
import warnings
from collections.abc import Callable
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
from adapterhub.errors import ConfigError, TrainingError
from adapterhub.requests import prompts
from adapterhub.training.config import FinetuneConfig
from adapterhub.training.data import IGNORED, Example, Examples, Record, encode, read_records
from adapterhub.training.start import start_from

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
    """Where a run stands after a step.

    Attributes:
        step: Steps done.
        steps: Steps in all.
        loss: The last logged training loss, nats per answer token; None before the first.
        eval_loss: The last evaluation's loss, None without one.
        steps_per_second: Mean speed so far, evaluations included.
    """

    step: int
    steps: int
    loss: float | None
    eval_loss: float | None
    steps_per_second: float


@dataclass(frozen=True)
class TrainingResult:
    """What a run did.

    Attributes:
        base: The base that was trained on.
        style: The form of prompt that was trained on.
        train: The training examples, with counts of truncated and dropped records.
        validation: The same of the evaluation's examples, None without any.
        steps: Optimiser steps taken.
        loss: Mean training loss over the last tenth of the steps.
        eval_loss: Loss of the last evaluation, a mean over batches; None without one.
        steps_per_second: Mean speed.
        start: The digest of the adapter that the run went on from, None without one.
    """

    base: Base
    style: prompts.PromptStyle
    train: Examples
    validation: Examples | None
    steps: int
    loss: float
    eval_loss: float | None
    steps_per_second: float
    start: str | None


def train_adapter(
    config: FinetuneConfig, out: Path, *, progress: Callable[[TrainingStep], None] | None = None
) -> TrainingResult:
    """Trains an adapter and writes `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        config: The run.
        out: An existing, empty folder.
        progress: Called after every step.

    Raises:
        ConfigError: The base cannot be loaded, or lacks a layer that the run names.
        DatasetError: The data cannot be used.
        TrainingError: The loss is no longer a number, a LoRA weight did not move, or memory ran out.
        AdapterInvalidError: The adapter to start from is not sound.
        AdapterIncompatibleError: It is of a kind that is not trained here.
    """
    records, held_out = _records(config)
    base = load_base(
        config.base,
        quantization=config.quantization,
        compute_dtype=config.compute_dtype,
        device=config.device,
        training=True,
    )
    prompt = config.card.prompt
    style = prompts.choose_style(base.tokenizer.chat_template, prompt.format, prompt.chat_template)

    def encoded(part: list[Record]) -> Examples:
        return encode(part, base.tokenizer, style, max_length=config.train.max_length, system=prompt.system)

    train, validation = encoded(records), encoded(held_out) if held_out else None
    watch = _Watch(progress)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(config, base, train, validation, watch, scratch)
        start = start_from(config.start, trainer.model, config.lora) if config.start else None
        before = {name: up.detach().clone() for name, up in _ups(trainer.model)}
        _run(trainer)
    _check_learned(trainer.model, before)
    _save(trainer.model, out)
    return watch.result(base, style, train, validation, start)


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
    train: Examples,
    validation: Examples | None,
    watch: _Watch,
    scratch: str,
) -> SFTTrainer:
    # peft copies the base's name into the adapter's files; a path of this machine has no business there.
    base.model.name_or_path = base.model.config._name_or_path = config.base
    with warnings.catch_warnings():
        # peft 0.21 asks by the name that transformers 5.23 gives up.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        trainer = _Trainer(
            model=base.model,
            args=_arguments(config, base, scratch, evaluates=validation is not None),
            train_dataset=_dataset(train.examples),
            eval_dataset=_dataset(validation.examples) if validation else None,
            processing_class=base.tokenizer,
            peft_config=_lora(config, base),
            callbacks=[watch],
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
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_target_modules(config, base),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
    )


def _target_modules(config: FinetuneConfig, base: Base) -> list[str]:
    """The layers to adapt by the last part of their names; peft's own "all-linear" writes every full name."""
    head = base.model.get_output_embeddings()
    layers = [name for name in base.linear_shapes if base.model.get_submodule(name) is not head]
    known, wanted = sorted({name.rpartition(".")[2] for name in layers}), config.lora.target_modules
    if wanted == "all-linear":
        return known
    foreign = [target for target in wanted if not any(f".{name}".endswith(f".{target}") for name in layers)]
    if foreign:
        raise ConfigError(
            f"lora.target_modules names {foreign[0]!r}, which is no layer of base {config.base!r} to adapt.",
            hint=f"Its layers: {', '.join(known)}.",
        )
    return wanted


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
        train_sampling_strategy="group_by_length",  # less padding: a batch is as long as its longest record
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
        # The base's own dtype decides; only float16 needs loss scaling, which comes with autocast.
        bf16=False,
        fp16=base.compute_dtype == torch.float16,
    )


def _dataset(examples: list[Example]) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [example.input_ids for example in examples],
            "labels": [example.labels for example in examples],
        }
    )


def _run(trainer: SFTTrainer) -> None:
    try:
        trainer.train()
        if trainer.eval_dataset is not None:
            trainer.evaluate()
    except torch.OutOfMemoryError:
        raise TrainingError(
            "Memory ran out.",
            hint="Lower train.batch_size or train.max_length, or set train.gradient_checkpointing.",
        ) from None


def _ups(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if "lora_B" in name]


def _check_learned(model: Any, before: dict[str, torch.Tensor]) -> None:
    still = [name for name, up in _ups(model) if torch.equal(up, before[name])]
    if still or not before:
        raise TrainingError(
            f"{len(still)} of {len(before)} LoRA weights did not move, so the adapter did not learn.",
            hint="Train for more steps: the first step of a warm-up has learning rate 0.",
        )
    if any(isinstance(layer, Linear4bit) and is_packed(layer) for layer in model.modules()):
        raise TrainingError(
            "bitsandbytes re-ordered the base's weights during the run, so gradients went astray.",
            hint="This is a fault of adapterhub with the installed bitsandbytes; please report it.",
        )


def _save(model: Any, out: Path) -> None:
    # Not save_embedding_layers="auto", which asks the hub whether the base's vocabulary changed.
    model.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink()  # peft's template; the card says more
    path = out / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    # A set in peft, so its order is chance.
    settings["target_modules"] = sorted(settings["target_modules"])
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with two changes.

    An evaluation draws no random numbers from the training's stream, so it changes nothing that is trained. And
    on a CPU only the positions before an answer's tokens go through the output head: TRL scores whole prompts
    there (on a GPU its kernel does not), which costs a quarter of the time on a small base.
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
        answers = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)
        logits = model(**inputs, use_cache=False, logits_to_keep=answers).logits.float()
        loss = cross_entropy(
            logits.flatten(0, 1), labels[:, answers].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return loss / ((labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Keeps the losses and the time, tells the caller, and stops a run whose loss is no number."""

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
        train: Examples,
        validation: Examples | None,
        start: str | None,
    ) -> TrainingResult:
        last = self._losses[-max(1, len(self._losses) // 10) :]
        return TrainingResult(
            base=base,
            style=style,
            train=train,
            validation=validation,
            steps=len(self._losses),
            loss=sum(last) / len(last),
            eval_loss=self._eval_loss,
            steps_per_second=self._speed(),
            start=start,
        )

    def _speed(self) -> float:
        return len(self._losses) / self._seconds if self._seconds else 0.0
