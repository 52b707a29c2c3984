"""Control tokens of a prompt: only the prompt format writes them, never the text of a message or a tool.

A text that spells `<|im_end|>` is data. While a template renders, such spellings are wrapped in marks, characters that
occur nowhere else, so that afterwards each spelling in the prompt is known as the template's or as a text's. A mark
also stands where a text begins or ends with a part of a spelling, which the template could complete.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from adapterhub.engine.tokenizer import Message, Tokenizer
from adapterhub.errors import InvalidRequestError
from adapterhub.requests.prompts import ROLES, PromptStyle, render

Span = tuple[int, int]
_PRIVATE_USE = range(0xF0000, 0xFFFFE)
_PRIVATE = re.compile("[\U000f0000-\U000ffffd]")
_ANSWER_FIELDS = frozenset({"content", "reasoning_content", "reasoning", "thinking"})


class ControlTokens:
    """The added tokens that control conversations in one prompt style.

    These are the special tokens, and the other added tokens that the template writes. An answer may spell those of the
    latter that are its own, such as `<think>`: they begin or end no turn.

    Args:
        ids: Token id by spelling.
        own: The spellings that answers may contain.
    """

    def __init__(self, ids: Mapping[str, int], own: Iterable[str] = ()) -> None:
        self.ids = dict(ids)
        self._in_texts = _any_of(self.ids)
        self._in_answers = _any_of(self.ids.keys() - set(own))

    @classmethod
    def of(cls, style: PromptStyle, tokenizer: Tokenizer) -> ControlTokens:
        """Finds the control tokens of a style.

        Args:
            style: The prompt style.
            tokenizer: The base's.
        """
        turns = _rendered_turns(style, tokenizer)
        source = f"{style.template or ''}{style.tool_template or ''}{turns}"
        declared = getattr(tokenizer, "chat_control_tokens", None) or ()
        named = frozenset(tokenizer.all_special_tokens)  # a BOS token may lack the mark of a special one
        ids, own = {}, set()
        for token_id, token in tokenizer.added_tokens_decoder.items():
            word = token.content
            # Line breaks are added tokens of some bases; a padding token may be any character.
            special = token.special or word in named
            if len(word.strip()) < 2 or not (special or word in source or word in declared):
                continue
            ids[word] = token_id
            if not (special or word in turns or word in declared):
                own.add(word)
        return cls(ids, own)

    def spans(self, text: str) -> list[Span]:
        """Where a text spells control tokens; the longest one at each place, as tokenizers match them."""
        return [match.span() for match in self._in_texts.finditer(text)]

    def map_texts(
        self, value: Any, change: Callable[[str, re.Pattern[str]], str], *, in_answer: bool = False
    ) -> Any:
        """A copy of JSON-like data with each text and key changed.

        Args:
            value: The data.
            change: Called with a text, and the pattern of the spellings that it must not contribute.
            in_answer: Whether the texts are those of an answer.
        """
        if isinstance(value, str):
            return change(value, self._in_answers if in_answer else self._in_texts)
        if isinstance(value, Mapping):
            return {
                self.map_texts(key, change): self.map_texts(each, change, in_answer=in_answer)
                for key, each in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.map_texts(each, change, in_answer=in_answer) for each in value]
        return value

    def map_messages(
        self, messages: Sequence[Message], change: Callable[[str, re.Pattern[str]], str]
    ) -> list[Message]:
        """As `map_texts`, for messages; roles, which are a closed set, stay."""
        return [{key: self._map_field(message, key, change) for key in message} for message in messages]

    def may_complete(self, texts: Iterable[str], prompt: str) -> bool:
        """Whether a spelling in a prompt may have come about from a text and what stands beside it."""
        words = {prompt[start:end] for start, end in self.spans(prompt)}
        heads, tails = _parts(words)
        return any(_edges(text, heads, tails) for text in texts)

    def marked(self, text: str, pattern: re.Pattern[str], marks: Marks) -> str:
        """Wraps spellings in marks, and marks the ends of a text that are a part of one."""
        for place in sorted(_edges(text, *self._all_parts), reverse=True):
            text = text[:place] + marks.edge + text[place:]
        return pattern.sub(rf"{marks.start}\g<0>{marks.end}", text)

    def unmarked(self, prompt: str, marks: Marks) -> tuple[str, list[Span]]:
        """Removes the marks from a rendered prompt.

        Returns:
            The prompt, and where the template wrote control tokens.
        """
        pieces = re.split(f"([{marks.start}{marks.end}{marks.edge}])", prompt)
        places: list[Span] = []
        starts, ends, inside = set(), set(), set()
        length = 0
        for piece, mark in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
            length += len(piece)
            inside.add(length)
            if mark == marks.start:
                starts.add(length)
            elif mark == marks.end:
                ends.add(length)
        text = "".join(pieces[::2])
        for start, end in self.spans(text):
            wrapped = start in starts and end in ends
            if not wrapped and inside.isdisjoint(range(start + 1, end)):
                places.append((start, end))
        return text, places

    @cached_property
    def _all_parts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return _parts(self.ids)

    def _map_field(self, message: Message, key: str, change: Callable[[str, re.Pattern[str]], str]) -> Any:
        if key == "role":
            return message[key]
        in_answer = message["role"] == "assistant" and key in _ANSWER_FIELDS
        return self.map_texts(message[key], change, in_answer=in_answer)


@dataclass(frozen=True)
class Marks:
    """Three characters: before a spelling, after it, and at an end of a text that is a part of one."""

    start: str
    end: str
    edge: str

    @classmethod
    def unused_in(cls, *texts: str) -> Marks:
        """Marks that occur in none of the texts; errors as in `unused_characters`."""
        return cls(*unused_characters(3, *texts))


def unused_characters(count: int, *texts: str) -> list[str]:
    """Private-use characters that occur in none of the texts.

    Raises:
        InvalidRequestError: There are not as many left.
    """
    used = {character for text in texts for character in _PRIVATE.findall(text)}
    free = list(islice((chr(code) for code in _PRIVATE_USE if chr(code) not in used), count))
    if len(free) < count:
        raise InvalidRequestError(
            "The prompt spells control tokens and contains nearly all private-use characters of Unicode.",
            hint="Leave out one of the two; they look like an attack on the prompt's format.",
        )
    return free


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _parts(words: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What may complete a spelling that stands before a text, and what may begin one that goes on after it."""
    heads = {word[place:] for word in words for place in range(1, len(word))}
    tails = {word[:place] for word in words for place in range(1, len(word))}
    return tuple(heads), tuple(tails)


def _edges(text: str, heads: tuple[str, ...], tails: tuple[str, ...]) -> set[int]:
    """The ends of a text, without its outer white space, that are a part of a spelling."""
    core = text.strip()
    start = len(text) - len(text.lstrip())
    edges = {start} if core.startswith(heads) else set()
    return edges | ({start + len(core)} if core.endswith(tails) else set())


def _rendered_turns(style: PromptStyle, tokenizer: Tokenizer) -> str:
    """What the style writes around the turns of others than the assistant."""
    turns = []
    for roles in [("user",), *((role, "user") for role in ROLES if role != "assistant")]:
        try:
            turns.append(
                render(
                    [{"role": role, "content": "x"} for role in roles],
                    style,
                    tokenizer,
                    add_generation_prompt=False,
                )
            )
        except InvalidRequestError:  # the template takes no such turns
            continue
    return "\n".join(turns)
