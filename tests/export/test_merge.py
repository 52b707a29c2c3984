"""Merging on disk: what PEFT's `merge_and_unload` gives, bit for bit, without loading a model."""

import errno
import json
import shutil
import struct
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from adapterhub import AdapterRegistry
from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.base.tokenizer_files import TOKENIZER_FILES
from adapterhub.errors import (
    AdapterHubError,
    AdapterIncompatibleError,
    AdapterInvalidError,
    ConfigError,
    ExportError,
)
from adapterhub.export import merge
from adapterhub.export.merge import LINEAGE_FILE
from tests.faults import failures
from tests.tiny import ALL_LINEAR, make_adapter, make_base

merge_adapter = partial(merge.merge_adapter, verify=False)  # the bits are compared here
KINDS = ("llama", "mistral", "qwen2", "gpt2")
PATTERN = {"gpt2": "attn.c_attn", "llama": "q_proj", "mistral": "q_proj", "qwen2": "q_proj"}


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bf16") / request.param, request.param, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bf16") / "llama", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter") / "plain", llama)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def make_head_adapter(folder: Path, base: Path) -> Path:
    """An adapter on the output head; by default PEFT would also save the head itself."""
    model = AutoModelForCausalLM.from_pretrained(base)
    first = {"gpt2": "c_attn"}.get(model.config.model_type, "q_proj")
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head", first], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder, save_embedding_layers=False)
    return folder


def merged_by_peft(base: Path, adapter: Path):
    model = AutoModelForCausalLM.from_pretrained(base)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def assert_same_weights(folder: Path, model) -> None:
    expected = model.state_dict()
    actual = weights(folder)
    assert len(actual) >= len(expected) - 1  # a tied head is not stored
    for name, tensor in actual.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="lora"),
        pytest.param({"use_rslora": True}, id="rslora"),
        pytest.param({"use_dora": True}, id="dora"),
        pytest.param({"patterns": True}, id="patterns"),
    ],
)
def test_a_merge_has_the_bits_of_pefts(base: Path, settings: dict[str, bool], tmp_path: Path):
    settings = dict(settings)
    kind = base.name
    if settings.pop("patterns", False):
        settings |= {"rank_pattern": {PATTERN[kind]: 7}, "alpha_pattern": {PATTERN[kind]: 3}}
    adapter = make_adapter(tmp_path / "adapter", base, r=5, target_modules=ALL_LINEAR[kind], **settings)

    report = merge_adapter(base, adapter, tmp_path / "out")

    reference = merged_by_peft(base, adapter)
    assert_same_weights(tmp_path / "out", reference)
    before, after = weights(base), weights(tmp_path / "out")
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == report.merged == 2 * len(ALL_LINEAR[kind]) + (2 if kind == "gpt2" else 0)


