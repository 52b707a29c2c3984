"""The contenders of the benchmarks: each starts a batch of equally long prompts, then decodes one token a row."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from peft import PeftModel
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig

from adapterhub.base.half_weights import HalfWeightLinear, halve_head
from adapterhub.base.loading import Base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.interface import Request, TokenOutput
from adapterhub.engine.kv.cache import MIN_SLOT_TOKENS
from adapterhub.engine.kv.shape import KVShape
from adapterhub.engine.runners.row_by_row import RowRunner
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.lora.request import StoredLoraRequest

Prompts = Sequence[Sequence[int]]


def kv_room_mib(base: Base, rows: int, tokens: int) -> int:
    """The `kv_cache_mib` that an engine needs for `rows` concurrent sequences of `tokens` tokens, prompts included."""
    shape = KVShape.of(base.model.config.get_text_config(), base.compute_dtype, base.device)
    slot_tokens = 1 << (max(tokens, MIN_SLOT_TOKENS) - 1).bit_length()
    # A quarter of it is for the prefix cache.
    return max(EngineLimits.kv_cache_mib, -(-4 * rows * slot_tokens * shape.bytes_per_token // (3 << 20)) + 1)


class Contender(Protocol):
    """Greedy decoding of one batch."""

    def start(self, prompts: Prompts, adapters: Sequence[StoredLoraRequest | None], steps: int) -> None:
        """Prefills prompts of one length, each for its adapter, with room for `steps` decode steps."""

    def step(self) -> None:
        """Gives every row its next token."""

    def stop(self) -> None:
        """Frees the batch."""


def twin(base: Base) -> Base:
    """The same weights in a model of its own, which an engine or PEFT may wrap."""
    shared = {id(parameter): parameter for parameter in base.model.parameters()}
    model = copy.deepcopy(base.model, shared)
    if isinstance(base.model.get_output_embeddings(), HalfWeightLinear):
        halve_head(model)  # a copied layer is a plain one
    return dataclasses.replace(base, model=model)


def load_peft(base: Base, adapters: Sequence[StoredLoraRequest]) -> PeftModel:
    """PEFT's model with adapters, in the dtype of their files."""
    first, *others = adapters
    model = PeftModel.from_pretrained(
        base.model, first.folder, adapter_name=first.name, autocast_adapter_dtype=False
    )
    for adapter in others:
        model.load_adapter(adapter.folder, adapter.name, autocast_adapter_dtype=False)
    return model.eval()


class StaticBatch:
    """A plain forward of transformers over a static batch: no row joins or leaves.

    Args:
        model: transformers' or PEFT's model.
        mixed: Pass PEFT each row's adapter; else the first row's is set for all, if it has one.
    """

    def __init__(self, model: Any, *, mixed: bool = False) -> None:
        self._model = model
        self._mixed = mixed

    def start(self, prompts: Prompts, adapters: Sequence[StoredLoraRequest | None], steps: int) -> None:
        names = [adapter.name if adapter else "__base__" for adapter in adapters]
        self._named = {"adapter_names": names} if self._mixed else {}
        if not self._mixed and adapters[0]:
            self._model.set_adapter(adapters[0].name, inference_mode=True)
        self._cache = DynamicCache(config=self._model.config)
        self._tokens = torch.tensor(prompts, device=self._model.device)
        self.step()

    @torch.inference_mode()
    def step(self) -> None:
        output = self._model(
            input_ids=self._tokens, past_key_values=self._cache, logits_to_keep=1, **self._named
        )
        self._tokens = output.logits.argmax(-1)

    def stop(self) -> None:
        del self._cache, self._tokens

    @property
    def tokens(self) -> list[int]:
        """What the last step gave each row."""
        return self._tokens[:, 0].tolist()


class PeftSwitching:
    """PEFT without mixed batches: the rows of each adapter are a batch of their own, and every step switches."""

    def __init__(self, model: PeftModel) -> None:
        self._model = model

    def start(self, prompts: Prompts, adapters: Sequence[StoredLoraRequest | None], steps: int) -> None:
        self._batches = []
        for adapter in dict.fromkeys(adapters):
            own = [prompt for prompt, other in zip(prompts, adapters, strict=True) if other is adapter]
            batch = StaticBatch(self._model)
            batch.start(own, [adapter] * len(own), steps)
            self._batches.append((adapter, batch))

    def step(self) -> None:
        for adapter, batch in self._batches:
            self._model.set_adapter(adapter.name, inference_mode=True)
            batch.step()

    def stop(self) -> None:
        self._batches.clear()


