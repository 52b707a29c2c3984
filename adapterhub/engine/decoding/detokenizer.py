"""From tokens to text while they arrive: whole characters only, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.engine.tokenizer import Tokenizer

_INCOMPLETE = "\ufffd"


class IncrementalDetokenizer:
    """LeaderFollower the tokens of one answer into text, releasing only what can no longer change.

    Text is held back while its last character is incomplete (byte-level tokens may split one) and while its end
    could be the beginning of a stop string.

    Args:
        tokenizer: Decodes the tokens.
        stop: Strings that end the answer.
        skip_special_tokens: Leave special tokens out of the text.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._stop = tuple(stop)
        self._ids: list[int] = []
        # Text of tokens before `_read` is out; those from `_context` on are decoded once more with what follows.
        self._context = self._read = 0
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Takes one token and returns the text that it releases."""
        self._ids.append(token_id)
        self._held += self._decode_new(final=False)
        return self._release(final=self._cut_at_stop())

    def flush(self) -> str:
        """Returns what is still held when the answer ends for another reason."""
        self._held += self._decode_new(final=True)
        self._cut_at_stop()
        return self._release(final=True)

    def _decode_new(self, *, final: bool) -> str:
        # A token's text depends on those before it: some tokenizers drop the space at the start of a text, and spell
        # a rare character with several byte tokens. So the last stretch that gave whole characters comes along.
        known = self._decode(self._ids[self._context : self._read])
        text = self._decode(self._ids[self._context :])
        if len(text) <= len(known) or (text.endswith(_INCOMPLETE) and not final):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return text[len(known) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip) if ids else ""

    def _cut_at_stop(self) -> bool:
        places = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if places:
            self._held, self.stopped = self._held[: min(places)], True
        return self.stopped

    def _release(self, *, final: bool) -> str:
        keep = 0 if final else self._possible_stop()
        released = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return released

    def _possible_stop(self) -> int:
        """The length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stop):
                return size
        return 0
