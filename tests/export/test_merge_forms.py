"""Forms of a merge: blends, dtypes, sizes of files, the weights of training; checksums and the disk's space."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapterhub import AdapterRegistry
from adapterhub.base.loading import load_base
from adapterhub.base.quantized_weights import dequantize_module_weight
from adapterhub.errors import AdapterIncompatibleError, ExportError, InvalidRequestError
from adapterhub.export import RoundTrip, adapter_folders
from adapterhub.export.checksums import CHECKSUMS_FILE
from adapterhub.export.merge import LINEAGE_FILE
from adapterhub.export.round_trip import quantized_modules
from adapterhub.export.weight_files import OutputTensor, write_shard
from adapterhub.lora.blending import blend_adapters
from adapterhub.peft_format.safetensors_header import read_header
from tests.export.test_merge import assert_same_weights, merge_adapter, weights
from tests.tiny import ALL_LINEAR, make_adapter, make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bf16") / "llama", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter") / "plain", base)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, base: Path, adapter: Path) -> AdapterRegistry:
    registry = AdapterRegistry(tmp_path_factory.mktemp("registry"))
    folder = tmp_path_factory.mktemp("adapters")
    registry.register("json", adapter, base=base, license="mit", datasets=["organisation/pairs"])
    other = make_adapter(folder / "all", base, seed=2, r=7, target_modules=ALL_LINEAR["llama"])
    registry.register("code", other, base=base, license="mit", quantization="nf4")
    registry.register("dora", make_adapter(folder / "dora", base, seed=3, use_dora=True), base=base)
    return registry


class TestBlends:
    def test_an_inline_blend_has_the_bits_of_the_stored_one(
        self, tmp_path: Path, base: Path, registry: AdapterRegistry
    ):
        report = merge_adapter(base, adapter_folders(registry, "json:0.6+code:0.4"), tmp_path / "inline")
        stored = blend_adapters(registry, "both", "json:0.6+code:0.4")
        merge_adapter(base, adapter_folders(registry, stored.ref), tmp_path / "stored")
        inline, other = weights(tmp_path / "inline"), weights(tmp_path / "stored")
        assert [name for name in other if not torch.equal(inline[name], other[name])] == []
        assert report.adapter == "json@1:0.6+code@1:0.4"
        assert report.merged == 14

    def test_the_order_of_the_parts_does_not_matter(
        self, tmp_path: Path, base: Path, registry: AdapterRegistry
    ):
        one = merge_adapter(base, adapter_folders(registry, "json:0.6+dora:0.4"), tmp_path / "one")
        other = merge_adapter(base, adapter_folders(registry, "dora:0.4+json:0.6"), tmp_path / "other")
        assert one == other
        assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
            tmp_path / "other" / "model.safetensors"
        ).read_bytes()

    @pytest.mark.parametrize("blend", ["json:0.5+dora:0.75", "dora:0.5", "json:-0.5"])
    def test_changes_add_up_with_and_without_dora(
        self, blend: str, tmp_path: Path, base: Path, registry: AdapterRegistry
    ):
        merge_adapter(base, adapter_folders(registry, blend), tmp_path / "out", dtype="float32")
        before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
        expected = {name: tensor.double() for name, tensor in before.items()}
        for part in blend.split("+"):
            name, weight = part.split(":")
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            folder = registry.folder(registry.get(name))
            merged = PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()
            for tensor, value in merged.items():
                expected[tensor] += float(weight) * (value - before[tensor])
        for name, tensor in weights(tmp_path / "out").items():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)

    def test_its_card_names_every_part(self, tmp_path: Path, base: Path, registry: AdapterRegistry):
        merge_adapter(base, adapter_folders(registry, "json:0.6+code:0.4"), tmp_path / "out")
        text = (tmp_path / "out" / "README.md").read_text()
        digests = {name: registry.get(name).digest for name in ("json", "code")}
        assert f"- json@1: weight 0.6, {digests['json']}\n" in text
        assert f"- code@1: weight 0.4, {digests['code']}\n" in text
        assert "- adapter json@1: mit\n- adapter code@1: mit" in text
        assert "## Training of code@1" in text
        lineage = json.loads((tmp_path / "out" / LINEAGE_FILE).read_text())
        assert [part["ref"] for part in lineage["parts"]] == ["json@1", "code@1"]
        assert [part["weight"] for part in lineage["parts"]] == [0.6, 0.4]

    def test_a_part_of_another_base_is_refused(self, tmp_path: Path, base: Path, registry: AdapterRegistry):
        other = make_base(tmp_path / "other", dtype=torch.bfloat16, seed=7)
        registry.register("foreign", make_adapter(tmp_path / "foreign", other), base=other)
        with pytest.raises(AdapterIncompatibleError, match="another base"):
            merge_adapter(base, adapter_folders(registry, "json:0.9+foreign:0.1"), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("weight", [float("nan"), 1e39, "0.5"])
    def test_what_is_no_weight_is_refused(self, weight: object, tmp_path: Path, base: Path, adapter: Path):
        with pytest.raises(InvalidRequestError, match="is no number from -10 to 10"):
            merge_adapter(base, {adapter: weight}, tmp_path / "out")


class TestDtype:
    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    def test_the_sum_is_rounded_once_to_the_chosen_dtype(
        self, dtype: str, tmp_path: Path, base: Path, adapter: Path
    ):
        report = merge_adapter(base, adapter, tmp_path / "out", dtype=dtype)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        expected = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
        wanted = getattr(torch, dtype)
        for name, tensor in weights(tmp_path / "out").items():
            assert torch.equal(tensor, expected[name].to(wanted)), name
        assert report.dtypes == ({"float16": "F16", "float32": "F32"}[dtype],)
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == wanted

    def test_the_bases_own_dtype_changes_no_byte(self, tmp_path: Path, base: Path, adapter: Path):
        merge_adapter(base, adapter, tmp_path / "kept")
        merge_adapter(base, adapter, tmp_path / "chosen", dtype="bfloat16")
        one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("kept", "chosen"))
        assert one == other

    def test_several_matrices_in_one_tensor_are_not_held_whole(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("adapterhub.export.weight_files._BLOCK_ELEMENTS", 1)
        experts = torch.randn(3, 130, 8).bfloat16()
        save_file({"experts": experts}, source := tmp_path / "in.safetensors")
        tensor = OutputTensor("experts", source, read_header(source)["experts"], "F32")
        written: list[int] = []
        write_shard(tmp_path / "out.safetensors", (tensor,), written.append)
        assert max(written[1:]) == 64 * 8 * 4
        assert torch.equal(load_file(tmp_path / "out.safetensors")["experts"], experts.float())

    def test_an_unknown_one_is_refused(self, tmp_path: Path, base: Path, adapter: Path):
        with pytest.raises(ExportError, match="no dtype 'int8'"):
            merge_adapter(base, adapter, tmp_path / "out", dtype="int8")


class TestShards:
    @pytest.mark.parametrize("size", ["60KB", 60_000])
    def test_files_are_those_that_transformers_would_write(
        self, size: int | str, tmp_path: Path, base: Path, adapter: Path
    ):
        report = merge_adapter(base, adapter, tmp_path / "out", max_shard_size=size)
        files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
        assert len(files) > 2
        assert max((tmp_path / "out" / file).stat().st_size for file in files) < 64_000
        assert report.size_bytes == sum((tmp_path / "out" / file).stat().st_size for file in files)
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert sorted(set(index["weight_map"].values())) == files
        total = sum(tensor.nbytes for tensor in weights(tmp_path / "out").values())
        assert index["metadata"]["total_size"] == total
        merge_adapter(base, adapter, tmp_path / "whole")
        assert_same_weights(tmp_path / "out", AutoModelForCausalLM.from_pretrained(tmp_path / "whole"))
        assert_same_weights(tmp_path / "whole", AutoModelForCausalLM.from_pretrained(tmp_path / "out"))

    def test_shards_can_become_one_file(self, tmp_path: Path, base: Path, adapter: Path):
        sharded = shutil.copytree(base, tmp_path / "sharded")
        (sharded / "model.safetensors").unlink()
        AutoModelForCausalLM.from_pretrained(base).save_pretrained(sharded, max_shard_size="60KB")
        merge_adapter(sharded, adapter, tmp_path / "out", max_shard_size="5GB")
        assert [path.name for path in (tmp_path / "out").glob("model*")] == ["model.safetensors"]
        merge_adapter(base, adapter, tmp_path / "whole")
        assert_same_weights(tmp_path / "out", AutoModelForCausalLM.from_pretrained(tmp_path / "whole"))

    @pytest.mark.parametrize("size", [0, -1, "5", "0GB", "many GB"])
    def test_what_is_no_size_is_refused(self, size: int | str, tmp_path: Path, base: Path, adapter: Path):
        with pytest.raises(ExportError, match="no size of a file"):
            merge_adapter(base, adapter, tmp_path / "out", max_shard_size=size)
        assert not (tmp_path / "out").exists()


class TestExact:
    @pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
    @pytest.mark.parametrize("double_quant", [True, False])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    @pytest.mark.parametrize("shape", [(300, 100), (200, 704), (129, 33), (1, 64), (64, 1024)])
    def test_a_round_trip_by_rows_has_the_bits_of_bitsandbytes(
        self, quant_type: str, double_quant: bool, dtype: torch.dtype, shape: tuple[int, int]
    ):
        rows, columns = shape
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(rows)).to(dtype)
        expected = dequantize_4bit(
            *quantize_4bit(weight, quant_type=quant_type, compress_statistics=double_quant)
        )
        stored = RoundTrip(quant_type, double_quant, None).store(weight.split(64))
        for start in range(0, rows, 64):
            count = min(64, rows - start)
            actual = stored.rows(start, count, columns)
            assert torch.equal(actual, expected[start : start + count].float())

    @pytest.mark.parametrize("kind", ["llama", "gpt2"])
    def test_it_merges_into_the_weights_that_training_computes_with(self, kind: str, tmp_path: Path):
        base = make_base(tmp_path / "base", kind, dtype=torch.bfloat16)
        adapter = make_adapter(tmp_path / "adapter", base)
        registry = AdapterRegistry(tmp_path / "registry")
        settings = {"settings": {"compute_dtype": "bfloat16"}}
        card = registry.register("json", adapter, base=base, quantization="nf4", lineage=settings)

        report = merge_adapter(base, registry.folder(card), tmp_path / "out", exact=True, dtype="float32")

        assert report.exact == "nf4, double quantisation"
        trained = load_base(base, quantization="nf4", compute_dtype="bfloat16", training=True)
        adapted = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter
        ).merge_and_unload()
        changed, plain = weights(tmp_path / "out"), weights(base)
        modules = quantized_modules(base)
        assert modules == {
            name for name, module in trained.model.named_modules() if type(module).__name__ == "Linear4bit"
        }
        for module in modules:
            layer, name = trained.model.get_submodule(module), f"{module}.weight"
            as_trained = dequantize_module_weight(layer)
            stored = changed[name].T if kind == "gpt2" else changed[name]
            delta = adapted.state_dict()[name] - plain[name].float()
            delta = delta.T if kind == "gpt2" else delta
            torch.testing.assert_close(stored - as_trained, delta, rtol=1e-4, atol=1e-5)
        untouched = [name for name in plain if name.removesuffix(".weight") not in modules]
        assert all(torch.equal(changed[name], plain[name].float()) for name in untouched)
        assert "stored in 4 bits (nf4, double quantisation)" in (tmp_path / "out" / "README.md").read_text()

    def test_layers_without_an_adapter_are_as_in_training_too(
        self, tmp_path: Path, base: Path, registry: AdapterRegistry
    ):
        registry.register("few", registry.folder(registry.get("json")), base=base, quantization="fp4")
        folders = adapter_folders(registry, "few")
        report = merge_adapter(base, folders, tmp_path / "out", exact=True)
        assert (report.merged, report.exact) == (4, "fp4, double quantisation")
        name = "model.layers.0.mlp.up_proj.weight"
        expected = dequantize_4bit(
            *quantize_4bit(weights(base)[name], quant_type="fp4", compress_statistics=True)
        )
        assert torch.equal(weights(tmp_path / "out")[name], expected)

    def test_without_a_word_of_it_on_the_card_it_is_refused(
        self, tmp_path: Path, base: Path, registry: AdapterRegistry
    ):
        with pytest.raises(ExportError, match="does not say that it was trained on a base in 4 bits"):
            merge_adapter(base, adapter_folders(registry, "json"), tmp_path / "out", exact=True)
        with pytest.raises(ExportError, match="does not say"):
            merge_adapter(base, adapter_folders(registry, "json+code"), tmp_path / "out", exact=True)
        assert not (tmp_path / "out").exists()
        told = RoundTrip("nf4", double_quant=False)
        report = merge_adapter(base, adapter_folders(registry, "json"), tmp_path / "out", exact=told)
        assert report.exact == "nf4, single quantisation"

    def test_parts_that_were_trained_differently_are_refused(
        self, tmp_path: Path, base: Path, registry: AdapterRegistry
    ):
        registry.register("fp4", registry.folder(registry.get("json")), base=base, quantization="fp4")
        with pytest.raises(ExportError, match=r"different weights: .*fp4"):
            merge_adapter(base, adapter_folders(registry, "code+fp4"), tmp_path / "out", exact=True)


class TestFiles:
    def test_a_command_checks_the_checksums(self, tmp_path: Path, base: Path, adapter: Path):
        out = tmp_path / "out"
        merge_adapter(base, adapter, out, max_shard_size="60KB")
        lines = (out / CHECKSUMS_FILE).read_text().splitlines()
        assert {line.split("  ")[1] for line in lines} == {
            path.name for path in out.iterdir() if path.name != CHECKSUMS_FILE
        }
        command = [shutil.which("sha256sum") or "shasum", "--check", "--quiet", CHECKSUMS_FILE]
        assert subprocess.run(command, cwd=out, check=False).returncode == 0
        shard = sorted(out.glob("*.safetensors"))[0]
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
        done = subprocess.run(command, cwd=out, check=False, capture_output=True)
        assert done.returncode == 1

    def test_a_disk_without_room_is_refused_before_anything_is_written(
        self, tmp_path: Path, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
    ):
        usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
        monkeypatch.setattr("adapterhub.export.disk_space.shutil.disk_usage", lambda place: usage)
        with pytest.raises(ExportError, match=r"needs [\d,]+ bytes; .* has 100,000 free"):
            merge_adapter(
                base, adapter, tmp_path / "far" / "out", progress=lambda *_: pytest.fail("it wrote")
            )
        assert list(tmp_path.iterdir()) == []

    def test_a_killed_merge_leaves_no_folder_that_looks_finished_and_runs_again(
        self, tmp_path: Path, base: Path, adapter: Path
    ):
        program = (
            "import os, signal, sys; from adapterhub.export import merge_adapter\n"
            "def kill(written, total):\n    if written > total / 2: os.kill(os.getpid(), signal.SIGKILL)\n"
            "merge_adapter(*sys.argv[1:], max_shard_size='60KB', verify=False, progress=kill)"
        )
        command = [sys.executable, "-c", program, str(base), str(adapter), str(tmp_path / "out")]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        (left,) = tmp_path.iterdir()
        assert left.name.startswith(".out.")
        os.utime(left, (0, 0))  # as if some time had gone by
        merge_adapter(base, adapter, tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
