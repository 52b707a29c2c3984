"""TRL's trainer with the settings of a run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, TrainerCallback

from adapterhub.base.loading import Base
from adapterhub.errors import TrainingError
from adapterhub.training.config import FinetuneConfig
from adapterhub.training.lora_layers import lora_config
from adapterhub.training.tokenizing import IGNORE_INDEX, TokenizedDataset, TokenizedExample

try:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
except ImportError as missing:
    raise TrainingError(
        f"Fine-tuning needs the package {missing.name!r}, which is not installed.",
        hint='pip install "adapterhub[train]"',
    ) from missing


def build_trainer(
    config: FinetuneConfig,
    base: Base,
    train: TokenizedDataset,
    validation: TokenizedDataset | None,
    *,
    callbacks: list[TrainerCallback],
    folder: Path,
) -> AnswerTrainer:
    """The trainer of a run, with new LoRA weights on the base.

    Args:
        config: The run.
        base: The base, loaded for training.
        train: What to train on.
        validation: What to evaluate on.
        callbacks: Called after every step.
        folder: Where the trainer may write.

    Raises:
        ConfigError: The base has no layer of a name in `lora.target_modules`.
    """
    # peft writes the base's name into the adapter's config; a cache path of this machine does not belong there.
    base.model.name_or_path = base.model.config._name_or_path = config.base
    with warnings.catch_warnings():
        # peft 0.21 reads a property that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        trainer = AnswerTrainer(
            model=base.model,
            args=_arguments(config, base, folder, evaluates=validation is not None),
            train_dataset=_dataset(train.examples),
            eval_dataset=_dataset(validation.examples) if validation else None,
            processing_class=base.tokenizer,
            peft_config=lora_config(config, base),
            callbacks=callbacks,
        )
    trainer.remove_callback(PrinterCallback)
    # TRL casts the LoRA weights to bfloat16 on a quantised base, which costs accuracy.
    dtype = getattr(torch, config.train.adapter_dtype)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return trainer


def _arguments(config: FinetuneConfig, base: Base, folder: Path, *, evaluates: bool) -> SFTConfig:
    train = config.train
    every = train.eval_every if evaluates else None
    return SFTConfig(
        output_dir=str(folder),
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


class AnswerTrainer(SFTTrainer):  # type: ignore[misc]
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
