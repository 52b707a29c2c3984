"""How much memory a run will need, by part, without its weights.

Weights, gradients and the optimiser's state follow from the shapes of the model. Activations do not: they depend on the
architecture, on attention's kernel and on what each operation keeps for the backward pass. So one step of the model
with a few of its layers is run on fake tensors, which have shapes and storages but no values, and the bytes that are
alive are counted; each further layer adds the same.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adapterhub.base.auto_class import text_class
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.training.config import FinetuneConfig
from adapterhub.training.lora_layers import lora_config

# bitsandbytes with double quantisation: 4 bits, 8 bits for a block of 64 weights, 32 bits for 256 blocks.
_BYTES_OF_A_WEIGHT = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "fp4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
# On CPUs resident memory is more than what tensors hold: libraries that a run loads, and free blocks of the C allocator
# between activations. Their share was read from glibc (mallinfo2) at the peak of runs; see docs/configs.md.
_LIBRARIES = 100 * 2**20
_FREE_BLOCKS = {torch.float32: 0.5, torch.bfloat16: 0.15, torch.float16: 0.15}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of memory at the peak of a run, by part.

    Attributes:
        base: The frozen base as it is stored.
        adapter: The LoRA weights.
        gradients: Their gradients.
        optimizer: The optimiser's state.
        activations: What forward and backward of the longest batch hold at their peak.
        overhead: On a CPU, about what libraries and the memory allocator take beside that.
    """

    base: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    overhead: int

    @property
    def tensors(self) -> int:
        """The bytes of tensors alone: all but the overhead."""
        return self.total - self.overhead

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True)
class EmptyBase:
    """A base's model without values, on torch's meta device.

    Attributes:
        model: The causal language model.
        linear_layers: Its linear layers.
    """

    model: Any
    linear_layers: LinearLayers

    @property
    def parameters(self) -> int:
        """Number of weights; tied ones count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def estimate_memory(
    config: FinetuneConfig,
    base: EmptyBase,
    dtype: torch.dtype,
    *,
    device: str,
    batch: int,
    length: int,
    answer_positions: int,
) -> tuple[int, MemoryEstimate]:
    """Estimates the memory of a run.

    Args:
        config: The run.
        base: Its base; the model gets LoRA layers.
        dtype: The dtype of activations.
        device: Where it runs.
        batch: Conversations in one forward pass.
        length: Tokens of the longest.
        answer_positions: Positions of the batch for which the output head computes logits.

    Returns:
        The number of trainable weights, and the estimate.
    """
    stored, targets = _base_bytes(config, base, dtype), lora_config(config, base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft, which the run itself gives too
        step = partial(_activations, config, targets, (batch, length, answer_positions))
        activations = _extrapolated(base.model.config, dtype, step)
        count = _trainable(get_peft_model(base.model, targets))
    size = 2 if config.train.adapter_dtype == "bfloat16" else 4
    if config.quantization is not None:  # one weight at a time is dequantised
        layers = base.linear_layers
        activations += dtype.itemsize * max(
            rows * columns for name, (rows, columns) in layers.shapes.items() if name != layers.head
        )
    optimizer = count * _bytes_of_states(config.train.optimizer, size)
    overhead = round(_LIBRARIES + _FREE_BLOCKS[dtype] * activations) if device == "cpu" else 0
    return count, MemoryEstimate(stored, count * size, count * size, optimizer, activations, overhead)


def _bytes_of_states(optimizer: str, size: int) -> int:
    """What an optimiser keeps for each weight; adafactor's rows and columns are next to nothing."""
    if optimizer == "adafactor":
        return 0
    return 2 if "8bit" in optimizer else 2 * size


def _base_bytes(config: FinetuneConfig, base: EmptyBase, dtype: torch.dtype) -> int:
    quantized = _BYTES_OF_A_WEIGHT.get(config.quantization or "", dtype.itemsize)
    layers = base.linear_layers
    inside = {f"{name}.weight" for name in (*layers.shapes, *layers.beside) if name != layers.head}
    return sum(
        round(parameter.numel() * (quantized if name in inside else dtype.itemsize))
        for name, parameter in base.model.named_parameters()
    )


def _trainable(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _extrapolated(settings: Any, dtype: torch.dtype, measure: Callable[[Any], int]) -> int:
    """What the whole model takes, from what it takes with a few of its layers and with a few more."""
    total, period = settings.get_text_config().num_hidden_layers, _period(settings)
    few, more = min(total, max(2, period)), min(total, max(2, period) + period)
    less = measure(_with_layers(settings, few, dtype))
    if more == few:
        return less
    each = (measure(_with_layers(settings, more, dtype)) - less) / (more - few)
    return int(less + each * (total - few))


def _period(settings: Any) -> int:
    """After how many layers their kinds repeat; all that attend to tokens take the same memory."""
    kinds = [
        "attention" if kind in ("full_attention", "sliding_attention") else kind
        for kind in getattr(settings.get_text_config(), "layer_types", None) or ()
    ]
    return next((n for n in range(1, len(kinds)) if kinds[n:] == kinds[:-n]), max(1, len(kinds)))


def _with_layers(settings: Any, count: int, dtype: torch.dtype) -> Any:
    fewer = copy.deepcopy(settings)
    text = fewer.get_text_config()
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:count]
    text.num_hidden_layers = count
    with torch.device("meta"):
        return text_class(fewer).from_config(fewer, dtype=dtype).requires_grad_(False)


def _activations(config: FinetuneConfig, targets: LoraConfig, sizes: tuple[int, int, int], base: Any) -> int:
    batch, length, positions = sizes
    model = get_peft_model(base, targets).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        if config.train.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        weights = list(_replace_by_fake(model))
        ids = torch.zeros((batch, length), dtype=torch.long)
        labels = torch.zeros((batch, positions), dtype=torch.long)
        with _LiveBytes(weights) as live:
            logits = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                use_cache=False,
                logits_to_keep=torch.arange(length - positions, length),
            ).logits.float()
            loss = cross_entropy(logits.flatten(0, 1), labels.flatten())
            loss.backward()  # type: ignore[no-untyped-call]
        return int(live.peak)


def _replace_by_fake(model: Any) -> Iterator[torch.Tensor]:
    """Gives a model on the meta device fake parameters and buffers, which behave as on a CPU; tied ones stay so."""
    known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for module in model.modules():
        for owner in (module._parameters, module._buffers):
            for name, tensor in owner.items():
                if tensor is None:
                    continue
                if id(tensor) not in known:
                    fake: torch.Tensor = torch.empty(tensor.shape, dtype=tensor.dtype)
                    if isinstance(tensor, torch.nn.Parameter):
                        fake = torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
                    known[id(tensor)] = tensor, fake
                    yield fake
                owner[name] = known[id(tensor)][1]


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that operations make, for as long as they live.

    Attributes:
        peak: The greatest number at one time.
    """

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live = 0
        self.peak = 0
        self._storages = {
            tensor.untyped_storage()._cdata for tensor in known
        }  # views of them are no new bytes

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            self._storages.add(key)
            self._live += size
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self._live -= size
