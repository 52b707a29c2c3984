"""Which runner a base gets: the fastest one that is proved to compute what the model computes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

from adapterhub.base.loading import Base
from adapterhub.engine.models.finding import has_llama_modules
from adapterhub.engine.runner import ScoringRunner
from adapterhub.engine.runners.batch_invariant import BatchInvariantRunner
from adapterhub.engine.runners.cuda_graphs import MakeGraph
from adapterhub.engine.runners.packed import PackedRunner
from adapterhub.engine.runners.proof import Prover
from adapterhub.engine.runners.row_by_row import RowRunner
from adapterhub.errors import ConfigError, EngineError

_log = logging.getLogger(__name__)

Kinds = Mapping[str, Callable[..., PackedRunner | RowRunner]]
"""What may run a base, by what it is called in reasons; the first one that is right is taken."""
_INVARIANT_HINT = (
    "Without batch_invariant it may be served; a base must be packed for it, and keep no states."
)


def make_runner(
    base: Base,
    *,
    max_loras: int,
    prove_base: bool = True,
    batch_invariant: bool = False,
    make_graph: MakeGraph | None = None,
) -> ScoringRunner:
    """Makes the fastest runner that computes what a base's model computes, and claims the base for it.

    Args:
        base: From `load_base`; the runner changes its model and owns it from then on.
        max_loras: Number of LoRA slots.
        prove_base: Compare each runner with the model's own forward pass, and take the next slower one where they
            differ by more than rounding. Without it, a runner that can be made is taken to be right.
        batch_invariant: Only a runner whose logits of a sequence do not depend on its company; see
            `BatchInvariantRunner`. It has no graphs.
        make_graph: Captures steps that decode, where the runner can be replayed; see `CudaGraphs`.

    Raises:
        EngineError: Another engine owns the base, or no runner computes its model; the base then has no owner.
        ConfigError: A variable such as `ADAPTERHUB_LORA_KERNELS` has a value that is not known.
    """
    base.claim()
    try:
        if batch_invariant:
            kinds, hint = _batch_invariant(base), _INVARIANT_HINT
        else:
            kinds, hint = _fastest_first(base, make_graph), _hint(base)
        runner = _first_right(base, kinds, max_loras, prove_base=prove_base, hint=hint)
        if make_graph and not runner.has_graphs:
            _log.warning("Base %s is served without CUDA graphs.", base.name)
        return runner
    except Exception:
        base.release()
        raise


def _first_right(
    base: Base, kinds: Kinds, max_loras: int, *, prove_base: bool, hint: str
) -> PackedRunner | RowRunner:
    prover = _prover(base, max_loras) if prove_base else None
    reasons: list[str] = []
    for name, kind in kinds.items():
        make = partial(kind, base, max_loras=max_loras)
        try:
            runner = prover.prove(make) if prover else make()
        except ConfigError:  # a setting that no runner can be made with
            raise
        except Exception as error:  # noqa: BLE001  whatever a model raises that a runner does not know
            reasons.append(f"{name}: {_reason(error)}")
            continue
        _tell(base, runner, reasons)
        return runner
    raise EngineError(
        f"A {type(base.model).__name__} cannot be served. {' '.join(reasons)}",
        hint=hint,
    )


def _fastest_first(base: Base, make_graph: MakeGraph | None) -> Kinds:
    """What may run a base; the native forward pass only where its model may have Llama's structure."""
    packed: dict[str, Callable[..., PackedRunner]] = {PackedRunner.name: partial(PackedRunner, native=False)}
    if has_llama_modules(base.model):
        packed = {f"{PackedRunner.name}, native": PackedRunner, **packed}
    graphs = {f"{name}, CUDA graphs": partial(make, make_graph=make_graph) for name, make in packed.items()}
    return {**(graphs if make_graph else {}), **packed, RowRunner.name: RowRunner}


def _batch_invariant(base: Base) -> Kinds:
    name = f"{PackedRunner.name}, batch invariant"
    by_transformers: Kinds = {name: partial(BatchInvariantRunner, native=False)}
    native: Kinds = {f"{name}, native": BatchInvariantRunner} if has_llama_modules(base.model) else {}
    return {**native, **by_transformers}


def _prover(base: Base, max_loras: int) -> Prover:
    try:
        return Prover(base, max_loras - 1)
    except Exception as error:
        raise EngineError(
            f"A {type(base.model).__name__} cannot be served: `generate` of transformers fails. {_reason(error)}",
            hint=_hint(base),
        ) from error


def _tell(base: Base, runner: PackedRunner | RowRunner, reasons: list[str]) -> None:
    """Logs which runner a base has, and why not a faster one."""
    if isinstance(runner, RowRunner):
        _log.warning(
            "Base %s is served row by row, a forward pass for each sequence: %s. %s",
            base.name,
            runner.continuation.value,
            " ".join(reasons),
        )
    else:
        _log.info(
            "Base %s is served %s, by the %s forward pass; proof: %s. %s",
            base.name,
            runner.name,
            runner.forward,
            runner.proof,
            " ".join(reasons),
        )


def _hint(base: Base) -> str:
    if base.quantization:  # Mamba reads weights that are quantised then
        return "Load it unquantised: quantization=None, --quantization none."
    return "Choose another causal language model as base."


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
