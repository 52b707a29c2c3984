"""The engine over llama.cpp: our scheduler, sampler, grammars and streaming around its forward passes."""

from __future__ import annotations

import weakref

from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine, adapter_loader
from adapterhub.engine.generation_config import GenerationConfigSource
from adapterhub.llama_cpp.base import GgufBase
from adapterhub.llama_cpp.runner import LlamaCppRunner


class LlamaCppEngine(BatchingEngine):
    """Serves a GGUF file and its adapters; see `Engine`. Any thread may call any method.

    Adapters come from their PEFT folders, as for `BatchingEngine`, and blends are exact. llama.cpp has no DoRA, and no
    adapter of an output layer that is tied to the embedding: requests for these are refused. The memory for keys and
    values is allocated now.

    Args:
        base: From `load_gguf_base`. The engine owns it from then on.
        limits: Maximum sizes; see `EngineLimits`. At most 248 sequences in one step.
        generation_config: As for `BatchingEngine`.

    Raises:
        ConfigError: A limit is above llama.cpp's.
        EngineError: There is not enough memory for keys and values, or another engine owns the base.
    """

    def __init__(
        self,
        base: GgufBase,
        limits: EngineLimits | None = None,
        *,
        generation_config: GenerationConfigSource = "auto",
    ) -> None:
        limits = limits or EngineLimits()
        self._llama = LlamaCppRunner(base, limits)
        # Of an engine that nobody has closed; not at exit, where a daemon thread may still compute.
        self._free = weakref.finalize(self, self._llama.close)
        self._free.atexit = False
        super().__init__(
            base,
            limits,
            runner=self._llama,
            load_adapter=adapter_loader(base, limits),
            generation_config=generation_config,
        )

    def close(self) -> None:
        """Ends all sequences with `EngineClosedError` and frees the model; may be called twice."""
        super().close()
        if not self._is_forked:
            self._call(self._llama.close)
