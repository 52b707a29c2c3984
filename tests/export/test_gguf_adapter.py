"""An adapter alone as GGUF: what is written, and that nothing stays where it cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub import AdapterRegistry
from adapterhub.errors import AdapterIncompatibleError, ConfigError, ExportError
from adapterhub.export import export_gguf_adapter, export_mlx, export_peft, gguf_adapter
from adapterhub.gguf.adapter import read_adapter
from adapterhub.gguf.architectures import Architecture
from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.loading import read_deltas_without_base
from adapterhub.peft_format import CONFIG_FILE
from tests.tiny import make_adapter, make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def registry(base: Path, tmp_path_factory: pytest.TempPathFactory) -> AdapterRegistry:
    folder = tmp_path_factory.mktemp("adapters")
    registry = AdapterRegistry(folder / "registry")
    for seed, (name, settings) in enumerate({"json": {}, "code": {"use_rslora": True}}.items()):
        registry.register(name, make_adapter(folder / name, base, seed=seed, **settings), base=base)
    registry.register("dora", make_adapter(folder / "dora", base, use_dora=True), base=base)
    return registry


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_it_writes_one_file_and_a_card(tmp_path: Path, registry: AdapterRegistry, base: Path, dtype: Any):
    report = export_gguf_adapter(registry, "json", tmp_path / "out", dtype=dtype)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        report.file,
        f"Modelfile.{dtype}",
        "README.md",
    }
    assert (report.adapter, report.architecture, report.rank, report.type) == ("json@1", "llama", 4, dtype)
    assert report.error < (1e-6 if dtype == "f32" else 1e-3)
    assert str(base.parent) not in (tmp_path / "out" / "README.md").read_text()
    assert str(base.parent).encode() not in (tmp_path / "out" / report.file).read_bytes()


def test_the_modelfile_puts_the_adapter_on_the_base_s_file(tmp_path: Path, registry: AdapterRegistry):
    export_gguf_adapter(registry, "json", tmp_path / "out")
    lines = (tmp_path / "out" / "Modelfile.f32").read_text().splitlines()
    assert lines[lines.index("FROM ./model-f16.gguf") + 1] == "ADAPTER ./adapter-f32.gguf"
    assert 'PARAMETER stop "<|im_end|>"' in lines
    export_gguf_adapter(registry, "json", tmp_path / "plain", modelfile=False)
    assert not list((tmp_path / "plain").glob("Modelfile*"))


@pytest.mark.parametrize("export", [export_gguf_adapter, export_mlx, export_peft])
def test_the_licences_go_with_it(tmp_path: Path, base: Path, export: Callable[..., object]):
    folder = make_adapter(tmp_path / "json", base)
    for name in ("LICENSE", "NOTICE"):
        (folder / name).write_text(f"The {name}.")
    registry = AdapterRegistry(tmp_path / "registry")
    registry.register("json", folder, base=base)
    export(registry, "json", tmp_path / "out")
    assert [(tmp_path / "out" / name).read_text() for name in ("LICENSE", "NOTICE")] == [
        "The LICENSE.",
        "The NOTICE.",
    ]


def test_a_blend_is_one_adapter(tmp_path: Path, registry: AdapterRegistry, base: Path):
    report = export_gguf_adapter(registry, "json:0.6+code:0.4", tmp_path / "out")
    architecture = Architecture.of_folder(base)
    written = read_adapter(tmp_path / "out" / report.file, architecture)
    parts = [
        (read_deltas_without_base(registry.folder(registry.get(name)), architecture.layers), weight)
        for name, weight in (("json", 0.6), ("code", 0.4))
    ]
    for module, delta in written.items():
        wanted = LoraDelta.weighted_sum([(deltas[module], weight) for deltas, weight in parts])
        assert torch.allclose(delta.b @ delta.a, wanted.b @ wanted.a, atol=1e-5)
    assert report.rank == 8


def test_dora_is_refused_and_nothing_stays(tmp_path: Path, registry: AdapterRegistry):
    with pytest.raises(AdapterIncompatibleError, match="dora@1 uses DoRA"):
        export_gguf_adapter(registry, "dora", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_values_beyond_f16_fail_the_export(tmp_path: Path, base: Path):
    registry = AdapterRegistry(tmp_path / "registry")
    registry.register("huge", make_adapter(tmp_path / "huge", base, std=1e6), base=base)
    with pytest.raises(ExportError, match="does not fit into f16"):
        export_gguf_adapter(registry, "huge", tmp_path / "out", dtype="f16")
    assert not (tmp_path / "out").exists()
    assert export_gguf_adapter(registry, "huge", tmp_path / "out").error < 1e-6


def test_a_file_that_is_read_back_otherwise_fails_the_export(
    tmp_path: Path, registry: AdapterRegistry, monkeypatch: pytest.MonkeyPatch
):
    def damaged(file: Path, architecture: Architecture) -> Any:
        deltas = read_adapter(file, architecture)
        next(iter(deltas.values())).b.mul_(1.01)
        return deltas

    monkeypatch.setattr(gguf_adapter, "read_adapter", damaged)
    with pytest.raises(ExportError, match="differs from that of json@1 by"):
        export_gguf_adapter(registry, "json", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_base_has_to_be_there(tmp_path: Path, base: Path):
    registry = AdapterRegistry(tmp_path / "registry")
    folder = make_adapter(tmp_path / "json", base)
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, "base_model_name_or_path": "no/base"}))
    registry.register("json", folder)
    with pytest.raises(ConfigError, match="not on this machine"):
        export_gguf_adapter(registry, "json", tmp_path / "out")
    assert export_gguf_adapter(registry, "json", tmp_path / "out", base_folder=base).rank == 4
