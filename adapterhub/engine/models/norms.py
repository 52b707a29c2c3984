"""Root mean square norms in few operations (arXiv 1910.07467)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from adapterhub.lora.module_layers import ModuleWithSlots

Norm = Callable[[torch.Tensor], torch.Tensor]

_EPSILONS = ("variance_epsilon", "eps")
_TRIED = 4


class Norms:
    """What computes the norms of a model: a root mean square norm in few operations, others by their own forward pass.

    What a module computes is found by trying it, once.
    """

    def __init__(self) -> None:
        self._known: dict[nn.Module, Norm] = {}

    def __call__(self, module: nn.Module) -> Norm:
        """What computes a norm, whatever a model has as such."""
        if isinstance(module, ModuleWithSlots):
            # Tokens that no adapter changes get bit for bit what they get before it is wrapped.
            module.base_forward = self(module.base_layer)
            return module.forward
        if module not in self._known:
            scale = norm_scale(module)
            self._known[module] = rms_norm(*scale) if scale else module.forward
        return self._known[module]


@torch.inference_mode()
def norm_scale(module: nn.Module) -> tuple[torch.Tensor, float, torch.dtype] | None:
    """The factors of a root mean square norm, its epsilon and dtype; None for any other module.

    The factors are the weight (Llama) or one more than it (Gemma), shape (width,), in float32.
    """
    epsilon = next((one for name in _EPSILONS if isinstance(one := getattr(module, name, None), float)), None)
    weight = getattr(module, "weight", None)
    if epsilon is None or not isinstance(weight, torch.Tensor) or weight.ndim != 1:
        return None
    random = torch.randn(_TRIED, len(weight), generator=torch.Generator().manual_seed(0))
    # So small that epsilon counts.
    tried = (random * epsilon**0.5).to(weight.device, weight.dtype)
    wanted = module.forward(tried).float()
    for factors in (weight.float(), 1 + weight.float()):
        got = rms_norm(factors, epsilon, weight.dtype)(tried).float()
        if (got - wanted).norm() <= 4 * torch.finfo(weight.dtype).eps * wanted.norm():
            return factors, epsilon, weight.dtype
    return None


def rms_norm(factors: torch.Tensor, epsilon: float, dtype: torch.dtype) -> Norm:
    """A root mean square norm over the last dimension, which is computed in float32 and rounded once.

    Args:
        factors: What the result is multiplied by, of a shape that the input's broadcasts to, in float32.
        epsilon: Added to the mean square.
        dtype: The dtype of input and output.
    """
    width = factors.shape[-1]
    if factors.is_cuda and factors.ndim == 1:
        rounded = factors.to(dtype)
        if torch.equal(rounded.float(), factors):
            return lambda x: functional.rms_norm(x, (width,), rounded, epsilon)  # one kernel there
    # sqrt(mean + epsilon) is hypot(length, root) / sqrt(width).
    root = torch.tensor((width * epsilon) ** 0.5, device=factors.device)
    scale = factors * width**0.5

    def norm(x: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, 2, -1, True, dtype=torch.float32).hypot_(root)
        return torch.div(x, length).mul_(scale)

    return norm if dtype == torch.float32 else lambda x: norm(x).to(dtype)
