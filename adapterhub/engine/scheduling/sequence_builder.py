"""From a request to its sequences: what is checked, and what is set up, before anything is queued."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from itertools import chain

from adapterhub.engine.decoding.detokenizer import IncrementalDetokenizer
from adapterhub.engine.decoding.grammar_compiler import GrammarCompiler
from adapterhub.engine.decoding.grammar_constraint import GrammarConstraint
from adapterhub.engine.decoding.sampler import Sampler
from adapterhub.engine.interface import Request, max_completion_tokens
from adapterhub.engine.runner import EngineBase
from adapterhub.engine.scheduling.output_queue import OutputQueue
from adapterhub.engine.scheduling.sequence import SequenceState
from adapterhub.engine.tokenizer import Tokenizer
from adapterhub.errors import InvalidRequestError


class SequenceBuilder:
    """Builds sequences for a base. Any thread may call its methods.

    Args:
        base: The base.
    """

    def __init__(self, base: EngineBase) -> None:
        self._base, self._device = base, base.device
        added = base.tokenizer.added_tokens_decoder.items()
        self._special_token_ids = {token.content: token_id for token_id, token in added if token.special}
        self._vocabulary_size = base.vocabulary_size
        self._bad_word = lru_cache(maxsize=4096)(partial(_encode_bad_word, base.tokenizer))
        self._compiler = GrammarCompiler(base.tokenizer, self._vocabulary_size, base.end_token_ids)

    @property
    def compiler(self) -> GrammarCompiler:
        """Compiles output formats; `build` takes no time for one that is compiled ahead of it."""
        return self._compiler

    def build(
        self, request: Request, num_sequences: int, wake: Callable[[], None], *, stream: bool
    ) -> list[SequenceState]:
        """Checks a request and builds its sequences.

        Args:
            request: The request.
            num_sequences: How many of its completions to generate.
            wake: As for `OutputQueue`.
            stream: Whether to call it for each token.

        Raises:
            InvalidRequestError: The prompt is empty, a token id is not in the vocabulary, or the output format cannot
                be enforced, or not together with `ignore_eos`.
            RequestTooLongError: It does not fit the context, or the shortest text of the output format does not fit
                `max_tokens`.
        """
        sampling, max_tokens = request.sampling, max_completion_tokens(request, self._base.context_length)
        ids = (*sampling.stop_token_ids, *sampling.suppress_tokens, *sampling.logit_bias)
        self._check_token_ids(max(request.prompt), *ids, *chain(*sampling.bad_words_ids))
        bad_words = list(chain.from_iterable(map(self._bad_word, sampling.bad_words)))
        base_ends = frozenset() if sampling.ignore_eos else self._base.end_token_ids
        # Special tokens among the stop strings, such as `<|im_end|>`, never show in the text.
        special = {self._special_token_ids[s] for s in sampling.stop if s in self._special_token_ids}
        end_token_ids = base_ends | set(sampling.stop_token_ids) | special
        sequences: list[SequenceState] = []
        for index in range(num_sequences):
            constraint = self._constraint(request, max_tokens, end_token_ids)
            # Structured output must not be cut by a stop string, which is most often that of the prompt style, and its
            # special tokens are a part of the text.
            detokenizer = IncrementalDetokenizer(
                self._base.tokenizer,
                () if constraint else sampling.stop,
                skip_special_tokens=constraint is None,
                min_tokens=sampling.min_tokens,
            )
            sampler = Sampler(
                sampling,
                index,
                self._device,
                prompt=request.prompt,
                end_token_ids=end_token_ids,
                bad_words=bad_words,
            )
            sequences.append(
                SequenceState(
                    request=request,
                    max_tokens=max_tokens,
                    end_token_ids=end_token_ids,
                    sampler=sampler,
                    detokenizer=detokenizer,
                    constraint=constraint,
                    output=OutputQueue(wake, every_token=stream),
                    index=index,
                    first=sequences[0] if sequences else None,
                )
            )
        return sequences

    def _check_token_ids(self, *token_ids: int) -> None:
        if max(token_ids) >= self._vocabulary_size:
            raise InvalidRequestError(
                f"The base's vocabulary has {self._vocabulary_size} tokens, and a token id of the prompt or of the "
                "sampling parameters is not below that.",
                hint="Take token ids of the base's own tokenizer.",
            )

    def _constraint(
        self, request: Request, max_tokens: int, end_token_ids: frozenset[int]
    ) -> GrammarConstraint | None:
        if request.output_format is None:
            return None
        if request.sampling.ignore_eos:
            raise InvalidRequestError(
                "ignore_eos has no meaning for structured output, which ends where its format does."
            )
        return self._compiler.constraint(request.output_format, max_tokens, end_token_ids)


def _encode_bad_word(tokenizer: Tokenizer, word: str) -> list[list[int]]:
    """The tokens of a bad word at the start of a text, and those behind a space.

    As in vLLM, the second ones count where they are as many and begin with another token: else they are the first ones
    behind a token for the space.
    """
    start, within = (
        tokenizer.encode(prefix + word.lstrip(), add_special_tokens=False) for prefix in ("", " ")
    )
    differ = len(within) == len(start) and within[:1] != start[:1]
    return [tokens for tokens in ([start, within] if differ else [start]) if tokens]
