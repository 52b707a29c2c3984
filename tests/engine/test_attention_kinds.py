"""Models whose attention is of an unusual kind, in packed steps against transformers' own `generate`."""

from __future__ import annotations

from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from adapterhub.base.loading import load_base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.kv import packed_step
from adapterhub.engine.kv.prefix_cache import BLOCK_SIZE
from adapterhub.engine.kv.shape import LayerShape
from adapterhub.engine.runner import ScheduledSequence
from adapterhub.engine.runners.packed import PackedRunner
from adapterhub.errors import EngineError
from tests.engine.maker import prompt_of, request, tokens
from tests.tiny import VOCABULARY as TOKENIZER_VOCABULARY
from tests.tiny import make_tokenizer

VOCABULARY, DECODED, CHUNK = 96, 16, 7
PLAIN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
WIDE = PLAIN | {"head_dim": 8}
WINDOWS = WIDE | {"num_hidden_layers": 4, "sliding_window": 6}
CAPPED = WINDOWS | {
    "query_pre_attn_scalar": 8,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 5.0,
}
LATENT = PLAIN | {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
SHARING = WIDE | {
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 3,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
}
KINDS: dict[str, dict[str, Any]] = {
    # Its decoder layers hand no keyword arguments to the attention.
    "stablelm": PLAIN,
    "nemotron": PLAIN,
    "gemma2": CAPPED,
    "vaultgemma": CAPPED,
    "gpt_oss": WINDOWS | {"num_local_experts": 4, "num_experts_per_tok": 2},
    # Values are narrower than keys.
    "deepseek_v3": LATENT,
    "deepseek_v2": LATENT | {"head_dim": 4, "topk_method": "greedy"},
    # Full layers have wider heads, and the last three layers no keys and values of their own.
    "gemma4_text": SHARING | {"global_head_dim": 16, "num_global_key_value_heads": 1},
    "gemma3n_text": SHARING
    | {
        "laurel_rank": 4,
        "altup_num_inputs": 2,
        "intermediate_size": [48] * 6,
        "activation_sparsity_pattern": [0.0] * 6,
    },
    # Tokens attend to those of their chunk.
    "llama4_text": WIDE
    | {
        "num_hidden_layers": 4,
        "attention_chunk_size": 8,
        "no_rope_layers": [1, 1, 1, 0],
        "num_local_experts": 2,
        "intermediate_size_mlp": 48,
    },
    # Calls its attention twice in each layer.
    "diffllama": PLAIN,
}


def make_model(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**KINDS[kind], **changes})).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or "sinks" in name:  # large enough that greedy tokens vary
            torch.nn.init.normal_(parameter, std=0.25 if parameter.dim() > 1 else 1.0)
    model.generation_config.eos_token_id = None
    return model.requires_grad_(False)


def base_of(model: Any) -> Any:
    dtypes = {"compute_dtype": torch.float32, "matmul_dtype": torch.float32}
    return SimpleNamespace(model=model, device=torch.device("cpu"), **dtypes)


def prompts() -> list[list[int]]:
    random = torch.Generator().manual_seed(3)
    return [torch.randint(2, VOCABULARY, (length,), generator=random).tolist() for length in (1, 11, 30)]


