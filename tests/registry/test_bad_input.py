"""Bad adapters, names and bases: the registry raises a clear error and does not change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.errors import (
    AdapterHubError,
    AdapterIncompatibleError,
    AdapterInvalidError,
    InvalidRequestError,
)
from adapterhub.registry import AdapterRegistry
from tests.registry.maker import adapter_tensors, content, make_adapter, make_base, values

WEIGHTS = "adapter_model.safetensors"


def truncated(folder: Path) -> Path:
    path = make_adapter(folder) / WEIGHTS
    path.write_bytes(path.read_bytes()[:-10])
    return folder


def pickled(folder: Path) -> Path:
    (make_adapter(folder) / WEIGHTS).rename(folder / "adapter_model.bin")
    return folder


def with_nan(folder: Path) -> Path:
    name = next(iter(adapter_tensors()))
    return make_adapter(
        folder, tensors={**adapter_tensors(), name: ("F32", (2, 8), np.full(16, np.nan, "<f4").tobytes())}
    )


def linked_out(folder: Path) -> Path:
    path = make_adapter(folder) / "adapter_config.json"
    path.rename(folder.with_suffix(".json"))
    path.symlink_to(folder.with_suffix(".json"))
    return folder


def escaping_tensor(folder: Path) -> Path:
    return make_adapter(folder, tensors={**adapter_tensors(), "../../escape": values(2)})


def wrong_rank(folder: Path) -> Path:
    return make_adapter(folder, tensors=adapter_tensors(r=3))


def wide(folder: Path) -> Path:
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{name}.lora_A.weight": values(2, 64), f"{name}.lora_B.weight": values(64, 2)}
    return make_adapter(folder, tensors=tensors, targets=("q_proj",))


Make = Callable[[Path], Path]
BAD: list[tuple[Make, type[AdapterHubError], str]] = [
    (lambda folder: folder, InvalidRequestError, "There is no folder"),
    (lambda folder: make_base(folder), AdapterInvalidError, "no adapter_config.json"),
    (pickled, AdapterInvalidError, "pickled"),
    (truncated, AdapterInvalidError, "cut short"),
    (with_nan, AdapterInvalidError, "NaN or infinity"),
    (linked_out, AdapterInvalidError, "symbolic link"),
    (escaping_tensor, AdapterIncompatibleError, "no part of LoRA"),
    (wrong_rank, AdapterInvalidError, "rank 2"),
    (wide, AdapterIncompatibleError, "does not fit the base"),
    (lambda folder: make_adapter(folder, peft_type="IA3"), AdapterIncompatibleError, "IA3"),
    (
        lambda folder: make_adapter(folder, tensors=adapter_tensors(), r=-1),
        AdapterInvalidError,
        "wrong value: r",
    ),
    (
        lambda folder: make_adapter(folder, targets=("down_proj",), r=2, target_modules=["q_proj"]),
        AdapterInvalidError,
        "q_proj",
    ),
]


@pytest.fixture
def filled(registry: AdapterRegistry, adapter: Path, base: Path) -> AdapterRegistry:
    registry.register("json", adapter, base=base)
    registry.alias("json", "prod", 1)
    return registry


@pytest.mark.parametrize("name", ["json", "new"])
@pytest.mark.parametrize(("make", "kind", "message"), BAD, ids=[message for *_, message in BAD])
@pytest.mark.parametrize("force", [False, True])
def test_a_bad_adapter(
    filled: AdapterRegistry,
    base: Path,
    tmp_path: Path,
    name: str,
    make: Make,
    kind: type[AdapterHubError],
    message: str,
    force: bool,
) -> None:
    before = content(filled.root)
    with pytest.raises(kind, match=message) as caught:
        filled.register(name, make(tmp_path / "bad"), base=base, force=force)
    assert caught.value.hint
    assert content(filled.root) == before
    assert sorted(path.name for path in filled.root.iterdir() if path.is_dir()) == [".staging", "json"]
    assert not any((filled.root / ".staging").iterdir())


@pytest.mark.parametrize(
    "name",
    [
        *("con", "prn", "aux", "nul", "com1", "com9", "lpt1", "nul.v2", "aux.tar.gz", "json.", "json\ud800"),
        *("../x", "a/b", "/etc", "..", "a@b", "auto", "base", "__base__", "", "JSON", "a\0b"),
    ],
)
def test_a_bad_name(filled: AdapterRegistry, adapter: Path, name: str) -> None:
    before = content(filled.root.parent)
    for call in (
        lambda: filled.register(name, adapter),
        lambda: filled.resolve(name if name != "a@b" else "../b@1"),
        lambda: filled.remove(name if name != "a@b" else "a@B"),
        lambda: filled.alias(name, "prod", 1),
        lambda: filled.versions(name),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            call()
        assert caught.value.hint
    assert content(filled.root.parent) == before


def test_another_base(filled: AdapterRegistry, tmp_path: Path) -> None:
    before = content(filled.root)
    with pytest.raises(AdapterIncompatibleError, match="another base"):
        filled.register("copy", filled.root / "json/1", base=make_base(tmp_path / "other", seed=3))
    assert content(filled.root) == before


def test_names_that_only_begin_like_a_device(registry: AdapterRegistry, adapter: Path) -> None:
    for name in ("console", "com10", "null", "auxiliary", "v2.con"):
        assert registry.register(name, adapter).name == name


DEEP: dict[str, object] = {}
for _ in range(240):
    DEEP = {"a": DEEP}
UNSTORABLE = {
    "surrogate": {"description": "\ud800"},
    "surrogate in a group": {"routing": {"examples": ["\udcff"]}},
    "long integer": {"lineage": {"settings": {"steps": 10**5000}}},
    "deep": {"prompt": {"generation": DEEP}},
    "infinite weight": {"lineage": {"parents": [{"name": "a", "version": 1, "weight": float("inf")}]}},
}


@pytest.mark.parametrize("fields", UNSTORABLE.values(), ids=UNSTORABLE)
def test_values_that_no_card_can_hold(filled: AdapterRegistry, adapter: Path, fields: dict[str, Any]) -> None:
    before = content(filled.root)
    for change in (
        lambda: filled.update("json", **fields),
        lambda: filled.register("json", adapter, **fields),
        lambda: filled.register("new", adapter, **fields),
    ):
        with pytest.raises(InvalidRequestError):
            change()
    assert content(filled.root) == before
    assert not (filled.root / "new").exists()
    assert filled.verify() == []


@pytest.mark.parametrize(
    "field", ["base_model_name_or_path", "target_modules", "revision", "rank_pattern", "unknown"]
)
def test_a_lone_surrogate_in_a_config(registry: AdapterRegistry, tmp_path: Path, field: str) -> None:
    value: Any = {"rank_pattern": {"\ud800": 2}, "target_modules": ["\ud800"]}.get(field, "\ud800")
    adapter = make_adapter(tmp_path / "bad", **{field: value})
    with pytest.raises(AdapterInvalidError, match="not valid Unicode"):
        registry.register("json", adapter)


def test_a_lone_surrogate_in_a_model_card(registry: AdapterRegistry, adapter: Path) -> None:
    (adapter / "README.md").write_text('---\nlicense: "a\\uD800"\ntags: ["\\uDFFF"]\n---\n')
    card = registry.register("json", adapter)
    assert (card.license, card.tags) == ("a?", ("?",))
