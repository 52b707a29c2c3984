"""LoRA's products by Triton's kernels: on a GPU if there is one, else by Triton's interpreter."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch

from adapterhub.errors import EngineError
from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.kernels.choosing import check_kernels, choose_kernels, gpu_kernels
from adapterhub.lora.kernels.interface import LoraStack
from adapterhub.lora.kernels.torch_ops import TorchOps
from adapterhub.lora.mapping import LoraMapping, OneAdapterMapping, StaticLoraMapping, cut_into_tiles
from adapterhub.lora.stacked_weights import StackedLoraWeights

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton: pip install triton"
)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COMPILE = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from adapterhub.lora.kernels.triton import _expand, _shrink

def compiled(kernel, pointers, constants):
    names = kernel.arg_names
    types = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    return triton.compile(ASTSource(kernel, types, values), target=GPUTarget("cuda", 80, 32)).asm["ptx"]

sums = {"shrunk": "*fp32", "tiles": "*i64"}
shrink = {"IN_FLOAT32": False, "SPLIT_IN": 512, "TOKENS": 16, "BLOCK_IN": 128, "BLOCK_RANK": 16}
expand = {"RANK": 24, "SPLITS": 8, "TOKENS": 16, "BLOCK_RANK": 16, "BLOCK_OUT": 128}
assert "mma.sync" in compiled(_shrink, {"x": "*bf16", "lora_a": "*bf16", **sums}, shrink)
assert "st.global" in compiled(_expand, {"y": "*bf16", "lora_b": "*bf16", **sums}, expand)
"""


def make_stack(
    dtype: torch.dtype, *, slots: int = 4, width: int = 40, rank: int = 3, outs: Sequence[int] = (70,)
) -> LoraStack:
    """Random factors, laid out as `StackedLoraWeights` does."""
    generator = torch.Generator().manual_seed(width)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    return LoraStack(
        random(slots, len(outs) * rank, width).transpose(1, 2),
        {str(layer): random(slots, rank, out) for layer, out in enumerate(outs)},
        {str(layer): layer * rank for layer in range(len(outs))},
        rank,
    )


def exact(
    stack: LoraStack, layer: str, x: torch.Tensor, y: torch.Tensor, mapping: LoraMapping
) -> torch.Tensor:
    """The sums in float64."""
    wanted, column = y.double(), stack.columns[layer]
    for slot, start, stop in mapping.runs_of(len(x)):
        if slot is not None:
            shrunk = x[start:stop].double() @ stack.lora_a[slot, :, column : column + stack.rank].double()
            wanted[start:stop] += shrunk @ stack.lora_b[layer][slot].double()
    return wanted


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("runs", "base_tokens", "sizes"),
    [
        ([(0, 1), (2, 5)], 2, {}),  # odd sizes, below those of a block
        ([(1, 33), (3, 1)], 0, {"width": 600, "rank": 16, "outs": (130, 20)}),  # splits, tiles, layers
        ([(2, 1)], 1, {"width": 64, "rank": 20, "outs": (16,)}),  # a rank above a block
    ],
    ids=["odd", "large", "rank"],
)
def test_the_sums_are_exact_before_they_are_rounded(
    dtype: torch.dtype, runs: list[tuple[int, int]], base_tokens: int, sizes: dict[str, int]
):
    from adapterhub.lora.kernels.triton import TritonKernels

    stack = make_stack(dtype, **sizes)
    mapping = LoraMapping(runs, num_base_tokens=base_tokens, device=DEVICE)
    kernels = TritonKernels(stack)
    x = torch.randn(mapping.end, stack.lora_a.shape[1]).to(DEVICE, dtype)
    for layer, lora_b in stack.lora_b.items():
        before = torch.randn(mapping.end, lora_b.shape[-1]).to(DEVICE, dtype)
        y = before.clone()
        kernels.add_lora(layer, x, y, mapping)
        wanted = exact(stack, layer, x, before, mapping)
        # The sum is rounded once, and in float32 before, in another order. The interpreter cuts off to bfloat16.
        units = 1 if dtype == torch.bfloat16 and DEVICE.type == "cpu" else 0.5
        rounding = units * torch.finfo(dtype).eps * wanted.abs() + 2e-6 * wanted.abs().max()
        assert ((y.double() - wanted).abs() <= rounding).all()
        assert torch.equal(y[:base_tokens], before[:base_tokens])


@needs_triton
def test_what_is_added_to_a_token_depends_on_that_token_alone():
    from adapterhub.lora.kernels.triton import TritonKernels

    stack = make_stack(torch.float32, width=600)
    x, y = torch.randn(19, 600, device=DEVICE), torch.zeros(19, 70, device=DEVICE)
    TritonKernels(stack).add_lora("0", x, y, LoraMapping([(1, 17), (3, 2)], device=DEVICE))
    alone = torch.zeros(1, 70, device=DEVICE)
    TritonKernels(stack).add_lora("0", x[18:], alone, LoraMapping([(3, 1)], device=DEVICE))
    assert torch.equal(alone[0], y[18])


