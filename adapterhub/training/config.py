"""The configuration of a fine-tuning run: name, base, data, LoRA settings, schedule and the fields of the card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from adapterhub.base.locating import base_in_folder
from adapterhub.configs import UserPath, read_config
from adapterhub.dataset.config import DatasetConfig
from adapterhub.errors import ConfigError, describe_validation
from adapterhub.registry.cards import CardFields, PromptProfile, Routing, Serving
from adapterhub.registry.references import check_name
from adapterhub.training.foreign_config import ForeignConfig
from adapterhub.training.impruver import is_impruver, read_impruver

_WITHOUT_GRADIENT = ("int4", "int8_weight_only")
_DTYPES = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32"}


def _full_name(dtype: object) -> object:
    """A dtype's name, of what PyTorch and transformers write too: `torch.float16`, `fp16`."""
    if not isinstance(dtype, str):
        return dtype
    name = dtype.removeprefix("torch.")
    return _DTYPES.get(name, name)


def _trainable(quantization: object) -> object:
    """How the base is stored; refused with the reason if training cannot go through it."""
    if quantization in _WITHOUT_GRADIENT:
        raise ValueError(
            f"no gradient flows through {quantization!r}; train with 'nf4', 'fp4', 'int8' or null"
        )
    return quantization


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class DataOptions(_Options):
    """The datasets. Relative paths are relative to the folder of the configuration file."""

    train: UserPath | None = None
    """JSON Lines file; each line is `{"messages": [{"role": ..., "content": ...}, ...], "tools": [...]}`."""
    compose: DatasetConfig | None = None
    """Compose the dataset first, as `adapterhub compose-dataset` does, and train on it; in place of `train`. Its files
    are kept where it names them."""
    loss: Literal["assistant", "all"] = "assistant"
    """What to learn: the assistant's tokens, each answer with its end, or the whole text."""
    validation: UserPath | None = None
    """A file of the same format to evaluate on."""
    validation_share: float = Field(0.0, ge=0, lt=1)
    """Share of the training records to hold out for evaluation, drawn with the seed; near duplicates stay together."""
    max_records: int | None = Field(None, gt=0)
    """Read at most this many records of each file."""

    @model_validator(mode="after")
    def _one_dataset(self) -> Self:
        if (self.train is None) == (self.compose is None):
            raise ValueError("give either train or compose")
        return self

    @model_validator(mode="after")
    def _one_validation(self) -> Self:
        if self.validation is not None and self.validation_share > 0:
            raise ValueError("give validation or validation_share, not both")
        return self


class LoraOptions(_Options):
    """LoRA settings (Hu et al., 2021), under PEFT's names, some shortened."""

    r: int = Field(16, gt=0)
    """Rank of the update."""
    alpha: int = Field(32, gt=0)
    """Scale of the update: `alpha / r`, or `alpha / sqrt(r)` with `rslora`."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the input of each LoRA layer while training."""
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Names of the layers to adapt, or `all-linear` for every linear layer that a text passes, but the output head."""
    rslora: bool = False
    """Rank-stabilised scaling (Kalajdzievski, 2023)."""
    dora: bool = False
    """Weight-decomposed LoRA (Liu et al., 2024)."""


Optimizer: TypeAlias = Literal[
    "adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adafactor"
]


class TrainOptions(_Options):
    """The schedule and the optimiser, under transformers' names, some shortened."""

    epochs: float | None = Field(None, gt=0)
    """Passes over the data; one if `max_steps` is not given either."""
    max_steps: int | None = Field(None, gt=0)
    """Optimiser steps, in place of `epochs`."""
    batch_size: int = Field(8, gt=0)
    """Records in one forward pass."""
    eval_batch_size: int | None = Field(None, gt=0)
    """Records in one forward pass of an evaluation; `batch_size` if None."""
    gradient_accumulation: int = Field(1, gt=0)
    """Forward passes to one optimiser step."""
    learning_rate: float = Field(2e-4, gt=0)
    """The maximum learning rate."""
    warmup: float = Field(0.0, ge=0)
    """Steps over which the learning rate rises; below 1, a share of all steps."""
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """The learning rate schedule after the warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    max_length: int = Field(1024, gt=1)
    """Tokens; longer records are cut at the end."""
    packing: bool = False
    """Put several records into one row of up to `max_length` tokens: `batch_size` counts rows then, and little is
    computed for padding. Each record still attends to itself alone."""
    optimizer: Optimizer = "adamw_torch"
    """The optimiser, by transformers' name."""
    eval_every: Annotated[int, Field(gt=0)] | Literal["epoch"] | None = None
    """Evaluate before the first step and then after every this many steps, or every epoch; None evaluates once, at the
    end."""
    early_stopping_patience: int | None = Field(None, gt=0)
    """End the run after this many evaluations, of `eval_every`, without a lower loss."""
    load_best: bool = False
    """Take the weights of the evaluation with the lowest loss, not the last ones."""
    save_every: Annotated[int, Field(gt=0)] | Literal["epoch"] | None = None
    """Write a checkpoint into `output_dir` after every this many steps, or every epoch; None writes one, at the end."""
    save_total_limit: int | None = Field(None, gt=0)
    """Keep this many checkpoints, the newest; None keeps all."""
    resume: bool = False
    """Continue from the last checkpoint in `output_dir`, if there is one."""
    logging_steps: int | None = Field(None, gt=0)
    """Where the progress is no bar, a line after every this many steps; None: every five seconds."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    adapter_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the LoRA weights while training; float32 reaches a lower loss on a quantised base."""
    save_dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of the LoRA weights in the file; that of training if not given. bfloat16 halves the file."""
    seed: int = Field(0, ge=0)
    """Seed of initial weights, order of records and dropout."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise ValueError("give epochs or max_steps, not both")
        return self

    @model_validator(mode="after")
    def _evaluates(self) -> Self:
        if self.eval_every is None and (self.load_best or self.early_stopping_patience):
            raise ValueError("load_best and early_stopping_patience need eval_every")
        return self


