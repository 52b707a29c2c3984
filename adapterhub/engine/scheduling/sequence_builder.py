"""From a request to its sequences: what is checked, and what is set up, before anything is queued."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from itertools import chain

from adapterhub.engine.decoding.detokenizer import IncrementalDetokenizer
from adapterhub.engine.decoding.grammar_compiler import GrammarCompiler
from adapterhub.engine.decoding.grammar_constraint import GrammarConstraint
from adapterhub.engine.decoding.prompt_scorer import PromptScorer
from adapterhub.engine.decoding.sampler import Sampler
from adapterhub.engine.interface import Request, max_completion_tokens
from adapterhub.engine.runner import EngineBase
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.engine.scheduling.output_queue import OutputQueue
from adapterhub.engine.scheduling.sequence import SequenceState
from adapterhub.engine.tokenizer import Tokenizer, special_tokens
from adapterhub.errors import InvalidRequestError


class SequenceBuilder:
    """Builds sequences for a base. Any thread may call its methods.

    Args:
        base: The base.
    """

    def __init__(self, base: EngineBase) -> None:
        self._base, self._device = base, base.device
        self._ends = EndTokens(base.tokenizer, base.end_token_ids)
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
        check_fields(request, self._vocabulary_size)
        bad_words = list(chain.from_iterable(map(self._bad_word, sampling.bad_words)))
        end_token_ids = self._ends.of(sampling)
        top = sampling.prompt_logprobs
        scorer = None if top is None else PromptScorer(request.prompt, top)
        sequences: list[SequenceState] = []
        for index in range(num_sequences):
            constraint = self._constraint(request, max_tokens, end_token_ids)
            detokenizer = IncrementalDetokenizer(
                self._base.tokenizer,
                sampling.stop,
                skip_special_tokens=constraint is None,  # an output format may ask for them
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
                    scorer=scorer,
                )
            )
        return sequences

    def _constraint(
        self, request: Request, max_tokens: int, end_token_ids: frozenset[int]
    ) -> GrammarConstraint | None:
        if request.output_format is None:
            return None
        return self._compiler.constraint(request.output_format, max_tokens, end_token_ids)


class EndTokens:
    """Which tokens end an answer.

    Args:
        tokenizer: The base's.
        of_base: The base's own end tokens.
    """

    def __init__(self, tokenizer: Tokenizer, of_base: frozenset[int]) -> None:
        self._special = special_tokens(tokenizer)
        self._of_base = of_base

    def of(self, sampling: SamplingParams) -> frozenset[int]:
        """The tokens that end a request's answers."""
        base = frozenset[int]() if sampling.ignore_eos else self._of_base
        # Special tokens among the stop strings, such as `<|im_end|>`, never show in the text.
        special = {self._special[stop] for stop in sampling.stop if stop in self._special}
        return base | set(sampling.stop_token_ids) | special


def check_fields(request: Request, vocabulary_size: int) -> None:
    """Returns if a request's fields go together, and with a base.

    Args:
        request: The request, with a prompt.
        vocabulary_size: Width of the base's logits.

    Raises:
        InvalidRequestError: A token id is not in the vocabulary, or an output format comes with `ignore_eos`.
    """
    sampling = request.sampling
    ids = (sampling.stop_token_ids, sampling.suppress_tokens, sampling.logit_bias, *sampling.bad_words_ids)
    if max(chain(request.prompt, *ids)) >= vocabulary_size:
        raise InvalidRequestError(
            f"The base's vocabulary has {vocabulary_size} tokens, and a token id of the prompt or of the "
            "sampling parameters is not below that.",
            hint="Take token ids of the base's own tokenizer.",
        )
    if request.output_format and sampling.ignore_eos:
        raise InvalidRequestError(
            "ignore_eos has no meaning for structured output, which ends where its format does."
        )


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
