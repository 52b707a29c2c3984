"""The sampling defaults in a base's `generation_config.json`, for requests and cards that say nothing.

As in vLLM, only settings of the file count, not the defaults of transformers. As in transformers, answers are sampled
only where the file says `do_sample`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal

from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import InvalidRequestError

GenerationConfigSource = Literal["auto", "none"]
"""Where sampling defaults come from: the base's file, or nowhere."""

_SETTINGS = ("top_p", "top_k", "min_p", "repetition_penalty", "suppress_tokens", "bad_words_ids")
_TEMPERATURE = 1.0  # of transformers, where a config samples and gives none

_log = logging.getLogger(__name__)


def default_sampling_params(config: Mapping[str, Any], vocabulary_size: int | None = None) -> dict[str, Any]:
    """The fields of `SamplingParams` that a generation config sets.

    Args:
        config: The content of a `generation_config.json`. Values that are out of range are left out with a warning.
        vocabulary_size: If given, tokens that are not below it are left out.
    """
    given = {name: config[name] for name in _SETTINGS if config.get(name) is not None}
    if config.get("do_sample") is True:
        temperature = config.get("temperature")
        given["temperature"] = _TEMPERATURE if temperature is None else temperature
    params = {
        name: checked for name, value in given.items() if (checked := _checked(name, value)) is not None
    }
    ends = config.get("eos_token_id")
    # As transformers: the end of an answer cannot be a bad word.
    allowed = {(end,) for end in (ends if isinstance(ends, list) else [ends])}
    size = math.inf if vocabulary_size is None else vocabulary_size
    if words := params.get("bad_words_ids"):
        params["bad_words_ids"] = tuple(word for word in words if max(word) < size and word not in allowed)
    if tokens := params.get("suppress_tokens"):
        params["suppress_tokens"] = tuple(token for token in tokens if token < size)
    return params


def _checked(name: str, value: Any) -> Any:
    try:
        return getattr(SamplingParams.of({name: value}), name)
    except InvalidRequestError as error:
        _log.warning("The base's generation config is used without %s. %s", name, error.message)
        return None
