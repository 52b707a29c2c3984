"""From a conversation to token ids, in which every control token is the prompt format's own."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adapterhub.engine.tokenizer import Message, Tokenizer
from adapterhub.errors import InvalidRequestError
from adapterhub.requests.control_tokens import ControlTokens, Marks, Span, unused_characters
from adapterhub.requests.prompts import PromptStyle, render


@dataclass(frozen=True)
class RenderedPrompt:
    """A conversation as text.

    Attributes:
        text: The text; what messages and tools spell stands in it as they spell it.
        spans: Where the format wrote control tokens; spellings elsewhere are text.
        control: The control tokens of the format.
        add_special_tokens: Whether the tokenizer adds its own, because the format does not write them.
    """

    text: str
    spans: Sequence[Span]
    control: ControlTokens
    add_special_tokens: bool

    def followed_by(self, text: str) -> RenderedPrompt:
        """The prompt with a text that the format writes behind it."""
        length = len(self.text)
        spans = [(start + length, end + length) for start, end in self.control.spans(text)]
        return replace(self, text=self.text + text, spans=[*self.spans, *spans])

    def is_exact(self, token_ids: Sequence[int], unknown_id: int | None = None) -> bool:
        """Whether the control tokens among token ids are those of the format, in its order.

        Args:
            token_ids: The text's.
            unknown_id: The token of unknown characters, where it cannot come from a spelling.
        """
        control = set(self.control.ids.values()) - {unknown_id}
        written = [self.control.ids[self.text[start:end]] for start, end in self.spans]
        return [one for one in token_ids if one in control] == [one for one in written if one in control]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's token ids, and the characters of its text that each stands for; none for an added one."""

    token_ids: list[int]
    offsets: list[Span]


