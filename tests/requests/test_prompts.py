import pytest

from adapterhub.errors import ConfigError, InvalidRequestError
from adapterhub.requests.prompts import choose_style, conversation, render
from tests.tiny import CHAT_TEMPLATE, make_tokenizer

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Who?"},
]


@pytest.mark.parametrize(
    ("tokenizer", "card_format", "card", "format", "origin"),
    [
        ("base", "auto", None, "chat", "tokenizer"),
        ("base", "auto", "card", "chat", "card"),
        (None, "auto", "card", "chat", "card"),
        (None, "auto", None, "instruction", "default"),
        ("base", "instruction", None, "instruction", "card"),
        ("base", "plain", None, "plain", "card"),
    ],
)
def test_a_style_has_the_origin_of_its_choice(tokenizer, card_format, card, format, origin):  # noqa: A002
    style = choose_style(tokenizer, card_format, card)
    assert (style.format, style.origin) == (format, origin)
    assert style.template == (None if format != "chat" else card or tokenizer)


def test_a_chat_template_that_is_asked_for_and_missing_is_an_error():
    with pytest.raises(ConfigError, match="chat template"):
        choose_style(None, "chat", None)


def test_the_text_of_a_style_says_that_there_is_no_chat_template():
    assert "no chat template" in str(choose_style(None))


def test_the_chat_template_renders():
    tokenizer = make_tokenizer()
    text = render(TURNS, choose_style(CHAT_TEMPLATE), tokenizer)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert text.endswith("Who?<|im_end|>\n<|im_start|>assistant\n")


def test_the_instruction_format():
    text = render(TURNS, choose_style(None), make_tokenizer(chat_template=None))
    assert text == (
        "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello<|im_end|>\n\n"
        "### Instruction:\nWho?\n\n### Response:\n"
    )


def test_the_plain_format():
    style = choose_style(None, "plain")
    text = render([{"role": "user", "content": "Which genre?"}], style, make_tokenizer(chat_template=None))
    assert text == "Instruction: Which genre?\nResponse:"


def test_tools_need_a_chat_template():
    with pytest.raises(InvalidRequestError, match="chat template"):
        render(TURNS, choose_style(None), make_tokenizer(), tools=[{"name": "f"}])


def test_a_template_that_refuses_is_a_request_error():
    style = choose_style("{{ raise_exception('no system turn, please') }}")
    with pytest.raises(InvalidRequestError, match="no system turn"):
        render(TURNS, style, make_tokenizer())


@pytest.mark.parametrize(
    "template", ["{{ 1 // 0 }}", "{{ 'a' + 1 }}", "{% for i in range(10**9) %}{% endfor %}"]
)
def test_a_template_that_fails_is_a_request_error(template):
    with pytest.raises(InvalidRequestError, match="chat template"):
        render(TURNS, choose_style(template), make_tokenizer())


def test_of_several_templates_the_one_for_tools_shows_them():
    style = choose_style({"default": "plain", "tool_use": "{{ tools[0]['name'] }}"})
    assert str(style) == "chat template of the tokenizer"
    assert render(TURNS, style, make_tokenizer()) == "plain"
    assert render(TURNS, style, make_tokenizer(), tools=[{"name": "f"}]) == "f"


def test_the_cards_system_prompt_yields_to_the_callers():
    assert conversation("Hi", "Card")[0] == {"role": "system", "content": "Card"}
    assert conversation(TURNS, "Card") == TURNS


@pytest.mark.parametrize("empty", ["", "  \n", [], [{"role": "user", "content": ""}]])
def test_nothing_to_answer_is_an_error(empty):
    with pytest.raises(InvalidRequestError, match="empty"):
        conversation(empty)


def test_an_unknown_role_is_an_error():
    with pytest.raises(InvalidRequestError, match="wizard"):
        conversation([{"role": "wizard", "content": "Hi"}])


@pytest.mark.parametrize("wrong", [None, 42, b"Hi", {"role": "user", "content": "Hi"}, ["Hi"]])
def test_other_types_are_no_prompt(wrong):
    with pytest.raises(InvalidRequestError, match="a text or a list of messages"):
        conversation(wrong)


def test_content_that_is_no_text_is_an_error():
    with pytest.raises(InvalidRequestError, match="of type list"):
        conversation([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}])


def test_a_lone_surrogate_is_an_error():
    with pytest.raises(InvalidRequestError, match="Unicode"):
        conversation("\ud800")
