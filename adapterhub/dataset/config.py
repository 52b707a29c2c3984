"""The configuration of a dataset: its sources, what happens to their records, and the files to write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from adapterhub._yaml import read_config_file
from adapterhub.dataset.cleaning import CleaningOptions
from adapterhub.dataset.filters import FilterOptions
from adapterhub.dataset.near_duplicates import DeduplicationOptions
from adapterhub.dataset.splitting import SplitOptions
from adapterhub.errors import ConfigError, describe_validation


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SourceOptions(_Options):
    """One source: a local file, or a dataset on the Hub. Names are those of `datasets.load_dataset`."""

    path: str = Field(min_length=1, validation_alias=AliasChoices("path", "name"))
    """A `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet` or `.txt` file, relative to the folder of the configuration
    file, or a hub id."""
    subset: str | None = None
    """The configuration of a dataset on the Hub."""
    split: str = "train"
    """The split, or a slice of it: `train[:1000]`, `train[10%:20%]`. Of a local file only the slice counts."""
    revision: str | None = None
    """A branch, tag or commit of a dataset on the Hub."""
    streaming: bool = False
    """Read rows of a dataset on the Hub as they are needed, without downloading all of it."""
    trust_remote_code: bool = False
    """Run code that a dataset on the Hub brings."""
    converter: str = "auto"
    """From a row to a conversation."""
    mapping: dict[str, str] = {}
    """From a converter's name of a column to the column's name in the source."""
    max_records: int | None = Field(None, gt=0)
    """Keep at most this many records."""
    weight: float = Field(1.0, gt=0)
    """How many times the source's records are in the training data: 2 repeats each, 0.5 keeps a random half."""
    license: str | None = None
    """The licence's identifier, for the data card."""

    @property
    def label(self) -> str:
        """The source's name on the data card."""
        return f"{self.path}/{self.subset}" if self.subset else self.path


class DatasetConfig(_Options):
    """How to compose one dataset, as in `examples/dataset.yaml`."""

    sources: list[SourceOptions] = Field(min_length=1, validation_alias=AliasChoices("sources", "datasets"))
    """Where the records come from."""
    train_path: Path = Path("train.jsonl")
    """The JSON Lines file to write, relative to the folder of the configuration file."""
    val_path: Path | None = None
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
    def load(cls, path: str | Path) -> Self:
        """Reads a configuration from a YAML or JSON file.

        Args:
            path: The file. Relative paths are taken from its folder.

        Raises:
            ConfigError: The file is missing, is not a mapping, or has invalid fields, of which it names all.
        """
        path = Path(path)
        return cls.parse(read_config_file(path), origin=str(path)).in_folder(path.parent)

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

    def in_folder(self, folder: Path) -> Self:
        """The same with relative paths taken from `folder`."""
        return self.model_copy(
            update={
                "train_path": folder / self.train_path,
                "val_path": self.val_path and folder / self.val_path,
            }
        )
