"""Training LoRA weights on a frozen, quantised base (QLoRA, https://arxiv.org/abs/2305.14314).

peft creates the LoRA layers (`lora_layers.py`) and TRL's `SFTTrainer` runs the training loop (`sft.py`), on records
that `tokenizing.py` labels. A run fails unless every `lora_B` has changed: an unchanged one got no gradient, and the
adapter would answer like the base.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapterhub._files import temporary_folder
from adapterhub.base.loading import Base, load_base, load_tokenizer
from adapterhub.dataset.records import Record
from adapterhub.dataset.stages import Progress
from adapterhub.errors import TrainingError
from adapterhub.requests import prompts
from adapterhub.training.adapter_files import save_adapter, write_errors
from adapterhub.training.checkpoints import Checkpoints, describe_run
from adapterhub.training.config import FinetuneConfig
from adapterhub.training.initial_weights import load_initial_weights
from adapterhub.training.lora_layers import LearningCheck
from adapterhub.training.losses import LossReporter, TrainingStep, evaluations, final_loss, write_losses
from adapterhub.training.masked_example import MaskedExample
from adapterhub.training.output_folder import output_folder
from adapterhub.training.preparing import split_records
from adapterhub.training.sft import build_trainer
from adapterhub.training.tokenizing import TokenizedDataset, tokenize
from adapterhub.training.training_result import TrainingResult


@dataclass(frozen=True)
class RunStart:
    """What is known of a run before its first step.

    Attributes:
        device: Where it computes.
        compute_dtype: The dtype of activations, such as `bfloat16`.
        records: Number of training examples.
        held_out: Number of validation examples.
        example: The first example.
    """

    device: str
    compute_dtype: str
    records: int
    held_out: int
    example: MaskedExample


def train_adapter(
    config: FinetuneConfig,
    out: Path,
    *,
    check: Callable[[Path, tuple[str, ...]], None] | None = None,
    progress: Callable[[TrainingStep], None] | None = None,
    composing: Progress | None = None,
    started: Callable[[RunStart], None] | None = None,
) -> TrainingResult:
    """Trains an adapter and writes `adapter_config.json`, `adapter_model.safetensors` and the chat template.

    Args:
        config: The run.
        out: An existing, empty folder. The files are there before the last evaluation begins.
        check: Called before the first step with a folder of the same files with untrained weights, and with the
            result's `stop`; what it raises ends the run.
        progress: Called after every step.
        composing: Called now and then while records are held out, as `compose_dataset` does.
        started: Called before the first step.

    Raises:
        ConfigError: The base cannot be loaded, or has no layer of a name in `lora.target_modules`; or the data is still
            to be composed; or `output_dir` cannot be written, holds checkpoints of another run, or another run is
            writing there.
        DatasetError: The data cannot be used.
        TrainingError: The loss became NaN or infinite, a lora_B did not change, memory ran out, or the adapter or a
            checkpoint cannot be written.
        AdapterInvalidError: The initial adapter's files are damaged.
        AdapterIncompatibleError: The initial adapter is of a kind that cannot be trained.
    """
    with output_folder(config.output_dir, resume=config.train.resume):
        return train_in_output_folder(
            config, out, check=check, progress=progress, composing=composing, started=started
        )


def train_in_output_folder(
    config: FinetuneConfig,
    out: Path,
    *,
    check: Callable[[Path, tuple[str, ...]], None] | None = None,
    progress: Callable[[TrainingStep], None] | None = None,
    composing: Progress | None = None,
    started: Callable[[RunStart], None] | None = None,
) -> TrainingResult:
    """Trains as `train_adapter` does, for callers that hold `output_folder` until they have written more there."""
    records, held_out = split_records(config, composing)
    base = load_base(
        config.base,
        quantization=config.quantization,
        compute_dtype=config.compute_dtype,
        device=config.device,
        revision=config.revision,
        training=True,
    )
    checkpoints = _checkpoints(config, base)
    checkpoint = checkpoints.last() if checkpoints and config.train.resume else None
    style = _style(config, base.tokenizer)
    train = _tokenized(config, records, base.tokenizer)
    validation = _tokenized(config, held_out, base.tokenizer) if held_out else None
    reporter = LossReporter(progress)
    with temporary_folder() as scratch:
        trainer = build_trainer(
            config, base, train, validation, style=style, callbacks=[reporter], folder=scratch / "run"
        )
        trainer.checkpoints = checkpoints
        initial_adapter = _load_initial(config, trainer.model, base)
        files = scratch / "adapter"
        dtype = config.train.save_dtype
        if check:
            with _adapter_errors():  # now, while nothing is trained that could be lost
                save_adapter(trainer.model, files, style, dtype=dtype)
            check(files, _stop(base, train))
        if started:
            started(_start(base, train, validation))
        learning = LearningCheck(trainer.model)
        with _memory_errors():
            trainer.run(checkpoint)
            learning.check()
            with _adapter_errors():
                save_adapter(trainer.model, files, style, dtype=dtype)
                for file in files.iterdir():
                    shutil.move(file, out)
            if trainer.eval_dataset is not None and trainer.chosen_step not in evaluations(trainer.state):
                trainer.evaluate()
    if config.output_dir:
        write_losses(trainer.state, config.output_dir)
    return TrainingResult(
        base=base,
        style=style,
        stop=_stop(base, train),
        train=train,
        validation=validation,
        steps=trainer.state.global_step,
        chosen_step=trainer.chosen_step,
        loss=final_loss(trainer.state),
        eval_loss=evaluations(trainer.state).get(trainer.chosen_step),
        steps_per_second=reporter.steps_per_second,
        initial_adapter=initial_adapter,
    )


def first_example(config: FinetuneConfig, composing: Progress | None = None) -> MaskedExample:
    """The first example of a run, for a look at what is learned; the base's weights are not loaded.

    Args:
        config: The run.
        composing: As for `train_adapter`.

    Raises:
        ConfigError: There is no such base, or the data is still to be composed.
        DatasetError: The data cannot be used.
    """
    tokenizer = load_tokenizer(config.base, revision=config.revision)
    records, _ = split_records(config, composing)
    return MaskedExample.of(_tokenized(config, records[:1], tokenizer).examples[0], tokenizer)


def _start(base: Base, train: TokenizedDataset, validation: TokenizedDataset | None) -> RunStart:
    return RunStart(
        device=base.device.type,
        compute_dtype=str(base.compute_dtype).removeprefix("torch."),
        records=len(train.examples),
        held_out=len(validation.examples) if validation else 0,
        example=MaskedExample.of(train.examples[0], base.tokenizer),
    )


def _style(config: FinetuneConfig, tokenizer: Any) -> prompts.PromptStyle:
    prompt = config.card.prompt
    return prompts.choose_style(tokenizer.chat_template, prompt.format, prompt.chat_template)


def _tokenized(config: FinetuneConfig, records: list[Record], tokenizer: Any) -> TokenizedDataset:
    return tokenize(
        records,
        tokenizer,
        _style(config, tokenizer),
        max_length=config.train.max_length,
        system=config.card.prompt.system,
        loss=config.data.loss,
    )


def _stop(base: Base, train: TokenizedDataset) -> tuple[str, ...]:
    return tuple(base.tokenizer.convert_ids_to_tokens(sorted(train.end_token_ids - base.end_token_ids)))


def _checkpoints(config: FinetuneConfig, base: Base) -> Checkpoints | None:
    if config.output_dir is None:
        return None
    run = describe_run(config, base.fingerprint.digest)
    return Checkpoints(config.output_dir, run, keep=config.train.save_total_limit)


def _load_initial(config: FinetuneConfig, model: Any, base: Base) -> str | None:
    if config.initial_adapter is None:
        return None
    return load_initial_weights(config.initial_adapter, model, config.lora, base.folder, base.linear_layers)


def _adapter_errors() -> AbstractContextManager[None]:
    hint = (
        "Free space there, or set TMPDIR to another folder; a run with output_dir goes on with train.resume."
    )
    return write_errors(f"The adapter could not be written into {tempfile.gettempdir()!r}", hint)


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise TrainingError(
            "Memory ran out.",
            hint="Lower train.batch_size or train.max_length, or set train.gradient_checkpointing.",
        ) from None
