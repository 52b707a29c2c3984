"""Specification 4: an instruction assistant with tools."""

from __future__ import annotations

import io
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from adapterhub import AdapterHub
from adapterhub.cli.main import main
from adapterhub.demo import demo_registry_folder
from adapterhub.langchain import huggingface_pipeline
from adapterhub.langchain.tools import content_validator, template_generator, text_formatter

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
