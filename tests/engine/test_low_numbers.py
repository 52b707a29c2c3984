"""Numbers that llguidance recurses without end at are refused before it sees them."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from adapterhub.base.locating import DEMO_BASE, locate_base
from adapterhub.engine.decoding.grammar_compiler import GrammarCompiler
from adapterhub.engine.output_format import OutputFormat
from adapterhub.errors import InvalidRequestError

LOWEST = -(2**63)


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    tokenizer = AutoTokenizer.from_pretrained(locate_base(DEMO_BASE))
    return GrammarCompiler(tokenizer, len(tokenizer), [tokenizer.eos_token_id])


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "const": LOWEST},
        {"type": "integer", "const": LOWEST + 1},  # as a number of 53 bits it is the same
        {"type": "integer", "const": -(10**400)},
        {"type": "integer", "enum": [1, -1e300]},
        {"type": "integer", "minimum": -1e300, "maximum": -1e299},
        {"items": {"type": "integer"}, "const": [-1e19]},
        {"additionalProperties": {"type": "integer", "enum": [LOWEST - 1, True]}},
    ],
    ids=json.dumps,
)
def test_too_low(compiler: GrammarCompiler, schema: dict[str, object]):
    with pytest.raises(InvalidRequestError, match="too low"):
        compiler.compile(OutputFormat.of(schema=schema))
    with pytest.raises(InvalidRequestError, match="too low"):
        compiler.compile(OutputFormat.of(grammar=f"start: %json {json.dumps(schema)}"))


@pytest.mark.parametrize("number", [LOWEST + 1024, -(10**18), -1, 2**63, 10**25])
def test_low_enough(compiler: GrammarCompiler, number: int):
    compiler.compile(OutputFormat.of(schema={"type": "integer", "const": number}))


def test_digits_of_a_text_are_no_number(compiler: GrammarCompiler):
    compiler.compile(OutputFormat.of(schema={"enum": ["part-99999999999999999999"]}))
