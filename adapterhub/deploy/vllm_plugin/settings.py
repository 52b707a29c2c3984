"""The plugin's settings, from the environment of vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, get_args

from adapterhub.errors import ConfigError

Names = Literal["pinned", "any"]


@dataclass(frozen=True)
class PluginSettings:
    """What the plugin pulls, and for which base.

    Attributes:
        registry: `ADAPTERHUB_REGISTRY`: the registry: a folder or a URL, as `open_registry` takes it.
        base: `ADAPTERHUB_BASE`: the base's name on the cards. Without it, vLLM's `--model` has to be that base: the
            same hub id, or a folder with the same fingerprint.
        names: `ADAPTERHUB_VLLM_NAMES`: `pinned` takes names of one version, such as `json@3`; `any` also `json` and
            `json@prod`, which vLLM then keeps for the version that they mean at their first use.
    """

    registry: str
    base: str | None = None
    names: Names = "pinned"

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """Reads them; None if no registry is set.

        Raises:
            ConfigError: `ADAPTERHUB_VLLM_NAMES` has no such value.
        """
        registry = environment.get("ADAPTERHUB_REGISTRY")
        if not registry:
            return None
        names = environment.get("ADAPTERHUB_VLLM_NAMES") or "pinned"
        if names not in get_args(Names):
            raise ConfigError(f"ADAPTERHUB_VLLM_NAMES is {names!r}.", hint="Give 'pinned' or 'any'.")
        return cls(
            registry, environment.get("ADAPTERHUB_BASE") or None, "any" if names == "any" else "pinned"
        )
