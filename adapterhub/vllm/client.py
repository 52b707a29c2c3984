"""One vLLM server over HTTP: what it has loaded, loading and unloading, and completions as a stream.

The paths and status codes are those of vLLM 0.32 (`vllm/entrypoints/openai`, `vllm/entrypoints/serve/lora`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from adapterhub.errors import ConfigError, EngineError
from adapterhub.vllm.answers import (
    Answer,
    check,
    check_completion,
    checked_url,
    reason,
    refuse_adapter,
    refuse_without_runtime_lora,
)
from adapterhub.vllm.unavailable import ReplicaUnavailableError

MAX_BODY_BYTES = 64 * 2**20
"""Of a whole answer, and of one line of a stream, whose first frame repeats the prompt's token ids."""
KEEP_ALIVE_SECONDS = 2.0
"""How long an idle connection is kept; vLLM closes it after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE)."""


@dataclass(frozen=True)
class Timeouts:
    """How long a vLLM server may take, in seconds.

    Attributes:
        connect: Until there is a connection.
        request: For an answer to anything but loading and completions.
        load: For loading an adapter.
        first_token: From a completion's request to its first token: it may wait in vLLM's queue.
        next_token: From one token to the next.
    """

    connect: float = 5.0
    request: float = 30.0
    load: float = 120.0
    first_token: float = 300.0
    next_token: float = 60.0


@dataclass(frozen=True)
class ServedModels:
    """What `/v1/models` says.

    Attributes:
        base: The name of the base, for requests without an adapter.
        root: What was given as `--model`: a folder or a hub id.
        max_model_len: Maximum number of tokens of a prompt and its completion together.
        adapters: Loaded adapters: name -> folder, as the server was told.
    """

    base: str
    root: str
    max_model_len: int
    adapters: Mapping[str, str]


