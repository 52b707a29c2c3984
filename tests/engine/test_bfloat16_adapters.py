"""Adapters that were stored in bfloat16, on a base in float32: kept so in memory, and PEFT's answers to the digit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapterhub.base.loading import load_base
from adapterhub.engine.batching import BatchingEngine, adapter_loader
from adapterhub.lora.delta import LoraDelta
from tests.engine.maker import Reference, make_adapters, prompt_of, request, sources_of

SETTINGS = {
    "exact": {"r": 4, "lora_alpha": 8},  # scaled by two
    "scaled": {"r": 4, "lora_alpha": 6},  # by 1.5, so that lora_B is in float32
    "dora": {"r": 4, "use_dora": True},
}
WANTED = {"exact": torch.bfloat16, "scaled": torch.float32, "dora": torch.bfloat16}


@pytest.fixture(scope="module")
def folders(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    settings = {name: {"target_modules": ["q_proj", "down_proj"], **one} for name, one in SETTINGS.items()}
    made = make_adapters(tmp_path_factory.mktemp("bfloat16"), tiny_base, settings)
    for folder in made.values():
        file = folder / "adapter_model.safetensors"
        save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    return made


@pytest.mark.parametrize("name", SETTINGS)
def test_an_adapter_is_held_in_bfloat16_where_that_is_exact(
    tiny_base: Path, folders: dict[str, Path], name: str
):
    load = adapter_loader(load_base(tiny_base, quantization=None, compute_dtype="float32", device="cpu"))
    for delta in load(sources_of(folders)[name]).values():
        assert isinstance(delta, LoraDelta)
        assert {delta.a.dtype, delta.b.dtype} == {WANTED[name]}
        assert delta.magnitude_scale is None or delta.magnitude_scale.dtype is torch.float32


def test_answers_are_pefts_whatever_the_stacks_hold(tiny_base: Path, folders: dict[str, Path]):
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    reference, sources = Reference(model, folders), sources_of(folders)
    base = load_base(tiny_base, quantization=None, compute_dtype="float32", device="cpu")
    engine = BatchingEngine(base)
    batches = (
        ["exact", "dora", None],
        ["exact", "scaled", "dora", None],
        ["exact"],
    )  # the second widens stacks
    for names in batches:
        prompts = [prompt_of(number, 40 if name == "dora" else 9) for number, name in enumerate(names)]
        answers = engine.generate(
            [
                request(prompt, name and sources[name], max_tokens=12)
                for name, prompt in zip(names, prompts, strict=True)
            ]
        )
        for name, prompt, (answer,) in zip(names, prompts, answers, strict=True):
            assert list(answer.token_ids) == reference.generate(name, prompt, 12)
    engine.close()
