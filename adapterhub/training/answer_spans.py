"""Where the answers are in the text of a rendered conversation.

The conversation is rendered as a whole, up to each answer, and behind it; what the texts share gives the answer's span.
So a chat template needs no `{% generation %}` markers. A template that writes earlier answers in another way, such as
without their reasoning, gives one text for each answer: what serving would write up to there.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adapterhub.dataset.records import Record
from adapterhub.engine.tokenizer import Message
from adapterhub.errors import DatasetError, InvalidRequestError
from adapterhub.requests import prompts
from adapterhub.requests.encoding import PromptEncoder, RenderedPrompt


@dataclass(frozen=True)
class RenderedConversation:
    """A conversation as serving would write it.

    Attributes:
        prompt: Its text, and the control tokens in it.
        answers: Start and end of the answers to learn, in characters, each with the marker that ends it, if any.
    """

    prompt: RenderedPrompt
    answers: Sequence[tuple[int, int]]


class ConversationRenderer:
    """Renders the records of a dataset.

    Args:
        tokenizer: The base's tokenizer.
        style: How prompts are rendered, as in serving.
        system: System prompt of records without one.
    """

    def __init__(self, tokenizer: Any, style: prompts.PromptStyle, system: str | None) -> None:
        self._encoder = PromptEncoder(tokenizer)
        self._style = training_style(style, tokenizer)
        self._system = system
        added = tokenizer.added_tokens_decoder.values()
        special = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        self._added_token = re.compile(_any_of({*special, *(token.content for token in added)}))
        self._next_marker = re.compile(rf"\s*(?:{_any_of(special)})")
        self._ended = re.compile(rf"(?:{_any_of(special)})\s*\Z")

    def render(self, record: Record) -> list[RenderedConversation]:
        """Renders a record as one conversation, or as one for each answer.

        Raises:
            DatasetError: The chat template fails on the record, or leaves out tools, or an answer's reasoning or calls.
        """
        messages = prompts.conversation(
            [message.model_dump(exclude_unset=True) for message in record.messages], self._system
        )
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        prompt = self._whole(record, messages)
        spans = [self._span(record, messages, answer, prompt.text) for answer in answers]
        found = [span for span in spans if span]
        if len(found) == len(answers):
            return [RenderedConversation(prompt, found)]
        return [self._last_answer(record, messages[: answer + 1]) for answer in answers]

    def _last_answer(self, record: Record, messages: Sequence[Message]) -> RenderedConversation:
        prompt = self._whole(record, messages)
        span = self._span(record, messages, len(messages) - 1, prompt.text)
        if span is None:
            raise DatasetError(
                f"The chat template writes an answer of the record at line {record.line} only in part, or changes what "
                "goes before it.",
                hint="Leave reasoning or tool calls that it does not write out of the answers, or give "
                "card.prompt.chat_template a template that writes whole answers.",
            )
        return RenderedConversation(prompt, [span])

    def _whole(self, record: Record, messages: Sequence[Message]) -> RenderedPrompt:
        """The whole conversation, with the marker of the next role if only that one ends the last answer."""
        prompt = self._render(record, messages)
        if messages[-1]["role"] != "assistant" or self._ended.search(prompt.text):
            return prompt
        return prompt.followed_by(self._marker_behind(record, messages[:-1], messages[-1]))

    def _text(
        self, record: Record, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> str:
        return self._render(record, messages, add_generation_prompt=add_generation_prompt).text

    def _marker_behind(self, record: Record, before: Sequence[Message], answer: Message) -> str:
        # Its reasoning may be left out once another message follows.
        content = answer.get("content")
        last = {**answer, "content": content.rpartition("</think>")[2]} if content else answer
        following = {"role": "tool" if answer.get("tool_calls") else "user", "content": "."}
        try:
            text, followed = (self._text(record, [*before, last, *more]) for more in ([], [following]))
        except DatasetError:  # a template that takes no such message
            return ""
        marker = self._next_marker.match(followed, len(text)) if followed.startswith(text) else None
        return marker[0] if marker else ""

    def _render(
        self, record: Record, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> RenderedPrompt:
        def rendered(tools: list[dict[str, Any]] | None) -> RenderedPrompt:
            return self._encoder.render(
                messages, self._style, tools=tools, add_generation_prompt=add_generation_prompt
            )

        try:
            prompt = rendered(record.tools)
            renders_tools = not record.tools or prompt.text != rendered(None).text
        except (InvalidRequestError, TypeError, ValueError):
            raise DatasetError(
                f"The chat template fails on the record at line {record.line}.",
                hint="Templates differ in roles, orders and tools that they take, and in the form of arguments.",
            ) from None
        if not renders_tools:
            raise DatasetError(
                f"The chat template leaves out the tools of the record at line {record.line}.",
                hint="Write the tools into the system message, or give a template that knows tools.",
            )
        return prompt

    def _span(
        self, record: Record, messages: Sequence[Message], answer: int, whole: str
    ) -> tuple[int, int] | None:
        """An answer's span; None if the template writes it in another way once more messages follow."""
        start = self._start(record, messages[:answer], whole)
        end = len(whole)
        if answer < len(messages) - 1:
            as_last = self._text(record, messages[: answer + 1])
            end = self._shared(as_last, whole)
            # A last answer may end with another token than an earlier one, such as <|return|>, not with other text.
            other_end = self._added_token.sub("", as_last[end:]).strip() or not self._next_marker.match(
                whole, end
            )
            if end < len(as_last) and other_end:
                return None
        if start is None or not _holds(whole[start:end], messages[answer]):
            return None
        marker = None if self._ended.search(whole[start:end]) else self._next_marker.match(whole, end)
        return start, marker.end() if marker else end

    def _start(self, record: Record, before: Sequence[Message], whole: str) -> int | None:
        prompt = self._text(record, before, add_generation_prompt=True)
        start = self._shared(prompt, whole)
        # A prompt may end with <think> where the answer is written without. What goes before must be the same.
        if start < len(prompt) and before and start < self._shared(prompt, self._text(record, before)):
            return None
        return start

    def _shared(self, text: str, other: str) -> int:
        """The length of what two texts begin with, without a part of an added token."""
        if other.startswith(text):
            return len(text)
        differing = (index for index, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1])
        length = next(differing, len(other))
        within = [
            token.start()
            for one in (text, other)
            for token in self._added_token.finditer(one)
            if token.start() < length < token.end()
        ]
        return min(within, default=length)


