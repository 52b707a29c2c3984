"""The weights of a base's linear layers, read from its files one by one; no model is loaded."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.base.fingerprint import weight_tensors
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.errors import ConfigError

if TYPE_CHECKING:
    import torch


class ModuleWeights:
    """The weights of a base on disk by the model's names of its linear layers."""

    def __init__(self, folder: Path, layers: LinearLayers) -> None:
        """Args:
        folder: The base's folder, with safetensors in 16 or 32 bits.
        layers: Its linear layers.
        """
        self._folder, self._layers = folder, layers

    def __call__(self, module: str) -> torch.Tensor:
        """The weight of a layer in float32, shape (out_features, in_features).

        Raises:
            ConfigError: The files have no such weight, or not in floating point.
        """
        from safetensors import safe_open

        parameter = f"{module}.weight"
        name = self._names.get(parameter) or self._names.get(self._layers.tied.get(parameter, ""))
        if name is None:
            raise ConfigError(
                f"The base's files have no weight of {module!r} as it stands.",
                hint="Give the folder of the base's 16-bit weights.",
            )
        with safe_open(self._files[name], "pt") as file:
            weight: torch.Tensor = file.get_tensor(name)
        if not weight.is_floating_point() or weight.element_size() < 2:
            raise ConfigError(
                f"The base's weight of {module!r} is quantised.",
                hint="Give the folder of the base's 16-bit weights.",
            )
        return (weight.T if module in self._layers.transposed else weight).float()

    @cached_property
    def _files(self) -> dict[str, Path]:
        return weight_tensors(self._folder)

    @cached_property
    def _names(self) -> dict[str, str]:
        return self._layers.parameters_in(self._files)
