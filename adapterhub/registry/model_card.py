"""Parsing a Hugging Face model card (`README.md`) into the fields of a card.

The format: https://huggingface.co/docs/hub/model-cards. Model cards are untrusted, so values of the wrong type are left
out one by one. huggingface_hub's `ModelCard` raises on some of them, drops all evaluation results if one is malformed,
and parses YAML without a bound on its size: 9 s for 0.75 MB.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapterhub._files import read_bounded
from adapterhub.errors import AdapterInvalidError
from adapterhub.registry.cards import CardFields, Evaluation

MODEL_CARD_FILE = "README.md"
_MAX_BYTES = 2**20
# Parsing YAML is slow.
_MAX_FRONT_MATTER = 64 * 2**10
_MAX_TEXT = 500
# Placeholders of the hub's model card template, which PEFT saves with every adapter.
_UNFILLED = re.compile(
    "more information needed|^use the code below to get started|^carbon emissions can be estimated",
    re.IGNORECASE,
)
_LARGEST_METRIC = 1e15


def read_model_card(folder: Path, *, follow_links: bool = False) -> tuple[CardFields, str | None]:
    """Reads the model card of an adapter or a base.

    Args:
        folder: The folder, with or without a `README.md`.
        follow_links: Also read a link, as in the hub's cache; for folders that are trusted.

    Returns:
        The fields for the card, and `base_model` or None.
    """
    try:
        content = read_bounded(folder / MODEL_CARD_FILE, _MAX_BYTES, follow_links=follow_links)
    except AdapterInvalidError:
        return CardFields(), None
    data, body = _split(content.decode("utf-8-sig", errors="replace"))
    values: dict[str, Any] = {
        "description": _first_paragraph(body),
        # The hub adds tags such as "base_model:adapter:<path>"; the base has its own field.
        "tags": tuple(tag for tag in _texts(data.get("tags")) if not tag.startswith("base_model:")),
        "language": _texts(data.get("language")),
        "license": next(iter(_texts(data.get("license"))), None),
        "datasets": _texts(data.get("datasets")),
        "task": next(iter(_texts(data.get("pipeline_tag"))), None),
        "evaluation": tuple(_evaluations(data.get("model-index"))),
    }
    fields: Any = {name: value for name, value in values.items() if value}
    return fields, next(iter(_texts(data.get("base_model"))), None)


def _split(text: str) -> tuple[dict[str, Any], str]:
    """The front matter, which stands between lines of `---`, and the body."""
    lines = text.replace("\r\n", "\n").split("\n")
    fences = (number for number, line in enumerate(lines) if line.rstrip() == "---")
    if next(fences, None) != 0 or (end := next(fences, None)) is None:
        return {}, text
    return _front_matter("\n".join(lines[1:end])), "\n".join(lines[end + 1 :])


def _front_matter(text: str) -> dict[str, Any]:
    from adapterhub._yaml import parse_yaml

    if len(text) > _MAX_FRONT_MATTER:
        return {}
    try:
        data = parse_yaml(text, aliases=False)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _texts(value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(text for one in values if (text := _text(one)))


def _first_paragraph(body: str) -> str:
    """The first paragraph of prose: no heading, list, table, comment, image or placeholder."""
    for block in re.split(r"\n\s*\n", body):
        text = " ".join(block.split())
        if text[:1].isalnum() and not _UNFILLED.search(text):
            return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
    return ""


def _evaluations(index: object) -> Iterator[Evaluation]:
    """The evaluation results in a `model-index`: models -> results -> metrics."""
    for result in _dicts([result for model in _dicts(index) for result in _dicts(model.get("results"))]):
        task, dataset = _dict(result.get("task")), _dict(result.get("dataset"))
        for metric in _dicts(result.get("metrics")):
            value, kind = _value(metric.get("value")), metric.get("type")
            if value is not None and isinstance(kind, str):
                yield Evaluation(
                    task_type=_text(task.get("type")) or "",
                    dataset_name=_text(dataset.get("name")) or "",
                    dataset_type=_text(dataset.get("type")),
                    dataset_split=_text(dataset.get("split")),
                    metric_type=_text(kind) or "",
                    metric_name=_text(metric.get("name")),
                    metric_value=value,
                )


def _value(value: object) -> float | str | None:
    if isinstance(value, int | float) and abs(value) < _LARGEST_METRIC:
        return float(value)
    return _text(value)


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    # YAML can escape lone surrogates, which no stored text can hold.
    return value[:_MAX_TEXT].encode(errors="replace").decode() if isinstance(value, str) else None