class Ours:
    """A whole step of the engine: scheduling, forward, sampling, text.

    Args:
        base: Its own; see `twin`.
        adapters: Loaded when it is made.
        rows: Maximum rows of a batch.
        tokens: Maximum tokens of each row, prompt included.
        row_by_row: As for a base that cannot be computed in packed steps.
        use_cuda_graph: Steps that decode are captured in CUDA graphs.
        async_scheduling: Such a step is queued before the tokens of the one before are sampled.
    """

    def __init__(
        self,
        base: Base,
        adapters: Sequence[StoredLoraRequest],
        rows: int,
        tokens: int,
        *,
        row_by_row: bool = False,
        use_cuda_graph: bool = False,
        async_scheduling: bool = False,
    ) -> None:
        limits = EngineLimits(
            max_loras=max(1, len(adapters)),
            max_cpu_loras=max(1, len(adapters)),
            max_batch_size=max(1, rows),
            max_num_batched_tokens=max(512, 2 * rows),
            kv_cache_mib=kv_room_mib(base, rows, tokens),
        )
        runner = RowRunner(base, max_loras=limits.max_loras) if row_by_row else None
        self.engine = BatchingEngine(
            base,
            limits,
            runner=runner,
            use_cuda_graph=use_cuda_graph,
            async_scheduling=async_scheduling,
        )
        once = SamplingParams(max_tokens=1)
        self.engine.generate([Request([1, 2, 3], adapter, once) for adapter in adapters])
        self._streams: list[Iterator[TokenOutput]] = []

    def start(self, prompts: Prompts, adapters: Sequence[StoredLoraRequest | None], steps: int) -> None:
        last = len(prompts) - 1
        # Starting a row takes one step, in which the rows before it decode a token: they start that much shorter, so
        # that all are equally long when the last one has started.
        self._streams = [
            self.engine.stream(
                Request(
                    prompt[last - index :],
                    adapter,
                    SamplingParams(max_tokens=steps + last - index + 2, ignore_eos=True),
                )
            )
            for index, (prompt, adapter) in enumerate(zip(prompts, adapters, strict=True))
        ]
        for stream in self._streams:
            next(stream)

    def step(self) -> None:
        # Its next token takes one step of all rows; the other streams' tokens are queued.
        next(self._streams[-1])

    def stop(self) -> None:
        for stream in self._streams:
            stream.close()  # type: ignore[attr-defined]
        self._streams.clear()


class TransformersContinuous:
    """transformers' own continuous batching, with a cache of the size needed, driven from this thread.

    As shipped it runs in a thread of its own, which costs more; see `adapterhub.engine.scheduling.leader_follower`.
    """

    PAGE = 32

    def __init__(self, base: Base, rows: int, tokens: int) -> None:
        pages = rows * (2 + tokens // self.PAGE)
        config = ContinuousBatchingConfig(
            page_size=self.PAGE, num_blocks=pages, max_batch_tokens=rows * tokens, max_requests_per_batch=rows
        )
        self._model = base.model
        self._manager = base.model.init_continuous_batching(
            GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0), config
        )
        self._processor = self._manager._create_batch_processor()

    def start(self, prompts: Prompts, adapters: Sequence[StoredLoraRequest | None], steps: int) -> None:
        self._requests = [
            self._manager.add_request(list(prompt), max_new_tokens=steps + 2, eos_token_id=-1)
            for prompt in prompts
        ]
        self.step()

    def step(self) -> None:
        if not self._processor.prepare_next_batch():
            raise RuntimeError("There is nothing to do.")
        self._processor._generation_step(self._model)
        self._processor.update_batch()

    def stop(self) -> None:
        for request in self._requests:
            self._manager.cancel_request(request)
        self._processor.prepare_next_batch()
