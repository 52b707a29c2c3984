"""The exported PEFT folder: what PEFT computes with it is what the adapter or the blend computes."""

import errno
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapterhub import AdapterRegistry
from adapterhub.errors import (
    AdapterHubError,
    AdapterIncompatibleError,
    AdapterInvalidError,
    ConfigError,
    ExportError,
    InvalidRequestError,
)
from adapterhub.export import LoraForm, export_peft
from adapterhub.peft_format import CONFIG_FILE, WEIGHTS_FILE
from tests.faults import failures
from tests.tiny import make_adapter, make_base

IDS = torch.arange(24).view(1, -1)


def merged(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The weights of the base with PEFT's merge of an adapter."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights: dict[str, torch.Tensor] = (
        PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    )
    return weights


def logits(base: Path, *adapters: tuple[Path, float]) -> torch.Tensor:
    """The logits of the base's weights plus the weighted sum of what PEFT merges for each adapter."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed = [(merged(base, folder), weight) for folder, weight in adapters]
    model.load_state_dict(
        {
            name: tensor + sum(weight * (weights[name] - tensor) for weights, weight in changed)
            for name, tensor in before.items()
        }
    )
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


def test_one_adapter_keeps_its_weights_byte_for_byte(tiny_registry: Path, tiny_adapters, tmp_path: Path):
    registry = AdapterRegistry(tiny_registry)
    report = export_peft(registry, "json", tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS_FILE).read_bytes() == (
        tiny_adapters["json"] / WEIGHTS_FILE
    ).read_bytes()
    assert (report.adapter, report.digest) == ("json@1", registry.resolve("json").digest)
    assert report.size_bytes == (tmp_path / "out" / WEIGHTS_FILE).stat().st_size


def test_nothing_of_the_registry_or_of_this_machine_is_in_it(tiny_registry: Path, tiny_base, tmp_path: Path):
    export_peft(AdapterRegistry(tiny_registry), "json", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        CONFIG_FILE,
        WEIGHTS_FILE,
    ]
    config = json.loads((tmp_path / "out" / CONFIG_FILE).read_text())
    assert config["base_model_name_or_path"] == tiny_base.name
    for path in ("README.md", CONFIG_FILE):
        text = (tmp_path / "out" / path).read_text()
        assert str(tiny_base.parent) not in text
        assert "give me the name and city" not in text  # a routing example


@pytest.mark.parametrize("base", ["organisation/base", "/nowhere/base", "adapterhub-demo", None])
def test_the_model_card_links_to_a_base_on_the_hub_only(tiny_base: Path, tmp_path: Path, base: str | None):
    adapter = make_adapter(tmp_path / "adapter", tiny_base)
    (adapter / "README.md").unlink()
    (adapter / CONFIG_FILE).write_text(json.dumps(config_of(adapter) | {"base_model_name_or_path": base}))
    registry = AdapterRegistry(tmp_path / "registry")
    registry.register("json", adapter, description="The json adapter.")
    export_peft(registry, "json", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    linked = base if base == "organisation/base" else None
    data = card.data.to_dict()
    assert (data["library_name"], data.get("base_model")) == ("peft", linked)
    assert data.get("base_model_relation") == ("adapter" if linked else None)
    assert "The json adapter." in card.text
    assert "/nowhere" not in card.content + (tmp_path / "out" / CONFIG_FILE).read_text()


def test_a_blend_is_the_sum_that_peft_computes(tiny_registry: Path, tiny_base, tiny_adapters, tmp_path: Path):
    report = export_peft(AdapterRegistry(tiny_registry), "json:0.6+code:-0.4", tmp_path / "out")
    expected = logits(tiny_base, (tiny_adapters["json"], 0.6), (tiny_adapters["code"], -0.4))
    actual = logits(tiny_base, (tmp_path / "out", 1))
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)
    assert (expected - logits(tiny_base)).abs().max() > 0.1
    assert (report.adapter, report.rank) == ("json@1:0.6+code@1:-0.4", 4 + 6)


def test_the_model_card_of_a_blend_names_its_parts(tiny_registry: Path, tmp_path: Path):
    export_peft(AdapterRegistry(tiny_registry), {"json": 0.6, "code": 0.4}, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    cards = [AdapterRegistry(tiny_registry).resolve(name) for name in ("json", "code")]
    for card, weight in zip(cards, (0.6, 0.4), strict=True):
        assert f"- {card.ref}: weight {weight}, {card.digest}, licence not recorded\n" in text
        assert card.description in text


def test_a_folder_in_use_is_refused(tiny_registry: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="not empty"):
        export_peft(AdapterRegistry(tiny_registry), "json", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_that_changed_since_they_were_registered_are_refused(tiny_adapters, tiny_base, tmp_path: Path):
    registry = AdapterRegistry(tmp_path / "registry")
    card = registry.register("json", tiny_adapters["json"], base=tiny_base)
    weights = registry.folder(card) / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(AdapterInvalidError, match="have changed"):
        export_peft(registry, "json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_in_the_adapters_folder_is_not_published(tiny_adapters, tiny_base, tmp_path: Path):
    registry = AdapterRegistry(tmp_path / "registry")
    card = registry.register("json", tiny_adapters["json"], base=tiny_base)
    (tmp_path / "secret.txt").write_text("secret")
    (registry.folder(card) / "notes.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(AdapterInvalidError, match="symbolic link"):
        export_peft(registry, "json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_whatever_the_disk_refuses_leaves_nothing(tiny_registry: Path, tmp_path: Path, code: int):
    registry, out = AdapterRegistry(tiny_registry), tmp_path / "out"

    def clean() -> None:
        shutil.rmtree(out, ignore_errors=True)

    found = list(failures(lambda: export_peft(registry, "json:0.6+code:0.4", out), code, clean=clean))
    assert len(found) > 10
    for error in found:
        assert isinstance(error, AdapterHubError), repr(error)
        assert error.hint, repr(error)
    assert list(tmp_path.iterdir()) == []


def register(tmp_path: Path, base: Path, **settings: object) -> AdapterRegistry:
    registry = AdapterRegistry(tmp_path / "registry")
    registry.register("json", make_adapter(tmp_path / "adapter", base, **settings), base=base)
    return registry


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
    return config


@pytest.mark.parametrize(("r", "lora_alpha", "folded"), [(16, 8, 32), (8, 3, 3 * math.sqrt(8))])
def test_rslora_is_folded_into_alpha(tiny_base: Path, tmp_path: Path, r: int, lora_alpha: int, folded: float):
    registry = register(tmp_path, tiny_base, r=r, lora_alpha=lora_alpha, use_rslora=True)
    report = export_peft(registry, "json", tmp_path / "out", LoraForm(plain=True))
    config = config_of(tmp_path / "out")
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (r, pytest.approx(folded), False)
    weights = [(folder / WEIGHTS_FILE).read_bytes() for folder in (tmp_path / "adapter", tmp_path / "out")]
    assert weights[0] == weights[1]
    assert report.error == 0
    expected = logits(tiny_base, (tmp_path / "adapter", 1))
    torch.testing.assert_close(logits(tiny_base, (tmp_path / "out", 1)), expected, rtol=0, atol=1e-5)


def test_plain_has_one_rank_and_one_alpha(tiny_base: Path, tmp_path: Path):
    patterns = {"rank_pattern": {"q_proj": 7}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}}
    registry = register(tmp_path, tiny_base, r=5, use_rslora=True, **patterns)
    report = export_peft(registry, "json", tmp_path / "out", LoraForm(plain=True))
    config = config_of(tmp_path / "out")
    assert (config["r"], config["lora_alpha"], config.get("use_rslora", False)) == (7, 7, False)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert {min(tensor.shape) for tensor in load_file(tmp_path / "out" / WEIGHTS_FILE).values()} == {7}
    assert (report.rank, report.error) == (7, pytest.approx(0, abs=1e-6))
    expected = logits(tiny_base, (tmp_path / "adapter", 1))
    torch.testing.assert_close(logits(tiny_base, (tmp_path / "out", 1)), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("plain", [False, True])
def test_plain_has_no_copies_of_the_bases_weights(tiny_base: Path, tmp_path: Path, plain: bool):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    registry = AdapterRegistry(tmp_path / "registry")
    registry.register("json", tmp_path / "adapter", base=tiny_base)
    export_peft(registry, "json", tmp_path / "out", LoraForm(plain=plain))
    names = load_file(tmp_path / "out" / WEIGHTS_FILE).keys()
    assert any("lora_" not in name for name in names) != plain
    expected = logits(tiny_base, (tmp_path / "adapter", 1))
    torch.testing.assert_close(logits(tiny_base, (tmp_path / "out", 1)), expected, rtol=0, atol=1e-5)


def test_a_cut_rank_is_the_best_of_that_rank_and_tells_its_error(tiny_base: Path, tmp_path: Path):
    registry = register(tmp_path, tiny_base, r=6)
    report = export_peft(registry, "json", tmp_path / "out", LoraForm(rank=2, max_error=1))
    before, after = load_file(tmp_path / "adapter" / WEIGHTS_FILE), load_file(tmp_path / "out" / WEIGHTS_FILE)
    lost = total = worst = 0.0
    for name in [name for name in before if "lora_A" in name]:
        b = name.replace("lora_A", "lora_B")
        change, cut = before[b] @ before[name] * 8 / 6, after[b] @ after[name]
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
        torch.testing.assert_close(cut, (u * s)[:, :2] @ vh[:2], rtol=0, atol=1e-4)
        lost, total = lost + float((s[2:] ** 2).sum()), total + float((s**2).sum())
        worst = max(worst, float((s[2:] ** 2).sum() / (s**2).sum()) ** 0.5)
    assert report.rank == config_of(tmp_path / "out")["r"] == 2
    assert report.error == pytest.approx((lost / total) ** 0.5, rel=1e-4)
    assert report.worst_error == pytest.approx(worst, rel=1e-4)
    assert f"by {report.error:.2%} (Frobenius" in (tmp_path / "out" / "README.md").read_text()


def test_a_result_that_is_too_far_is_not_written(tiny_base: Path, tmp_path: Path):
    registry = register(tmp_path, tiny_base, r=6)
    with pytest.raises(ExportError, match=r"differ from json@1 by \d+\.\d%, more than 1\.0%"):
        export_peft(registry, "json", tmp_path / "out", LoraForm(rank=2, max_error=0.01))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "registry"]


def test_dora_is_kept_unless_it_is_to_be_approximated(tiny_base: Path, tmp_path: Path):
    registry = register(tmp_path, tiny_base, use_dora=True, use_rslora=True, r=4)
    export_peft(registry, "json", tmp_path / "kept", LoraForm(plain=True))
    expected = logits(tiny_base, (tmp_path / "adapter", 1))
    torch.testing.assert_close(logits(tiny_base, (tmp_path / "kept", 1)), expected, rtol=0, atol=1e-5)
    assert (config_of(tmp_path / "kept")["use_dora"], config_of(tmp_path / "kept")["lora_alpha"]) == (
        True,
        16,
    )
    with pytest.raises(AdapterIncompatibleError, match="uses DoRA") as refused:
        export_peft(registry, "json", tmp_path / "cut", LoraForm(rank=2))
    assert "--dora svd" in str(refused.value.hint)


@pytest.mark.parametrize("exact", [True, False])
def test_dora_at_full_rank_is_exact_and_at_less_tells_its_error(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: bool
):
    if not exact:
        monkeypatch.setattr("adapterhub.export.lora_form._EXACT_SVD", 1)
    registry = register(tmp_path, tiny_base, use_dora=True)
    full = export_peft(registry, "json", tmp_path / "full", LoraForm(dora="svd", rank=64))
    assert full.error == pytest.approx(0, abs=1e-4)
    assert "use_dora" not in config_of(tmp_path / "full")
    expected = logits(tiny_base, (tmp_path / "adapter", 1))
    torch.testing.assert_close(logits(tiny_base, (tmp_path / "full", 1)), expected, rtol=0, atol=1e-3)
    cut = export_peft(registry, "json", tmp_path / "cut", LoraForm(dora="svd", rank=8, max_error=1))
    assert 0.05 < cut.error < cut.worst_error < 1
    assert cut.error == pytest.approx(dora_error(tiny_base, tmp_path, 8), rel=2e-2)


def dora_error(base: Path, tmp_path: Path, rank: int) -> float:
    """What the best approximation of that rank loses, from the weights that PEFT merges."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload().state_dict()
    singular = [
        torch.linalg.svdvals(merged[name] - before[name]) for name in before if before[name].dim() == 2
    ]
    lost, total = (sum(float((s[start:] ** 2).sum()) for s in singular) for start in (rank, 0))
    return (lost / total) ** 0.5


