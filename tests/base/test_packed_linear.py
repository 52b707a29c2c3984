"""Packed 4-bit layers: the product for a few tokens, compiled or bitsandbytes', and the dense one for many."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, has_avx512bf16
from bitsandbytes.nn import Linear4bit, Params4bit

from adapterhub.base import dense_threshold, packed_kernel, packed_linear
from adapterhub.base.dense_threshold import choose_dense_thresholds, product_seconds
from adapterhub.base.loading import Base, load_base
from adapterhub.base.packed_kernel import compiled_products, multiply_by_bitsandbytes
from adapterhub.base.packed_linear import PackedLinear4bit, dense_from, take_packed_layers
from adapterhub.base.quantized_weights import (
    dequantize_module_weight,
    disable_weight_packing,
    is_packed,
    weight_bytes,
)
from adapterhub.engine.runners.choosing import make_runner
from adapterhub.errors import EngineError
from tests.tiny import make_base

pytestmark = pytest.mark.skipif(not has_avx512bf16(), reason="only CPUs with AVX512-BF16 pack 4-bit weights")
SHAPES = [(32, 64), (96, 128), (512, 512), (544, 1088)]


def make_layer(
    rows: int, width: int, kind: str = "nf4", *, bias: bool = True, seed: int = 0, block: int = 64
) -> Linear4bit:
    """A layer of bitsandbytes with random weights, not packed yet."""
    random = torch.Generator().manual_seed(seed)
    layer = Linear4bit(width, rows, bias=bias, quant_type=kind, compute_dtype=torch.float32)
    weight = torch.randn(rows, width, generator=random) / width**0.5
    layer.weight = Params4bit(weight, False, quant_type=kind, module=layer, blocksize=block).to("cpu")
    if bias:
        layer.bias.data = torch.randn(rows, generator=random)
    return layer.eval()


def inputs(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_it_computes_what_bitsandbytes_computes_bit_for_bit(kind: str, bias: bool, rows: int, width: int):
    own, ours = (make_layer(rows, width, kind, bias=bias) for _ in range(2))
    take_packed_layers(ours)
    assert type(ours) is PackedLinear4bit
    for x in (inputs(width), inputs(1, width), inputs(2, 5, width), inputs(5, 2, width).transpose(0, 1)):
        assert torch.equal(ours(x), own(x))
    own.compute_dtype = ours.compute_dtype = torch.bfloat16
    assert torch.equal(ours(x.bfloat16()), own(x.bfloat16()))


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_the_weight_is_dequantised_from_the_packed_layout(kind: str, rows: int, width: int):
    layer = make_layer(rows, width, kind)
    before = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    (packed,) = take_packed_layers(layer)
    packed(inputs(1, width))
    weight = packed.dequantize()
    assert torch.equal(weight, dequantize_module_weight(packed).bfloat16())
    # Packing rounds the scales to bfloat16, and the weight is rounded to it: 2 ** -9 each, and a little.
    torch.testing.assert_close(weight.float(), before, rtol=2**-7, atol=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_the_dense_product_is_as_near_the_right_one_as_the_packed_one(bias: bool, rows: int, width: int):
    (layer,) = take_packed_layers(make_layer(rows, width, bias=bias))
    x = inputs(40, width)
    packed = layer(x)
    layer.dense_threshold = 40
    dense = layer(x)
    right = x.double() @ dequantize_module_weight(layer).double().T + (layer.bias.double() if bias else 0)
    apart = [float((y.double() - right).std() / right.std()) for y in (packed, dense)]
    assert dense.dtype == torch.float32
    assert not torch.equal(packed, dense)
    assert max(apart) < 4e-3  # a rounding of inputs, weights and outputs to 8 bits


def test_fewer_tokens_than_the_threshold_are_multiplied_packed():
    (layer,) = take_packed_layers(make_layer(96, 128))
    x = inputs(40, 128)
    packed = layer(x)
    layer.dense_threshold = 41
    assert torch.equal(layer(x), packed)
    layer.dense_threshold = 40
    assert torch.equal(layer(x[:39]), packed[:39])


def test_no_tokens_are_no_error():
    (layer,) = take_packed_layers(make_layer(96, 128))
    for _ in range(2):  # not packed, packed
        assert layer(inputs(0, 128)).shape == (0, 96)
        layer(inputs(1, 128))


def test_an_input_of_another_width_is_refused_before_the_kernel_reads_it():
    (layer,) = take_packed_layers(make_layer(96, 128))
    layer(inputs(1, 128))
    with pytest.raises(ValueError, match="width 64 for a layer of width 128"):
        layer(inputs(4, 64))


@pytest.mark.parametrize(
    ("block", "width", "packed"), [(32, 192, True), (128, 256, True), (512, 512, True), (128, 192, False)]
)
def test_blocks_of_weights_that_cross_rows_are_not_packed(block: int, width: int, packed: bool):
    layer = make_layer(96, width, block=block)
    disable_weight_packing(layer, only_unsupported=True)
    take_packed_layers(layer)
    x = inputs(40, width)
    y = layer(x)
    assert is_packed(layer) == packed
    right = x.double() @ dequantize_module_weight(layer).double().T + layer.bias.double()
    assert float((y.double() - right).std() / right.std()) < 4e-3


@pytest.mark.parametrize(
    ("block", "shape"), [(0, (96, 128)), (2, (96, 128)), (64, (192, 64)), (64, None), (256, (96, 128))]
)
def test_a_file_cannot_have_the_kernel_read_or_write_elsewhere(block: int, shape: tuple[int, int] | None):
    layer = make_layer(96, 128)
    layer.weight.quant_state.blocksize, layer.weight.quant_state.shape = block, shape
    disable_weight_packing(layer, only_unsupported=True)
    assert take_packed_layers(layer) == []


def test_within_dense_from_only_layers_with_a_threshold_have_another():
    with_one, without = (take_packed_layers(make_layer(32, 64))[0] for _ in range(2))
    with_one.dense_threshold = 256
    with dense_from(torch.nn.Sequential(with_one, without), 8):
        assert (with_one.dense_threshold, without.dense_threshold) == (8, None)
    assert (with_one.dense_threshold, without.dense_threshold) == (256, None)


class TestCompiled:
    """The compiled product equals that of bitsandbytes, which is in its place where it cannot be compiled."""

    # Not "unless it is compiled": that would hide a source that no compiler takes.
    pytestmark = pytest.mark.skipif(
        not shutil.which(shlex.split(os.environ.get("CXX") or "c++")[0]), reason="needs a C++ compiler"
    )

    def test_it_is_used(self):
        assert set(compiled_products()) == {torch.float32, torch.bfloat16}

    @staticmethod
    def by_bitsandbytes(layer: PackedLinear4bit, x: torch.Tensor) -> torch.Tensor:
        y = multiply_by_bitsandbytes(layer.weight, layer.weight.quant_state, x.to(torch.bfloat16))
        return y.to(x.dtype)

    @pytest.mark.parametrize("kind", ["nf4", "fp4"])
    @pytest.mark.parametrize("rows", [32, 96, 128, 288, 544])
    def test_any_number_of_tokens_and_rows_gives_the_same_bits(self, kind: str, rows: int):
        (layer,) = take_packed_layers(make_layer(rows, 192, kind, bias=False))
        layer(inputs(1, 192))
        for tokens in range(1, 20):
            x = inputs(tokens, 192, seed=tokens)
            assert torch.equal(layer.multiply_packed(x), self.by_bitsandbytes(layer, x))
            x = x.bfloat16()
            assert torch.equal(layer.multiply_packed(x), self.by_bitsandbytes(layer, x))

    @pytest.mark.parametrize("kind", ["nf4", "fp4"])
    @pytest.mark.parametrize("block", [32, 128, 256])
    def test_any_block_size_gives_the_same_bits(self, kind: str, block: int):
        (layer,) = take_packed_layers(make_layer(96, 256, kind, bias=False, block=block))
        x = inputs(7, 256)
        layer(x)
        assert torch.equal(layer.multiply_packed(x), self.by_bitsandbytes(layer, x))

    def test_values_that_a_file_gives_to_codes_are_ignored_as_bitsandbytes_does(self):
        (layer,) = take_packed_layers(make_layer(96, 128, bias=False))
        layer.weight.quant_state.code = torch.zeros(16)
        x = inputs(2, 128)
        layer(x)
        assert torch.equal(layer(x), self.by_bitsandbytes(layer, x))
        assert layer(x).any()

    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_threads_change_nothing(self, threads: int):
        (layer,) = take_packed_layers(make_layer(1056, 512, bias=False))
        x, before = inputs(5, 512), torch.get_num_threads()
        layer(x)
        torch.set_num_threads(threads)
        try:
            assert torch.equal(layer.multiply_packed(x), self.by_bitsandbytes(layer, x))
        finally:
            torch.set_num_threads(before)

    def test_infinities_and_nan_reach_the_outputs(self):
        (layer,) = take_packed_layers(make_layer(96, 128, bias=False))
        layer(inputs(1, 128))
        for value in (float("inf"), float("nan")):
            x = inputs(3, 128)
            x[1, 5] = value
            y = layer.multiply_packed(x)
            assert torch.equal(y[::2], self.by_bitsandbytes(layer, x)[::2])
            assert not y[1].isfinite().any()

    def test_a_copy_and_a_replaced_weight_are_multiplied_as_they_are(self):
        first, other = (take_packed_layers(make_layer(96, 128, seed=seed))[0] for seed in (0, 1))
        x = inputs(2, 128)
        wanted, of_other = first(x), other(x)
        copied = copy.deepcopy(first)
        copied.weight = other.weight
        copied.bias = other.bias
        assert torch.equal(copied(x), of_other)
        assert torch.equal(copy.deepcopy(first)(x), wanted)
        assert torch.equal(first(x), wanted)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
    def test_a_copy_has_no_address_of_the_original(self, copied: Callable[[Any], PackedLinear4bit]):
        """Memory that was given back may hold another layer's weight at the same address."""
        (layer,) = take_packed_layers(make_layer(96, 128))
        layer(inputs(1, 128))
        wanted, other = layer(inputs(2, 128)), copied(layer)
        assert other._packed is None
        assert torch.equal(other(inputs(2, 128)), wanted)

    def test_without_it_the_bits_are_those_of_bitsandbytes(self, monkeypatch: pytest.MonkeyPatch):
        (layer,) = take_packed_layers(make_layer(96, 128))
        x = inputs(3, 2, 128)
        compiled = layer(x)
        monkeypatch.setattr(packed_linear, "compiled_products", dict)
        assert torch.equal(layer(x), compiled)

    def test_it_is_not_used_where_bitsandbytes_computes_otherwise(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(
            packed_kernel, "multiply_by_bitsandbytes", lambda *given: 2 * multiply_by_bitsandbytes(*given)
        )
        assert compiled_products.__wrapped__() == {}


class TestThreshold:
    """From how many tokens it is dense."""

    @pytest.fixture(autouse=True)
    def cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path))
        return tmp_path / "arithmetic" / "dense_thresholds.json"

    @staticmethod
    def chosen(rows: int, width: int, dense_from: float) -> tuple[int | None, list[int]]:
        """A layer's threshold, and the numbers of tokens that were timed."""
        timed = []

        def seconds(layer: PackedLinear4bit, tokens: int) -> tuple[float, float]:
            assert layer.in_features == width
            assert layer.in_features * layer.out_features <= 1 << 21
            timed.append(tokens)
            return 1.0, 0.5 if tokens >= dense_from else 0.95

        layers = take_packed_layers(make_layer(rows, width))
        choose_dense_thresholds(layers, seconds)
        return layers[0].dense_threshold, timed

    def test_it_is_the_least_number_of_tokens_at_which_dense_is_quicker(self):
        assert self.chosen(512, 512, dense_from=100) == (128, [512, 256, 128, 64])

    def test_dense_never_wins_by_less_than_noise(self):
        assert self.chosen(512, 512, dense_from=1000) == (None, [512])

    def test_what_was_measured_with_the_other_kernel_is_not_used(self, monkeypatch: pytest.MonkeyPatch):
        assert self.chosen(512, 512, dense_from=256)[0] == 256
        monkeypatch.setattr(
            dense_threshold, "compiled_products", dict if compiled_products() else lambda: {1: 1}
        )
        assert self.chosen(512, 512, dense_from=32)[0] == 32

    def test_it_is_measured_once(self, cache: Path):
        assert self.chosen(512, 512, dense_from=256)[0] == 256
        assert self.chosen(512, 512, dense_from=32) == (256, [])
        assert self.chosen(544, 512, dense_from=32)[0] == 32
        assert sorted(json.loads(cache.read_bytes()).values()) == [32, 256]

    @pytest.mark.parametrize("content", [b"{", b"[1]", b'{"a": 7}', b"\xff"])
    def test_a_damaged_file_is_measured_anew(self, cache: Path, content: bytes):
        cache.parent.mkdir()
        cache.write_bytes(content)
        assert self.chosen(512, 512, dense_from=256)[0] == 256
        assert list(json.loads(cache.read_bytes()).values()) == [256]

    def test_a_cache_that_cannot_be_written_is_no_error(self, cache: Path):
        cache.parent.write_bytes(b"a file")
        assert self.chosen(512, 512, dense_from=256)[0] == 256

    def test_small_layers_are_not_measured(self):
        assert self.chosen(256, 512, dense_from=32) == (None, [])

    def test_of_a_large_layer_some_rows_are_timed(self):
        assert self.chosen(1088, 2048, dense_from=32)[0] == 32

    def test_timing_both_products_draws_no_random_numbers(self):
        (layer,) = take_packed_layers(make_layer(512, 512))
        layer(inputs(1, 512))
        before = torch.get_rng_state()
        assert min(product_seconds(layer, 32)) > 0
        choose_dense_thresholds([layer])
        assert torch.equal(torch.get_rng_state(), before)


