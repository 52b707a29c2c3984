"""Bodies of vLLM's and SGLang's requests that load and unload adapters."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

_MAX_NAME = 200
_MAX_PATH = 4096


class LoadLoraAdapterRequest(BaseModel):
    """The body of vLLM's `/v1/load_lora_adapter`, as of vLLM 0.33."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"lora_name": "sql", "lora_path": "sql-lora"}]},
    )

    lora_name: str = Field("", max_length=_MAX_NAME)
    """The name that requests will use as `model`."""
    lora_path: str = Field("", max_length=_MAX_PATH)
    """The folder of PEFT's files: below one of the server's adapter folders, or absolute and in one of them."""
    load_inplace: bool = False
    """Make it the next version of a name that is served already."""
    base_model_name: str | None = Field(None, max_length=_MAX_PATH)
    """Ignored: the files are checked against the base that is served."""
    is_3d_lora_weight: bool = False
    """Ignored: it follows from the files."""


class UnloadLoraAdapterRequest(BaseModel):
    """The body of vLLM's `/v1/unload_lora_adapter` and of SGLang's `/unload_lora_adapter`."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"lora_name": "sql"}]},
    )

    lora_name: str = Field("", max_length=_MAX_NAME)
    """The name of the adapter."""
    lora_int_id: int | None = None
    """Ignored: the name is enough."""
    lora_id: str | None = Field(None, max_length=_MAX_NAME)
    """Ignored: the name is enough."""


class LoadSglangLoraAdapterRequest(BaseModel):
    """The body of SGLang's `/load_lora_adapter`, as of SGLang 0.5.23."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"lora_name": "sql", "lora_path": "sql-lora", "pinned": True}]},
    )

    lora_name: str = Field("", max_length=_MAX_NAME)
    """The name that requests will use as `model`."""
    lora_path: str = Field("", max_length=_MAX_PATH)
    """As in `LoadLoraAdapterRequest`."""
    pinned: bool = False
    """Keep it in its LoRA slot."""
    lora_id: str | None = Field(None, max_length=_MAX_NAME)
    """Ignored: an adapter's identity is its digest."""


class SglangLoraUpdate(BaseModel):
    """SGLang's answer to loading and unloading."""

    success: bool
    error_message: str | None = None
    loaded_adapters: dict[str, str]
    """Name -> reference of the version that is served; SGLang's values are paths of its machine."""