def packed_logits(runner: PackedRunner, answers: list[list[int]]) -> list[torch.Tensor]:
    """The logits of given answers: prompts join step by step, in chunks, while others decode."""
    cache, _ = runner.make_caches(1 << 22)
    slots = [cache.allocate(64) for _ in answers]
    logits: list[list[torch.Tensor]] = [[] for _ in answers]
    step = 0
    while active := [i for i in range(len(answers)) if i <= step and len(logits[i]) < DECODED]:
        batch = []
        for i in active:
            done, prompt = slots[i].length, prompts()[i]
            new = prompt[done : done + CHUNK] or [answers[i][done - len(prompt)]]
            batch.append(ScheduledSequence(slots[i], new, None, done + len(new) >= len(prompt)))
        rows = iter(runner.step(batch).clone())
        for i, given in zip(active, batch, strict=True):
            if given.needs_logits:
                logits[i].append(next(rows))
        step += 1
    return [torch.stack(one) for one in logits]


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_batch_computes_what_generate_does(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packed_step, "_MAX_SCORES", 4 * 20)  # a chunk's scores are computed in parts
    model = make_model(kind)
    expected = [
        model.generate(
            torch.tensor([prompt]),
            max_new_tokens=DECODED,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        for prompt in prompts()
    ]
    answers = [
        one.sequences[0, len(prompt) :].tolist() for one, prompt in zip(expected, prompts(), strict=True)
    ]
    got = packed_logits(PackedRunner(base_of(model), max_loras=1), answers)
    for own, one, answer in zip(got, expected, answers, strict=True):
        assert torch.allclose(own, torch.cat(one.logits), atol=1e-4)
        assert own.argmax(dim=-1).tolist() == answer


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("deepseek_v3", [LayerShape(4, 12, 6)] * 2),
        ("gemma4_text", [LayerShape(2, 8, 8)] * 2 + [LayerShape(1, 16, 16)]),
        ("gemma3n_text", [LayerShape(2, 8, 8)] * 3),
        ("diffllama", [LayerShape(2, 8, 8)] * 4),
    ],
)
def test_the_shape_of_keys_and_values_is_found_layer_by_layer(kind: str, layers: list[LayerShape]):
    changes = {"attention_k_eq_v": True} if kind == "gemma4_text" else {}
    runner = PackedRunner(base_of(make_model(kind, **changes)), max_loras=1)
    assert list(runner.kv_shape.layers) == layers


@pytest.mark.parametrize("kind", ["gemma4_text", "deepseek_v3", "gpt_oss"])
def test_a_prompt_is_continued_from_its_cached_keys_and_values(tmp_path, kind: str):
    model = make_model(kind, vocab_size=TOKENIZER_VOCABULARY, vocab_size_per_layer_input=TOKENIZER_VOCABULARY)
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    prompt = prompt_of(0, 3 * BLOCK_SIZE)
    expected = model.generate(
        torch.tensor([prompt]), max_new_tokens=DECODED, do_sample=False, pad_token_id=0
    )[0, len(prompt) :].tolist()
    base = load_base(tmp_path, quantization=None, compute_dtype="float32")
    with closing(BatchingEngine(base, EngineLimits(kv_cache_mib=16))) as engine:
        for cached in (0, 2 * BLOCK_SIZE):
            assert tokens(engine, request(prompt, max_tokens=DECODED)) == expected
            assert engine.stats().prefix_cache_hit_tokens == cached


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mpt": (
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4},
        "only 0 of its 2 attention layers go through transformers'",
    ),
    "doge": (PLAIN | {"keep_window_size": 8}, "its masks are of its own kind"),
    "moshi": (
        PLAIN | {"ffn_dim": 64, "sliding_window": 6, "num_codebooks": 2, "audio_vocab_size": 32},
        "after the prompt, which attends to all of its tokens, the last 6 are left",
    ),
    "deepseek_v4": (
        WINDOWS
        | {
            "layer_types": ["sliding_attention", "compressed_sparse_attention"] * 2,
            "q_lora_rank": 16,
            "o_lora_rank": 8,
            "o_groups": 2,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_topk": 4,
            "partial_rotary_factor": 0.5,
        },
        "it keeps more than keys and values",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_model_has_its_attention_back(kind: str):
    settings, reason = REFUSED[kind]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval()
    prompt = torch.tensor([[5, 6, 7]])
    before = model(prompt).logits
    with pytest.raises(EngineError, match=reason):
        PackedRunner(base_of(model), max_loras=1)
    assert torch.equal(model(prompt).logits, before)