class CardOptions(_Options):
    """Fields of the adapter's card; the run itself sets name, version, digest and base."""

    description: str = ""
    """What the adapter does, in a sentence or two."""
    tags: tuple[str, ...] = ()
    """Tags, as on a model card."""
    task: str | None = None
    """The kind of task, for example `text-generation`."""
    language: tuple[str, ...] = ()
    """Language codes."""
    license: str | None = None
    """The licence's identifier."""
    prompt: PromptProfile = PromptProfile()
    """The prompt profile, which also renders the training examples."""
    system_file: UserPath | None = None
    """A UTF-8 file with the system prompt, in place of `prompt.system`; relative to the folder of the configuration
    file."""
    routing: Routing = Routing()
    """The router's training data."""
    serving: Serving = Serving()
    """How the engine treats it."""

    def fields(self) -> CardFields:
        """The fields that were set, for `AdapterRegistry.register`."""
        names = self.model_fields_set - {"system_file"}
        return cast(CardFields, {name: getattr(self, name) for name in names})

    @model_validator(mode="after")
    def _one_system_prompt(self) -> Self:
        if self.system_file is not None and self.prompt.system is not None:
            raise ValueError("give prompt.system or system_file, not both")
        return self

    def with_system(self, folder: Path) -> Self:
        """The same with the text of `system_file`, taken from `folder`, as the prompt profile's system prompt.

        Raises:
            ConfigError: The file cannot be read.
        """
        if self.system_file is None:
            return self
        path = folder / self.system_file
        try:
            system = path.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(f"The system prompt {str(path)!r} could not be read: {reason}.") from error
        prompt = self.prompt.model_copy(update={"system": system})
        return self.model_copy(update={"prompt": prompt, "system_file": None})


