"""Configurations in the spelling of other tools, brought into the form of `FinetuneConfig`.

Known are the names of transformers, PEFT, TRL and bitsandbytes, in snake case and camel case, at the top or in sections
such as `loraConfig` and `trainingParams`, and `dataset` for the one source of a dataset to compose. Names are brought
over, and the few values that are written otherwise; types are checked by `FinetuneConfig`, all at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, TypeAlias

Found: TypeAlias = tuple[Any, str]
"""A value, and how the file names it."""

_SECTIONS = {
    "lora": ("lora", "lora_config", "peft_config"),
    "train": ("train", "training_params", "training_args", "training_arguments", "trainer"),
    "data": ("data",),
    "quantization_config": ("quantization_config", "bnb_config"),
}
_ALIASES = {
    "": {
        "model_name": "base",
        "model_name_or_path": "base",
        "base_model": "base",
        "device_map": "device",
        "max_records": "data.max_records",
    },
    "data": {"train_path": "data.train", "val_path": "data.validation"},
    "lora": {
        "lora_r": "lora.r",
        "lora_alpha": "lora.alpha",
        "lora_dropout": "lora.dropout",
        "lora_target_modules": "lora.target_modules",
        "use_rslora": "lora.rslora",
        "use_dora": "lora.dora",
        "bias": "lora.bias",
        "task_type": "lora.task_type",
    },
    "train": {
        "num_train_epochs": "train.epochs",
        "per_device_train_batch_size": "train.batch_size",
        "per_device_eval_batch_size": "train.eval_batch_size",
        "gradient_accumulation_steps": "train.gradient_accumulation",
        "warmup_ratio": "train.warmup",
        "warmup_steps": "train.warmup",
        "lr_scheduler_type": "train.scheduler",
        "max_seq_length": "train.max_length",
        "optim": "train.optimizer",
        "eval_steps": "train.eval_every",
        "eval_strategy": "train.eval_strategy",
        "evaluation_strategy": "train.eval_strategy",
        "save_steps": "train.save_every",
        "save_strategy": "train.save_strategy",
        "load_best_model_at_end": "train.load_best",
        "logging_strategy": "train.logging_strategy",
        "output_dir": "output_dir",
        "report_to": "report_to",
        "run_name": "run_name",
        "bf16": "bf16",
        "fp16": "fp16",
    },
    "quantization_config": {
        name: f"quantization_config.{name}"
        for name in (
            "load_in_4bit",
            "load_in_8bit",
            "bnb_4bit_quant_type",
            "bnb_4bit_compute_dtype",
            "bnb_4bit_use_double_quant",
        )
    },
}
_ONLY = {
    "lora.bias": "none",
    "lora.task_type": "CAUSAL_LM",
    "train.logging_strategy": "steps",
    "quantization_config.bnb_4bit_use_double_quant": True,
}
"""Settings of which one value can be had."""
_SOURCE = {
    name.replace("_", ""): name
    for name in ("path", "subset", "split", "streaming", "trust_remote_code", "max_records")
} | {"name": "path"}
_INSTEAD_OF = {
    "data.train": ("data.compose", "data.compose.sources"),
    "data.validation": ("data.validation_share",),
}
_DEFAULT_SAVE_STEPS = 500  # transformers'


@dataclass
class ForeignConfig:
    """One configuration in the form of `FinetuneConfig`.

    Attributes:
        found: Path of a setting, such as `train.max_steps` -> its value, and how the file names it.
        problems: What could not be brought over, as `name: reason`.
    """

    found: dict[str, Found] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, content: Mapping[Any, Any], own: Mapping[str, set[str]]) -> ForeignConfig:
        """Brings a configuration over.

        Args:
            content: What the file holds.
            own: The fields of `FinetuneConfig` (`""`) and of its sections.
        """
        foreign, names = cls(), _names(own)
        for name, value in content.items():
            for path, each, written in _settings(name, value, names):
                foreign._add(path, each, written)
        foreign._quantization()
        foreign._compute_dtype()
        foreign._intervals()
        foreign._name()
        foreign._dataset()
        return foreign

    def nested(self) -> dict[str, Any]:
        """The settings as `FinetuneConfig` takes them."""
        settings: dict[str, Any] = {}
        for path, (value, _) in self.found.items():
            *parents, name = path.split(".")
            place = settings
            for parent in parents:
                place = place.setdefault(parent, {}) if isinstance(place, dict) else {}
            if isinstance(place, dict):  # else FinetuneConfig refuses what is in its place
                place[name] = value
        return settings

    def written(self, location: tuple[int | str, ...]) -> tuple[int | str, ...]:
        """How the file names the field at a location of `FinetuneConfig`."""
        for length in range(len(location), 0, -1):
            path = ".".join(map(str, location[:length]))
            if path in self.found:
                return (self.found[path][1], *location[length:])
        return location

    def _add(self, path: str, value: Any, written: str) -> None:
        if path in self.found:
            self.problems.append(f"{written}: {self.found[path][1]} says the same")
        elif path in _ONLY:
            if value != _ONLY[path]:
                self.problems.append(f"{written}: only {_ONLY[path]!r} can be had")
        elif path == "report_to" and isinstance(value, list) and len(value) == 1:
            self.found[path] = value[0], written
        elif (path, value) != ("train.max_steps", -1):  # transformers' way to say none
            self.found[path] = value, written

    def change(self, path: str, value: Any, written: str) -> None:
        """Sets a setting, in place of what says the same in another way."""
        for other in _INSTEAD_OF.get(path, ()):
            self.found.pop(other, None)
        self.found[path] = value, written

    def _pop(self, path: str) -> Any:
        return self.found.pop(path, (None, ""))[0]

    def _switch(self, path: str) -> bool | None:
        value, written = self.found.pop(path, (None, ""))
        if value is not None and not isinstance(value, bool):
            self.problems.append(f"{written}: not true or false")
            return None
        return value

    def _quantization(self) -> None:
        given = [path for path in self.found if path.startswith("quantization_config")]
        if not given:
            return
        written = self.found[given[0]][1]
        in_4bit, in_8bit = (self._switch(f"quantization_config.load_in_{bits}bit") for bits in (4, 8))
        kind = self._pop("quantization_config.bnb_4bit_quant_type") or "nf4"
        if in_4bit and in_8bit:
            self.problems.append(f"{written}: load_in_8bit is given too")
        if self._pop("quantization_config") is not None:
            self.problems.append(f"{written}: not a mapping of names to values")
        self._add("quantization", kind if in_4bit else "int8" if in_8bit else None, written)

    def _compute_dtype(self) -> None:
        dtype = self.found.pop("quantization_config.bnb_4bit_compute_dtype", None)
        switches = {"bfloat16": self._switch("bf16"), "float16": self._switch("fp16")}
        chosen = [name for name, on in switches.items() if on]
        if len(chosen) > 1:
            self.problems.append("bf16: fp16 is given too")
        if "compute_dtype" not in self.found and (dtype or chosen):
            self.found["compute_dtype"] = dtype or (chosen[0], "bf16" if switches["bfloat16"] else "fp16")

    def _intervals(self) -> None:
        defaults = {
            "eval": self.found.get("train.logging_steps"),
            "save": (_DEFAULT_SAVE_STEPS, "save_steps"),
        }
        for kind, default in defaults.items():
            strategy, written = self.found.pop(f"train.{kind}_strategy", (None, ""))
            every = f"train.{kind}_every"
            match strategy:
                case None:
                    continue
                case "no" | False:  # YAML reads `no` as false
                    self.found.pop(every, None)
                case "epoch":
                    self.found[every] = "epoch", written
                case "steps" if every in self.found or default:
                    self.found.setdefault(every, default or (None, ""))
                case _:
                    self.problems.append(f"{written}: 'no', 'epoch', or 'steps' with {kind}_steps")

    def _dataset(self) -> None:
        given, written = self.found.pop("dataset", (None, ""))
        if given is None:
            return
        settings = given if isinstance(given, Mapping) else {"path": given}
        source = {_SOURCE.get(_plain(name), str(name)): value for name, value in settings.items()}
        if "data.max_records" in self.found:
            source["max_records"] = self._pop("data.max_records")
        if "data.compose" in self.found:
            self.problems.append(f"{written}: data.compose is given too")
        self.found["data.compose.sources"] = [source], written
        # The loss and the texts of transformers' own examples, which know no chat template.
        self.found.setdefault("data.loss", ("all", written))
        card, card_written = self.found.get("card", ({}, "card"))
        if isinstance(card, Mapping):
            self.found["card"] = {"prompt": {"format": "plain"}, **card}, card_written
        parts = [self.found.get("base", ("", ""))[0], source.get("path")]
        self.found.setdefault("name", (_as_name(parts), "name"))

    def _name(self) -> None:
        run_name = self.found.get("run_name", (None, ""))[0]
        if run_name is not None:
            self.found.setdefault("name", (_as_name([run_name]), "run_name"))


def _names(own: Mapping[str, set[str]]) -> dict[str, dict[str, str]]:
    """Section -> name without its spelling -> path. The section of settings at the top is `""`."""
    names = {
        section: {
            **{_plain(name): f"{section}.{name}".lstrip(".") for name in own.get(section, ())},
            **{_plain(name): path for name, path in aliases.items()},
        }
        for section, aliases in _ALIASES.items()
    }
    lora = {
        name: path
        for name, path in names["lora"].items()
        if name.startswith(("lora", "use", "targetmodules"))
    }
    names[""] = {**names["train"], **names["data"], **names["quantization_config"], **lora, **names[""]}
    return names


def _settings(
    name: object, value: Any, names: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[str, Any, str]]:
    """Path, value and written name of one entry of a file, or of each in a section."""
    section = next((key for key, known in _SECTIONS.items() if _plain(name) in map(_plain, known)), None)
    if section is None:
        yield names[""].get(_plain(name), str(name)), value, str(name)
    elif not isinstance(value, Mapping):
        yield section, value, str(name)
    else:
        for key, each in value.items():
            yield names[section].get(_plain(key), f"{section}.{key}"), each, f"{name}.{key}"


def _plain(name: object) -> str:
    """A name without its spelling: `maxSteps`, `max-steps` and `max_steps` are one."""
    return re.sub("[_-]", "", str(name)).lower()


def _as_name(parts: list[Any]) -> str:
    """A name for the adapter: of `distilgpt2` and `databricks/databricks-dolly-15k`, both without their owners."""
    words = [PurePath(str(part)).name for part in parts if part]
    words = [re.sub(r"\.(jsonl?|csv|tsv|parquet|txt)$", "", word) for word in words]
    return re.sub(r"[^a-z0-9._-]+", "-", "-".join(words).lower()).strip("-._")[:63]
