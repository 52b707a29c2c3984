"""Tiny bases and adapters, made on the spot: real formats, random weights, no download.

The weights are large enough that an adapter changes the answer: a test that confuses two adapters fails.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    LlamaTokenizer,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.tokenization_utils_base import generate_merges

from adapterhub.dataset import read_records
from adapterhub.export.verification_texts import SHIPPED_TEXTS

VOCABULARY = 320
CONTEXT = 256
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT = [
    "the quick brown fox jumps over the lazy dog",
    "привет, мир",
    "one two three four",
    '{"a": 1, "b": [2]}',
]
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "gemma3", "qwen3_moe", "gpt_oss")
ATTENTION = {"gpt2": ["c_attn"], "phi3": ["qkv_proj"], **{kind: ["q_proj", "v_proj"] for kind in LLAMA_LIKE}}
_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALL_LINEAR = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    **{kind: list(_PROJECTIONS) for kind in LLAMA_LIKE},
}


@cache
def _bpe() -> str:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT * 4, trainer)
    return tokenizer.to_str()


def make_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most 320 tokens that can spell any text."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_bpe()), eos_token="<|im_end|>")
    tokenizer.chat_template = chat_template
    return tokenizer


@cache
def _sentences() -> list[str]:
    """Texts in several languages, with which a tokenizer of some size can be trained."""
    records = read_records(SHIPPED_TEXTS)
    return [message.content or "" for record in records for message in record.messages]


def make_sentencepiece_tokenizer(
    *, chat_template: str | None = None, legacy: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer of the Llama 2 kind, saved without `tokenizer.model`: merges of characters, bytes as a fallback."""
    trained = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = BpeTrainer(vocab_size=2000, special_tokens=specials, show_progress=False)
    trained.train_from_iterator(_sentences(), trainer)
    vocabulary = trained.get_vocab()
    # SentencePiece joins any two tokens whose sum is a token, so all such pairs are merges, in the tokens' order.
    merges = generate_merges(vocabulary, {token: -id_ for token, id_ in vocabulary.items()})
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=merges, legacy=legacy)
    tokenizer.chat_template = chat_template
    return tokenizer


SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
"""The sizes of tiny decoders."""


def _config(kind: str, **changes: Any) -> Any:
    if kind == "gpt2":
        sizes = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
        return GPT2Config(bos_token_id=0, eos_token_id=2, **{**sizes, **changes})
    sizes: dict[str, Any] = dict(SIZES)
    if kind == "gemma3":  # its files name the layers otherwise than the model does
        text = Gemma3TextConfig(**{**sizes, "head_dim": 16, "sliding_window": 64, **changes})
        vision = {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
        }
        return Gemma3Config(
            text_config=text.to_dict(),
            vision_config={**vision, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
            image_token_id=3,
            bos_token_id=0,
            eos_token_id=2,
        )
    if kind == "mixtral":  # the model joins the experts of its files
        sizes |= {"num_local_experts": 2}
    if kind == "qwen3_moe":
        sizes |= {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
    if kind == "gpt_oss":  # each expert's matrices are transposed, and have a bias
        sizes |= {"intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
    if kind == "phi3":
        sizes |= {"pad_token_id": 0}
    kinds = {
        "llama": LlamaConfig,
        "mistral": MistralConfig,
        "qwen2": Qwen2Config,
        "qwen3": Qwen3Config,
        "phi3": Phi3Config,
        "mixtral": MixtralConfig,
        "qwen3_moe": Qwen3MoeConfig,
        "gpt_oss": GptOssConfig,
    }
    return kinds[kind](bos_token_id=0, eos_token_id=2, **{**sizes, **changes})


def make_base(
    folder: Path,
    kind: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    chat_template: str | None = CHAT_TEMPLATE,
    config: Any = None,
    std: float = 0.08,
    **changes: Any,
) -> Path:
    """Writes a random base of an architecture above, or of a config, with its tokenizer, and returns its folder."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config or _config(kind, **changes))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "A_log" not in name:  # the decay of Mamba's states
            torch.nn.init.normal_(parameter, std=std)
    model.to(dtype).save_pretrained(folder)
    make_tokenizer(chat_template=chat_template).save_pretrained(folder)
    return folder


def make_gguf(
    file: Path,
    base: Path,
    *,
    quantization: str = "F32",
    split: str = "gpt-2",
    zeros: str | None = None,
    **fields: str | int,
) -> Path:
    """Writes a Llama of `make_base` as llama.cpp's converter does, its matrices quantised, and returns the file.

    `zeros` names a further tensor, of zeros.
    """
    import gguf
    import numpy

    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    config, writer = model.config, gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_license("mit")
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    words = {**content["model"]["vocab"], **{one["content"]: one["id"] for one in content["added_tokens"]}}
    special = {one["id"] for one in content["added_tokens"]}
    unused = {number: f"<unused{number}>" for number in range(len(words), config.vocab_size)}
    tokens = {**{number: word for word, number in words.items()}, **unused}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([tokens[number] for number in range(config.vocab_size)])
    writer.add_token_types([3 if number in special else 1 for number in range(config.vocab_size)])
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, value in fields.items():
        key = name.replace("__", ".")
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint16(key, value)
    kind = gguf.GGMLQuantizationType[quantization]
    if config.rope_parameters["rope_type"] == "llama3":
        theta, width = config.rope_parameters["rope_theta"], config.head_dim // 2
        plain = theta ** -(torch.arange(width) / width)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy())
    for name, tensor in _llama_cpp_tensors(model):
        stored = kind if tensor.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(tensor, stored), raw_dtype=stored)
    if zeros:
        writer.add_tensor(zeros, numpy.zeros(config.hidden_size, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _llama_cpp_tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """The weights under llama.cpp's names, and the rows of queries and keys in its order."""
    import gguf

    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        tensor = parameter.detach().float().numpy()
        if count := heads.get(name.split(".")[-2]):
            rows, columns = tensor.shape
            tensor = (
                tensor.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
            )
        own = names.get_name(name, try_suffixes=(".weight",))
        assert own is not None
        yield own, tensor


def make_adapter(
    folder: Path,
    base: Path,
    *,
    seed: int = 1,
    r: int = 4,
    lora_alpha: int = 8,
    std: float = 0.2,
    **settings: Any,
) -> Path:
    """Writes a random LoRA adapter for a base in PEFT's own format, and returns its folder."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings.setdefault("target_modules", ATTENTION.get(model.config.model_type))
    settings.setdefault("fan_in_fan_out", model.config.model_type == "gpt2")
    adapted = get_peft_model(model, LoraConfig(r=r, lora_alpha=lora_alpha, task_type="CAUSAL_LM", **settings))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            torch.nn.init.normal_(parameter, std=std)
        if "lora_magnitude_vector" in name:
            parameter.data.mul_(torch.empty_like(parameter).uniform_(0.7, 1.3))
        if "modules_to_save" in name or "trainable_tokens_delta" in name:
            parameter.data.add_(torch.empty_like(parameter).normal_(std=std / 4))
    adapted.save_pretrained(folder)
    return folder
