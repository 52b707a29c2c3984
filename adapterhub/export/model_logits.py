"""The logits of a model on disk, with or without an adapter, in float32 and in little memory.

The weights stay in their files and are read layer by layer (accelerate's disk offloading), each once for a few hundred
tokens. So a model that was merged in little memory is verified in little memory. A model in 4 or 8 bits is loaded.
"""

from __future__ import annotations

import ctypes
import json
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub._files import scratch_folder
from adapterhub.base.auto_class import text_class
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.errors import AdapterIncompatibleError, ConfigError, ExportError
from adapterhub.export.verification import TokenSequence, Verification, VerificationTexts, compare_logits
from adapterhub.lora.request import LoraRequest

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig

    from adapterhub.lora.delta import LoraDelta, ModuleDelta
    from adapterhub.lora.parameter_delta import ParameterDelta

_LOGITS_IN_PASS = 2**24  # 64 MiB


def model_logits(
    model: str | Path,
    sequences: Sequence[TokenSequence],
    *,
    adapter: LoraRequest | None = None,
    quantization: BitsAndBytesConfig | None = None,
) -> Generator[torch.Tensor]:
    """Computes the logits of each sequence, on the CPU in float32.

    Args:
        model: The model's folder.
        sequences: The tokens.
        adapter: An adapter or a blend, which is added to the layers' outputs.
        quantization: Quantise the model as it is loaded.

    Yields:
        The logits from position `start` of each sequence on, shape (compared, vocabulary).

    Raises:
        ConfigError: The folder holds no causal language model.
        AdapterIncompatibleError: The adapter does not fit the model.
    """
    import torch

    with _opened(Path(model), quantization) as opened:
        if adapter:
            _add(adapter, opened, Path(model))
        for group in _groups(sequences, opened.config.get_text_config().vocab_size):
            width = max(len(one.token_ids) for one in group)
            # What follows a sequence changes nothing in it: attention is causal.
            ids = torch.tensor([(*one.token_ids, *(0,) * (width - len(one.token_ids))) for one in group])
            with torch.inference_mode():
                logits = opened(input_ids=ids, use_cache=False).logits
            for one, rows in zip(group, logits, strict=True):
                yield rows[one.start : len(one.token_ids)].float()
            del logits, rows  # before the next ones are computed


def verify_model(
    exported: str | Path,
    base: str | Path,
    adapter: LoraRequest,
    texts: VerificationTexts,
    *,
    quantization: BitsAndBytesConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Compares an exported model with an adapter on its base, both in float32.

    Args:
        exported: The exported model's folder.
        base: The base's folder.
        adapter: The adapter or the blend.
        texts: What both read.
        quantization: How the base is stored in the reference, for an export that is to match the adapter there.
        progress: As for `compare_logits`.

    Raises:
        ConfigError: A folder holds no causal language model.
        AdapterIncompatibleError: The adapter does not fit the base.
        ExportError: As for `compare_logits`.
    """
    reference = model_logits(base, texts.sequences, adapter=adapter, quantization=quantization)
    return compare_logits(texts, reference, model_logits(exported, texts.sequences), progress=progress)


@contextmanager
def _opened(folder: Path, quantization: BitsAndBytesConfig | None) -> Iterator[Any]:
    import torch
    from transformers import AutoConfig

    from adapterhub.base.loading import LOADING_ERRORS
    from adapterhub.base.quantized_weights import convert_unquantized, disable_weight_packing

    in_memory = quantization or _is_quantized(folder)
    what = f"The weights of {str(folder)!r} could not be converted for verification"
    with scratch_folder(ExportError, what) as scratch:

        def load(place: str) -> Any:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            with _no_offload_warning():
                return text_class(config).from_pretrained(
                    folder,
                    dtype=torch.float32,
                    # None would hide that the folder's own config says how it is quantised.
                    **({"quantization_config": quantization} if quantization else {}),
                    device_map={"": place},
                    offload_folder=scratch,  # only for weights that transformers splits or joins
                    use_safetensors=True,
                )

        try:
            model = load("cpu" if in_memory else "disk")
            if not in_memory and not _runs(model):
                model = load("cpu")
        except LOADING_ERRORS as error:
            raise ConfigError(f"The model in {str(folder)!r} could not be loaded: {error}") from error
        disable_weight_packing(model)  # which would compute in bfloat16
        if in_memory:
            convert_unquantized(model, torch.float32)
        else:
            _return_freed_memory(model)
        yield model.eval()


@contextmanager
def _no_offload_warning() -> Iterator[None]:
    """accelerate warns that weights stay on disk, which is what is wanted."""
    logger = logging.getLogger("accelerate.big_modeling")

    def is_other(record: logging.LogRecord) -> bool:
        return "offloaded to the disk" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _runs(model: Any) -> bool:
    """Whether a model answers while its weights are on disk: some read the embeddings' without calling them."""
    import torch

    try:
        with torch.inference_mode():
            model(input_ids=torch.tensor([[0]]), use_cache=False)
    except RuntimeError:
        return False
    return True


def _return_freed_memory(model: Any) -> None:
    """glibc would keep the freed weights of layer after layer, which add up to the model in float32."""
    from torch.nn import ModuleList

    try:
        trim = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):  # another libc
        return

    def hook(*_: Any) -> None:
        trim(0)

    for layers in model.modules():
        if isinstance(layers, ModuleList):
            for layer in layers:
                layer.register_forward_hook(hook)


