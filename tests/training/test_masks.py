"""What is learned of hundreds of dialogues under each family of chat templates: every answer whole, and nothing else.

The expected texts are written out here for each family, independently of how answers are found.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import trl.chat_template_utils as trl_templates
from transformers import PreTrainedTokenizerFast

from adapterhub.dataset import Record
from adapterhub.requests import prompts
from adapterhub.training.tokenizing import IGNORE_INDEX, TokenizedExample, tokenize
from tests.training.test_chat_templates import family_tokenizer

PIECES = (
    *("fox", "the quick brown", "Ёлка, да", "数学的", "naïve", "e = mc²", "x < y && y > z", "{'a': [1, 2]}"),
    *("\n", "\n\n- one\n- two\n", "  indented", "🙂", "1,234.50", "def f(x):\n    return x", "\t", "  "),
    *("assistant", "user:", "system", "https://a.example/?b=c", "<b>bold</b>", "[INST", "<|", "|>", "###"),
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Answer:
    """An answer's text, its reasoning, and whether it is the last of its dialogue."""

    text: str
    thought: str
    last: bool


@dataclass(frozen=True)
class Family:
    """A chat template, and what it makes of an answer.

    Attributes:
        template: The template.
        learned: What there is to predict of an answer.
        ends: The tokens that end an answer.
        header: What stands before it.
        thinks: Whether answers hold reasoning.
        system: Whether the template takes a system message.
        tokens: Special tokens beside those that are in the template.
    """

    template: str
    learned: Callable[[Answer], str]
    ends: tuple[str, ...]
    header: str
    thinks: bool = False
    system: bool = True
    tokens: dict[str, str] = field(default_factory=dict)


def trls(name: str) -> str:
    template: str = getattr(trl_templates, f"{name}_chat_template")
    return template


FAMILIES = {
    "chatml": Family(CHATML, lambda a: f"{a.text}<|im_end|>", ("<|im_end|>",), "<|im_start|>assistant\n"),
    "llama3": Family(
        trls("llama3_1"),
        lambda a: f"{a.text}<|eot_id|>",
        ("<|eot_id|>",),
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral": Family(
        MISTRAL,
        lambda a: f" {a.text}</s>",
        ("</s>",),
        "[/INST]",
        system=False,
        tokens={"bos_token": "<s>", "eos_token": "</s>"},
    ),
    "gemma": Family(
        trls("gemma3"),
        lambda a: f"{a.text}<end_of_turn>",
        ("<end_of_turn>",),
        "<start_of_turn>model\n",
        tokens={"bos_token": "<bos>"},
    ),
    "phi3": Family(
        trls("phi3"),
        lambda a: f"{a.text}<|end|>" + ("\n<|im_end|>" if a.last else ""),  # the tokenizer's end token
        ("<|end|>", "<|im_end|>"),
        "<|assistant|>\n",
    ),
    "qwen2.5": Family(
        trls("qwen2_5"), lambda a: f"{a.text}<|im_end|>", ("<|im_end|>",), "<|im_start|>assistant\n"
    ),
    "qwen3": Family(
        trls("qwen3"),
        lambda a: f"<think>\n\n</think>\n\n{a.text}<|im_end|>",
        ("<|im_end|>",),
        "<|im_start|>assistant\n",
    ),
    "qwen3 thinking": Family(
        trls("qwen3"),
        lambda a: f"<think>\n{a.thought}\n</think>\n\n{a.text}<|im_end|>",
        ("<|im_end|>",),
        "<|im_start|>assistant\n",
        thinks=True,
    ),
    "qwen3.5": Family(
        trls("qwen3_5_nothink"),
        lambda a: f"{a.text}<|im_end|>",
        ("<|im_end|>",),
        "<think>\n\n</think>\n\n",  # the prompt has it
    ),
    "qwen3.5 thinking": Family(
        trls("qwen3_5_think"),
        lambda a: f"{a.thought}\n</think>\n\n{a.text}<|im_end|>",
        ("<|im_end|>",),
        "<|im_start|>assistant\n<think>\n",
        thinks=True,
    ),
    "glm": Family(
        trls("glm4moe"),
        lambda a: f"\n<think></think>\n{a.text}<|user|>",
        ("<|user|>",),  # generation stops at the next role
        "<|assistant|>",
    ),
    "deepseek r1": Family(
        trls("deepseek_r1_distill"),
        lambda a: f"{a.thought}\n</think>\n\n{a.text}<｜end▁of▁sentence｜>",
        ("<｜end▁of▁sentence｜>",),
        "<｜Assistant｜><think>\n",
        thinks=True,
    ),
    "deepseek v3": Family(
        trls("deepseekv3"),
        lambda a: f"{a.text}<｜end▁of▁sentence｜>",
        ("<｜end▁of▁sentence｜>",),
        "<｜Assistant｜>",
    ),
    "gpt-oss": Family(
        trls("gptoss"),
        lambda a: f"<|channel|>final<|message|>{a.text}" + ("<|return|>" if a.last else "<|end|>"),
        ("<|end|>", "<|return|>"),
        "<|start|>assistant",
    ),
}


