"""The model card of a merged model: what it was made of, and under which licences.

The format: https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from adapterhub.export.adapter_part import AdapterSum
from adapterhub.export.base_name import base_link
from adapterhub.registry.cards import AdapterCard
from adapterhub.registry.model_card import read_model_card

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def model_card(
    base: str,
    base_folder: Path,
    adapters: AdapterSum,
    exact: str | None,
    details: str,
    *,
    library: str = "transformers",
) -> str:
    """The text of the model card.

    Args:
        base: The base's name.
        base_folder: Its folder; the licence is that of its own model card, if it has one.
        adapters: What was merged, with the cards.
        exact: How training stored the weights that were merged into; None for the base's own.
        details: How the weights were merged, in sentences.
        library: What loads the model, in the hub's words.
    """
    base_license = read_model_card(base_folder, follow_links=True)[0].get("license")
    name = f"{adapters.ref} merged into {base}"
    cards = [part.card for part in adapters.parts if part.card]
    licences = [base_license, *(part.card.license if part.card else None for part in adapters.parts)]
    metadata = card_metadata(
        name,
        cards,
        library_name=library,
        **base_link(base, "merge"),
        tags=["lora", "merge"],
        license=common_license(licences),
    )
    parts = [f"---\n{metadata}\n---", f"# {name}"]
    parts += [card.description for card in cards if card.description]
    parts.append(details)
    if adapters.is_blend:
        weights = [f"- {part.ref}: weight {part.weight:g}, {part.info.digest}" for part in adapters.parts]
        parts += _list("Parts", weights, "The weighted sum of these adapters' changes was merged.")
    parts.append("\n".join(_licences(base, base_license, adapters)))
    into = f"these weights ({exact})" if exact else "its unquantised weights"
    for card in cards:
        parts += training_sections(card, into, of=f" of {card.ref}" if len(adapters.parts) > 1 else "")
    if adapters.main.card:
        parts += prompt_sections(adapters.main.card)
    return "\n\n".join(parts) + "\n"


def card_metadata(name: str, cards: Sequence[AdapterCard], *, tags: Sequence[str], **metadata: Any) -> str:
    """The metadata of a model card, as YAML: what is given, and what the adapters' cards know.

    Args:
        name: The model's name; the hub shows evaluation results under it.
        cards: The adapters' cards; evaluation results are taken of one alone.
        tags: Tags; those of the cards follow.
        metadata: Further fields of `huggingface_hub.ModelCardData`.
    """
    evaluation = cards[0].evaluation if len(cards) == 1 else ()
    datasets = (dataset for card in cards for dataset in card.datasets if _HUB_ID.fullmatch(dataset))
    return ModelCardData(
        **metadata,
        pipeline_tag="text-generation",
        tags=_distinct([*tags, *(tag for card in cards for tag in card.tags)]),
        language=_distinct(language for card in cards for language in card.language) or None,
        datasets=_distinct(datasets) or None,
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


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def common_license(licences: Sequence[str | None]) -> str | None:
    """The licence that all parts have, as the hub writes it, in lower case; only then it is the whole model's."""
    distinct = {licence and licence.lower() for licence in licences}
    return distinct.pop() if len(distinct) == 1 else None


def _licences(base: str, base_license: str | None, adapters: AdapterSum) -> Iterator[str]:
    works = len(adapters.parts) + 1
    number, each = ("two", "both") if works == 2 else (str(works), "all")
    yield f"## Licences\n\nThe model is made of {number} works, and the terms of {each} apply.\n"
    yield f"- base {base}: {base_license or 'not recorded; see the base'}"
    for part in adapters.parts:
        licence = part.card.license if part.card else None
        yield f"- adapter {part.ref}: {licence or 'not recorded'}"


def training_sections(card: AdapterCard, merged_into: str | None = None, *, of: str = "") -> Iterator[str]:
    """The sections on how an adapter was trained and evaluated.

    Args:
        card: Its card.
        merged_into: The weights of the base that it was merged into, if it was.
        of: Added to the titles where there are several adapters.
    """
    into = f"; merged into {merged_into}" if merged_into else ""
    lineage = card.lineage
    trained = [
        f"- method: {lineage.method}" if lineage.method else "",
        f"- base in training: {card.base.quantization}{into}" if card.base.quantization else "",
        *(f"- dataset: {dataset}" for dataset in card.datasets),
        *(
            f"- parent: {parent.name}@{parent.version}"
            + (f", weight {parent.weight:g}" if parent.weight is not None else "")
            + (f", {parent.digest}" if parent.digest else "")
            for parent in lineage.parents
        ),
        f"- settings: `{json.dumps(lineage.settings, ensure_ascii=False)}`" if lineage.settings else "",
    ]
    yield from _list(f"Training{of}", trained)
    yield from _list(
        f"Evaluation{of}",
        [
            f"- {result.metric_name or result.metric_type}: {result.metric_value} on {result.dataset_name}"
            + (f" ({result.dataset_split})" if result.dataset_split else "")
            for result in card.evaluation
        ],
        "Measured of the adapter, on the base as it was in training, not of the merged weights."
        if merged_into
        else "",
    )


def prompt_sections(card: AdapterCard) -> Iterator[str]:
    """The sections on how an adapter is used: sampling defaults and system prompt."""
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
