"""The exported PEFT folder: what PEFT computes with it is what the adapter or the blend computes."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from adapterhub import AdapterRegistry
from adapterhub.errors import AdapterHubError, AdapterInvalidError, ExportError
from adapterhub.export import export_peft
from adapterhub.peft_format import CONFIG_FILE, WEIGHTS_FILE
from tests.faults import failures

IDS = torch.arange(24).view(1, -1)


def logits(base: Path, *adapters: tuple[Path, float]) -> torch.Tensor:
    """The logits of PEFT's own sum of adapters: the base's weights plus each weighted change."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for number, (folder, weight) in enumerate(adapters):
        adapted = PeftModel.from_pretrained(model, folder, adapter_name=str(number))
        for module in adapted.modules():
            if isinstance(module, LoraLayer):
                module.scaling[str(number)] *= weight
        model = adapted.merge_and_unload()
    with torch.no_grad():
        return model(IDS).logits


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


def test_the_model_card_is_an_adapters(tiny_registry: Path, tiny_base: Path, tmp_path: Path):
    export_peft(AdapterRegistry(tiny_registry), "json", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.library_name, card.data.base_model) == ("peft", tiny_base.name)
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert "The json adapter." in card.text


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
    assert "- json@1: 0.6\n- code@1: 0.4\n" in text


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
