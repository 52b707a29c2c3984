"""From conversations to labels: only the assistant's tokens, each turn with its end, whatever the template."""

import json

import pytest
from transformers import PreTrainedTokenizerFast

from adapterhub.dataset import Record
from adapterhub.errors import DatasetError, InvalidRequestError
from adapterhub.requests import prompts
from adapterhub.requests.encoding import PromptEncoder
from adapterhub.training.tokenizing import IGNORE_INDEX, TokenizedExample, tokenize
from tests.tiny import CHAT_TEMPLATE, make_tokenizer

WITHOUT_MARKERS = CHAT_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "two, привет"},
    {"role": "user", "content": "three?"},
    {"role": "assistant", "content": "four 🙂"},
]


def record(*messages: dict, line: int = 1, **more: object) -> Record:
    return Record.model_validate({"messages": list(messages), "line": line, **more})


def encoded(
    template: str | None, *messages: dict, max_length: int = 1000, **options: object
) -> tuple[PreTrainedTokenizerFast, TokenizedExample]:
    tokenizer = make_tokenizer(chat_template=template)
    style = prompts.choose_style(tokenizer.chat_template, options.pop("prompt_format", "auto"))
    tokenized = tokenize([record(*messages)], tokenizer, style, max_length=max_length, **options)
    return tokenizer, tokenized.examples[0]


def learned(tokenizer: PreTrainedTokenizerFast, example: TokenizedExample) -> list[str]:
    """The stretches of text that carry labels."""
    stretches: list[list[int]] = [[]]
    for token, label in zip(example.input_ids, example.labels, strict=True):
        assert label in (token, IGNORE_INDEX)
        if label != IGNORE_INDEX:
            stretches[-1].append(token)
        elif stretches[-1]:
            stretches.append([])
    return [tokenizer.decode(stretch) for stretch in stretches if stretch]


@pytest.mark.spec("2-F15", "4-F3")
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, WITHOUT_MARKERS], ids=["markers", "no markers"])
def test_each_answer_and_its_end_carry_labels(template: str):
    tokenizer, example = encoded(template, *TURNS)
    assert learned(tokenizer, example) == ["two, привет<|im_end|>", "four 🙂<|im_end|>"]


