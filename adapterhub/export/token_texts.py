"""Texts on which a GGUF file's tokenizer has to give the tokens of transformers'."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from random import Random

from adapterhub.dataset.records import read_records
from adapterhub.export.verification_texts import SHIPPED_TEXTS
from adapterhub.gguf.tokenizer import CONTROL, USER_DEFINED, GgufTokenizer

TEXTS = 400

_EDGES = (
    "x", "Hello world", "HELLO World's we'll I'M you'd", "3 33 333 3333 12345678 3.14 1,000.5", "٣٤ ½ ²", "a1b2c3",
    "tabs\tand\t\ttabs", "two  spaces   three    four", "line\nline\n\nline\n\n\n", "ends with a space ", "\n", "\r\n",
    "if x:\n    return y\n        z = 1\n", '{"a": [1, 2.5, null], "b": {"c": "d"}}', "https://example.org/a?b=c&d=e#f",
    "e-mail: a.b@c.de", "naïve café über Straße", "🙂🚀👩‍👩‍👧‍👦 ✅", "……---===***///", "''\"\"``",
    "C:\\dir\\file.txt", "#!/bin/sh",
    "日本語とEnglish混在", "한국어 문장입니다", "Ελληνικά", "עברית", "ไทยไม่มีช่องว่าง",
    "Việt Nam", "CamelCaseAndSNAKE_CASE",
    "<not a token>", "a\u00a0b\u2003c", "<div class='x'>text</div>",
)  # fmt: skip


def token_texts(tokenizer: GgufTokenizer) -> list[str]:
    """The texts that shipped conversations and edge cases give, plain and with control tokens between them.

    SentencePiece puts a space before a text. Where llama.cpp cannot do so as transformers does, the texts are those in
    which both can agree: they begin with no space, and without a chat template they hold no control token.

    Args:
        tokenizer: The file's tokenizer.
    """
    plain = [*_EDGES, *_sentences()]
    if not (tokenizer.model == "llama" and tokenizer.space_prefix):
        plain += ["  begins with two spaces", " begins with one"]
    texts = itertools.chain(plain, _with_tokens(plain, _whole_tokens(tokenizer)), _joined(plain))
    return list(itertools.islice(texts, TEXTS))


def _sentences() -> list[str]:
    contents = [
        message.content or "" for record in read_records(SHIPPED_TEXTS) for message in record.messages
    ]
    return [
        sentence for content in contents for sentence in re.split(r"(?<=[.!?。？।])\s+", content) if sentence
    ]


def _whole_tokens(tokenizer: GgufTokenizer) -> list[str]:
    if tokenizer.no_control_tokens_in_texts:
        return []
    kinds = zip(tokenizer.tokens, tokenizer.types, strict=True)
    return [token for token, kind in kinds if kind in (CONTROL, USER_DEFINED)][:20]


def _with_tokens(plain: Sequence[str], whole: Sequence[str]) -> Iterator[str]:
    """Turns of a conversation: each text after a control token, and another one after it."""
    if whole:
        random = Random(0)  # noqa: S311  the same texts each time
        for text in itertools.islice(itertools.cycle(plain), TEXTS // 3):
            first, last = random.choice(whole), random.choice(whole)
            yield f"{first}{text}{last}\n{random.choice(plain)}"


def _joined(plain: Sequence[str]) -> Iterator[str]:
    random = Random(1)  # noqa: S311
    while True:
        yield random.choice([" ", "\n", ", ", ""]).join(random.sample(plain, 3)).lstrip(" ")
