"""The application: `/v1/models`, loading and unloading of adapters, `/v1/completions`, `/health` and `/metrics`.

Its answer is EchoEngine's, `[model name] prompt`, one token a character; so a wrong adapter is seen in the text.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from adapterhub.engine.echo import EchoTokenizer
from tests.fake_vllm.completions import BadRequestError, Completion


class CutError(Exception):
    """Ends a connection in the middle of an answer."""


def echo(model: str, prompt: str) -> str:
    return f"[{model}] {prompt}"


@dataclass(eq=False)
class FakeVllm:
    """One server. Its fields are knobs that may be turned while it runs, and what it has counted.

    Attributes:
        base: `--served-model-name`.
        root: `--model`.
        max_model_len: Tokens of a prompt and its answer together.
        max_lora_rank: An adapter of a higher rank is refused with 500, as vLLM does.
        runtime_lora_updating: Whether VLLM_ALLOW_RUNTIME_LORA_UPDATING is set; without it loading is 404.
        api_key: `--api-key`.
        tokenizer: Encodes and decodes; characters by default.
        end_token_id: The base's end token, which ends an answer; None for none.
        answer: From model name and prompt to the answer.
        first_token_seconds: Time before an answer's first token.
        token_seconds: Time before each further one.
        load_seconds: Time that loading an adapter takes.
        unavailable: Whether it answers 503, also to `/health`.
        retry_after: The header `Retry-After` of those answers.
        cut_after: Tokens after which it closes the connection in mid-stream.
        fail_after: Tokens after which it sends an error frame in mid-stream.
        loaded: Adapters: name -> path.
        started: Time of its start, in seconds.
        bodies: The bodies of all completions it was asked for.
        headers: Their headers.
        connections: The ports of the clients from which they came: one for each connection.
        loads: How often each adapter was loaded.
        probes: How often it was asked for `/health`.
        in_flight: Completions that it generates now.
        max_in_flight: The most it had at once.
        aborted: Completions whose client left.
    """

    base: str = "base"
    root: str = "/models/echo"
    max_model_len: int = 8192
    max_lora_rank: int = 16
    runtime_lora_updating: bool = True
    api_key: str | None = None
    tokenizer: Any = field(default_factory=EchoTokenizer)
    end_token_id: int | None = None
    answer: Callable[[str, str], str] = echo
    first_token_seconds: float = 0.0
    token_seconds: float = 0.0
    load_seconds: float = 0.0
    unavailable: bool = False
    retry_after: str | None = None
    cut_after: int | None = None
    fail_after: int | None = None
    loaded: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    connections: set[int] = field(default_factory=set)
    loads: Counter[str] = field(default_factory=Counter)
    probes: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    aborted: int = 0

    def __post_init__(self) -> None:
        self._app = Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def restart(self) -> None:
        """Forgets what is loaded, as a process that is started again."""
        self.loaded.clear()
        self.started = max(time.time(), self.started + 1)

    # Routes

    async def _models(self, request: Request) -> Response:
        if not self._is_allowed(request):
            return _unauthorized()
        base = {"id": self.base, "root": self.root, "parent": None, "max_model_len": self.max_model_len}
        adapters = [
            {"id": name, "root": path, "parent": self.base, "max_model_len": None}
            for name, path in self.loaded.items()
        ]
        data = [{"object": "model", "owned_by": "vllm"} | card for card in (base, *adapters)]
        return JSONResponse({"object": "list", "data": data})

    async def _load(self, request: Request) -> Response:
        if not self.runtime_lora_updating:
            return JSONResponse({"detail": "Not Found"}, 404)
        if not self._is_allowed(request):
            return _unauthorized()
        body = await request.json()
        name, path = body.get("lora_name"), body.get("lora_path")
        if not name or not path:
            return _error(400, "Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput")
        if name == self.base:
            return _error(
                400, f"The lora adapter '{name}' conflicts with a served base model.", "InvalidUserInput"
            )
        if name in self.loaded:
            return _error(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        await asyncio.sleep(self.load_seconds)
        config = Path(path) / "adapter_config.json"
        if not config.is_file():
            return _error(404, f"Loading lora {name} failed: No adapter found for <path>", "NotFoundError")
        if reason := self._refusal(json.loads(config.read_text(encoding="utf-8"))):
            return _error(500, reason, "InternalServerError")
        self.loaded[name] = path
        self.loads[name] += 1
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    def _refusal(self, config: dict[str, Any]) -> str | None:
        rank = max([config.get("r", 8), *(config.get("rank_pattern") or {}).values()])
        if rank > self.max_lora_rank:
            return f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}."
        return "vLLM does not yet support DoRA." if config.get("use_dora") else None

    async def _unload(self, request: Request) -> Response:
        if not self.runtime_lora_updating:
            return JSONResponse({"detail": "Not Found"}, 404)
        if not self._is_allowed(request):
            return _unauthorized()
        name = (await request.json()).get("lora_name")
        if self.loaded.pop(name, None) is None:
            return _error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _complete(self, request: Request) -> Response:
        if not self._is_allowed(request):
            return _unauthorized()
        if self.unavailable:
            refused = _error(503, "The server is overloaded.", "ServiceUnavailableError")
            if self.retry_after:
                refused.headers["retry-after"] = self.retry_after
            return refused
        body = await request.json()
        self.headers.append(dict(request.headers))
        self.bodies.append(body)
        self.connections.add(request.client.port if request.client else 0)
        model = body.get("model")
        if model != self.base and model not in self.loaded:
            return _error(404, f"The model `{model}` does not exist.", "NotFoundError", "model")
        try:
            completion = Completion(
                body, self.tokenizer, self.answer, self.base, self.max_model_len, self.end_token_id
            )
        except BadRequestError as error:
            return _error(400, str(error), "BadRequestError", error.parameter)
        if body.get("stream"):
            return StreamingResponse(self._frames(completion), media_type="text/event-stream")
        async for _ in self._frames(completion):
            pass
        return JSONResponse(completion.whole())

    async def _health(self, request: Request) -> Response:
        self.probes += 1
        return Response(status_code=503 if self.unavailable else 200)

    async def _metrics(self, request: Request) -> Response:
        return PlainTextResponse(
            f"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {self.started!r}\n"
            f'vllm:num_requests_running{{engine="0",model_name="{self.base}"}} {self.in_flight}.0\n'
        )

    # Parts

    async def _frames(self, completion: Completion) -> Any:
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        finished = False
        try:
            await asyncio.sleep(self.first_token_seconds)
            for count, frame in enumerate(completion.chunks()):
                if count == self.cut_after:
                    raise CutError
                if count == self.fail_after:
                    yield _data(_body(500, "The engine failed.", "InternalServerError"))
                    break
                if self.token_seconds and count:
                    await asyncio.sleep(self.token_seconds)
                yield _data(frame)
            finished = True
            if usage := completion.usage_chunk():
                yield _data(usage)
            yield "data: [DONE]\n\n"
        finally:
            self.in_flight -= 1
            self.aborted += not finished

    def _is_allowed(self, request: Request) -> bool:
        return self.api_key is None or request.headers.get("authorization") == f"Bearer {self.api_key}"


def _data(frame: dict[str, Any]) -> str:
    return f"data: {json.dumps(frame)}\n\n"


def _unauthorized() -> Response:
    return JSONResponse({"error": "Unauthorized"}, HTTPStatus.UNAUTHORIZED)


def _body(code: int, message: str, kind: str, parameter: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}


def _error(code: int, message: str, kind: str, parameter: str | None = None) -> Response:
    return JSONResponse(_body(code, message, kind, parameter), code)
