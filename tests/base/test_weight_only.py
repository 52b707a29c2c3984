"""Weights in 4 and 8 bits that torch's kernels multiply."""

import logging
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config

from adapterhub import load_base
from adapterhub.base import auto_quantization as choosing
from adapterhub.base.auto_quantization import auto_quantization
from adapterhub.base.int4 import Int4Linear, unpack
from adapterhub.base.quantized_weights import dequantize_module_weight
from adapterhub.base.weight_only import Int8WeightOnlyLinear, WeightOnlyLinear
from adapterhub.errors import ConfigError
from tests.tiny import make_base

KINDS = {"int4": Int4Linear, "int8_weight_only": Int8WeightOnlyLinear}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def make_layer(
    kind: type[WeightOnlyLinear], weight: torch.Tensor, bias: torch.Tensor | None = None
) -> WeightOnlyLinear:
    out_features, in_features = weight.shape
    layer = kind(in_features, out_features, None if bias is None else torch.nn.Parameter(bias))
    for name, tensor in kind.quantized(weight).items():
        if name == "weight":
            layer.weight = torch.nn.Parameter(tensor, requires_grad=False)
        else:
            setattr(layer, name, tensor)
    return layer


@pytest.mark.parametrize("shape", [(16, 32), (48, 64), (64, 32), (112, 96), (192, 160), (272, 64)])
def test_codes_are_read_back_as_they_were_packed(shape):
    codes = torch.randint(0, 16, shape, dtype=torch.int32)
    assert torch.equal(unpack(torch._convert_weight_to_int4pack_for_cpu(codes, 1)).T.int(), codes)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 32), (80, 96), (192, 64)])
def test_a_product_is_that_of_the_dequantised_weight(kind, dtype, shape):
    torch.manual_seed(0)
    bias = torch.randn(shape[0], dtype=dtype)
    layer = make_layer(kind, torch.randn(shape), bias)
    weight = layer.dequantize(torch.float64)
    for tokens in (0, 1, 3, 4, 5, 17, 70):
        x = torch.randn(tokens, 2, shape[1]).transpose(0, 1).to(dtype)  # not contiguous
        y = layer(x)
        assert (y.shape, y.dtype) == ((2, tokens, shape[0]), dtype)
        product = x.bfloat16().double() @ weight.T
        expected = product + bias.double()
        # The product is rounded to bfloat16, and the sum with the bias to the dtype of the activations.
        rounding = 2**-8 * product.abs() + torch.finfo(dtype).eps * expected.abs() + 1e-5
        assert ((y.double() - expected).abs() <= rounding).all()


@every_kind
def test_a_dense_product_rounds_nothing(kind):
    torch.manual_seed(0)
    layer = make_layer(kind, torch.randn(32, 64))
    layer.dense_dtype = torch.float32
    x = torch.randn(5, 64)
    expected = x.double() @ layer.dequantize(torch.float64).T
    assert (layer(x).double() - expected).abs().max() <= 1e-5


@every_kind
def test_a_models_own_code_cannot_take_the_codes_for_a_weight(kind):
    """As the router of LongCat-Flash would, which multiplies by the weight of its linear layer itself."""
    layer = make_layer(kind, torch.randn(32, 64))
    with pytest.raises(RuntimeError):
        torch.nn.functional.linear(torch.randn(3, 64), layer.weight.float())


def test_weights_of_16_even_steps_keep_their_values():
    """As those of llama.cpp's Q4_1 and Q4_0."""
    torch.manual_seed(0)
    codes = torch.randint(0, 16, (64, 3, 32))
    codes[..., 0], codes[..., 1] = 0, 15
    weight = ((codes - 8) * 2.0 ** torch.randint(-8, -2, (64, 3, 1))).view(64, 96)
    assert torch.equal(make_layer(Int4Linear, weight).dequantize(torch.float32), weight)


def test_4_bit_weights_are_nearer_than_those_of_the_whole_range():
    torch.manual_seed(0)
    weight = torch.randn(64, 256) * 0.02 + 0.01
    groups = weight.view(64, -1, 32)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    step = (high - low) / 15
    whole = ((groups - low) / step).round() * step + low
    got = make_layer(Int4Linear, weight).dequantize(torch.float32)
    assert (got - weight).norm() < (whole.view(64, 256) - weight).norm()
    assert (got - weight).norm() < 0.08 * (weight - weight.mean()).norm()


@every_kind
@pytest.mark.parametrize("value", [0.0, 0.3, -2.0])
def test_a_weight_of_one_value_keeps_it(kind, value):
    weight = torch.full((16, 32), value)
    got = make_layer(kind, weight).dequantize(torch.float32)
    assert (got - weight).abs().max() <= 2**-8 * abs(value)


def test_8_bit_weights_are_within_half_a_step():
    torch.manual_seed(0)
    weight = torch.randn(32, 64)
    difference = make_layer(Int8WeightOnlyLinear, weight).dequantize(torch.float32) - weight
    step = weight.abs().amax(1, keepdim=True) / 127
    # The scale is rounded to bfloat16, so the largest weights may be further away.
    assert (difference.abs() <= step / 2 + 2**-8 * weight.abs()).all()


