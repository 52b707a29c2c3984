"""Adapters that change embeddings, whole modules or rows of tokens in a hub: registered, served, evicted, blended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapterhub import AdapterHub, AdapterRegistry
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.cli.registry import show
from adapterhub.errors import AdapterIncompatibleError, AdapterInvalidError
from adapterhub.export import export_gguf_adapter, export_mlx, export_peft, export_vllm, merge_adapter
from adapterhub.export.lora_form import LoraForm
from adapterhub.lora.blending import blend_adapters
from adapterhub.peft_format.checks import inspect_adapter
from adapterhub.peft_format.config import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.training.config import LoraOptions
from adapterhub.training.initial_weights import load_initial_weights
from tests.tiny import make_adapter, make_base

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

TOKENS = [70, 75, 81]
PROMPT = "the quick brown fox"
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"modules_to_save": ["lm_head", "norm"]},
    "tokens": {"trainable_token_indices": TOKENS},
    "other-tokens": {"trainable_token_indices": [75, 90]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "base", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def registry(base: Path, tmp_path_factory) -> AdapterRegistry:
    root = tmp_path_factory.mktemp("adapters")
    registry = AdapterRegistry(root / "registry")
    for seed, (name, settings) in enumerate(KINDS.items()):
        registry.register(name, make_adapter(root / name, base, seed=seed, **settings), base=base)
    return registry


@pytest.fixture
def hub(base: Path, registry: AdapterRegistry) -> Iterator[AdapterHub]:
    with AdapterHub.from_pretrained(base, registry.root, quantization=None, device="cpu", max_loras=2) as hub:
        yield hub


def ids_of(hub: AdapterHub, name: str | None, **options: Any) -> list[int]:
    found = hub.generate(PROMPT, name, raw=True, max_tokens=8, temperature=0, ignore_eos=True, **options)
    return list(found.completions[0].token_ids)


@torch.inference_mode()
def greedy(model: Any, ids: list[int]) -> list[int]:
    model.eval().generation_config.eos_token_id = None
    out = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=0)
    return out[0, len(ids) :].tolist()


def pefts(hub: AdapterHub, base: Path, folder: Path | None) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder) if folder else model
    return greedy(model, hub.engine.tokenizer.encode(PROMPT))


def folder_of(registry: AdapterRegistry, name: str) -> Path:
    return registry.folder(registry.resolve(name))


def test_evicted_and_loaded_again_they_answer_as_pefts(
    hub: AdapterHub, base: Path, registry: AdapterRegistry
):
    wanted = {name: pefts(hub, base, folder_of(registry, name)) for name in KINDS}
    bare = pefts(hub, base, None)
    for name in (*KINDS, *KINDS):  # two slots for five adapters
        assert ids_of(hub, name) == wanted[name], name
        assert ids_of(hub, None) == bare
    assert len({*map(tuple, wanted.values()), tuple(bare)}) > len(KINDS) - 1


@pytest.mark.parametrize(
    "blend",
    ["head:0.6+plain:0.4", "head:0.7", "tokens:0.5+other-tokens:0.8", "embedding:0.5+plain:0.7"],
)
def test_a_blend_in_a_request_is_the_exact_sum(
    hub: AdapterHub, base: Path, registry: AdapterRegistry, tmp_path: Path, blend: str
):
    weights = {name: float(weight) for name, weight in (part.split(":") for part in blend.split("+"))}
    found = ids_of(hub, blend)
    merge_adapter(base, {folder_of(registry, name): w for name, w in weights.items()}, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert found == greedy(merged, hub.engine.tokenizer.encode(PROMPT))


def test_kinds_of_changes_that_have_no_sum(hub: AdapterHub):
    with pytest.raises(AdapterIncompatibleError, match=r"'lm_head' in different ways"):
        hub.generate(PROMPT, "head:0.5+tokens:0.5", raw=True)
    assert ids_of(hub, "head")


def test_stored_blends(hub: AdapterHub, base: Path, registry: AdapterRegistry):
    blend_adapters(registry, "sum", {"embedding": 0.5, "plain": 0.7})
    assert ids_of(hub, "sum") == pefts(hub, base, folder_of(registry, "sum"))
    assert ids_of(hub, "sum") == ids_of(hub, "embedding:0.5+plain:0.7")
    with pytest.raises(AdapterIncompatibleError, match=r"replaces weights of 'model\.embed_tokens'"):
        blend_adapters(registry, "no", {"tokens": 0.5, "plain": 0.7})


EXPORTS: dict[str, Callable[[AdapterRegistry, Path, Path], object]] = {
    "peft, plain": lambda registry, base, out: export_peft(registry, "head", out, LoraForm(plain=True)),
    "peft, plain, of a blend": lambda registry, base, out: export_peft(
        registry, "plain:0.5+embedding:0.5", out, LoraForm(plain=True)
    ),
    "mlx": lambda registry, base, out: export_mlx(registry, "head", out),
    "vllm": lambda registry, base, out: export_vllm(registry, out, ["head"], base=str(base)),
    "gguf": lambda registry, base, out: export_gguf_adapter(registry, "head", out, base_folder=base),
    "gguf, embedding": lambda registry, base, out: export_gguf_adapter(
        registry, "embedding", out, base_folder=base
    ),
}


@pytest.mark.parametrize("export", EXPORTS.values(), ids=EXPORTS)
def test_forms_that_cannot_carry_them_refuse(
    base: Path, registry: AdapterRegistry, tmp_path: Path, export: Callable[..., object]
):
    with pytest.raises(AdapterIncompatibleError) as caught:
        export(registry, base, tmp_path / "out")
    assert "erge" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_a_copy_carries_them(registry: AdapterRegistry, tmp_path: Path):
    report = export_peft(registry, "head", tmp_path / "out")
    assert report.digest == registry.resolve("head").digest == inspect_adapter(tmp_path / "out").digest


def test_lora_on_embeddings_is_exported_in_other_forms(
    hub: AdapterHub, base: Path, registry: AdapterRegistry, tmp_path: Path
):
    blend = "embedding:0.5+plain:0.7"
    export_peft(registry, blend, tmp_path / "blend")
    assert pefts(hub, base, tmp_path / "blend") == ids_of(hub, blend)
    report = export_peft(registry, "embedding", tmp_path / "lower", LoraForm(rank=2, max_error=1.0))
    weights = load_file(tmp_path / "lower" / WEIGHTS_FILE)
    assert weights["base_model.model.model.embed_tokens.lora_embedding_A"].shape == (2, 320)
    assert 0.1 < report.error < 0.9


def test_training_does_not_start_from_them(base: Path, registry: AdapterRegistry):
    folder = folder_of(registry, "tokens")
    with pytest.raises(AdapterIncompatibleError, match="not trained here"):
        load_initial_weights(folder, None, LoraOptions(r=4, alpha=8), base, LinearLayers.of_folder(base))


def test_the_command_line_tells_what_they_replace(registry: AdapterRegistry):
    shown = {
        name: CliRunner().invoke(show, [name, "--registry", str(registry.root)]).output for name in KINDS
    }
    assert "lm_head, norm" in shown["head"]
    assert "3 rows of the embedding" in shown["tokens"]
    assert "replaces" not in shown["embedding"]


# What is refused


def with_config(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | settings))


def with_tensor(folder: Path, ending: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    name = next(name for name in tensors if name.endswith(ending))
    changed = change(tensors.pop(name))
    save_file(tensors | ({} if changed is None else {name: changed}), folder / WEIGHTS_FILE)


def longer(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor, tensor[:1]])


REFUSED: dict[str, tuple[str, Callable[[Path], None], type[Exception], str]] = {
    "a longer head": (
        "head",
        partial(with_tensor, ending="lm_head.weight", change=longer),
        AdapterIncompatibleError,
        r"\(320, 64\), not \(321, 64\)",
    ),
    "a norm without weights": (
        "head",
        partial(with_tensor, ending="model.norm.weight", change=lambda _: None),
        AdapterInvalidError,
        "asks for 'model.norm.weight'",
    ),
    "no replaced module at all": (
        "plain",
        partial(with_config, modules_to_save=["norm"]),
        AdapterInvalidError,
        "modules_to_save asks for .* which has no weights",
    ),
    "NaN in a head": (
        "head",
        partial(with_tensor, ending="lm_head.weight", change=lambda one: one.fill_(torch.nan)),
        AdapterInvalidError,
        "NaN",
    ),
    "a head that the config does not name": (
        "head",
        partial(with_config, modules_to_save=["norm"]),
        AdapterIncompatibleError,
        "not the base's own weight",
    ),
    "a token that the base lacks": (
        "tokens",
        partial(with_config, trainable_token_indices=[5, 6, 320]),
        AdapterIncompatibleError,
        "trains token 320",
    ),
    "a token twice": (
        "tokens",
        partial(with_config, trainable_token_indices=[5, 6, 5]),
        AdapterInvalidError,
        "twice",
    ),
    "fewer tokens than rows": (
        "tokens",
        partial(with_config, trainable_token_indices=[5, 6]),
        AdapterInvalidError,
        "names 2 tokens",
    ),
    "no rows": (
        "tokens",
        partial(with_tensor, ending="trainable_tokens_delta", change=lambda _: None),
        AdapterInvalidError,
        "rows of 'the embedding', which have no weights",
    ),
    "rows of one module of two": (
        "tokens",
        partial(with_config, trainable_token_indices={"embed_tokens": TOKENS, "q_proj": TOKENS}),
        AdapterInvalidError,
        "rows of 'q_proj', which have no weights",
    ),
    "a negative token": (
        "tokens",
        partial(with_config, trainable_token_indices=[5, 6, -1]),
        AdapterInvalidError,
        "wrong value",
    ),
    "another rank": (
        "embedding",
        partial(with_config, r=5, rank_pattern={"q_proj": 4}),
        AdapterInvalidError,
        "rank 5 in 'model.embed_tokens'",
    ),
    "another vocabulary": (
        "embedding",
        partial(with_tensor, ending="lora_embedding_A", change=lambda one: one[:, 1:].contiguous()),
        AdapterIncompatibleError,
        r"\(320, 64\), not \(319, 64\)",
    ),
}


@pytest.mark.parametrize(("name", "change", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(
    base: Path,
    registry: AdapterRegistry,
    tmp_path: Path,
    name: str,
    change: Callable[[Path], None],
    error: type[Exception],
    message: str,
):
    folder = tmp_path / "a"
    folder.mkdir()
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(folder_of(registry, name) / file, folder / file)
    change(folder)
    with pytest.raises(error, match=message):
        AdapterRegistry(tmp_path / "registry").register("a", folder, base=base)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}, "DoRA on the embedding"),
        ({"target_modules": ["lm_head"], "trainable_token_indices": TOKENS}, "in two ways"),
    ],
)
def test_what_cannot_be_served_says_why(base: Path, tmp_path: Path, settings: dict[str, Any], message: str):
    adapter = make_adapter(tmp_path / "a", base, **settings)
    with pytest.raises(AdapterIncompatibleError, match=message):
        AdapterRegistry(tmp_path / "registry").register("a", adapter, base=base)


# Memory


def test_large_ones_are_refused_above_the_limit_and_have_a_warning(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("adapterhub.peft_format.checks.LARGE_SLOT_WEIGHTS", 2**18)
    base = make_base(tmp_path / "base", vocab_size=5000)
    registry = AdapterRegistry(tmp_path / "registry")
    head = {"modules_to_save": ["lm_head"]}
    for seed, (name, settings) in enumerate({"head": head, "other": head, "plain": {}}.items()):
        registry.register(name, make_adapter(tmp_path / name, base, seed=seed, **settings), base=base)
    (warning,) = registry.resolve("head").warnings
    assert "'lm_head': 1 MiB of a LoRA slot in 16 bits" in warning
    options = {"quantization": None, "device": "cpu", "kv_cache_mib": 16}
    with AdapterHub.from_pretrained(base, registry.root, max_slot_weights_mib=1, **options) as hub:
        for name in ("head", "plain:0.5+head:0.5"):
            with pytest.raises(
                AdapterIncompatibleError, match="take 1 MiB of a LoRA slot, and the engine gives 1"
            ):
                hub.generate(PROMPT, name, raw=True)
        assert ids_of(hub, "plain")
    with AdapterHub.from_pretrained(base, registry.root, max_slot_weights_mib=2, **options) as hub:
        names = ["head", "other", "plain"] * 2
        alone = [ids_of(hub, name) for name in names]
        with ThreadPoolExecutor(6) as pool:  # the heads wait for each other: both would be too large
            assert list(pool.map(partial(ids_of, hub), names)) == alone
        assert len(set(map(tuple, alone))) == 3
        assert hub.stats().adapter_bytes < 2**21
