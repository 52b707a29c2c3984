"""The configuration of a chat: who answers, what it is told, and how much it remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from adapterhub._files import read_regular
from adapterhub._yaml import read_config_file
from adapterhub.base.locating import base_in_folder
from adapterhub.config import ENGINE_PATTERN, RegistryUrl
from adapterhub.configs import UserPath
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import AdapterHubError, ConfigError, InvalidRequestError, describe_validation

_MAX_PROMPT_BYTES = 2**20


class ChatConfig(BaseModel):
    """The settings of `adapterhub chat`; its options have the same names."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    adapter: str = "auto"
    """An adapter, a blend, `auto` for the router's choice, or `base`."""
    registry: RegistryUrl | UserPath | None = None
    """The folder of adapters, relative to the folder of the configuration file; or a URL such as `s3://bucket/prefix`."""
    base: str | None = None
    """`adapterhub-demo`, a folder, a GGUF file or a hub id. Without it, the one that the cards name."""
    engine: str | None = Field(None, pattern=ENGINE_PATTERN)
    """What computes: `transformers`, `llama.cpp` or URLs of vLLM servers; transformers if nothing says otherwise."""
    quantization: Literal["auto", "nf4", "fp4", "int4", "int8", "int8_weight_only", "none"] | None = None
    """How the base is stored; auto if nothing says otherwise."""
    device: str | None = None
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    trust_remote_code: bool | None = None
    """Run the base's own Python code."""
    prove_base: bool | None = None
    """Compare what serves with the model's own forward pass before the first answer; so if nothing says otherwise."""
    batch_invariant: bool | None = None
    """Compute the same bits alone and in any company, which is slower; not if nothing says otherwise."""
    system_prompt: str | None = None
    """The system prompt, in place of the card's."""
    system_prompt_file: UserPath | None = None
    """A UTF-8 file that holds it, relative to the folder of the configuration file."""
    history_limit: int | None = Field(10, ge=0)
    """The most earlier messages that a request takes along; null takes all that fit the context."""
    history_tokens: int | None = Field(None, gt=0)
    """The most tokens of a prompt, from the system prompt to the new message; null leaves room for an answer."""
    generation: dict[str, Any] = {}
    """Fields of `SamplingParams`, or transformers' `do_sample` and `max_new_tokens`; what is not set is the card's, the
    base's, or greedy."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.system_prompt is not None and self.system_prompt_file is not None:
            raise ValueError("give system_prompt or system_prompt_file, not both")
        if not {"n", "logprobs", "prompt_logprobs"}.isdisjoint(self.generation):
            raise ValueError("generation: a chat has one answer, without n, logprobs or prompt_logprobs")
        return self

    @field_validator("generation")
    @classmethod
    def _is_valid(cls, generation: dict[str, Any]) -> dict[str, Any]:
        try:
            SamplingParams.of(generation)
        except InvalidRequestError as error:
            raise ValueError(error.message) from error
        return generation

    @classmethod
    def load(cls, path: Path | None = None, **options: Any) -> Self:
        """Reads a configuration, and puts options over it.

        Args:
            path: A YAML or JSON file; None has no settings.
            **options: Fields of this class; None counts as not given. Those in `generation` are put over the file's.

        Raises:
            ConfigError: The file cannot be read, or settings are not valid, of which it names all.
        """
        content = _in_folder(read_config_file(path), path.parent) if path else {}
        given = {name: value for name, value in options.items() if value is not None}
        if given.keys() & {"system_prompt", "system_prompt_file"}:
            content = {k: v for k, v in content.items() if not k.startswith("system_prompt")}
        if isinstance(content.get("generation", {}), dict):  # else its validation says so
            layers = (content.get("generation", {}), given.get("generation", {}))
            given["generation"] = _sampling(*layers)
        try:
            return cls.model_validate({**content, **given})
        except ValidationError as error:
            origin = f"The configuration {str(path)!r}" if path else "The chat's configuration"
            raise ConfigError(
                f"{origin} is not valid: {describe_validation(error, limit=None)}.",
                hint=f"Known settings: {', '.join(cls.model_fields)}.",
            ) from error

    def system(self) -> str | None:
        """The system prompt, from its file if there is one.

        Raises:
            ConfigError: The file cannot be read.
        """
        if self.system_prompt_file is None:
            return self.system_prompt
        name = str(self.system_prompt_file)
        try:
            content = read_regular(self.system_prompt_file, _MAX_PROMPT_BYTES, follow_links=True)
            return content.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise ConfigError(f"The system prompt {name!r} is not UTF-8 text.") from error
        except OSError as error:
            raise ConfigError(f"The system prompt {name!r} cannot be read: {error.strerror}.") from error
        except AdapterHubError as error:
            raise ConfigError(f"It is no system prompt: {error.message}", hint=error.hint) from error


def _in_folder(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings with relative paths taken from the folder of their file."""
    given = {name: content.get(name) for name in ("registry", "system_prompt_file")}
    paths = {
        name: str(folder / path)
        for name, path in given.items()
        if isinstance(path, str) and not path.startswith("~")
    }
    if isinstance(base := content.get("base"), str):
        paths["base"] = base_in_folder(base, folder)
    return {**content, **paths}


def _sampling(*layers: dict[str, Any]) -> dict[str, Any]:
    """Sampling parameters, later layers over earlier ones, without transformers' names."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= {"max_tokens" if name == "max_new_tokens" else name: layer[name] for name in layer}
    if merged.get("do_sample") is False:
        merged["temperature"] = 0.0
    elif merged.get("do_sample") is True:
        merged.setdefault("temperature", 1.0)  # transformers' default
    return {k: v for k, v in merged.items() if k != "do_sample" or not isinstance(v, bool)}