@pytest.mark.parametrize("quantization", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_a_base_is_quantised_as_it_is_loaded(tmp_path: Path, quantization, architecture):
    folder = make_base(tmp_path / "base", architecture, tie_word_embeddings=False)
    base, plain = (load_base(folder, quantization=one, device="cpu") for one in (quantization, None))
    assert (base.quantization, base.matmul_dtype) == (quantization, torch.bfloat16)
    layers = {
        name: layer for name, layer in base.model.named_modules() if isinstance(layer, WeightOnlyLinear)
    }
    linear = base.linear_layers
    assert layers.keys() == linear.shapes.keys() - {linear.head}
    for name, layer in layers.items():
        own = plain.model.get_submodule(name)
        weight = dequantize_module_weight(own)
        expected = make_layer(KINDS[quantization], weight).dequantize(torch.float32)
        assert torch.equal(dequantize_module_weight(layer), expected)
        assert (layer.bias is None) == (own.bias is None)
        assert layer.bias is None or torch.equal(layer.bias, own.bias)


def test_the_memory_of_weights(tmp_path: Path):
    """Of a linear layer: 4 bytes a weight; 1, and a scale for each output; 4 bits, and 2 x 16 for each group of 32."""
    folder = make_base(tmp_path / "base", "llama", tie_word_embeddings=False)
    bases = {one: load_base(folder, quantization=one, device="cpu") for one in (None, "nf4", *KINDS)}
    bytes_of = {name: base.weight_bytes for name, base in bases.items()}
    linear = bases[None].linear_layers
    shapes = [shape for name, shape in linear.shapes.items() if name != linear.head]
    weights, outputs = sum(n * k for n, k in shapes), sum(n for n, _ in shapes)
    assert bytes_of[None] - bytes_of["int4"] == weights * 4 - weights * 5 // 8
    assert bytes_of[None] - bytes_of["int8_weight_only"] == weights * 3 - outputs * 2
    assert bytes_of["int4"] > bytes_of["nf4"] > bytes_of["int4"] - weights // 8


def test_layers_of_other_sizes_stay_as_they_are(tmp_path: Path, caplog):
    folder = make_base(tmp_path / "base", "llama", intermediate_size=40)
    with caplog.at_level(logging.WARNING, "adapterhub"):
        base = load_base(folder, quantization="int4", device="cpu")
    kinds = {
        name.rpartition(".")[2]: type(base.model.get_submodule(name)) for name in base.linear_layers.shapes
    }
    assert kinds["q_proj"] is Int4Linear
    assert kinds["down_proj"] is kinds["up_proj"] is torch.nn.Linear
    assert "linear layers stay unquantised, such as model.layers.0.mlp.gate_proj" in caplog.text


def test_missing_weights_are_refused(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = make_base(tmp_path / "base", "llama")
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(
        ConfigError, match=r"lack 1 weights, such as 'model\.layers\.0\.mlp\.up_proj\.weight'"
    ):
        load_base(folder, quantization="int4", device="cpu")


@pytest.mark.parametrize("quantization", KINDS)
def test_it_is_refused_for_training(tiny_base: Path, quantization):
    with pytest.raises(ConfigError, match="No gradient flows") as refused:
        load_base(tiny_base, quantization=quantization, device="cpu", training=True)
    assert "'nf4'" in (refused.value.hint or "")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_dtype_that_was_asked_for_is_kept(tiny_base: Path, dtype):
    base = load_base(tiny_base, quantization="int4", compute_dtype=dtype, device="cpu")
    assert base.matmul_dtype == base.compute_dtype == getattr(torch, dtype)
    assert base.arithmetic[:2] == (
        f"activations in {dtype}",
        "layers of few bits are dequantised at every step",
    )


@pytest.mark.parametrize(
    ("device", "bf16", "capability", "training", "expected"),
    [
        ("cpu", True, "AVX512", False, "nf4"),
        ("cpu", False, "AVX512", False, "int4"),
        ("cpu", False, "AVX2", False, "int4"),
        ("cpu", False, "DEFAULT", False, "nf4"),
        ("cpu", False, "AVX2", True, "nf4"),
        ("cuda:0", False, "AVX2", False, "nf4"),
    ],
)
def test_auto_is_what_the_processor_multiplies_fast(
    monkeypatch, device, bf16, capability, training, expected
):
    monkeypatch.setattr(choosing, "has_avx512bf16", lambda: bf16)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    chosen = auto_quantization(device, training=training)
    assert chosen.quantization == expected
    assert chosen.reason


@pytest.mark.parametrize(("bf16", "expected"), [(True, "nf4"), (False, "int4")])
def test_auto_is_the_default(tiny_base: Path, monkeypatch, bf16, expected):
    monkeypatch.setattr(choosing, "has_avx512bf16", lambda: bf16)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert load_base(tiny_base, device="cpu").quantization == expected


def test_an_unknown_quantisation_is_refused(tiny_base: Path):
    with pytest.raises(ConfigError, match="There is no quantisation 'int3'") as refused:
        load_base(tiny_base, quantization="int3", device="cpu")
    assert "'int8_weight_only'" in (refused.value.hint or "")


def test_transposed_weights_are_found(tmp_path: Path):
    config = GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=320, n_positions=64)
    folder = make_base(tmp_path / "base", "gpt2", n_embd=config.n_embd)
    base = load_base(folder, quantization="int4", device="cpu")
    assert base.linear_layers.shapes["transformer.h.0.attn.c_attn"] == (192, 64)
