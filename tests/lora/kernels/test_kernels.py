"""LoRA's products, by every implementation that works here, against float64 and PEFT."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import nn

from adapterhub.errors import ConfigError
from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.kernels.choosing import choose_kernels, compiled_library, describe_kernels
from adapterhub.lora.kernels.cpu import CpuKernels
from adapterhub.lora.kernels.interface import LoraStack, MakeKernels
from adapterhub.lora.kernels.torch_ops import TorchOps
from adapterhub.lora.mapping import LoraMapping, OneAdapterMapping
from adapterhub.lora.stacked_weights import StackedLoraWeights

CPU = torch.device("cpu")
SLOTS = 5
LIBRARY, WHY_NOT = compiled_library()
DTYPES = [torch.float32, torch.bfloat16]
needs_library = pytest.mark.skipif(LIBRARY is None, reason=f"no compiled kernels: {WHY_NOT}")

runs = st.lists(
    st.tuples(st.integers(0, SLOTS - 1), st.integers(1, 9)), min_size=1, unique_by=lambda run: run[0]
)


def compiled() -> MakeKernels:
    assert LIBRARY is not None
    return partial(CpuKernels, LIBRARY)


def make_stack(width: int, outs: dict[str, int], rank: int, dtype: torch.dtype, seed: int = 0) -> LoraStack:
    """Random factors in the layout of `StackedLoraWeights`."""
    random = torch.Generator().manual_seed(seed)
    a = torch.randn(SLOTS, len(outs) * rank, width, generator=random).to(dtype)
    b = {name: torch.randn(SLOTS, rank, out, generator=random).to(dtype) for name, out in outs.items()}
    return LoraStack(a.transpose(1, 2), b, {name: index * rank for index, name in enumerate(outs)}, rank)


def product(stack: LoraStack, layer: str, x: torch.Tensor, slots: list[int | None]) -> torch.Tensor:
    """What is added, token by token in float64."""
    columns = slice(stack.columns[layer], stack.columns[layer] + stack.rank)
    a, b = stack.lora_a[:, :, columns].double(), stack.lora_b[layer].double()
    rows = [
        torch.zeros(b.shape[2]).double() if slot is None else token.double() @ a[slot] @ b[slot]
        for token, slot in zip(x, slots, strict=True)
    ]
    return torch.stack(rows)


@needs_library
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(
    runs=runs.map(sorted),
    base=st.integers(0, 3),
    width=st.integers(1, 70),
    out=st.integers(1, 150),
    rank=st.integers(1, 9),
    gap=st.integers(0, 3),
)
def test_sums_are_those_of_float64_rounded_once(dtype, runs, base, width, out, rank, gap):
    stack = make_stack(width, {"other": 3, "layer": out}, rank, dtype)
    slots = [None] * base + [slot for slot, count in runs for _ in range(count)]
    random = torch.Generator().manual_seed(1)
    x = torch.randn(len(slots), width, generator=random).to(dtype)
    # The rows of the output lie in a wider tensor, as those of one of several layers that are computed together.
    around = torch.randn(len(slots), out + 2 * gap, generator=random).to(dtype)
    y, before = around[:, gap : gap + out], around.clone()
    compiled()(stack).add_lora("layer", x, y, LoraMapping(runs, num_base_tokens=base))
    added = product(stack, "layer", x, slots)
    exact = before[:, gap : gap + out].double() + added
    rounding = torch.finfo(dtype).eps / 2 * exact.abs() if dtype is torch.bfloat16 else 0
    terms = product(
        LoraStack(
            stack.lora_a.abs(), {name: b.abs() for name, b in stack.lora_b.items()}, stack.columns, rank
        ),
        "layer", x.abs(), slots,
    )  # fmt: skip
    assert ((y.double() - exact).abs() <= rounding + 1e-5 * (terms + exact.abs())).all()
    assert torch.equal(around[:base], before[:base]), "the base's tokens are not touched"
    assert torch.equal(around[:, :gap], before[:, :gap])
    assert torch.equal(around[:, gap + out :], before[:, gap + out :])


@needs_library
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_is_computed_alike_in_any_company(dtype):
    stack = make_stack(45, {"layer": 83}, 6, dtype)
    counts = [(0, 1), (1, 3), (2, 4), (4, 7)]
    tokens = sum(count for _, count in counts)
    x, y = torch.randn(tokens, 45).to(dtype), torch.randn(tokens, 83).to(dtype)
    together = y.clone()
    kernels = compiled()(stack)
    kernels.add_lora("layer", x, together, LoraMapping(counts))
    for position, slot in enumerate(slot for slot, count in counts for _ in range(count)):
        alone = y[position : position + 1].clone()
        kernels.add_lora("layer", x[position : position + 1], alone, LoraMapping([(slot, 1)]))
        assert torch.equal(alone[0], together[position])


@needs_library
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_do_not_change_the_sums(dtype, monkeypatch):
    monkeypatch.setattr("adapterhub.lora.kernels.cpu._MIN_PARALLEL_WORK", 1)
    stack = make_stack(40, {"layer": 200}, 11, dtype)
    counts = [(0, 1), (1, 6), (3, 2)]
    x, y = torch.randn(9, 40).to(dtype), torch.randn(9, 200).to(dtype)
    before, outputs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            outputs.append(y.clone())
            compiled()(stack).add_lora("layer", x, outputs[-1], LoraMapping(counts))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    assert not torch.equal(outputs[0], y)


@needs_library
def test_a_call_has_all_of_torchs_threads_or_one(monkeypatch):
    """A team between would make OpenMP end and start threads at every layer."""
    kernels = compiled()(make_stack(1000, {"layer": 1000}, 8, torch.float32))
    teams = []
    note = {torch.float32: lambda *arguments: teams.append(arguments[-1])}
    monkeypatch.setattr(kernels, "_functions", note)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        for tokens in (1, 8, 12, 32):
            x, y = torch.zeros(tokens, 1000), torch.zeros(tokens, 1000)
            kernels.add_lora("layer", x, y, LoraMapping([(0, tokens)]))
    finally:
        torch.set_num_threads(before)
    assert teams == [1, 1, 5, 5]


def inputs() -> dict[str, torch.Tensor]:
    """Five tokens of 12 features in every layout that a model may hand over."""
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    return {
        "rows": x,
        "a batch": x[None],
        "rows of a wider tensor": torch.cat([x, x], 1)[:, :12],
        "every second feature": x.repeat_interleave(2, 1)[:, ::2],
        "columns": x.T.contiguous().T,
        "one row, expanded": x[:1].expand(5, 12),
        "sequences apart": torch.stack([x, x], 1)[None, :, 0],
    }


@pytest.mark.parametrize("kind", inputs())
@pytest.mark.parametrize(
    "make", [TorchOps, pytest.param(None, marks=needs_library)], ids=["torch", "compiled"]
)
def test_inputs_of_any_layout(make, kind: str):
    stack, x = make_stack(12, {"layer": 7}, 3, torch.float32), inputs()[kind]
    y = torch.zeros(5, 7)
    (make or compiled())(stack).add_lora("layer", x, y, LoraMapping([(1, 2), (3, 2)], num_base_tokens=1))
    assert torch.allclose(
        y.double(), product(stack, "layer", x.reshape(5, 12), [None, 1, 1, 3, 3]), atol=1e-4
    )


@needs_library
def test_values_that_are_no_numbers_stay_so():
    stack = make_stack(3, {"layer": 40}, 2, torch.bfloat16)
    y = torch.ones(3, 40, dtype=torch.bfloat16)
    y[0, 5], y[1, 39], y[2, 7] = torch.nan, torch.inf, -torch.inf
    y.view(torch.int16)[0, 6] = 0x7FFF  # all bits of a NaN's payload: rounding must not carry into the sign
    compiled()(stack).add_lora("layer", torch.zeros(3, 3, dtype=torch.bfloat16), y, LoraMapping([(0, 3)]))
    assert y.isnan().nonzero().tolist() == [[0, 5], [0, 6]]
    assert (y[1, 39], y[2, 7]) == (torch.inf, -torch.inf)


@needs_library
def test_one_adapter_for_as_many_tokens_as_a_layer_gets():
    stack, mapping = make_stack(6, {"layer": 9}, 2, torch.float32), OneAdapterMapping(2)
    kernels = compiled()(stack)
    for tokens in (1, 4, 2, 100):
        x, y = torch.randn(tokens, 6), torch.zeros(tokens, 9)
        kernels.add_lora("layer", x, y, mapping)
        assert torch.allclose(y.double(), product(stack, "layer", x, [2] * tokens), atol=1e-4)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_other_dtypes_are_computed_by_torch(dtype):
    stack = make_stack(6, {"layer": 9}, 2, dtype)
    x, y = torch.randn(3, 6).to(dtype), torch.zeros(3, 9, dtype=dtype)
    compiled()(stack).add_lora("layer", x, y, LoraMapping([(1, 3)]))
    assert torch.allclose(y.double(), product(stack, "layer", x, [1] * 3), rtol=0.02, atol=0.02)


@needs_library
@pytest.mark.parametrize(
    ("x", "y", "runs"),
    [
        (torch.zeros(2, 7), torch.zeros(2, 9), [(0, 2)]),
        (torch.zeros(3, 6), torch.zeros(2, 9), [(0, 2)]),
        (torch.zeros(2, 6), torch.zeros(2, 8), [(0, 2)]),
        (torch.zeros(2, 6), torch.zeros(9, 2).T, [(0, 2)]),
        (torch.zeros(2, 6), torch.zeros(2, 9), [(0, 3)]),
        (torch.zeros(2, 6), torch.zeros(2, 9), [(SLOTS, 2)]),
    ],
    ids=["x too wide", "x too long", "y too narrow", "y in columns", "more runs than tokens", "no such slot"],
)
def test_nothing_is_read_or_written_outside_of_tensors(x, y, runs):
    kernels = compiled()(make_stack(6, {"layer": 9}, 2, torch.float32))
    with pytest.raises(ValueError, match="layer"):
        kernels.add_lora("layer", x, y, LoraMapping(runs))
    assert not y.any()


@needs_library
def test_gradients_flow_where_they_are_asked_for():
    stack = make_stack(6, {"layer": 9}, 2, torch.float32)
    x, weight = torch.randn(2, 6), torch.randn(6, 9, requires_grad=True)
    y = x @ weight
    compiled()(stack).add_lora("layer", x, y, LoraMapping([(0, 2)]))
    y.sum().backward()
    assert weight.grad is not None
    assert torch.allclose(y.double(), (x @ weight).double() + product(stack, "layer", x, [0, 0]), atol=1e-4)


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("rank", [1, 8, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_farther_from_float64_than_peft(dtype, rank: int, use_dora: bool):
    torch.manual_seed(0)
    layer = nn.Linear(96, 80).to(dtype)
    x = torch.randn(3, 96).to(dtype)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, use_dora=use_dora, init_lora_weights=False)
    reference = Linear(layer, "default", config=config, r=rank, lora_alpha=2 * rank, use_dora=use_dora,
                       init_lora_weights=False)  # fmt: skip
    reference = reference.to(dtype).eval()
    a, b = reference.lora_A["default"].weight.detach(), 2 * reference.lora_B["default"].weight.detach()
    scale = None
    adapted = layer.weight.double() + b.double() @ a.double()
    if use_dora:
        magnitude = reference.lora_magnitude_vector["default"].weight.detach()
        scale = (magnitude.double() / adapted.norm(dim=1)).to(dtype)
        adapted = adapted * scale.double()[:, None]
    exact = x.double() @ adapted.T + layer.bias.double()
    weights = StackedLoraWeights(2, 96, dtype, CPU)
    weights.load(1, {"layer": LoraDelta(a, b, scale)})
    with torch.inference_mode():
        ours = weights.apply("layer", x, layer(x), layer.bias, LoraMapping([(1, 3)]))
        pefts = reference(x)
    allowed = 1e-4 if dtype is torch.float32 else 1.2 * (pefts.double() - exact).pow(2).mean().sqrt()
    assert (ours.double() - exact).pow(2).mean().sqrt() <= allowed


@needs_library
def test_the_compiled_ones_are_chosen_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    assert choose_kernels(CPU)(make_stack(2, {"layer": 2}, 1, torch.float32)).name == "c++"
    assert describe_kernels(CPU).startswith("compiled, ")
    monkeypatch.setenv("ADAPTERHUB_LORA_KERNELS", "torch")
    assert choose_kernels(CPU) is TorchOps
    assert describe_kernels(CPU) == "torch"


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ADAPTERHUB_LORA_KERNELS", "cuda")
    with pytest.raises(ConfigError, match="cuda"):
        choose_kernels(CPU)


IMPLEMENTATIONS = [
    pytest.param(lambda: TorchOps, id="torch"),
    pytest.param(compiled, id="compiled", marks=needs_library),
]


@pytest.mark.parametrize("make", IMPLEMENTATIONS)
@pytest.mark.parametrize("runs", [[(0, 1), (2, 5), (4, 2)], [(1, 2), (2, 2)], [(3, 40)], [(3, 1)]], ids=str)
@pytest.mark.parametrize("by_token", [False, True])
def test_factors_in_bfloat16_are_what_they_are_in_float32(make, runs, by_token):
    """In compiled code to the bit: an adapter's sums do not tell how its stack is kept."""
    narrow = make_stack(45, {"layer": 83, "other": 70}, 11, torch.bfloat16)
    wide = LoraStack(
        narrow.lora_a.float(), {name: b.float() for name, b in narrow.lora_b.items()}, narrow.columns, 11,
        ranks := {("layer", slot): 11 for slot in range(SLOTS)},
    )  # fmt: skip
    narrow = LoraStack(narrow.lora_a, narrow.lora_b, narrow.columns, 11, ranks)
    slots = [slot for slot, count in runs for _ in range(count)]
    mapping = LoraMapping.of_tokens(slots) if by_token else LoraMapping(runs)
    x, y = torch.randn(len(slots), 45), torch.randn(len(slots), 83)
    outputs = [y.clone(), y.clone()]
    for stack, output in zip((narrow, wide), outputs, strict=True):
        make()(stack).add_lora("layer", x, output, mapping)
    for output in outputs:
        assert torch.allclose(output.double(), y.double() + product(wide, "layer", x, slots), atol=1e-3)
    if make is compiled and (by_token or len(slots) <= 32):  # torch's products depend on addresses too
        assert torch.equal(*outputs)
