"""What stands for a CUDA graph on a CPU, and LoRA's products in operations that it records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adapterhub.lora.kernels.interface import LoraStack
from adapterhub.lora.mapping import LoraMapping

_READ_BY_HOST = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::masked_select")


class RecordedGraph:
    """The operations of one run of a function, repeated on the memory that they had; Python is not run again.

    As when CUDA captures, the host may read no values. Keeps what it was made for, in order, for tests to look at.

    Args:
        function: The function.
    """

    def __init__(self, function: Callable[[], object]) -> None:
        self.replays = 0
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        with _Recorder(self._calls):
            function()

    def replay(self) -> None:
        """Repeats them."""
        self.replays += 1
        for operation, args, kwargs, outputs in self._calls:
            again = tree_leaves(operation(*args, **kwargs))
            for before, now in zip(tree_leaves(outputs), again, strict=True):
                if isinstance(now, torch.Tensor) and now.data_ptr() != before.data_ptr():
                    before.copy_(now)


class _Recorder(TorchDispatchMode):
    def __init__(self, calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]]) -> None:
        super().__init__()
        self._calls = calls

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation.name().split(".")[0] in _READ_BY_HOST:
            raise RuntimeError(f"{operation.name()} is not permitted while a graph is captured")
        output = operation(*args, **(kwargs or {}))
        self._calls.append((operation, args, kwargs or {}, output))
        return output


class Graphs:
    """A `MakeGraph` of recorded graphs, which counts."""

    def __init__(self) -> None:
        self.made: list[RecordedGraph] = []

    def __call__(self, function: Callable[[], object]) -> RecordedGraph:
        self.made.append(RecordedGraph(function))
        return self.made[-1]

    @property
    def replays(self) -> int:
        """How often any of them was replayed."""
        return sum(graph.replays for graph in self.made)


class GatherOps:
    """`LoraKernels` that gather the factors of each token, by torch's operations on the mapping's tiles."""

    name = "gather"
    can_replay = True
    reads_bfloat16 = False

    def __init__(self, stack: LoraStack) -> None:
        self._stack = stack

    def add_lora(self, layer: str, x: torch.Tensor, y: torch.Tensor, mapping: LoraMapping) -> None:
        """Adds the products; see `LoraKernels.add_lora`."""
        slot, start, stop = mapping.tiles(len(y)).unbind(1)
        token, column, rank = torch.arange(len(y))[:, None], self._stack.columns[layer], self._stack.rank
        is_in = (start <= token) & (token < stop)
        slots = (is_in * slot).sum(1)
        lora_a = self._stack.lora_a[:, :, column : column + rank].index_select(0, slots)
        shrunk = x.reshape(len(y), 1, -1) @ lora_a
        added = (shrunk @ self._stack.lora_b[layer].index_select(0, slots))[:, 0]
        y += added * is_in.any(1, keepdim=True)