class PromptEncoder:
    """Renders and encodes prompts for one base.

    The token ids are those of transformers' `apply_chat_template`, except where a message or a tool spells control
    tokens: there they are those of the spelling as ordinary text. Any thread may call any method.

    Args:
        tokenizer: The base's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._control: dict[PromptStyle, ControlTokens] = {}
        self._before, self._after = _added_around(tokenizer)

    def render(
        self,
        messages: Sequence[Message],
        style: PromptStyle,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        max_characters: int | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> RenderedPrompt:
        """Renders a conversation; arguments and errors as in `prompts.render`.

        Raises:
            InvalidRequestError: Also where a variable has the name of one of the tokenizer's special tokens.
        """
        options: dict[str, Any] = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "max_characters": max_characters,
        }
        special = sorted((variables or {}).keys() & self._tokenizer.special_tokens_map.keys())
        if special:
            raise InvalidRequestError(
                f"chat_template_kwargs cannot set {', '.join(special)}, a special token."
            )
        try:
            return self._render(messages, style, tools, variables, options)
        except RecursionError as error:
            raise InvalidRequestError(
                "A message or a tool contains itself, or is nested too deeply."
            ) from error

    def _render(
        self,
        messages: Sequence[Message],
        style: PromptStyle,
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> RenderedPrompt:
        control = self.control_tokens(style)
        texts: list[str] = []
        spelled: list[str] = []

        def collect(text: str, pattern: Any) -> str:
            texts.append(text)
            if pattern.search(text):
                spelled.append(text)
            return text

        control.map_messages(messages, collect)
        control.map_texts([tools, variables], collect)
        if not spelled:
            text = render(messages, style, self._tokenizer, tools=tools, variables=variables, **options)
            if not control.may_complete(texts, text):
                return RenderedPrompt(text, control.spans(text), control, style.format != "chat")
        marks = Marks.unused_in(*texts)

        def mark(text: str, pattern: Any) -> str:
            return control.marked(text, pattern, marks)

        marked = render(
            control.map_messages(messages, mark),
            style,
            self._tokenizer,
            tools=control.map_texts(tools, mark),
            variables=control.map_texts(variables, mark),
            **options,
        )
        return RenderedPrompt(*control.unmarked(marked, marks), control, style.format != "chat")

    def encode(self, prompt: RenderedPrompt) -> list[int]:
        """The token ids of a prompt.

        Raises:
            InvalidRequestError: It spells a control token that the tokenizer cannot encode as text.
        """
        token_ids = self._tokenizer.encode(prompt.text, add_special_tokens=False)
        if not prompt.is_exact(token_ids):
            token_ids = self._encode_spellings(prompt).token_ids
        return [*self._before, *token_ids, *self._after] if prompt.add_special_tokens else token_ids

    def encode_with_offsets(self, prompt: RenderedPrompt) -> EncodedPrompt:
        """As `encode`, with the characters of each token; the tokenizer is a fast one of transformers."""
        tokens = self._tokenizer(prompt.text, add_special_tokens=False, return_offsets_mapping=True)  # type: ignore[operator]
        encoded = EncodedPrompt(list(tokens["input_ids"]), list(tokens["offset_mapping"]))
        if not prompt.is_exact(encoded.token_ids):
            encoded = self._encode_spellings(prompt)
        if not prompt.add_special_tokens:
            return encoded
        none = (0, 0)
        return EncodedPrompt(
            [*self._before, *encoded.token_ids, *self._after],
            [*(none for _ in self._before), *encoded.offsets, *(none for _ in self._after)],
        )

    def encode_raw(self, text: str) -> list[int]:
        """The token ids of a text as it stands, control tokens included; one BOS token, also if the text has it."""
        token_ids = self._tokenizer.encode(text, add_special_tokens=True)
        added = len(self._before)
        repeated = added and token_ids[added : 2 * added] == self._before
        return token_ids[added:] if repeated else token_ids

    def control_tokens(self, style: PromptStyle) -> ControlTokens:
        """The control tokens of a style, found once."""
        if style not in self._control:
            self._control[style] = ControlTokens.of(style, self._tokenizer)
        return self._control[style]

    @property
    def _unknown_id(self) -> int | None:
        return getattr(self._tokenizer, "unk_token_id", None)

    def _encode_spellings(self, prompt: RenderedPrompt) -> EncodedPrompt:
        """Encodes a prompt some of whose spellings are text.

        A tokenizer's model that has a control token as a piece of its own gets such a spelling character by character.
        """
        if not getattr(self._tokenizer, "is_fast", False):
            raise _cannot_encode(prompt)
        for by_character in (False, True):
            encoded = _encode_beside_stand_ins(prompt, self._tokenizer, by_character=by_character)
            if prompt.is_exact(encoded.token_ids, self._unknown_id):
                return encoded
        raise _cannot_encode(prompt)


def _encode_beside_stand_ins(prompt: RenderedPrompt, tokenizer: Any, *, by_character: bool) -> EncodedPrompt:
    """Encodes with a tokenizer that knows the format's own control tokens by stand-ins, and no others.

    A stand-in repeats an unused character to the length of the spelling, so that offsets stay.
    """
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as FastTokenizer

    backend = tokenizer.backend_tokenizer
    encoder = FastTokenizer(backend.model)
    if backend.normalizer is not None:
        encoder.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        encoder.pre_tokenizer = backend.pre_tokenizer
    words = {prompt.text[slice(*span)] for span in prompt.spans}
    gap, *free = unused_characters(1 + len(words), prompt.text)
    stand_ins = {word: one * len(word) for word, one in zip(words, free, strict=True)}
    added: dict[str, tuple[AddedToken, int]] = {}
    for token_id, token in tokenizer.added_tokens_decoder.items():
        if token.content in prompt.control.ids and token.content not in stand_ins:
            continue
        content = stand_ins.get(token.content, token.content)
        copy = AddedToken(
            content,
            single_word=token.single_word and content == token.content,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized,
        )
        added[content] = copy, token_id
    encoder.add_tokens([*(token for token, _ in added.values()), AddedToken(gap, normalized=False)])
    original = {encoder.token_to_id(content): token_id for content, (_, token_id) in added.items()}
    gap_id = encoder.token_to_id(gap)
    text = _with_stand_ins(prompt, stand_ins, gap if by_character else "")
    gaps = [place for place, character in enumerate(text) if character == gap] if by_character else []
    encoding = encoder.encode(text, add_special_tokens=False)
    tokens = [
        (original.get(token_id, token_id), (start - bisect_left(gaps, start), end - bisect_left(gaps, end)))
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
        if token_id != gap_id
    ]
    return EncodedPrompt([token_id for token_id, _ in tokens], [span for _, span in tokens])


def _with_stand_ins(prompt: RenderedPrompt, stand_ins: Mapping[str, str], gap: str) -> str:
    """The text with stand-ins for the format's control tokens, and a gap after each character of other spellings."""
    own = set(prompt.spans)
    parts, done = [], 0
    for start, end in sorted({*own, *prompt.control.spans(prompt.text)}):
        if start < done:
            continue
        word = prompt.text[start:end]
        parts += [prompt.text[done:start], stand_ins[word] if (start, end) in own else gap.join(word)]
        done = end
    return "".join([*parts, prompt.text[done:]])


def _cannot_encode(prompt: RenderedPrompt) -> InvalidRequestError:
    own = set(prompt.spans)
    spelled = {prompt.text[slice(*span)] for span in prompt.control.spans(prompt.text) if span not in own}
    return InvalidRequestError(
        f"The base's tokenizer cannot encode {', '.join(sorted(spelled)) or 'a part of the prompt'} as text.",
        hint="Leave out what spells its control tokens; raw=True takes a whole prompt as it stands.",
    )


def max_prompt_characters(tokenizer: Tokenizer, context_length: int) -> int:
    """The longest text that may fit a context: each token stands for the characters of the longest at most."""
    return context_length * max(map(len, tokenizer.get_vocab()), default=1)


def _added_around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer adds before and after a text."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a", add_special_tokens=True)
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return whole[:start], whole[start + len(plain) :]
