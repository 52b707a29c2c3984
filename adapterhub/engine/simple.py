"""The simple engine: one adapter for each forward pass, whole batches, no scheduler.

Requests are grouped by adapter, and each group is one padded batch. The lock is held for one forward pass at a
time, so two streams for different adapters take turns token by token. A pass selects its adapter, runs, and
unselects it whatever happens; no state outlives it.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import DynamicCache

from adapterhub.engine.interface import AdapterSource, Completion, Piece, Request, answer_budget
from adapterhub.engine.row import RowMaker
from adapterhub.errors import AdapterHubError, EngineError
from adapterhub.fingerprint import BaseFingerprint
from adapterhub.lora.layers import AdapterLayers
from adapterhub.lora.slots import TokenSlots
from adapterhub.lora.weights import load_deltas
from adapterhub.models import Base
from adapterhub.prompts import Tokenizer


class SimpleEngine:
    """Serves a base and its adapters, one adapter for each forward pass.

    Args:
        base: From `load_base`. The engine wraps its layers and is its only user from then on.
        max_cpu_loras: How many adapters stay loaded; the least recently used one is dropped.
        max_batch_size: Most answers generated together.
    """

    def __init__(self, base: Base, *, max_cpu_loras: int = 64, max_batch_size: int = 16) -> None:
        self._base = base
        self._layers = AdapterLayers(base.model, slots=max_cpu_loras + 64, dtype=base.compute_dtype)
        self._slots: dict[str, int] = {}
        self._free = list(range(max_cpu_loras + 64))
        self._shapes = base.linear_shapes
        self._rows = RowMaker(base)
        self._loaded: OrderedDict[str, None] = OrderedDict()  # digests, least recently used first
        self._users: Counter[str] = Counter()
        self._max_loaded = max_cpu_loras
        self._max_batch = max_batch_size
        self._lock = threading.Lock()
        self._closed = False

    @property
    def base_name(self) -> str:
        """The name of the base."""
        return self._base.name

    @property
    def fingerprint(self) -> BaseFingerprint:
        """What the base is."""
        return self._base.fingerprint

    @property
    def tokenizer(self) -> Tokenizer:
        """The base's tokenizer."""
        tokenizer: Tokenizer = self._base.tokenizer
        return tokenizer

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its answer together."""
        return self._base.context_length

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Answers every request; see `Engine.generate`."""
        for request in requests:
            answer_budget(request, self.context_length)
        answers: list[list[Completion]] = [[] for _ in requests]
        for group in _by_adapter(requests):
            rows = [(place, number) for place in group for number in range(requests[place].sampling.n)]
            for start in range(0, len(rows), self._max_batch):
                batch = rows[start : start + self._max_batch]
                completions = self._complete([(requests[place], number) for place, number in batch])
                for (place, _), completion in zip(batch, completions, strict=True):
                    answers[place].append(completion)
        return answers

    def stream(self, request: Request) -> Iterator[Piece]:
        """Answers one request piece by piece; see `Engine.stream`."""
        answer_budget(request, self.context_length)
        return (piece for step in self._decode([(request, 0)]) for _, piece in step)

    def close(self) -> None:
        """Forgets all adapters and refuses further requests."""
        with self._lock:
            self._closed = True
            for digest in self._loaded:
                self._layers.clear(self._slots[digest])
            self._loaded.clear()

    def _complete(self, rows: Sequence[tuple[Request, int]]) -> list[Completion]:
        pieces: list[list[Piece]] = [[] for _ in rows]
        for step in self._decode(rows):
            for index, piece in step:
                pieces[index].append(piece)
        return [Completion.of(row) for row in pieces]

    def _decode(self, requests: Sequence[tuple[Request, int]]) -> Iterator[list[tuple[int, Piece]]]:
        """Runs one batch for one adapter, yielding after each step what it added to which row."""
        adapter = requests[0][0].adapter
        rows = [self._rows.row(request, number) for request, number in requests]
        tokens, mask = self._padded([row.prompt for row in rows])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._base.model.config)
        with self._borrowed(adapter):
            while not all(row.finished for row in rows):
                logits = self._forward(adapter, tokens, mask, positions, cache)
                step = [(i, row.accept(logits[i])) for i, row in enumerate(rows) if not row.finished]
                yield step
                tokens = torch.tensor([[row.tokens[-1]] for row in rows], device=self._base.device)
                mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
                # A row that has ended is computed along until all have; its place must still be one the base has.
                positions = (positions[:, -1:] + 1).clamp(max=self.context_length - 1)

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask of shape (rows, longest prompt), padded on the left."""
        width, pad = max(map(len, prompts)), self._base.tokenizer.pad_token_id or 0
        tokens = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        return torch.tensor(tokens, device=self._base.device), torch.tensor(mask, device=self._base.device)

    def _forward(
        self,
        adapter: AdapterSource | None,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        cache: DynamicCache,
    ) -> torch.Tensor:
        """Logits of the last position, shape (rows, vocabulary)."""
        with self._lock, self._layers.using(self._tokens_of(adapter, tokens)), torch.inference_mode():
            self._refuse_if_closed()
            output = self._base.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    @contextmanager
    def _borrowed(self, adapter: AdapterSource | None) -> Iterator[None]:
        """Keeps an adapter loaded while an answer needs it."""
        if adapter is None:
            yield
            return
        with self._lock:
            self._refuse_if_closed()
            self._load(adapter)
            self._users[adapter.digest] += 1
        try:
            yield
        finally:
            with self._lock:
                self._users[adapter.digest] -= 1
                self._evict()

    def _load(self, adapter: AdapterSource) -> None:
        if adapter.digest not in self._loaded:
            model, dtype = self._base.model, self._base.compute_dtype
            try:
                deltas = load_deltas(adapter.folder, model, self._shapes, dtype=dtype)
            except AdapterHubError as error:
                raise type(error)(
                    f"{adapter.name} cannot be served. {error.message}", hint=error.hint
                ) from error
            self._slots[adapter.digest] = self._free.pop()
            self._layers.load(self._slots[adapter.digest], deltas)
            self._loaded[adapter.digest] = None
        self._loaded.move_to_end(adapter.digest)

    def _evict(self) -> None:
        """Drops least recently used adapters that no running answer needs."""
        idle = [digest for digest in self._loaded if not self._users[digest]]
        for digest in idle[: max(len(self._loaded) - self._max_loaded, 0)]:
            self._layers.clear(self._slots[digest])
            self._free.append(self._slots.pop(digest))
            del self._loaded[digest], self._users[digest]

    def _tokens_of(self, adapter: AdapterSource | None, tokens: torch.Tensor) -> TokenSlots | None:
        if adapter is None:
            return None
        return TokenSlots([(self._slots[adapter.digest], tokens.numel())], device=self._base.device)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise EngineError("The engine is closed.", hint="Make a new hub.")


def _by_adapter(requests: Sequence[Request]) -> list[list[int]]:
    groups: dict[str | None, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(request.adapter.digest if request.adapter else None, []).append(place)
    return list(groups.values())