class VLLMClient:
    """Talks to one vLLM server; for one event loop.

    Args:
        url: Such as `"http://host:8000"`; a `/v1` at its end is dropped.
        api_key: What the server was started with as `--api-key`.
        timeouts: How long it may take.

    Raises:
        ConfigError: The URL is not one of http or https, or holds a password.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeouts: Timeouts | None = None) -> None:
        self.url = checked_url(url)
        self.timeouts = timeouts or Timeouts()
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # No bound on connections: what is in flight is bounded by who calls.
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEP_ALIVE_SECONDS
            ),
            timeout=httpx.Timeout(None, connect=self.timeouts.connect),
        )

    async def models(self) -> ServedModels:
        """What the server has loaded.

        Raises:
            ReplicaUnavailableError: It cannot be reached.
            EngineError: It is no vLLM server, or wants a key.
        """
        answer = await self._ask("GET", "/v1/models", seconds=self.timeouts.request)
        if answer.status == 404:
            raise self._not_vllm()
        check(answer, self.url)
        try:
            cards = json.loads(answer.content)["data"]
            bases = [card for card in cards if not card.get("parent")]
            return ServedModels(
                base=str(bases[0]["id"]),
                root=str(bases[0].get("root") or bases[0]["id"]),
                max_model_len=int(bases[0]["max_model_len"]),
                adapters={str(card["id"]): str(card.get("root")) for card in cards if card.get("parent")},
            )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._not_vllm() from error

    def _not_vllm(self) -> EngineError:
        return EngineError(
            f"{self.url} does not answer /v1/models as vLLM does.",
            hint="Is it a vLLM server's URL, such as http://host:8000?",
        )

    async def load(self, name: str, folder: Path) -> None:
        """Loads an adapter under a name; done if it is loaded already.

        Args:
            name: Has to say which weights they are, for a name that is taken counts as loaded.
            folder: Where the server finds PEFT's files.

        Raises:
            AdapterIncompatibleError: vLLM refuses it: its rank or kind, or it does not fit the base.
            ConfigError: The server cannot read the folder, or does not load adapters while it runs.
            ReplicaUnavailableError: The server cannot be reached.
        """
        body = {"lora_name": name, "lora_path": str(folder.absolute())}
        answer = await self._ask("POST", "/v1/load_lora_adapter", body, seconds=self.timeouts.load)
        if answer.status == 400 and "already been loaded" in answer.reason:
            return
        if answer.status == 404:
            refuse_without_runtime_lora(answer, self.url)
            raise ConfigError(
                f"The vLLM server at {self.url} finds no adapter in the folder of {name}.",
                hint="Give it the registry's folder at the same path, such as a volume that both mount.",
            )
        if answer.status == 500 and await self.is_healthy():
            refuse_adapter(answer, name, self.url)
        check(answer, self.url)

    async def unload(self, name: str) -> None:
        """Unloads an adapter; done if it is not loaded.

        Raises:
            ConfigError: The server does not unload adapters while it runs.
            ReplicaUnavailableError: The server cannot be reached.
        """
        seconds = self.timeouts.request
        answer = await self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name}, seconds=seconds)
        if answer.status == 404:
            refuse_without_runtime_lora(answer, self.url)
            return
        check(answer, self.url)

    async def is_healthy(self) -> bool:
        """Whether `/health` says that the server can answer."""
        try:
            return (await self._ask("GET", "/health", seconds=self.timeouts.request)).status == 200
        except ReplicaUnavailableError:
            return False

    async def start_time(self) -> float | None:
        """When the server's process was started, in seconds since 1970; None if `/metrics` does not say.

        Raises:
            ReplicaUnavailableError: The server cannot be reached.
        """
        answer = await self._ask("GET", "/metrics", seconds=self.timeouts.request)
        for line in answer.content.decode(errors="replace").splitlines():
            if line.startswith("process_start_time_seconds "):
                with suppress(ValueError, LookupError):
                    return float(line.split()[1])
        return None

    async def complete(
        self, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[Mapping[str, Any]]:
        """The frames of a streamed completion.

        Closing the generator before its end closes the connection, and so ends the completion in vLLM. Who reads it to
        its end leaves the connection for the next request.

        Args:
            body: Of `/v1/completions`, with `stream`.
            headers: Further headers.

        Raises:
            AdapterNotLoadedError: The server does not have the model.
            InvalidRequestError: The server refuses the request.
            ReplicaUnavailableError: The server cannot be reached, is full, takes too long or went away.
            RequestTooLongError: Prompt and answer do not fit the context.
            EngineError: The server failed.
        """
        async with AsyncExitStack() as stack:
            async with self._within(self.timeouts.first_token):
                opened = self._open("POST", "/v1/completions", body, headers)
                response = await stack.enter_async_context(opened)
                if response.status_code != 200:
                    check_completion(await _answer(response), self.url)
                lines = _lines(response)
                frame = await self._next_frame(lines)
            while frame is not None:
                yield frame
                async with self._within(self.timeouts.next_token):
                    frame = await self._next_frame(lines)
            async with self._within(self.timeouts.next_token):
                async for _ in lines:  # the body's end, without which the connection cannot be used again
                    pass

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._http.aclose()

    async def _ask(self, method: str, path: str, body: Any = None, *, seconds: float) -> Answer:
        async with self._within(seconds), self._open(method, path, body) as response:
            return await _answer(response)

    def _open(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[httpx.Response]:
        return self._http.stream(method, path, json=body, headers=headers)

    async def _next_frame(self, lines: AsyncIterator[bytes]) -> Mapping[str, Any] | None:
        """The next frame of a stream; None at its end."""
        async for line in lines:
            if line.startswith(b"data:"):
                data = line.removeprefix(b"data:").strip()
                return None if data == b"[DONE]" else self._frame(data)
        raise ReplicaUnavailableError(f"{self.url} ended an answer before its end.", hint="Ask again.")

    def _frame(self, data: bytes) -> Mapping[str, Any]:
        try:
            frame = json.loads(data)
        except ValueError as error:
            raise EngineError(f"{self.url} streams what is not JSON.") from error
        if isinstance(frame, dict) and "error" not in frame:
            return frame
        raise EngineError(f"{self.url} failed in the middle of an answer: {reason(data)}", hint="Ask again.")

    @asynccontextmanager
    async def _within(self, seconds: float) -> AsyncIterator[None]:
        """Bounds the time, and turns what the connection raises into an error of this package."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise ReplicaUnavailableError(
                f"{self.url} has not answered for {seconds:g} s.", hint="Ask again, or give it more time."
            ) from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise ReplicaUnavailableError(
                f"{self.url} cannot be reached, or closed the connection ({type(error).__name__}).",
                hint="Is vLLM running there? Ask again when it is.",
            ) from error


async def _answer(response: httpx.Response) -> Answer:
    return Answer(response.status_code, await _read(response), response.headers.get("retry-after"))


async def _read(response: httpx.Response) -> bytes:
    content = bytearray()
    async for part in response.aiter_bytes():
        content += part
        _check_size(content, response)
    return bytes(content)


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of a stream; httpx's own have no bound."""
    line = bytearray()
    async for part in response.aiter_bytes():
        begun, *others = part.split(b"\n")
        line += begun
        _check_size(line, response)
        for other in others:
            yield bytes(line)
            line = bytearray(other)
    yield bytes(line)


def _check_size(content: bytearray, response: httpx.Response) -> None:
    if len(content) > MAX_BODY_BYTES:
        raise EngineError(f"{response.url.host} answers with more than {MAX_BODY_BYTES} bytes.")
