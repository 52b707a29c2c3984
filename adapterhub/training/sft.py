"""TRL's trainer with the settings of a run."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import IntervalStrategy

from adapterhub.base.loading import Base
from adapterhub.errors import TrainingError
from adapterhub.peft_format.config import WEIGHTS_FILE
from adapterhub.requests import prompts
from adapterhub.training.adapter_files import save_adapter
from adapterhub.training.checkpoints import Checkpoints
from adapterhub.training.config import FinetuneConfig
from adapterhub.training.early_stopping import BestWeights, EarlyStopping, best_step, has_stopped_improving
from adapterhub.training.lora_layers import lora_config
from adapterhub.training.losses import evaluations
from adapterhub.training.output_folder import save_tokenizer
from adapterhub.training.packing import check_packing, collate_packed, one_a_row, pack
from adapterhub.training.reporting import report_callbacks
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
    style: prompts.PromptStyle,
    callbacks: list[TrainerCallback],
    folder: Path,
) -> AnswerTrainer:
    """The trainer of a run, with new LoRA weights on the base.

    Args:
        config: The run.
        base: The base, loaded for training.
        train: What to train on.
        validation: What to evaluate on.
        style: How the prompts were rendered.
        callbacks: Called after every step.
        folder: Where the trainer may write.

    Raises:
        ConfigError: The base has no layer of a name in `lora.target_modules`, or cannot be trained on packed examples;
            or the package of `report_to` is not installed.
    """
    packing, dataset = config.train.packing, _dataset(train.examples)
    held_out = _dataset(validation.examples) if validation else None
    # peft writes the base's name into the adapter's config; a cache path of this machine does not belong there.
    base.model.name_or_path = base.model.config._name_or_path = config.base
    with warnings.catch_warnings():
        # peft 0.21 reads a property that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)  # peft sets it then
        trainer = AnswerTrainer(
            model=base.model,
            args=_arguments(config, base, folder, evaluates=validation is not None),
            train_dataset=pack(dataset, config.train.max_length) if packing else dataset,
            eval_dataset=one_a_row(held_out) if packing and held_out else held_out,
            data_collator=collate_packed if packing else None,
            processing_class=base.tokenizer,
            peft_config=lora_config(config, base),
            callbacks=[*callbacks, *report_callbacks(config)],
        )
    trainer.remove_callback(PrinterCallback)
    # TRL casts the LoRA weights to bfloat16 on a quantised base, which costs accuracy.
    dtype = getattr(torch, config.train.adapter_dtype)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    trainer.prepare(config, style, base.end_token_ids | train.end_token_ids)
    if packing:
        check_packing(trainer.model, base.compute_dtype, dataset["input_ids"])
    return trainer


def _arguments(config: FinetuneConfig, base: Base, folder: Path, *, evaluates: bool) -> SFTConfig:
    train = config.train
    every = train.eval_every if evaluates else None
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=train.epochs or 1,
        max_steps=train.max_steps or -1,
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=train.eval_batch_size or train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation,
        learning_rate=train.learning_rate,
        warmup_steps=train.warmup,
        lr_scheduler_type=train.scheduler,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim=train.optimizer,
        seed=train.seed,
        activation_checkpointing=train.gradient_checkpointing,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        eval_strategy="no" if every is None else "epoch" if every == "epoch" else "steps",
        eval_steps=None if every == "epoch" else every,
        eval_on_start=bool(every),
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no" if not config.output_dir else "epoch" if train.save_every == "epoch" else "steps",
        # There is always one at the end.
        save_steps=train.save_every if isinstance(train.save_every, int) else sys.maxsize,
        report_to="none",  # report_callbacks does that
        run_name=config.run_name or config.name,
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
    """TRL's trainer with these changes.

    An evaluation leaves the state of the random number generator as it was, so that it does not change the training,
    and its loss is the mean over answer tokens; transformers' is a mean of batches, whatever their number of tokens.
    On a CPU the output head computes logits only at positions that predict an answer token; TRL computes them for
    whole prompts there, which takes a quarter of the time on a small base.
    Checkpoints are written whole, and a continued run is the same as one that was never interrupted: the order of an
    epoch depends on nothing but the seed and the epoch, and the weights keep their dtype.
    """

    checkpoints: Checkpoints | None = None
    _saves_later = False

    def prepare(
        self, config: FinetuneConfig, style: prompts.PromptStyle, end_token_ids: frozenset[int]
    ) -> None:
        """Takes what only this class knows of: how a run is saved, and when it ends early."""
        self._style, self._end_token_ids = style, end_token_ids
        self._patience = config.train.early_stopping_patience
        self._best = BestWeights(self.model) if config.train.load_best else None
        if self._best:
            self.add_callback(self._best)
        if self._patience:
            self.add_callback(EarlyStopping(self._patience))

    def run(self, checkpoint: Path | None = None) -> None:
        """Trains to the end, from a checkpoint if there is one, and takes the best weights if the run asks for them."""
        if checkpoint:
            self.args.eval_on_start = False  # it was evaluated then
            if self._best:
                self._best.load(checkpoint)
        if checkpoint and self._is_finished(state := _read_state(checkpoint)):
            self._load_from_checkpoint(str(checkpoint))
            self.state = state
        else:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if self._best:
            self._best.restore()

    @property
    def chosen_step(self) -> int:
        """The step whose weights the model has after the run."""
        best = best_step(self.state) if self._best else None
        return self.state.global_step if best is None else best

    def _is_finished(self, state: TrainerState) -> bool:
        return state.global_step >= state.max_steps or has_stopped_improving(state, self._patience)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return EpochSampler(self)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._saves_later = self._evaluates_soon()
        if self.checkpoints and not self._saves_later:
            self.checkpoints.save(self.state.global_step, self._write_checkpoint)

    def _evaluates_soon(self) -> bool:
        """Whether this step will still be evaluated, at the end of its epoch: a checkpoint holds that."""
        state, last = self.state, self.state.global_step >= self.state.max_steps
        each_epoch = self.args.eval_strategy == IntervalStrategy.EPOCH
        return each_epoch and (last or state.epoch % 1 == 0) and state.global_step not in evaluations(state)

    def _write_checkpoint(self, folder: Path) -> None:
        save_tokenizer(self.processing_class, folder, self._end_token_ids)
        save_adapter(self.model, folder, self._style)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        if self._best:
            self._best.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # transformers' way would load the adapter a second time, in float32.
        set_peft_model_state_dict(self.model, load_file(Path(resume_from_checkpoint, WEIGHTS_FILE)))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint:
            _restore_state_dtypes(self.optimizer, Path(checkpoint, OPTIMIZER_NAME))

    def evaluate(self, *args: Any, **options: Any) -> Any:
        with torch.random.fork_rng():
            metrics = super().evaluate(*args, **options)
        if self._saves_later:
            self.control.should_save = True
        return metrics

    def evaluation_loop(self, *args: Any, **options: Any) -> Any:
        self._evaluated = (0.0, 0)
        output = super().evaluation_loop(*args, **options)
        loss, tokens = self._evaluated
        output.metrics["eval_loss"] = loss / tokens
        return output

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        count = int((inputs["labels"][:, 1:] != IGNORE_INDEX).sum())
        step = super().prediction_step(model, inputs, *args, **options)
        loss, tokens = self._evaluated
        self._evaluated = (loss + step[0].item() * count, tokens + count)
        return step

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


class EpochSampler(LengthGroupedSampler):  # type: ignore[misc]
    """Puts records of similar length into a batch, in an order that follows from the seed and the epoch alone."""

    def __init__(self, trainer: AnswerTrainer) -> None:
        args = trainer.args
        super().__init__(
            args.train_batch_size * args.gradient_accumulation_steps,
            lengths=[len(ids) for ids in trainer.train_dataset["input_ids"]],
            generator=torch.Generator(),
        )
        self._trainer = trainer

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self._trainer.args.seed + int(self._trainer.state.epoch or 0))
        yield from super().__iter__()


def _read_state(checkpoint: Path) -> TrainerState:
    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))


def _restore_state_dtypes(optimizer: Any, file: Path) -> None:
    """torch casts states to their weights' dtype; Adafactor's are float32 beside bfloat16 weights."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    saved = torch.load(file, weights_only=True, map_location="cpu")["state"]
    for index, values in saved.items():
        state = optimizer.state[parameters[index]]
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.dtype != state[name].dtype:
                state[name] = value.to(state[name].device)
