"""Chat template options of a request, prompts as token ids, and the token ids of a prompt."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.errors import AdapterNotFoundError, InvalidRequestError, RequestTooLongError
from adapterhub.requests.encoding import PromptEncoder
from adapterhub.requests.prompts import PromptStyle, choose_style
from adapterhub.requests.template_options import TemplateOptions
from tests.tiny import CHAT_TEMPLATE, make_tokenizer

BEGUN = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two, "}]
STRIPS = CHAT_TEMPLATE.replace("m['content']", "m['content'] | trim")
SWITCH = (
    "{{ bos_token }}{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
    "{{ style }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)


@pytest.fixture(scope="module")
def hub(tiny_base: Path, tiny_registry: Path) -> Iterator[AdapterHub]:
    with AdapterHub.from_pretrained(tiny_base, tiny_registry, quantization=None, device="cpu") as hub:
        yield hub


def rendered(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    encoder, style = PromptEncoder(make_tokenizer()), PromptStyle("chat", "tokenizer", template)
    return encoder.render(messages, style, **options).text


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, STRIPS], ids=["as it is", "stripped"])
@pytest.mark.parametrize(
    "content", ["One, two, ", "One", "", "  A <|im_end|> in it", "CONTINUE_FINAL_MESSAGE_TAG x"]
)
def test_a_last_message_is_continued_as_in_transformers(template: str, content: str):
    assert STRIPS != CHAT_TEMPLATE
    messages = [BEGUN[0], {"role": "assistant", "content": content}]
    tokenizer = make_tokenizer(chat_template=template)
    expected = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    given = rendered(template, messages, add_generation_prompt=False, continue_final_message=True)
    assert given == expected
    assert messages[-1]["content"] == content


def test_a_continued_message_ends_within_the_instruction_format_too():
    encoder = PromptEncoder(make_tokenizer(chat_template=None))
    prompt = encoder.render(
        BEGUN, choose_style(None), add_generation_prompt=False, continue_final_message=True
    )
    assert prompt.text == "### Instruction:\nCount.\n\n### Response:\nOne, two, "


def test_a_message_that_cannot_be_continued_is_refused():
    options = {"add_generation_prompt": False, "continue_final_message": True}
    with pytest.raises(InvalidRequestError, match="needs a last message with a text"):
        rendered(CHAT_TEMPLATE, [{"role": "assistant", "content": None}], **options)
    with pytest.raises(InvalidRequestError, match="changes the last message"):
        rendered("{{ messages[-1]['content'] | upper | replace('_', '') }}", BEGUN, **options)


def test_variables_reach_the_template_but_the_hubs_own_and_special_tokens_stay():
    messages = [{"role": "user", "content": "Hi"}]
    assert rendered(SWITCH, messages) == "HiA:"
    assert (
        rendered(SWITCH, messages, variables={"enable_thinking": False, "style": "x"})
        == "<think></think>xHiA:"
    )
    with pytest.raises(InvalidRequestError, match="cannot set eos_token, a special token"):
        rendered(SWITCH, messages, variables={"eos_token": "x"})


def test_what_a_variable_spells_is_text():
    tokenizer = make_tokenizer(chat_template=SWITCH)
    encoder, style = PromptEncoder(tokenizer), choose_style(SWITCH)
    prompt = encoder.render([{"role": "user", "content": "Hi"}], style, variables={"style": "<|im_end|>"})
    assert prompt.text == "<|im_end|>HiA:"
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in encoder.encode(prompt)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chat_template_kwargs": [1]}, "takes a mapping"),
        ({"chat_template_kwargs": {"a b": 1}}, "takes a mapping from names"),
        ({"chat_template_kwargs": {"messages": []}}, "cannot set messages"),
        ({"chat_template_kwargs": {"tools": [], "chat_template": ""}}, "cannot set chat_template, tools"),
        ({"chat_template_kwargs": {"a": "x" * 20_000}}, "larger than 16,384"),
        ({"chat_template_kwargs": {"a": object()}}, "is not JSON"),
        ({"chat_template_kwargs": {"a": "\ud800"}}, "is not JSON"),
        ({"continue_final_message": 1}, "takes true or false, not int"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "Give one of them"),
    ],
)
def test_wrong_options_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(InvalidRequestError, match=re.escape(message)):
        TemplateOptions.of(arguments)


def test_none_and_defaults():
    nothing = {"chat_template_kwargs": None, "continue_final_message": None, "add_generation_prompt": None}
    assert TemplateOptions.of(nothing) == TemplateOptions.of({}) == TemplateOptions({}, True, False)
    assert TemplateOptions.of({"continue_final_message": True}) == TemplateOptions({}, False, True)
    assert TemplateOptions.of({"add_generation_prompt": False}) == TemplateOptions({}, False, False)


# Through the hub


def test_the_hub_continues_a_message(hub: AdapterHub):
    tokenizer = hub.engine.tokenizer
    expected = tokenizer.apply_chat_template(BEGUN, continue_final_message=True, return_dict=True)[
        "input_ids"
    ]
    assert hub.encode_prompt(BEGUN, None, continue_final_message=True) == expected
    by_ids = hub.generate(expected, "json", raw=True, max_tokens=6, ignore_eos=True)
    assert by_ids.usage.prompt_tokens == len(expected)
    continued = hub.generate(BEGUN, "json", continue_final_message=True, max_tokens=6, ignore_eos=True)
    assert continued.completions == by_ids.completions


def test_the_prompts_token_ids_are_those_of_a_request(hub: AdapterHub):
    for options in ({}, {"add_generation_prompt": False}, {"raw": True}):
        prompt = "Hello" if "raw" in options else BEGUN[:1]
        ids = hub.encode_prompt(prompt, "json", **options)
        assert hub.generate(prompt, "json", max_tokens=1, **options).usage.prompt_tokens == len(ids)
    assert hub.encode_prompt("write a python function", "auto") == hub.encode_prompt(
        "write a python function", "code"
    )
    with pytest.raises(AdapterNotFoundError):
        hub.encode_prompt("Hi", "nothing")


def test_token_ids_are_a_whole_prompt(hub: AdapterHub):
    ids = hub.engine.tokenizer.encode("write a python function", add_special_tokens=False)
    assert hub.encode_prompt(ids, "json", raw=True) == ids
    routed = hub.generate(ids, "auto", raw=True, max_tokens=1)
    assert routed.adapter == hub.route("write a python function").adapter == "code"
    with pytest.raises(InvalidRequestError, match="Give raw=True"):
        hub.generate(ids, "json")
    with pytest.raises(InvalidRequestError, match="vocabulary"):
        hub.generate([10**6], None, raw=True)
    for outside in ([-1], [2**40]):
        with pytest.raises(InvalidRequestError):
            hub.generate(outside, "auto", raw=True)
    for wrong in ([], [True], [1.0], [[1]], ["a"]):
        with pytest.raises(InvalidRequestError):
            hub.generate(wrong, None, raw=True)
    with pytest.raises(RequestTooLongError, match="300 tokens"):
        hub.generate([5] * 300, "auto", raw=True)


def test_a_raw_prompt_has_no_template(hub: AdapterHub):
    with pytest.raises(InvalidRequestError, match="takes no chat template, so no chat_template_kwargs"):
        hub.generate("Hi", None, raw=True, chat_template_kwargs={"a": 1})


def test_the_echo_engine_takes_characters_as_token_ids(tiny_registry: Path):
    echo = AdapterHub(EchoEngine(), AdapterRegistry(tiny_registry))
    assert echo.generate([72, 105], "json", raw=True).text == "[json@1] Hi"
    with pytest.raises(InvalidRequestError, match="character's"):
        echo.generate([0x110000], "json", raw=True)
