"""The table of what each back end runs: one row for a feature of an adapter, one column for a back end.

Read from vLLM 0.32 and SGLang 0.5.23; the sources name their files. The columns of this package's own engines say what
`adapterhub.peft_format`, `adapterhub.base` and `adapterhub.gguf` refuse, and tests hold them to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from adapterhub.capabilities.features import Feature


class Backend(StrEnum):
    """What can run adapters."""

    IN_PROCESS = "in-process"
    LLAMA_CPP = "llama.cpp"
    VLLM = "vllm"
    SGLANG = "sglang"


class Remedy(StrEnum):
    """What makes an adapter fit a back end that does not run it as it is."""

    PLAIN = "plain"
    """Rewrite it with one rank and one scaling for all layers, which is exact."""
    SVD = "svd"
    """Approximate it by LoRA of a lower rank, or without DoRA, with an error that is measured."""
    MERGE = "merge"
    """Merge it into the base, and serve the result as a base."""
    NONE = "none"
    """Train another adapter, or convert it in the tool that made it."""


@dataclass(frozen=True)
class Support:
    """What a back end does with a feature.

    Attributes:
        runs: Whether it runs adapters that have the feature.
        note: Why not; or on which condition.
        remedy: What makes such an adapter fit.
        source: The file that shows it.
    """

    runs: bool
    note: str = ""
    remedy: Remedy = Remedy.NONE
    source: str = ""


VLLM_MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values of vLLM's `--max-lora-rank` (vllm/config/lora.py, MaxLoRARanks)."""
HIGHEST_RANK: Mapping[Backend, int | None] = {
    Backend.IN_PROCESS: None,
    Backend.LLAMA_CPP: None,
    Backend.VLLM: VLLM_MAX_LORA_RANKS[-1],
    Backend.SGLANG: None,
}
"""The highest rank that a back end can be started for; None if there is no limit."""

_HELPER, _NAMES = "vllm/lora/peft_helper.py", "vllm/lora/utils.py"
_CONFIG, _FURTHER = "adapterhub/peft_format/config.py", "adapterhub/base/further_fit.py"
_GGUF = "adapterhub/gguf/adapter.py"
_SGLANG, _SGLANG_POOL = "sglang/srt/lora/lora.py", "sglang/srt/lora/mem_pool.py"
_MIXTURE = "adapterhub/base/parameters.py"
_SERVERS = (Backend.VLLM, Backend.SGLANG)
BLENDS_IN_ENGINE = frozenset({Backend.IN_PROCESS, Backend.LLAMA_CPP})
"""The back ends that blend adapters for a request; the others are given the blend as an adapter."""
_BASE_CHANGED = "its training changed the base's weights too (init_lora_weights)"


def _row(in_process: Support, llama_cpp: Support, vllm: Support, sglang: Support) -> dict[Backend, Support]:
    return dict(zip(Backend, (in_process, llama_cpp, vllm, sglang), strict=True))


def _runs(source: str, note: str = "") -> Support:
    return Support(True, note, source=source)


def _not(note: str, remedy: Remedy, source: str) -> Support:
    return Support(False, note, remedy, source)


def _no_back_end(what: str, *silent: Backend) -> dict[Backend, Support]:
    """A row of what no back end runs.

    Args:
        what: Why not.
        silent: The servers that do not refuse it, but load the rest of the adapter and answer wrongly.
    """
    sources = (_CONFIG, _CONFIG, _HELPER, _SGLANG)
    notes = (f"{what}, which it passes over in silence" if backend in silent else what for backend in Backend)
    return _row(*(_not(note, Remedy.NONE, source) for note, source in zip(notes, sources, strict=True)))


def _linear_layers_only(what: str, in_process: Support, vllm: Support) -> dict[Backend, Support]:
    """A row of a change that llama.cpp and SGLang do not have."""
    return _row(in_process, _not(what, Remedy.MERGE, _GGUF), vllm, _not(what, Remedy.MERGE, _SGLANG))


