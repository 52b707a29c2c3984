"""Searches for a short completion of an answer that is constrained by a grammar.

llguidance knows which tokens may come next, but not how far the end is. This finds token ids after which the answer is
complete: a depth-first search over the grammar's states, which follows forced bytes and, where there is a choice,
tries one symbol for each distinct state that a symbol leads to.

llguidance exposes nothing of a state but its mask of allowed tokens, so two states with the same mask share a key
while searching. That only guides the search: llguidance itself validates every completion that is returned, and where
the depth-first search finds none, a search follows that leaves out no state: a key only decides what is tried later.
What that has not found within its limit may still exist. A completion need not be the shortest of all; in grammars
without counted repetitions it almost always is.
"""

from __future__ import annotations

import enum
import hashlib
import heapq
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from llguidance import LLMatcher

from adapterhub.engine.decoding.minimal_tokenizer import (
    CLOSING_CHARACTERS,
    UNREACHABLE,
    MinimalTokenizer,
    TokenizedBytes,
    starts_sequence,
)

_EDGE_SCANS_PER_VISIT, _MAX_EDGE_SCANS = 2, 16  # how often the edges of one state key are collected again
_MAX_FORCED_BYTES = 16 * 1024
_MAX_VISITS = (1, 4, 16, 64, 256, 1024, 4096)
"""How often a state key may occur on one path. The search is repeated with the next bound where one was reached."""
_BYTES_PER_MEETING = 16
"""A state whose key was met n times at its length comes as late as one that is n times this much longer."""
_MAX_COMPLETIONS_PER_STATE = 4
_MAX_STATES_WITH_COMPLETIONS = 4096
_MAX_ERROR_CHARACTERS = 200


class NoCompletion(enum.Enum):
    """Why no completion was found."""

    IMPOSSIBLE = "no answer can ever be complete"
    NOT_FOUND = "no complete answer was found"  # within the limit of the search; there may be one
    TIME_UP = "it takes too long to find a complete answer"


@dataclass(frozen=True)
class _State:
    """What llguidance shows of a state, after its forced bytes."""

    forced: bytes
    forced_tokens: Sequence[int]  # those that were consumed to write the forced bytes
    accepting: bool
    mask: bytes
    key: bytes


@dataclass(frozen=True)
class _Edge:
    """A symbol that may follow a state."""

    text: bytes
    token: int
    changes_state: bool


@dataclass
class _SearchFrame:
    """A state on the path that is being searched."""

    state: _State
    edge_text: bytes  # the bytes that led here, forced ones not included
    tokens_to_roll_back: int
    edges: Iterator[_Edge]
    best: TokenizedBytes | None = None


@dataclass
class _SearchRun:
    """The bounds and the bookkeeping of one search."""

    max_visits: int
    states_left: int
    end: float  # in the thread's processor time
    visits: Counter[bytes] = field(default_factory=Counter)  # state key -> how often it is on the path
    # State key -> (visit, depth) without a completion; a later visit at the same depth or below has none either.
    dead_ends: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    reached_max_visits: bool = False


class _Frontier:
    """States to search, as the bytes and token ids that lead to them.

    Every second one is the shortest, so that whatever a breadth-first search finds is found. The others have a key that
    was met least often at their length, so that long endings are found too.
    """

    def __init__(self) -> None:
        self._paths: dict[int, tuple[bytes, list[int]]] = {}
        self._meetings: Counter[tuple[bytes, int]] = Counter()
        self._count = self._turn = 0
        self._queues: tuple[list[tuple[int, int]], ...] = [], []

    def __len__(self) -> int:
        return len(self._paths)

    def push(self, key: bytes, text: bytes, tokens: list[int]) -> None:
        self._count += 1
        self._paths[self._count] = text, tokens
        self._meetings[key, len(text)] += 1
        delay = _BYTES_PER_MEETING * self._meetings[key, len(text)]
        for queue, priority in zip(self._queues, (len(text), len(text) + delay), strict=True):
            heapq.heappush(queue, (priority, self._count))

    def pop(self) -> tuple[bytes, list[int]]:
        self._turn = 1 - self._turn
        while True:
            _, number = heapq.heappop(self._queues[self._turn])
            if number in self._paths:
                return self._paths.pop(number)


