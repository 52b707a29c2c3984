"""The dataset part of an impruver configuration, which one file gives to all of its recipes.

Source: https://github.com/EvilFreelancer/impruver, `compose_dataset`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KEPT = ("train_path", "val_path", "seed")
_TEMPLATE_DECIDES = ("add_global_bos", "add_global_eos", "only_target_loss", "max_tokens_count")


def is_impruver(content: Mapping[str, Any]) -> bool:
    """Whether a configuration file is one of impruver's, which names its sources `datasets`."""
    return "datasets" in content and "sources" not in content


def from_impruver(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `DatasetConfig` that mean the same.

    The parts for the other recipes (`model`, `lora`, `trainer`, `output_dir` ...) are left out, and so are
    `add_global_bos` and `add_global_eos`, which the chat template decides here, and `only_target_loss`, which is a
    setting of training. Sequences of more than `max_tokens_count` tokens are dropped, as there. Unknown keys stay,
    and are reported.

    Args:
        content: What the file holds.
    """
    datasets = content["datasets"]
    if not isinstance(datasets, list) or not all(isinstance(one, dict) for one in datasets):
        return {"sources": datasets}
    tokenizer, model = _part(content, "tokenizer"), _part(content, "model")
    result: dict[str, Any] = {name: content[name] for name in _KEPT if content.get(name) is not None}
    result["sources"] = [_source(one) for one in datasets]
    if name := tokenizer.get("name") or model.get("name"):
        result["tokenizer"] = name
    limits = [one.get("max_tokens_count") for one in (tokenizer, *datasets)]
    if given := [limit for limit in limits if isinstance(limit, int)]:
        result["filters"] = {"max_tokens": min(given)}
    return result


def _part(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = content.get(name)
    return part if isinstance(part, dict) else {}


def _source(dataset: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in dataset.items() if name not in _TEMPLATE_DECIDES}
