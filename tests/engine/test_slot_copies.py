"""Adapters that are written on a stream of their own: a step that uses one waits for it, others do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.model_manager import LoraModelManager
from adapterhub.lora.slot_copies import SlotCopies
from tests.engine.lazy_streams import LazyStreams
from tests.engine.recorded_graph import GatherOps, Graphs
from tests.engine.test_cuda_graphs import Steps, come_go_and_grow, folders

__all__ = ["folders"]  # a fixture

GPU = torch.device("cuda")


class Model(torch.nn.Module):
    """Two linear layers, in the form that a manager expects."""

    base_model_prefix = "model"

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(6, 6, bias=False), torch.nn.Linear(6, 6, bias=False)

    def get_output_embeddings(self) -> None:
        """None: there is no head."""


def change(seed: int, rank: int = 2) -> LoraDelta:
    random = torch.Generator().manual_seed(seed)
    return LoraDelta(torch.randn(rank, 6, generator=random), torch.randn(6, rank, generator=random))


@pytest.fixture
def streams() -> LazyStreams:
    return LazyStreams()


@pytest.fixture
def manager(streams: LazyStreams) -> LoraModelManager:
    return LoraModelManager(Model(), slots=3, dtype=torch.float32, copies=SlotCopies(GPU, streams))


@torch.inference_mode()
def output(manager: LoraModelManager, slot: int) -> torch.Tensor:
    x = torch.ones(1, 6)
    with manager.using(LoraMapping([(slot, 1)])):
        return manager._model.one(x) - manager._model.one.base_layer(x)


def product(delta: LoraDelta) -> torch.Tensor:
    return torch.ones(1, 6) @ delta.a.T @ delta.b.T


def test_a_step_waits_for_its_own_adapter_alone(manager: LoraModelManager, streams: LazyStreams):
    first, second = change(1), change(2)
    manager.load(0, {"one": first})
    assert torch.allclose(output(manager, 0), product(first), atol=1e-6)
    waits = streams.main.waits
    manager.load(1, {"one": second})
    assert torch.allclose(output(manager, 0), product(first), atol=1e-6)
    assert streams.main.waits == waits
    assert torch.allclose(output(manager, 1), product(second), atol=1e-6)
    assert streams.main.waits == waits + 1
    output(manager, 1)
    assert streams.main.waits == waits + 1  # once is enough


def test_writing_begins_behind_the_steps_before_it(manager: LoraModelManager, streams: LazyStreams):
    manager.load(0, {"one": change(1)})
    manager.clear(0)
    assert streams.side.begun_behind == [streams.main] * 2


def test_an_emptied_slot_is_empty_for_the_next_step(manager: LoraModelManager):
    manager.load(0, {"one": change(1)})
    manager.clear(0)
    assert not output(manager, 0).any()


def test_when_stacks_move_all_adapters_are_waited_for(manager: LoraModelManager, streams: LazyStreams):
    first, larger = change(1), change(2, rank=5)
    manager.load(0, {"one": first})
    output(manager, 0)
    manager.load(1, {"one": larger})
    assert torch.allclose(output(manager, 0), product(first), atol=1e-6)
    assert torch.allclose(output(manager, 1), product(larger), atol=1e-6)


def test_an_adapter_that_fails_half_written_is_waited_for_too(
    manager: LoraModelManager, streams: LazyStreams, monkeypatch: pytest.MonkeyPatch
):
    manager.load(0, {"one": change(1), "two": change(2)})
    manager.clear(0)
    output(manager, 0)
    copy, left = torch.Tensor.copy_, [3]

    def fail(self: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        left[0] -= 1
        if not left[0]:
            raise torch.OutOfMemoryError
        return copy(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.Tensor, "copy_", fail)
    with pytest.raises(torch.OutOfMemoryError):
        manager.load(0, {"one": change(3), "two": change(4)})
    manager.clear(0)
    assert not output(manager, 0).any()


def test_without_a_gpu_nothing_waits(streams: LazyStreams):
    copies = SlotCopies(torch.device("cpu"), streams)
    manager = LoraModelManager(Model(), slots=3, dtype=torch.float32, copies=copies)
    manager.load(0, {"one": change(1)})
    assert torch.allclose(output(manager, 0), product(change(1)), atol=1e-6)
    assert not streams.side.writes
    assert not streams.main.waits


def load_beside_a_step(steps: Steps) -> Iterator[tuple[str, torch.Tensor]]:
    """A slot is written again and again, some steps before its adapter is used, by steps that decode too."""
    yield from come_go_and_grow(steps)
    steps.end("replaced")
    steps.load(1, "small")
    yield from steps.step(2)
    steps.begin("again", 1, 4)
    yield from steps.step(2)
    for name in ("large", "dora"):  # of a running answer, so that a graph is all that uses the first
        steps.load(1, name)
        yield from steps.step(2)


@pytest.mark.parametrize("with_graphs", [False, True])
def test_steps_beside_copies_are_those_after_them(
    folders: dict[str, Path], streams: LazyStreams, monkeypatch: pytest.MonkeyPatch, with_graphs: bool
):
    monkeypatch.setattr("adapterhub.lora.stacked_weights.choose_kernels", lambda device: GatherOps)
    wanted = list(load_beside_a_step(Steps(folders, Graphs() if with_graphs else None)))
    monkeypatch.setattr(
        "adapterhub.engine.runners.packed.SlotCopies", lambda device: SlotCopies(GPU, streams)
    )
    got = list(load_beside_a_step(Steps(folders, Graphs() if with_graphs else None)))
    assert [name for name, _ in got] == [name for name, _ in wanted]
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(got, wanted, strict=True))
    assert streams.main.waits > 3
