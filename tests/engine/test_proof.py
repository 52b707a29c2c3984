"""A base is served by the fastest runner that computes what its model computes, and by none that does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from adapterhub import AdapterHub
from adapterhub.base.loading import Base, load_base
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.kv import packed_step
from adapterhub.engine.kv.decode_kernel import DecodeKernel, KernelDecode
from adapterhub.engine.kv.masks import AttentionMask
from adapterhub.engine.runners import choosing, proof
from adapterhub.engine.runners.choosing import make_runner
from adapterhub.engine.runners.packed import PackedRunner
from adapterhub.engine.runners.proof import largest_difference, rounding_bound
from adapterhub.engine.runners.row_by_row import RowRunner
from adapterhub.errors import ConfigError, EngineError
from adapterhub.lora.kernels.choosing import compiled_library
from adapterhub.lora.kernels.cpu import CpuKernels
from adapterhub.lora.layers import WrappedModule
from adapterhub.lora.mapping import LoraMapping
from tests.tiny import SIZES, make_base, make_tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {kind: make_base(root / kind, kind) for kind in ("llama", "gpt2", "mixtral", "gemma3")}


@pytest.fixture
def llama(folders) -> Base:
    return load_base(folders["llama"], quantization=None, device="cpu")


def reasons(caplog) -> str:
    """What was logged about runners."""
    return "\n".join(record.getMessage() for record in caplog.records if record.name == choosing.__name__)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "gemma3"])
def test_what_is_packed_is_proved(folders, kind: str):
    engine = BatchingEngine(load_base(folders[kind], quantization=None, device="cpu"))
    stats = engine.stats()
    assert stats.runner == "packed"
    assert stats.proof_difference is not None
    assert stats.proof_difference <= 1e-5
    assert stats.proof_bound == 1e-4
    assert stats.proof_seconds
    engine.close()


@pytest.mark.parametrize(
    ("quantization", "dtype"),
    [
        ("nf4", "auto"),
        ("nf4", "float32"),
        ("int8", "float32"),
        ("int4", "auto"),
        ("int4", "float32"),
        ("int8_weight_only", "bfloat16"),
        (None, "bfloat16"),
        (None, "float16"),
    ],
)
def test_the_proof_holds_in_every_precision(folders, quantization: Any, dtype: Any):
    base = load_base(folders["llama"], quantization=quantization, compute_dtype=dtype, device="cpu")
    runner = make_runner(base, max_loras=2)
    assert isinstance(runner, PackedRunner)
    assert runner.proof
    assert runner.proof.difference <= runner.proof.bound == rounding_bound(base)


def test_it_leaves_nothing_behind(llama: Base):
    def state() -> tuple[object, ...]:
        modules = dict(llama.model.named_modules())
        hooks = {name: len(one._forward_hooks) for name, one in modules.items()}
        kinds = {name: type(one) for name, one in modules.items()}
        return kinds, hooks, llama.model.generation_config.to_dict(), torch.get_rng_state().tolist()

    before = state()
    runner = make_runner(llama, max_loras=2)
    assert state() == before
    assert runner.adapter_bytes == 0


def wrong_positions(monkeypatch):
    own = PackedRunner._run_model

    def shifted(self: Any, token_ids: list[int], positions: list[int], *others: Any) -> torch.Tensor:
        return own(self, token_ids, [0, *positions[:-1]], *others)

    monkeypatch.setattr(PackedRunner, "_run_model", shifted)


def wrong_adapter_of_a_row(monkeypatch):
    class Shifted(LoraMapping):
        def __init__(self, runs: Any, *, num_base_tokens: int = 0, **settings: Any) -> None:
            taken = min(num_base_tokens, 1)
            runs = [(slot, count + taken) for slot, count in runs]
            super().__init__(runs, num_base_tokens=num_base_tokens - taken, **settings)

    monkeypatch.setattr("adapterhub.engine.runners.packed.LoraMapping", Shifted)


def no_adapters(monkeypatch):
    monkeypatch.setattr(PackedRunner, "_mapping", lambda *_: None)


def wrong_mask_of_decoding(monkeypatch):
    monkeypatch.setenv("ADAPTERHUB_ATTENTION_KERNEL", "torch")
    mask = packed_step._DecodeBatch._mask
    monkeypatch.setattr(
        packed_step._DecodeBatch, "_mask", lambda self, kind: torch.zeros_like(mask(self, kind))
    )


def lost_keys_of_decoding(monkeypatch):
    if DecodeKernel.find(torch.device("cpu"), torch.float32) is None:
        pytest.skip("decode_attention.cpp cannot be compiled here")
    own = KernelDecode.__init__

    def shorter(self: KernelDecode, *arguments: Any) -> None:
        own(self, *arguments)
        self._lengths -= 1

    monkeypatch.setattr(KernelDecode, "__init__", shorter)


def wrong_mask_of_prefill(monkeypatch):
    mask = packed_step._PrefillChunk._mask
    monkeypatch.setattr(
        packed_step._PrefillChunk, "_mask", lambda self, kind: mask(self, AttentionMask.of_window(3))
    )


def lost_keys_of_a_chunk(monkeypatch):
    own = PackedRunner.step

    def forgetful(self: PackedRunner, sequences: Any) -> torch.Tensor:
        logits = own(self, sequences)
        for one in sequences:
            if not one.needs_logits:
                one.kv_slot.pool.keys_and_values(0)[0][one.kv_slot.index].zero_()
        return logits

    monkeypatch.setattr(PackedRunner, "step", forgetful)


def an_exception(monkeypatch):
    def fails(*_: object) -> None:
        raise IndexError("out of range")

    monkeypatch.setattr(PackedRunner, "step", fails)


DEFECTS = [
    wrong_positions,
    wrong_adapter_of_a_row,
    no_adapters,
    wrong_mask_of_decoding,
    lost_keys_of_decoding,
    wrong_mask_of_prefill,
    lost_keys_of_a_chunk,
    an_exception,
]
FLOAT32 = {"quantization": None}
NF4 = {"quantization": "nf4"}  # multiplies in bfloat16 where the CPU can


@pytest.mark.parametrize(
    ("defect", "settings"),
    # Two keys too many are hidden in the rounding of bfloat16.
    [(one, FLOAT32) for one in DEFECTS]
    + [(one, NF4) for one in DEFECTS if one not in (wrong_mask_of_decoding, lost_keys_of_decoding)],
)
def test_a_packed_step_that_is_wrong_goes_row_by_row(
    folders, monkeypatch, caplog, defect: Callable[[Any], None], settings: dict[str, Any]
):
    base = load_base(folders["llama"], device="cpu", **settings)
    own_attention = base.model.config._attn_implementation
    defect(monkeypatch)
    runner = make_runner(base, max_loras=2)
    assert isinstance(runner, RowRunner)
    assert runner.proof
    assert base.model.config._attn_implementation == own_attention
    assert not [one for one in base.model.modules() if isinstance(one, WrappedModule)]
    assert ("IndexError" if defect is an_exception else "rounding explains") in reasons(caplog)


@pytest.mark.parametrize("settings", [FLOAT32, NF4], ids=["float32", "nf4"])
def test_products_of_adapters_that_are_wrong_are_served_by_no_runner(
    folders, monkeypatch, settings: dict[str, Any]
):
    if compiled_library()[0] is None:
        pytest.skip("lora.cpp cannot be compiled here")
    own = CpuKernels.add_lora

    def halved(self: CpuKernels, layer: str, x: torch.Tensor, *others: Any) -> None:
        own(self, layer, x / 2, *others)

    monkeypatch.setattr(CpuKernels, "add_lora", halved)
    with pytest.raises(EngineError):
        make_runner(load_base(folders["llama"], device="cpu", **settings), max_loras=2)


def test_a_token_that_rounds_to_another_expert_is_no_defect(folders, monkeypatch):
    """Rounding to 16 bits may make one of the tries differ, in float32 there is one."""

    def first_is_far(own: Callable[..., float]) -> Callable[..., float]:
        tries = iter([1.0])
        return lambda *arguments: next(tries, own(*arguments))

    for dtype, kind in (("bfloat16", PackedRunner), ("float32", RowRunner)):
        monkeypatch.setattr(proof, "largest_difference", first_is_far(largest_difference))
        base = load_base(folders["mixtral"], quantization=None, compute_dtype=dtype, device="cpu")
        assert isinstance(make_runner(base, max_loras=2), kind)


def test_without_the_proof_a_wrong_step_is_not_seen(llama: Base, monkeypatch):
    wrong_positions(monkeypatch)
    engine = BatchingEngine(llama, prove_base=False)
    assert (engine.stats().runner, engine.stats().proof_difference) == ("packed", None)
    engine.close()


@pytest.mark.parametrize("proved", [True, False])
def test_a_setting_switches_it_off(folders, monkeypatch, tmp_path, proved: bool):
    monkeypatch.setenv("ADAPTERHUB_PROVE_BASE", str(proved).lower())
    with AdapterHub.from_pretrained(folders["llama"], tmp_path, quantization=None, device="cpu") as hub:
        assert (hub.stats().proof_difference is not None) == proved


def test_where_no_runner_is_right_the_base_is_refused_with_both_numbers(llama: Base, monkeypatch):
    def backwards(own: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda *arguments: own(*arguments).flip(-1)

    with monkeypatch.context() as patch:
        for kind in (PackedRunner, RowRunner):
            patch.setattr(kind, "step", backwards(kind.step))
        with pytest.raises(EngineError) as refused:
            make_runner(llama, max_loras=2)
    assert refused.value.message.count("of their standard deviation") == 3
    assert make_runner(llama, max_loras=2).name == "packed", "the base is as before, and has no owner"


def one_call_of_attention_in_each_layer(monkeypatch):
    """What packed steps took for granted before they counted a layer's calls; DiffLlama makes two."""
    probe = PackedRunner._probe

    def once(self: PackedRunner) -> Any:
        found = probe(self)
        indices = [found.modules.index(module) for module in found.modules]
        found.layers = [found.layers[index] for index in indices]
        return found

    monkeypatch.setattr(PackedRunner, "_probe", once)


