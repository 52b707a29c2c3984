"""Tokenizers in llama.cpp's form give transformers' tokens, in texts of several languages with control tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tokenizers import pre_tokenizers

from adapterhub.errors import ExportError
from adapterhub.export.llama_cpp_file import has_llama_cpp, opened
from adapterhub.export.token_texts import TEXTS, token_texts
from adapterhub.gguf.model import write_gguf
from adapterhub.gguf.tokenizer import CONTROL, NORMAL, UNUSED, GgufTokenizer, gguf_tokenizer, read_tokenizer
from adapterhub.gguf.tokenizing import tokenize
from tests.tiny import make_sentencepiece_tokenizer, make_tokenizer

INST = "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
ZEPHYR = "{% for m in messages %}<|user|>\n{{ m['content'] }}</s>\n{% endfor %}"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(*steps: Any, add_prefix_space: bool = False) -> Any:
    """The tiny tokenizer with other steps before its bytes."""
    tokenizer = make_tokenizer()
    last = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=not steps)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last])
    return tokenizer


def split(pattern: str) -> Any:
    from tokenizers import Regex

    return pre_tokenizers.Split(Regex(pattern), "isolated")


CASES = {
    "gpt-2": (make_tokenizer, ()),
    "llama3's pattern": (lambda: byte_level(split(LLAMA3)), ()),
    "spaces at the start, no template": (make_sentencepiece_tokenizer, ()),
    "spaces after control tokens": (lambda: make_sentencepiece_tokenizer(legacy=True), ()),
    "a template with a control token": (
        lambda: make_sentencepiece_tokenizer(chat_template=INST),
        ("<s>[INST] a",),
    ),
    "a template without": (lambda: make_sentencepiece_tokenizer(chat_template=ZEPHYR), ("<|user|>\na",)),
}


def different(tokenizer: Any, written: GgufTokenizer, encode: Any) -> list[str]:
    texts = token_texts(written)
    assert len(texts) == TEXTS
    return [text for text in texts if encode(written.spelled(text)) != tokenizer(text)["input_ids"]]


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_transformers(tmp_path: Path, case: str):
    make, prompts = CASES[case]
    tokenizer = make()
    derived = gguf_tokenizer(tokenizer, len(tokenizer), prompts=prompts)
    file = tmp_path / "vocabulary.gguf"
    write_gguf(file, "llama", derived.fields, [], "f16")
    assert different(tokenizer, derived, tokenize(read_tokenizer(file, derived))) == []
    if has_llama_cpp():  # and the reading without it is llama.cpp's own
        with opened(file, vocabulary_only=True) as loaded:
            assert different(tokenizer, derived, loaded.tokenize) == []


def test_texts_differ_with_the_scores_of_llama_cpp_s_converter():
    """It gives every token the same score where there is no `tokenizer.model`."""
    tokenizer = make_sentencepiece_tokenizer()
    derived = gguf_tokenizer(tokenizer, len(tokenizer))
    flat = replace(derived, scores=[-1000.0] * len(derived.scores))
    assert len(different(tokenizer, derived, tokenize(flat))) > 80


def test_another_split_is_noticed():
    tokenizer = byte_level(split(LLAMA3))
    derived = gguf_tokenizer(tokenizer, len(tokenizer), pre="gpt-2")
    assert different(tokenizer, derived, tokenize(derived))


def test_scores_are_the_ranks_of_the_merges():
    tokenizer = make_sentencepiece_tokenizer()
    derived = gguf_tokenizer(tokenizer, len(tokenizer))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    ids = tokenizer.get_vocab()
    assert derived.scores[ids["".join(merges[0])]] == 0
    assert derived.scores[ids["".join(merges[-1])]] < -10
    assert derived.scores[ids["<s>"]] == derived.scores[ids["<0x41>"]] == 0


def test_ids_without_a_token_are_unused():
    tokenizer = make_tokenizer()
    derived = gguf_tokenizer(tokenizer, len(tokenizer) + 2)
    assert derived.tokens[-1] == f"[PAD{len(tokenizer) + 1}]"
    assert derived.types[-2:] == [UNUSED, UNUSED]
    assert (derived.types[tokenizer.eos_token_id], derived.types[100]) == (CONTROL, NORMAL)
    assert derived.special_ids["eos"] == tokenizer.eos_token_id
    assert not derived.add_bos


def test_the_beginning_of_a_sequence_is_written_down():
    derived = gguf_tokenizer(tokenizer := make_sentencepiece_tokenizer(), 2000)
    assert derived.add_bos == (tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)


def test_tags_of_training_leave_the_chat_template_and_its_text_stays():
    tokenizer = make_tokenizer(
        chat_template="{% for m in messages %}\n  {%- generation %} {{ m.content }} {% endgeneration -%}\n{% endfor %}!"
    )
    messages = [{"role": "assistant", "content": "Hi"}]
    template = gguf_tokenizer(tokenizer, len(tokenizer)).chat_template
    assert template is not None
    assert "{% generation" not in template
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    rendered = environment.from_string(template).render(messages=messages)
    assert rendered == tokenizer.apply_chat_template(messages, tokenize=False)


def test_a_template_that_begins_with_text_writes_the_space():
    derived = gguf_tokenizer(
        make_sentencepiece_tokenizer(chat_template=ZEPHYR), 2000, prompts=["<|user|>\nHello"]
    )
    assert derived.chat_template == "{{ ' ' }}" + ZEPHYR
    assert not derived.space_prefix


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (lambda: byte_level(split(r"\w+")), "has no name for the way"),
        (lambda: byte_level(add_prefix_space=True), "puts a space before every text"),
        (lambda: byte_level(pre_tokenizers.Punctuation()), "splits text by Punctuation"),
    ],
)
def test_what_llama_cpp_has_no_form_for_is_refused(tokenizer: Any, message: str):
    with pytest.raises(ExportError, match=message):
        gguf_tokenizer(tokenizer(), 400)


def test_more_tokens_than_embeddings_are_refused():
    with pytest.raises(ExportError, match="200 rows of embeddings"):
        gguf_tokenizer(make_tokenizer(), 200)
