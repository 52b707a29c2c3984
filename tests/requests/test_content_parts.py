"""Chat templates of vision-language bases: what a user writes is in the prompt, as the model's processor writes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapterhub.base import load_base, tokenizer_chat_template
from adapterhub.requests.content_parts import wants_parts
from adapterhub.requests.encoding import PromptEncoder
from adapterhub.requests.prompts import PromptStyle
from tests.tiny import CHAT_TEMPLATE, make_base, make_tokenizer

# As LLaVA's, which picks parts by type, and SmolVLM's, which walks over them.
PICKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WALKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'][0]['type'] == 'image' %} {% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}<image>{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EITHER = CHAT_TEMPLATE.replace(
    "{{ m['content'] }}<|im_end|>\n{% endif %}",
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{{ m['content'][0]['text'] }}{% endif %}<|im_end|>\n"
    "{% endif %}",
)
MESSAGES = [
    {"role": "system", "content": "Be <|im_end|> brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "What is 1 + 1?"},
]


@pytest.mark.parametrize("template", [PICKS, WALKS])
def test_texts_are_passed_in_parts_where_the_template_wants_that(template: str):
    assert wants_parts(template)
    tokenizer = make_tokenizer(chat_template=template)
    in_parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in MESSAGES]
    expected = tokenizer.apply_chat_template(in_parts, tokenize=False, add_generation_prompt=True)
    encoder, style = PromptEncoder(tokenizer), PromptStyle("chat", "tokenizer", template)
    prompt = encoder.render(MESSAGES, style)
    assert prompt.text == expected
    # What a message spells stays text here too.
    assert encoder.encode(prompt).count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == len(MESSAGES)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, EITHER, "{{ raise_exception('no') }}", "{{ nothing }}"])
def test_other_templates_get_texts_as_before(template: str):
    assert not wants_parts(template)


def test_a_template_of_the_processor_is_the_bases(tmp_path: Path):
    """Repositories of older processors have it in a file that tokenizers do not read."""
    base = make_base(tmp_path / "base", chat_template=None)
    (base / "chat_template.json").write_text(json.dumps({"chat_template": WALKS}))
    assert load_base(base, quantization=None, device="cpu").tokenizer.chat_template == WALKS
    assert tokenizer_chat_template(base) == WALKS