def no_states(monkeypatch):
    """FalconH1 has a state beside the attention of every layer, so counting layers that attend finds nothing."""
    monkeypatch.setattr("adapterhub.engine.runners.packed.find_stateful_layers", lambda *_: ([], ()))


MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}


@pytest.mark.parametrize(
    ("family", "config", "disable"),
    [
        ("diffllama", {}, one_call_of_attention_in_each_layer),
        ("falcon_h1", {**MAMBA, "mamba_chunk_size": 8}, no_states),
    ],
)
def test_architectures_that_were_served_wrongly_go_row_by_row(
    tmp_path, monkeypatch, caplog, family: str, config: dict[str, Any], disable: Callable[[Any], None]
):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, **config))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    disable(monkeypatch)
    runner = make_runner(load_base(tmp_path, quantization=None, device="cpu"), max_loras=2)
    assert isinstance(runner, RowRunner)
    assert "rounding explains" in reasons(caplog)
    monkeypatch.undo()
    runner = make_runner(load_base(tmp_path, quantization=None, device="cpu"), max_loras=2)
    assert isinstance(runner, PackedRunner)
    assert runner.proof


@pytest.mark.parametrize("variable", ["ADAPTERHUB_ATTENTION_KERNEL", "ADAPTERHUB_LORA_KERNELS"])
def test_a_variable_with_an_unknown_value_is_named_and_the_base_can_be_used_after(
    llama, monkeypatch, variable: str
):
    with monkeypatch.context() as patched:
        patched.setenv(variable, "fast")
        with pytest.raises(ConfigError, match=f"{variable}=fast is not known"):
            make_runner(llama, max_loras=2)
    assert make_runner(llama, max_loras=2).name == "packed"
