"""The model card of a merged model: what it was made of, and under which licences.

The format: https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from adapterhub.registry.cards import AdapterCard
from adapterhub.registry.model_card import read_model_card

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def model_card(base: str, base_folder: Path, adapter: str, card: AdapterCard | None, details: str) -> str:
    """The text of the model card.

    Args:
        base: The base's name.
        base_folder: Its folder; the licence is that of its own model card, if it has one.
        adapter: `name@version`, or the folder's name.
        card: The adapter's card, if it has one.
        details: How the weights were merged, in a sentence.
    """
    base_license = read_model_card(base_folder, follow_links=True)[0].get("license")
    name = f"{adapter} merged into {base}"
    metadata = card_metadata(
        name,
        card,
        library_name="transformers",
        base_model=base,
        base_model_relation="merge",
        tags=["lora", "merge"],
        # One licence for the whole model only where both parts have it.
        license=_of_both(base_license, card.license if card else None),
    )
    parts = [f"---\n{metadata}\n---", f"# {name}"]
    if card and card.description:
        parts.append(card.description)
    parts.append(details)
    parts.append("\n".join(_licences(base, base_license, adapter, card)))
    if card:
        parts += card_sections(card, merged=True)
    return "\n\n".join(parts) + "\n"


def card_metadata(name: str, card: AdapterCard | None, *, tags: list[str], **metadata: Any) -> str:
    """The metadata of a model card, as YAML: what is given, and what the adapter's card knows.

    Args:
        name: The model's name; the hub shows evaluation results under it.
        card: The adapter's card, if it has one.
        tags: Tags; those of the card follow.
        metadata: Further fields of `huggingface_hub.ModelCardData`.
    """
    evaluation = card.evaluation if card else ()
    return ModelCardData(
        **metadata,
        pipeline_tag="text-generation",
        tags=[*tags, *(tag for tag in (card.tags if card else ()) if tag not in tags)],
        language=list(card.language) or None if card else None,
        datasets=[one for one in card.datasets if _HUB_ID.fullmatch(one)] or None if card else None,
        model_name=name if evaluation else None,
        eval_results=[
            EvalResult(
                task_type=result.task_type,
                dataset_type=result.dataset_type or result.dataset_name,
                dataset_name=result.dataset_name,
                dataset_split=result.dataset_split,
                metric_type=result.metric_type,
                metric_name=result.metric_name,
                metric_value=result.metric_value,
            )
            for result in evaluation
        ]
        or None,
    ).to_yaml()


def _of_both(base: str | None, adapter: str | None) -> str | None:
    """The licence of both, as the hub writes it, in lower case."""
    return base.lower() if base and adapter and base.lower() == adapter.lower() else None


def _licences(base: str, base_license: str | None, adapter: str, card: AdapterCard | None) -> Iterator[str]:
    yield "## Licences\n\nThe model is made of two works, and the terms of both apply.\n"
    yield f"- base {base}: {base_license or 'not recorded; see the base'}"
    yield f"- adapter {adapter}: {card.license if card and card.license else 'not recorded'}"


def card_sections(card: AdapterCard, *, merged: bool) -> Iterator[str]:
    """The sections on how an adapter was trained, evaluated and used.

    Args:
        card: Its card.
        merged: Whether the model is the adapter merged into its base.
    """
    lineage = card.lineage
    trained = [
        f"- method: {lineage.method}" if lineage.method else "",
        f"- base in training: {card.base.quantization}{'; merged into its unquantised weights' if merged else ''}"
        if card.base.quantization
        else "",
        *(f"- dataset: {dataset}" for dataset in card.datasets),
        *(
            f"- parent: {parent.name}@{parent.version}"
            + (f", weight {parent.weight:g}" if parent.weight is not None else "")
            + (f", {parent.digest}" if parent.digest else "")
            for parent in lineage.parents
        ),
        f"- settings: `{json.dumps(lineage.settings, ensure_ascii=False)}`" if lineage.settings else "",
    ]
    yield from _list("Training", trained)
    yield from _list(
        "Evaluation",
        [
            f"- {result.metric_name or result.metric_type}: {result.metric_value} on {result.dataset_name}"
            + (f" ({result.dataset_split})" if result.dataset_split else "")
            for result in card.evaluation
        ],
        "Measured of the adapter, on the base as it was in training, not of the merged weights."
        if merged
        else "",
    )
    yield from _list(
        "Generation defaults",
        [
            *(f"- {name}: {json.dumps(value)}" for name, value in card.prompt.generation.items()),
            *(f"- stop: {json.dumps(stop, ensure_ascii=False)}" for stop in card.prompt.stop),
        ],
    )
    if card.prompt.system:
        yield (
            "## System prompt\n\nThe adapter was used with this system prompt:\n\n> "
            + card.prompt.system.replace("\n", "\n> ")
        )


def _list(title: str, lines: list[str], introduction: str = "") -> Iterator[str]:
    shown = [line for line in lines if line]
    if shown:
        yield "\n\n".join(filter(None, [f"## {title}", introduction, "\n".join(shown)]))
