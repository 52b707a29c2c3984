"""A data card as Markdown, with the header of a dataset card of the Hub."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import yaml

from adapterhub.dataset.data_card import DataCard, Distribution, PartCard, SourceCard

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
"""The Hub's names for numbers of records."""


def card_as_markdown(card: DataCard, picture: str | None = None) -> str:
    """The card as Markdown, with the header of a dataset card of the Hub.

    Args:
        card: The card.
        picture: The name of the file with the histogram of lengths, beside the card.
    """
    parts = [part for part in (card.train, card.val) if part]
    sections = [
        f"---\n{yaml.safe_dump(_header(card), sort_keys=True)}---\n\n# Data card",
        "## Files\n\n"
        + _table(("file", "records", "sha256"), ((p.file, p.records, p.sha256) for p in parts)),
        "## Sources\n\n" + _source_table(card.sources),
        "## Dropped\n\n" + _table(("stage", "reason", "records"), _drops(card)),
        "## Changed\n\n" + _table(("stage", "what", "records"), _changes(card)),
        "## Lengths\n\n"
        + (f"Tokens are counted with {card.tokenizer}.\n\n" if card.tokenizer else "")
        + _length_table(parts),
        f"![Lengths of the records]({picture})" if picture else "",
        f"Drawn with seed {card.seed}. Records are unique by what users and the assistant say, as far as"
        " duplicates were removed; duplicates are never on both sides of the split.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _header(card: DataCard) -> dict[str, object]:
    records = card.train.records + (card.val.records if card.val else 0)
    size = next((name for limit, name in _SIZES if records < limit), "n>1M")
    licenses = sorted({source.license for source in card.sources if source.license})
    return {"size_categories": [size], **({"license": licenses} if licenses else {})}


def _source_table(sources: Iterable[SourceCard]) -> str:
    heads = ("source", "licence", "converter", "rows", "no conversation", "train", "validation", "sha256")
    return _table(
        heads,
        (
            (
                one.name,
                one.license or "unknown",
                one.converter,
                one.rows,
                sum(one.dropped.values()),
                one.train,
                one.val,
                " ".join(f"{file.name} {file.sha256}" for file in one.files),
            )
            for one in sources
        ),
    )


def _drops(card: DataCard) -> Iterable[tuple[object, ...]]:
    for source in card.sources:
        yield from ((f"reading {source.name}", *drop) for drop in source.dropped.items())
    for stage in card.stages:
        yield from ((stage.name, *drop) for drop in stage.dropped.items())


def _changes(card: DataCard) -> Iterable[tuple[object, ...]]:
    for stage in card.stages:
        yield from ((stage.name, *change) for change in stage.changed.items())


def _length_table(parts: Iterable[PartCard]) -> str:
    figures = ("tokens", "characters", "answer_characters", "ratings")
    rows = (
        (
            part.file,
            figure.replace("_", " "),
            *(f"{value:,.10g}" for value in distribution.model_dump().values()),
        )
        for part in parts
        for figure in figures
        if (distribution := getattr(part, figure)) is not None
    )
    return _table(("file", "of a record", *Distribution.model_fields), rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    if len(lines) == 2:
        return "None."
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return " ".join(text.replace("|", "\\|").split())