def test_dora_without_its_base_is_refused(tiny_base: Path, tmp_path: Path):
    adapter = make_adapter(tmp_path / "adapter", tiny_base, use_dora=True)
    config = config_of(adapter) | {"base_model_name_or_path": "organisation/elsewhere"}
    (adapter / CONFIG_FILE).write_text(json.dumps(config))
    registry = AdapterRegistry(tmp_path / "registry")
    registry.register("json", adapter)
    with pytest.raises(ConfigError, match="not on this machine"):
        export_peft(registry, "json", tmp_path / "out", LoraForm(dora="svd"))
    export_peft(registry, "json", tmp_path / "out", LoraForm(dora="svd", max_error=1), base_folder=tiny_base)


def test_dora_on_another_base_is_refused(tiny_base: Path, tmp_path: Path):
    registry, other = register(tmp_path, tiny_base, use_dora=True), make_base(tmp_path / "other", seed=5)
    with pytest.raises(AdapterIncompatibleError, match="json@1 was trained on another base"):
        export_peft(registry, "json", tmp_path / "out", LoraForm(dora="svd", max_error=9), base_folder=other)
    assert not (tmp_path / "out").exists()


def test_a_blend_with_dora_is_approximated_as_a_whole(tiny_base: Path, tiny_adapters, tmp_path: Path):
    registry = register(tmp_path, tiny_base, use_dora=True)
    registry.register("code", tiny_adapters["code"], base=tiny_base)
    export_peft(registry, "json:0.5+code:0.5", tmp_path / "out", LoraForm(dora="svd", rank=64, plain=True))
    expected = logits(tiny_base, (tmp_path / "adapter", 0.5), (tiny_adapters["code"], 0.5))
    torch.testing.assert_close(logits(tiny_base, (tmp_path / "out", 1)), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("settings", [{"rank": 0}, {"dora": "drop"}, {"max_error": float("nan")}])
def test_a_form_that_means_nothing_is_refused(settings: dict[str, Any]):
    with pytest.raises(InvalidRequestError):
        LoraForm(**settings)