def _is_quantized(folder: Path) -> bool:
    try:
        return "quantization_config" in json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"The config.json of {str(folder)!r} cannot be read: {error}") from error


def _add(adapter: LoraRequest, model: Any, folder: Path) -> None:
    """Adds an adapter's change to the output of every layer that it targets."""
    import torch
    from accelerate.utils.modeling import align_module_device

    from adapterhub.lora.loading import load_adapter_deltas
    from adapterhub.lora.parameter_delta import ParameterDelta

    # Weights that accelerate left on disk do not show which of them are tied.
    layers = LinearLayers.of_folder(folder) or LinearLayers.of_model(model, folder)
    for name, delta in load_adapter_deltas(adapter, model, layers, dtype=torch.float32).items():
        if type(delta) is ParameterDelta:
            _change_parameters(model.get_submodule(name), delta)
            continue
        layer = model.get_submodule(name)
        with align_module_device(layer):
            layer.register_forward_hook(_changing(layer, delta))


def _changing(layer: Any, delta: ModuleDelta) -> Any:
    import torch

    from adapterhub.lora.delta import LoraDelta
    from adapterhub.lora.module_deltas import EmbeddingDelta, SavedModuleDelta, TokenRowsDelta
    from adapterhub.lora.module_layers import slot_module

    match delta:
        case EmbeddingDelta() | SavedModuleDelta() | TokenRowsDelta():
            module = slot_module(layer, delta, torch.float32)
            return lambda _, inputs, output: module(inputs[0], output)
        case LoraDelta():
            bias = getattr(layer, "bias", None)
            return _adding(delta, None if bias is None else bias.clone())
    raise AdapterIncompatibleError(
        f"An adapter with {type(delta).__name__} is not verified.",
        hint="Leave the verification out: --no-verify (verify=False).",
    )


def _change_parameters(module: Any, delta: ParameterDelta) -> None:
    """Adds an adapter's change to a module's parameters while it computes; accelerate has loaded them by then."""
    from torch.nn import Parameter

    attribute = "_old_forward" if hasattr(module, "_old_forward") else "forward"
    compute, transposed = getattr(module, attribute), getattr(module, "is_transposed", False)

    def forward(*args: Any) -> Any:
        own = {name: module._parameters[name] for name in delta.factors}
        for name, factors in delta.factors.items():
            change = factors.dense(transposed=transposed).view_as(own[name])
            module._parameters[name] = Parameter(own[name] + change, requires_grad=False)
        try:
            return compute(*args)
        finally:
            module._parameters.update(own)

    setattr(module, attribute, forward)


def _adding(delta: LoraDelta, bias: torch.Tensor | None) -> Any:
    def hook(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        changed = output + inputs[0] @ delta.a.T @ delta.b.T
        if delta.magnitude_scale is None:
            return changed
        # DoRA scales the rows of the adapted weight, and so the output without its bias.
        constant = 0 if bias is None else bias
        return (changed - constant) * delta.magnitude_scale + constant

    return hook


def _groups(sequences: Sequence[TokenSequence], vocabulary: int) -> Iterator[list[TokenSequence]]:
    """Sequences, in their order, for one forward pass each."""
    group: list[TokenSequence] = []
    for sequence in sequences:
        width = max(len(one.token_ids) for one in (*group, sequence))
        if group and (len(group) + 1) * width * vocabulary > _LOGITS_IN_PASS:
            yield group
            group = []
        group.append(sequence)
    if group:
        yield group
