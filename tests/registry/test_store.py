from __future__ import annotations

import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from adapterhub._files import hold, open_folder
from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.errors import (
    AdapterDisabledError,
    AdapterExistsError,
    AdapterIncompatibleError,
    AdapterInvalidError,
    AdapterNotFoundError,
    ConfigError,
    InvalidRequestError,
    RegistryError,
    RegistryLockedError,
)
from adapterhub.registry import AdapterCard, AdapterRegistry, BaseInfo, Problem, Routing, importing, store
from adapterhub.registry.cards import CardFields, PromptProfile
from tests.registry.maker import content, make_adapter, make_base


@pytest.fixture
def three(registry: AdapterRegistry, adapter: Path) -> AdapterRegistry:
    """A registry with json@1, json@2 (which `prod` points to) and json@3."""
    for _ in range(3):
        registry.register("json", adapter)
    registry.alias("json", "prod", 2)
    return registry


def test_register_fills_in_the_card(registry: AdapterRegistry, adapter: Path, base: Path) -> None:
    card = registry.register(
        "json",
        adapter,
        base=base,
        quantization="nf4",
        description="Writes JSON.",
        routing={"examples": ["as json"]},
    )
    assert (card.name, card.version, card.status, card.warnings) == ("json", 1, "ready", ())
    fingerprint = BaseFingerprint.of(base)
    assert card.base == BaseInfo(name=str(base), fingerprint=fingerprint, quantization="nf4")
    assert (card.peft.r, card.peft.lora_alpha, card.peft.dtype) == (2, 4.0, "F32")
    assert card.peft.target_modules == ("q_proj", "v_proj")
    assert card.peft.size_bytes == (adapter / "adapter_model.safetensors").stat().st_size
    assert (card.description, card.routing) == ("Writes JSON.", Routing(examples=("as json",)))
    assert card.created_at == card.updated_at
    assert registry.get("json") == registry.resolve("json@1") == card


