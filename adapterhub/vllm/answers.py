"""What vLLM's status codes mean, as errors of this package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import SplitResult, urlsplit

from adapterhub.errors import (
    AdapterIncompatibleError,
    ConfigError,
    EngineError,
    InvalidRequestError,
    RequestTooLongError,
)
from adapterhub.vllm.unavailable import AdapterNotLoadedError, ReplicaUnavailableError

MAX_RETRY_AFTER = 120
"""Seconds; OpenAI's clients give up on more."""
_MAX_REASON = 500
_FULL_OR_GONE = (429, 502, 503, 504)
_NOT_LOADED = (
    "`adapterhub check NAME --engine vllm` says what vLLM does not run. Was it trained for this base?"
)
_RANK_TOO_HIGH = (
    "Start it with a higher --max-lora-rank, or cut the adapter's rank: "
    "`adapterhub export NAME OUT --format peft --plain --rank N`. Blends are cut to the setting max_lora_rank."
)


@dataclass(frozen=True)
class Answer:
    """A whole answer.

    Attributes:
        status: HTTP's.
        content: The body.
        retry_after: The header, if it has one.
    """

    status: int
    content: bytes
    retry_after: str | None = None

    @property
    def reason(self) -> str:
        """Why it is no success, in vLLM's words."""
        return reason(self.content)


def reason(content: bytes | str) -> str:
    """The message of one of vLLM's errors, on one line and bounded."""
    try:
        error = json.loads(content)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        text = "no reason given"
    return " ".join(text.split())[:_MAX_REASON]


def check(answer: Answer, url: str) -> None:
    """Returns if a server did what it was asked to.

    Raises:
        ReplicaUnavailableError: It is full or gone.
        EngineError: It refused or failed.
    """
    if answer.status == 200:
        return
    if answer.status in _FULL_OR_GONE:
        raise ReplicaUnavailableError(
            f"{url} is full or not ready (status {answer.status}).",
            hint="Ask again in a moment.",
            retry_after=_seconds(answer.retry_after),
        )
    if answer.status in (401, 403):
        raise EngineError(
            f"{url} refuses the API key.", hint="Set ADAPTERHUB_UPSTREAM_API_KEY to vLLM's --api-key."
        )
    raise EngineError(f"{url} answers with status {answer.status}: {answer.reason}")


def _seconds(retry_after: str | None) -> int | None:
    """A `Retry-After` in seconds; None for a date, or more than clients wait."""
    digits = retry_after or ""
    is_number = digits.isascii() and digits.isdigit() and len(digits) < 4
    return int(digits) if is_number and 1 <= int(digits) <= MAX_RETRY_AFTER else None


def check_completion(answer: Answer, url: str) -> None:
    """Returns if a server accepted a completion.

    Raises:
        AdapterNotLoadedError: It does not have the model.
        RequestTooLongError: Prompt and answer do not fit its context.
        InvalidRequestError: It refuses the request.
        ReplicaUnavailableError: It is full or gone.
        EngineError: It failed.
    """
    if answer.status == 404:
        raise AdapterNotLoadedError(f"{url} does not have the adapter: {answer.reason}", hint="Ask again.")
    if answer.status in (400, 422):
        if "context length" in answer.reason:
            raise RequestTooLongError(f"{url} refuses the request: {answer.reason}")
        raise InvalidRequestError(f"{url} refuses the request: {answer.reason}")
    check(answer, url)


def refuse_without_runtime_lora(answer: Answer, url: str) -> None:
    """Returns unless a 404 means that a server has no routes for loading.

    Raises:
        ConfigError: It has none.
    """
    # An adapter that is not there is a NotFoundError of vLLM; a path that does not exist is FastAPI's affair.
    if b"NotFoundError" not in answer.content:
        raise ConfigError(
            f"The vLLM server at {url} does not load adapters while it runs.",
            hint="Start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.",
        )


def refuse_adapter(answer: Answer, name: str, url: str) -> NoReturn:
    """Says why a server did not load an adapter.

    Args:
        answer: The server's, with status 500.
        name: The adapter's model name.
        url: The server's.

    Raises:
        AdapterIncompatibleError: Always.
    """
    is_rank_too_high = "max_lora_rank" in answer.reason  # vllm/lora/peft_helper.py
    raise AdapterIncompatibleError(
        f"The vLLM server at {url} does not load {name}: {answer.reason}",
        hint=_RANK_TOO_HIGH if is_rank_too_high else _NOT_LOADED,
    )


def checked_url(url: str) -> str:
    """A server's URL without a path.

    Raises:
        ConfigError: It is not one of http or https, or holds a user name or password, which logs would show.
    """
    parts = _parts(url.strip())
    if not parts:
        raise ConfigError("A vLLM server's URL is like http://host:8000.")
    if parts.username or parts.password:
        raise ConfigError(
            "A vLLM server's URL holds no user name or password.",
            hint="Give the key in ADAPTERHUB_UPSTREAM_API_KEY.",
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


def _parts(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        is_server = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port is no number, or a bracket is not closed
        return None
    return parts if is_server and not parts.query and not parts.fragment else None