class FinetuneConfig(_Options):
    """One fine-tuning run, as in `examples/finetune.yaml`."""

    name: Annotated[str, AfterValidator(check_name)]
    """Name to register the adapter under; an existing name gets its next version."""
    base: str
    """`adapterhub-demo`, a model folder, a GGUF file, or a hub id. A path may be relative to the folder of the
    configuration file."""
    revision: str | None = None
    """A branch, tag or commit, where `base` is a hub id; goes onto the card."""
    data: DataOptions
    """The examples."""
    lora: LoraOptions = LoraOptions()
    """The adapter's shape."""
    initial_adapter: UserPath | None = None
    """The folder of an adapter of the same shape whose weights the run starts from, such as a registry's
    `<name>/<version>`, and its prompt profile if `card.prompt` is not set. Relative to the folder of the configuration
    file."""
    train: TrainOptions = TrainOptions()
    """The schedule."""
    quantization: Annotated[Literal["nf4", "fp4", "int8"] | None, BeforeValidator(_trainable)] = "nf4"
    """Quantisation of the frozen base during training."""
    compute_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], BeforeValidator(_full_name)
    ] = "auto"
    """Dtype of activations, also written as `torch.float16` or `fp16`. `auto` is bfloat16 on a GPU that has it, else
    float16; on a CPU bfloat16 if it has instructions for it (AVX512-BF16, AMX), else float32."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    output_dir: UserPath | None = None
    """Folder for the adapter, the tokenizer, the configuration, `result.json`, checkpoints and the losses; None
    registers the adapter only. Relative to the folder of the configuration file."""
    report_to: Literal["none", "tensorboard", "wandb"] = "none"
    """Also report losses there. TensorBoard's files go to `output_dir`."""
    run_name: str | None = None
    """The run's name there; the adapter's if None."""
    card: CardOptions = CardOptions()
    """Fields of the adapter's card."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        train, data = self.train, self.data
        if self.output_dir is None and (train.save_every or train.resume):
            raise ValueError("train.save_every and train.resume need output_dir")
        if self.output_dir is None and self.report_to == "tensorboard":
            raise ValueError("report_to: tensorboard needs output_dir")
        composed = data.compose is not None and data.compose.val_path is not None
        held_out = composed or data.validation is not None or data.validation_share > 0
        if not held_out and (train.load_best or train.early_stopping_patience):
            raise ValueError(
                "train.load_best and train.early_stopping_patience need data.validation or data.validation_share"
            )
        return self

    @classmethod
    def load(cls, path: str | Path, changes: Mapping[str, Any] | None = None) -> Self:
        """Reads a configuration from a YAML or JSON file.

        Names of transformers, PEFT, TRL and bitsandbytes are known too, in snake case and camel case, and so are
        configurations of impruver.

        Args:
            path: The file. Relative paths are taken from its folder.
            changes: Settings to use instead, such as `{"train.seed": 1}`; relative paths are taken from the current
                folder.

        Raises:
            ConfigError: The file is missing, is not a mapping, or has invalid fields, of which it names all.
        """
        path = Path(path)
        content, folder = read_config(path)
        return cls.parse(content, folder=folder, origin=str(path), changes=changes)

    @classmethod
    def parse(
        cls,
        content: Mapping[str, Any],
        *,
        folder: Path,
        origin: str,
        changes: Mapping[str, Any] | None = None,
    ) -> Self:
        """As `load`, from what a file holds.

        Args:
            content: Names and values.
            folder: Where relative paths start.
            origin: What the error calls the configuration.
            changes: As for `load`.

        Raises:
            ConfigError: Fields are invalid, of which it names all.
        """
        if is_impruver(content):
            content = read_impruver(content, origin=origin).settings()
        foreign = ForeignConfig.read(content, _OWN_NAMES)
        for setting, value in (changes or {}).items():
            foreign.change(setting, value, setting)
        problems = foreign.problems
        try:
            config = cls.model_validate(foreign.nested())
            if not problems:
                return config.in_folder(folder)
        except ValidationError as error:
            problems = [*problems, describe_validation(error, limit=None, written=foreign.written)]
        raise ConfigError(
            f"The configuration {origin!r} is not valid: {'; '.join(problems)}.",
            hint="examples/finetune.yaml shows every field.",
        )

    def to_resume(self) -> Self:
        """The run with `train.resume` set.

        Raises:
            ConfigError: It has no output_dir, where its checkpoints would be.
        """
        if self.output_dir is None:
            raise ConfigError("A run without output_dir has no checkpoints.", hint="Set output_dir.")
        return self.model_copy(update={"train": self.train.model_copy(update={"resume": True})})

    def in_folder(self, folder: Path) -> Self:
        """The same with relative paths taken from `folder`."""
        data = self.data
        paths = {
            "train": data.train and folder / data.train,
            "validation": data.validation and folder / data.validation,
            "compose": data.compose and _dataset_in_folder(data.compose, folder),
        }
        update = {
            "data": data.model_copy(update=paths),
            "initial_adapter": self.initial_adapter and folder / self.initial_adapter,
            "output_dir": self.output_dir and folder / self.output_dir,
            "base": base_in_folder(self.base, folder),
            "card": self.card.with_system(folder),
        }
        return self.model_copy(update=update)


_OWN_NAMES = {
    "": set(FinetuneConfig.model_fields),
    "data": set(DataOptions.model_fields),
    "lora": set(LoraOptions.model_fields),
    "train": set(TrainOptions.model_fields),
}


def _dataset_in_folder(dataset: DatasetConfig, folder: Path) -> DatasetConfig:
    """The dataset with relative paths taken from a folder, but for the default of `train_path`: that is not kept."""
    placed = dataset.in_folder(folder)
    if keeps_files(dataset):
        return placed
    return without_files(placed.model_copy(update={"train_path": dataset.train_path}))


def without_files(dataset: DatasetConfig) -> DatasetConfig:
    """The dataset as one that names no place for its files."""
    copy = dataset.model_copy()
    copy.model_fields_set.discard("train_path")
    return copy


def keeps_files(dataset: DatasetConfig) -> bool:
    """Whether a dataset that a run composes names a place for its files."""
    return "train_path" in dataset.model_fields_set
