"""The output layer reads its weight in half precision where that loses nothing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from adapterhub.base.half_weights import HalfWeightLinear, halve_head
from adapterhub.base.loading import load_base
from tests.tiny import make_base

pytestmark = pytest.mark.skipif(
    not {"fbgemm", "x86"} & set(torch.backends.quantized.supported_engines), reason="this torch has no FBGEMM"
)


class Model(nn.Module):
    """As much of a model as has an output layer, tied to its embedding."""

    def __init__(self, weight: torch.Tensor, *, bias: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(*weight.shape)
        self.head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
        self.head.weight = self.embedding.weight = nn.Parameter(weight, requires_grad=False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def stored_in(dtype: torch.dtype, rows: int = 4096, width: int = 257) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return (torch.randn(rows, width, generator=random) * 0.02).to(dtype).float()


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_the_product_is_that_of_float32(dtype: torch.dtype, bias: bool):
    model = Model(stored_in(dtype), bias=bias)
    right = nn.Linear.forward(model.head.double(), inputs(40, 257).double())
    model.float()
    assert halve_head(model)
    got = model.head(inputs(40, 257))
    assert got.dtype == torch.float32
    # Float32's own rounding of sums of 257 products is 2e-7 to 3e-7 of the deviation.
    assert float((got.double() - right).std() / right.std()) < 1e-6
    assert torch.equal(model.head(inputs(40, 257)[:1]), got[:1])
    assert model.head(inputs(2, 0, 257)).shape == (2, 0, 4096)
    torch.testing.assert_close(model.head(inputs(257)), model.head(inputs(1, 257))[0])


def test_gradients_of_inputs_are_those_of_a_plain_layer():
    model = Model(stored_in(torch.bfloat16))
    assert halve_head(model)
    x = inputs(3, 257).requires_grad_()
    model.head(x).sum().backward()
    torch.testing.assert_close(x.grad, model.head.weight.sum(0).expand(3, -1))


def test_a_weight_that_half_precision_does_not_hold_stays():
    fine = stored_in(torch.float32)
    large = stored_in(torch.bfloat16)
    large[4000, 3] = 1e5
    not_a_number = stored_in(torch.bfloat16)
    not_a_number[4000, 3] = torch.nan
    for weight in (
        fine,
        large,
        not_a_number,
        stored_in(torch.bfloat16, rows=64),
        stored_in(torch.bfloat16).bfloat16(),
    ):
        model = Model(weight)
        assert not halve_head(model)
        assert type(model.head) is nn.Linear


@torch.inference_mode()
def test_it_stays_tied_and_has_no_further_parameters():
    model = Model(stored_in(torch.bfloat16))
    before = [(name, id(one)) for name, one in model.named_parameters(remove_duplicate=False)]
    assert halve_head(model)
    assert [(name, id(one)) for name, one in model.named_parameters(remove_duplicate=False)] == before
    assert list(model.state_dict()) == ["embedding.weight", "head.weight"]
    copied = copy.deepcopy(model)
    assert copied.head.weight is copied.embedding.weight
    assert copied.head.weight is not model.head.weight


@torch.inference_mode()
def test_a_copy_with_another_weight_computes_with_that():
    model = Model(stored_in(torch.bfloat16))
    assert halve_head(model)
    x, other = inputs(3, 257), stored_in(torch.float32) + 1
    replaced = copy.copy(model.head)
    replaced._parameters = {**replaced._parameters, "weight": nn.Parameter(other, requires_grad=False)}
    assert torch.equal(replaced(x), x @ other.T)
    deep = copy.deepcopy(model.head)
    assert type(deep) is nn.Linear
    assert torch.equal(deep(x), x @ model.head.weight.T)


def test_other_dtypes_are_as_before():
    model = Model(stored_in(torch.bfloat16))
    assert halve_head(model)
    model.bfloat16()
    with torch.inference_mode():
        x = inputs(3, 257).bfloat16()
        assert torch.equal(model.head(x), nn.functional.linear(x, model.head.weight))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bases")
    return make_base(root / "wide", vocab_size=8192, hidden_size=128, dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_base_in_float32_has_it(folder: Path, dtype):
    base = load_base(folder, quantization=None, compute_dtype=dtype, device="cpu")
    head = base.model.get_output_embeddings()
    assert isinstance(head, HalfWeightLinear) == (dtype == "auto")
    plain = sum(parameter.nbytes for parameter in base.model.parameters())
    buffers = sum(buffer.nbytes for buffer in base.model.buffers())
    assert base.weight_bytes - plain - buffers == (2 * 8192 * 128 if dtype == "auto" else 0)
    assert any("half precision" in line for line in base.arithmetic) == (dtype == "auto")


def test_not_for_training(folder: Path):
    base = load_base(folder, quantization=None, compute_dtype="float32", device="cpu", training=True)
    assert type(base.model.get_output_embeddings()) is nn.Linear


@torch.inference_mode()
def test_logits_are_those_of_transformers_in_float32(folder: Path):
    base = load_base(folder, quantization=None, device="cpu")
    assert isinstance(base.model.get_output_embeddings(), HalfWeightLinear)
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(20, 60)[None]
    right = own(input_ids=ids).logits
    apart = (base.model(input_ids=ids).logits - right).std() / right.std()
    assert float(apart) < 1e-6
