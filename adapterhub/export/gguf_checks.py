"""Checks of a GGUF file: its tokens are those of transformers' tokenizer, and its predictions those of the model.

Both are asked of llama.cpp where llama-cpp-python is installed. Elsewhere the file's tokenizer is computed by
`adapterhub.gguf.tokenizing`, and its weights are read by transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.errors import ExportError
from adapterhub.export.llama_cpp_file import has_llama_cpp, opened
from adapterhub.export.token_texts import token_texts
from adapterhub.export.verification import TokenSequence, VerificationBound
from adapterhub.gguf.text_splitting import SPLITS
from adapterhub.gguf.tokenizer import GgufTokenizer, gguf_tokenizer, read_tokenizer
from adapterhub.gguf.tokenizing import tokenize

if TYPE_CHECKING:
    import torch

GGUF_BOUNDS: Mapping[str, VerificationBound] = {
    "f32": VerificationBound(kl_divergence=0.001, perplexity_change=0.005),
    "f16": VerificationBound(kl_divergence=0.002, perplexity_change=0.01),
    "bf16": VerificationBound(kl_divergence=0.01, perplexity_change=0.02),
    "q8": VerificationBound(kl_divergence=0.03, perplexity_change=0.03),
    "q6": VerificationBound(kl_divergence=0.1, perplexity_change=0.1),
    "q5": VerificationBound(kl_divergence=0.3, perplexity_change=0.2),
    "q4": VerificationBound(kl_divergence=1.0, perplexity_change=0.5),
    "q3": VerificationBound(kl_divergence=2.0, perplexity_change=2.0),
    "q2": VerificationBound(kl_divergence=4.0, perplexity_change=10.0),
}
"""Bounds by type, quantised ones by their bits; small models lose most. The 16-bit file that llama.cpp quantises has
to be within its own bound first, so those of few bits need not tell a wrong file from a bad one."""


@dataclass(frozen=True)
class TokenCheck:
    """How a file's tokenizer compares with transformers'.

    Attributes:
        texts: How many texts both have tokenised.
        different: How many gave other tokens.
        computed_by: What tokenised in the file's place: `"llama.cpp"` or `"adapterhub"`.
        example: The first text with other tokens.
    """

    texts: int
    different: int
    computed_by: str
    example: str | None


def gguf_bound(file_type: str) -> VerificationBound:
    """The bound of a type such as `"q4_k_m"`."""
    return GGUF_BOUNDS[file_type if file_type in GGUF_BOUNDS else file_type[:2]]


def check_tokens(file: Path, derived: GgufTokenizer, tokenizer: Any) -> TokenCheck:
    """Tokenises texts in several languages, with control tokens, by a file and by transformers.

    Args:
        file: The GGUF file.
        derived: The tokenizer that it was written with.
        tokenizer: transformers'.
    """
    with _file_tokenizer(file, derived) as (computed_by, encode):
        return _compared(derived, encode, computed_by, tokenizer)


def nearest_split(tokenizer: Any, vocab_size: int) -> tuple[str, TokenCheck]:
    """llama.cpp's way to split text that makes the tokens of a byte-level tokenizer most often, and how often.

    Args:
        tokenizer: transformers'.
        vocab_size: Rows of the embedding.
    """
    checks = {}
    for name in SPLITS:
        derived = gguf_tokenizer(tokenizer, vocab_size, pre=name)
        checks[name] = _compared(derived, tokenize(derived), "adapterhub", tokenizer)
    return min(checks.items(), key=lambda found: found[1].different)


def _compared(
    derived: GgufTokenizer, encode: Callable[[str], list[int]], computed_by: str, tokenizer: Any
) -> TokenCheck:
    texts = token_texts(derived)
    wanted = zip(texts, tokenizer(texts)["input_ids"], strict=True)
    different = [text for text, ids in wanted if encode(derived.spelled(text)) != ids]
    return TokenCheck(len(texts), len(different), computed_by, different[0] if different else None)


@contextmanager
def _file_tokenizer(file: Path, derived: GgufTokenizer) -> Iterator[tuple[str, Callable[[str], list[int]]]]:
    if has_llama_cpp():
        with opened(file, vocabulary_only=True) as loaded:
            yield "llama.cpp", loaded.tokenize
    else:
        yield "adapterhub", tokenize(read_tokenizer(file, derived))


def file_logits(
    file: Path, model: Path, sequences: Sequence[TokenSequence], *, threads: int
) -> Generator[torch.Tensor]:
    """A file's logits of token ids, as `model_logits` gives them.

    Args:
        file: The GGUF file.
        model: The model that it was written from, whose settings are used without llama.cpp.
        sequences: The tokens.
        threads: How many threads llama.cpp computes with.

    Raises:
        ExportError: llama.cpp or transformers cannot load the file.
    """
    import torch

    if has_llama_cpp():
        with opened(file, threads=threads) as loaded:
            found = loaded.logits([sequence.token_ids for sequence in sequences])
            for sequence, logits in zip(sequences, found, strict=True):
                yield torch.from_numpy(logits[sequence.start :])
        return
    read = _read(file, model)
    for sequence in sequences:
        with torch.inference_mode():
            logits = read(torch.tensor([sequence.token_ids]), use_cache=False).logits[0]
        yield logits[sequence.start :].float()


def _read(file: Path, model: Path) -> Any:
    """The weights of a file in a model of transformers with the settings of another."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, LlamaConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config()
    if config.model_type == "mistral":  # a Llama to llama.cpp
        config = LlamaConfig.from_dict({**config.to_dict(), "model_type": "llama"})
    try:
        read, report = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            config=config,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # its reader raises anything
        raise ExportError(f"transformers cannot read the written file {file.name!r}: {error}") from error
    if report["missing_keys"]:
        raise ExportError(f"The written file lacks weights, such as {sorted(report['missing_keys'])[0]!r}.")
    return read.eval()
