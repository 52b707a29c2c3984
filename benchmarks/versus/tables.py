"""The tables of results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Table = tuple[str, list[str], list[list[object]]]
"""Title, head and rows."""
_VERSIONS = ("vllm", "llama-cpp-python", "peft", "transformers", "adapterhub")


def tables(results: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Two tables for each model: the figures of each number of threads, and how much quicker two threads are."""
    for one in results:
        for model in dict.fromkeys(entry["model"] for entry in one["results"]):
            own = [entry for entry in one["results"] if entry["model"] == model]
            threads = list(dict.fromkeys(entry["threads"] for entry in own))
            yield _figures(model, threads, own, one["titles"])
            if len(threads) > 1:
                yield _speed_up(model, threads, own, one["titles"])


def _figures(
    model: str, threads: Sequence[int], entries: Sequence[Mapping[str, Any]], titles: Sequence[str]
) -> Table:
    rows: list[list[object]] = [
        [entry["contender"], _weights(entry), entry["threads"], *map(entry["figures"].get, titles)]
        for count in threads
        for entry in entries
        if entry["threads"] == count and not entry["missing"]
    ]
    return model, ["", "weights", "threads", *titles], rows


def _speed_up(
    model: str, threads: Sequence[int], entries: Sequence[Mapping[str, Any]], titles: Sequence[str]
) -> Table:
    few, many = threads[0], threads[-1]
    times = [title for title in titles if title.endswith(", ms")]
    by_key: dict[tuple[str, str], dict[int, Mapping[str, float]]] = {}
    for entry in entries:
        if not entry["missing"]:
            key = (entry["contender"], _weights(entry))
            by_key.setdefault(key, {})[entry["threads"]] = entry["figures"]
    rows: list[list[object]] = [
        [*key, *(of[few][title] / of[many][title] if title in of[few] else None for title in times)]
        for key, of in by_key.items()
        if {few, many} <= of.keys()
    ]
    names = [title.removesuffix(", ms") for title in times]
    return f"{model}: {many} threads over {few}", ["", "weights", *names], rows


def _weights(entry: Mapping[str, Any]) -> str:
    """How the weights are stored and, if it is another type, what is computed with them."""
    about = entry["about"]
    stored, computed = about.get("weights", ""), about.get("computes", "")
    return stored if computed in (stored, "") else f"{stored}, {computed}"


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The tables for a page, after the processor and the versions."""
    parts = [_machine(results)]
    for title, head, rows in tables(results):
        lines = [head, ["---"] * len(head), *([_cell(value) for value in row] for row in rows)]
        parts.append(f"**{title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join([*parts, *missing(results)])


def _machine(results: Sequence[Mapping[str, Any]]) -> str:
    where, options = results[0]["machine"], results[0]["options"]
    versions = where["versions"] | {
        name: about[name]
        for one in results
        for entry in one["results"]
        for about in [entry["about"]]
        for name in _VERSIONS
        if name in about
    }
    instructions = ", ".join(where["instructions"])
    return (
        f"{where['processor']}, {where['cores']} cores, {instructions}; load {where['load']:.1f} at the end. "
        f"{', '.join(f'{name} {version}' for name, version in versions.items() if version)}. "
        f"Adapters of rank {options['rank']} on all seven projections; prompts of {options['prompt']} tokens, "
        f"answers of {options['tokens']}; the best of {options['rounds']} rounds."
    )


def missing(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each contender that could not be asked."""
    reasons = {
        entry["contender"]: entry["missing"]
        for one in results
        for entry in one["results"]
        if entry["missing"]
    }
    for contender, reason in reasons.items():
        yield f"{contender} was not measured: {reason}."


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return str(value)
