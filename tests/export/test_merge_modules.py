"""Merging adapters that change embeddings, whole modules and rows of tokens: the merged model is what PEFT computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adapterhub.export import merge_adapter
from tests.engine.maker import prompt_of
from tests.tiny import ATTENTION, make_adapter, make_base

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

TOKENS = [7, 300, 12, 60]
IDS = [*TOKENS, *prompt_of(3, 20)]


def settings_of(kind: str) -> dict[str, dict[str, Any]]:
    attention, embedding = ATTENTION[kind], "wte" if kind == "gpt2" else "embed_tokens"
    norm, layer = ("ln_f", "c_fc") if kind == "gpt2" else ("norm", "up_proj")
    return {
        "embedding": {"target_modules": [*attention, embedding]},
        "embedding-and-head": {"target_modules": [embedding, "lm_head"]},
        "saved-head": {"modules_to_save": ["lm_head"]},
        "saved-embedding": {"modules_to_save": [embedding], "use_dora": True},
        "saved-tied": {"modules_to_save": [embedding], "ensure_weight_tying": True},
        "saved-norms-and-layers": {"modules_to_save": [norm, layer]},
        "tokens": {"trainable_token_indices": TOKENS},
        "tokens-of-head": {"trainable_token_indices": {embedding: TOKENS, "lm_head": [5, 3]}},
    }


STAY_TIED = {"saved-norms-and-layers", "tokens"}
DEFAULT = {
    "gemma3": {"embedding", "tokens"},
    "llama": {"saved-head"},
}  # gpt2: tied, and its layers are Conv1D
CASES = [
    pytest.param(kind, name, marks=[] if name in DEFAULT.get(kind, {name}) else pytest.mark.slow)
    for kind in ("llama", "gpt2", "gemma3")
    for name in settings_of(kind)
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {kind: make_base(root / kind, kind) for kind in ("llama", "gpt2", "gemma3")}


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=torch.tensor([IDS])).logits[0]


def pefts(base: Path, adapter: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return logits(PeftModel.from_pretrained(model, adapter))


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_merged_model_computes_what_peft_computes(
    bases: dict[str, Path], tmp_path: Path, kind: str, name: str
):
    adapter = make_adapter(tmp_path / "a", bases[kind], **settings_of(kind)[name])
    report = merge_adapter(bases[kind], adapter, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    wanted = pefts(bases[kind], adapter)
    assert (logits(merged) - wanted).abs().max() < 2e-5 * wanted.abs().max()
    tied = kind != "llama" and name in STAY_TIED
    assert bool(report.untied) == (kind != "llama" and not tied)
    assert (merged.get_input_embeddings().weight is merged.get_output_embeddings().weight) == tied
    assert report.verification
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert config.get("tie_word_embeddings", True) is not False or not tied
