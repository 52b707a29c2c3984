"""What a caller gets wrong is our error with a hint, whichever method it reaches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub import AdapterHub, AdapterHubError, AdapterRegistry, EchoEngine
from adapterhub.errors import InvalidRequestError


@pytest.fixture
def hub(tiny_registry: Path) -> AdapterHub:
    return AdapterHub(EchoEngine(), AdapterRegistry(tiny_registry))


NAMES: list[Callable[[AdapterHub, Any], Any]] = [
    lambda hub, name: hub.generate("Hi", name),
    lambda hub, name: hub.generate_batch(["Hi"], [name]),
    lambda hub, name: next(hub.stream("Hi", name)),
    lambda hub, name: hub.set_adapter(name),
    lambda hub, name: hub.using(name).__enter__(),
    lambda hub, name: hub.prompt_style(name),
    lambda hub, name: hub.pin(name),
    lambda hub, name: hub.unload(name),
    lambda hub, name: hub.delete_adapter(name),
    lambda hub, name: hub.merge(name, "out"),
    lambda hub, name: hub.registry.get(name),
    lambda hub, name: hub.registry.resolve(name),
    lambda hub, name: hub.registry.versions(name),
    lambda hub, name: hub.registry.remove(name),
    lambda hub, name: hub.registry.alias("json", name, 1),
    lambda hub, name: hub.registry.register(name, "folder"),
    lambda hub, name: hub.blend("mix", {name: 1.0, "json": 0.5} if isinstance(name, int | bytes) else name),
]


@pytest.mark.parametrize("call", NAMES)
@pytest.mark.parametrize(
    "name", [5, True, b"json", ["json"], object(), "\udc80", "a" * 10**5, "json@" + "9" * 5000]
)
def test_what_is_no_reference_is_refused(hub: AdapterHub, call: Callable[[AdapterHub, Any], Any], name: Any):
    before = hub.registry.stamp()
    with pytest.raises(AdapterHubError) as refused:
        call(hub, name)
    assert len(str(refused.value)) < 600
    assert hub.active_adapter is None
    assert hub.registry.stamp() == before


@pytest.mark.parametrize("adapters", [5, object(), True, {"json": 1.0}, b"json"])
def test_what_is_neither_adapters_nor_prompts_is_refused(hub: AdapterHub, adapters: Any):
    for prompts, choices in (([["Hi"]], adapters), (adapters, "json"), (["Hi"], adapters)):
        with pytest.raises(InvalidRequestError):
            hub.generate_batch(prompts, choices)


@pytest.mark.parametrize("tools", [5, [5], "text", {}, [None]])
def test_what_is_no_list_of_tools_is_refused(hub: AdapterHub, tools: Any):
    with pytest.raises(InvalidRequestError, match="tools= takes a list"):
        hub.generate("Hi", "json", tools=tools)


def nested(depth: int | None) -> dict[str, Any]:
    """A description within itself, or within others."""
    inner: dict[str, Any] = {}
    for _ in range(depth or 0):
        inner = {"items": inner}
    if depth is None:
        inner["items"] = inner
    return inner


@pytest.mark.parametrize(
    "tool", [nested(None), nested(5000), {"name": "\udc80"}, {"a": object()}, {"b": {1, 2}}]
)
def test_tools_that_are_not_json_are_refused(hub: AdapterHub, tool: dict[str, Any]):
    with pytest.raises(InvalidRequestError, match="tools= is not JSON") as refused:
        hub.generate("Hi", "json", tools=[tool])
    assert len(str(refused.value).encode()) < 300


def test_what_is_no_filter_is_refused(hub: AdapterHub):
    with pytest.raises(InvalidRequestError, match="RouteFilter"):
        hub.route("write some json", where=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"stop": "\udc80"}, {"max_tokens": 10**5000}, {"priority": 10**400}, {"seed": "\udc80"}]
)
def test_errors_of_options_can_be_printed(hub: AdapterHub, options: dict[str, Any]):
    with pytest.raises(InvalidRequestError) as refused:
        hub.generate("Hi", "json", **options)
    assert len(str(refused.value).encode()) < 600
