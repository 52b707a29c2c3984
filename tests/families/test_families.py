"""Every causal family is served as its row of docs/bases.md says, token by token; see `tests.families`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from adapterhub.base.loading import Base
from tests.families import comparing
from tests.families.configs import FAMILIES, NO_DECODERS
from tests.families.table import read_rows

# One of each kind of layer, cache, mask and adapter; the others are of a kind with one of these.
DEFAULT = [
    "llama",
    "mistral",
    "qwen3",
    "gemma2",
    "gemma3",
    "gemma3n_text",
    "gemma4_text",
    "phi3",
    "gpt2",
    "gpt_neox",
    "granite",
    "olmo2",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
    "llama4",
    "deepseek_v2",
    "deepseek_v3",
    "minicpm3",
    "qwen3_5",
    "qwen3_next",
    "lfm2",
    "granitemoehybrid",
    "falcon_h1",
    "mamba2",
    "nemotron_h",
    "jamba",
    "diffllama",
    "bloom",
    "falcon",
    "gptj",
    "gpt_neo",
    "stablelm",
    "rwkv",
    "recurrent_gemma",
    "openai-gpt",
    "modernbert-decoder",
    "minimax",
    "doge",
    "xlnet",
]


def test_every_causal_family_of_transformers_is_compared_or_said_to_be_no_decoder() -> None:
    assert FAMILIES.keys() >= set(DEFAULT)
    listed = Counter([*FAMILIES, *NO_DECODERS])
    assert listed == Counter(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys())


def test_every_family_has_a_row_and_at_least_55_are_served() -> None:
    rows = read_rows()
    assert rows.keys() == FAMILIES.keys()
    served = [row for row in rows.values() if row.served in ("packed", "row by row")]
    assert len(served) >= 55


@pytest.mark.filterwarnings("ignore")
def test_another_weight_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = comparing.load_base

    def load_changed(folder: Path, **settings: Any) -> Base:
        base = load(folder, **settings)
        base.model.model.layers[1].self_attn.k_proj.weight[3] += 0.05
        return base

    monkeypatch.setattr(comparing, "load_base", load_changed)
    with pytest.raises(comparing.WrongAnswerError):
        comparing.compare("llama", tmp_path)


@pytest.mark.parametrize(
    "family",
    [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
@pytest.mark.filterwarnings("ignore")
def test_a_family_is_served_as_its_row_says(family: str, tmp_path: Path) -> None:
    assert comparing.compare(family, tmp_path) == read_rows()[family]
