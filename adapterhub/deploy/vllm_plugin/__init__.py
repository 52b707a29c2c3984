"""A plugin of vLLM that pulls adapters from a registry by name: `vllm serve` finds it as an installed entry point.

It runs in vLLM's own environment, whose versions are not this package's, so it needs no more than the registry does:
pydantic, filelock and numpy, and for a URL the package of its store.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapterhub.deploy.vllm_plugin.settings import PluginSettings

_log = logging.getLogger("vllm.adapterhub")  # vLLM shows the messages below "vllm"


def register() -> None:
    """Adds the resolver to vLLM if `ADAPTERHUB_REGISTRY` is set; vLLM calls it in each of its processes.

    It raises nothing: a fault is logged, and vLLM starts without the registry.
    """
    try:
        from adapterhub.deploy.vllm_plugin.settings import PluginSettings

        if settings := PluginSettings.of(os.environ):
            _register(settings)
    except Exception:  # noqa: BLE001  # vLLM's start would fail with whatever it is
        _log.exception("adapterhub: adapters are not pulled from a registry")


def _register(settings: PluginSettings) -> None:
    from vllm.lora.resolver import LoRAResolverRegistry

    from adapterhub.deploy.vllm_plugin.registered_adapters import RegisteredAdapters
    from adapterhub.deploy.vllm_plugin.resolver import RegistryResolver

    LoRAResolverRegistry.register_resolver("adapterhub", RegistryResolver(RegisteredAdapters(settings)))
    _log.info("adapterhub: adapters are pulled from %s", settings.registry)
