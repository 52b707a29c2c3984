"""Specification 2: a small base learns Russian jokes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.dataset import DatasetConfig, compose_dataset, read_records
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


JOKES = (
    ("студенты", "Студент сдаёт экзамен.&!Профессор спит, и никто его не будит.", 5),
    (
        "программисты",
        "Программист\r\nпришёл   в магазин &quot;Хлеб&quot; &mdash; и взял десять батонов.",
        3,
    ),
    ("футбол", "<b>Вратарь</b> поймал мяч.\x07Больше его никто не видел на этом поле.", 2),
    ("кошки", "Кот открыл холодильник.Теперь в доме есть только один сытый жилец.", 1),
    ("футбол", "Вратарь поймал мяч. Больше его никто не видел на этом поле.", 4),  # again
    ("погода", "Ха.", 9),  # too short
    ("погода", "Шёл дождь, и сосед забыл зонт, а потом и где живёт сам сосед.", 0),  # no rating
    ("погода", "Ветер унёс крышу сарая; хозяин сказал, что она и раньше ему мешала. " * 9, 7),  # too long
)
THEMES = {"студенты": "Расскажи анекдот про студентов!", "*": "Расскажи анекдот на тему «{theme}»!"}


class TestDataset:
    """A small CSV as dirty as the real one."""

    @pytest.fixture
    def composed(self, tmp_path: Path):
        with (tmp_path / "jokes.csv").open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows([("theme", "text", "rating"), *JOKES])
        settings = {
            "sources": [{"path": "jokes.csv", "converter": "text", "prompts": THEMES, "system": SYSTEM}],
            "cleaning": {
                "html_tags": True, "html_entities": True, "spaces": True, "glued_sentences": True,
                "replace": {"&!": "\n"},
            },
            "filters": {"rating_above": 0, "min_answer_characters": 20, "max_answer_characters": 300},
        }  # fmt: skip
        (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
        return compose_dataset(DatasetConfig.load(tmp_path / "dataset.yaml"))

    @pytest.mark.spec("2-F7", "2-F9", "2-F10", "2-F11")
    def test_dirty_rated_jokes_become_conversations(self, composed):
        told = {
            record.messages[1].content: record.messages[2].content
            for record in read_records(composed.train_path)
        }
        assert told == {
            "Расскажи анекдот про студентов!": "Студент сдаёт экзамен.\nПрофессор спит, и никто его не будит.",
            "Расскажи анекдот на тему «программисты»!": "Программист\n"
            'пришёл в магазин "Хлеб" — и взял десять батонов.',
            "Расскажи анекдот на тему «футбол»!": "Вратарь поймал мяч. Больше его никто не видел на этом поле.",
            "Расскажи анекдот на тему «кошки»!": "Кот открыл холодильник. Теперь в доме есть только один сытый жилец.",
        }
        assert {record.messages[0].content for record in read_records(composed.train_path)} == {SYSTEM}

    @pytest.mark.spec("2-F8")
    def test_the_data_card_has_the_analysis(self, composed):
        card = json.loads(composed.card_path.read_text(encoding="utf-8"))
        assert sum(composed.dropped.values()) == 4
        cleaning, filters, duplicates = card["stages"][:3]
        assert cleaning["changed"]["HTML entities"] == cleaning["changed"]["control characters"] == 1
        assert filters["dropped"] == {"answer too long": 1, "answer too short": 1, "rating too low": 1}
        assert duplicates["dropped"] == {"exact duplicate": 1}
        ratings, lengths = card["train"]["ratings"], card["train"]["answer_characters"]
        assert (ratings["min"], ratings["mean"], ratings["max"]) == (1, 2.75, 5)
        assert (lengths["min"], lengths["max"]) == (59, 67)
