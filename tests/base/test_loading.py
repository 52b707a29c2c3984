"""Loading the base, and the layout of its 4-bit weights."""

import copy
import json
from pathlib import Path

import pytest
import tokenizers
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, MptConfig, PreTrainedTokenizerFast

from adapterhub import load_base
from adapterhub.base.loading import Base
from adapterhub.base.locating import DEMO_BASE, demo_base_folder, locate_base, tokenizer_chat_template
from adapterhub.base.packed_linear import PackedLinear4bit
from adapterhub.base.quantized_weights import dequantize_module_weight, disable_weight_packing, is_packed
from adapterhub.errors import ConfigError, InvalidRequestError
from tests.tiny import ALL_LINEAR, CHAT_TEMPLATE, make_base, make_tokenizer

FourBit = PackedLinear4bit if has_avx512bf16() else Linear4bit
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
needs_packing = pytest.mark.skipif(
    not has_avx512bf16(), reason="only CPUs with AVX512-BF16 pack 4-bit weights"
)


def first_layer(base: Base) -> torch.nn.Module:
    layer: torch.nn.Module = base.model.get_submodule("model.layers.0.self_attn.q_proj")
    return layer


@pytest.mark.parametrize(
    ("quantization", "layer"),
    [("nf4", FourBit), ("fp4", FourBit), ("int8", Linear8bitLt), (None, torch.nn.Linear)],
)
def test_every_quantisation_loads_and_answers(tiny_base: Path, quantization, layer):
    base = load_base(tiny_base, quantization=quantization, device="cpu")
    assert type(first_layer(base)) is layer
    assert base.model(input_ids=IDS).logits.isfinite().all()
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


@pytest.mark.parametrize("stored", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("asked", ["nf4", None])
def test_a_base_whose_files_are_quantised_stays_so(tmp_path: Path, stored, asked):
    source = make_base(tmp_path / "16 bits", "llama", dtype=torch.bfloat16)
    quantised = load_base(source, quantization=stored, compute_dtype="bfloat16", device="cpu", training=True)
    quantised.model.save_pretrained(tmp_path / "stored")
    quantised.tokenizer.save_pretrained(tmp_path / "stored")

    base = load_base(tmp_path / "stored", quantization=asked, compute_dtype="float32", device="cpu")
    assert base.quantization == stored
    assert {p.dtype for p in base.model.parameters() if p.is_floating_point()} == {torch.float32}
    weights = (dequantize_module_weight(first_layer(one)) for one in (base, quantised))
    assert torch.equal(*weights)
    expected = load_base(source, quantization=stored, compute_dtype="float32", device="cpu")
    answers = [one.model(input_ids=IDS).logits for one in (base, expected)]
    # Training in bfloat16 has rounded the scales' products to it.
    assert (answers[0] - answers[1]).abs().max() <= 0.01 * answers[1].abs().max()


def test_a_base_that_another_library_quantised_is_refused(tmp_path: Path):
    folder = make_base(tmp_path / "base", "llama")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="quantised by 'gptq'"):
        load_base(folder, quantization=None)


def test_double_quantisation_is_on(tiny_base: Path):
    state = first_layer(load_base(tiny_base, training=True)).weight.quant_state
    assert (state.nested, state.quant_type) == (True, "nf4")


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "gpt2"])
def test_every_architecture_loads_in_4_bits(tmp_path: Path, kind):
    base = load_base(make_base(tmp_path / kind, kind))
    assert base.fingerprint.model_type == kind
    targets = {name.rsplit(".", 1)[-1] for name in base.linear_layers.shapes}
    assert set(ALL_LINEAR[kind]) <= targets
    assert base.model(input_ids=IDS).logits.isfinite().all()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("quantization", ["nf4", "int8", None])
def test_dequantize_module_weight_returns_the_weight_that_the_layer_multiplies_by(
    tmp_path: Path, kind, quantization
):
    base = load_base(make_base(tmp_path / kind, kind, tie_word_embeddings=False), quantization=quantization)
    name = next(name for name in base.linear_layers.shapes if name.endswith(("q_proj", "c_attn")))
    layer = base.model.get_submodule(name)
    x = torch.eye(base.linear_layers.shapes[name][1])
    with torch.inference_mode():
        bias = 0 if layer.bias is None else layer.bias
        product = (layer(x) - bias).T
    weight = dequantize_module_weight(layer)
    assert weight.shape == base.linear_layers.shapes[name]
    # int8 also rounds the input, and the packed 4-bit kernel multiplies in bfloat16
    bound = {"nf4": 2**-7, "int8": 2**-6, None: 1e-6}[quantization]
    assert (product - weight).abs().max() <= bound * weight.abs().max()


