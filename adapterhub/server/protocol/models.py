"""Models, as `/v1/models` describes them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """What `model` of a request may name."""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())

    id: str
    """The name."""
    object: Literal["model"] = "model"
    created: int
    """When it was registered, or the server was started, seconds since 1970."""
    owned_by: str = "adapterhub"
    root: str
    """The version that the name means: `json@3`, or a blend with its versions."""
    parent: str | None
    """The base; None for the base itself."""
    shares: dict[str, float] | None = None
    """Version -> its share of the requests, where several versions share an alias."""
    max_model_len: int
    """Maximum number of tokens of a prompt and its answer; vLLM's field."""


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Model]