@pytest.mark.parametrize(
    "recorded",
    [
        "/somebody/elses/base",
        "../elsewhere",
        "org/not-on-this-machine",
        None,
        "~no-such-user/base",
        "x" * 400,
        "a\0b",
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_the_card_names_the_base_that_was_checked(
    registry: AdapterRegistry,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recorded: str | None,
    relative: bool,
) -> None:
    """From any folder: a relative path of the caller's means nothing to a later one."""
    adapter = make_adapter(tmp_path / "own", base_model_name_or_path=recorded, revision="abc")
    monkeypatch.chdir(base.parent)
    card = registry.register("json", adapter, base=base.name if relative else base)
    assert (card.base.name, card.base.revision) == (str(base.resolve()), None)


def test_a_recorded_path_that_is_relative_becomes_absolute(
    registry: AdapterRegistry, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(tmp_path / "own", base_model_name_or_path=base.name)
    monkeypatch.chdir(base.parent)
    assert registry.register("json", adapter, base=base.name).base.name == str(base.resolve())


@pytest.mark.parametrize("same", [True, False])
def test_a_hub_id_stays_if_it_leads_to_the_base_that_was_checked(
    registry: AdapterRegistry, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--org--base"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v1").write_text("a" * 40)
    (repository / "snapshots").mkdir()
    cached = base if same else make_base(tmp_path / "other", seed=5)
    shutil.copytree(cached, repository / "snapshots" / ("a" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    adapter = make_adapter(tmp_path / "own", base_model_name_or_path="org/base", revision="v1")
    card = registry.register("json", adapter, base=base)
    wanted = ("org/base", "v1") if same else (str(base.resolve()), None)
    assert (card.base.name, card.base.revision) == wanted


def test_the_files_are_untouched(registry: AdapterRegistry, adapter: Path) -> None:
    folder = registry.folder(registry.register("json", adapter))
    assert folder == registry.root / "json" / "1"
    stored = content(folder)
    assert stored.pop("card.json")
    assert stored == content(adapter)
    assert not any((registry.root / ".staging").iterdir())


def test_a_dry_run_checks_all_and_stores_nothing(
    registry: AdapterRegistry, adapter: Path, base: Path, tmp_path: Path
) -> None:
    card = registry.register("json", adapter, base=base, description="Writes JSON.", dry_run=True)
    assert (card.name, card.version, card.description) == ("json", 1, "Writes JSON.")
    assert registry.list() == []
    assert not any((registry.root / ".staging").iterdir())
    with pytest.raises(InvalidRequestError, match="larger than"):
        registry.register("json", adapter, routing={"examples": ["x" * 2000] * 600}, dry_run=True)
    with pytest.raises(AdapterInvalidError):
        registry.register("json", tmp_path, dry_run=True)
    assert registry.register("json", adapter, base=base).version == 1


def test_versions_count_up_and_the_bare_name_means_the_highest(three: AdapterRegistry) -> None:
    assert [card.ref for card in three.versions("json")] == ["json@1", "json@2", "json@3"]
    assert three.resolve("json").version == 3
    assert three.resolve("json@1").version == 1


def test_without_a_base_the_card_has_a_warning(registry: AdapterRegistry, adapter: Path) -> None:
    card = registry.register("json", adapter)
    assert card.base == BaseInfo(name="example/tiny-llama")
    assert card.warnings == ("its shapes were not checked against a base",)


def test_list_has_one_card_for_each_name(three: AdapterRegistry, adapter: Path) -> None:
    three.register("code", adapter)
    assert [card.ref for card in three.list()] == ["code@1", "json@3"]


def test_an_empty_registry(tmp_path: Path) -> None:
    registry = AdapterRegistry(tmp_path / "nowhere")
    assert registry.list() == []
    with pytest.raises(RegistryError, match="no registry at") as caught:
        registry.verify()  # "no problems" would hide a mistyped path
    assert caught.value.hint
    for change in (
        lambda: registry.remove("json"),
        lambda: registry.update("json", description="x"),
        lambda: registry.alias("json", "prod", 1),
        lambda: registry.resolve("json"),
        lambda: registry.verify("json"),
    ):
        with pytest.raises(AdapterNotFoundError, match="no adapter 'json'"):
            change()
    assert not registry.root.exists()


@pytest.mark.parametrize(
    ("ref", "hint"),
    [
        ("jsn", "Did you mean 'json'?"),
        ("weather", "There are: json."),
        ("json@9", "There are: json@1, json@2, json@3, json@prod."),
        ("json@test", "There are: json@1, json@2, json@3, json@prod."),
    ],
)
def test_errors_for_unknown_references_name_known_ones(three: AdapterRegistry, ref: str, hint: str) -> None:
    with pytest.raises(AdapterNotFoundError) as caught:
        three.resolve(ref)
    assert caught.value.hint == hint


# The alias `latest`


def test_latest_is_the_highest_version_ready_or_not(three: AdapterRegistry) -> None:
    assert three.get("json@latest") == three.resolve("json@latest") == three.get("json@3")
    three.update("json@latest", status="disabled")
    assert three.get("json@3").status == "disabled"
    assert three.resolve("json").version == 2
    assert three.get("json@latest").version == 3
    with pytest.raises(AdapterDisabledError, match="'json@3' is disabled"):
        three.resolve("json@latest")


def test_latest_moves_by_itself(three: AdapterRegistry, adapter: Path) -> None:
    assert three.register("json", adapter) == three.get("json@latest")
    three.remove("json@latest")
    assert [card.version for card in three.versions("json")] == [1, 2, 3]
    assert three.get("json@latest").version == 3
    assert three.verify("json@latest") == []
    three.remove("json", force=True)
    with pytest.raises(AdapterNotFoundError, match="no adapter 'json'"):
        three.get("json@latest")


def test_latest_is_no_alias_that_can_be_set_or_removed(three: AdapterRegistry) -> None:
    before = content(three.root)
    for version in (1, None):
        with pytest.raises(InvalidRequestError, match="'latest' always means the highest version"):
            three.alias("json", "latest", version)
    assert content(three.root) == before


# Status


def test_disabled_versions_stay_and_are_not_served(three: AdapterRegistry) -> None:
    three.update("json@3", status="disabled")
    assert three.resolve("json").version == 2
    assert three.get("json@3").status == "disabled"
    with pytest.raises(AdapterDisabledError, match="'json@3' is disabled"):
        three.resolve("json@3")
    for version in (1, 2):
        three.update(f"json@{version}", status="disabled")
    assert three.get("json").version == 3
    with pytest.raises(AdapterDisabledError, match="'json@3' is disabled") as caught:
        three.resolve("json")
    assert "update('json@3', status='ready')" in caught.value.hint


# Updates


def test_update_changes_the_card_and_nothing_else(three: AdapterRegistry) -> None:
    before = content(three.root)
    card = three.update("json@prod", description="new", routing={"threshold": 0.5})
    assert card == three.get("json@2")
    assert (card.description, card.routing.threshold, card.version) == ("new", 0.5, 2)
    after = content(three.root)
    assert [path for path in after if after[path] != before.get(path)] == ["json/2/card.json"]
    assert before.keys() == after.keys()


def test_an_update_that_does_not_fit_changes_nothing(three: AdapterRegistry) -> None:
    before = content(three.root)
    with pytest.raises(InvalidRequestError, match="'name' cannot be set"):
        three.update("json", name="other")  # type: ignore[call-arg]
    assert content(three.root) == before


# Aliases


def test_aliases_are_set_moved_and_removed(three: AdapterRegistry) -> None:
    assert three.resolve("json@prod").version == 2
    assert three.get("json@2").aliases == ("prod",)
    assert b"prod" not in (three.root / "json/2/card.json").read_bytes()
    three.alias("json", "prod", 3)
    three.alias("json", "test", 3)
    assert three.resolve("json@3").aliases == ("prod", "test")
    three.alias("json", "prod", None)
    assert three.resolve("json@3").aliases == ("test",)


@pytest.mark.parametrize(("alias", "version"), [("prod", 9), ("prod", 0), ("absent", None)])
def test_aliases_point_to_what_exists(three: AdapterRegistry, alias: str, version: int | None) -> None:
    before = content(three.root)
    with pytest.raises(AdapterNotFoundError):
        three.alias("json", alias, version)
    assert content(three.root) == before


# Removal


def test_a_removed_number_is_not_reused(three: AdapterRegistry, adapter: Path) -> None:
    three.remove("json@3")
    assert three.resolve("json").version == 2
    assert three.register("json", adapter).version == 4
    three.remove("json", force=True)
    assert three.list() == []
    with pytest.raises(AdapterNotFoundError, match="no adapter 'json'"):
        three.versions("json")
    assert three.register("json", adapter).version == 5
    assert three.verify() == []


@pytest.mark.parametrize("ref", ["json@2", "json@prod", "json"])
def test_what_an_alias_points_to_is_removed_only_by_force(three: AdapterRegistry, ref: str) -> None:
    before = content(three.root)
    with pytest.raises(AdapterExistsError, match="'prod' points to json@2"):
        three.remove(ref)
    assert content(three.root) == before
    three.remove(ref, force=True)
    with pytest.raises(AdapterNotFoundError):
        three.get("json@prod")
    assert three.verify() == []


# Bases


def test_an_adapter_for_another_base(
    registry: AdapterRegistry, adapter: Path, base: Path, tmp_path: Path
) -> None:
    stored = registry.folder(registry.register("json", adapter, base=base))
    other = make_base(tmp_path / "other", seed=5)
    before = content(registry.root)
    with pytest.raises(
        AdapterIncompatibleError, match="another base: it has the same shape but other weights"
    ):
        registry.register("json", stored, base=other)
    assert content(registry.root) == before
    card = registry.register("json", stored, base=other, force=True)
    assert card.base.fingerprint == BaseFingerprint.of(other)
    (warning,) = card.warnings
    assert "with force" in warning


@pytest.mark.parametrize("force", [False, True])
def test_an_adapter_that_matches_nothing_is_never_registered(
    registry: AdapterRegistry, tmp_path: Path, base: Path, force: bool
) -> None:
    names = {"q_proj": "c_attn"}
    config = make_adapter(tmp_path / "a", targets=("q_proj",))
    weights = config / "adapter_model.safetensors"
    # Both names have six letters, so that the header keeps its length.
    weights.write_bytes(weights.read_bytes().replace(b"q_proj", names["q_proj"].encode()))
    with pytest.raises(AdapterIncompatibleError, match="None of the adapter's 2 modules"):
        registry.register("json", config, base=base, force=force)
    assert registry.list() == []


def test_a_base_that_has_a_name_everywhere_is_recorded_by_it(
    registry: AdapterRegistry, adapter: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "demo_base_folder", lambda: base)
    assert registry.register("json", adapter, base=base).base.name == "adapterhub-demo"


def test_a_base_from_the_hub_is_loaded_at_the_revision_in_the_config(
    registry: AdapterRegistry, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def locate(name: str, *, revision: str | None) -> Path:
        asked.append((name, revision))
        return base

    monkeypatch.setattr(importing, "locate_base", locate)
    adapter = make_adapter(tmp_path / "a", base_model_name_or_path="org/base", revision="abc")
    cards = [registry.register("json", adapter, base=name) for name in ("org/base", "org/other")]
    assert asked == [("org/base", "abc"), ("org/other", None)]
    assert [(card.base.name, card.base.revision) for card in cards] == asked


def test_a_folder_that_is_no_base(registry: AdapterRegistry, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        registry.register("json", adapter, base=tmp_path)
    assert registry.list() == []


# From registry to registry


@pytest.fixture
def published(registry: AdapterRegistry, adapter: Path, base: Path) -> AdapterCard:
    """A version whose card sets a field of every kind."""
    result = {
        "task_type": "t",
        "dataset_name": "d",
        "metric_type": "m",
        "metric_value": 1.0,
        "verified": True,
    }
    return registry.register(
        "json",
        adapter,
        base=base,
        quantization="nf4",
        description="Writes JSON.",
        tags=["a"],
        task="text-generation",
        language=["en"],
        license="mit",
        datasets=["d"],
        evaluation=[result],
        source={"uri": "hf://famous/json"},
        status="disabled",
        prompt={"system": "Obey me.", "stop": ["END"], "chat_template": "x" * 300},
        routing={"examples": ["as json"], "phrases": ["the"], "patterns": ["."]},
        serving={"priority": 9},
        lineage={"method": "finetune"},
    )


DESCRIBING = {"description", "tags", "task", "language", "license", "datasets", "evaluation"}
RULING = {"source", "status", "prompt", "routing", "serving", "lineage"}


def differing(first: AdapterCard, second: AdapterCard) -> set[str]:
    return {name for name in DESCRIBING | RULING if getattr(first, name) != getattr(second, name)}


def test_of_a_card_from_outside_only_what_describes_is_taken(
    registry: AdapterRegistry, published: AdapterCard, tmp_path: Path
) -> None:
    other = AdapterRegistry(tmp_path / "second")
    copy = other.register("better", registry.folder(published), tags=["b"])
    assert (copy.name, copy.version, copy.aliases, copy.tags) == ("better", 1, (), ("b",))
    assert differing(copy, published) == {"tags", "evaluation", *RULING}
    assert [one.verified for one in copy.evaluation] == [None]  # anybody can write that it was verified
    assert (copy.digest, copy.base) == (published.digest, published.base)
    shown = [warning for warning in copy.warnings if warning.endswith("not taken without trust_card")]
    assert [warning.split()[3] for warning in shown] == [
        *("status", "source.uri", "prompt.chat_template", "prompt.stop", "prompt.system"),
        *("routing.examples", "routing.patterns", "routing.phrases", "serving.priority", "lineage.method"),
    ]
    assert 'its card.json sets prompt.system to "Obey me.": not taken without trust_card' in shown
    assert max(map(len, shown)) < 300
    assert other.resolve("better") == copy


def test_a_card_that_is_trusted_is_taken_whole(
    registry: AdapterRegistry, published: AdapterCard, tmp_path: Path
) -> None:
    folder = registry.folder(published)
    other = AdapterRegistry(tmp_path / "second").register("json", folder, trust_card=True)
    assert differing(other, published) == set()
    assert not [warning for warning in other.warnings if "trust_card" in warning]
    # What the caller sets counts, and is not reported.
    own = AdapterRegistry(tmp_path / "third").register("json", folder, prompt={"system": "Mine."})
    assert own.prompt.system == "Mine."
    assert not [warning for warning in own.warnings if "prompt.system" in warning]


def test_settings_beside_those_of_the_caller(adapter: Path, tmp_path: Path) -> None:
    """A setting that the caller gives replaces that setting of a card, not its whole group."""
    first = AdapterRegistry(tmp_path / "first")
    card = first.register(
        "json",
        adapter,
        prompt={"system": "S", "chat_template": "T", "stop": ["END"]},
        routing={"phrases": ["p"], "keywords": ["k"]},
    )
    given: CardFields = {"prompt": {"system": "Mine", "stop": ["MORE"]}, "routing": {"keywords": ["z"]}}
    trusted = AdapterRegistry(tmp_path / "second").register(
        "json", first.folder(card), trust_card=True, **given
    )
    assert trusted.prompt == PromptProfile(system="Mine", chat_template="T", stop=("END", "MORE"))
    assert trusted.routing == Routing(phrases=("p",), keywords=("z",))
    other = AdapterRegistry(tmp_path / "third").register("json", first.folder(card), **given)
    assert other.prompt == PromptProfile(system="Mine", stop=("MORE",))
    shown = "\n".join(other.warnings)
    assert all(f"sets {setting} to" in shown for setting in ("prompt.chat_template", "routing.phrases"))
    assert not any(f"sets {setting} to" in shown for setting in ("prompt.system", "routing.keywords"))


def test_a_version_of_the_same_registry_is_trusted(
    registry: AdapterRegistry, published: AdapterCard, tmp_path: Path
) -> None:
    assert differing(registry.register("copy", registry.folder(published)), published) == set()
    downloaded = registry.root / "downloads"
    shutil.copytree(registry.folder(published), downloaded)
    assert differing(registry.register("other", downloaded), published) == {"evaluation", *RULING}


def test_a_foreign_file_called_card_json(registry: AdapterRegistry, adapter: Path) -> None:
    (adapter / "card.json").write_text('{"title": "not ours"}')
    card = registry.register("json", adapter)
    assert [warning for warning in card.warnings if warning.startswith("its card.json was not used")]
    with pytest.raises(AdapterInvalidError, match="is not a card"):
        registry.register("json", adapter, trust_card=True)


# Damage


def damage(three: AdapterRegistry, what: str) -> None:
    home = three.root / "json"
    match what:
        case "card":
            (home / "3/card.json").write_text("{}")
        case "no card":
            (home / "3/card.json").unlink()
        case "huge card":
            (home / "3/card.json").write_bytes(b" " * (2**20 + 1))
        case "linked card":
            (home / "3/card.json").unlink()
            (home / "3/card.json").symlink_to(home / "2/card.json")
        case "other card":
            (home / "3/card.json").write_bytes((home / "2/card.json").read_bytes())
        case "refs":
            (home / "refs.json").write_text("{")
        case "dangling":
            (home / "refs.json").write_text(json.dumps({"aliases": {"prod": 7}}))
        case "weights":
            path = home / "3/adapter_model.safetensors"
            path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
        case "config":
            path = home / "3/adapter_config.json"
            path.write_text(path.read_text().replace('"lora_alpha": 4', '"lora_alpha": 5'))


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        ("card", Problem("json@3", "In json/3: card.json is not a card: name: Field required.")),
        ("no card", Problem("json@3", "In json/3: card.json cannot be read: No such file or directory.")),
        (
            "huge card",
            Problem("json@3", "In json/3: card.json has 1,048,577 bytes; at most 1,048,576 are read."),
        ),
        ("linked card", Problem("json@3", "In json/3: card.json is not a regular file.")),
        ("other card", Problem("json@3", "In json/3: card.json is the card of json@2.")),
        ("dangling", Problem("json", "The alias 'prod' points to version 7, which does not exist.")),
        (
            "weights",
            Problem(
                "json@3", "The files of json@3 have changed since they were registered: their digest differs."
            ),
        ),
        (
            "config",
            Problem(
                "json@3", "The files of json@3 have changed since they were registered: their digest differs."
            ),
        ),
    ],
)
def test_verify_finds_damage(three: AdapterRegistry, adapter: Path, what: str, problem: Problem) -> None:
    three.register("code", adapter)
    assert three.verify() == []
    damage(three, what)
    assert three.verify() == three.verify("json") == [problem]
    assert three.verify("json@1") == []


def test_verify_finds_damaged_aliases(three: AdapterRegistry) -> None:
    damage(three, "refs")
    for problems in (three.verify(), three.verify("json")):
        (problem,) = problems
        assert problem.ref == "json"
        assert problem.message.startswith("json/refs.json cannot be read")


@pytest.mark.parametrize("what", ["card", "no card", "other card", "refs"])
def test_one_damaged_adapter_does_not_hide_the_others(
    three: AdapterRegistry, adapter: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    three.register("code", adapter)
    damage(three, what)
    with caplog.at_level(logging.WARNING):
        assert [card.ref for card in three.list()] == ["code@1"]
    assert "json" in caplog.text
    with pytest.raises(AdapterInvalidError, match="json"):
        three.resolve("json")


def test_damaged_aliases_stop_a_registration_that_could_reuse_a_number(
    three: AdapterRegistry, adapter: Path
) -> None:
    damage(three, "refs")
    before = content(three.root)
    with pytest.raises(AdapterInvalidError, match=r"refs\.json"):
        three.register("json", adapter)
    assert content(three.root) == before


def test_foreign_entries_are_ignored(three: AdapterRegistry, tmp_path: Path) -> None:
    before = three.list()
    for name in ("README", "UPPER", ".git", "json/notes", "json/03", "json/x"):
        (three.root / name).mkdir()
    (three.root / "file").write_text("x")
    (three.root / "json/4").write_text("x")
    assert three.list() == before
    assert len(three.versions("json")) == 3
    assert three.verify() == []


# Writing


def test_staging_folders_of_killed_processes_are_removed(three: AdapterRegistry, adapter: Path) -> None:
    staging = three.root / ".staging"
    abandoned, young, in_use = (staging / name for name in ("abandoned", "young", "in_use"))
    for folder in (abandoned, young, in_use):
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
    for folder in (abandoned, in_use):
        os.utime(folder, (time.time() - 60, time.time() - 60))
    with open_folder(in_use) as descriptor:
        hold(descriptor)  # as a writer does that copies a large file
        three.register("json", adapter)
        assert sorted(path.name for path in staging.iterdir()) == ["in_use", "young"]
    three.register("json", adapter)
    assert sorted(path.name for path in staging.iterdir()) == ["young"]


def test_a_lock_that_another_writer_holds_too_long_is_a_retryable_error(
    three: AdapterRegistry, adapter: Path
) -> None:
    from filelock import FileLock

    impatient = AdapterRegistry(three.root, lock_timeout=0.05)
    before = content(three.root)
    with FileLock(three.root / ".lock"):
        for change in (
            lambda: impatient.register("json", adapter),
            lambda: impatient.update("json", description="new"),
            lambda: impatient.alias("json", "prod", 1),
            lambda: impatient.remove("json@1"),
        ):
            with pytest.raises(RegistryLockedError, match=r"within 0\.05 s") as caught:
                change()
            assert caught.value.retryable
        assert impatient.resolve("json").version == 3  # readers take no lock
    assert content(three.root) == before
    assert not any((three.root / ".staging").iterdir())
    assert impatient.register("json", adapter).version == 4


def test_a_folder_that_cannot_be_written(tmp_path: Path, adapter: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RegistryError, match="could not be changed") as caught:
        AdapterRegistry(tmp_path / "file" / "registry").register("json", adapter)
    assert caught.value.hint


def test_a_disk_that_fills_up(three: AdapterRegistry, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "card.json")

    before = content(three.root)
    monkeypatch.setattr(store, "sync_tree", full)
    with pytest.raises(RegistryError, match="No space left on device"):
        three.register("json", adapter)
    assert content(three.root) == before
    assert not any((three.root / ".staging").iterdir())


def test_repr(tmp_path: Path) -> None:
    assert repr(AdapterRegistry(tmp_path)) == f"AdapterRegistry({str(tmp_path)!r})"