MATRIX: Mapping[Feature, Mapping[Backend, Support]] = {
    Feature.RSLORA: _row(
        _runs(_CONFIG),
        _runs(_GGUF),
        _runs(_HELPER),
        _not("its scaling is alpha / sqrt(r), and this engine's always alpha / r", Remedy.PLAIN, _SGLANG),
    ),
    Feature.RANK_PATTERN: _row(
        _runs(_CONFIG),
        _runs(_GGUF),
        _runs(_HELPER),
        _not("layers have ranks of their own (rank_pattern)", Remedy.PLAIN, _SGLANG),
    ),
    Feature.ALPHA_PATTERN: _row(
        _runs(_CONFIG),
        _runs(_GGUF),
        _runs(_HELPER),
        _not("layers have scalings of their own (alpha_pattern)", Remedy.PLAIN, _SGLANG),
    ),
    Feature.DORA: _row(
        _runs(_CONFIG, "not on embeddings and experts"),
        _not("it uses DoRA", Remedy.SVD, _GGUF),
        _not("it uses DoRA", Remedy.SVD, _HELPER),
        _not("it uses DoRA", Remedy.SVD, _SGLANG),
    ),
    Feature.BIAS: _row(
        _runs("adapterhub/base/copied_weights.py", "where its biases are the base's"),
        _runs("adapterhub/base/copied_weights.py", "where its biases are the base's"),
        _not("its config trains biases (bias)", Remedy.PLAIN, _HELPER),
        _not("its config trains biases (bias)", Remedy.PLAIN, _SGLANG),
    ),
    Feature.COPIED_WEIGHTS: _row(
        _runs("adapterhub/base/copied_weights.py", "where they are the base's"),
        _runs("adapterhub/base/copied_weights.py", "where they are the base's"),
        _not("its file holds weights of the base", Remedy.PLAIN, _NAMES),
        _not("its file holds weights of the base", Remedy.PLAIN, _SGLANG),
    ),
    Feature.EMBEDDINGS: _row(
        _runs(_FURTHER),
        _not("it changes an embedding", Remedy.MERGE, _GGUF),
        _runs(_NAMES, "where the model has `embedding_modules`, as Llama and Qwen3"),
        _runs(_SGLANG_POOL),
    ),
    Feature.MODULES_TO_SAVE: _linear_layers_only(
        "it replaces whole modules (modules_to_save)",
        _runs(_FURTHER, "linear layers, embeddings and plain norms"),
        _not("it replaces whole modules (modules_to_save)", Remedy.MERGE, _HELPER),
    ),
    Feature.TRAINABLE_TOKENS: _linear_layers_only(
        "it replaces rows of tokens (trainable_token_indices)",
        _runs(_FURTHER),
        _not("it replaces rows of tokens (trainable_token_indices)", Remedy.MERGE, _NAMES),
    ),
    Feature.TARGET_PARAMETERS: _linear_layers_only(
        "it adapts parameters of the base (target_parameters)",
        _runs(_MIXTURE, "those of a mixture's experts and router"),
        _not(
            "it adapts parameters of the base (target_parameters), which it takes for few models",
            Remedy.MERGE,
            _NAMES,
        ),
    ),
    Feature.EXPERTS: _row(
        _runs(_MIXTURE),
        _not("it adapts single experts of a mixture", Remedy.MERGE, _GGUF),
        _runs(_NAMES, "where the model has its experts apart"),
        _not("it adapts single experts of a mixture, which was not tried there", Remedy.MERGE, _SGLANG_POOL),
    ),
    Feature.LORA_BIAS: _no_back_end("its lora_B has a bias (lora_bias)", Backend.SGLANG),
    Feature.BASE_CHANGING_INIT: _no_back_end(_BASE_CHANGED, Backend.SGLANG),
    Feature.LORA_GA: {
        **_no_back_end(_BASE_CHANGED, Backend.SGLANG),
        Backend.VLLM: _runs(_HELPER, "as plain LoRA"),
    },
    Feature.ALORA: _no_back_end("it acts on a part of the tokens only (activated LoRA)", Backend.SGLANG),
    Feature.LAYER_REPLICATION: _no_back_end(
        "it repeats layers of the base (layer_replication)", Backend.SGLANG
    ),
    Feature.BDLORA: _no_back_end("its matrices are block-diagonal (BD-LoRA)", Backend.SGLANG),
    Feature.QALORA: _no_back_end("it pools its inputs (QA-LoRA)", Backend.SGLANG),
    Feature.ARROW: _no_back_end("it routes between adapters inside the layer (Arrow)", *_SERVERS),
    Feature.KASA: _no_back_end("it changes the base's weights (KaSA)", *_SERVERS),
    Feature.MONTECLORA: _no_back_end("it samples its weights (MonteCLoRA)", *_SERVERS),
    Feature.OTHER_METHOD: _no_back_end("its kind is not LoRA (peft_type)"),
    Feature.OTHER_TASK: _no_back_end("it was not made for generating text (task_type)", *_SERVERS),
}
"""Feature -> back end -> what it does with it."""
