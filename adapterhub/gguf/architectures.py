"""The architectures of llama.cpp that are written as GGUF: their names for a model's weights, and how they are stored.

Names come from the `gguf` package. llama.cpp stores most weights as transformers does, with three exceptions: its llama
rotates neighbouring pairs of a head's rows, where transformers rotates halves; GPT-2's weights are transposed; and
Gemma's norms have their 1 added.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.base.linear_layers import LinearLayers
from adapterhub.errors import ExportError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# `model_type` of config.json -> llama.cpp's architecture.
_NAMES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "gpt2": "gpt2",
}
# Of a model that also sees; llama.cpp keeps these in another file.
_NOT_TEXT = re.compile(r"(^|\.)(vision_tower|multi_modal_projector)\.")
# Buffers that old files hold; they follow from the settings.
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
_SUFFIXES = (".weight", ".bias")


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp names and stores the weights of one model; construct it with `of_folder`.

    Attributes:
        name: llama.cpp's name, such as `"llama"` for Llama, Mistral and SmolLM.
        config: transformers' config of the text model.
        layers: The model's linear layers.
    """

    name: str
    config: Any
    layers: LinearLayers

    @classmethod
    def of_folder(cls, folder: str | Path) -> Architecture:
        """The architecture of a model on disk.

        Args:
            folder: Holds `config.json`.

        Raises:
            ConfigError: The folder holds no causal language model that transformers knows.
            ExportError: It is of an architecture that is not written as GGUF.
        """
        from transformers import AutoConfig

        layers = LinearLayers.of_folder(folder)
        if layers is None:
            raise _unknown("a model that only code in its folder knows")
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        if config.model_type not in _NAMES:
            raise _unknown(config.model_type)
        return cls(_NAMES[config.model_type], config, layers)

    def tensor_name(self, parameter: str) -> str | None:
        """llama.cpp's name of a parameter, such as `"blk.0.attn_q.weight"`.

        Args:
            parameter: Its name in transformers' model, which ends in `.weight` or `.bias`.

        Returns:
            None if llama.cpp's file does without it: weights tied to the embedding, and those of a vision part.

        Raises:
            ExportError: llama.cpp has no such weight.
        """
        if parameter in self.layers.tied or _NOT_TEXT.search(parameter) or parameter.endswith(_BUFFERS):
            return None
        name: str | None = self._names.get_name(
            parameter.replace("language_model.", ""), try_suffixes=_SUFFIXES
        )
        if name is None:
            raise ExportError(
                f"llama.cpp's architecture {self.name!r} has no weight for {parameter!r}.",
                hint="Take a checkout of llama.cpp whose converter knows this model: --llama-cpp-dir.",
            )
        return name

    def row_order(self, parameter: str) -> npt.NDArray[np.int64] | None:
        """Which row of a parameter llama.cpp has at each place; `weight[order]` is its weight.

        For an adapter on the same layer, `lora_B[order]` is llama.cpp's `lora_b`.

        Args:
            parameter: Its name in transformers' model.

        Returns:
            None if the rows stay in their places.
        """
        import numpy as np

        if self.name != "llama" or not (heads := self._heads.get(parameter.rsplit(".", 2)[-2])):
            return None
        size = self.config.head_dim
        halves = np.arange(heads * size).reshape(heads, 2, size // 2)
        return halves.swapaxes(1, 2).reshape(-1)

    def is_transposed(self, parameter: str) -> bool:
        """Whether transformers stores a weight as (in_features, out_features); llama.cpp never does."""
        return parameter.removesuffix(".weight") in self.layers.transposed

    def offset(self, parameter: str) -> float:
        """What is added to a weight: 1 for Gemma's norms, which transformers stores without it."""
        return 1.0 if self.name == "gemma3" and parameter.endswith("norm.weight") else 0.0

    @cached_property
    def _heads(self) -> dict[str, int]:
        config = self.config
        return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}

    @cached_property
    def _names(self) -> Any:
        import gguf

        kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == self.name)
        return gguf.get_tensor_name_map(kind, self.config.num_hidden_layers)


def _unknown(kind: str) -> ExportError:
    return ExportError(
        f"There is no GGUF writer for {kind!r}.",
        hint=f"Known are {', '.join(sorted(_NAMES))}; of others `adapterhub export --format gguf` writes the merged "
        "model with a checkout of llama.cpp: --llama-cpp-dir.",
    )
