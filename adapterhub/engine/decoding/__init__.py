"""From logits to text: sampling, incremental detokenization, structured output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.engine.decoding.detokenizer import IncrementalDetokenizer
    from adapterhub.engine.decoding.grammar_compiler import GrammarCompiler
    from adapterhub.engine.decoding.grammar_constraint import CompiledGrammar, GrammarConstraint
    from adapterhub.engine.decoding.sampler import Logits, Sampler

__all__ = [
    "CompiledGrammar",
    "GrammarCompiler",
    "GrammarConstraint",
    "IncrementalDetokenizer",
    "Logits",
    "Sampler",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "CompiledGrammar": "adapterhub.engine.decoding.grammar_constraint",
        "GrammarCompiler": "adapterhub.engine.decoding.grammar_compiler",
        "GrammarConstraint": "adapterhub.engine.decoding.grammar_constraint",
        "IncrementalDetokenizer": "adapterhub.engine.decoding.detokenizer",
        "Logits": "adapterhub.engine.decoding.sampler",
        "Sampler": "adapterhub.engine.decoding.sampler",
    },
)
