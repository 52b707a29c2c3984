"""Specification 4: an instruction assistant with tools."""

from __future__ import annotations

import io
import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from adapterhub import AdapterHub, AdapterRegistry
from adapterhub.cli.main import main
from adapterhub.demo import demo_registry_folder
from adapterhub.langchain import huggingface_pipeline
from adapterhub.langchain.tools import content_validator, template_generator, text_formatter
from adapterhub.training import FinetuneConfig, finetune
from adapterhub.training.trainer import first_example
from tests.tiny import make_base

TEXT = "An adapter is a small change to a base model that makes it good at one task, and leaves the rest as it was."


@pytest.mark.spec("4-F6")
def test_the_formatter_wraps_to_the_width_with_the_indent():
    lines = text_formatter.invoke({"text": TEXT, "width": 40, "indent": 2}).splitlines()
    assert all(line.startswith("  ") and len(line) <= 40 for line in lines)
    assert " ".join(line.strip() for line in lines) == TEXT
    longer = [f"{line} {rest.split()[0]}" for line, rest in pairwise(lines)]
    assert all(len(line) > 40 for line in longer)  # no line could have taken one more word


@pytest.mark.spec("4-F5")
def test_the_template_has_instruction_input_and_response():
    fields = {"instruction": "Explain", "input": "LoRA"}
    written = template_generator.invoke({"template_type": "prompt", "fields": fields})
    assert written == "### Instruction:\nExplain\n\n### Input:\nLoRA\n\n### Response:"


@pytest.mark.spec("4-F5")
@pytest.mark.parametrize(
    ("text", "rule", "passed"),
    [
        ("# Title\n\nText", {"rule": "has_headings"}, True),
        ("Text", {"rule": "has_headings"}, False),
        ("Text", {"rule": "not_empty"}, True),
        ("  ", {"rule": "not_empty"}, False),
        ("ann@example.com", {"rule": "email"}, True),
        ("ann at example", {"rule": "email"}, False),
    ],
)
def test_the_validator_checks_headings_emptiness_and_e_mail(text: str, rule: dict[str, str], passed: bool):
    call = {
        "type": "tool_call",
        "id": "1",
        "name": "content_validator",
        "args": {"text": text, "rules": [rule]},
    }
    assert content_validator.invoke(call).artifact["passed"] is passed


@pytest.mark.spec("4-F7")
def test_a_pipeline_s_answer_goes_through_a_tool_by_hand():
    with AdapterHub.from_pretrained("adapterhub-demo", demo_registry_folder()) as hub:
        llm = huggingface_pipeline(hub, "support", max_new_tokens=80, return_full_text=False)
        answer = llm.invoke("### Instruction:\nMy Zorbex printer does not turn on.\n\n### Response:\n")
        wrapped = text_formatter.invoke({"text": answer, "width": 30})
    assert "power" in answer
    assert wrapped.split() == answer.split()
    assert max(map(len, wrapped.splitlines())) <= 30


@pytest.mark.spec("4-F8")
def test_a_system_prompt_file_goes_before_the_conversation(monkeypatch, capfd, tmp_path: Path):
    (tmp_path / "prompt_cognitive_designer.md").write_text("Answer with an analogy first.", encoding="utf-8")
    seen: list[object] = []
    stream = AdapterHub.stream

    def listen(hub: AdapterHub, prompt: object, *arguments: object, **options: object):
        seen.append(prompt)
        return stream(hub, prompt, *arguments, **options)

    monkeypatch.setattr(AdapterHub, "stream", listen)
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is LoRA?\n"))
    file = tmp_path / "prompt_cognitive_designer.md"
    arguments = [
        "chat",
        "base",
        "--base",
        "adapterhub-demo",
        "--system-prompt-file",
        str(file),
        "--max-tokens",
        "5",
    ]
    monkeypatch.setattr(sys, "argv", ["adapterhub", *arguments])
    main()
    assert seen == [
        [
            {"role": "system", "content": "Answer with an analogy first."},
            {"role": "user", "content": "What is LoRA?"},
        ]
    ]


DIALOGUES = [
    {
        "conversations": [
            {"from": "human", "value": f"What is {number} and {number}?"},
            {"from": "gpt", "value": f"It is {2 * number}."},
        ]
    }
    for number in range(1, 13)
]


@pytest.mark.spec("4-D1", "4-F1", "4-F2", "4-F3", "4-F4")
def test_dialogues_of_human_and_gpt_train_the_attention_of_a_4_bit_base(tmp_path: Path):
    """The base has no chat template, so that the format is `### Instruction:` and `### Response:`."""
    base = make_base(tmp_path / "base", chat_template=None)
    (tmp_path / "finetome.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DIALOGUES))
    dataset = {"sources": [{"path": "finetome.jsonl", "converter": "sharegpt"}], "train_path": "train.jsonl"}
    content = {
        "name": "assistant", "base": str(base), "quantization": "nf4", "output_dir": "results",
        "data": {"compose": dataset},
        "lora": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
        "train": {"max_steps": 30, "batch_size": 4, "learning_rate": 1e-2},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    config, registry = FinetuneConfig.load(tmp_path / "run.yaml"), AdapterRegistry(tmp_path / "registry")
    losses: list[float] = []
    card = finetune(config, registry, progress=lambda step: losses.append(step.loss or 0.0))
    assert card.base.quantization == "nf4"
    assert losses[-1] < 0.8 * losses[0]
    with safe_open(tmp_path / "results" / "checkpoint-30" / "adapter_model.safetensors", "pt") as weights:
        names = list(weights.keys())
    assert {name.split(".")[-3] for name in names} == {"q_proj", "k_proj", "v_proj", "o_proj"}

    data = config.data.model_copy(update={"compose": None, "train": tmp_path / "train.jsonl"})
    example = first_example(config.model_copy(update={"data": data}))
    text = "".join(part for part, _ in example.parts)
    learned = "".join(part for part, is_learned in example.parts if is_learned)
    assert text.startswith("### Instruction:\nWhat is ")
    assert text.endswith(f"\n\n### Response:\n{learned}")
    assert learned.startswith("It is ")

    with AdapterHub.from_pretrained(base, registry.root) as hub:
        before, after = (
            hub.generate("What is 3 and 3?", who, max_tokens=12).text for who in (None, "assistant")
        )
    assert after.startswith("It is ")
    assert not before.startswith("It is ")
