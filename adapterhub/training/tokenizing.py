"""From a conversation to token ids and labels.

Only assistant messages carry loss, each with its end, unless the whole text is to be learned. A conversation is
tokenised as a whole, since tokenising messages one by one would give other tokens; the tokens in the answers' spans of
characters get labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from adapterhub.dataset.records import Record
from adapterhub.errors import DatasetError, InvalidRequestError
from adapterhub.requests import prompts
from adapterhub.requests.encoding import PromptEncoder
from adapterhub.training.answer_spans import ConversationRenderer, RenderedConversation

IGNORE_INDEX = -100
"""Label of a token that carries no loss, `ignore_index` of torch's cross entropy."""


@dataclass(frozen=True)
class TokenizedExample:
    """One tokenised conversation.

    Attributes:
        input_ids: The tokens, as serving would write them.
        labels: One for each token: the token itself in an answer, `IGNORE_INDEX` outside, or the token there too if the
            whole text is learned. Where the template writes nothing at the end of an answer, the next token's label is
            the end token, so that its end is learned too.
    """

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class TokenizedDataset:
    """The tokenised examples of a dataset.

    Attributes:
        examples: In the records' order. A conversation whose template writes earlier answers in another way gives
            one for each answer.
        truncated: Number of examples that were cut to `max_length`.
        dropped: Number of examples left out because no answer token lies within `max_length`.
        end_token_ids: The special tokens that the answers end with; serving has to stop at them.
    """

    examples: list[TokenizedExample]
    truncated: int
    dropped: int
    end_token_ids: frozenset[int]


def tokenize(
    records: Sequence[Record],
    tokenizer: Any,
    style: prompts.PromptStyle,
    *,
    max_length: int,
    system: str | None = None,
    loss: Literal["assistant", "all"] = "assistant",
) -> TokenizedDataset:
    """Tokenises records and labels the assistant's tokens.

    Args:
        records: The records, from `read_records`.
        tokenizer: A fast tokenizer, which returns character offsets.
        style: How prompts are rendered, as in serving. Where TRL has a training variant of the chat template, that
            one is used: it writes all answers alike, with their reasoning.
        max_length: Maximum number of tokens; longer examples are cut at the end.
        system: System prompt of records without one, as in serving.
        loss: Which tokens get labels: the assistant's, or those of the whole text.

    Raises:
        DatasetError: The chat template fails on a record, or leaves out its tools, or reasoning or calls of an answer;
            a record spells a control token that the tokenizer cannot encode as text; or no record has an answer within
            `max_length`.
    """
    if not tokenizer.is_fast:
        raise DatasetError(
            "The base's tokenizer returns no character offsets, so answer tokens cannot be labelled."
        )
    renderer, labeller = ConversationRenderer(tokenizer, style, system), _Labeller(tokenizer)
    full = [example for record in records for example in _examples(record, renderer, labeller)]
    ends = (
        frozenset(label for example in full for label in _last_labels(example)) & labeller.special_token_ids
    )
    if loss == "all":
        full = [_labelled_throughout(example) for example in full]
    shortened = [
        TokenizedExample(example.input_ids[:max_length], example.labels[:max_length]) for example in full
    ]
    # Nothing predicts the first token, so its label carries no loss.
    usable = [
        index
        for index, example in enumerate(shortened)
        if any(label != IGNORE_INDEX for label in example.labels[1:])
    ]
    if not usable:
        raise DatasetError(
            f"Not one of {len(records)} records has an answer within {max_length} tokens.",
            hint="Raise train.max_length, or shorten the prompts.",
        )
    truncated = sum(len(full[i].input_ids) > max_length for i in usable)
    return TokenizedDataset(
        [shortened[i] for i in usable],
        truncated,
        len(shortened) - len(usable),
        ends,
    )


def _examples(record: Record, renderer: ConversationRenderer, labeller: _Labeller) -> list[TokenizedExample]:
    try:
        return [labeller.label(text) for text in renderer.render(record)]
    except InvalidRequestError as error:
        raise DatasetError(
            f"The record at line {record.line} cannot be tokenised: {error.message}", hint=error.hint
        ) from None


def _labelled_throughout(example: TokenizedExample) -> TokenizedExample:
    """The example with a label at every token; the end of an answer stays what is learned behind it."""
    pairs = zip(example.input_ids, example.labels, strict=True)
    labels = [token if label == IGNORE_INDEX else label for token, label in pairs]
    return TokenizedExample(example.input_ids, labels)


def _last_labels(example: TokenizedExample) -> Iterator[int]:
    """The last label of each stretch of labelled tokens."""
    for label, following in pairwise([*example.labels, IGNORE_INDEX]):
        if following == IGNORE_INDEX != label:
            yield label


class _Labeller:
    """Tokenises one conversation at a time and labels its answers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._encoder = tokenizer, PromptEncoder(tokenizer)
        added = (token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)
        self.special_token_ids = frozenset([*tokenizer.all_special_ids, *added])

    def label(self, conversation: RenderedConversation) -> TokenizedExample:
        encoded = self._encoder.encode_with_offsets(conversation.prompt)
        ids, offsets, text = encoded.token_ids, encoded.offsets, conversation.prompt.text
        labels = [IGNORE_INDEX] * len(ids)
        for start, end in conversation.answers:
            inside = [i for i, (first, last) in enumerate(offsets) if last > start and first < end]
            ends = [i for i in inside if ids[i] in self.special_token_ids][-1:]
            # Templates write a line break after the end token of a message; generation stops before it.
            if ends and not text[offsets[ends[0]][1] : end].strip():
                inside = inside[: inside.index(ends[0]) + 1]
            elif inside:
                self._label_end(ids, labels, inside[-1] + 1)
            for i in inside:
                labels[i] = ids[i]
        return TokenizedExample(ids, labels)

    def _label_end(self, ids: list[int], labels: list[int], index: int) -> None:
        """The end token is what to predict behind an answer whose template writes none; else it would never stop."""
        end = self._tokenizer.eos_token_id
        if end is None:
            return
        if index == len(ids):
            ids.append(end)
            labels.append(end)
        else:
            labels[index] = end
