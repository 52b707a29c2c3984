"""Steps that are replayed: on a CPU by a graph of recorded operations, compared with steps that are computed anew."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub.base.loading import load_base
from adapterhub.engine.batching import BatchingEngine, pinned
from adapterhub.engine.kv.static_decode import bucket
from adapterhub.engine.runner import ScheduledSequence
from adapterhub.engine.runners.choosing import make_runner
from adapterhub.engine.runners.cuda_graphs import MakeGraph
from adapterhub.engine.runners.packed import PackedRunner
from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.loading import load_folder_deltas
from tests.engine.maker import prompt_of, request
from tests.engine.recorded_graph import GatherOps, Graphs
from tests.tiny import make_adapter, make_base

ADAPTERS: dict[str, dict[str, Any]] = {
    "small": {"r": 4},
    "large": {"r": 12},
    "dora": {"r": 4, "use_dora": True},
}
KINDS = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "gpt2": {},  # transformers' own forward pass, and layers with biases
}


@pytest.fixture(scope="module", params=KINDS)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, and an adapter of each kind for it."""
    root = tmp_path_factory.mktemp(request.param)
    base = make_base(root / "base", request.param, **KINDS[request.param])
    made = {
        name: make_adapter(root / name, base, seed=seed, **settings)
        for seed, (name, settings) in enumerate(ADAPTERS.items())
    }
    return {"base": base, **made}


class Steps:
    """A runner and its sequences, which decode greedily."""

    def __init__(self, folders: dict[str, Path], make_graph: MakeGraph | None) -> None:
        self._folders = folders
        self._base = load_base(folders["base"], quantization=None, compute_dtype="float32", device="cpu")
        self.runner = PackedRunner(self._base, max_loras=3, make_graph=make_graph)
        self._cache, _ = self.runner.make_caches(64 << 20)
        self._running: dict[str, tuple[Any, int | None, list[int]]] = {}

    def load(self, slot: int, name: str) -> None:
        deltas = load_folder_deltas(
            self._folders[name], self._base.model, self._base.linear_layers, dtype=torch.float32
        )
        self.runner.load_adapter(slot, deltas)

    def begin(self, name: str, lora_slot: int | None, prompt: int, room: int = 30) -> None:
        self._running[name] = (self._cache.allocate(prompt + room), lora_slot, prompt_of(len(name), prompt))

    def end(self, name: str) -> None:
        self._cache.free(self._running.pop(name)[0])

    def step(self, times: int = 1) -> Iterator[tuple[str, torch.Tensor]]:
        """Steps of all sequences, and the logits of each."""
        for _ in range(times):
            scheduled = [ScheduledSequence(*self._next(one), True) for one in self._running.values()]
            logits = self.runner.step(scheduled).clone()
            for (name, (_, _, tokens)), of_one in zip(self._running.items(), logits, strict=True):
                tokens.append(int(of_one.argmax()))
                yield name, of_one

    @staticmethod
    def _next(one: tuple[Any, int | None, list[int]]) -> tuple[Any, list[int], int | None]:
        kv_slot, lora_slot, tokens = one
        return kv_slot, tokens[kv_slot.length :], lora_slot


def come_go_and_grow(steps: Steps) -> Iterator[tuple[str, torch.Tensor]]:
    """Sequences join and end, lengths cross a power of two, adapters are loaded, replaced, and larger than before."""
    steps.load(1, "small")
    steps.begin("base", None, 9)
    yield from steps.step(3)
    steps.begin("adapted", 1, 60)  # of the next pool; decodes beyond 64 tokens
    steps.begin("longer", None, 12)
    yield from steps.step(6)
    steps.load(2, "large")  # the stacks grow
    steps.begin("large", 2, 3)
    yield from steps.step(3)
    steps.end("base")  # another slot moves into its place
    yield from steps.step(2)
    steps.end("adapted")
    steps.load(1, "large")  # in place of the other one
    steps.begin("replaced", 1, 5)
    yield from steps.step(3)


def check(folders: dict[str, Path], graphs: Graphs, scenario: Callable[[Steps], Any], mp: pytest.MonkeyPatch):
    """Compares every logit of a scenario with and without graphs."""
    wanted = list(scenario(Steps(folders, None)))
    mp.setattr("adapterhub.lora.stacked_weights.choose_kernels", lambda device: GatherOps)
    got = list(scenario(Steps(folders, graphs)))
    assert [name for name, _ in got] == [name for name, _ in wanted]
    for (_, one), (_, other) in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    return wanted


