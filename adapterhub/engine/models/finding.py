"""Which models have Llama's structure: found from their modules, and from what each layer computes of a few tokens.

A model may have Llama's modules and use them otherwise, as Granite does, which scales what a layer adds. So each piece
is compared with what transformers' model computes of the same input: the embedding, in each layer the queries, keys and
values and the output, and the logits. Errors of one layer do not add up to those of the next, so the bounds are tight.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from adapterhub.engine.models.llama import LayerKind, LlamaForward, LlamaLayer, prepared
from adapterhub.engine.models.norms import Norms
from adapterhub.engine.models.observing import LayerPass, NotedCalls, ObservedPass, Rotation, observe
from adapterhub.engine.models.transformers import TransformersForward
from adapterhub.errors import EngineError

_log = logging.getLogger(__name__)

_DECODER = frozenset({"embed_tokens", "layers", "norm", "rotary_emb"})
_TWO_NORMS = frozenset({"input_layernorm", "post_attention_layernorm"})
_FOUR_NORMS = _TWO_NORMS | {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
_LAYERS = tuple(frozenset({"self_attn", "mlp"}) | norms for norms in (_TWO_NORMS, _FOUR_NORMS))
_PROJECTIONS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
_ATTENTION = (_PROJECTIONS, _PROJECTIONS | {"q_norm", "k_norm"})
_MLP = (frozenset({"gate_proj", "up_proj", "down_proj", "act_fn"}),)


def find_llama(model: Any, forward: TransformersForward, tolerance: float) -> LlamaForward | None:
    """The written-out forward pass of a model.

    Args:
        model: transformers' model, before any of its modules is wrapped.
        forward: Its own forward pass.
        tolerance: By how much a layer's numbers may differ by rounding, relative to their size.

    Returns:
        None if the model does not have the structure.
    """
    try:
        decoder = _decoder(model)
        seen = observe(forward, decoder.layers, decoder.rotary_emb, model.config.get_text_config().vocab_size)
        return _forward(model, decoder, seen, tolerance)
    except Exception as error:  # noqa: BLE001  whatever a model raises that is used otherwise than it expects
        _log.info("%s is computed by transformers: %s", type(model).__name__, error)
        return None


def has_llama_modules(model: Any) -> bool:
    """Whether a model has the modules of the structure, however it uses them."""
    try:
        _decoder(model)
    except EngineError:
        return False
    return True


def _decoder(model: Any) -> Any:
    """The part with embedding, layers, norm and rotary module.

    Raises:
        EngineError: The modules are others, or have hooks.
    """
    decoder = model.get_decoder()
    _expect(decoder, (_DECODER,))
    for layer in decoder.layers:
        _expect(layer, _LAYERS)
        _expect(layer.self_attn, _ATTENTION)
        _expect(layer.mlp, _MLP)
    if any(map(_is_hooked, model.modules())):
        raise EngineError("It has hooks.")
    return decoder


def _expect(module: nn.Module, choices: Sequence[frozenset[str]]) -> None:
    children = {name for name, _ in module.named_children()}
    if children not in choices or next(module.parameters(recurse=False), None) is not None:
        raise EngineError(f"A {type(module).__name__} has other modules than Llama's.")


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


@torch.inference_mode()
def _forward(model: Any, decoder: Any, seen: ObservedPass, tolerance: float) -> LlamaForward:
    rotations = [prepared(one.rotation) for one in seen.rotary]
    norms = Norms()
    kinds = []
    for module, one in zip(decoder.layers, seen.layers, strict=True):
        given = [index for index, call in enumerate(seen.rotary) if call.rotation is one.rotation]
        choices = [LayerKind(one.call, rotation) for rotation in (*given, None)]
        fitting = (
            kind
            for kind in choices
            if _layer_difference(LlamaLayer(module, kind, norms), one, rotations) <= tolerance
        )
        kinds.append(next(fitting, None) or _refuse("layers"))
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    found = LlamaForward(model, decoder, kinds, seen.rotary, softcap)
    embedded, last = found.embed(seen.token_ids), seen.layers[-1].output
    if _difference(embedded, seen.layers[0].hidden) > tolerance:
        _refuse("embedding")
    everywhere = torch.arange(len(last), device=last.device)
    if _difference(found.logits(last, everywhere), seen.logits) > tolerance:
        _refuse("logits")
    return found


def _layer_difference(layer: LlamaLayer, seen: LayerPass, rotations: Sequence[Rotation]) -> float:
    """The largest difference of what a layer hands to its attention and of what it adds to its input."""
    step = NotedCalls()
    output = layer(seen.hidden.clone(), rotations, step)
    (got,), wanted = step.calls, seen.call
    pairs = ((got.query, wanted.query), (got.key, wanted.key), (got.value, wanted.value))
    # The input may be a thousand times what is added to it: each of the two sums is rounded.
    rounded = 2 * torch.finfo(output.dtype).eps * float(seen.output.float().norm())
    added = float((seen.output.float() - seen.hidden.float()).norm())
    apart = float((output.float() - seen.output.float()).norm())
    return max(apart / (added + rounded), *(_difference(*pair) for pair in pairs))


def _difference(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """How much two tensors differ, relative to the size of the second; infinite for other shapes."""
    if got.shape != wanted.shape:
        return math.inf
    return float((got.float() - wanted.float()).norm() / wanted.float().norm())


def _refuse(what: str) -> NoReturn:
    raise EngineError(f"Its {what} are computed otherwise than Llama's.")
