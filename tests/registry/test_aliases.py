"""Aliases whose requests several versions share, and their shadows: how they are set, stored and removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from adapterhub.errors import (
    AdapterExistsError,
    AdapterInvalidError,
    AdapterNotFoundError,
    InvalidRequestError,
)
from adapterhub.registry import AdapterRegistry, Alias, Shadow
from tests.registry.maker import content


@pytest.fixture
def four(registry: AdapterRegistry, adapter: Path) -> AdapterRegistry:
    """A registry with json@1 to json@4, and `prod` at version 3."""
    for _ in range(4):
        registry.register("json", adapter)
    registry.alias("json", "prod", 3)
    return registry


def stored(registry: AdapterRegistry) -> Any:
    return json.loads((registry.root / "json" / "refs.json").read_text())["aliases"]


def test_a_split_shares_requests_and_resolves_to_its_largest_part(four: AdapterRegistry) -> None:
    four.alias("json", "prod", {3: 90, 4: 10})
    assert four.aliases("json")["prod"].shares == {3: 0.9, 4: 0.1}
    assert four.resolve("json@prod").version == 3
    assert (four.get("json@3").aliases, four.get("json@4").aliases) == (("prod",), ())
    four.alias("json", "prod", {3: 1, 4: 2})
    assert four.resolve("json@prod").version == 4
    four.alias("json", "prod", {4: 5, 2: 5})
    assert four.resolve("json@prod").version == 2  # of equal ones the oldest
    four.alias("json", "prod", 4)
    assert four.aliases("json") == {"prod": Alias(weights={4: 1})}


def test_one_version_is_stored_as_before_and_old_files_are_read(four: AdapterRegistry) -> None:
    assert stored(four) == {"prod": 3}
    four.alias("json", "prod", {3: 90, 4: 10})
    assert stored(four) == {"prod": {"weights": {"3": 90, "4": 10}}}
    (four.root / "json" / "refs.json").write_text('{"aliases": {"prod": 2}, "next_version": 5}')
    assert four.resolve("json@prod").version == 2
    assert not four.aliases("json")["prod"].is_split


def test_releases_without_splits_refuse_the_file(four: AdapterRegistry) -> None:
    """Their model of `refs.json`, as it was: they must not send all requests to one version without a word."""

    class OldRefs(BaseModel):
        model_config = ConfigDict(extra="forbid")
        aliases: dict[str, PositiveInt] = {}
        next_version: PositiveInt = 1

    path = four.root / "json" / "refs.json"
    assert OldRefs.model_validate_json(path.read_bytes()).aliases == {"prod": 3}
    four.alias("json", "prod", {3: 90, 4: 10})
    with pytest.raises(ValidationError):
        OldRefs.model_validate_json(path.read_bytes())
    four.alias("json", "prod", 3)
    four.shadow("json", "prod", 4)
    with pytest.raises(ValidationError):
        OldRefs.model_validate_json(path.read_bytes())


@pytest.mark.parametrize(
    ("weights", "error"),
    [
        ({}, InvalidRequestError),
        ({3: 0, 4: 1}, InvalidRequestError),
        ({3: -1}, InvalidRequestError),
        ({3: 0.5, 4: 0.5}, InvalidRequestError),
        ({3: True}, InvalidRequestError),
        ({3: 2_000_000}, InvalidRequestError),
        ({3: 1, 9: 1}, AdapterNotFoundError),
    ],
)
def test_bad_weights_change_nothing(four: AdapterRegistry, weights: Any, error: type[Exception]) -> None:
    before = content(four.root)
    with pytest.raises(error):
        four.alias("json", "prod", weights)
    assert content(four.root) == before


def test_more_than_sixteen_versions_are_refused() -> None:
    Alias.of(dict.fromkeys(range(1, 17), 1))
    with pytest.raises(InvalidRequestError, match="weights"):
        Alias.of(dict.fromkeys(range(1, 18), 1))


def test_a_shadow_is_set_kept_and_removed(four: AdapterRegistry) -> None:
    four.shadow("json", "prod", 4, percent=12.5)
    assert four.aliases("json")["prod"].shadow == Shadow(version=4, percent=12.5)
    four.alias("json", "prod", {2: 1, 3: 1})
    assert four.aliases("json")["prod"].shadow == Shadow(version=4, percent=12.5)
    four.alias("json", "prod", 4)  # the shadow is promoted
    assert four.aliases("json")["prod"] == Alias(weights={4: 1})
    four.shadow("json", "prod", 3)
    four.shadow("json", "prod", None)
    assert stored(four) == {"prod": 4}


def test_versions_and_shadow_are_set_as_one_step(
    four: AdapterRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = []
    monkeypatch.setattr(AdapterRegistry, "_write_refs", _counted(writes, AdapterRegistry._write_refs))
    meaning = Alias(weights={2: 90, 3: 10}, shadow=Shadow(version=4, percent=12.5))
    four.alias("json", "prod", meaning)
    assert (four.aliases("json")["prod"], len(writes)) == (meaning, 1)
    four.alias("json", "prod", Alias(weights={2: 1}))  # no shadow is none, where a number keeps it
    assert stored(four) == {"prod": 2}


def _counted(writes: list[object], write: Callable[..., None]) -> Callable[..., None]:
    def counting(*arguments: Any) -> None:
        writes.append(arguments)
        write(*arguments)

    return counting


@pytest.mark.parametrize(
    ("shadow", "error"),
    [(3, InvalidRequestError), (9, AdapterNotFoundError)],
    ids=["answers itself", "absent"],
)
def test_versions_with_a_shadow_that_cannot_be_change_nothing(
    four: AdapterRegistry, shadow: int, error: type[Exception]
) -> None:
    before = content(four.root)
    with pytest.raises(error):
        four.alias("json", "prod", Alias(weights={2: 1, 3: 1}, shadow=Shadow(version=shadow, percent=5)))
    assert content(four.root) == before


@pytest.mark.parametrize(
    ("alias", "version", "percent", "error"),
    [
        ("prod", 3, 5, InvalidRequestError),
        ("prod", 4, 0, InvalidRequestError),
        ("prod", 4, 100.5, InvalidRequestError),
        ("prod", 4, float("nan"), InvalidRequestError),
        ("prod", 9, 5, AdapterNotFoundError),
        ("absent", 4, 5, AdapterNotFoundError),
        ("absent", None, 5, AdapterNotFoundError),
        ("latest", 4, 5, InvalidRequestError),
    ],
)
def test_bad_shadows_change_nothing(
    four: AdapterRegistry, alias: str, version: int | None, percent: float, error: type[Exception]
) -> None:
    before = content(four.root)
    with pytest.raises(error):
        four.shadow("json", alias, version, percent)
    assert content(four.root) == before


@pytest.mark.parametrize("ref", ["json@3", "json@4", "json@2", "json@prod"])
def test_a_version_that_an_alias_needs_is_removed_only_by_force(four: AdapterRegistry, ref: str) -> None:
    four.alias("json", "prod", {3: 90, 4: 10})
    four.shadow("json", "prod", 2)
    before = content(four.root)
    with pytest.raises(AdapterExistsError, match="'prod'"):
        four.remove(ref)
    assert content(four.root) == before


def test_by_force_a_split_goes_on_with_its_other_versions(four: AdapterRegistry) -> None:
    four.alias("json", "prod", {2: 10, 3: 80, 4: 10})
    four.shadow("json", "prod", 1)
    four.remove("json@3", force=True)
    assert four.aliases("json")["prod"] == Alias(weights={2: 10, 4: 10}, shadow=Shadow(version=1, percent=5))
    four.remove("json@1", force=True)
    four.remove("json@2", force=True)
    assert stored(four) == {"prod": 4}
    assert four.resolve("json@prod").version == 4
    four.remove("json@4", force=True)
    assert "aliases" not in json.loads((four.root / "json" / "refs.json").read_text())


def test_verify_finds_versions_of_a_split_and_a_shadow_that_are_not_there(four: AdapterRegistry) -> None:
    refs = {"aliases": {"prod": {"weights": {"3": 1, "8": 1}, "shadow": {"version": 9, "percent": 5}}}}
    (four.root / "json" / "refs.json").write_text(json.dumps(refs))
    assert [problem.message for problem in four.verify("json")] == [
        "The alias 'prod' points to version 8, which does not exist.",
        "The alias 'prod' points to version 9, which does not exist.",
    ]


@pytest.mark.parametrize(
    "meaning",
    [
        {"weights": {}},
        {"weights": {"x": 1}},
        {"weights": {"3": 0}},
        {"shadow": {"version": 4, "percent": 5}},
        {"weights": {"3": 1}, "mirror": 4},
        {"weights": {"3": 1}, "shadow": {"version": 4, "percent": 500}},
        "3",
        None,
    ],
)
def test_a_damaged_split_is_an_error_and_not_read_as_something_else(
    four: AdapterRegistry, meaning: Any
) -> None:
    (four.root / "json" / "refs.json").write_text(json.dumps({"aliases": {"prod": meaning}}))
    with pytest.raises(AdapterInvalidError, match=r"refs\.json cannot be read"):
        four.resolve("json@prod")
    assert [problem.ref for problem in four.verify("json")] == ["json"]


def test_aliases_of_an_adapter_that_does_not_exist(four: AdapterRegistry) -> None:
    with pytest.raises(AdapterNotFoundError):
        four.aliases("absent")


def test_aliases_that_nobody_could_read_again_are_not_stored(
    four: AdapterRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(four.root)
    monkeypatch.setattr("adapterhub.registry.refs.MAX_REFS_BYTES", 60)
    with pytest.raises(InvalidRequestError, match="would take more than"):
        four.alias("json", "a-longer-name-than-there-is-room-for", 1)
    assert content(four.root) == before
