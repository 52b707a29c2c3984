"""What adapters change about a tensor that holds a mixture's experts, or a part of one: the factors of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from adapterhub.base.parameters import ExpertPiece, ParameterShape
from adapterhub.export.adapter_part import AdapterPart
from adapterhub.lora.parameter_delta import ExpertFactors
from adapterhub.peft_format.config import parameter_owner


class ExpertReader:
    """Reads adapters' factors of parameters. The last ones of each kind are kept: the tensors of a parameter's experts
    follow one another in a file.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[Path, str], tuple[str, ExpertFactors]] = {}

    def read(self, part: AdapterPart, module: str, parameter: str, experts: int) -> ExpertFactors:
        """The factors without their scaling, in float32.

        Args:
            part: The adapter.
            module: Its name of the module.
            parameter: The parameter's own name in the module.
            experts: The number of experts.
        """
        key = (part.folder, parameter)
        if key not in self._last or self._last[key][0] != module:
            tensors = part.read(module)
            factors = ExpertFactors.of_peft(tensors["lora_A"], tensors["lora_B"], experts)
            self._last[key] = module, factors
        return self._last[key][1]


@dataclass(frozen=True)
class ExpertsPart:
    """Which experts' rows a tensor in the base's files holds.

    Attributes:
        parameter: The parameter, by its name in the model.
        shape: Its shape.
        piece: The part of it that the tensor is; None for all of it.
        reader: Reads adapters' factors.
    """

    parameter: str
    shape: ParameterShape
    piece: ExpertPiece | None
    reader: ExpertReader

    def read(self, part: AdapterPart, module: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        """An adapter's factors of the tensor's rows and columns, and their scaling.

        Args:
            part: The adapter.
            module: Its name of the module.

        Returns:
            `a` and `b`, so that the change is `scaling * b @ a`; where the tensor holds all experts, of each of them.
        """
        leaf = self.parameter.rpartition(".")[2]
        a, b = self.reader.read(part, module, leaf, self.shape.experts)
        if self.shape.transposed:
            a, b = b.transpose(1, 2), a.transpose(1, 2)
        if self.piece:
            a, b = a[self.piece.expert], b[self.piece.expert].chunk(self.piece.parts)[self.piece.part]
        return a, b, part.info.config.settings.scaling(f"{parameter_owner(module)}.{leaf}")
