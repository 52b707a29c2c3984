"""What llama.cpp makes of a text with the tokenizer of a GGUF file, computed without llama.cpp.

So that an export is checked where llama.cpp is not installed. Control tokens and the user's own are cut out of the text
first; then byte-level BPE merges by rank within the pieces of its patterns, and SentencePiece joins, in the whole text,
the neighbours whose token has the highest score.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from adapterhub.errors import ExportError
from adapterhub.gguf.text_splitting import SPLITS
from adapterhub.gguf.tokenizer import CONTROL, UNKNOWN, USER_DEFINED, GgufTokenizer

_SPACE = "▁"
# llama.cpp does not strip after these in the files whose other control tokens swallow whitespace.
_NOT_STRIPPED = ("<unk>", "<s>", "<|endoftext|>")


def tokenize(tokenizer: GgufTokenizer) -> Callable[[str], list[int]]:
    """A function from a text, which may spell control tokens, to ids, with the ends that llama.cpp adds."""
    encode = _byte_level(tokenizer) if tokenizer.model == "gpt2" else _sentencepiece(tokenizer)
    before = [tokenizer.special_ids["bos"]] if tokenizer.add_bos else []
    after = [tokenizer.special_ids["eos"]] if tokenizer.add_eos else []
    partition = _partition(tokenizer)

    def to_ids(text: str) -> list[int]:
        ids: list[int] = []
        prefixed = tokenizer.space_prefix
        for part in partition(text):
            if isinstance(part, int):
                ids.append(part)
                prefixed = tokenizer.space_prefix
            else:
                ids += encode(f" {part}" if prefixed else part)
                prefixed = False
        return [*before, *ids, *after]

    return to_ids


def _partition(tokenizer: GgufTokenizer) -> Callable[[str], Iterator[int | str]]:
    kinds = (CONTROL, UNKNOWN, USER_DEFINED)
    whole = {
        token: id_
        for id_, (token, kind) in enumerate(zip(tokenizer.tokens, tokenizer.types, strict=True))
        if kind in kinds
    }
    longest_first = sorted(whole, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
    stripped = set(whole).difference(_NOT_STRIPPED) if tokenizer.strips_after_control else set()

    def partition(text: str) -> Iterator[int | str]:
        position = 0
        for match in pattern.finditer(text):
            if match.start() > position:
                yield text[position : match.start()]
            if match.start() >= position:
                yield whole[match[0]]
                position = match.end()
                if match[0] in stripped:
                    position += len(text[position:]) - len(text[position:].lstrip(" \t\n\v\f\r"))
        if position < len(text):
            yield text[position:]

    return partition


def _byte_level(tokenizer: GgufTokenizer) -> Callable[[str], list[int]]:
    from tokenizers import Regex, Tokenizer, pre_tokenizers
    from tokenizers.models import BPE

    if tokenizer.pre not in SPLITS:
        raise ExportError(
            f"The way to split text, {tokenizer.pre!r}, is known to llama.cpp alone.",
            hint="Install llama-cpp-python to check the file: `pip install 'adapterhub[llama]'`.",
        )
    patterns, ignore_merges = SPLITS[tokenizer.pre]
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in tokenizer.merges)]
    vocabulary = {token: id_ for id_, token in enumerate(tokenizer.tokens)}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=pairs, ignore_merges=ignore_merges))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_])

    def encode(text: str) -> list[int]:
        ids: list[int] = backend.encode(text).ids
        return ids

    return encode


@dataclass
class _Symbols:
    """The pieces of a text, joined step by step; a piece that was joined to the one before it is empty."""

    pieces: list[str]
    before: list[int] = field(init=False)
    after: list[int] = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.pieces)
        self.before = list(range(-1, count - 1))
        self.after = [*range(1, count), -1]

    def join(self, left: int, right: int) -> None:
        self.pieces[left] += self.pieces[right]
        self.pieces[right] = ""
        self.after[left] = self.after[right]
        if self.after[right] >= 0:
            self.before[self.after[right]] = left


def _sentencepiece(tokenizer: GgufTokenizer) -> Callable[[str], list[int]]:
    ids = {token: id_ for id_, token in enumerate(tokenizer.tokens)}

    def spelled(piece: str) -> list[int]:
        return [ids[piece]] if piece in ids else [ids[f"<0x{byte:02X}>"] for byte in piece.encode()]

    def encode(text: str) -> list[int]:
        symbols = _Symbols(list(text.replace(" ", _SPACE)))
        queue: list[tuple[float, int, int, str]] = []

        def offer(left: int, right: int) -> None:
            if left >= 0 and right >= 0:
                joined = symbols.pieces[left] + symbols.pieces[right]
                if joined in ids:
                    heapq.heappush(queue, (-tokenizer.scores[ids[joined]], left, right, joined))

        for right in range(1, len(symbols.pieces)):
            offer(right - 1, right)
        while queue:
            _, left, right, joined = heapq.heappop(queue)
            if symbols.pieces[right] and symbols.pieces[left] + symbols.pieces[right] == joined:
                symbols.join(left, right)
                offer(symbols.before[left], left)
                offer(left, symbols.after[left])
        return [id_ for piece in symbols.pieces if piece for id_ in spelled(piece)]

    return encode
