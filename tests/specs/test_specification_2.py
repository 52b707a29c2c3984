"""Specification 2: a small base learns Russian jokes."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.cli.main import main
from adapterhub.dataset import DatasetConfig, compose_dataset, read_records
from adapterhub.training import FinetuneConfig, finetune
from tests.specs.configurations import SPECIFICATION_2
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


class Protocol(NamedTuple):
    folder: Path
    smoke: Any
    after_smoke: list[Any]
    """Adapters and output folders after the smoke test."""
    trained: Any
    compared: Any


def adapterhub(*arguments: object) -> str:
    """What a command prints."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", ["adapterhub", *map(str, arguments)])
        main()
    return printed.getvalue()


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


SWEEP = ((0.7, 0.6), (0.7, 0.9), (1.0, 0.6), (1.0, 0.9))


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Protocol:
    """The whole task with the specification's settings: smoke test, training, comparison on the baseline prompts."""
    folder = tmp_path_factory.mktemp("task")
    for name, count in (("jokes", 24), ("held-out", 6)):
        rows = [
            {
                "messages": [
                    {"role": "user", "content": PROMPTS[n % 5]},
                    {"role": "assistant", "content": "ха-ха"},
                ]
            }
            for n in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    # On a CPU; the optimiser of the specification needs a GPU.
    settings = SPECIFICATION_2.replace("TinyLlama/TinyLlama-1.1B-Chat-v1.0", str(tiny_base))
    settings = settings.replace("paged_adamw_8bit", "adamw_torch")
    (folder / "jokes.yaml").write_text(f"{settings}quantization: null\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("ADAPTERHUB_QUANTIZATION", "none")
        patch.setenv("ADAPTERHUB_REGISTRY", str(folder / "registry"))
        smoke = adapterhub("finetune", "jokes.yaml", "--smoke", "--json")
        after_smoke = [*json.loads(adapterhub("list", "--json")), *folder.glob("tinyllama*")]
        trained = adapterhub("finetune", "jokes.yaml", "--json")
        sweep = [*(("--temperature", t) for t in (0.7, 1.0)), *(("--top-p", p) for p in (0.6, 0.9))]
        compared = adapterhub(
            "compare", "tinyllama-anekdots", "--data", "held-out.jsonl", "--prompts", "prompts.txt", "--json",
            "--max-tokens", 6, "--repetition-penalty", 1.1, *itertools.chain(*sweep),
        )  # fmt: skip
    return Protocol(folder, json.loads(smoke), after_smoke, json.loads(trained), json.loads(compared))


@pytest.mark.spec("2-F13", "2-F16")
def test_a_smoke_test_trains_a_little_and_leaves_nothing(protocol: Protocol):
    assert len(protocol.smoke["losses"]) == protocol.smoke["steps"] > 1
    assert protocol.smoke["losses"][-1] < protocol.smoke["losses"][0]
    assert protocol.after_smoke == []


@pytest.mark.spec("2-D1", "2-D2", "2-D3", "2-F14")
def test_the_settings_of_the_specification_reach_the_training(protocol: Protocol):
    card = protocol.trained
    assert (card["peft"]["r"], card["peft"]["lora_alpha"]) == (8, 16)
    settings = card["lineage"]["settings"]
    assert (settings["batch_size"], settings["gradient_accumulation"], settings["learning_rate"]) == (
        2,
        4,
        1e-4,
    )
    assert (settings["epochs"], settings["warmup"], settings["steps"]) == (
        2,
        0.003,
        6,
    )  # 24 records by 8, twice
    assert (settings["lora_dropout"], settings["compute_dtype"]) == (0.05, "bfloat16")


@pytest.mark.spec("2-D3", "2-F19")
def test_the_losses_of_training_and_validation_are_kept(protocol: Protocol):
    with (protocol.folder / "tinyllama-anekdots-lora" / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    evaluated = [float(row["eval_loss"]) for row in rows if row["eval_loss"]]
    assert len(evaluated) >= 3  # before, and after each epoch
    assert evaluated == sorted(evaluated, reverse=True)
    assert all(float(row["loss"]) < 20 for row in rows if row["loss"])
    assert "<svg" in (protocol.folder / "tinyllama-anekdots-lora" / "losses.svg").read_text()


@pytest.mark.spec("2-F3", "2-F5", "2-F6", "2-F18")
def test_before_and_after_on_the_same_prompts_and_settings(protocol: Protocol, tiny_base: Path):
    compared = protocol.compared
    told = {
        (one["contender"], one["temperature"], one["top_p"]): one["answers"] for one in compared["answers"]
    }
    assert set(told) == {(who, *setting) for who in ("base", "tinyllama-anekdots@1") for setting in SWEEP}
    assert [prompt["messages"][-1]["content"] for prompt in compared["prompts"]] == PROMPTS
    assert {len(answers) for answers in told.values()} == {5}
    assert compared["base"] == str(tiny_base)
    assert compared["settings"]["max_tokens"] == 6
    assert compared["settings"]["repetition_penalty"] == 1.1
    rows = {(row["contender"], row["metric"]): row["value"] for row in compared["metrics"]}
    assert rows["tinyllama-anekdots@1", "perplexity"] < rows["base", "perplexity"]


@pytest.mark.spec("2-F17")
def test_the_checkpoint_loads_elsewhere_with_transformers_and_peft(protocol: Protocol, tiny_base: Path):
    checkpoint = protocol.folder / "tinyllama-anekdots-lora" / "checkpoint-6"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[0]}], tokenize=False, add_generation_prompt=True
    )
    tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    outputs = PeftModel.from_pretrained(model, checkpoint).generate(
        **tokens, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.eos_token_id
    )
    wanted = tokenizer.decode(outputs[0, tokens.input_ids.shape[1] :], skip_special_tokens=True)
    with AdapterHub.from_pretrained(tiny_base, protocol.folder / "registry", quantization=None) as hub:
        assert hub.generate(PROMPTS[0], "tinyllama-anekdots", temperature=0, max_tokens=8).text == wanted
    config = FinetuneConfig.load(checkpoint / "finetune.yaml")
    assert (config.lora.r, config.train.learning_rate) == (8, 1e-4)
    assert config.data.train is not None
    assert config.data.train.samefile(protocol.folder / "jokes.jsonl")
