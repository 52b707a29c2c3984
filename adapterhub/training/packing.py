"""Several examples in one row, so that little is computed for padding.

TRL puts the examples into rows, best fit first, none of them cut. Each keeps its own positions, from 0, and attends to
itself alone: transformers derives that from the positions. Models whose layers carry a state along the row, and those
that ignore positions, would mix the examples; a base is tried before the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from datasets import (
    Dataset,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from torch.nn.utils.rnn import pad_sequence
from trl import pack_dataset

from adapterhub.errors import ConfigError
from adapterhub.training.tokenizing import IGNORE_INDEX

_PROBE_TOKENS = 24


def pack(dataset: Dataset, max_length: int) -> Dataset:
    """Puts examples into rows of at most `max_length` tokens.

    Args:
        dataset: Columns `input_ids` and `labels`, none longer than `max_length`.
        max_length: Tokens in a row.

    Returns:
        The rows, with the examples' lengths in `seq_lengths`.
    """
    with _no_bars():
        return pack_dataset(dataset, max_length, "bfd")


@contextmanager
def _no_bars() -> Iterator[None]:
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def one_a_row(dataset: Dataset) -> Dataset:
    """The examples as they are, each with its length in `seq_lengths`."""
    return dataset.add_column("seq_lengths", [[len(ids)] for ids in dataset["input_ids"]])


def collate_packed(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Makes a batch of rows: token ids, labels and positions, filled up on the right, and no attention mask.

    A token that fills up is an example of its own, without a label.
    """

    def padded(parts: list[torch.Tensor], value: int) -> torch.Tensor:
        return pad_sequence(parts, batch_first=True, padding_value=value)

    positions = padded([_positions(row["seq_lengths"]) for row in rows], 0)
    labels = padded([torch.tensor(row["labels"]) for row in rows], IGNORE_INDEX)
    return {
        "input_ids": padded([torch.tensor(row["input_ids"]) for row in rows], 0),
        "labels": labels.masked_fill(positions == 0, IGNORE_INDEX),  # the example before does not predict it
        "position_ids": positions,
    }


def _positions(lengths: Sequence[int]) -> torch.Tensor:
    return torch.cat([torch.arange(length) for length in lengths])


@torch.no_grad()
def check_packing(model: Any, dtype: torch.dtype, examples: Sequence[Sequence[int]]) -> None:
    """Tries whether the model keeps packed examples apart.

    Args:
        model: The model, as it will be trained.
        dtype: What it computes in.
        examples: Token ids; the first and the last are used, up to 24 tokens of each.

    Raises:
        ConfigError: The second one's logits depend on the first.
    """
    first, second = (list(ids[:_PROBE_TOKENS]) for ids in (examples[0], examples[-1]))
    was_training = model.training
    model.eval()
    try:
        alone = _last_logits(model, [second])
        packed = _last_logits(model, [first, second])
        mixed = _last_logits(model, [first + second])
    finally:
        model.train(was_training)
    size = len(second)
    error, effect = ((logits[-size:] - alone).abs().max() for logits in (packed, mixed))
    rounding = 8 * torch.finfo(dtype).eps * alone.abs().max()
    if error > max(effect / 10, rounding):
        raise ConfigError(
            "This base cannot be trained on packed examples: its layers pass something from one to the next.",
            hint="Set train.packing to false.",
        )


def _last_logits(model: Any, examples: list[list[int]]) -> torch.Tensor:
    """The logits of a row of packed examples."""
    ids = torch.tensor([[token for example in examples for token in example]], device=model.device)
    positions = _positions([len(example) for example in examples])[None].to(model.device)
    logits: torch.Tensor = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    return logits[0].float()