@pytest.mark.parametrize("dora", [False, True])
def test_blocks_of_rows_have_the_bits_of_the_whole(
    base: Path, dora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With other numbers of rows than multiples of 64 the last bit of a product may differ."""
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=ALL_LINEAR[base.name], use_dora=dora)
    merge_adapter(base, adapter, tmp_path / "whole")
    monkeypatch.setattr("adapterhub.export.weight_files._BLOCK_ELEMENTS", 1)
    merge_adapter(base, adapter, tmp_path / "blocks")
    whole, blocks = weights(tmp_path / "whole"), weights(tmp_path / "blocks")
    assert [name for name, tensor in whole.items() if not torch.equal(blocks[name], tensor)] == []


def test_the_folder_loads_alone_and_answers_like_the_merged_model(base: Path, tmp_path: Path):
    adapter = make_adapter(tmp_path / "adapter", base)
    merge_adapter(base, adapter, tmp_path / "out")

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the quick brown fox"}], return_tensors="pt", add_generation_prompt=True
    )["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits
        assert torch.equal(logits, merged_by_peft(base, adapter)(ids).logits)
        assert not torch.equal(logits, AutoModelForCausalLM.from_pretrained(base)(ids).logits)


def test_shards_keep_their_names_headers_and_index(tmp_path: Path):
    whole = make_base(tmp_path / "whole", dtype=torch.bfloat16)
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(base, max_shard_size="60KB")
    adapter = make_adapter(tmp_path / "adapter", whole)
    shards = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(shards) > 2

    merge_adapter(base, adapter, tmp_path / "out")
    merge_adapter(whole, adapter, tmp_path / "out-whole")

    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == shards
    for name in ["model.safetensors.index.json", *shards]:
        one, other = (base / name).read_bytes(), (tmp_path / "out" / name).read_bytes()
        head = struct.unpack("<Q", one[:8])[0] + 8 if name.endswith("safetensors") else None
        assert one[:head] == other[:head]
    assert_same_weights(tmp_path / "out", AutoModelForCausalLM.from_pretrained(tmp_path / "out-whole"))


def test_tied_embeddings_stay_tied(tmp_path: Path):
    base = make_base(tmp_path / "base", dtype=torch.bfloat16, tie_word_embeddings=True)
    adapter = make_adapter(tmp_path / "adapter", base)
    merge_adapter(base, adapter, tmp_path / "out")
    assert "lm_head.weight" not in weights(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_a_tied_head_is_untied_in_weights_and_config(kind: str, tmp_path: Path):
    base = make_base(tmp_path / "base", kind, tie_word_embeddings=True)
    adapter = make_head_adapter(tmp_path / "adapter", base)
    report = merge_adapter(base, adapter, tmp_path / "out")
    assert report.untied == ("lm_head.weight",)
    assert "`tie_word_embeddings` is false" in (tmp_path / "out" / "README.md").read_text()
    assert report.tensors == len(weights(base)) + 1

    ids = torch.tensor([[5, 9, 200, 31]])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()
    unmerged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    with torch.no_grad():
        expected = unmerged(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_an_untied_head_can(tmp_path: Path):
    base = make_base(tmp_path / "base", dtype=torch.bfloat16, tie_word_embeddings=False)
    adapter = make_head_adapter(tmp_path / "adapter", base)
    assert merge_adapter(base, adapter, tmp_path / "out").merged == 3
    assert_same_weights(tmp_path / "out", merged_by_peft(base, adapter))


def test_a_checkpoint_without_the_base_model_prefix(tmp_path: Path):
    base = make_base(tmp_path / "base", "gpt2", dtype=torch.bfloat16)
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=ALL_LINEAR["gpt2"])
    reference = merged_by_peft(base, adapter)
    short = {name.removeprefix("transformer."): tensor for name, tensor in weights(base).items()}
    save_file(short, base / "model.safetensors", metadata={"format": "pt"})

    merge_adapter(base, adapter, tmp_path / "out")

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in reference.state_dict().items())


def test_float16_and_float32_bases_keep_their_dtype(tmp_path: Path):
    for name, dtype in (("F16", torch.float16), ("F32", torch.float32)):
        base = make_base(tmp_path / f"base-{name}", dtype=dtype)
        adapter = make_adapter(tmp_path / f"adapter-{name}", base)
        report = merge_adapter(base, adapter, tmp_path / f"out-{name}")
        assert report.dtypes == (name,)
        expected = merged_by_peft(base, adapter).state_dict()
        assert all(torch.equal(t, expected[n]) for n, t in weights(tmp_path / f"out-{name}").items())


def test_the_lineage_names_base_and_adapter(tmp_path: Path, llama: Path, adapter: Path):
    registry = AdapterRegistry(tmp_path / "registry")
    card = registry.register(
        "json",
        adapter,
        base=llama,
        description="Writes JSON.",
        license="mit",
        prompt={"system": "Answer in JSON."},
    )

    report = merge_adapter(llama, registry.folder(card), tmp_path / "out")

    lineage = json.loads((tmp_path / "out" / LINEAGE_FILE).read_text())
    assert lineage["adapter"] == report.adapter == "json@1"
    assert lineage["adapter_digest"] == card.digest
    assert lineage["base_digest"] == BaseFingerprint.of(llama).digest
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "Writes JSON." in readme
    assert "> Answer in JSON." in readme
    assert str(tmp_path) not in readme + json.dumps(lineage)  # no path of this machine
    assert not (tmp_path / "out" / "card.json").exists()


def test_the_cards_chat_template_replaces_the_bases(tmp_path: Path, llama: Path, adapter: Path):
    registry = AdapterRegistry(tmp_path / "registry")
    template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    card = registry.register("json", adapter, base=llama, prompt={"chat_template": template})
    merge_adapter(llama, registry.folder(card), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "[x]"


@pytest.mark.parametrize(
    ("name", "of", "error"),
    [
        ("tokenizer.json", "adapter", AdapterInvalidError),
        ("added_tokens.json", "adapter", AdapterInvalidError),
        ("generation_config.json", "base", ConfigError),
    ],
)
def test_damaged_tokenizer_files_are_an_error_before_anything_is_written(
    tmp_path: Path, llama: Path, adapter: Path, name: str, of: str, error: type[Exception]
):
    base = shutil.copytree(llama, tmp_path / "base")
    registry = AdapterRegistry(tmp_path / "registry")
    card = registry.register("json", adapter, base=base, prompt={"stop": ["<|endoftext|>"]})
    damaged = registry.folder(card) if of == "adapter" else base
    (damaged / name).write_text("{")
    with pytest.raises(error, match="damaged"):
        merge_adapter(
            base, registry.folder(card), tmp_path / "out", progress=lambda *_: pytest.fail("it wrote")
        )
    assert not (tmp_path / "out").exists()


def test_the_end_tokens_of_a_multi_modal_config_stay(tmp_path: Path):
    base = make_base(tmp_path / "gemma3", "gemma3")
    adapter = make_adapter(tmp_path / "adapter", base)
    (base / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["eos_token_id"] = config.pop("eos_token_id")
    (base / "config.json").write_text(json.dumps(config))
    card = (registry := AdapterRegistry(tmp_path / "registry")).register(
        "json", adapter, base=base, prompt={"stop": ["<|endoftext|>"]}
    )
    merge_adapter(base, registry.folder(card), tmp_path / "out")
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [2, 0]


def test_another_base_is_refused_unless_forced(tmp_path: Path, llama: Path, adapter: Path):
    card = (registry := AdapterRegistry(tmp_path / "registry")).register("json", adapter, base=llama)
    other = make_base(tmp_path / "other", dtype=torch.bfloat16, seed=7)
    with pytest.raises(AdapterIncompatibleError, match="another base"):
        merge_adapter(other, registry.folder(card), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = merge_adapter(other, registry.folder(card), tmp_path / "out", force=True)
    assert (report.base, report.base_digest) == ("other", BaseFingerprint.of(other).digest)
    assert_same_weights(tmp_path / "out", merged_by_peft(other, adapter))


def test_a_base_of_another_shape_is_refused(tmp_path: Path, adapter: Path):
    with pytest.raises(AdapterIncompatibleError):
        merge_adapter(make_base(tmp_path / "gpt2", "gpt2"), adapter, tmp_path / "out", force=True)
    assert not (tmp_path / "out").exists()


def test_a_quantised_base_is_refused(tmp_path: Path, llama: Path, adapter: Path):
    from adapterhub.base.loading import load_base

    load_base(llama, quantization="nf4").model.save_pretrained(tmp_path / "4bit")
    with pytest.raises(ExportError, match=r"no untied weight|stored as"):
        merge_adapter(tmp_path / "4bit", adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["a file", None])
def test_nothing_is_overwritten(tmp_path: Path, llama: Path, adapter: Path, content: str | None):
    out = tmp_path / "out"
    if content is None:
        out.mkdir()
        (out / "mine").write_text("precious")
    else:
        out.write_text(content)
    with pytest.raises(ExportError, match="is not empty"):
        merge_adapter(llama, adapter, out)
    assert (out / "mine").read_text() == "precious" if content is None else out.read_text() == content


def test_an_empty_folder_is_filled(tmp_path: Path, llama: Path, adapter: Path):
    (tmp_path / "out").mkdir()
    merge_adapter(llama, adapter, tmp_path / "out")
    assert_same_weights(tmp_path / "out", merged_by_peft(llama, adapter))


def test_a_weight_that_overflows_is_an_error_and_leaves_nothing(tmp_path: Path):
    base = make_base(tmp_path / "base", dtype=torch.float16)
    adapter = make_adapter(tmp_path / "adapter", base, std=300.0)
    with pytest.raises(ExportError, match=r"does not fit into torch\.float16"):
        merge_adapter(base, adapter, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_an_interrupted_merge_leaves_nothing(tmp_path: Path, llama: Path, adapter: Path):
    def interrupt(written: int, total: int) -> None:
        if written > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_adapter(llama, adapter, tmp_path / "out", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_export_error(
    tmp_path: Path, llama: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adapterhub.export.merge.shutil.copyfile", full)
    with pytest.raises(ExportError, match="No space left"):
        merge_adapter(llama, adapter, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_byte(tmp_path: Path, llama: Path, adapter: Path):
    calls: list[tuple[int, int]] = []
    report = merge_adapter(llama, adapter, tmp_path / "out", progress=lambda *call: calls.append(call))
    size = (llama / "model.safetensors").stat().st_size
    assert (calls[-1], report.size_bytes) == ((size, size), size)
    assert calls == sorted(calls)


def test_damaged_input_is_named(tmp_path: Path, llama: Path, adapter: Path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    (broken / "adapter_model.safetensors").write_bytes(
        (adapter / "adapter_model.safetensors").read_bytes()[:-10]
    )
    with pytest.raises(AdapterInvalidError):
        merge_adapter(llama, broken, tmp_path / "out")
    with pytest.raises(ConfigError):
        merge_adapter(tmp_path / "missing", adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_every_write_that_can_fail(tmp_path: Path, llama: Path, adapter: Path, code: int):
    (tmp_path / "place").mkdir()
    out = tmp_path / "place" / "out"

    def clean() -> None:
        shutil.rmtree(out, ignore_errors=True)

    found = list(failures(lambda: merge_adapter(llama, adapter, out), code, clean=clean))
    assert len(found) > 10
    for number, error in enumerate(found):
        assert isinstance(error, AdapterHubError), (number, repr(error))
        assert error.hint, repr(error)


def test_a_link_in_the_adapters_folder_is_not_published(tmp_path: Path, llama: Path, adapter: Path):
    folder = tmp_path / "linked"
    shutil.copytree(adapter, folder)
    (tmp_path / "secret.json").write_text("{}")
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "secret.json")
    with pytest.raises(AdapterInvalidError, match="not a regular file"):
        merge_adapter(llama, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
