"""Which of transformers' classes loads a base: a checkpoint may hold more than its text decoder.

A vision-language checkpoint has a vision tower beside its decoder. For some (Qwen3.5, Llama 4) transformers has a class
of the decoder alone; others (Gemma 3, Qwen2.5-VL, Mistral 3) are loaded whole, and texts pass the decoder only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_DECODER_IN_WHOLE = "language_model"
"""What transformers calls the decoder inside of a vision-language model."""


def text_class(config: Any) -> Any:
    """transformers' auto class that loads a base to answer texts: of the decoder alone, if there is one.

    Args:
        config: The checkpoint's, from `AutoConfig`.
    """
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM if _has_class(AutoModelForCausalLM, config) else whole_class(config)


def whole_class(config: Any) -> Any:
    """transformers' auto class that loads everything that a checkpoint holds.

    Args:
        config: As for `text_class`.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

    kinds = (AutoModelForImageTextToText, AutoModelForMultimodalLM)
    return next((one for one in kinds if _has_class(one, config)), AutoModelForCausalLM)


def trained_class_name(model_type: str, modules: Iterable[str]) -> str:
    """The name of the auto class that loads a base under the names that an adapter of it has.

    Args:
        model_type: Of the checkpoint.
        modules: What the adapter changes, as it names them.
    """
    from transformers.models.auto import modeling_auto as auto

    whole = {
        "AutoModelForImageTextToText": auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        "AutoModelForMultimodalLM": auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    }
    of_decoder = model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if of_decoder and not any(_DECODER_IN_WHOLE in module.split(".") for module in modules):
        return "AutoModelForCausalLM"
    return next((name for name, known in whole.items() if model_type in known), "AutoModelForCausalLM")


def why_no_decoder(config: Any) -> str | None:
    """Why a checkpoint is no base, as far as its config tells; None if it may be one.

    Args:
        config: As for `text_class`.
    """
    from transformers import AutoModelForCausalLM

    if _has_class(AutoModelForCausalLM, config) or hasattr(config, "auto_map"):
        return None
    if whole_class(config) is AutoModelForCausalLM:
        return f"transformers has no language model of type {config.model_type!r}"
    return "it is an encoder-decoder" if getattr(config, "is_encoder_decoder", False) else None


def _has_class(auto_class: Any, config: Any) -> bool:
    return type(config) in auto_class._model_mapping
