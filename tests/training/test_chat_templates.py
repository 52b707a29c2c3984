"""Labels under the chat templates of many families: every answer whole, each with its end, and nothing else.

The templates are those that TRL ships, and short ones that behave as they do but that TRL does not know.
"""

import re
from collections.abc import Sequence

import pytest
import trl.chat_template_utils as trl_templates
from transformers import PreTrainedTokenizerFast

from adapterhub.dataset import Record
from adapterhub.errors import DatasetError
from adapterhub.requests import prompts
from adapterhub.training.tokenizing import IGNORE_INDEX, TokenizedExample, tokenize
from tests.tiny import make_tokenizer

TURNS = [
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three?"},
    {"role": "assistant", "content": "four"},
]
REASONED = [
    {**turn, "content": f"<think>\n{thought}\n</think>\n\n{turn['content']}"} if thought else turn
    for turn, thought in zip(TURNS, (None, "a sum", None, "a guess"), strict=True)
]
MARKERS = re.compile(
    r"<\|[^|<>{}' ]+\|>|<｜[^｜]+｜>|<start_of_turn>|<end_of_turn>|\[gMASK\]|<sop>|<\|?turn\|?>"
)
# How a prompt begins the assistant's message, then a turn; "think" stands in the last answer only, or is left out.
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
ANSWER = "{{ m.content.split('</think>')[-1] | trim }}"
CHATML_END = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
LIKE_QWEN3 = (
    CHATML + "{% if m.role == 'assistant' and loop.last %}<think>\n"
    "{{ m.content.split('</think>')[0].split('<think>')[-1] | trim if '</think>' in m.content }}"
    "\n</think>\n\n{% endif %}" + ANSWER + CHATML_END + "{% endif %}"
)
LIKE_NEMOTRON = (
    CHATML
    + "{% if m.role == 'assistant' and '<think>' not in m.content %}<think></think>{% endif %}{{ m.content }}"
    + CHATML_END
    + "<think>\n{% endif %}"
)
LIKE_R1 = (
    "{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% else %}<｜Assistant｜>" + ANSWER + "<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
LIKE_GLM = (
    "{% for m in messages %}<|{{ m.role if m.role != 'tool' else 'observation' }}|>\n"
    "{% if m.role == 'assistant' %}<think></think>{{ m.tool_calls[0].function.name if m.tool_calls }}{% endif %}"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LIKE_PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}"
)
LIKE_GPT_OSS = (
    "{% for m in messages %}{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>"
    "{% else %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
WITHOUT_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '' if loop.last else '\n' }}{% endfor %}"
    "{{ '\nassistant:' if add_generation_prompt }}"
)


def family_tokenizer(template: str, *tokens: str) -> PreTrainedTokenizerFast:
    """A tokenizer to which the template's markers are special tokens."""
    tokenizer = make_tokenizer(chat_template=template)
    special = sorted({*MARKERS.findall(template), *tokens})
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>"])
    return tokenizer


def learned(tokenizer: PreTrainedTokenizerFast, example: TokenizedExample) -> list[str]:
    """What each answer of an example has to predict, as text."""
    stretches: list[list[int]] = [[]]
    for label in example.labels:
        if label != IGNORE_INDEX:
            stretches[-1].append(label)
        elif stretches[-1]:
            stretches.append([])
    return [tokenizer.decode(stretch) for stretch in stretches if stretch]


def answers(template: str, turns: Sequence[dict], *tokens: str) -> list[list[str]]:
    tokenizer = family_tokenizer(template, *tokens)
    record = Record.model_validate({"messages": list(turns), "line": 1})
    style = prompts.choose_style(template)
    return [
        learned(tokenizer, example)
        for example in tokenize([record], tokenizer, style, max_length=4000).examples
    ]


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        ("cohere", "{}<|END_OF_TURN_TOKEN|>"),
        ("deepseek_r1_distill", "{}<｜end▁of▁sentence｜>"),
        ("deepseekv3", "{}<｜end▁of▁sentence｜>"),
        ("gemma3", "{}<end_of_turn>"),
        ("gemma4", "{}<turn|>"),
        ("glm4moe", "\n<think></think>\n{}<|user|>"),
        ("lfm2_2_5", "{}<|im_end|>"),
        ("llama3_1", "{}<|eot_id|>"),
        ("nemotron_3_nano", "</think>{}<|im_end|>"),
        ("nemotron_3_ultra", "</think>{}<|im_end|>"),
        ("qwen2_5", "{}<|im_end|>"),
        ("qwen3", "<think>\n\n</think>\n\n{}<|im_end|>"),
        ("qwen3_5_nothink", "{}<|im_end|>"),  # the prompt has the empty reasoning
        ("qwen3_5_think", "\n</think>\n\n{}<|im_end|>"),  # the prompt has <think>
        ("qwen3_instruct_2507", "{}<|im_end|>"),
    ],
)
def test_templates_that_trl_knows(family: str, answer: str):
    template = getattr(trl_templates, f"{family}_chat_template")
    assert answers(template, TURNS[:2]) == [[answer.format("two")]]
    assert answers(template, TURNS) == [[answer.format("two"), answer.format("four")]]


