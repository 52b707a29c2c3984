"""The training part of an impruver configuration, which one file gives to all of its recipes.

Source: https://github.com/EvilFreelancer/impruver, `finetune`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapterhub.errors import ConfigError, describe_validation

_OF_NO_USE = frozenset(
    {"class", "remove_unused_columns", "metric_for_best_model", "label_names", "torch_compile"}
)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class _Model(_Section):
    name: str | None = None
    """A hub id or a folder."""
    dtype: str = "bf16"
    """Dtype of activations."""
    load_in_4bit: bool = False
    """Quantise the base to nf4."""
    load_in_8bit: bool = False
    """Quantise it to int8."""
    class_: str = Field("transformers.AutoModelForCausalLM", alias="class")
    """Of no use here: every base is such a model."""
    attn_implementation: str | None = None
    """Of no use here."""
    config_class: str | None = None
    """Of a model from scratch."""
    config: dict[str, Any] | None = None
    """The same."""

    @property
    def quantization(self) -> str | None:
        return "nf4" if self.load_in_4bit else "int8" if self.load_in_8bit else None


class _Tokenizer(_Section):
    name: str | None = None
    """The base's."""
    max_tokens_count: int | None = Field(None, gt=1)
    """Longer records are cut."""
    chat_template: str | None = None
    """Goes onto the adapter's card."""
    class_: str = Field("transformers.AutoTokenizer", alias="class")
    """Of no use here."""
    special_tokens: dict[str, Any] | None = None
    """Of no use here: batches are padded with any token, which is masked."""


class _Source(BaseModel):
    """A source of the dataset; what is not here is for composing it."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    only_target_loss: bool = True
    """Whether only answers are learned."""


class Recipe(_Section):
    """One impruver configuration."""

    output_dir: str
    """The folder of checkpoints; its last part is made the adapter's name."""
    train_path: str = "train.jsonl"
    """Training records, which `compose_dataset` writes."""
    val_path: str | None = None
    """Held-out records."""
    datasets: list[_Source] = []
    """The sources of the dataset."""
    model: _Model
    """The base."""
    tokenizer: _Tokenizer = _Tokenizer()
    """The base's tokenizer."""
    lora: dict[str, Any] | None = None
    """Arguments of PEFT's `LoraConfig`."""
    trainer: dict[str, Any] = {}
    """Arguments of transformers' `TrainingArguments`."""
    ddp: dict[str, Any] | None = None
    """Of no use here: one process trains."""

    @property
    def without_effect(self) -> list[str]:
        """The fields that it gives and that have no effect here."""
        given = {
            "model.attn_implementation": self.model.attn_implementation,
            "tokenizer.special_tokens": self.tokenizer.special_tokens,
            "trainer.torch_compile": self.trainer.get("torch_compile"),
            "ddp": self.ddp,
        }
        return [name for name, value in given.items() if value]

    def settings(self) -> dict[str, Any]:
        """The settings of a fine-tune, under the names of transformers and PEFT."""
        train = {name: value for name, value in self.trainer.items() if name not in _OF_NO_USE}
        train.setdefault("run_name", PurePath(self.output_dir).name)  # of which the adapter's name is made
        if self.tokenizer.max_tokens_count:
            train.setdefault("max_length", self.tokenizer.max_tokens_count)
        template = self.tokenizer.chat_template
        return {
            "base": self.model.name,
            "output_dir": self.output_dir,
            "quantization": self.model.quantization,
            "compute_dtype": self.model.dtype,
            "data": {
                "train": self.train_path,
                **({"validation": self.val_path} if self.val_path else {}),
                "loss": "assistant" if True in self._only_target_loss() else "all",
            },
            "lora": self.lora,
            "train": train,
            **({"card": {"prompt": {"chat_template": template}}} if template else {}),
        }

    def problems(self) -> Iterator[str]:
        """What it asks for and cannot be had."""
        if self.model.name is None or self.model.config is not None:
            yield "model: a model from scratch cannot be had; give the name of one to adapt"
        if self.tokenizer.name not in (None, self.model.name):
            yield "tokenizer.name: the tokenizer is the base's, model.name"
        if self.model.load_in_4bit and self.model.load_in_8bit:
            yield "model.load_in_8bit: load_in_4bit is given too"
        if self.lora is None:
            yield "lora: give its settings; the base's own weights are never trained"
        if len(self._only_target_loss()) > 1:
            yield "datasets: only_target_loss has to be the same for all"

    def _only_target_loss(self) -> set[bool]:
        return {source.only_target_loss for source in self.datasets} or {True}


def is_impruver(content: Mapping[str, Any]) -> bool:
    """Whether a configuration file is one of impruver's, which describes its base as `model`."""
    return isinstance(content.get("model"), dict)


def read_impruver(content: Mapping[str, Any], *, origin: str) -> Recipe:
    """Checks an impruver configuration.

    Args:
        content: What the file holds.
        origin: The file's name, for the error.

    Raises:
        ConfigError: Fields are invalid, of which it names all, or ask for what cannot be had.
    """
    try:
        recipe = Recipe.model_validate(content)
        problems = [*recipe.problems()]
    except ValidationError as error:
        problems = [describe_validation(error, limit=None)]
    if problems:
        raise ConfigError(
            f"The configuration {origin!r} is not valid: {'; '.join(problems)}.",
            hint="docs/recipes.md shows what a recipe of impruver may hold.",
        )
    return recipe
