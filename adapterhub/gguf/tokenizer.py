"""A tokenizer as llama.cpp keeps it: tokens with types, and merges or scores instead of `tokenizer.json`.

Two kinds are written. Byte-level BPE ("gpt2") has merges and the name of one of llama.cpp's ways to split text.
SentencePiece's BPE ("llama") has a score for each token; without a `tokenizer.model`, they follow from
the ranks of the merges: SentencePiece joins the pair whose token has the highest score, and merges are in that order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapterhub.errors import ConfigError, ExportError
from adapterhub.gguf.hyperparameters import Field
from adapterhub.gguf.text_splitting import SPLITS, split_name

# llama.cpp's types of tokens.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_SPACE = "▁"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
# A comment in their place trims the same whitespace; engines other than transformers do not know the tags.
_GENERATION_TAG = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")
_SPECIAL_IDS = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",
    "pad": "padding",
}  # llama.cpp's spelling


@dataclass(frozen=True)
class GgufTokenizer:
    """What a GGUF file says of a tokenizer.

    Attributes:
        model: `"gpt2"` or `"llama"`, in llama.cpp's words.
        pre: llama.cpp's name of the way to split text; `"default"` for SentencePiece.
        tokens: Every token, by id.
        types: The tokens' types.
        merges: Of byte-level BPE: pairs of tokens, each joined by a space, the first to merge first.
        scores: Of SentencePiece: the token with the highest is merged first.
        special_ids: `"bos"`, `"eos"` and others -> id.
        add_bos: Whether a prompt gets the beginning-of-sequence token.
        add_eos: Whether it gets the end token.
        space_prefix: Of SentencePiece: whether llama.cpp puts a space before a text and after each control token.
        leading_space: Whether the tokenizer puts a space before a text only, which llama.cpp cannot: the chat template
            writes it then.
        no_control_tokens_in_texts: Whether llama.cpp would put a space after a control token where the tokenizer does
            not; without a chat template, texts hold none.
        strips_after_control: Whether whitespace after a control token is dropped; llama.cpp does so in Phi-3's files.
        chat_template: In Jinja.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    special_ids: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    space_prefix: bool = False
    leading_space: bool = False
    no_control_tokens_in_texts: bool = False
    strips_after_control: bool = False
    chat_template: str | None = None

    def spelled(self, text: str) -> str:
        """What llama.cpp has to be given for the tokens that transformers makes of a text.

        The text itself but where `leading_space` says that llama.cpp leaves out a space.
        """
        controls = tuple(
            token for token, kind in zip(self.tokens, self.types, strict=True) if kind == CONTROL
        )
        return f" {text}" if self.leading_space and not text.startswith((*controls, " ")) else text

    @property
    def fields(self) -> dict[str, Field]:
        """The fields of the file."""
        fields: dict[str, Field] = {
            "tokenizer.ggml.model": self.model,
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": self.types,
            **{
                f"tokenizer.ggml.{_SPECIAL_IDS[name]}_token_id": id_ for name, id_ in self.special_ids.items()
            },
            "tokenizer.ggml.add_bos_token": self.add_bos,
            "tokenizer.ggml.add_eos_token": self.add_eos,
        }
        if self.model == "llama":
            fields |= {
                "tokenizer.ggml.scores": self.scores,
                "tokenizer.ggml.add_space_prefix": self.space_prefix,
            }
        else:
            fields["tokenizer.ggml.merges"] = self.merges
        if self.chat_template:
            fields["tokenizer.chat_template"] = self.chat_template
        return fields


def gguf_tokenizer(
    tokenizer: Any, vocab_size: int, *, pre: str | None = None, prompts: Sequence[str] = ()
) -> GgufTokenizer:
    """A tokenizer of transformers in llama.cpp's form.

    Args:
        tokenizer: From `AutoTokenizer`.
        vocab_size: Rows of the embedding; ids without a token are filled up.
        pre: llama.cpp's name of the way to split text, if the tokenizer's own is not known.
        prompts: Conversations that its chat template has rendered; of use for SentencePiece only.

    Raises:
        ExportError: llama.cpp has no such kind of tokenizer; or no such way to split text, and `pre` is not given.
        ConfigError: `pre` is no name of `SPLITS`.
    """
    if pre is not None and pre not in SPLITS:
        raise ConfigError(f"There is no pre-tokenizer {pre[:50]!r}.", hint=f"Known are {', '.join(SPLITS)}.")
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    if model.get("type") != "BPE":
        raise _unknown(f"a {model.get('type')} tokenizer")
    tokens, types = _tokens(content, vocab_size)
    add_bos, add_eos = _added_ends(tokenizer)
    plain = GgufTokenizer(
        "gpt2",
        "default",
        tokens,
        types,
        special_ids=_special_ids(tokenizer),
        strips_after_control=any(one["special"] and one["rstrip"] for one in content["added_tokens"]),
        chat_template=_chat_template(tokenizer),
        add_bos=add_bos,
        add_eos=add_eos,
    )
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
    if model.get("byte_fallback"):
        return _sentencepiece(plain, content, pairs, prompts)
    split = pre or split_name(content)
    if split is None:
        raise unnamed_split(f"Give the nearest of {', '.join(SPLITS)}: some texts become other tokens then.")
    return replace(plain, pre=split, merges=[" ".join(pair) for pair in pairs])


