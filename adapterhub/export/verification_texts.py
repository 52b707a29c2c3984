"""The texts that an export is verified on: held-out data, or short conversations that ship with the package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from adapterhub.dataset.records import Record, read_records
from adapterhub.errors import InvalidRequestError
from adapterhub.export.verification import TokenSequence, VerificationTexts
from adapterhub.registry.cards import PromptProfile
from adapterhub.requests.encoding import PromptEncoder
from adapterhub.requests.prompts import choose_style, conversation

SHIPPED_TEXTS = Path(__file__).with_name("verification.jsonl")
"""Conversations in nine languages, code and JSON among them, under the package's licence."""

_MAX_TOKENS = 1_280  # compared in all
_MAX_COMPARED = 128  # of one text
_MAX_READ = 512
_MAX_EXAMPLES = 8
_MAX_RECORDS = 1_000


def verification_texts(
    base: str | Path,
    profile: PromptProfile,
    *,
    examples: Sequence[str] = (),
    heldout: str | Path | None = None,
) -> VerificationTexts:
    """Tokenises texts to verify an export on, in the adapter's prompt style; at most some 1,300 tokens are compared.

    Args:
        base: The base's folder, whose tokenizer is used.
        profile: The adapter's prompt profile.
        examples: Requests of the adapter's users, read before the shipped conversations.
        heldout: JSON Lines of conversations, as for fine-tuning, whose last answers are compared in place of both.

    Raises:
        ConfigError: The base's tokenizer cannot be loaded.
        DatasetError: The held-out data cannot be read.
        InvalidRequestError: Not one text can be rendered and read by the base.
    """
    from transformers import AutoConfig

    from adapterhub.base.loading import context_length, load_tokenizer

    tokenizer = load_tokenizer(base)
    longest = min(_MAX_READ, context_length(AutoConfig.from_pretrained(base), tokenizer))
    writer = _Writer(tokenizer, profile, longest)
    requests = [] if heldout else [writer.request(text) for text in examples[:_MAX_EXAMPLES]]
    file = Path(heldout or SHIPPED_TEXTS)
    sequences = list(_first([*requests, *map(writer.record, read_records(file, max_records=_MAX_RECORDS))]))
    if not sequences:
        raise InvalidRequestError(
            "Not one text has an answer that the base can read.", hint="Give data with shorter requests."
        )
    told = f"held-out answers of {file.name}" if heldout else "shipped texts"
    told += f" and {len(requests)} example requests of the card" if requests else ""
    return VerificationTexts(told, tuple(sequences))


class _Writer:
    """Writes texts as tokens, as prompts of one adapter are written."""

    def __init__(self, tokenizer: Any, profile: PromptProfile, longest: int) -> None:
        self._encoder, self._system, self._longest = PromptEncoder(tokenizer), profile.system, longest
        self._style = choose_style(tokenizer.chat_template, profile.format, profile.chat_template)

    def request(self, text: str) -> TokenSequence:
        """A request, compared from its first token on."""
        return TokenSequence(self._encoded(text, None)[: self._longest][:_MAX_COMPARED])

    def record(self, record: Record) -> TokenSequence:
        """A conversation up to its last answer, compared from the position that predicts the answer's first token."""
        messages = [message.model_dump(exclude_none=True) for message in record.messages]
        last = max(number for number, one in enumerate(messages) if one["role"] == "assistant")
        whole = self._encoded(messages[: last + 1], record.tools, add_generation_prompt=False)
        before = self._encoded(messages[:last], record.tools) if last else ()
        start = max(
            0,
            sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False))) - 1,
        )
        return TokenSequence(whole[: min(self._longest, start + _MAX_COMPARED)], start)

    def _encoded(
        self, prompt: str | Sequence[Mapping[str, Any]], tools: Any, *, add_generation_prompt: bool = True
    ) -> tuple[int, ...]:
        messages = conversation(prompt, self._system, may_be_empty=True)
        rendered = self._encoder.render(
            messages, self._style, tools=tools, add_generation_prompt=add_generation_prompt
        )
        return tuple(self._encoder.encode(rendered))


def _first(sequences: Iterable[TokenSequence]) -> Iterator[TokenSequence]:
    """Those that fit the number of tokens to compare, without empty ones."""
    compared = 0
    for sequence in sequences:
        compared += max(0, sequence.compared)
        if sequence.compared > 0 and compared <= _MAX_TOKENS:
            yield sequence
