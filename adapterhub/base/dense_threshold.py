"""From how many tokens packed 4-bit layers are multiplied densely: measured once on each kind of processor.

It depends on the processor: with AMX a few dozen tokens, on others some hundreds or none. So the first base that is
loaded times both products for each of its shapes, for some tenths of a second, and the result is kept in the user's
cache folder. That also lets a later run round as the first one did.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit, Params4bit

from adapterhub._files import read_regular, write_atomic
from adapterhub._processor import processor
from adapterhub.base.packed_kernel import compiled_products
from adapterhub.base.packed_linear import PackedLinear4bit, take_packed_layers
from adapterhub.base.quantized_weights import PACKED_ROWS
from adapterhub.config import cache_folder
from adapterhub.errors import AdapterHubError

_log = logging.getLogger(__name__)
_TOKENS = (512, 256, 128, 64, 32)
_LEAST_GAIN = 1.1
"""By how much the dense product must be quicker; below it is within the noise of a measurement."""
_ROUNDS = 3
_MIN_WEIGHTS, _MAX_WEIGHTS = 1 << 18, 1 << 21
"""A smaller layer is always multiplied packed; of a larger one some rows are timed, as all take the same time."""
_MAX_FILE_BYTES = 1 << 20


@torch.inference_mode()
def product_seconds(layer: PackedLinear4bit, tokens: int) -> tuple[float, float]:
    """The least time of the packed product and of the dense one, with its dequantising, in some rounds in turns.

    Args:
        layer: A packed layer.
        tokens: Number of tokens.
    """
    x = torch.ones(tokens, layer.in_features, dtype=torch.bfloat16)
    packed: list[float] = []
    dense: list[float] = []
    for _ in range(_ROUNDS):
        for product, seconds in ((layer.multiply_packed, packed), (layer.multiply_densely, dense)):
            started = time.perf_counter()
            product(x)
            seconds.append(time.perf_counter() - started)
    return min(packed), min(dense)


def choose_dense_thresholds(
    layers: Iterable[PackedLinear4bit],
    seconds: Callable[[PackedLinear4bit, int], tuple[float, float]] = product_seconds,
) -> None:
    """Sets from how many tokens each layer is multiplied densely, measuring what is not known yet.

    Args:
        layers: Layers of a base, packed or not.
        seconds: Times the two products of a layer for a number of tokens.
    """
    shapes: dict[_Shape, list[PackedLinear4bit]] = {}
    for layer in layers:
        if layer.in_features * layer.out_features >= _MIN_WEIGHTS:
            shapes.setdefault(_Shape.of(layer), []).append(layer)
    if not shapes:
        return
    path = cache_folder("arithmetic") / "dense_thresholds.json"
    known = _remembered(path)
    new = {shape.key: _measure(shape, seconds) for shape in shapes if shape.key not in known}
    known.update(new)
    if new:
        _remember(path, known)
    for shape, alike in shapes.items():
        for layer in alike:
            layer.dense_threshold = known[shape.key]


@dataclass(frozen=True)
class _Shape:
    """What the time of a product depends on, beside the number of tokens."""

    quant_type: str
    rows: int
    in_features: int

    @classmethod
    def of(cls, layer: PackedLinear4bit) -> _Shape:
        """The shape of a layer, or of its first rows where it is a large one."""
        rows = min(layer.out_features, max(1, _MAX_WEIGHTS // layer.in_features // PACKED_ROWS) * PACKED_ROWS)
        return cls(layer.weight.quant_type, rows, layer.in_features)

    @property
    def key(self) -> str:
        """Its name in the file, with the processor, the number of threads and the versions."""
        libraries = f"torch {torch.__version__}, bitsandbytes {version('bitsandbytes')}"
        libraries += ", own packed kernel" * bool(compiled_products())
        capability = torch.backends.cpu.get_cpu_capability()
        return (
            f"{processor()}, {capability}, {torch.get_num_threads()} threads, {libraries}, "
            f"{self.quant_type} {self.rows} x {self.in_features}"
        )

    def layer(self) -> PackedLinear4bit:
        """A packed layer of this shape."""
        layer = Linear4bit(self.in_features, self.rows, bias=False, quant_type=self.quant_type, device="meta")
        weight = torch.zeros(self.rows, self.in_features, dtype=torch.bfloat16)
        layer.weight = Params4bit(weight, requires_grad=False, quant_type=self.quant_type).to("cpu")
        (packed,) = take_packed_layers(layer.eval())
        with torch.inference_mode():
            packed(torch.zeros(1, self.in_features))
        return packed


def _measure(shape: _Shape, seconds: Callable[[PackedLinear4bit, int], tuple[float, float]]) -> int | None:
    """The least number of tokens from which the dense product is quicker; None if it never is."""
    layer, found = shape.layer(), None
    for tokens in _TOKENS:
        packed, dense = seconds(layer, tokens)
        if dense * _LEAST_GAIN > packed:
            break
        found = tokens
    _log.info("%s: dense from %s tokens", shape.key, found)
    return found


def _remembered(path: Path) -> dict[str, int | None]:
    """What was measured before; nothing where the file is missing or damaged, as it can be made again."""
    try:
        content = json.loads(read_regular(path, _MAX_FILE_BYTES))
    except (OSError, ValueError, RecursionError, AdapterHubError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if value is None or value in _TOKENS}


def _remember(path: Path, thresholds: Mapping[str, int | None]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(thresholds, indent=2).encode())
    except OSError as error:
        _log.info("%s is not written, so the next start measures again: %s", path, error)
