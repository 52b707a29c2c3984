"""Sampling parameters of a request, under vLLM's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from adapterhub.errors import InvalidRequestError, describe_validation

_StopString = Annotated[str, StringConstraints(min_length=1)]
_BadWord = Annotated[str, StringConstraints(min_length=1, max_length=100)]  # each is encoded, twice
_TokenId = Annotated[int, Field(ge=0)]
_Bias = Annotated[float, Field(ge=-100.0, le=100.0)]
_TokenIds = Annotated[tuple[_TokenId, ...], Field(min_length=1, max_length=64)]
_MAX_INT = 2**31 - 1
_SAMPLING_EPS = 1e-5  # as in vLLM: dividing by less overflows


_STOPS = ("stop", "stop_token_ids")


def _as_tuple(value: Any) -> Any:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


def _as_dict(value: Any) -> Any:
    return {} if value is None else value


def _joined(earlier: Any, later: Any) -> Any:
    stops = [_as_tuple(earlier), _as_tuple(later)]
    if not all(isinstance(stop, list | tuple) for stop in stops):
        return later  # of a wrong type, which the validation names
    return tuple(stop for layer in stops for stop in layer)


class SamplingParams(BaseModel):
    """Sampling parameters of one request. Names and meanings are those of vLLM's `SamplingParams`.

    Unlike vLLM, the default is greedy. `suppress_tokens` and `bad_words_ids` are those of transformers. In a hub,
    what a request does not set is taken from the adapter's card, and then from the base's `generation_config.json`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    max_tokens: int | None = Field(None, ge=1, le=_MAX_INT)
    """Maximum number of tokens to generate; if not given, 256 or what the context leaves, whichever is less."""
    temperature: float = Field(0.0, ge=0.0, le=100.0)
    """0, or below 1e-5, takes the most probable token each time (greedy); higher is more varied."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Keep the most probable tokens that together reach this probability."""
    top_k: int = Field(0, ge=-1, le=_MAX_INT)
    """Keep only this many most probable tokens; 0 or -1 keeps all."""
    min_p: float = Field(0.0, ge=0.0, le=1.0)
    """Keep tokens whose probability is at least this share of the most probable one's."""
    repetition_penalty: float = Field(1.0, ge=0.01, le=10.0)
    """Above 1 makes tokens that the prompt and the answer contain less probable, below 1 more; 0.01 to 10."""
    frequency_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    """Subtracted from a token's logit for each time that the answer contains it; -2 to 2."""
    presence_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    """Subtracted from the logit of each token that the answer contains; -2 to 2."""
    logit_bias: Annotated[dict[_TokenId, _Bias], BeforeValidator(_as_dict)] = Field({}, max_length=1024)
    """Token id -> what is added to its logit, -100 to 100."""
    stop: Annotated[tuple[_StopString, ...], BeforeValidator(_as_tuple)] = Field((), max_length=64)
    """Strings or special tokens that end the answer, none of them empty; they are not part of it. Those of the request,
    of the adapter's card and of its prompt format add up."""
    stop_token_ids: Annotated[tuple[_TokenId, ...], BeforeValidator(_as_tuple)] = Field((), max_length=64)
    """Tokens that end the answer, in addition to the base's own end tokens."""
    suppress_tokens: Annotated[tuple[_TokenId, ...], BeforeValidator(_as_tuple)] = Field((), max_length=4096)
    """Tokens that are never generated, but where an output format allows no other."""
    bad_words_ids: Annotated[tuple[_TokenIds, ...], BeforeValidator(_as_tuple)] = Field((), max_length=1024)
    """Sequences of tokens that are never generated, but where an output format allows nothing else."""
    bad_words: Annotated[tuple[_BadWord, ...], BeforeValidator(_as_tuple)] = Field((), max_length=256)
    """Texts whose tokens, as they are encoded alone or behind a space, are never generated, but where an output format
    allows nothing else."""
    min_tokens: int = Field(0, ge=0, le=_MAX_INT)
    """End tokens, stop tokens and stop strings end the answer only after this many tokens, but where an output format
    allows nothing but the end."""
    seed: int | None = Field(None, ge=0, lt=2**63)
    """Makes sampling reproducible for this request; None uses a new seed each time."""
    ignore_eos: bool = False
    """Continue past the base's end token."""
    n: int = Field(1, ge=1, le=64)
    """Number of answers to sample for the prompt."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Return each token's log-probability and those of this many most probable tokens."""
    prompt_logprobs: int | None = Field(None, ge=0, le=20)
    """The same of each token of the prompt but the first, which nothing precedes."""

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens, {self.min_tokens}, is above max_tokens, {self.max_tokens}")
        return self

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature < _SAMPLING_EPS

    @classmethod
    def of(cls, *layers: Mapping[str, Any]) -> Self:
        """Merges settings, later layers over earlier ones; stop strings and stop tokens of all layers add up.

        Raises:
            InvalidRequestError: An unknown name or a value out of range.
        """
        merged: dict[str, Any] = {}
        for layer in layers:
            # A request's own stop must not make an answer run past the end of its prompt format.
            added = {name: _joined(merged.get(name), layer[name]) for name in _STOPS if name in layer}
            merged.update({**layer, **added})
        try:
            return cls(**merged)
        except ValidationError as error:
            unknown = any(problem["type"] == "extra_forbidden" for problem in error.errors())
            raise InvalidRequestError(
                f"A sampling parameter is not valid: {describe_validation(error)}.",
                hint=f"Known arguments: {', '.join(cls.model_fields)}." if unknown else None,
            ) from error
