"""Adapters and blends in a server's form: written once, found again, written anew if they were damaged."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adapterhub import AdapterRegistry
from adapterhub.capabilities import AdapterFeatures, Backend, Feature, capability
from adapterhub.errors import AdapterInvalidError, ExportError
from adapterhub.export import LoraForm, materialise
from adapterhub.export.materialising import mark_used, remove_unused
from adapterhub.lora.request import BlendedLoraRequest, StoredLoraRequest
from adapterhub.peft_format import WEIGHTS_FILE, inspect_adapter
from tests.tiny import make_adapter, make_base

PLAIN = LoraForm(plain=True)


@pytest.fixture
def registry(tmp_path: Path) -> AdapterRegistry:
    return AdapterRegistry(tmp_path / "registry")


def registered(
    registry: AdapterRegistry, base: Path, name: str = "json", **settings: Any
) -> StoredLoraRequest:
    folder = make_adapter(registry.root.parent / name, base, **settings)
    card = registry.register(name, folder, base=base)
    return StoredLoraRequest(card.ref, card.digest, registry.folder(card))


def logits(base: Path, adapter: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        result: torch.Tensor = PeftModel.from_pretrained(model, adapter).eval()(torch.arange(24)[None]).logits
    return result


def test_a_form_that_the_server_runs_is_the_same_change(
    registry: AdapterRegistry, tiny_base: Path, tmp_path: Path
):
    adapter = registered(registry, tiny_base, use_rslora=True, alpha_pattern={"q_proj": 3})
    found = materialise(registry, adapter, PLAIN, cache=tmp_path / "cache")
    assert not capability(AdapterFeatures.of_folder(adapter.folder), Backend.SGLANG).runs
    assert capability(AdapterFeatures.of_folder(found.folder), Backend.SGLANG).runs
    assert found.name == "json@1"
    assert found.digest == inspect_adapter(found.folder).digest != adapter.digest
    torch.testing.assert_close(
        logits(tiny_base, found.folder), logits(tiny_base, adapter.folder), rtol=0, atol=2e-5
    )


def test_it_is_written_once_for_each_form(registry: AdapterRegistry, tiny_base: Path, tmp_path: Path):
    adapter, cache = registered(registry, tiny_base, use_rslora=True), tmp_path / "cache"
    first = materialise(registry, adapter, PLAIN, cache=cache)
    written = (first.folder / WEIGHTS_FILE).stat().st_mtime_ns
    assert materialise(registry, adapter, PLAIN, cache=cache) == first
    assert (first.folder / WEIGHTS_FILE).stat().st_mtime_ns == written
    assert (
        materialise(registry, adapter, LoraForm(plain=True, rank=2, max_error=1), cache=cache).folder
        != first.folder
    )


@pytest.mark.parametrize("damage", [b"", b"x"])
def test_a_damaged_one_is_written_anew(
    registry: AdapterRegistry, tiny_base: Path, tmp_path: Path, damage: bytes
):
    adapter = registered(registry, tiny_base, use_rslora=True)
    first = materialise(registry, adapter, PLAIN, cache=tmp_path / "cache")
    weights = first.folder / WEIGHTS_FILE
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + damage)
    assert materialise(registry, adapter, PLAIN, cache=tmp_path / "cache") == first
    assert weights.read_bytes() == content


def test_another_registry_s_adapter_of_that_name_is_not_kept_under_its_digest(
    registry: AdapterRegistry, tiny_base: Path, tmp_path: Path
):
    adapter = registered(registry, tiny_base, seed=1)
    other = AdapterRegistry(tmp_path / "other" / "registry")
    registered(other, tiny_base, seed=2)
    with pytest.raises(AdapterInvalidError, match="digest differs"):
        materialise(other, adapter, PLAIN, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob(WEIGHTS_FILE))
    found = materialise(registry, adapter, PLAIN, cache=tmp_path / "cache")
    torch.testing.assert_close(logits(tiny_base, found.folder), logits(tiny_base, adapter.folder))


def test_a_blend_is_the_exact_sum_under_a_name_of_its_own(
    registry: AdapterRegistry, tiny_base: Path, tmp_path: Path
):
    parts = [
        (registered(registry, tiny_base, "json", seed=1), 0.75),
        (registered(registry, tiny_base, "code", seed=2, r=6), 0.25),
    ]
    blend = BlendedLoraRequest.of("json@1:0.75+code@1:0.25", parts)
    found = materialise(registry, blend, PLAIN, cache=tmp_path / "cache")
    assert found.name == f"blend-{blend.digest.removeprefix('sha256:')[:16]}@1"
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32), parts[0][0].folder, "json"
    )
    model.load_adapter(parts[1][0].folder, "code")
    model.add_weighted_adapter(["json", "code"], [0.75, 0.25], "both", combination_type="cat")
    model.set_adapter("both")
    with torch.no_grad():
        wanted = model.eval()(torch.arange(24)[None]).logits
    torch.testing.assert_close(logits(tiny_base, found.folder), wanted, rtol=0, atol=2e-5)


def test_trained_biases_are_not_asked_for_any_more(
    registry: AdapterRegistry, tiny_base: Path, tmp_path: Path
):
    adapter = registered(registry, tiny_base, bias="all")
    assert Feature.BIAS in AdapterFeatures.of_folder(adapter.folder).features
    found = materialise(registry, adapter, PLAIN, cache=tmp_path / "cache")
    assert capability(AdapterFeatures.of_folder(found.folder), Backend.VLLM).runs


def test_what_would_differ_too_much_is_refused_and_leaves_nothing(
    registry: AdapterRegistry, tiny_base: Path, tmp_path: Path
):
    dora = registered(registry, tiny_base, "dora", use_dora=True)
    with pytest.raises(ExportError, match="would differ"):
        materialise(
            registry, dora, LoraForm(plain=True, dora="svd", max_error=1e-3), cache=tmp_path / "cache"
        )
    assert not list((tmp_path / "cache").rglob(WEIGHTS_FILE))


def test_above_a_maximum_those_used_longest_ago_are_removed(
    registry: AdapterRegistry, tiny_base: Path, tmp_path: Path
):
    adapter, cache = registered(registry, tiny_base), tmp_path / "cache"
    forms = [LoraForm(plain=True, rank=rank, max_error=1) for rank in (1, 2, 3)]
    other = cache / "other-folder"  # somebody's who gave a folder that has more in it
    other.mkdir(parents=True)
    os.utime(other, (0, 0))
    first = materialise(registry, adapter, forms[0], cache=cache)
    os.utime(first.folder.parent, (1, 1))
    second = materialise(registry, adapter, forms[1], cache=cache)
    os.utime(second.folder.parent, (2, 2))
    third = materialise(registry, adapter, forms[2], cache=cache, maximum=2, in_use={first.folder})
    assert first.folder.is_dir()
    assert not second.folder.parent.exists()
    assert mark_used(first)
    assert not mark_used(second)
    remove_unused(cache, seconds=3600)
    assert first.folder.is_dir()
    remove_unused(cache, seconds=0, in_use={third.folder})
    assert {path for path in cache.iterdir() if path.is_dir()} == {third.folder.parent, other}


def test_a_form_that_is_used_meanwhile_is_not_removed(
    registry: AdapterRegistry, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    adapter, cache = registered(registry, tiny_base), tmp_path / "cache"
    first, second = (
        materialise(registry, adapter, LoraForm(plain=True, rank=rank, max_error=1), cache=cache)
        for rank in (1, 2)
    )
    os.utime(first.folder.parent, (1, 1))
    os.utime(second.folder.parent, (2, 2))
    remove = shutil.rmtree

    def remove_slowly(path: Path, **settings: Any) -> None:
        assert mark_used(second)
        remove(path, **settings)

    monkeypatch.setattr(shutil, "rmtree", remove_slowly)
    remove_unused(cache, seconds=0)
    assert not first.folder.exists()
    assert mark_used(second)


def test_a_form_that_is_being_removed_or_was_written_anew_is_another_one(
    registry: AdapterRegistry, tiny_base: Path, tmp_path: Path
):
    found = materialise(registry, registered(registry, tiny_base), PLAIN, cache=tmp_path / "cache")
    digest = found.folder.parent / "digest"
    digest.write_text("sha256:" + "0" * 64)
    assert not mark_used(found)
    digest.unlink()
    assert not mark_used(found)


def test_the_weights_of_an_adapter_that_a_blend_has_twice_add_up(
    registry: AdapterRegistry, tiny_base: Path, tmp_path: Path
):
    adapter = registered(registry, tiny_base)
    twice = BlendedLoraRequest.of("twice", [(adapter, 0.5), (adapter, 0.25)])
    once = BlendedLoraRequest.of("once", [(adapter, 0.75)])
    digests = {materialise(registry, one, PLAIN, cache=tmp_path / "cache").digest for one in (twice, once)}
    assert len(digests) == 1


def test_the_form_of_dora_is_kept_for_each_base(registry: AdapterRegistry, tiny_base: Path, tmp_path: Path):
    card = registry.register("dora", make_adapter(tmp_path / "dora", tiny_base, use_dora=True))
    assert card.base.fingerprint is None
    dora = StoredLoraRequest(card.ref, card.digest, registry.folder(card))
    form, cache = LoraForm(plain=True, dora="svd", max_error=9), tmp_path / "cache"
    other = make_base(tmp_path / "other", seed=9)
    digests = [
        materialise(registry, dora, form, cache=cache, base_folder=base).digest
        for base in (tiny_base, other, tiny_base)
    ]
    assert digests[0] == digests[2] != digests[1]