def lacks_split_name(tokenizer: Any) -> bool:
    """Whether a tokenizer of transformers is byte-level BPE that splits text in a way without a name in llama.cpp."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    byte_level = model.get("type") == "BPE" and not model.get("byte_fallback")
    return byte_level and split_name(content) is None


def unnamed_split(hint: str) -> ExportError:
    """The error for a tokenizer that `lacks_split_name`."""
    return ExportError("llama.cpp has no name for the way in which the tokenizer splits text.", hint=hint)


def _tokens(content: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Every token and its type by id; ids that no token has are unused."""
    vocabulary: dict[str, int] = content["model"]["vocab"]
    added = {token["id"]: token for token in content["added_tokens"]}
    highest = max([*vocabulary.values(), *added])
    if highest >= vocab_size:
        raise ExportError(
            f"The tokenizer has a token with the id {highest}, and the model {vocab_size} rows of embeddings.",
            hint="Resize the model's embeddings, or take the tokenizer that belongs to it.",
        )
    tokens = [f"[PAD{id_}]" for id_ in range(vocab_size)]
    types = [UNUSED] * vocab_size
    for token, id_ in vocabulary.items():
        is_byte = content["model"].get("byte_fallback") and _BYTE_TOKEN.fullmatch(token)
        tokens[id_], types[id_] = token, BYTE if is_byte else NORMAL
    for id_, token in added.items():
        # llama.cpp looks for these in the text as it is written, spaces and all.
        tokens[id_] = token["content"] if token["special"] else token["content"].replace(_SPACE, " ")
        types[id_] = CONTROL if token["special"] else USER_DEFINED
    if (unknown := content["model"].get("unk_token")) in vocabulary and content["model"].get("byte_fallback"):
        types[vocabulary[unknown]] = UNKNOWN
    return tokens, types


def _sentencepiece(
    plain: GgufTokenizer, content: dict[str, Any], pairs: list[list[str]], prompts: Sequence[str]
) -> GgufTokenizer:
    """With scores, and with llama.cpp's spaces."""
    scores = [0.0 if kind in (CONTROL, UNKNOWN, BYTE, UNUSED) else -1e6 for kind in plain.types]
    ids = content["model"]["vocab"]
    for rank, (left, right) in reversed(list(enumerate(pairs))):  # the first merge of a token counts
        scores[ids[left + right]] = -float(rank)
    scheme = _space_scheme(content)
    leading = scheme == "first" and plain.chat_template is not None
    template = plain.chat_template
    controls = tuple(token for token, kind in zip(plain.tokens, plain.types, strict=True) if kind == CONTROL)
    if leading and not all(prompt.startswith((*controls, " ")) for prompt in prompts):
        template = f"{{{{ ' ' }}}}{template}"
    return replace(
        plain,
        model="llama",
        scores=scores,
        space_prefix=scheme != "never" and not leading,
        leading_space=leading,
        no_control_tokens_in_texts=scheme == "first" and not leading,
        chat_template=template,
    )


def _space_scheme(content: dict[str, Any]) -> str:
    """Where the tokenizer puts a space of its own: `"always"` (also after control tokens), `"first"` or `"never"`."""
    kinds = {"normalizer": content.get("normalizer"), "pre_tokenizer": content.get("pre_tokenizer")}
    steps = [step for one in kinds.values() for step in _steps(one)]
    schemes = [step.get("prepend_scheme", "always") for step in steps if step["type"] == "Metaspace"]
    if schemes:
        return str(schemes[0])
    if any(step["type"] == "Prepend" and step["prepend"] == _SPACE for step in steps):
        return "always"
    replaced = any(step["type"] == "Replace" and step["content"] == _SPACE for step in steps)
    if not replaced:
        raise _unknown("a tokenizer that writes spaces otherwise than SentencePiece")
    return "never"


def _steps(one: dict[str, Any] | None) -> list[dict[str, Any]]:
    if one is None:
        return []
    if one["type"] != "Sequence":
        return [one]
    return [step for part in one.get("normalizers") or one["pretokenizers"] for step in _steps(part)]


def _special_ids(tokenizer: Any) -> dict[str, int]:
    ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in _SPECIAL_IDS}
    return {name: int(id_) for name, id_ in ids.items() if id_ is not None}


def _added_ends(tokenizer: Any) -> tuple[bool, bool]:
    """Whether the tokenizer puts its first token before a text, and its last one after it."""
    bare, full = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    more = len(full) > len(bare)
    return more and full[0] == tokenizer.bos_token_id, more and full[-1] == tokenizer.eos_token_id


def _chat_template(tokenizer: Any) -> str | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return _GENERATION_TAG.sub(r"{#\1 generation \2#}", template) if template else None


def _unknown(what: str) -> ExportError:
    return ExportError(
        f"llama.cpp's form of tokenizers does not hold {what}.",
        hint="Byte-level BPE and SentencePiece's BPE are written; others with --llama-cpp-dir.",
    )


def read_tokenizer(file: Path, derived: GgufTokenizer | None = None) -> GgufTokenizer:
    """The tokenizer that a GGUF file holds.

    Args:
        file: The file.
        derived: What it was written with, for what a file does not say; None if something else wrote it.
    """
    from gguf import GGUFReader

    fields = {name.removeprefix("tokenizer.ggml."): field for name, field in GGUFReader(file).fields.items()}

    def value(name: str, default: Any) -> Any:
        return fields[name].contents() if name in fields else default

    ids = {name: value(f"{key}_token_id", None) for name, key in _SPECIAL_IDS.items()}
    by_others = GgufTokenizer("", "", [], [], no_control_tokens_in_texts=value("add_space_prefix", True))
    return replace(
        derived or by_others,
        model=value("model", ""),
        pre=value("pre", "default"),
        tokens=value("tokens", []),
        types=value("token_type", []),
        merges=value("merges", []),
        scores=value("scores", []),
        special_ids={name: id_ for name, id_ in ids.items() if id_ is not None},
        add_bos=value("add_bos_token", False),
        add_eos=value("add_eos_token", False),
        space_prefix=value("add_space_prefix", False),
    )
