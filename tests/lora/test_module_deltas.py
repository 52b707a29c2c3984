"""Weighted sums of replaced modules and rows, against their definition: the base plus weighted differences."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adapterhub.errors import AdapterIncompatibleError
from adapterhub.lora.module_deltas import EmbeddingDelta, SavedModuleDelta, TokenRowsDelta

BASE = nn.Embedding(6, 3)
W = BASE.weight.detach()


def test_replaced_modules_add_their_differences():
    a, b = torch.randn(6, 3), torch.randn(6, 3)
    parts = [(SavedModuleDelta({"weight": a}), 0.3), (SavedModuleDelta({"weight": b}), -0.5)]
    found = SavedModuleDelta.weighted_sum(parts, BASE).parameters["weight"]
    assert torch.allclose(found, W + 0.3 * (a - W) - 0.5 * (b - W), atol=1e-6)
    assert SavedModuleDelta.weighted_sum([(parts[0][0], 1.0)], None) is parts[0][0]  # as it was trained


def test_rows_that_only_some_replace_count_too():
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    parts = [
        (TokenRowsDelta(torch.tensor([1, 4]), a), 0.3),
        (TokenRowsDelta(torch.tensor([0, 4]), b), 2.0),
    ]
    found = TokenRowsDelta.weighted_sum(parts, BASE)
    assert found.token_ids.tolist() == [0, 1, 4]
    wanted = [W[0] + 2 * (b[0] - W[0]), W[1] + 0.3 * (a[0] - W[1])]
    wanted.append(W[4] + 0.3 * (a[1] - W[4]) + 2 * (b[1] - W[4]))
    assert torch.allclose(found.rows, torch.stack(wanted), atol=1e-6)


def test_the_sum_of_embeddings_stays_one():
    parts = [(EmbeddingDelta(torch.randn(2, 6), torch.randn(3, 2)), weight) for weight in (0.5, -1.0)]
    found = EmbeddingDelta.weighted_sum(parts)
    assert type(found) is type(found.to(torch.bfloat16)) is EmbeddingDelta
    assert torch.allclose(found.b @ found.a, sum(w * one.b @ one.a for one, w in parts), atol=1e-6)


def test_without_the_base_there_is_no_difference():
    parts = [(SavedModuleDelta({"weight": W}), 0.5)]
    with pytest.raises(AdapterIncompatibleError, match="the base's own at hand"):
        SavedModuleDelta.weighted_sum(parts, None)
