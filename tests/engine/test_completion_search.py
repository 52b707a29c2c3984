"""The completion search finds an ending wherever one exists, and calls none impossible that it only did not find."""

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from adapterhub.engine.decoding.completion_search import CompletionSearch, NoCompletion
from adapterhub.engine.decoding.grammar_compiler import GrammarCompiler
from adapterhub.engine.output_format import OutputFormat
from tests.tiny import VOCABULARY, make_tokenizer

END = 2
STATES = 2_000  # as within an answer
Grammar = list[list[list[str | int]]]
"""For each rule its alternatives: lists of terminals and of numbers of rules. Rule 0 is the start."""


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(make_tokenizer(), VOCABULARY, {END})


def compile_schema(compiler: GrammarCompiler, schema: Any) -> tuple[LLMatcher, CompletionSearch]:
    output_format = OutputFormat.of(schema=schema)
    assert output_format is not None
    compiled = compiler.compile(output_format)
    return compiled.start, compiled.search


def assert_finds_endings(search: CompletionSearch, start: LLMatcher, text: str) -> None:
    """Finds and checks an ending after every prefix of a valid answer."""
    tokens: list[int] = []
    for token in [None, *make_tokenizer().encode(text)]:
        tokens += [] if token is None else [token]
        state = start.deep_copy()
        assert state.consume_tokens(tokens), (text, make_tokenizer().decode(tokens))
        ending = search.find(state, STATES)
        assert isinstance(ending, list), (text, make_tokenizer().decode(tokens), ending)
        assert start.deep_copy().validate_tokens([*tokens, *ending, END]) == len(tokens) + len(ending) + 1


def union(*alternatives: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [{"type": "object", "properties": properties} for properties in alternatives]}


UNIONS = {
    "any": (
        union({"minimum": {}}, {"rule": {}, "columns": {"type": "null"}, "minimum_rows": {}}),
        [{}, {"minimum": 1}, {"rule": "x"}, {"rule": [], "minimum_rows": {"a": 1}}, {"columns": None}],
    ),
    "shapes": (
        union(
            {"size": {"type": "integer"}},
            {"label": {"type": ["string", "null"]}, "size_x": {"type": "integer"}},
        ),
        [{}, {"size": 12}, {"label": "a", "size_x": -1}, {"label": None}, {"size_x": 0}],
    ),
    "lookalikes": (
        union({"ab": {"const": "a"}}, {"ab": {"const": "bb"}, "abc": {"enum": ["a", "ab", 1]}}),
        [{}, {"ab": "a"}, {"ab": "bb", "abc": 1}, {"abc": "ab"}],
    ),
}
"""Schemas with some of their values."""


class TestUnions:
    @pytest.mark.parametrize("name", UNIONS)
    @pytest.mark.parametrize("place", ["root", "property", "array", "open array"])
    def test_different_and_optional_fields(self, compiler, name, place):
        item, values = UNIONS[name]
        schema = {
            "root": item,
            "property": {"type": "object", "properties": {"p": item}, "required": ["p"]},
            "array": {"type": "array", "minItems": 1, "items": item},
            "open array": {"type": "object", "properties": {"list": {"type": "array", "items": item}}},
        }[place]
        start, search = compile_schema(compiler, schema)
        for value in values:
            answer = {
                "root": value,
                "property": {"p": value},
                "array": [value],
                "open array": {"list": [value]},
            }
            assert_finds_endings(search, start, json.dumps(answer[place], separators=(",", ":")))

    def test_every_alternative_of_a_recursive_union(self, compiler):
        node = {
            "anyOf": [
                {"type": "object", "properties": {"leaf": {"type": "integer"}}, "required": ["leaf"]},
                {
                    "type": "object",
                    "properties": {"left": {"$ref": "#/$defs/n"}, "right": {"$ref": "#/$defs/n"}},
                    "required": ["left"],
                },
            ]
        }
        start, search = compile_schema(compiler, {"$ref": "#/$defs/n", "$defs": {"n": node}})
        assert_finds_endings(
            search, start, '{"left":{"left":{"leaf":1},"right":{"leaf":-20}},"right":{"leaf":0}}'
        )


NAMES = st.lists(st.sampled_from(["a", "b", "ab", "abc", "size", "size_x"]), unique=True, max_size=4)


@st.composite
def schemas_and_values(draw: st.DrawFn, depth: int = 0) -> tuple[dict[str, Any], Any]:
    """A schema and a value that is valid under it."""
    kinds = ["enum", "integer", "string", "boolean"] + ["object", "array", "union"] * (depth < 3)
    nested = schemas_and_values(depth=depth + 1)
    match draw(st.sampled_from(kinds)):
        case "enum":
            values = draw(
                st.lists(st.sampled_from(["a", "ab", "b", 1, 12, None, True]), min_size=1, max_size=3)
            )
            return {"enum": values}, values[-1]
        case "integer":
            return {"type": "integer", "minimum": -20}, draw(st.integers(-20, 400))
        case "string":
            least = draw(st.integers(0, 3))
            return {"type": "string", "minLength": least}, draw(st.text('ab{"', min_size=least, max_size=6))
        case "boolean":
            return {"type": ["boolean", "null"]}, draw(st.sampled_from([True, False, None]))
        case "array":
            item, value = draw(nested)
            least, count = draw(st.integers(0, 2)), draw(st.integers(0, 2))
            return {"type": "array", "items": item, "minItems": least}, [value] * (least + count)
        case "object":
            members = {name: draw(nested) for name in draw(NAMES)}
            required = [name for name in members if draw(st.booleans())]
            present = [name for name in members if name in required or draw(st.booleans())]
            schema = {
                "type": "object",
                "properties": {name: member[0] for name, member in members.items()},
                "required": required,
            }
            return schema, {name: members[name][1] for name in present}
    alternatives = draw(st.lists(nested, min_size=2, max_size=3))
    return {"anyOf": [each[0] for each in alternatives]}, draw(st.sampled_from(alternatives))[1]


