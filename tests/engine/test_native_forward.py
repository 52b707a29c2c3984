"""The written-out forward pass: which models get it, and that it computes what transformers does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from adapterhub.engine.models.norms import Norms, norm_scale
from adapterhub.engine.runner import ScheduledSequence
from adapterhub.engine.runners.packed import PackedRunner
from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.module_deltas import SavedModuleDelta
from tests.tiny import SIZES, VOCABULARY

SHORT_WINDOW = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
HEADS = {"head_dim": 16}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
NATIVE: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "llama with scaled rotation": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "mistral": {"sliding_window": 6},
    "qwen2": {},
    "qwen3": HEADS,
    "smollm3": {"no_rope_layers": [1, 0]},
    "gemma": HEADS,
    "gemma2": HEADS | SHORT_WINDOW | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
    "gemma3_text": HEADS | SHORT_WINDOW,
}
"""Models of Llama's structure."""
OTHERS: dict[str, dict[str, Any]] = {
    "granite": {"residual_multiplier": 0.9},
    "granite with scaled embeddings": {"embedding_multiplier": 3.0},
    "cohere": {},
    "glm": HEADS,
    "mixtral": {"num_local_experts": 2},
    "phi3": {},
    "stablelm": {},
}
PROMPTS = ([5, 9, 17, 30, 2, 77, 41, 8, 100], [7, 3, 200])
DECODED = 6


def make_model(family: str, changes: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family.partition(" ")[0], **{**SIZES, **SPECIAL, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        # Factors of norms that are no ones, and biases that are no zeros.
        torch.nn.init.normal_(parameter, mean=0.3 if "norm" in name else 0.0, std=0.25)
    model.generation_config.eos_token_id = None
    return model.requires_grad_(False).to(dtype)


def runner_of(model: Any, *, native: bool = True) -> PackedRunner:
    dtypes = {"compute_dtype": model.dtype, "matmul_dtype": model.dtype}
    return PackedRunner(
        SimpleNamespace(model=model, device=model.device, **dtypes), max_loras=2, native=native
    )


def generated(model: Any, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    """The tokens and their logits that `generate` continues a prompt with."""
    out = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=DECODED,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits)


@pytest.mark.parametrize("family", NATIVE)
def test_it_continues_prompts_side_by_side_as_generate_does(family: str):
    model = make_model(family, NATIVE[family])
    wanted = [generated(model, prompt) for prompt in PROMPTS]
    runner = runner_of(model)
    assert runner.forward == "native"
    cache, _ = runner.make_caches(1 << 20)
    slots = [cache.allocate(64) for _ in PROMPTS]
    next_tokens = [list(prompt) for prompt in PROMPTS]
    for step in range(DECODED):
        sequences = zip(slots, next_tokens, strict=True)
        logits = runner.step(
            [ScheduledSequence(slot, ids, None, needs_logits=True) for slot, ids in sequences]
        )
        for row, (tokens, of_generate) in zip(logits, wanted, strict=True):
            torch.testing.assert_close(row, of_generate[step], atol=2e-4, rtol=1e-4)
            assert int(row.argmax()) == tokens[step]
        next_tokens = [[tokens[step]] for tokens, _ in wanted]


@pytest.mark.parametrize("family", OTHERS)
def test_a_model_that_uses_its_modules_otherwise_is_left_to_transformers(family: str):
    assert runner_of(make_model(family, OTHERS[family])).forward == "transformers"


def test_products_in_bfloat16_hide_no_layer_that_is_computed_otherwise():
    """4-bit weights that are multiplied in bfloat16, between activations in float32."""
    model = make_model("granite", {"residual_multiplier": 0.98})
    base = SimpleNamespace(
        model=model, device=model.device, compute_dtype=torch.float32, matmul_dtype=torch.bfloat16
    )
    assert PackedRunner(base, max_loras=1).forward == "transformers"


@pytest.mark.parametrize("where", ["model.layers.1", "model.layers.0.mlp.up_proj", "lm_head"])
def test_a_model_with_hooks_is_left_to_transformers(where: str):
    model = make_model("llama", {})
    model.get_submodule(where).register_forward_hook(lambda module, inputs, output: output)
    assert runner_of(model).forward == "transformers"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_has_it(dtype: torch.dtype):
    assert runner_of(make_model("llama", {}, dtype)).forward == "native"


def logits_of(runner: PackedRunner, lora_slot: int | None) -> torch.Tensor:
    cache, _ = runner.make_caches(1 << 20)
    return runner.step([ScheduledSequence(cache.allocate(32), PROMPTS[0], lora_slot, needs_logits=True)])


def test_modules_that_are_wrapped_later_are_found():
    """A linear layer, a norm of heads, a norm before a layer and the last one, each replaced in one slot only."""
    model, names = make_model("qwen3", HEADS), ("model.layers.1.self_attn.q_norm", "model.norm")
    random = torch.Generator().manual_seed(1)
    changed = {
        name: SavedModuleDelta(
            {"weight": torch.rand(model.get_submodule(name).weight.shape, generator=random)}
        )
        for name in (*names, "model.layers.1.input_layernorm")
    }
    lora = {
        "model.layers.0.mlp.down_proj": LoraDelta(
            torch.randn(2, 128, generator=random), torch.randn(64, 2, generator=random)
        )
    }
    found = {}
    for native in (True, False):
        runner = runner_of(model, native=native)
        before = logits_of(runner, None)
        runner.load_adapter(0, lora)
        runner.load_adapter(1, changed)
        found[native] = [logits_of(runner, slot) for slot in (None, 0, 1)]
        assert torch.equal(found[native][0], before)
        runner.release()
    for got, wanted in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    base, adapted, replaced = found[True]
    assert (adapted - base).abs().max() > 0.1
    assert (replaced - base).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_a_norm_is_rounded_no_worse_than_the_models_own(family: str, dtype: torch.dtype):
    module = make_model(family, NATIVE[family], dtype).model.norm
    scale = norm_scale(module)
    assert scale
    for size in (1e-3, 1.0, 300.0):
        x = (torch.randn(5, 64, generator=torch.Generator().manual_seed(2)) * size).to(dtype)
        wide, epsilon = x.double(), scale[1]
        exact = wide / (wide.square().mean(-1, keepdim=True) + epsilon).sqrt() * scale[0]
        own, lean = (
            float((one(x).double() - exact).norm() / exact.norm()) for one in (module, Norms()(module))
        )
        assert lean <= max(1.05 * own, 2 * torch.finfo(torch.float32).eps)


def test_a_norm_of_another_kind_is_its_own():
    module = torch.nn.LayerNorm(16)
    assert norm_scale(module) is None
    x = torch.randn(3, 16)
    assert torch.equal(Norms()(module)(x), module(x))


def test_tokens_are_those_of_the_vocabulary():
    assert max(max(prompt) for prompt in PROMPTS) < VOCABULARY
