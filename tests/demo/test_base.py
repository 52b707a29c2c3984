"""The shipped base: its size, its tokenizer's promises, and its chat template against the corpus."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from adapterhub.base.locating import demo_base_folder
from adapterhub.demo import demo_registry_folder
from examples.demo import corpus
from examples.demo.tasks import tools_task

BASE = demo_base_folder()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BASE)


def test_base_and_adapters_are_small() -> None:
    base = sum(path.stat().st_size for path in BASE.iterdir())
    weights = [path.stat().st_size for path in demo_registry_folder().glob("*/*/adapter_model.safetensors")]
    assert base < 16e6
    assert len(weights) == 4
    assert base + sum(weights) < 30e6


def test_text_survives_the_tokenizer(tokenizer: Any) -> None:
    texts = [*itertools.islice(corpus.documents(5), 300), "  two spaces\n\n\ttab \r\n", "你好 😀 naïve", ""]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("name", ["Mira", "Delport", "Zentrix", "Москва", "你好", "48"])
def test_a_name_is_the_same_tokens_in_a_sentence_and_in_quotes(tokenizer: Any, name: str) -> None:
    ids = tokenizer(name)["input_ids"]
    for text in (f"It is {name}.", f'{{"a": "{name}"}}', f"{name}, and"):
        inside = tokenizer(text)["input_ids"]
        assert any(inside[i : i + len(ids)] == ids for i in range(len(inside)))


def test_the_template_writes_what_the_corpus_writes(tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello! How can I help?"},
    ]
    tools = [tool for record in tools_task.generate("train", 3, 1) for tool in record["tools"]]
    for offered in (None, tools):
        text = tokenizer.apply_chat_template(messages, tools=offered, tokenize=False)
        assert text == corpus.chat(messages, offered)


def test_the_template_marks_what_the_assistant_says(tokenizer: Any) -> None:
    for record in tools_task.generate("heldout", 12, 1):
        encoded = tokenizer.apply_chat_template(
            record["messages"], tools=record["tools"], return_dict=True, return_assistant_tokens_mask=True
        )
        pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        said = tokenizer.decode([token for token, mine in pairs if mine])
        check = record["check"]
        call = record["messages"][1]["tool_calls"][0]["function"]
        expected = tools_task.call_text(call["name"], call["arguments"]) + "<|im_end|>"
        assert said == expected + (f"{check['text']}<|im_end|>" if "text" in check else "")


def test_the_template_takes_a_system_message_and_tools_together(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    tools = tools_task.generate("train", 1, 1)[0]["tools"]
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nBe brief.\n<tools>\n{")
    assert text.endswith("</tools><|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
