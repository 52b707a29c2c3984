"""The configuration of a dataset: its sources, what happens to their records, and the files to write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import (
    AliasChoices,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from adapterhub.base.locating import base_in_folder
from adapterhub.configs import UserPath, read_config
from adapterhub.dataset.cleaning import CleaningOptions
from adapterhub.dataset.converters import COLUMN_NAMES, CONVERTERS, WITH_PROMPTS
from adapterhub.dataset.file_readers import READERS, SampleBy
from adapterhub.dataset.filters import FilterOptions
from adapterhub.dataset.impruver import from_impruver, is_impruver
from adapterhub.dataset.near_duplicates import DeduplicationOptions
from adapterhub.dataset.splitting import SplitOptions
from adapterhub.dataset.stages import StageOptions
from adapterhub.errors import ConfigError, describe_validation

AUTO = "auto"
SPLIT = re.compile(
    r"(?P<name>\w[\w.-]*)(?P<slice>\[(?P<start>-?\d{1,15}%?)?:(?P<stop>-?\d{1,15}%?)?\])?", re.ASCII
)
"""A split or a slice of one, as `datasets` writes them."""
_IMPRUVER_CONVERTERS = {
    "instruction_to_messages": "alpaca",
    "dialog_to_messages": "messages",
    "conversations_to_messages": "sharegpt",
    "reasoning_to_messages": "reasoning",
}


class SourceOptions(StageOptions):
    """One source: local files, or a dataset on the Hub. Names are those of `datasets.load_dataset`."""

    path: str = Field(min_length=1, validation_alias=AliasChoices("path", "name"))
    """A `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet` or `.txt` file or a pattern such as `data/*.jsonl`, the folder of
    a dataset, or a hub id. Relative to the folder of the configuration file."""
    subset: str | None = None
    """The subset (configuration) of a dataset on the Hub."""
    split: str = "train"
    """The split, or a slice of it: `train[:1000]`, `train[10%:20%]`. Of local files only the slice counts."""
    revision: str | None = None
    """A branch, tag or commit of a dataset on the Hub."""
    streaming: bool = False
    """Read rows of a dataset on the Hub as they are needed, at most `max_records`, without downloading all of it."""
    trust_remote_code: bool = False
    """Let `datasets` run code that the dataset brings; versions from 4 on run none."""
    sample_by: SampleBy = "line"
    """What one row of a `.txt` file is; paragraphs end at empty lines."""
    converter: str = "auto"
    """From a row to a conversation: `messages`, `sharegpt`, `alpaca`, `dolly`, `reasoning`, `prompt_completion`,
    `text`, `auto` (by the columns), or a function of your own as `module.function` or `file.py:function`."""
    mapping: dict[str, str] = Field(default_factory=dict)
    """From a converter's name of a column to the column's name in the source, such as `rating: score`, or to a place
    inside a column: `output: instances.0.output`."""
    prompts: list[str] | dict[str, str] = Field(default_factory=list)
    """User messages for rows that have none, used in turn; or by theme, with `*` for other themes. `{theme}` stands for
    the text of the column `theme`."""
    system: str | None = None
    """System message of conversations that have none."""
    system_file: UserPath | None = None
    """The same from a text file, relative to the folder of the configuration file."""
    max_records: int | None = Field(None, gt=0)
    """Keep at most this many records."""
    weight: float = Field(1.0, gt=0, le=1000)
    """How many times the source's records are in the training data: 2 repeats each, 0.5 keeps a random half."""
    license: str | None = None
    """The licence's identifier, for the data card."""

    @field_validator("converter")
    @classmethod
    def _known_converter(cls, name: str) -> str:
        known = (
            _IMPRUVER_CONVERTERS.get(name.rpartition(".")[2], name) if name.startswith("impruver.") else name
        )
        if known not in (AUTO, *CONVERTERS) and not re.fullmatch(r".+[.:]\w+", known):
            choices = ", ".join((AUTO, *CONVERTERS))
            raise ValueError(f"is none of {choices}, and no module.function")
        return known

    @field_validator("mapping")
    @classmethod
    def _known_columns(cls, mapping: dict[str, str]) -> dict[str, str]:
        if unknown := sorted(mapping.keys() - COLUMN_NAMES):
            raise ValueError(
                f"no converter reads {', '.join(unknown)}; they read {', '.join(sorted(COLUMN_NAMES))}"
            )
        return mapping

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.system is not None and self.system_file is not None:
            raise ValueError("give system or system_file, not both")
        if self.prompts and self.converter not in (AUTO, *WITH_PROMPTS):
            raise ValueError(f"prompts are for the converters {' and '.join(WITH_PROMPTS)}")
        if self.converter not in (AUTO, *CONVERTERS) and self.mapping.keys() - {"rating"}:
            raise ValueError("a converter of your own has no mapping, but of the rating")
        if (self.is_file or self.streaming) and not SPLIT.fullmatch(self.split):
            raise ValueError("split must be a name with or without one slice, such as train[:1000]")
        return self

    @property
    def is_file(self) -> bool:
        """Whether the path names files to read, not a dataset for `datasets`."""
        return Path(self.path).suffix.lower() in READERS

    @property
    def label(self) -> str:
        """The source's name on the data card, without the folders of this machine."""
        name = Path(self.path).name if self.is_file or Path(self.path).is_absolute() else self.path
        return f"{name}/{self.subset}" if self.subset else name

    def in_folder(self, folder: Path) -> Self:
        """The same with relative paths taken from `folder`."""
        path, is_path = Path(self.path), self.is_file or self.path.startswith((".", "~", "/"))
        module, mark, function = self.converter.rpartition(":" if ":" in self.converter else ".")
        file = folder / (module if module.endswith(".py") else f"{module.replace('.', '/')}.py")
        update = {
            "path": str(folder / path.expanduser()) if is_path or (folder / path).exists() else self.path,
            "system_file": self.system_file and folder / self.system_file,
            "converter": f"{file}:{function}" if mark and file.is_file() else self.converter,
        }
        return self.model_copy(update=update)


