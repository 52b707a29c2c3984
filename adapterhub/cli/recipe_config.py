"""Recipes of impruver: one YAML file with the sections of a dataset, a training and a chat.

https://github.com/EvilFreelancer/impruver. A section becomes the settings of the command that it is for, which checks
their values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapterhub.errors import ConfigError, describe_validation

_TOKENISATION = ("max_tokens_count", "only_target_loss", "add_global_bos", "add_global_eos")
_MEANINGLESS_TO_TRAINING = (
    "class",
    "remove_unused_columns",
    "metric_for_best_model",
    "label_names",
    "torch_compile",
)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RecipeModel(_Section):
    """The base."""

    name: str | None = None
    """A hub id or a folder."""
    dtype: str = "bf16"
    """Dtype of activations."""
    load_in_4bit: bool = False
    """Quantise the base to nf4."""
    load_in_8bit: bool = False
    """Quantise it to int8."""
    class_: str = Field("transformers.AutoModelForCausalLM", alias="class")
    """Means nothing here: every base is such a model."""
    attn_implementation: str | None = None
    """Means nothing here."""
    config_class: str | None = None
    """Of a model from scratch, which cannot be had."""
    config: dict[str, Any] | None = None
    """The same."""

    @property
    def quantization(self) -> str | None:
        """Its quantisation under our name."""
        return "nf4" if self.load_in_4bit else "int8" if self.load_in_8bit else None


class RecipeTokenizer(_Section):
    """The tokenizer, which is that of the base."""

    name: str | None = None
    """The base's, if it is given."""
    max_tokens_count: int | None = Field(None, gt=1)
    """Longer records are dropped when the dataset is composed, and cut in training."""
    chat_template: str | None = None
    """Goes onto the adapter's card."""
    class_: str = Field("transformers.AutoTokenizer", alias="class")
    """Means nothing here."""
    special_tokens: dict[str, Any] | None = None
    """Means nothing here: batches are padded with any token, which is masked."""


class RecipeConfig(_Section):
    """One recipe."""

    output_dir: str
    """The folder of checkpoints; its last part is the adapter's name."""
    train_path: str = "train.jsonl"
    """Training records, which `compose_dataset` writes and `finetune` reads."""
    val_path: str | None = None
    """Held-out records."""
    datasets: list[dict[str, Any]] = []
    """The sources of the dataset."""
    model: RecipeModel
    """The base."""
    tokenizer: RecipeTokenizer = RecipeTokenizer()
    """The base's tokenizer."""
    lora: dict[str, Any] | None = None
    """Arguments of PEFT's `LoraConfig`."""
    trainer: dict[str, Any] = {}
    """Arguments of transformers' `TrainingArguments`."""
    ddp: dict[str, Any] | None = None
    """Means nothing here: one process trains."""

    @staticmethod
    def is_recipe(content: Mapping[str, Any]) -> bool:
        """Whether a configuration is a recipe, and not one of adapterhub's own."""
        return isinstance(content.get("model"), dict)

    @classmethod
    def parse(cls, content: Mapping[str, Any], *, origin: str) -> Self:
        """Checks what a recipe's file holds.

        Args:
            content: Its fields.
            origin: The file's name, for the error.

        Raises:
            ConfigError: Fields are invalid, of which it names all, or ask for what cannot be had.
        """
        try:
            recipe = cls.model_validate(content)
            problems = [*recipe._problems()]
        except ValidationError as error:
            problems = [describe_validation(error, limit=None)]
        if problems:
            raise ConfigError(
                f"The recipe {origin!r} is not valid: {'; '.join(problems)}.",
                hint="docs/recipes.md shows what a recipe may hold.",
            )
        return recipe

    @property
    def name(self) -> str:
        """The adapter's name."""
        return PurePath(self.output_dir).name

    @property
    def without_effect(self) -> list[str]:
        """The fields that the recipe gives and that mean nothing here."""
        given = {
            "model.attn_implementation": self.model.attn_implementation,
            "tokenizer.special_tokens": self.tokenizer.special_tokens,
            "trainer.torch_compile": self.trainer.get("torch_compile"),
            "ddp": self.ddp,
        }
        return [name for name, value in given.items() if value]

    def dataset(self) -> dict[str, Any]:
        """The settings of `adapterhub compose-dataset`."""
        longest = [
            length for length in (self.tokenizer.max_tokens_count, *self._each("max_tokens_count")) if length
        ]
        return {
            "sources": [
                {key: value for key, value in source.items() if key not in _TOKENISATION}
                for source in self.datasets
            ],
            "train_path": self.train_path,
            **({"val_path": self.val_path} if self.val_path else {}),
            **({"tokenizer": self.model.name} if longest else {}),
            **({"filters": {"max_tokens": min(longest)}} if longest else {}),
        }

    def finetuning(self) -> dict[str, Any]:
        """The settings of `adapterhub finetune`."""
        train = {key: value for key, value in self.trainer.items() if key not in _MEANINGLESS_TO_TRAINING}
        if self.tokenizer.max_tokens_count:
            train.setdefault("max_length", self.tokenizer.max_tokens_count)
        data: dict[str, Any] = {
            "train": self.train_path,
            "loss": "all" if False in self._targets() else "assistant",
        }
        if self.val_path:
            data["validation"] = self.val_path
        template = self.tokenizer.chat_template
        return {
            "name": self.name,
            "base": self.model.name,
            "output_dir": self.output_dir,
            "quantization": self.model.quantization,
            "compute_dtype": self.model.dtype,
            "data": data,
            "lora": self.lora,
            "train": train,
            **({"card": {"prompt": {"chat_template": template}}} if template else {}),
        }

    def chat(self, folder: Path) -> dict[str, Any]:
        """The settings of `adapterhub chat`.

        Args:
            folder: Where relative paths start.
        """
        name = self.model.name or ""
        is_path = name.startswith(("./", "../"))
        return {
            "adapter": self.name,
            "base": str(folder / name) if is_path else name,
            "quantization": self.model.quantization or "none",
        }

    def _each(self, name: str) -> set[Any]:
        return {source[name] for source in self.datasets if name in source}

    def _targets(self) -> set[bool]:
        return {source.get("only_target_loss", True) for source in self.datasets}

    def _problems(self) -> Iterator[str]:
        if self.model.name is None or self.model.config is not None:
            yield "model: a model from scratch cannot be had; give the name of one to adapt"
        if self.tokenizer.name not in (None, self.model.name):
            yield "tokenizer.name: the tokenizer is the base's, model.name"
        if self.lora is None:
            yield "lora: give its settings; the base's own weights are never trained"
        if self.model.load_in_4bit and self.model.load_in_8bit:
            yield "model.load_in_8bit: load_in_4bit is given too"
        if len(self._targets()) > 1:
            yield "datasets: only_target_loss has to be the same for all"
        if len(self._each("max_tokens_count")) > 1:
            yield "datasets: max_tokens_count has to be the same for all"