def test_dequantize_module_weight_refuses_other_modules():
    with pytest.raises(InvalidRequestError, match="LayerNorm"):
        dequantize_module_weight(torch.nn.LayerNorm(4))


def test_the_pad_token_falls_back_to_the_end_token(tiny_base: Path):
    tokenizer = load_base(tiny_base).tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token


def test_compute_dtype_can_be_chosen(tiny_base: Path):
    assert load_base(tiny_base, device="cpu").compute_dtype == torch.float32
    base = load_base(tiny_base, compute_dtype="bfloat16", device="cpu")
    assert base.model(input_ids=IDS).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
def test_an_explicit_float32_is_float32_in_every_product(tmp_path: Path, quantization):
    folder = make_base(tmp_path / "base", seed=5)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    exact = load_base(folder, quantization=quantization, compute_dtype="float32", device="cpu")
    for name in exact.linear_layers.shapes:
        weight = dequantize_module_weight(exact.model.get_submodule(name))
        reference.get_submodule(name).weight.data.copy_(weight)
    expected = reference(input_ids=IDS).logits
    torch.testing.assert_close(exact.model(input_ids=IDS).logits, expected, rtol=0, atol=2e-5)
    assert exact.matmul_dtype == torch.float32
    fast = load_base(folder, quantization=quantization, device="cpu")
    difference = (fast.model(input_ids=IDS).logits - expected).abs().max()
    assert (fast.matmul_dtype == torch.bfloat16) == has_avx512bf16() == bool(difference > 2e-4)


@pytest.mark.parametrize(
    ("quantization", "compute_dtype", "matmul_dtype"),
    [
        ("nf4", "float16", torch.float16),
        ("nf4", "bfloat16", torch.bfloat16),
        (None, "auto", torch.float32),
        (None, "float32", torch.float32),
    ],
)
def test_the_dtype_of_products_is_the_one_that_was_asked_for(
    tiny_base: Path, quantization, compute_dtype, matmul_dtype
):
    base = load_base(tiny_base, quantization=quantization, compute_dtype=compute_dtype, device="cpu")
    base.model(input_ids=IDS)
    assert base.matmul_dtype == matmul_dtype
    packed = [layer for layer in base.model.modules() if isinstance(layer, Linear4bit) and is_packed(layer)]
    assert not packed or matmul_dtype == torch.bfloat16


def test_the_fingerprint_does_not_depend_on_the_path(tmp_path: Path, tiny_base: Path):
    same = make_base(tmp_path / "elsewhere")
    other = make_base(tmp_path / "other", seed=7)
    fingerprint = load_base(tiny_base).fingerprint
    assert fingerprint == load_base(same).fingerprint
    assert "weights" in (fingerprint.mismatch(load_base(other).fingerprint) or "")


@pytest.mark.parametrize("wrong", ["/no/such/folder", "./nothing", Path("nothing"), "a b c"])
def test_a_missing_base_is_an_error_with_a_hint(wrong):
    with pytest.raises(ConfigError) as caught:
        load_base(wrong)
    assert caught.value.hint


def test_a_folder_without_a_model_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_base(tmp_path)


def test_a_hub_id_that_cannot_be_downloaded_is_an_error():
    with pytest.raises(ConfigError, match="hub") as caught:
        locate_base("nobody/has-this-model")
    assert "network" in (caught.value.hint or "")


def test_damaged_weights_are_an_error(tmp_path: Path, tiny_base: Path):
    broken = make_base(tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"could not be loaded|not a base"):
        load_base(broken)


def test_an_unknown_quantisation_is_an_error(tiny_base: Path):
    with pytest.raises(ConfigError, match="nf5"):
        load_base(tiny_base, quantization="nf5")  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["banana", "", "cuda:99"])
def test_a_device_that_is_not_there_is_an_error(tiny_base: Path, device):
    with pytest.raises(ConfigError, match=f"There is no .*'{device}'"):
        load_base(tiny_base, device=device)


def test_an_unknown_compute_dtype_is_an_error(tiny_base: Path):
    with pytest.raises(ConfigError, match="fp16"):
        load_base(tiny_base, compute_dtype="fp16")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 3}, r"lack 9 weights, such as 'model\.layers\.2"),  # else random numbers
        ({"vocab_size": 100}, "could not be loaded"),
        ({"num_attention_heads": "four"}, "could not be loaded"),
    ],
)
def test_a_config_of_another_model_is_an_error(tmp_path: Path, change, words):
    folder = make_base(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError, match=words):
        load_base(folder)


