"""vLLM's own check of an adapter's config says what the matrix says; needs an environment with vLLM."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from adapterhub.capabilities import MATRIX, VLLM_MAX_LORA_RANKS, Backend, Feature
from tests.capabilities.test_matrix import ADAPTERS, CONFIGS

VLLM = os.environ.get("ADAPTERHUB_TEST_VLLM", "")  # the command `vllm`; fixtures clear the variable
# What this check does not see: it is in the tensors only, or vLLM does not read the field.
NOT_IN_ITS_CHECK = {
    Feature.COPIED_WEIGHTS,
    Feature.EMBEDDINGS,
    Feature.TRAINABLE_TOKENS,
    Feature.TARGET_PARAMETERS,
    Feature.EXPERTS,
    Feature.ARROW,
    Feature.KASA,
    Feature.MONTECLORA,
    Feature.OTHER_METHOD,
    Feature.OTHER_TASK,
}
CHECK = """
import json, sys, typing
from vllm.config.lora import LoRAConfig, MaxLoRARanks
from vllm.lora.peft_helper import PEFTHelper
refused = {}
for name, config in json.load(sys.stdin).items():
    try:
        PEFTHelper.from_dict(config).validate_legal(LoRAConfig(max_lora_rank=8))
        refused[name] = None
    except ValueError as error:
        refused[name] = str(error)
print(json.dumps([refused, typing.get_args(MaxLoRARanks)]))
"""


@pytest.mark.slow  # imports vLLM
@pytest.mark.skipif(not VLLM, reason="needs ADAPTERHUB_TEST_VLLM, the path of a vllm command")
def test_its_check_agrees_with_the_matrix():
    plain = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}
    settings: dict[Feature, dict[str, Any]] = {
        **CONFIGS,
        **{one: more for one, (_, more) in ADAPTERS.items()},
    }
    configs = {str(feature): {**plain, **more} for feature, more in settings.items()}
    configs |= {
        "plain": plain,
        "rank": {**plain, "r": 9},
        "pattern": {**plain, "rank_pattern": {"q_proj": 9}},
    }
    done = subprocess.run(
        [Path(VLLM).with_name("python"), "-c", CHECK],
        input=json.dumps(configs),
        capture_output=True,
        text=True,
        check=True,
    )
    refused, ranks = json.loads(done.stdout.splitlines()[-1])
    assert tuple(ranks) == VLLM_MAX_LORA_RANKS
    assert refused["plain"] is None
    assert "rank 9 is greater" in refused["rank"]
    assert "rank 9 is greater" in refused["pattern"]
    for feature in set(Feature) - NOT_IN_ITS_CHECK:
        assert (refused[feature] is None) is MATRIX[feature][Backend.VLLM].runs, (feature, refused[feature])
    unseen = NOT_IN_ITS_CHECK - {Feature.COPIED_WEIGHTS}  # whose config trains biases
    assert [feature for feature in unseen if refused[feature]] == []  # it would load these
