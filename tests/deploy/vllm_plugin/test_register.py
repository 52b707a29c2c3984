"""The plugin in a stand-in for vLLM: what it registers, what it answers, and that it never stops vLLM's start."""

from __future__ import annotations

import asyncio
import logging
import sys
import tomllib
from dataclasses import dataclass
from http import HTTPStatus
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from adapterhub import AdapterRegistry
from adapterhub.deploy.vllm_plugin import register
from adapterhub.errors import AdapterHubError, RegistryError, RegistryUnavailableError
from tests.tiny import make_adapter

ROOT = Path(__file__).parents[3]


@dataclass
class LoRARequest:
    """The fields of vLLM's that a resolver sets."""

    lora_name: str
    lora_int_id: int
    lora_path: str


class VLLMValidationError(Exception):
    """vLLM answers it with 400."""

    def __init__(self, message: str, parameter: str) -> None:
        super().__init__(message)
        self.parameter = parameter


class GracefulHTTPError(Exception):
    """vLLM answers it with the status."""

    def __init__(self, message: str, http_status: HTTPStatus):
        super().__init__(message)
        self.http_status = http_status


@pytest.fixture
def resolvers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """vLLM's registry of resolvers, in modules of its names."""
    found: dict[str, Any] = {}
    names = {
        "vllm.exceptions": {
            "GracefulHTTPError": GracefulHTTPError,
            "VLLMValidationError": VLLMValidationError,
        },
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.lora.resolver": {
            "LoRAResolver": object,
            "LoRAResolverRegistry": SimpleNamespace(register_resolver=found.__setitem__),
        },
    }
    for name in ("vllm", "vllm.lora", *names):
        module = ModuleType(name)
        module.__path__ = []  # type: ignore[attr-defined]
        vars(module).update(names.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "adapterhub.deploy.vllm_plugin.resolver", raising=False)
    return found


def test_vllm_finds_it_as_an_installed_plugin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ((name, place),) = project["entry-points"]["vllm.general_plugins"].items()
    module, _, function = place.partition(":")
    assert name == "adapterhub"
    assert getattr(import_module(module), function) is register


def test_without_a_registry_it_does_nothing(resolvers: dict[str, Any], caplog: pytest.LogCaptureFixture):
    register()
    assert resolvers == {}
    assert caplog.records == []


@pytest.mark.parametrize("name", ["pinned", "everything"])
def test_it_never_stops_the_start_of_vllm(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("ADAPTERHUB_REGISTRY", "/nowhere")
    monkeypatch.setenv("ADAPTERHUB_VLLM_NAMES", name)
    register()  # without vLLM, or with a wrong setting
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.ERROR, "vllm.adapterhub")
    assert "not pulled from a registry" in record.getMessage()


def test_it_resolves_names_in_vllm(
    resolvers: dict[str, Any],
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    registry = AdapterRegistry(tmp_path / "registry")
    registry.register("json", make_adapter(tmp_path / "json", tiny_base), base=tiny_base)
    monkeypatch.setenv("ADAPTERHUB_REGISTRY", str(registry.root))
    register()
    register()  # vLLM calls it in several processes, and may call it twice in one
    resolver, base = resolvers["adapterhub"], str(tiny_base)
    request = asyncio.run(resolver.resolve_lora(base, "json@1"))
    assert request == LoRARequest("json@1", 1, str((registry.root / "json" / "1").resolve()))
    assert asyncio.run(resolver.resolve_lora(base, "sql")) is None
    with pytest.raises(VLLMValidationError, match="Ask for 'json@1'") as refused:
        asyncio.run(resolver.resolve_lora(base, "json"))
    assert refused.value.parameter == "model"
    assert "'json' is not served" in caplog.text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RegistryUnavailableError("The store does not answer.", hint="Try again."), 503),
        (RegistryError("The store refuses."), 500),
    ],
)
def test_a_registry_that_cannot_be_read_is_no_fault_of_the_request(
    resolvers: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: AdapterHubError, status: int
):
    class Unreadable:
        def folder(self, model: str, served_base: str) -> Path | None:
            raise error

    resolver = import_module("adapterhub.deploy.vllm_plugin.resolver").RegistryResolver(Unreadable())
    with pytest.raises(GracefulHTTPError, match="The store") as refused:
        asyncio.run(resolver.resolve_lora("base", "json@1"))
    assert refused.value.http_status == status