def test_replayed_steps_are_computed_ones(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    graphs = Graphs()
    check(folders, graphs, come_go_and_grow, monkeypatch)
    assert graphs.replays == 2 + 5 + 2 + 2 + 2  # all but those with a prompt
    assert len(graphs.made) < graphs.replays


def test_a_graph_is_captured_again_only_after_what_it_reads_has_moved(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    def scenario(steps: Steps) -> Iterator[tuple[str, torch.Tensor]]:
        steps.load(0, "small")
        steps.begin("one", 0, 4)
        yield from steps.step(3)
        assert len(graphs.made) in (0, 1)
        steps.load(0, "small")  # the same memory
        yield from steps.step(2)
        assert len(graphs.made) in (0, 1)
        steps.load(1, "large")
        yield from steps.step(2)
        assert len(graphs.made) in (0, 2)

    graphs = Graphs()
    check(folders, graphs, scenario, monkeypatch)
    assert graphs.replays == 2 + 2 + 2


def test_adapters_that_python_applies_are_computed_anew(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    def scenario(steps: Steps) -> Iterator[tuple[str, torch.Tensor]]:
        steps.load(0, "dora")
        steps.begin("base", None, 4)
        yield from steps.step(2)  # the second is replayed
        steps.begin("dora", 0, 5)
        yield from steps.step(3)  # none is
        steps.end("dora")
        yield from steps.step(2)

    graphs = Graphs()
    check(folders, graphs, scenario, monkeypatch)
    assert graphs.replays == 1 + 2


def test_kernels_that_cannot_be_replayed_are_computed_anew(folders: dict[str, Path]):
    graphs = Graphs()
    steps = Steps(folders, graphs)
    steps.load(0, "small")
    steps.begin("one", 0, 4)
    assert len(list(steps.step(3))) == 3
    assert graphs.replays == 0


def test_what_cannot_be_captured_is_computed_and_said_once(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
):
    def fail(function: Callable[[], object]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    plain, steps = Steps(folders, None), Steps(folders, fail)
    for one in (plain, steps):
        one.begin("base", None, 6)
    with caplog.at_level(logging.WARNING):
        got, wanted = list(steps.step(4)), list(plain.step(4))
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(got, wanted, strict=True))
    assert caplog.text.count("not captured") == 1


def test_the_host_may_read_no_value_while_a_graph_is_captured():
    values = torch.ones(3)
    with pytest.raises(RuntimeError, match="not permitted"):
        Graphs()(lambda: values.sum().item())


def test_the_proof_replays_steps(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("adapterhub.lora.stacked_weights.choose_kernels", lambda device: GatherOps)
    graphs = Graphs()
    base = load_base(folders["base"], quantization=None, compute_dtype="float32", device="cpu")
    runner = make_runner(base, max_loras=2, make_graph=graphs)
    assert isinstance(runner, PackedRunner)
    assert runner.has_graphs
    assert runner.proof is not None
    assert runner.proof.difference <= runner.proof.bound
    assert graphs.made[0].replays == 2  # what was captured, and the same operations with other tokens


def test_a_graph_that_computes_something_else_is_not_taken(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Such as one that repeats what it computed when it was captured."""

    class Stale(Graphs):
        def __call__(self, function: Callable[[], object]) -> Any:
            function()
            self.made.append(graph := super().__call__(lambda: None))
            return graph

    monkeypatch.setattr("adapterhub.lora.stacked_weights.choose_kernels", lambda device: GatherOps)
    base = load_base(folders["base"], quantization=None, compute_dtype="float32", device="cpu")
    with caplog.at_level(logging.WARNING):
        runner = make_runner(base, max_loras=2, make_graph=Stale())
    assert runner.name == "packed"
    assert "without CUDA graphs" in caplog.text


@pytest.mark.parametrize(
    ("count", "rounded"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16), (17, 24), (64, 64)]
)
def test_buckets(count: int, rounded: int):
    assert bucket(count) == rounded


def test_a_cpu_has_no_graphs_which_is_said(tiny_base: Path, caplog: pytest.LogCaptureFixture):
    base = load_base(tiny_base, quantization=None, device="cpu")
    with caplog.at_level(logging.WARNING):
        engine = BatchingEngine(base, use_cuda_graph=True)
    ((answer,),) = engine.generate([request(prompt_of(1, 4), None, max_tokens=3)])
    assert len(answer.token_ids) == 3
    assert "no CUDA graphs on a device of the kind cpu" in caplog.text
    engine.close()


def test_pinned_adapters_are_laid_out_as_slots_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    delta = LoraDelta(torch.randn(4, 12), torch.randn(8, 4), torch.rand(8))
    (got,) = pinned({"layer": delta}).values()
    assert isinstance(got, LoraDelta)
    assert got.a.is_contiguous()
    assert got.b.T.is_contiguous()
    for name in ("a", "b", "magnitude_scale"):
        assert torch.equal(getattr(got, name), getattr(delta, name))


def test_an_adapter_without_pinned_memory_is_still_loaded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", fail)
    deltas = {"layer": LoraDelta(torch.randn(4, 12), torch.randn(8, 4))}
    with caplog.at_level(logging.WARNING):
        assert pinned(deltas) is deltas
    assert "not pinned" in caplog.text
