"""Steps that decode, captured in CUDA graphs: the GPU repeats a step's kernels without Python launching each of them.

A graph holds addresses, so there is one for each `StepShape`, captured when a step has that shape for the first time,
and again after tensors that it reads have moved: slots of keys and values, or stacks of adapters. Steps with prompts,
and with changes of modules that are applied adapter by adapter, are computed as ever. If anything cannot be captured,
no step is from then on.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from adapterhub.engine.kv.cache import KVSlotPool
from adapterhub.engine.kv.probing import AttentionLayer
from adapterhub.engine.kv.static_decode import (
    DeviceTokens,
    StaticDecode,
    StaticInputs,
    StepShape,
    pools_of,
)
from adapterhub.engine.models.interface import ModelForward
from adapterhub.engine.runner import ScheduledSequence
from adapterhub.lora.mapping import StaticLoraMapping, cut_into_tiles
from adapterhub.lora.model_manager import LoraModelManager

_log = logging.getLogger(__name__)
_MAX_GRAPHS = 64
"""Each takes a few MB of a GPU."""


class Graph(Protocol):
    """A function's operations, which can be repeated on the memory that they had; `torch.cuda.CUDAGraph` is one."""

    def replay(self) -> None:
        """Repeats them."""
        ...


class MakeGraph(Protocol):
    """Captures the operations of a function; `CudaGraphs` is one."""

    def __call__(self, function: Callable[[], object]) -> Graph: ...


class CudaGraphs:
    """Captures functions in CUDA graphs, which share their memory: only one of them may run at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, function: Callable[[], object]) -> Graph:
        """The graph of a function that has run before, so that nothing in it has to be prepared."""
        graph = torch.cuda.CUDAGraph()
        # Other threads load adapters meanwhile, so only what this one does counts.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            function()
        self._pool = self._pool or graph.pool()
        return graph


def graphs_of(device: torch.device) -> MakeGraph | None:
    """What captures the steps of a base on a device; None, which is logged, where there are no graphs."""
    if device.type == "cuda":
        return CudaGraphs()
    _log.warning(
        "There are no CUDA graphs on a device of the kind %s: every step is computed anew.", device.type
    )
    return None


@dataclass(frozen=True)
class _Captured:
    graph: Graph
    inputs: StaticInputs
    logits: torch.Tensor
    addresses: Hashable  # of what the graph reads beside its inputs


class DecodeGraphs:
    """Runs the steps of a `PackedRunner` in which every sequence decodes.

    Args:
        make_graph: Captures a function.
        forward: The model's forward pass, bound to its modules as they are now.
        lora: The adapters.
        layers: The calls of attention in a forward pass, from the probe.
        dtype: The dtype of keys and values.

    Attributes:
        works: Whether nothing has failed so far.
    """

    def __init__(
        self,
        make_graph: MakeGraph,
        forward: Callable[[], ModelForward],
        lora: LoraModelManager,
        layers: Sequence[AttentionLayer],
        dtype: torch.dtype,
    ) -> None:
        self._make_graph, self._forward, self._lora = make_graph, forward, lora
        self._layers, self._dtype = layers, dtype
        self._captured: OrderedDict[StepShape, _Captured] = OrderedDict()  # the least recently used first
        self._outputs: dict[int, torch.Tensor] = {}  # by number of tokens; shared by graphs
        self.works = True

    @torch.inference_mode()
    def step(
        self, sequences: Sequence[ScheduledSequence], tokens: DeviceTokens | None = None
    ) -> torch.Tensor | None:
        """The logits of the next token of each sequence; None if this step has to be computed without a graph.

        Args:
            sequences: Sorted by their LoRA slots, those of the base first.
            tokens: The token of each, where the host does not know them.
        """
        slots = {one.lora_slot for one in sequences if one.lora_slot is not None}
        decodes = all(len(one.token_ids) == 1 and one.needs_logits for one in sequences)
        if not self.works or not decodes or not self._lora.can_replay(slots):
            return None
        self._lora.wait_for(slots)
        try:
            captured = self._find(sequences, tokens)
        except Exception as error:  # noqa: BLE001  whatever a driver or a model raises that does not stand capture
            _log.warning("Steps are not captured in CUDA graphs: %s: %s", type(error).__name__, error)
            self.works = False
            self.clear()
            return None
        captured.graph.replay()
        return captured.logits[: len(sequences)]

    def clear(self) -> None:
        """Frees all graphs."""
        self._captured.clear()
        self._outputs.clear()

    def _find(self, sequences: Sequence[ScheduledSequence], tokens: DeviceTokens | None) -> _Captured:
        """The graph of a step, with the step's inputs in place."""
        pools = pools_of(sequences)
        shape = StepShape.of(sequences, pools)
        tiles = cut_into_tiles((one.lora_slot, 1) for one in sequences) if shape.has_adapters else []
        stacks = self._lora.addresses if shape.has_adapters else None
        addresses = (stacks, *(pool.version for pool in pools))
        captured = self._captured.pop(shape, None)
        if captured is None or captured.addresses != addresses:
            inputs = StaticInputs(shape, pools[0].tensors[0].device)
            inputs.fill(sequences, pools, tiles, tokens)
            captured = self._capture(shape, inputs, pools, addresses)
        else:
            captured.inputs.fill(sequences, pools, tiles, tokens)
        self._captured[shape] = captured
        if len(self._captured) > _MAX_GRAPHS:
            self._captured.popitem(last=False)
        return captured

    def _capture(
        self, shape: StepShape, inputs: StaticInputs, pools: Sequence[KVSlotPool], addresses: Hashable
    ) -> _Captured:
        forward = self._forward()

        def run() -> torch.Tensor:
            step = StaticDecode(inputs, shape, pools, self._layers, self._dtype)
            mapping = StaticLoraMapping(inputs.tiles) if shape.has_adapters else None
            with self._lora.using(mapping):
                return forward(inputs.token_ids, inputs.positions, inputs.everything, step)

        logits = run()  # before capture, so that kernels are compiled
        if shape.tokens not in self._outputs:
            self._outputs[shape.tokens] = torch.empty_like(logits)
        outputs = self._outputs[shape.tokens]
        graph = self._make_graph(lambda: outputs.copy_(run()))
        return _Captured(graph, inputs, outputs, addresses)
