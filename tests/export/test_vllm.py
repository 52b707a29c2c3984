"""The launch file of vLLM: what `vllm serve --config` makes of it, and the adapters that it names."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adapterhub import AdapterRegistry
from adapterhub.errors import (
    AdapterHubError,
    AdapterIncompatibleError,
    AdapterInvalidError,
    ConfigError,
    ExportError,
)
from adapterhub.export import LoraForm, export_mlx, export_vllm
from adapterhub.export.vllm import LAUNCH_FILE
from adapterhub.peft_format import WEIGHTS_FILE, AdapterConfig
from tests.faults import failures
from tests.tiny import make_adapter, make_base

IDS = torch.arange(24).view(1, -1)


def arguments(folder: Path) -> dict[str, Any]:
    """The settings of the file: vLLM makes `--name value` of each, all items of a list after one name."""
    settings: dict[str, Any] = yaml.safe_load((folder / LAUNCH_FILE).read_text())
    assert all(isinstance(value, str | int | bool | list) for value in settings.values())
    return settings


def modules(folder: Path) -> dict[str, dict[str, Any]]:
    """`--lora-modules`, each a JSON text with the fields of vLLM's `LoRAModulePath`."""
    found = [json.loads(text) for text in arguments(folder)["lora-modules"]]
    assert all(module.keys() == {"name", "path", "base_model_name"} for module in found)
    return {module["name"]: module for module in found}


def logits(base: Path, adapter: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        result: torch.Tensor = PeftModel.from_pretrained(model, adapter).eval()(IDS).logits
    return result


def registry_of(tmp_path: Path, base: Path, **adapters: dict[str, Any]) -> AdapterRegistry:
    registry = AdapterRegistry(tmp_path / "registry")
    for name, settings in adapters.items():
        registry.register(name, make_adapter(tmp_path / name, base, **settings), base=base)
    return registry


def test_the_whole_registry_is_served_by_name(
    tiny_registry: Path, tiny_base: Path, tiny_adapters, tmp_path: Path
):
    out = tmp_path / "out"
    report = export_vllm(AdapterRegistry(tiny_registry), out)
    settings = arguments(out)
    assert (settings["model"], settings["served-model-name"]) == (str(tiny_base), "llama")
    assert (settings["enable-lora"], settings["max-loras"], settings["max-cpu-loras"]) == (True, 3, 3)
    assert settings["max-lora-rank"] == report.max_lora_rank == 8  # the ranks are 4, 6 and 8
    assert list(modules(out)) == [adapter.name for adapter in report.adapters] == ["code", "json", "support"]
    assert modules(out)["json"]["base_model_name"] == "llama"
    written = (out / modules(out)["json"]["path"] / WEIGHTS_FILE).read_bytes()
    assert written == (tiny_adapters["json"] / WEIGHTS_FILE).read_bytes()


def test_nothing_but_the_bases_folder_is_of_this_machine(
    tiny_registry: Path, tiny_base: Path, tmp_path: Path
):
    export_vllm(AdapterRegistry(tiny_registry), tmp_path / "out", base="organisation/base")
    texts = [
        path.read_text() for path in (tmp_path / "out").rglob("*") if path.suffix in (".yaml", ".json", ".md")
    ]
    assert len(texts) == 1 + 2 * 3
    assert not any(str(tmp_path) in text or str(tiny_base.parent) in text for text in texts)
    assert arguments(tmp_path / "out")["model"] == "organisation/base"


def test_chosen_adapters_and_blends_are_served_under_the_names_as_given(tiny_registry: Path, tmp_path: Path):
    names = ("json@1", "json:0.6+code:0.4")
    report = export_vllm(AdapterRegistry(tiny_registry), tmp_path / "out", names, max_loras=1)
    assert tuple(modules(tmp_path / "out")) == names
    assert [adapter.rank for adapter in report.adapters] == [4, 10]
    assert (report.max_lora_rank, arguments(tmp_path / "out")["max-loras"]) == (16, 1)


def test_names_of_one_adapter_share_its_folder(tiny_registry: Path, tmp_path: Path):
    registry, out = AdapterRegistry(tiny_registry), tmp_path / "out"
    report = export_vllm(registry, out, ("json", "json@1", "json:2", "json:1"))
    assert [adapter.adapter for adapter in report.adapters] == ["json@1", "json@1", "json@1:2", "json@1"]
    assert [module["path"] for module in modules(out).values()] == [
        *["adapters/json@1"] * 2,
        "adapters/json@1=2",
        "adapters/json@1",
    ]
    assert sorted(path.name for path in (out / "adapters").iterdir()) == ["json@1", "json@1=2"]


def test_a_long_blend_gets_a_short_folder(tiny_base: Path, tmp_path: Path):
    names = [f"{letter * 60}" for letter in "abcd"]
    registry = registry_of(tmp_path, tiny_base, **{name: {"r": 2} for name in names})
    blends = [{**dict.fromkeys(names, 0.25), "d" * 60: last} for last in (0.25, 0.5)]
    wanted = ["+".join(f"{name}:{weight}" for name, weight in blend.items()) for blend in blends]
    report = export_vllm(registry, tmp_path / "out", tuple(wanted))
    folders = [Path(adapter.path).name for adapter in report.adapters]
    assert [len(folder) for folder in folders] == [200, 200]
    assert folders[0] != folders[1]
    assert {path.name for path in (tmp_path / "out" / "adapters").iterdir()} == set(folders)


def test_an_adapter_has_one_rank_and_one_scaling(tiny_base: Path, tmp_path: Path):
    settings = {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 7},
        "alpha_pattern": {"layers.1.self_attn.v_proj": 3},
    }
    export_vllm(registry_of(tmp_path, tiny_base, json=settings), tmp_path / "out")
    folder = tmp_path / "out" / modules(tmp_path / "out")["json"]["path"]
    config = AdapterConfig.read(folder).settings
    assert (config.use_rslora, config.rank_pattern, config.alpha_pattern) == (False, {}, {})
    expected = logits(tiny_base, tmp_path / "json")
    torch.testing.assert_close(logits(tiny_base, folder), expected, rtol=0, atol=2e-5)


