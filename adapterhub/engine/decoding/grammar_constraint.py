"""Constrains one answer to a grammar and to its token budget.

llguidance knows which tokens a grammar allows, but not the budget: a model may spend all of it on the first field. So
each answer carries a completion, token ids that would complete it now, and one invariant holds from the first token
to the last: the completion fits the remaining budget. A token after which no such completion is found is rejected,
and the model samples again; the first token of the completion is never rejected. An answer is thus valid and complete
within its budget whatever the model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from llguidance import LLMatcher

from adapterhub.engine.decoding.completion_search import CompletionSearch, matcher_error
from adapterhub.errors import GenerationError

# What the first search at one position may take: most often it is some milliseconds. Each further one has half of it,
# since all that run wait for the step.
_MAX_STATES, _MAX_SECONDS = 2_000, 0.2
_MAX_REJECTED = 8  # tokens that the model may propose at one position before the completion's is forced

Extra = TypeVar("Extra")


@dataclass(frozen=True)
class CompiledGrammar:
    """An output format compiled for a vocabulary, ready for any number of answers.

    Attributes:
        text: The grammar, in llguidance's own format or in Lark.
        start: llguidance's state before the first token; copied for each answer.
        search: Finds completions within the budget.
        shortest_completion: Token ids that complete an empty answer: the shortest answer that was found.
    """

    text: str
    start: LLMatcher
    search: CompletionSearch
    shortest_completion: list[int]


class GrammarConstraint:
    """Constrains one answer; the counterpart of vLLM's `StructuredOutputGrammar`. Not thread-safe.

    Args:
        compiled: The grammar.
        budget: Maximum number of tokens of the answer, enough for its shortest completion.
        end_ids: Tokens that end it where it is complete; at least one.

    Attributes:
        ended: Whether an end token was accepted.
        finished: Whether the answer is complete and accepts no further token.
    """

    def __init__(self, compiled: CompiledGrammar, budget: int, end_ids: Collection[int]) -> None:
        self._matcher = compiled.start.deep_copy()
        self._search = compiled.search
        self._completion = compiled.shortest_completion
        self._remaining = budget
        self._end_ids = sorted(end_ids)
        self._is_complete = False
        self.ended = self.finished = False

    def choose(self, draw: Callable[[torch.Tensor], tuple[int, Extra]], vocab_size: int) -> tuple[int, Extra]:
        """Draws tokens until one is accepted.

        Args:
            draw: Draws a token among those that a mask allows, a bool tensor of shape (vocab_size,) on the CPU.
            vocab_size: Width of the logits.

        Returns:
            What `draw` returned for the accepted token.

        Raises:
            GenerationError: The grammar became too complex for llguidance.
        """
        allowed = self._allowed_mask(vocab_size)
        for rejected in range(_MAX_REJECTED):
            drawn = draw(allowed)
            if self._accept(drawn[0], share=0.5**rejected):
                return drawn
            allowed[drawn[0]] = False
            if not allowed.any():
                break
        # llguidance's mask allows one tokenization of forced bytes, and the completion may use a shorter one.
        allowed[:] = False
        allowed[self._completion[:1] or self._end_ids] = True
        drawn = draw(allowed)
        self._accept(drawn[0])
        return drawn

    def _allowed_mask(self, vocab_size: int) -> torch.Tensor:
        self._is_complete = self._matcher.is_accepting()
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._raise_matcher_error()
        allowed = torch.from_numpy(np.unpackbits(packed, count=vocab_size, bitorder="little")).bool()
        if self._is_complete:
            allowed[self._end_ids] = True
        return allowed

    def _accept(self, token: int, share: float = 1.0) -> bool:
        """Accepts a token that the grammar allows, unless no completion is found that fits the budget after it."""
        if self._is_complete and token in self._end_ids:
            self.ended = self.finished = True
            return True
        self._matcher.consume_token(token)
        self._raise_matcher_error()
        follows = self._completion[:1] == [token]
        completion = self._completion[1:] if follows else self._completion_within(self._remaining - 1, share)
        if completion is None:
            self._matcher.rollback(1)
            return False
        self._completion, self._remaining = completion, self._remaining - 1
        self.finished = self._remaining == 0 or self._matcher.is_stopped()
        return True

    def _completion_within(self, budget: int, share: float) -> list[int] | None:
        """Token ids that complete the answer as it is now within a budget; None if none were found.

        `share` is the part of the limits that the search may take.
        """
        if self._matcher.is_accepting():
            return []
        # Most tokens leave the last completion valid, or are a part of its first token.
        for completion in (self._completion[1:], self._completion):
            if (
                completion
                and len(completion) <= budget
                and self._search.is_complete_after(self._matcher, completion)
            ):
                return completion
        found = self._search.find(self._matcher, int(_MAX_STATES * share), _MAX_SECONDS * share)
        return found if isinstance(found, list) and len(found) <= budget else None

    def _raise_matcher_error(self) -> None:
        if self._matcher.is_error():
            raise GenerationError(
                f"The answer's grammar could not be followed further: {matcher_error(self._matcher)}.",
                hint="Use a simpler one.",
            )
