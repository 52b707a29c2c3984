"""Copies of the base's own weights in an adapter's file, which PEFT saves with LoRA on the output head or with `bias`.

A copy that equals the base's weight changes nothing, so it is accepted and never loaded. One that differs is a trained
weight, which cannot be served. The weights of `modules_to_save` are no copies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.base.fingerprint import weight_tensors
from adapterhub.errors import AdapterIncompatibleError
from adapterhub.peft_format.config import WEIGHTS_FILE, AdapterConfig, copied_weights, saved_weights
from adapterhub.peft_format.safetensors_header import read_header

if TYPE_CHECKING:
    import torch

    from adapterhub.base.linear_layers import LinearLayers

_BLOCK_ELEMENTS = 2**22


def check_copied_weights(adapter_folder: Path, base_folder: Path, layers: LinearLayers) -> None:
    """Checks that copies of the base's weights in an adapter's file are the base's weights.

    Args:
        adapter_folder: The adapter's files.
        base_folder: The base on disk.
        layers: The base's linear layers.

    Raises:
        AdapterIncompatibleError: A weight differs, or the base does not have it.
        ConfigError: The base's files cannot be read.
    """
    header = read_header(adapter_folder / WEIGHTS_FILE)
    saved = saved_weights(header, AdapterConfig.read(adapter_folder).settings)
    copies = {name: tensor for name, tensor in copied_weights(header).items() if name not in saved}
    if not copies:
        return
    in_base = weight_tensors(base_folder)
    names = layers.parameters_in(in_base)
    for copy, tensor in copies.items():
        parameter = layers.find_parameter(copy)
        own = names.get(parameter) or names.get(layers.tied.get(parameter, ""))
        if own is None:
            raise _refused(tensor, "the base has no such weight")
        if difference := _difference(adapter_folder / WEIGHTS_FILE, tensor, in_base[own], own):
            raise _refused(tensor, difference)


def _difference(file: Path, copy: str, base_file: Path, own: str) -> str | None:
    from safetensors import safe_open

    with ExitStack() as files:
        ours = files.enter_context(safe_open(file, "pt")).get_slice(copy)
        theirs = files.enter_context(safe_open(base_file, "pt")).get_slice(own)
        if ours.get_shape() != theirs.get_shape():
            return f"it has shape {tuple(ours.get_shape())}, the base's {tuple(theirs.get_shape())}"
        # Training may have loaded the base in another dtype.
        equal = all(
            (block == other.to(block.dtype)).all()
            for block, other in zip(_blocks(ours), _blocks(theirs), strict=True)
        )
    return None if equal else "it is not the base's own weight"


def _blocks(tensor: Any) -> Iterator[torch.Tensor]:
    rows, *rest = tensor.get_shape()
    count = max(1, _BLOCK_ELEMENTS // max(1, math.prod(rest)))
    for start in range(0, rows, count):
        yield tensor[start : start + count]


def _refused(tensor: str, difference: str) -> AdapterIncompatibleError:
    return AdapterIncompatibleError(
        f"The adapter holds the tensor {tensor[:200]!r}, a weight of the base itself, and {difference}.",
        hint="Name its module in modules_to_save, and train without trained biases and a resized vocabulary.",
    )