@needs_triton
def test_strided_inputs_and_outputs():
    """Inputs with gaps, and outputs that are some columns of a wider tensor."""
    from adapterhub.lora.kernels.triton import TritonKernels

    stack, mapping = make_stack(torch.float32), LoraMapping([(0, 2), (1, 1)], device=DEVICE)
    x, wide = torch.randn(40, 3, device=DEVICE).T, torch.zeros(3, 100, device=DEVICE)
    TritonKernels(stack).add_lora("0", x, wide[:, 20:90], mapping)
    wanted = exact(stack, "0", x, torch.zeros(3, 70, device=DEVICE), mapping)
    torch.testing.assert_close(wide[:, 20:90].double(), wanted, rtol=1e-5, atol=1e-4)
    assert not wide[:, :20].any()
    assert not wide[:, 90:].any()


@needs_triton
def test_one_adapter_for_as_many_tokens_as_come():
    from adapterhub.lora.kernels.triton import TritonKernels

    stack, mapping = make_stack(torch.float32), OneAdapterMapping(2, device=DEVICE)
    for tokens in (0, 3, 20):
        x, y = torch.randn(tokens, 40, device=DEVICE), torch.zeros(tokens, 70, device=DEVICE)
        TritonKernels(stack).add_lora("0", x, y, mapping)
        wanted = x.double() @ stack.lora_a[2].double() @ stack.lora_b["0"][2].double()
        torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-4)


@needs_triton
def test_tiles_that_are_filled_anew_bring_other_adapters():
    """What a replayed graph does: the same memory, and what runs of a step are left at the end are empty."""
    from adapterhub.lora.kernels.triton import TritonKernels

    stack = make_stack(torch.float32)
    kernels, tiles = TritonKernels(stack), torch.zeros(6, 3, dtype=torch.long, device=DEVICE)
    x = torch.randn(6, 40, device=DEVICE)
    for slots in ([0, 0, 2, 3], [None, 1, 1, 1, 1, 2], [None]):
        flat = cut_into_tiles((slot, 1) for slot in slots)
        tiles.zero_().view(-1)[: len(flat)] = torch.tensor(flat, dtype=torch.long)
        y = torch.zeros(6, 70, device=DEVICE)
        kernels.add_lora("0", x, y, StaticLoraMapping(tiles))
        for token, slot in enumerate([*slots, *[None] * (6 - len(slots))]):
            mapping = LoraMapping([] if slot is None else [(slot, 1)], num_base_tokens=int(slot is None))
            of_token = slice(token, token + 1)
            wanted = exact(stack, "0", x[of_token], torch.zeros(1, 70, device=DEVICE), mapping)
            torch.testing.assert_close(y[of_token].double(), wanted, rtol=1e-5, atol=1e-4)


@needs_triton
def test_stacked_weights_of_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """LoRA, DoRA, an empty slot and the base in one step, in layers that share an input."""
    monkeypatch.setattr("adapterhub.lora.stacked_weights.choose_kernels", gpu_kernels)
    weights = StackedLoraWeights(3, 40, torch.float32, DEVICE)
    plain = {name: LoraDelta(torch.randn(4, 40), torch.randn(out, 4)) for name, out in (("q", 24), ("k", 12))}
    dora = {"q": LoraDelta(torch.randn(2, 40), torch.randn(24, 2), torch.rand(24) + 0.5)}
    weights.load(0, plain)
    weights.load(2, dora)
    mapping = LoraMapping([(0, 2), (1, 1), (2, 1)], num_base_tokens=1, device=DEVICE)
    x, bias = torch.randn(5, 40), torch.randn(24)
    for name, out in (("q", 24), ("k", 12)):
        y = torch.randn(5, out)
        wanted = y.clone()
        wanted[1:3] += x[1:3] @ plain[name].a.T @ plain[name].b.T
        if name == "q":
            scaled = y[4] - bias + x[4] @ dora[name].a.T @ dora[name].b.T
            wanted[4] = scaled * dora[name].magnitude_scale + bias
        got = weights.apply(name, x.to(DEVICE), y.to(DEVICE), bias[:out].to(DEVICE), mapping).cpu()
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@needs_triton
def test_the_kernels_compile_for_a_gpu():
    """The interpreter takes more than the compiler does; that one needs no GPU."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", COMPILE], env=environment, check=True, timeout=240)


@needs_triton
def test_kernels_that_are_right_are_chosen():
    from adapterhub.lora.kernels.triton import TritonKernels

    assert gpu_kernels(DEVICE) is TritonKernels


def test_a_gpu_without_triton_has_torchs_operations(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    gpu_kernels.cache_clear()
    monkeypatch.setitem(sys.modules, "adapterhub.lora.kernels.triton", None)
    with caplog.at_level(logging.WARNING):
        assert choose_kernels(torch.device("cuda")) is TorchOps
    assert "computed by torch" in caplog.text
    gpu_kernels.cache_clear()


def test_kernels_that_are_wrong_are_found():
    class Wrong(TorchOps):
        def add_lora(self, layer: str, x: torch.Tensor, y: torch.Tensor, mapping: LoraMapping) -> None:
            super().add_lora(
                layer, x, y[: mapping.start + 1], LoraMapping([(0, 1)], num_base_tokens=mapping.start)
            )

    check_kernels(TorchOps, torch.device("cpu"))
    with pytest.raises(EngineError, match="differ"):
        check_kernels(Wrong, torch.device("cpu"))
