"""LoRA's products on a GPU: one launch of a Triton kernel shrinks for all slots, one expands.

The tokens of a step are cut into tiles of one slot each (`LoraMapping.tiles`), and a program computes one tile. It
reads on the device which slot and tokens those are, so a captured graph can be replayed with other adapters. The method
is that of Punica (arXiv 2310.18547). Unlike its kernels these add nothing atomically: each split of the input leaves
sums of its own, which expand adds in order. So what is added to a token depends on that token alone.

Sums are in float32 and rounded once. `TRITON_INTERPRET=1` runs the kernels on tensors of the CPU, for tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from adapterhub.lora.kernels.interface import LoraStack
from adapterhub.lora.mapping import TILE_TOKENS, LoraMapping

_BLOCK_IN = 128  # inputs that a program of shrink multiplies at a time
_SPLIT_IN = 4 * _BLOCK_IN  # inputs that it sums: the same for any number of tokens, so sums have one order
_BLOCK_RANK = 16
_BLOCK_OUT = 128
_INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether Triton's interpreter runs the kernels, which cannot multiply in bfloat16."""


class TritonKernels:
    """`LoraKernels` of Triton."""

    name = "triton"
    can_replay = True
    reads_bfloat16 = False

    def __init__(self, stack: LoraStack) -> None:
        self._stack = stack

    def add_lora(self, layer: str, x: torch.Tensor, y: torch.Tensor, mapping: LoraMapping) -> None:
        """Adds the adapters' products to a layer's output; see `LoraKernels.add_lora`."""
        lora_b, tiles = self._stack.lora_b[layer], mapping.tiles(len(y))
        if not len(tiles):
            return
        (shrunk,) = mapping.compute_once(self, x, self._shrink)
        splits, tokens, columns = shrunk.shape
        _expand[len(tiles), triton.cdiv(y.shape[1], _BLOCK_OUT)](
            shrunk[0, :, self._stack.columns[layer] :],
            lora_b,
            y,
            tiles,
            y.shape[1],
            tokens * columns,
            columns,
            *lora_b.stride()[:2],
            y.stride(0),
            RANK=self._stack.rank,
            SPLITS=splits,
            TOKENS=TILE_TOKENS,
            BLOCK_RANK=_BLOCK_RANK,
            BLOCK_OUT=_BLOCK_OUT,
        )

    def _shrink(self, x: torch.Tensor, mapping: LoraMapping) -> tuple[torch.Tensor]:
        """The sums of each split of the input, shape (splits, tokens, layers x rank); tokens of the base have none."""
        lora_a = self._stack.lora_a
        _, width, columns = lora_a.shape
        x = x.reshape(-1, width)
        tiles, splits = mapping.tiles(len(x)), triton.cdiv(width, _SPLIT_IN)
        shrunk = torch.empty(splits, len(x), columns, dtype=torch.float32, device=x.device)
        _shrink[len(tiles), triton.cdiv(columns, _BLOCK_RANK), splits](
            x,
            lora_a,
            shrunk,
            tiles,
            width,
            columns,
            *x.stride(),
            *lora_a.stride(),
            len(x) * columns,
            IN_FLOAT32=_INTERPRETED or x.dtype != lora_a.dtype,
            SPLIT_IN=_SPLIT_IN,
            TOKENS=TILE_TOKENS,
            BLOCK_IN=_BLOCK_IN,
            BLOCK_RANK=_BLOCK_RANK,
        )
        return (shrunk,)


@triton.jit
def _shrink(
    x,
    lora_a,
    shrunk,
    tiles,
    width,
    columns,
    x_token,
    x_in,
    a_slot,
    a_in,
    a_column,
    shrunk_split,
    IN_FLOAT32: tl.constexpr,
    SPLIT_IN: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
):
    """One split of `x @ lora_a` for one tile and some columns; names of strides are tensor_dimension."""
    tile = tiles + 3 * tl.program_id(0)
    slot, start, stop = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    if start < stop:
        token = start + tl.arange(0, TOKENS)[:, None]
        column = tl.program_id(1) * BLOCK_RANK + tl.arange(0, BLOCK_RANK)[None, :]
        total = tl.zeros((TOKENS, BLOCK_RANK), dtype=tl.float32)
        for offset in range(0, SPLIT_IN, BLOCK_IN):
            at = tl.program_id(2) * SPLIT_IN + offset + tl.arange(0, BLOCK_IN)
            of_x = (token < stop) & (at[None, :] < width)
            inputs = tl.load(x + token * x_token + at[None, :] * x_in, mask=of_x, other=0.0)
            of_a = (at[:, None] < width) & (column < columns)
            factor = lora_a + slot * a_slot + at[:, None] * a_in + column * a_column
            factor = tl.load(factor, mask=of_a, other=0.0)
            if IN_FLOAT32:
                inputs, factor = inputs.to(tl.float32), factor.to(tl.float32)
            total = tl.dot(inputs, factor, total, input_precision="ieee")
        out = shrunk + tl.program_id(2).to(tl.int64) * shrunk_split + token * columns + column
        tl.store(out, total, mask=(token < stop) & (column < columns))


@triton.jit
def _expand(
    shrunk,
    lora_b,
    y,
    tiles,
    width,
    shrunk_split,
    shrunk_token,
    b_slot,
    b_rank,
    y_token,
    RANK: tl.constexpr,
    SPLITS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """Adds the sum of the splits times `lora_b` to one tile and some columns of `y`."""
    tile = tiles + 3 * tl.program_id(0)
    slot, start, stop = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    if start < stop:
        token = start + tl.arange(0, TOKENS)[:, None]
        column = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)[None, :]
        total = tl.zeros((TOKENS, BLOCK_OUT), dtype=tl.float32)
        for offset in range(0, RANK, BLOCK_RANK):
            row = offset + tl.arange(0, BLOCK_RANK)
            place = shrunk + token * shrunk_token + row[None, :]
            of_sum = (token < stop) & (row[None, :] < RANK)
            inputs = tl.zeros((TOKENS, BLOCK_RANK), dtype=tl.float32)
            for _ in range(SPLITS):
                inputs += tl.load(place, mask=of_sum, other=0.0)
                place += shrunk_split
            of_b = (row[:, None] < RANK) & (column < width)
            factor = tl.load(lora_b + slot * b_slot + row[:, None] * b_rank + column, mask=of_b, other=0.0)
            total = tl.dot(inputs, factor.to(tl.float32), total, input_precision="ieee")
        of_y = (token < stop) & (column < width)
        out = y + token * y_token + column
        before = tl.load(out, mask=of_y, other=0.0)
        tl.store(out, (before.to(tl.float32) + total).to(before.dtype), mask=of_y)