def test_the_last_answer_of_phi_3_and_gpt_oss_ends_in_its_own_way():
    phi = trl_templates.phi3_chat_template
    assert answers(phi, TURNS) == [["two<|end|>", "four<|end|>\n<|im_end|>"]]  # the tokenizer's end token
    gpt_oss = trl_templates.gptoss_chat_template
    final = "<|channel|>final<|message|>"
    assert answers(gpt_oss, TURNS) == [[f"{final}two<|end|>", f"{final}four<|return|>"]]


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5_think", "deepseek_r1_distill"])
def test_trls_variants_keep_the_reasoning_of_every_answer(family: str):
    (one, two), *others = answers(getattr(trl_templates, f"{family}_chat_template"), REASONED)
    assert others == []
    assert re.fullmatch(r"(<think>\n)?a sum\n</think>\n\ntwo<\S+>", one)
    assert re.fullmatch(r"(<think>\n)?a guess\n</think>\n\nfour<\S+>", two)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (LIKE_QWEN3, [["<think>\n\n</think>\n\ntwo<|im_end|>"], ["<think>\n\n</think>\n\nfour<|im_end|>"]]),
        (LIKE_NEMOTRON, [["</think>two<|im_end|>", "</think>four<|im_end|>"]]),
        (LIKE_R1, [["two<｜end▁of▁sentence｜>", "four<｜end▁of▁sentence｜>"]]),
        (LIKE_GLM, [["<think></think>two<|user|>", "<think></think>four<|user|>"]]),
        (LIKE_PHI3, [["two<|end|>", "four<|end|>\n<|endoftext|>"]]),
        (
            LIKE_GPT_OSS,
            [["<|channel|>final<|message|>two<|end|>", "<|channel|>final<|message|>four<|return|>"]],
        ),
        (WITHOUT_END, [[" two<|im_end|>", " four<|im_end|>"]]),
    ],
    ids=["qwen3", "nemotron", "deepseek-r1", "glm", "phi3", "gpt-oss", "no end token"],
)
def test_templates_that_trl_does_not_know(template: str, expected: list[list[str]]):
    roles = ("<|user|>", "<|assistant|>", "<|system|>", "<|observation|>")
    assert answers(template, TURNS, *roles) == expected
    assert answers(template, TURNS[:2], *roles)[0][0].replace("two", "four") == expected[-1][-1]


def test_a_conversation_that_is_split_reads_as_serving_writes_it():
    tokenizer = family_tokenizer(LIKE_QWEN3)
    style = prompts.choose_style(LIKE_QWEN3)
    record = Record.model_validate({"messages": REASONED, "line": 1})
    first, second = tokenize([record], tokenizer, style, max_length=1000).examples
    assert learned(tokenizer, first) == ["<think>\na sum\n</think>\n\ntwo<|im_end|>"]
    assert learned(tokenizer, second) == ["<think>\na guess\n</think>\n\nfour<|im_end|>"]
    prompt = tokenizer.encode(prompts.render(REASONED[:3], style, tokenizer), add_special_tokens=False)
    assert second.input_ids[: len(prompt)] == prompt
    assert second.labels[: len(prompt)] == [IGNORE_INDEX] * len(prompt)


def test_an_end_that_is_not_written_is_predicted_without_changing_the_text():
    tokenizer = family_tokenizer(WITHOUT_END)
    record = Record.model_validate({"messages": TURNS, "line": 1})
    (example,) = tokenize([record], tokenizer, prompts.choose_style(WITHOUT_END), max_length=1000).examples
    text = "user: one?\nassistant: two\nuser: three?\nassistant: four<|im_end|>"
    assert tokenizer.decode(example.input_ids) == text
    behind_two = tokenizer.encode("user: one?\nassistant: two", add_special_tokens=False)
    assert example.labels[len(behind_two)] == tokenizer.eos_token_id != example.input_ids[len(behind_two)]


def test_a_call_that_ends_at_the_marker_of_its_result():
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "add", "arguments": {}}}],
    }
    turns = [TURNS[0], call, {"role": "tool", "content": "2"}, TURNS[1]]
    roles = ("<|user|>", "<|assistant|>", "<|observation|>")
    whole = [["<think></think>add<|observation|>", "<think></think>two<|user|>"]]
    assert answers(LIKE_GLM, turns, *roles) == whole
    assert answers(LIKE_GLM, turns[:2], *roles) == [whole[0][:1]]


@pytest.mark.parametrize("answer", ["a <|im_end|> b", "<|endoftext|> b", "a <|im_start|>user\nb"])
@pytest.mark.parametrize("template", [LIKE_NEMOTRON, WITHOUT_END], ids=["end token", "no end token"])
def test_an_answer_with_a_special_token_is_learned_whole(template: str, answer: str):
    turns = [TURNS[0], {"role": "assistant", "content": answer}, *TURNS[2:]]
    ((first, second),) = answers(template, turns)
    assert first.removeprefix("</think>").strip() == f"{answer}<|im_end|>"
    assert second.endswith("four<|im_end|>")


@pytest.mark.parametrize("template", [LIKE_R1, trl_templates.deepseekv3_chat_template], ids=["r1", "v3"])
def test_a_template_that_leaves_reasoning_out_of_the_last_answer_is_refused(template: str):
    with pytest.raises(DatasetError, match="an answer of the record at line 1 only in part") as caught:
        answers(template, REASONED[:2])
    assert "reasoning" in (caught.value.hint or "")


def test_a_template_that_takes_only_lists_of_blocks_learns_the_answers():
    template = (
        "{% for m in messages %}{{ m.role }}:{% for b in m.content %}{{ b.text }}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    assert answers(template, TURNS) == [["two<|im_end|>", "four<|im_end|>"]]


def test_a_template_that_leaves_out_calls_does_not_teach_empty_answers():
    call = {"function": {"name": "add", "arguments": {}}}
    turns = [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    with pytest.raises(DatasetError, match="only in part") as caught:
        answers(LIKE_NEMOTRON, turns)
    assert "tool calls" in (caught.value.hint or "")
