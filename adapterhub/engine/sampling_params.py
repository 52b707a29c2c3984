"""How an answer is drawn from the model: the arguments of a request, under vLLM's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from adapterhub.errors import InvalidRequestError, describe_validation

_StopString = Annotated[str, StringConstraints(min_length=1)]
_GREEDY_BELOW = 1e-5  # as vLLM: dividing by less overflows


def _none_one_or_many(value: Any) -> Any:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


class SamplingParams(BaseModel):
    """How one answer is drawn. Names and meanings are those of vLLM's `SamplingParams`.

    Unlike vLLM, the default is greedy: the same request gives the same answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_tokens: int | None = Field(None, ge=1)
    """Most tokens to generate; if not given, 256 or what the context leaves, whichever is less."""
    temperature: float = Field(0.0, ge=0.0, le=100.0)
    """0, or below 1e-5, takes the most probable token each time (greedy); higher is more varied."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Keep the most probable tokens that together reach this probability."""
    top_k: int = Field(0, ge=-1)
    """Keep this many most probable tokens; 0 or -1 keeps all."""
    min_p: float = Field(0.0, ge=0.0, le=1.0)
    """Keep tokens at least this probable relative to the most probable one."""
    repetition_penalty: float = Field(1.0, gt=0.0, le=10.0)
    """Above 1 makes tokens of the prompt and the answer less likely to come again."""
    stop: Annotated[tuple[_StopString, ...], BeforeValidator(_none_one_or_many)] = Field((), max_length=64)
    """Strings or special tokens that end the answer, none of them empty; they are not part of it."""
    stop_token_ids: Annotated[tuple[int, ...], BeforeValidator(_none_one_or_many)] = Field((), max_length=64)
    """Tokens that end the answer, beside the base's own end tokens."""
    seed: int | None = Field(None, ge=0, lt=2**63)
    """Makes sampling repeatable for this request; None draws anew each time."""
    ignore_eos: bool = False
    """Go on past the base's end token."""
    n: int = Field(1, ge=1, le=64)
    """How many answers to draw for the one prompt."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Report each token's log-probability and those of this many most probable tokens."""

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature < _GREEDY_BELOW

    @classmethod
    def of(cls, *layers: Mapping[str, Any]) -> Self:
        """Merges settings, later layers over earlier ones.

        Raises:
            InvalidRequestError: An unknown name or a value out of range.
        """
        merged: dict[str, Any] = {}
        for layer in layers:
            merged.update(layer)
        try:
            return cls(**merged)
        except ValidationError as error:
            raise InvalidRequestError(
                f"A sampling parameter is not valid: {describe_validation(error)}.",
                hint=f"Known arguments: {', '.join(cls.model_fields)}.",
            ) from error