def text(draw: random.Random) -> str:
    """Pieces of many kinds between two words: templates trim what they write."""
    middle = draw.choices(PIECES, k=draw.randint(0, 6))
    return draw.choice(("", " ")).join(
        [draw.choice(("one", "Так", "7")), *middle, draw.choice(("end", "да.", "9"))]
    )


def dialogue(draw: random.Random, family: Family) -> tuple[Record, list[Answer]]:
    turns = draw.randint(1, 4)
    messages = [{"role": "system", "content": text(draw)}] if family.system and draw.random() < 0.5 else []
    answers = []
    for turn in range(turns):
        question, thought = text(draw), text(draw) if family.thinks else ""
        answer = Answer(draw.choice((question, text(draw), text(draw))), thought, turn == turns - 1)
        content = f"<think>\n{thought}\n</think>\n\n{answer.text}" if thought else answer.text
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": content}]
        answers.append(answer)
    return Record.model_validate({"messages": messages, "line": 1}), answers


def stretches(example: TokenizedExample) -> Iterator[tuple[int, int]]:
    """Start and end of what is learned at one go."""
    learned = [label != IGNORE_INDEX for label in example.labels]
    edges = [index for index, (one, other) in enumerate(pairwise([False, *learned, False])) if one != other]
    return zip(edges[::2], edges[1::2], strict=True)


def check(
    family: Family, tokenizer: PreTrainedTokenizerFast, record: Record, answers: list[Answer]
) -> set[str]:
    """Compares what is learned with what there is to learn, and returns the tokens that end the answers."""
    style = prompts.choose_style(tokenizer.chat_template)
    tokenized = tokenize([record], tokenizer, style, max_length=100_000)
    (example,) = tokenized.examples
    found = list(stretches(example))
    assert [tokenizer.decode(example.labels[start:end]) for start, end in found] == list(
        map(family.learned, answers)
    )
    for start, _ in found:
        assert tokenizer.decode(example.input_ids[:start]).endswith(family.header)
    # A label that is not the token itself is an end that the template does not write.
    assert all(
        label in (IGNORE_INDEX, token) for label, token in zip(example.labels, example.input_ids, strict=True)
    )
    return set(tokenizer.convert_ids_to_tokens(list(tokenized.end_token_ids)))


def masks(name: str, dialogues: int) -> None:
    family, draw = FAMILIES[name], random.Random(name)
    tokenizer = family_tokenizer(family.template, *family.ends, *family.tokens.values())
    for kind, token in family.tokens.items():
        setattr(tokenizer, kind, token)
    ends = [check(family, tokenizer, *dialogue(draw, family)) for _ in range(dialogues)]
    assert set().union(*ends) == set(family.ends)  # serving stops at these


@pytest.mark.parametrize("name", FAMILIES)
def test_every_answer_is_learned_whole_and_nothing_else(name: str):
    masks(name, 15)


@pytest.mark.slow  # the same for hundreds of dialogues
@pytest.mark.parametrize("name", FAMILIES)
def test_every_answer_of_300_dialogues(name: str):
    masks(name, 300)
