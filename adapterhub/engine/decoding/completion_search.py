"""Short ways to end an answer that a grammar has under way.

llguidance says which tokens may come next, but not how far the end is. This finds a sequence of tokens after which
the answer is complete: it follows forced bytes, and where there is a choice it tries one byte of each class of
bytes that lead to different places, depth first.

Nothing can be asked about a grammar's state but what may follow it, so two states with the same mask are taken to
be alike while searching. That only guides the search: every ending that is returned was accepted by llguidance
itself. It need not be the shortest one of all; in grammars without counted repetitions it almost always is.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llguidance import LLMatcher

from adapterhub.engine.decoding.token_spelling import CLOSERS, MANY, Ending, TokenSpelling, begins_sequence

_SCANS = (2, 16)  # how often the ways from like states are looked for: times the repeats, and at most
_LONGEST_FORCED = 16 * 1024  # bytes
_REPEATS = (1, 4, 16, 64, 256, 1024, 4096)
"""How often one state may come again on the way: more only once no end was found with less."""
_KNOWN_PER_STATE = 4
_KNOWN_STATES = 4096


@dataclass(frozen=True)
class _Look:
    """What can be seen of a state."""

    forced: bytes
    tokens: int  # that were taken to write the forced bytes
    accepting: bool
    mask: bytes
    key: bytes


@dataclass(frozen=True)
class _Way:
    """A step from a state."""

    text: bytes
    token: int
    changes: bool  # whether what may follow is something else then


@dataclass
class _Frame:
    """A state on the way that is being searched."""

    look: _Look
    step: bytes  # the bytes that led here, forced ones not included
    taken: int  # tokens to roll back
    ways: Iterator[_Way]
    best: Ending | None = None


@dataclass
class _Search:
    """What one search keeps."""

    repeats: int
    looks: int
    path: Counter[bytes] = field(default_factory=Counter)
    # State -> on which repetition and how deep it led nowhere: the same, or later and deeper, does so again.
    dead: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    cut: bool = False


class CompletionSearch:
    """Finds endings for the answers of one grammar, and remembers them for all of its answers.

    Args:
        spelling: The vocabulary.
        end_token: llguidance's end token.
    """

    def __init__(self, spelling: TokenSpelling, end_token: int) -> None:
        self._spelling = spelling
        self._end_token = end_token
        self._known: dict[bytes, list[tuple[Ending, list[int]]]] = {}
        self._ways: dict[bytes, dict[int, _Way]] = {}
        self._scans: Counter[bytes] = Counter()

    def completes(self, matcher: LLMatcher, tokens: Sequence[int]) -> bool:
        """Whether an answer is complete after these tokens, at least one."""
        return matcher.validate_tokens([*tokens, self._end_token]) == len(tokens) + 1

    def find(self, matcher: LLMatcher, looks: int) -> list[int] | None:
        """The tokens of a short ending; None if none was found.

        Args:
            matcher: The state of an answer; it is not changed.
            looks: Most states to look at.
        """
        for repeats in _REPEATS:
            search = _Search(repeats, looks)
            ending = self._search(matcher.deep_copy(), search)
            if ending:
                return self._checked(matcher, ending)
            if not search.cut or search.looks <= 0:
                return None
            looks = search.looks
        return None

    def _checked(self, matcher: LLMatcher, ending: Ending) -> list[int] | None:
        tokens = self._spelling.tokens(ending)
        return tokens if tokens == [] or (tokens and self.completes(matcher, tokens)) else None

    def _search(self, matcher: LLMatcher, search: _Search) -> Ending | None:
        stack: list[_Frame] = []
        found = self._enter(matcher, b"", 0, search, stack)
        while stack:
            frame = stack[-1]
            way = next(frame.ways, None) if search.looks > 0 else None
            if way:
                matcher.consume_token(way.token)
                depth = len(stack)
                found = self._enter(matcher, way.text, 1, search, stack)
                if len(stack) == depth:
                    self._offer(frame, way.text, found)
                continue
            found = self._leave(matcher, search, stack.pop(), len(stack))
            if stack:
                self._offer(stack[-1], frame.step, found)
        return found

    def _enter(
        self, matcher: LLMatcher, step: bytes, taken: int, search: _Search, stack: list[_Frame]
    ) -> Ending | None:
        """Returns what is known of a state at once, or puts it on the stack to be searched."""
        look = self._look(matcher, search)
        found = self._at_once(matcher, look)
        repeat, depth = search.dead.get(look.key, (MANY, MANY))
        dead = repeat <= search.path[look.key] and depth <= len(stack)
        too_often = search.path[look.key] >= search.repeats
        search.cut |= too_often
        if found or dead or too_often:
            matcher.rollback(taken + look.tokens)
            return self._spelling.before(look.forced, found) if found else None
        frame = _Frame(look, step, taken + look.tokens, iter(()))
        frame.ways = self._worth_trying(frame, self._classes(matcher, look, search))
        search.path[look.key] += 1
        stack.append(frame)
        return None

    def _leave(self, matcher: LLMatcher, search: _Search, frame: _Frame, depth: int) -> Ending | None:
        matcher.rollback(frame.taken)
        search.path[frame.look.key] -= 1
        if frame.best is None:
            search.dead[frame.look.key] = (search.path[frame.look.key], depth)
            return None
        return self._spelling.before(frame.look.forced, frame.best)

    def _offer(self, frame: _Frame, step: bytes, found: Ending | None) -> None:
        if found is None:
            return
        whole = self._spelling.before(step, found)
        if whole.counts[-1] < MANY and (frame.best is None or whole.cost < frame.best.cost):
            frame.best = whole
            self._remember(frame.look.key, whole)

    @staticmethod
    def _worth_trying(frame: _Frame, ways: Sequence[_Way]) -> Iterator[_Way]:
        """The ways from a state; once it is known how to end, only those that may end sooner."""
        for way in ways:
            closing = frame.best is not None and frame.best.text[:1] in CLOSERS
            # A step that changes nothing, such as a letter within a string, is no way to the end if there is another.
            if frame.best is None or (way.changes and not (closing and begins_sequence(way.text))):
                yield way

    def _look(self, matcher: LLMatcher, search: _Search) -> _Look:
        search.looks -= 1
        forced, tokens = matcher.compute_ff_bytes(), []
        if len(forced) > _LONGEST_FORCED:  # a grammar without an end, most likely
            search.looks = 0
        if forced:
            tokens = self._spelling.tokens(self._spelling.before(forced, Ending())) or []
            forced = forced if tokens else b""
            matcher.consume_tokens(tokens)
        accepting, mask = matcher.is_accepting(), matcher.compute_bitmask()
        key = hashlib.blake2b(mask, digest_size=16).digest()
        return _Look(forced, len(tokens), accepting, mask, key)

    def _at_once(self, matcher: LLMatcher, look: _Look) -> Ending | None:
        """An ending that needs no search."""
        if look.accepting:
            return Ending()
        for ending, tokens in self._known.get(look.key, ()):
            if self.completes(matcher, tokens):
                return ending
        return None

    def _remember(self, key: bytes, ending: Ending) -> None:
        if len(self._known) >= _KNOWN_STATES:
            self._known.clear()
            self._ways.clear()
            self._scans.clear()
        tokens = self._spelling.tokens(ending) or []
        others = [known for known in self._known.get(key, ()) if known[0].text != ending.text]
        self._known[key] = sorted(
            [(ending, tokens), *others[: _KNOWN_PER_STATE - 1]], key=lambda known: known[0].cost
        )

    def _classes(self, matcher: LLMatcher, look: _Look, search: _Search) -> list[_Way]:
        """One step for each different place that a step leads to."""
        ways = self._ways.setdefault(look.key, {})
        if self._scans[look.key] >= min(_SCANS[0] * search.repeats, _SCANS[1]):
            return list(ways.values())
        self._scans[look.key] += 1
        seen: set[tuple[bytes, bytes]] = set()
        for text, token in self._spelling.steps:
            if look.mask[token >> 3] >> (token & 7) & 1 and search.looks > 0:
                matcher.consume_token(token)
                there = self._look(matcher, search)
                matcher.rollback(1 + there.tokens)
                place = (there.forced, there.key)
                if place not in seen and (token not in ways or not ways[token].changes):
                    ways[token] = _Way(text, token, changes=place != (b"", look.key))
                seen.add(place)
        # What changes nothing comes after what does, but before the beginnings of longer sequences.
        ordered = sorted(ways.values(), key=lambda way: 2 * begins_sequence(way.text) + (not way.changes))
        self._ways[look.key] = {way.token: way for way in ordered}
        return ordered
