"""What lm-evaluation-harness sends as `local-completions`, read as it reads it: its scores are those of the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from transformers import AutoModelForCausalLM

from adapterhub import AdapterHub
from adapterhub.server import create_app
from tests.engine.maker import Reference, prompt_of

PATH = "/v1/completions"
PAIRS = [(prompt_of(1, 30), prompt_of(2, 4)), (prompt_of(3, 50), prompt_of(4, 1)), ([5], prompt_of(5, 9))]
"""Contexts and continuations, as token ids."""


@pytest.fixture(scope="module")
def hub(tiny_base: Path, tiny_registry: Path) -> Iterator[AdapterHub]:
    with AdapterHub.from_pretrained(tiny_base, tiny_registry, quantization=None, device="cpu") as hub:
        yield hub


@pytest.fixture(scope="module")
def app(hub: AdapterHub) -> FastAPI:
    return create_app(hub)


@pytest.fixture(scope="module")
def peft(tiny_base: Path, tiny_adapters: dict[str, Path]) -> Reference:
    return Reference(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32), tiny_adapters)


async def asked(client: httpx.AsyncClient, **body: object) -> dict[str, Any]:
    answer = await client.post(PATH, json=body, headers={"Authorization": "Bearer "})
    assert answer.status_code == 200, answer.text
    return answer.json()


def scores(answer: dict[str, Any], context_lengths: list[int]) -> list[tuple[float, bool]]:
    """The log-probability of each continuation, and whether it is the greedy one, without the answer's token."""
    found = []
    for choice, length in zip(
        sorted(answer["choices"], key=lambda one: one["index"]), context_lengths, strict=True
    ):
        own = choice["logprobs"]["token_logprobs"][length:-1]
        best = [max(top.values()) for top in choice["logprobs"]["top_logprobs"][length:-1]]
        found.append((sum(own), own == best))
    return found


def expected(
    peft: Reference, name: str | None, context: list[int], continuation: list[int]
) -> tuple[float, bool]:
    rows = peft.logits(name, [*context, *continuation]).log_softmax(-1)[len(context) - 1 : -1]
    own = rows.gather(1, torch.tensor(continuation)[:, None])
    return float(own.sum()), bool((own[:, 0] == rows.max(-1).values).all())


@pytest.mark.parametrize(("model", "name"), [("base", None), ("json", "json")])
async def test_the_likelihood_of_continuations(
    client: httpx.AsyncClient, peft: Reference, model: str, name: str | None
):
    greedy = peft.generate(name, PAIRS[0][0], 3)
    pairs = [*PAIRS, (PAIRS[0][0], greedy)]
    body = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    prompts = [[*context, *continuation] for context, continuation in pairs]
    answer = await asked(client, model=model, prompt=prompts, **body)
    found = scores(answer, [len(context) for context, _ in pairs])
    wanted = [expected(peft, name, *pair) for pair in pairs]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in wanted], abs=1e-3)
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in wanted]
    assert found[-1][1], "the greedy continuation is seen as such"
    single = await asked(client, model=model, prompt=[prompts[1]], **body)
    assert scores(single, [len(pairs[1][0])])[0][0] == pytest.approx(found[1][0], abs=1e-3)


async def test_generation_until_a_stop_string(client: httpx.AsyncClient, hub: AdapterHub):
    prompts, eos = [prompt_of(6, 20), prompt_of(7, 12)], hub.engine.tokenizer.eos_token
    answer = await asked(
        client, prompt=prompts, model="json", max_tokens=16, temperature=0, stop=["\n\n", eos], seed=1234
    )
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert texts == [
        hub.generate(prompt, "json", raw=True, max_tokens=16, stop=["\n\n", eos]).text for prompt in prompts
    ]