class TestAnyGrammar:
    @settings(max_examples=60)
    @given(case=schemas_and_values())
    def test_an_ending_after_every_prefix_of_a_valid_value(self, compiler, case):
        schema, value = case
        start, search = compile_schema(compiler, schema)
        assert_finds_endings(search, start, json.dumps(value, separators=(",", ":")))

    @settings(max_examples=12)
    @given(seed=st.integers(0, 2**32))
    def test_an_ending_wherever_the_rules_derive_one(self, compiler, seed):
        check_random_grammar(compiler, seed)

    @pytest.mark.slow
    @settings(max_examples=40)
    @given(seed=st.integers(0, 2**32))
    def test_an_ending_wherever_many_rules_derive_one(self, compiler, seed):
        check_random_grammar(compiler, seed)


def check_random_grammar(compiler: GrammarCompiler, seed: int) -> None:
    random_source = random.Random(seed)
    grammar = random_grammar(random_source)
    costs = shortest_derivations(grammar)
    ll_tokenizer, minimal_tokenizer = compiler._checked_vocabulary()
    start = LLMatcher(ll_tokenizer, LLMatcher.grammar_from_lark(written(grammar)), log_level=0)
    search = CompletionSearch(minimal_tokenizer, END)
    if math.isinf(costs[0]):
        assert start.is_error() or isinstance(search.find(start, 300), NoCompletion)
    elif not start.is_error():
        assert_finds_endings(search, start, derived(grammar, costs, random_source)[:10])


def random_grammar(source: random.Random) -> Grammar:
    count = source.randint(1, 5)
    symbols: list[str | int] = ["a", "b", "c", *range(count)]
    return [
        [source.choices(symbols, k=source.randint(1 - bool(number), 4)) for _ in range(source.randint(1, 3))]
        for number in range(count)
    ]


def shortest_derivations(grammar: Grammar) -> list[float]:
    """For each rule the characters of its shortest text, by Knuth's algorithm; infinite if it derives none.

    A rule costs a little too, so that following the cheapest alternatives ends.
    """
    costs = [math.inf] * len(grammar)
    for _ in range(len(grammar) + 1):
        costs = [min(cost_of(alternative, costs) for alternative in rule) for rule in grammar]
    return costs


def cost_of(alternative: list[str | int], costs: list[float]) -> float:
    return 0.001 + sum(1 if isinstance(symbol, str) else costs[symbol] for symbol in alternative)


def derived(
    grammar: Grammar, costs: list[float], source: random.Random, rule: int = 0, depth: int = 0
) -> str:
    """A random text of the grammar."""
    possible = [each for each in grammar[rule] if not math.isinf(cost_of(each, costs))]
    chosen = min(possible, key=lambda each: cost_of(each, costs)) if depth > 4 else source.choice(possible)
    return "".join(
        symbol if isinstance(symbol, str) else derived(grammar, costs, source, symbol, depth + 1)
        for symbol in chosen
    )


def written(grammar: Grammar) -> str:
    """The grammar in Lark."""
    alternatives = (
        " | ".join(
            " ".join(f'"{symbol}"' if isinstance(symbol, str) else f"r{symbol}" for symbol in each) or '""'
            for each in rule
        )
        for rule in grammar
    )
    return "\n".join(["start: r0", *(f"r{number}: {text}" for number, text in enumerate(alternatives))])


class TestNoCompletion:
    def find(self, compiler: GrammarCompiler, lark: str, states: int = STATES) -> list[int] | NoCompletion:
        ll_tokenizer, minimal_tokenizer = compiler._checked_vocabulary()
        start = LLMatcher(ll_tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0)
        return CompletionSearch(minimal_tokenizer, END).find(start, states)

    def test_a_proof_that_none_exists(self):
        # A base that can generate the first 13 tokens only has no letters.
        narrow = GrammarCompiler(make_tokenizer(), 13, {END})
        assert self.find(narrow, 'start: /[0-9]/ "z"') is NoCompletion.IMPOSSIBLE

    def test_a_search_that_reaches_its_limit_proves_nothing(self, compiler):
        assert self.find(compiler, 'start: "a" start') is NoCompletion.NOT_FOUND
        assert self.find(compiler, "start: /[a-z]{400}/", 20) is NoCompletion.NOT_FOUND
        assert isinstance(self.find(compiler, "start: /[a-z]{400}/", STATES), list)
