"""The registry against a simple model in memory: any sequence of changes, from two handles on one folder."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from adapterhub.errors import (
    AdapterDisabledError,
    AdapterExistsError,
    AdapterInvalidError,
    AdapterNotFoundError,
    InvalidRequestError,
)
from adapterhub.registry import AdapterRegistry
from tests.registry.maker import make_adapter

NAMES = st.sampled_from(["json", "code"])
ALIASES = st.sampled_from(["prod", "test"])
HANDLES = st.integers(0, 1)


@dataclass
class Adapter:
    """What the model knows of one name: version -> whether it is ready and its description, and the aliases."""

    versions: dict[int, tuple[bool, str]] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    highest_ever: int = 0

    def target(self, pointer: str) -> int | None:
        """The version that a reference points to, ready or not."""
        if pointer == "latest":
            return max(self.versions, default=None)
        if pointer == "":
            ready = [version for version, (is_ready, _) in self.versions.items() if is_ready]
            return max(ready or self.versions, default=None)
        version = int(pointer) if pointer.isdigit() else self.aliases.get(pointer)
        return version if version in self.versions else None

    def some_version(self, data: st.DataObject) -> int:
        """Mostly one that exists; sometimes the next one, which does not."""
        return data.draw(st.sampled_from([*self.versions, *self.versions, self.highest_ever + 1]))

    def pointers(self) -> list[str]:
        """What may follow the name in a reference: all that exists, an alias and a version that do not."""
        versions = [str(version) for version in self.versions]
        return ["", "latest", *self.aliases, *versions, "absent", str(self.highest_ever + 1)]

    def some_pointer(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(self.pointers()))

    def aliases_of(self, versions: set[int]) -> set[str]:
        return {alias for alias, version in self.aliases.items() if version in versions}


def reference(name: str, pointer: str) -> str:
    return f"{name}@{pointer}" if pointer else name


def check_reference(registry: AdapterRegistry, known: Adapter, ref: str, version: int | None) -> None:
    if version is None:
        for read in (registry.get, registry.resolve, registry.verify):
            with pytest.raises(AdapterNotFoundError):
                read(ref)
        return
    ready, description = known.versions[version]
    card = registry.get(ref)
    assert (card.version, card.status == "ready", card.description) == (version, ready, description)
    assert set(card.aliases) == known.aliases_of({version})
    if ready:
        assert registry.resolve(ref) == card
    else:
        with pytest.raises(AdapterDisabledError):
            registry.resolve(ref)


class RegistryMachine(RuleBasedStateMachine):
    """Each rule does one thing to the registry and to the model; the invariants compare the two."""

    @initialize()
    def open_registries(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.adapter = make_adapter(self.folder / "adapter")
        self.registries = [AdapterRegistry(self.folder / "registry") for _ in range(2)]
        self.model = {"json": Adapter(), "code": Adapter()}
        self.unfinished = 0
        for name in ("json", "json", "code"):
            self.register(0, name)
        for name, alias in (("json", "prod"), ("code", "test")):
            self.registries[1].alias(name, alias, 1)
            self.model[name].aliases[alias] = 1

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @rule(handle=HANDLES)
    def reopen(self, handle: int) -> None:
        self.registries[handle] = AdapterRegistry(self.folder / "registry")

    @rule(handle=HANDLES, name=NAMES)
    def register(self, handle: int, name: str) -> None:
        known = self.model[name]
        stamp = self.registries[1 - handle].stamp()
        card = self.registries[handle].register(name, self.adapter)
        known.highest_ever += 1
        known.versions[known.highest_ever] = (True, "")
        assert card.version == known.highest_ever
        assert self.registries[1 - handle].stamp() != stamp

    @rule(handle=HANDLES, name=NAMES, nan=st.booleans())
    def register_damaged(self, handle: int, name: str, nan: bool) -> None:
        damaged = self.folder / "damaged"
        shutil.copytree(self.adapter, damaged, dirs_exist_ok=True)
        weights = damaged / "adapter_model.safetensors"
        content = weights.read_bytes()
        weights.write_bytes(content[:-4] + (b"\0\0\xc0\x7f" if nan else b""))
        with pytest.raises(AdapterInvalidError):
            self.registries[handle].register(name, damaged)

    @rule(handle=HANDLES, name=NAMES, alias=ALIASES, data=st.data())
    def set_alias(self, handle: int, name: str, alias: str, data: st.DataObject) -> None:
        known, registry = self.model[name], self.registries[handle]
        version = known.some_version(data)
        with pytest.raises(InvalidRequestError, match="latest"):
            registry.alias(name, "latest", version)
        if version not in known.versions:
            with pytest.raises(AdapterNotFoundError):
                registry.alias(name, alias, version)
            return
        registry.alias(name, alias, version)
        known.aliases[alias] = version

    @rule(handle=HANDLES, name=NAMES, alias=ALIASES)
    def remove_alias(self, handle: int, name: str, alias: str) -> None:
        if alias not in self.model[name].aliases:
            with pytest.raises(AdapterNotFoundError):
                self.registries[handle].alias(name, alias, None)
            return
        self.registries[handle].alias(name, alias, None)
        del self.model[name].aliases[alias]

    @rule(handle=HANDLES, name=NAMES, data=st.data(), ready=st.booleans(), description=st.sampled_from("ab"))
    def update(self, handle: int, name: str, data: st.DataObject, ready: bool, description: str) -> None:
        pointer = self.model[name].some_pointer(data)
        version = self.model[name].target(pointer)
        status = "ready" if ready else "disabled"
        ref = reference(name, pointer)
        if version is None:
            with pytest.raises(AdapterNotFoundError):
                self.registries[handle].update(ref, status=status)
            return
        card = self.registries[handle].update(ref, status=status, description=description)
        assert card.version == version
        self.model[name].versions[version] = (ready, description)

    @rule(handle=HANDLES, name=NAMES, data=st.data(), force=st.booleans())
    def remove(self, handle: int, name: str, data: st.DataObject, force: bool) -> None:
        known = self.model[name]
        pointer = known.some_pointer(data)
        ref = reference(name, pointer)
        target = known.target(pointer)
        versions = set(known.versions) if pointer == "" else {target} - {None}
        aliases = known.aliases_of(versions)
        if not versions:
            with pytest.raises(AdapterNotFoundError):
                self.registries[handle].remove(ref, force=force)
        elif aliases and not force:
            with pytest.raises(AdapterExistsError):
                self.registries[handle].remove(ref)
        else:
            self.registries[handle].remove(ref, force=force)
            for version in versions:
                del known.versions[version]
            for alias in aliases:
                del known.aliases[alias]

    @precondition(lambda self: self.unfinished < 3)
    @rule(complete=st.booleans())
    def crash(self, complete: bool) -> None:
        """What a process leaves that is killed while it registers: a staging folder, with a card or without."""
        staging = self.folder / "registry/.staging" / uuid.uuid4().hex
        shutil.copytree(self.adapter, staging)
        if complete:
            (staging / "card.json").write_text("{}")
            (self.folder / "registry/unborn").mkdir(
                exist_ok=True
            )  # the adapter's folder, before its first version
        self.unfinished += 1

    @invariant()
    def both_handles_list_the_model(self) -> None:
        listed = {name: known.target("") for name, known in self.model.items() if known.versions}
        for registry in self.registries:
            assert {card.name: card.version for card in registry.list()} == listed
            for name in listed:
                versions = [card.version for card in registry.versions(name)]
                assert versions == sorted(self.model[name].versions)

    @invariant()
    def every_reference_means_what_the_model_says(self) -> None:
        for name, known in self.model.items():
            for registry, pointer in zip(itertools.cycle(self.registries), known.pointers()):
                check_reference(registry, known, reference(name, pointer), known.target(pointer))

    @invariant()
    def everything_stored_is_whole(self) -> None:
        assert self.registries[0].verify() == []
        staging = self.folder / "registry/.staging"
        # The next writer removes what killed ones have left.
        assert len(list(staging.iterdir()) if staging.exists() else []) <= self.unfinished


def test_any_sequence_of_changes() -> None:
    run_state_machine_as_test(RegistryMachine, settings=settings(max_examples=10, stateful_step_count=20))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 15,000 changes, each with its fsyncs
def test_many_long_sequences_of_changes() -> None:
    run_state_machine_as_test(RegistryMachine, settings=settings(max_examples=300, stateful_step_count=50))