@pytest.mark.parametrize(
    ("config", "context"),
    [
        (GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=77), 77),
        (MptConfig(d_model=8, n_layers=1, n_heads=2, max_seq_len=77), 77),
        (
            BloomConfig(hidden_size=8, n_layer=1, n_head=2),
            55,
        ),  # has no positions: the tokenizer's limit counts
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_the_context_is_found_under_any_name(tmp_path: Path, config, context):
    config.vocab_size = 320
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 55
    tokenizer.save_pretrained(tmp_path)
    assert load_base(tmp_path, quantization=None, device="cpu").context_length == context


def test_tokenization_spaces_are_not_cleaned_up(tmp_path: Path):
    folder = make_base(tmp_path)
    own = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("▁,", -1.0)], 0))
    own.pre_tokenizer, own.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=own, clean_up_tokenization_spaces=True).save_pretrained(folder)
    assert load_base(folder).tokenizer.decode([1, 2, 1]) == "a , a"


def test_remote_code_stays_off(tmp_path: Path):
    folder = make_base(tmp_path / "custom")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    marker = tmp_path / "code-was-run"
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w')")
    with pytest.raises(ConfigError):
        load_base(folder)
    assert not marker.exists()


def test_the_chat_template_is_read_without_loading(tmp_path: Path, tiny_base: Path):
    assert tokenizer_chat_template(tiny_base) == CHAT_TEMPLATE
    assert tokenizer_chat_template(make_base(tmp_path / "bare", chat_template=None)) is None


def test_the_demo_base_is_located_by_name():
    assert locate_base(DEMO_BASE) == demo_base_folder()


class TestPacking:
    """bitsandbytes packs 4-bit weights in place at the first eval-mode forward on CPUs with AVX512-BF16."""

    def lora_gradients(self, base: Base) -> list[float]:
        """How much gradient reaches LoRA matrices after an evaluation, layer by layer."""
        model = get_peft_model(base.model, LoraConfig(r=2, target_modules=ALL_LINEAR["llama"]))
        model.eval()
        with torch.inference_mode():
            model(input_ids=IDS)
        model.train()
        model(input_ids=IDS, labels=IDS).loss.backward()
        return [float(p.grad.abs().sum()) for name, p in model.named_parameters() if "lora_B" in name]

    def test_after_an_evaluation_gradients_still_flow(self, tiny_base: Path):
        gradients = self.lora_gradients(load_base(tiny_base, training=True))
        assert len(gradients) == 14
        assert all(gradient > 0 for gradient in gradients)

    @needs_packing
    @pytest.mark.filterwarnings("ignore:bitsandbytes.*autograd kernel was not registered")
    def test_with_packing_they_do_not(self, tiny_base: Path):
        # Shows that the test above can fail: this is bitsandbytes' own behaviour.
        base = load_base(tiny_base, training=True)
        for layer in base.model.modules():
            if isinstance(layer, Linear4bit):
                layer.support_avx512bf16_for_cpu = True
        assert min(self.lora_gradients(base)) == 0

    @needs_packing
    def test_a_packed_model_can_be_unpacked(self, tiny_base: Path):
        unpacked = load_base(tiny_base, training=True, compute_dtype="float32")  # as "auto" for serving
        packed = load_base(tiny_base)
        packed.model(input_ids=IDS)
        assert is_packed(first_layer(packed))
        disable_weight_packing(packed.model)
        assert not is_packed(first_layer(packed))
        assert torch.equal(first_layer(packed).weight.data, first_layer(unpacked).weight.data)

    @needs_packing
    def test_dequantize_module_weight_leaves_a_packed_layer_packed(self, tiny_base: Path):
        base = load_base(tiny_base)
        base.model(input_ids=IDS)
        layer = first_layer(base)
        before = copy.deepcopy(layer.weight.data)
        dequantize_module_weight(layer)
        assert is_packed(layer)
        assert torch.equal(layer.weight.data, before)

    def test_layers_of_odd_sizes_are_served_too(self, tmp_path: Path):
        # 48 rows: bitsandbytes' packing would stop with an AssertionError.
        base = load_base(make_base(tmp_path / "odd", hidden_size=48, intermediate_size=80))
        assert base.model(input_ids=IDS).logits.isfinite().all()


@pytest.mark.gpu
def test_a_gpu_is_used_by_default(tiny_base: Path):
    base = load_base(tiny_base)
    assert base.device.type == "cuda"
    assert base.model(input_ids=IDS.cuda()).logits.isfinite().all()