class DatasetConfig(StageOptions):
    """How to compose one dataset, as in `examples/dataset.yaml`."""

    sources: list[SourceOptions] = Field(min_length=1)
    """Where the records come from."""
    train_path: UserPath = Path("train.jsonl")
    """The JSON Lines file to write, relative to the folder of the configuration file."""
    val_path: UserPath | None = None
    """The file for held-out records."""
    tokenizer: str | None = None
    """The base whose tokenizer counts tokens: `adapterhub-demo`, a model folder, or a hub id."""
    cleaning: CleaningOptions = CleaningOptions()
    """What is cleaned in the text of messages."""
    filters: FilterOptions = FilterOptions()
    """What a record must meet."""
    deduplication: DeduplicationOptions = DeduplicationOptions()
    """Which duplicates are removed."""
    split: SplitOptions = SplitOptions()
    """How many records are held out, if there is a `val_path`."""
    seed: int = Field(0, ge=0)
    """Seed of the order of records, the split and whatever else is drawn."""

    @classmethod
    def load(cls, path: str | Path, **fields: Any) -> Self:
        """Reads a configuration from a YAML or JSON file, which may be one of impruver's.

        Args:
            path: The file. Relative paths are taken from its folder.
            **fields: Fields that replace those of the file.

        Raises:
            ConfigError: The file is missing, is not a mapping, or has invalid fields, of which it names all.
        """
        content, folder = read_config(path)
        if is_impruver(content):
            content = from_impruver(content)
        return cls.parse({**content, **fields}, origin=str(path)).in_folder(folder)

    @classmethod
    def parse(cls, content: Mapping[str, Any], *, origin: str) -> Self:
        """Checks what a configuration file holds.

        Args:
            content: Its fields.
            origin: The file's name, for the error.

        Raises:
            ConfigError: Fields are invalid, of which it names all.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise ConfigError(
                f"The configuration {origin!r} is not valid: {describe_validation(error, limit=None)}.",
                hint="examples/dataset.yaml shows every field.",
            ) from error

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.filters.needs_tokens and self.tokenizer is None:
            raise ValueError("filters that count tokens need a tokenizer")
        if "split" in self.model_fields_set and self.val_path is None:
            raise ValueError("split needs a val_path")
        if self.train_path == self.val_path:
            raise ValueError("train_path and val_path are the same file")
        return self

    def in_folder(self, folder: Path) -> Self:
        """The same with relative paths taken from `folder`."""
        return self.model_copy(
            update={
                "sources": [source.in_folder(folder) for source in self.sources],
                "tokenizer": self.tokenizer and base_in_folder(self.tokenizer, folder),
                "train_path": folder / self.train_path,
                "val_path": self.val_path and folder / self.val_path,
            }
        )