def training_style(style: prompts.PromptStyle, tokenizer: Any) -> prompts.PromptStyle:
    """The style with TRL's training variants of its chat templates, where TRL has some.

    A variant writes all answers of a conversation alike, with their reasoning; Qwen3 and DeepSeek-R1 have one.
    """
    return replace(
        style,
        template=_training_template(style.template, tokenizer),
        tool_template=_training_template(style.tool_template, tokenizer),
    )


def _training_template(template: str | None, tokenizer: Any) -> str | None:
    if template is None:
        return None
    from jinja2.exceptions import TemplateError
    from trl import get_training_chat_template

    with_template = copy.copy(tokenizer)
    with_template.chat_template = template
    try:
        return get_training_chat_template(with_template) or template
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError):
        return template  # TRL has none for it


def _any_of(texts: Iterable[str]) -> str:
    """A pattern that matches any of some texts, the longest first; nothing if there are none."""
    return "|".join(map(re.escape, sorted(filter(None, texts), key=len, reverse=True))) or r"(?!)"


def _holds(text: str, answer: Message) -> bool:
    """Whether a text ends reasoning and answer as the message does, and names its calls; templates leave these out."""
    parts = (answer.get("content") or "").split("</think>")
    words = [found[-1] for part in parts if (found := re.findall(r"\w+", part))]
    return all(word in text for word in [*words, *_called(answer)])


def _called(answer: Message) -> Iterator[str]:
    """The names of the functions that a message calls."""
    for call in answer.get("tool_calls") or ():
        function = call.get("function", call)
        if isinstance(function, Mapping) and isinstance(name := function.get("name"), str):
            yield name
