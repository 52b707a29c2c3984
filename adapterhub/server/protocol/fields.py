"""What becomes of each field of a body: one rule for all fields of OpenAI's and vLLM's APIs.

A field of the body's model is honoured. Of the others, null means that it was not sent; what has no effect on the
answer is ignored, and the answer's header `x-adapterhub-ignored` names it; one with an effect is accepted with the
value that has none, else refused, as is a name that no API has.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from adapterhub.server.errors import FieldError

_HEADER_NAME = re.compile(r"[\w.-]{1,100}", re.ASCII)
_MAX_NAMED = 32
_MAX_EXTRA = 256

Item = TypeVar("Item")
ListOf = Annotated[list[Item], Field(fail_fast=True)]
"""A list that is refused at its first item that is not valid; else pydantic describes each of a million, which blocks
every thread for seconds."""


def at_most(entries: int) -> BeforeValidator:
    """Refuses an object with more entries before it looks at them, for the reason of `ListOf`.

    Args:
        entries: How many it may have.
    """

    def check(given: Any) -> Any:
        if isinstance(given, Mapping) and len(given) > entries:
            raise ValueError(f"more than {entries} entries")
        return given

    return BeforeValidator(check)


IGNORED: Final = frozenset(
    {
        "cache_salt",
        "max_tool_calls",
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning",
        "request_id",
        "service_tier",
        "session_id",
        "store",
    }
)
"""Fields that have no effect on the answer."""

NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "add_special_tokens": (True,),
    "best_of": (1,),
    "detokenize": (True,),
    "include_reasoning": (True,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "suffix": ("",),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
}
"""Fields with an effect that is not built -> their values without one."""

REFUSED: Final[Mapping[str, str]] = {
    "allowed_token_ids": "Use logit_bias, or an output format.",
    "audio": "Answers are texts.",
    "chat_template": "An adapter's card has it.",
    "context_management": "Shorten the input instead.",
    "documents": "Put documents into the messages.",
    "function_call": "Use tool_choice.",
    "functions": "Use tools.",
    "moderation": "Nothing is moderated here.",
    "prediction": "Leave it out; the answer is the same without.",
    "prompt_embeds": "Prompts are texts or token ids.",
    "truncate_prompt_tokens": "Shorten the prompt.",
    "web_search_options": "The server does not reach the web.",
}
"""Fields that are refused -> what to do instead."""

_CHAT_ONLY = "Chat Completions has it."
ELSEWHERE: Final[Mapping[str, str]] = {
    "chat_template_kwargs": _CHAT_ONLY,
    "guided_choice": _CHAT_ONLY,
    "guided_grammar": _CHAT_ONLY,
    "guided_json": _CHAT_ONLY,
    "guided_regex": _CHAT_ONLY,
    "prompt_logprobs": _CHAT_ONLY,
    "response_format": "Use text.format.",
    "structured_outputs": _CHAT_ONLY,
    "tool_choice": _CHAT_ONLY,
    "tools": _CHAT_ONLY,
}
"""Fields of some bodies -> what to do with the others. They change the answer, so they are never ignored."""


class Body(BaseModel):
    """A JSON body; `check_fields` decides on fields that the model has not."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    @property
    def ignored_fields(self) -> tuple[str, ...]:
        """Names of fields that were sent and have no effect, the first of them that can stand in a header."""
        sent = (name for name, value in (self.model_extra or {}).items() if value is not None)
        return tuple(sorted(name for name in sent if _HEADER_NAME.fullmatch(name))[:_MAX_NAMED])


def check_fields(body: BaseModel, unknown: str = "refuse") -> None:
    """Returns if every field of a body is honoured or may be ignored.

    Args:
        body: The body.
        unknown: `"refuse"` or `"ignore"` names that no API has.

    Raises:
        FieldError: One is not supported or not known.
    """
    extra = body.model_extra or {}
    if len(extra) > _MAX_EXTRA:
        raise FieldError(f"The body has more than {_MAX_EXTRA} fields that are not honoured.", None)
    for name, value in extra.items():
        if value is None or name in IGNORED:
            continue
        if name in NEUTRAL:
            _check_neutral(name, value)
        elif name in REFUSED:
            raise _unsupported(f"{name} is not supported.", name, REFUSED[name])
        elif name in ELSEWHERE:
            raise _unsupported(f"{name} is not a field of this path.", name, ELSEWHERE[name])
        elif unknown == "refuse":
            raise _unknown(name, (*type(body).model_fields, *NEUTRAL, *IGNORED))


def _check_neutral(name: str, value: Any) -> None:
    neutral = NEUTRAL[name]
    if value not in neutral:
        written = " or ".join(map(repr, neutral))
        raise _unsupported(f"{name} is supported with {written} only.", name, "Leave it out.")


def _unsupported(message: str, name: str, hint: str) -> FieldError:
    return FieldError(message, name, "unsupported_parameter", hint=hint)


def _unknown(name: str, known: tuple[str, ...]) -> FieldError:
    near = difflib.get_close_matches(name[:100], known, n=1)
    hint = (
        f"Did you mean {near[0]!r}?"
        if near
        else "A server that runs with `--unknown-fields ignore` ignores it."
    )
    return FieldError(f"There is no field {name[:100]!r}.", name[:100], "unknown_parameter", hint=hint)