def test_dora_is_refused_or_approximated(tiny_base: Path, tmp_path: Path):
    registry = registry_of(tmp_path, tiny_base, json={}, dora={"use_dora": True})
    with pytest.raises(
        AdapterIncompatibleError, match="dora@1 does not run on vLLM: it uses DoRA"
    ) as refused:
        export_vllm(registry, tmp_path / "out")
    assert refused.value.hint == "Add --dora svd, which tells the error. Or name the adapters to serve."
    assert not (tmp_path / "out").exists()
    report = export_vllm(registry, tmp_path / "out", form=LoraForm(dora="svd", max_error=1))
    errors = {adapter.name: adapter.error for adapter in report.adapters}
    assert errors["json"] == 0 < errors["dora"]
    assert [one.name for one in export_vllm(registry, tmp_path / "named", ["json"]).adapters] == ["json"]


def test_what_no_form_makes_fit_is_refused_before_anything_is_written(tiny_base: Path, tmp_path: Path):
    registry = registry_of(tmp_path, tiny_base, head={"modules_to_save": ["lm_head"]})
    with pytest.raises(
        AdapterIncompatibleError, match=r"head@1 does not run on vLLM: .*modules_to_save"
    ) as refused:
        export_vllm(registry, tmp_path / "out")
    assert "adapterhub merge" in str(refused.value.hint)
    assert not (tmp_path / "out").exists()


def test_adapters_of_several_bases_need_one_to_be_named(tiny_base: Path, tmp_path: Path):
    registry = registry_of(tmp_path, tiny_base, json={})
    other = make_base(tmp_path / "other", seed=5)
    registry.register("code", make_adapter(tmp_path / "code", other), base=other)
    with pytest.raises(AdapterIncompatibleError, match="different bases"):
        export_vllm(registry, tmp_path / "out")
    report = export_vllm(registry, tmp_path / "out", base=str(other))
    assert [adapter.name for adapter in report.adapters] == ["code"]
    with pytest.raises(AdapterIncompatibleError, match="json@1 was trained on another base"):
        export_vllm(registry, tmp_path / "wrong", ["json"], base=str(other))


def test_what_vllm_does_not_do_is_said(tiny_base: Path, tmp_path: Path):
    registry = registry_of(tmp_path, tiny_base, json={})
    assert export_vllm(registry, tmp_path / "plain").warnings == ()
    prompt = {
        "system": "Be brief.",
        "generation": {"temperature": 0},
        "stop": ["###"],
        "chat_template": "{{ 1 }}",
    }
    registry.update("json", prompt=prompt)
    warnings = export_vllm(registry, tmp_path / "out").warnings
    assert [warning.split(": ")[0] for warning in warnings] == ["json@1"] * 3
    assert "chat template" in warnings[0]
    assert "system prompt" in warnings[1]
    assert warnings[2].endswith("stop, temperature")


def test_an_adapter_with_the_bases_name_would_never_answer(tiny_base: Path, tmp_path: Path):
    registry = registry_of(tmp_path, tiny_base, llama={})
    with pytest.raises(ExportError, match="would both be 'llama'") as refused:
        export_vllm(registry, tmp_path / "out")
    assert "'llama@1'" in str(refused.value.hint)
    assert [one.name for one in export_vllm(registry, tmp_path / "out", ["llama@1"]).adapters] == ["llama@1"]


@pytest.mark.parametrize("export", [export_vllm, lambda registry, out: export_mlx(registry, "json", out)])
def test_a_full_disk_leaves_nothing(tiny_base: Path, tmp_path: Path, export: Callable[..., object]):
    registry, out = registry_of(tmp_path, tiny_base, json={}), tmp_path / "out"

    def clean() -> None:
        shutil.rmtree(out, ignore_errors=True)

    found = list(failures(lambda: export(registry, out), errno.ENOSPC, clean=clean))
    assert len(found) > 10
    for error in found:
        assert isinstance(error, AdapterHubError), repr(error)
        assert error.hint, repr(error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["json", "registry"]


def test_a_rank_that_vllm_does_not_take_is_refused(tiny_registry: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("adapterhub.export.vllm.VLLM_MAX_LORA_RANKS", (1, 4))
    with pytest.raises(ExportError, match="code has rank 6; vLLM takes at most 4"):
        export_vllm(AdapterRegistry(tiny_registry), tmp_path / "out", ["json", "code"])
    assert not (tmp_path / "out").exists()


def test_an_empty_registry_and_a_card_without_a_base_are_refused(tmp_path: Path, tiny_base: Path):
    registry = AdapterRegistry(tmp_path / "registry")
    with pytest.raises(ExportError, match="no adapter to serve"):
        export_vllm(registry, tmp_path / "out")
    adapter = make_adapter(tmp_path / "json", tiny_base)
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": None}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "README.md").unlink()  # names it too
    registry.register("json", adapter)
    with pytest.raises(ConfigError, match="names no base"):
        export_vllm(registry, tmp_path / "out")


def test_one_damaged_adapter_leaves_nothing(tiny_base: Path, tmp_path: Path):
    registry = registry_of(tmp_path, tiny_base, json={}, code={})
    weights = registry.folder(registry.resolve("json")) / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(AdapterInvalidError, match="have changed"):
        export_vllm(registry, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["code", "json", "registry"]