class TestProof:
    """The proof of a base sees the dense products too."""

    @pytest.fixture
    def base(self, tmp_path: Path) -> Base:
        base = load_base(make_base(tmp_path / "llama"), device="cpu")
        for layer in take_packed_layers(base.model):
            layer.dense_threshold = 512
        return base

    def test_prompts_are_dense_and_what_follows_is_packed(self, base: Base, monkeypatch):
        tokens, dense = [], PackedLinear4bit.multiply_densely

        def counted(layer: PackedLinear4bit, x: torch.Tensor) -> torch.Tensor:
            tokens.append(x.numel() // layer.in_features)
            return dense(layer, x)

        monkeypatch.setattr(PackedLinear4bit, "multiply_densely", counted)
        runner = make_runner(base, max_loras=2)
        assert runner.proof is not None
        assert set(tokens) == {16}
        assert len(tokens) == 14  # once for each layer

    def test_the_base_says_from_how_many_tokens(self, base: Base):
        shapes = "64 x 64, 32 x 64, 128 x 64, 64 x 128"
        assert (
            f"layers of {shapes} are dequantised and multiplied densely from 512 tokens" in base.arithmetic[1]
        )

    def test_the_memory_of_weights_is_known_after_they_were_packed(self, base: Base):
        """bitsandbytes dequantises the scales then, from 1 byte a block of 64 weights to 2."""
        before = weight_bytes(base.model)
        base.model(torch.tensor([[5]]))
        scales = sum(layer.weight.quant_state.absmax.numel() for layer in take_packed_layers(base.model))
        assert scales < weight_bytes(base.model) - before + scales <= 2 * scales

    def test_a_wrong_dense_product_is_found(self, base: Base, monkeypatch):
        monkeypatch.setattr(PackedLinear4bit, "multiply_densely", lambda self, x: -self.multiply_packed(x))
        with pytest.raises(EngineError, match="differ"):
            make_runner(base, max_loras=2)