class CompletionSearch:
    """Finds completions for the answers of one grammar, and caches them for all of its answers.

    Not thread-safe: the thread that compiles the grammar uses it, and from then on only the thread that steps.

    Args:
        tokenizer: Tokenizes bytes with the base's vocabulary.
        end_token: llguidance's end token.

    Attributes:
        error: Why llguidance could not follow a state that was searched, such as a limit of its own; empty if it could.
    """

    def __init__(self, tokenizer: MinimalTokenizer, end_token: int) -> None:
        self._tokenizer = tokenizer
        self._end_token = end_token
        self.error = ""
        self._completions: dict[bytes, list[tuple[TokenizedBytes, list[int]]]] = {}
        self._edges: dict[bytes, dict[int, _Edge]] = {}
        self._edge_scans: Counter[bytes] = Counter()

    def is_complete_after(self, matcher: LLMatcher, tokens: Sequence[int]) -> bool:
        """Whether an answer is complete after these tokens, at least one."""
        return matcher.validate_tokens([*tokens, self._end_token]) == len(tokens) + 1

    def find(
        self, matcher: LLMatcher, max_states: int, max_seconds: float = math.inf
    ) -> list[int] | NoCompletion:
        """The token ids of a short completion, or why there are none.

        Args:
            matcher: The state of an answer; it is not changed.
            max_states: Maximum number of states that each of the two searches visits.
            max_seconds: Maximum processor time of this thread for both.
        """
        states_left, end = max_states, time.thread_time() + max_seconds
        for max_visits in _MAX_VISITS:
            run = _SearchRun(max_visits, states_left, end)
            tokens = self._validated(matcher, self._search(matcher.deep_copy(), run))
            if tokens is not None:
                return tokens
            if not run.reached_max_visits or run.states_left <= 0:
                break
            states_left = run.states_left
        found = self._search_all(matcher, _SearchRun(0, max_states, end))
        return NoCompletion.TIME_UP if isinstance(found, NoCompletion) and time.thread_time() > end else found

    def _validated(self, matcher: LLMatcher, completion: TokenizedBytes | None) -> list[int] | None:
        tokens = self._tokenizer.token_ids(completion) if completion else None
        return tokens if tokens == [] or (tokens and self.is_complete_after(matcher, tokens)) else None

    def _search_all(self, start: LLMatcher, run: _SearchRun) -> list[int] | NoCompletion:
        """Searches every state, by turns breadth-first and best-first; see `_Frontier`."""
        frontier = _Frontier()
        paths: Iterable[tuple[bytes, list[int]]] = [(b"", [])]
        is_proof = self._tokenizer.spells_everything
        while run.states_left > 0:
            for text, tokens in paths:
                matcher = _after(start, tokens)
                state = self._inspect(matcher, run)
                text += state.forced
                found = self._cached_completion(matcher, state)
                whole = self._validated(start, self._tokenizer.tokenize(text, found) if found else None)
                if whole is not None:
                    return whole
                if matcher.is_error():
                    is_proof, self.error = False, matcher_error(matcher)
                if not matcher.is_stopped():
                    frontier.push(state.key, text, [*tokens, *state.forced_tokens])
            if not frontier:
                return NoCompletion.IMPOSSIBLE if is_proof else NoCompletion.NOT_FOUND
            text, tokens = frontier.pop()
            mask = _after(start, tokens).compute_bitmask()
            paths = [(text + symbol, [*tokens, token]) for symbol, token in self._allowed(mask)]
        return NoCompletion.NOT_FOUND

    def _allowed(self, mask: bytes) -> Iterator[tuple[bytes, int]]:
        """The symbols of the alphabet that a mask allows."""
        return (
            (text, token) for text, token in self._tokenizer.alphabet if mask[token >> 3] >> (token & 7) & 1
        )

    def _search(self, matcher: LLMatcher, run: _SearchRun) -> TokenizedBytes | None:
        stack: list[_SearchFrame] = []
        found = self._enter(matcher, b"", 0, run, stack)
        while stack:
            frame = stack[-1]
            edge = next(frame.edges, None) if run.states_left > 0 else None
            if edge:
                matcher.consume_token(edge.token)
                depth = len(stack)
                found = self._enter(matcher, edge.text, 1, run, stack)
                if len(stack) == depth:
                    self._update_best(frame, edge.text, found)
                continue
            found = self._leave(matcher, run, stack.pop(), len(stack))
            if stack:
                self._update_best(stack[-1], frame.edge_text, found)
        return found

    def _enter(
        self, matcher: LLMatcher, edge_text: bytes, consumed: int, run: _SearchRun, stack: list[_SearchFrame]
    ) -> TokenizedBytes | None:
        """Returns a completion that needs no search, or pushes the state onto the stack."""
        state = self._inspect(matcher, run)
        found = self._cached_completion(matcher, state)
        visit, depth = run.dead_ends.get(state.key, (UNREACHABLE, UNREACHABLE))
        is_dead_end = visit <= run.visits[state.key] and depth <= len(stack)
        at_max_visits = run.visits[state.key] >= run.max_visits
        run.reached_max_visits |= at_max_visits
        if found or is_dead_end or at_max_visits:
            _undo(matcher, consumed + len(state.forced_tokens))
            return self._tokenizer.tokenize(state.forced, found) if found else None
        frame = _SearchFrame(state, edge_text, consumed + len(state.forced_tokens), iter(()))
        frame.edges = self._promising(frame, self._distinct_edges(matcher, state, run))
        run.visits[state.key] += 1
        stack.append(frame)
        return None

    def _leave(
        self, matcher: LLMatcher, run: _SearchRun, frame: _SearchFrame, depth: int
    ) -> TokenizedBytes | None:
        _undo(matcher, frame.tokens_to_roll_back)
        run.visits[frame.state.key] -= 1
        if frame.best is None:
            run.dead_ends[frame.state.key] = (run.visits[frame.state.key], depth)
            return None
        return self._tokenizer.tokenize(frame.state.forced, frame.best)

    def _update_best(self, frame: _SearchFrame, edge_text: bytes, found: TokenizedBytes | None) -> None:
        if found is None:
            return
        completion = self._tokenizer.tokenize(edge_text, found)
        if completion.is_reachable and (frame.best is None or completion.cost < frame.best.cost):
            frame.best = completion
            self._cache_completion(frame.state.key, completion)

    @staticmethod
    def _promising(frame: _SearchFrame, edges: Sequence[_Edge]) -> Iterator[_Edge]:
        """All edges until a completion is known, then only those that may lead to a shorter one."""
        for edge in edges:
            closes = frame.best is not None and frame.best.text[:1] in CLOSING_CHARACTERS
            # An edge back to the same state, such as a letter within a string, cannot be on the shortest path.
            if frame.best is None or (edge.changes_state and not (closes and starts_sequence(edge.text))):
                yield edge

    def _inspect(self, matcher: LLMatcher, run: _SearchRun) -> _State:
        run.states_left = 0 if time.thread_time() > run.end else run.states_left - 1
        forced, tokens = matcher.compute_ff_bytes(), list[int]()
        if len(forced) > _MAX_FORCED_BYTES:  # most likely a grammar without an end
            run.states_left = 0
        if forced:
            tokens = self._tokenizer.token_ids(self._tokenizer.tokenize(forced)) or []
            forced = forced if tokens else b""
            matcher.consume_tokens(tokens)
        accepting, mask = matcher.is_accepting(), matcher.compute_bitmask()
        key = hashlib.blake2b(mask, digest_size=16).digest()
        return _State(forced, tokens, accepting, mask, key)

    def _cached_completion(self, matcher: LLMatcher, state: _State) -> TokenizedBytes | None:
        if state.accepting:
            return TokenizedBytes()
        for completion, tokens in self._completions.get(state.key, ()):
            if self.is_complete_after(matcher, tokens):
                return completion
        return None

    def _cache_completion(self, key: bytes, completion: TokenizedBytes) -> None:
        if len(self._completions) >= _MAX_STATES_WITH_COMPLETIONS:
            self._completions.clear()
            self._edges.clear()
            self._edge_scans.clear()
        tokens = self._tokenizer.token_ids(completion) or []
        others = [cached for cached in self._completions.get(key, ()) if cached[0].text != completion.text]
        self._completions[key] = sorted(
            [(completion, tokens), *others[: _MAX_COMPLETIONS_PER_STATE - 1]],
            key=lambda cached: cached[0].cost,
        )

    def _distinct_edges(self, matcher: LLMatcher, state: _State, run: _SearchRun) -> list[_Edge]:
        """One edge for each distinct state that a symbol leads to."""
        edges = self._edges.setdefault(state.key, {})
        if self._edge_scans[state.key] >= min(_EDGE_SCANS_PER_VISIT * run.max_visits, _MAX_EDGE_SCANS):
            return list(edges.values())
        self._edge_scans[state.key] += 1
        seen: set[tuple[bytes, bytes]] = set()
        for text, token in self._allowed(state.mask):
            if run.states_left > 0:
                target = self._inspect(_after(matcher, [token]), run)
                identity = (target.forced, target.key)
                if identity not in seen and (token not in edges or not edges[token].changes_state):
                    edges[token] = _Edge(text, token, changes_state=identity != (b"", state.key))
                seen.add(identity)
        # Edges back to the same state come after those that leave it, but before the starts of longer sequences.
        ordered = sorted(
            edges.values(), key=lambda edge: 2 * starts_sequence(edge.text) + (not edge.changes_state)
        )
        self._edges[state.key] = {edge.token: edge for edge in ordered}
        return ordered


def _after(matcher: LLMatcher, tokens: list[int]) -> LLMatcher:
    """A copy that has consumed tokens."""
    copy = matcher.deep_copy()
    copy.consume_tokens(tokens)
    return copy


def _undo(matcher: LLMatcher, tokens: int) -> None:
    """Rolls tokens back.

    llguidance 1.9 keeps the last mask and may return it for another state after a rollback, unless the mask of the
    state in between was asked for.
    """
    matcher.rollback(tokens)
    matcher.compute_bitmask()


def matcher_error(matcher: LLMatcher) -> str:
    """The first sentence of llguidance's error, which continues with positions and excerpts."""
    lines = [line.strip() for line in matcher.get_error().splitlines() if line.strip()]
    reason = " ".join(line for line in lines[:1] + [line for line in lines[1:] if line.startswith("error:")])
    return reason[:_MAX_ERROR_CHARACTERS].rstrip(".:")
