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
        registry_cache_mib: `ADAPTERHUB_REGISTRY_CACHE_MIB`: maximum disk space for downloads from a registry at a URL.
    """

    registry: str
    base: str | None = None
    names: Names = "pinned"
    registry_cache_mib: int = 20_480

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """Reads them; None if no registry is set.

        Raises:
            ConfigError: A variable has no such value.
        """
        registry = environment.get("ADAPTERHUB_REGISTRY")
        if not registry:
            return None
        names = environment.get("ADAPTERHUB_VLLM_NAMES") or "pinned"
        if names not in get_args(Names):
            raise ConfigError(f"ADAPTERHUB_VLLM_NAMES is {names!r}.", hint="Give 'pinned' or 'any'.")
        return cls(
            registry,
            environment.get("ADAPTERHUB_BASE") or None,
            "any" if names == "any" else "pinned",
            _cache_mib(environment.get("ADAPTERHUB_REGISTRY_CACHE_MIB") or str(cls.registry_cache_mib)),
        )


def _cache_mib(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text)):
        raise ConfigError(f"ADAPTERHUB_REGISTRY_CACHE_MIB is {text[:20]!r}.", hint="Give MiB, from 1.")
    return int(text)
