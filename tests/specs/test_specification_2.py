"""Specification 2: a small base learns Russian jokes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from tests.tiny import make_tokenizer

SYSTEM = "Ты ассистент, который рассказывает короткие смешные анекдоты на русском языке."
PROMPTS = [
    f"Расскажи анекдот про {theme}!"
    for theme in ("студентов", "программистов", "математику", "футбол", "Ленина")
]


@pytest.mark.spec("2-F4", "2-I1")
@pytest.mark.parametrize("prompt", PROMPTS[:2])
def test_chat_generation_is_that_of_transformers(tiny_base: Path, tmp_path: Path, prompt: str):
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        outputs = model.generate(
            **tokens,
            max_new_tokens=12,
            repetition_penalty=1.1,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
    wanted = tokenizer.decode(outputs[0, tokens.input_ids.shape[1] :], skip_special_tokens=True)
    with AdapterHub.from_pretrained(tiny_base, tmp_path, quantization=None) as hub:
        answer = hub.generate(messages, None, temperature=0, repetition_penalty=1.1, max_tokens=12)
    assert answer.text == wanted


@pytest.mark.spec("2-I1")
def test_the_specification_s_sampling_repeats_with_its_seed(tiny_base: Path, tmp_path: Path):
    settings = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 20, "repetition_penalty": 1.1}
    with AdapterHub.from_pretrained(tiny_base, tmp_path, quantization=None) as hub:
        first, again, other = (
            hub.generate(PROMPTS[0], None, seed=seed, **settings).text for seed in (1, 1, 2)
        )
    assert first == again != other


@pytest.mark.spec("2-F2")
def test_a_base_without_a_pad_token_trains_in_padded_batches(tiny_base: Path, tmp_path: Path):
    import json

    from adapterhub.training import FinetuneConfig, finetune

    assert make_tokenizer().pad_token is None
    (tmp_path / "jokes.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": prompt},
                        {"role": "assistant", "content": "ха" * length},
                    ]
                }
            )
            + "\n"
            for length, prompt in enumerate(PROMPTS, start=1)
        )
    )
    config = FinetuneConfig.model_validate(
        {
            "name": "jokes", "base": str(tiny_base), "quantization": None,
            "data": {"train": tmp_path / "jokes.jsonl"}, "train": {"batch_size": 5, "max_steps": 2},
        }
    )  # fmt: skip
    card = finetune(config, AdapterRegistry(tmp_path / "registry"))
    assert card.lineage.settings["records"] == 5


@pytest.mark.spec("2-F4")
def test_the_system_prompt_may_be_on_the_card(
    tiny_adapters: dict[str, Path], tiny_base: Path, tmp_path: Path
):
    registry = AdapterRegistry(tmp_path)
    registry.register("jokes", tiny_adapters["json"], base=tiny_base, prompt={"system": SYSTEM})
    assert SYSTEM in AdapterHub(EchoEngine(), registry).generate(PROMPTS[0], "jokes").text
