"""Decodes tokens to text as they arrive: whole characters only, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.engine.tokenizer import Tokenizer

_REPLACEMENT_CHARACTER = "\ufffd"


class IncrementalDetokenizer:
    """Turns the tokens of one answer into text, releasing only what later tokens cannot change.

    Text is held back while its last character is incomplete (byte-level tokens may split one) and while its end
    could be the start of a stop string. Offsets are those of vLLM's `detokenize_incrementally`.

    Args:
        tokenizer: Decodes the tokens.
        stop: Strings that end the answer.
        skip_special_tokens: Leave special tokens out of the text.
        min_tokens: Stop strings end the answer in the text of later tokens only.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._stop, self._min_tokens = tuple(stop), min_tokens
        self._token_ids: list[int] = []
        # The text of tokens before `_read_offset` is decoded; those from `_prefix_offset` on are its context.
        self._prefix_offset = self._read_offset = 0
        self._held_back = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Takes one token and returns the text that it releases."""
        self._token_ids.append(token_id)
        self._held_back += self._decode_new(final=False)
        if len(self._token_ids) <= self._min_tokens:
            return self._release(final=True)
        return self._release(final=self._cut_at_stop())

    def flush(self) -> str:
        """Returns the text held back when the answer ends for another reason."""
        self._held_back += self._decode_new(final=True)
        if len(self._token_ids) > self._min_tokens:
            self._cut_at_stop()
        return self._release(final=True)

    def _decode_new(self, *, final: bool) -> str:
        # A token's text depends on those before it: some tokenizers drop the space at the start of a text, and write
        # a rare character as several byte tokens. So the last tokens that gave whole characters are decoded again.
        prefix = self._decode(self._token_ids[self._prefix_offset : self._read_offset])
        text = self._decode(self._token_ids[self._prefix_offset :])
        if len(text) <= len(prefix) or (text.endswith(_REPLACEMENT_CHARACTER) and not final):
            return ""
        self._prefix_offset, self._read_offset = self._read_offset, len(self._token_ids)
        return text[len(prefix) :]

    def _decode(self, token_ids: Sequence[int]) -> str:
        if not token_ids:
            return ""
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)

    def _cut_at_stop(self) -> bool:
        starts = [start for stop in self._stop if (start := self._held_back.find(stop)) >= 0]
        if starts:
            self._held_back, self.stopped = self._held_back[: min(starts)], True
        return self.stopped

    def _release(self, *, final: bool) -> str:
        end = len(self._held_back) - (0 if final else self._partial_stop_length())
        released, self._held_back = self._held_back[:end], self._held_back[end:]
        return released

    def _partial_stop_length(self) -> int:
        """The length of the longest suffix of the held-back text that starts a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for size in range(min(longest, len(self._held_back)), 0, -1):
            if any(stop.startswith(self._held_back[-size:]) for stop in self._stop):
                return size
        return 0
