"""The pretraining goes on where it was stopped."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples.demo.base import _keep, _resume


def fresh() -> tuple[LlamaForCausalLM, torch.optim.Optimizer]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, tie_word_embeddings=True, **sizes))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)


def step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, number: int) -> float:
    ids = torch.tensor([[number, 5, 6, 7]])
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def test_a_run_that_goes_on_equals_one_that_was_never_stopped(tmp_path: Path):
    model, optimizer = fresh()
    losses = [step(model, optimizer, number) for number in range(4)]
    model, optimizer = fresh()
    for number in range(2):
        step(model, optimizer, number)
    _keep(model, optimizer, 2, tmp_path / "base.ckpt")
    model, optimizer = fresh()
    assert _resume(model, optimizer, tmp_path / "base.ckpt") == 2
    assert [step(model, optimizer, number) for number in (2, 3)] == losses[2:]


def test_without_a_checkpoint_it_starts_at_the_beginning(tmp_path: Path):
    model, optimizer = fresh()
    assert _resume(model, optimizer, tmp_path / "none") == 0
    assert _resume(model, optimizer, None) == 0