@pytest.mark.spec("2-F15")
def test_labels_are_those_of_the_templates_own_markers():
    tokenizer, example = encoded(CHAT_TEMPLATE, *TURNS)
    reference = tokenizer.apply_chat_template(
        TURNS, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert example.input_ids == reference["input_ids"]
    assert [int(label != IGNORE_INDEX) for label in example.labels] == reference["assistant_masks"]


ENDS = {
    "another than the base's": (CHAT_TEMPLATE.replace("<|im_end|>", "<|endoftext|>"), {"<|endoftext|>"}),
    "two, and the last is seen": (
        CHAT_TEMPLATE.replace("<|im_end|>", "<|im_start|><|endoftext|>"),
        {"<|endoftext|>"},
    ),
    "none in the template": ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", {"<|im_end|>"}),
    "no template": (None, {"<|im_end|>"}),
}


@pytest.mark.parametrize(("template", "ends"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("max_length", [1000, 60])
def test_the_end_tokens_of_answers_are_those_that_carry_the_last_labels(
    template: str | None, ends: set[str], max_length: int
):
    tokenizer = make_tokenizer(chat_template=template)
    style = prompts.choose_style(template)
    tokenized = tokenize([record(*TURNS[1:])], tokenizer, style, max_length=max_length)
    assert set(tokenizer.convert_ids_to_tokens(sorted(tokenized.end_token_ids))) == ends


@pytest.mark.spec("4-F2", "4-F3", "0-F3")
@pytest.mark.parametrize(
    ("prompt_format", "text", "answers"),
    [
        (
            "instruction",
            "### Instruction:\none?\n\n### Response:\ntwo<|im_end|>\n\n"
            "### Instruction:\nthree?\n\n### Response:\nfour<|im_end|>",
            ["two<|im_end|>", "four<|im_end|>"],
        ),
        (
            "plain",
            "Instruction: one?\nResponse: two<|im_end|>\nInstruction: three?\nResponse: four<|im_end|>",
            [" two<|im_end|>", " four<|im_end|>"],
        ),
    ],
)
def test_formats_without_a_chat_template(prompt_format: str, text: str, answers: list[str]):
    turns = [
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three?"},
        {"role": "assistant", "content": "four"},
    ]
    tokenizer, example = encoded(None, *turns, prompt_format=prompt_format)
    assert tokenizer.decode(example.input_ids) == text
    assert learned(tokenizer, example) == answers


@pytest.mark.spec("2-F12")
def test_prompts_are_rendered_as_in_serving():
    tokenizer, example = encoded(CHAT_TEMPLATE, *TURNS[1:3], system="be brief")
    style = prompts.choose_style(tokenizer.chat_template)
    prompt = prompts.render(prompts.conversation("one?", "be brief"), style, tokenizer)
    answer_at = next(index for index, label in enumerate(example.labels) if label != IGNORE_INDEX)
    assert example.input_ids[:answer_at] == tokenizer.encode(prompt, add_special_tokens=False)


def test_a_template_without_an_end_gets_the_tokenizers():
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ '' if loop.last else ' / ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ ' / assistant:' }}{% endif %}"
    )
    tokenizer, example = encoded(template, *TURNS[1:3])
    assert learned(tokenizer, example) == [" two, привет<|im_end|>"]


def test_answers_cut_away_are_dropped_and_counted():
    tokenizer = make_tokenizer()
    style = prompts.choose_style(tokenizer.chat_template)
    short = record({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    cut = record({"role": "user", "content": "a"}, {"role": "assistant", "content": "b " * 50})
    beyond = record({"role": "user", "content": "a " * 50}, {"role": "assistant", "content": "b"})

    tokenized = tokenize([short, beyond, cut], tokenizer, style, max_length=40)

    assert (len(tokenized.examples), tokenized.truncated, tokenized.dropped) == (2, 1, 1)
    assert [len(example.input_ids) for example in tokenized.examples] == [
        len(tokenized.examples[0].labels),
        40,
    ]
    assert tokenized.examples[0] == tokenize([short], tokenizer, style, max_length=40).examples[0]
    with pytest.raises(DatasetError, match="Not one of 1 records") as caught:
        tokenize([beyond], tokenizer, style, max_length=40)
    assert caught.value.hint


def test_tools_reach_the_template():
    tokenizer = make_tokenizer(chat_template="{{ tools | tojson if tools else '' }}" + CHAT_TEMPLATE)
    style = prompts.choose_style(tokenizer.chat_template)
    tools = [{"type": "function", "function": {"name": "add"}}]
    tokenized = tokenize([record(*TURNS, tools=tools)], tokenizer, style, max_length=1000)
    assert '"name": "add"' in tokenizer.decode(tokenized.examples[0].input_ids)


def test_a_template_that_leaves_tools_out_is_refused():
    tokenizer = make_tokenizer()
    style = prompts.choose_style(tokenizer.chat_template)
    with pytest.raises(DatasetError, match="leaves out the tools of the record at line 7"):
        tokenize([record(*TURNS, tools=[{"name": "add"}], line=7)], tokenizer, style, max_length=1000)


def test_tool_calls_go_to_the_template():
    template = CHAT_TEMPLATE.replace(
        "{{ m['content'] }}<|im_end|>{% end", "{{ m['tool_calls'] | tojson }}<|im_end|>{% end"
    )
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    tokenizer, example = encoded(template, TURNS[1], {"role": "assistant", "tool_calls": [call]})
    assert learned(tokenizer, example) == [json.dumps([call]) + "<|im_end|>"]


def test_an_error_of_the_template_names_the_line():
    template = "{{ raise_exception('no: ' + messages[0]['content']) }}"
    with pytest.raises(DatasetError, match="fails on the record at line 1") as caught:
        encoded(template, *TURNS)
    assert "be brief" not in str(caught.value)


def test_what_a_tokenizer_cannot_encode_names_the_line(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise InvalidRequestError("It cannot encode <s> as text.", hint="Leave it out.")

    monkeypatch.setattr(PromptEncoder, "encode_with_offsets", refuse)
    with pytest.raises(DatasetError, match="line 1 cannot be tokenised: It cannot encode <s>") as caught:
        encoded(CHAT_TEMPLATE, *TURNS)
    assert caught.value.hint == "Leave it out."
