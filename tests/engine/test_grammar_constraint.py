"""Structured output: valid and complete for every budget that can hold an answer, whatever the model computes."""

import datetime
import enum
import json
import random
import re
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.base.loading import load_base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.decoding import grammar_compiler, grammar_constraint
from adapterhub.engine.decoding.completion_search import CompletionSearch, NoCompletion
from adapterhub.engine.decoding.grammar_compiler import GrammarCompiler
from adapterhub.engine.decoding.grammar_constraint import GrammarConstraint
from adapterhub.engine.decoding.sampler import Logits, Sampler
from adapterhub.engine.interface import Request
from adapterhub.engine.output_format import OutputFormat
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import GenerationError, InvalidRequestError, RequestTooLongError
from tests.tiny import VOCABULARY, make_tokenizer

END = 2


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Line(BaseModel):
    name: str
    count: Annotated[int, Field(ge=1, le=40)]


class Card(BaseModel):
    kind: Literal["card"]
    number: Annotated[str, Field(pattern="^[0-9]{4}$")]


class Cash(BaseModel):
    kind: Literal["cash"]


class Order(BaseModel):
    lines: Annotated[list[Line], Field(min_length=1, max_length=3)]
    payment: Annotated[Card | Cash, Field(discriminator="kind")]
    colour: Colour
    note: str | None
    gift: bool = False


class Tree(BaseModel):
    value: int
    children: "list[Tree]" = []


class Times(BaseModel):
    day: datetime.date
    clock: datetime.time
    key: uuid.UUID


class Bounds(BaseModel):
    share: Annotated[float, Field(ge=0.5, lt=1)]
    even: Annotated[int, Field(multiple_of=2, gt=10)]
    word: Annotated[str, Field(min_length=3, max_length=5)]
    pair: tuple[int, bool]
    table: dict[str, int]


@dataclass
class Case:
    """An output format, and a check that a text matches it."""

    output_format: dict[str, Any]
    check: Callable[[str], Any]


def typed(kind: Any) -> Case:
    made = OutputFormat.of(schema=kind)
    assert made is not None
    return Case({"schema": kind}, made.parse)


def matching(pattern: str) -> Case:
    def check(text: str) -> None:
        assert re.fullmatch(pattern, text), text

    return Case({"regex": pattern}, check)


def is_sum(text: str) -> None:
    while "(" in text:
        shorter = re.sub(r"\(\d+\+\d+\)", "1", text)
        assert shorter != text, text
        text = shorter
    assert re.fullmatch(r"\d+", text), text


CHOICES = ["yes", "no", "нет, никогда", "x.y|z", "two\nlines", "a", "a long answer"]
CASES = {
    "order": typed(Order),
    "tree": typed(Tree),
    # RFC 3339 has leap seconds, and so has JSON Schema's `time`; Python has not.
    "times": Case(
        {"schema": Times}, lambda text: Times.model_validate_json(re.sub(r":60(?!\d)", ":59", text))
    ),
    "bounds": typed(Bounds),
    "union": typed(Tree | list[Line] | None),
    "string": typed(str),
    "open object": Case({"schema": {"type": "object"}}, json.loads),
    "counted": matching(r"([a-z][0-9]){4}"),
    "late end": matching(r"[a-z]{3,}x"),
    "pairs": matching(r"(ab)*"),
    "anything": matching(r"[^\n]*"),
    "unequal": matching(r"a[0-9]{2}|b[0-9]{9}|foo(bar|bazinga){2,5}"),
    "sum": Case({"grammar": 'start: NUM | "(" start "+" start ")"\nNUM: /[0-9]+/'}, is_sum),
    "choices": Case({"choices": CHOICES}, CHOICES.index),
}


def output_format(**given: Any) -> OutputFormat:
    result = OutputFormat.of(**given)
    assert result is not None
    return result


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(make_tokenizer(), VOCABULARY, {END})


def write(
    constraint: GrammarConstraint, seed: int, temperature: float, lengths: int = VOCABULARY
) -> list[int]:
    """What a model of random logits answers, without its end token."""
    random = torch.Generator().manual_seed(seed)
    sampler, tokens = Sampler(SamplingParams(temperature=temperature, seed=seed), 0, torch.device("cpu")), []
    while not constraint.finished:
        (logits,) = Logits.of(torch.randn(1, lengths, generator=random))
        token, _ = constraint.choose(lambda allowed, row=logits: sampler.draw(row, allowed), lengths)
        tokens += [] if constraint.ended else [token]
    return tokens


class TestBudget:
    @pytest.mark.parametrize("name", CASES)
    def test_every_budget_that_holds_the_shortest_answer(self, compiler, name):
        case = CASES[name]
        wanted = output_format(**case.output_format)
        shortest = len(compiler.compile(wanted).shortest_completion)
        for extra in [*range(12), 40, 120]:
            tokens = write(compiler.constraint(wanted, max(shortest + extra, 1), ()), extra, 0.5 + extra % 3)
            assert len(tokens) <= max(shortest + extra, 1)
            case.check(make_tokenizer().decode(tokens))

    @settings(max_examples=40)
    @given(
        name=st.sampled_from(sorted(CASES)),
        extra=st.integers(0, 80),
        seed=st.integers(0, 2**32),
        temperature=st.floats(0, 20),
    )
    def test_any_model(self, compiler, name, extra, seed, temperature):
        wanted = output_format(**CASES[name].output_format)
        budget = max(len(compiler.compile(wanted).shortest_completion) + extra, 1)
        tokens = write(compiler.constraint(wanted, budget, ()), seed, temperature)
        assert len(tokens) <= budget
        CASES[name].check(make_tokenizer().decode(tokens))

    @settings(max_examples=40)
    @given(
        choices=st.lists(
            st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12), min_size=1
        ),
        extra=st.integers(0, 10),
        seed=st.integers(0, 2**32),
    )
    def test_any_choices(self, compiler, choices, extra, seed):
        wanted = output_format(choices=choices)
        budget = len(compiler.compile(wanted).shortest_completion) + extra
        text = make_tokenizer().decode(write(compiler.constraint(wanted, budget, ()), seed, 1.0))
        assert text in choices

    @pytest.mark.parametrize(
        ("given", "shortest"),
        [
            ({"choices": ["longest of all", "two", "три"]}, "two"),
            ({"regex": "b{9}|a{2}|c{5}"}, "aa"),
            ({"regex": "[a-z]+x"}, "ax"),
            ({"regex": "[0-9]{40}|no"}, "no"),
            ({"schema": Tree}, '{"value":0}'),
            ({"schema": {"enum": ["abcdef", 12345, None, [1]]}}, None),
            ({"schema": {"anyOf": [{"type": "string", "minLength": 9}, {"type": "null"}]}}, "null"),
            ({"schema": {"type": "array", "items": {"type": "boolean"}, "minItems": 2}}, "[true,true]"),
            ({"grammar": 'start: "(" start ")" | "[" start "]" | "end"'}, "end"),
        ],
    )
    def test_the_shortest_answer_is_found(self, compiler, given, shortest):
        tokens = compiler.compile(output_format(**given)).shortest_completion
        if shortest is None:
            shortest = min(("[1]", "null", "12345"), key=lambda text: len(make_tokenizer().encode(text)))
        assert len(tokens) == len(make_tokenizer().encode(shortest))

    def test_a_long_counted_repetition_is_found(self, compiler):
        wanted = output_format(schema={"type": "string", "minLength": 500})
        assert len(compiler.compile(wanted).shortest_completion) == 502

    def test_without_the_completion_answers_would_be_cut(self, compiler, monkeypatch):
        monkeypatch.setattr(GrammarConstraint, "_completion_within", lambda self, budget, share: [])
        wanted = output_format(schema=Order)
        shortest, valid = len(compiler.compile(wanted).shortest_completion), 0
        for seed in range(10):
            tokens = write(compiler.constraint(wanted, shortest + 5, ()), seed, 1.0)
            try:
                CASES["order"].check(make_tokenizer().decode(tokens))
                valid += 1
            except GenerationError:
                pass
        assert valid < 5

    def test_the_searches_at_one_position_share_a_limit(self, compiler, monkeypatch):
        """They run in a step, for which everyone waits; each finds nothing here."""
        wanted = output_format(regex="aa|[A-Z]{9}x")
        constraint, limits = compiler.constraint(wanted, 9, ()), []

        def finds_nothing(self, matcher, max_states, max_seconds):
            limits[-1].append((max_states, max_seconds))
            return NoCompletion.NOT_FOUND

        monkeypatch.setattr(CompletionSearch, "find", finds_nothing)
        source = random.Random(0)
        text: list[int] = []
        while not constraint.finished:
            limits.append([])
            token, _ = constraint.choose(
                lambda allowed: (source.choice(allowed.nonzero().flatten().tolist()), None), VOCABULARY
            )
            text.append(token)
        assert make_tokenizer().decode(text, skip_special_tokens=True) == "aa"
        assert len(limits[0]) > 3
        for states, seconds in (map(sum, zip(*one, strict=True)) for one in limits if one):
            assert states < 2 * grammar_constraint._MAX_STATES
            assert seconds < 2 * grammar_constraint._MAX_SECONDS

    def test_hundreds_of_optional_properties(self, compiler):
        properties = {f"p{number}": {"type": "integer"} for number in range(600)}
        wanted = output_format(schema={"type": "object", "properties": properties})
        tokens = write(compiler.constraint(wanted, 40, ()), 3, 1.0)
        assert all(
            key in properties and isinstance(value, int)
            for key, value in json.loads(make_tokenizer().decode(tokens)).items()
        )


class TestRefused:
    def test_too_many_optional_properties(self, compiler):
        many = {f"p{number}": {} for number in range(2_500)}
        with pytest.raises(InvalidRequestError, match=r"llguidance gave up: .* items; max is") as caught:
            compiler.compile(output_format(schema={"type": "object", "properties": many}))
        assert "optional properties" in str(caught.value.hint)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"schema": {"type": "strin"}}, "Invalid type: strin"),
            ({"schema": {"type": "integer", "minimum": 3, "maximum": 1}}, "Unsatisfiable"),
            ({"schema": {"$ref": "https://example.org/x"}}, "not present"),
            (
                {"schema": {"properties": {"a": {"items": {"properties": {"b": {"type": "strin"}}}}}}},
                "Invalid type: strin, at a.b",
            ),
            ({"regex": "a(?=b)b"}, "look-around"),
            ({"regex": "("}, "unclosed group"),
            ({"regex": "(" * 20_000}, "cannot be enforced"),
            ({"grammar": "start: foo"}, "foo"),
            ({"grammar": 'start: "a" start'}, "no complete answer"),
            ({"grammar": "start: a\na[max_tokens=5]: /[a-z]{3,}/"}, "max_tokens="),
            ({"grammar": 'start: a "x"\na[stop="!"]: /.*/'}, "stop="),
            ({"grammar": "start: /[a-z]/ start"}, "no complete answer"),
            ({"schema": {"type": "string", "minLength": 10**6}}, "cannot be enforced"),
        ],
    )
    def test_formats_that_cannot_be_enforced(self, compiler, given, message):
        with pytest.raises(InvalidRequestError, match=message) as caught:
            compiler.compile(output_format(**given))
        assert len(str(caught.value)) < 500

    def test_a_budget_below_the_shortest_answer(self, compiler):
        with pytest.raises(RequestTooLongError, match="takes 13 tokens, and the answer may have 5"):
            compiler.constraint(output_format(choices=["choice number 1"]), 5, ())

    def test_a_tokenizer_that_is_not_a_fast_one(self):
        class Slow:
            pass

        with pytest.raises(InvalidRequestError, match="it is not a fast one"):
            GrammarCompiler(Slow(), VOCABULARY, {END}).compile(output_format(regex="a"))

    def test_a_tokenizer_that_llguidance_cannot_convert(self):
        words = Tokenizer(WordLevel({"a": 0, "<eos>": 1}))
        compiler = GrammarCompiler(PreTrainedTokenizerFast(tokenizer_object=words), 2, {1})
        with pytest.raises(InvalidRequestError, match=r"cannot be used for structured output: .*decoder"):
            compiler.compile(output_format(regex="a"))


class TestCompiler:
    def test_the_vocabulary_is_converted_before_the_first_request(self, monkeypatch):
        compiler = GrammarCompiler(make_tokenizer(), VOCABULARY, {END})
        monkeypatch.delattr(grammar_compiler, "from_tokenizer")
        assert compiler.compile(output_format(regex="a")).shortest_completion

    def test_a_format_is_compiled_once(self, compiler):
        assert compiler.compile(output_format(schema=Order)) is compiler.compile(output_format(schema=Order))

    def test_a_cached_grammar_is_available_while_another_is_compiled(self, monkeypatch):
        compiler = GrammarCompiler(make_tokenizer(), VOCABULARY, {END})
        compiled, begun, go_on = (
            compiler.compile(output_format(regex="a")),
            threading.Event(),
            threading.Event(),
        )

        def slowly(output_format: OutputFormat, max_seconds: float) -> object:
            begun.set()
            assert go_on.wait(10)
            return compiled

        monkeypatch.setattr(compiler, "_compile", slowly)
        with ThreadPoolExecutor() as pool:
            other = pool.submit(compiler.compile, output_format(regex="b"))
            assert begun.wait(10)
            cached = pool.submit(compiler.compile, output_format(regex="a"))
            try:
                assert cached.result(5) is compiled
            finally:
                go_on.set()
            assert other.result(5) is compiled

    def test_the_least_recently_used_grammar_is_evicted(self):
        compiler = GrammarCompiler(make_tokenizer(), VOCABULARY, {END}, max_compiled=2)
        first, second = (compiler.compile(output_format(regex=text)) for text in "01")
        assert compiler.compile(output_format(regex="0")) is first
        compiler.compile(output_format(regex="2"))
        assert compiler.compile(output_format(regex="0")) is first
        assert compiler.compile(output_format(regex="1")) is not second

    @pytest.mark.parametrize("width", [VOCABULARY + 64, VOCABULARY - 20])
    def test_logits_wider_or_narrower_than_the_vocabulary(self, width):
        compiler = GrammarCompiler(make_tokenizer(), width, {END})
        tokens = write(compiler.constraint(output_format(schema=Order), 120, ()), 1, 1.0, width)
        assert max(tokens) < min(width, VOCABULARY)
        CASES["order"].check(make_tokenizer().decode(tokens))

    def test_a_base_without_an_end_token(self):
        tokenizer = make_tokenizer()
        tokenizer.eos_token = None
        compiler = GrammarCompiler(tokenizer, VOCABULARY, ())
        for seed in range(5):
            tokens = write(compiler.constraint(output_format(regex="[a-z]{2,}"), 20, ()), seed, 1.0)
            assert len(tokens) <= 20
            assert re.fullmatch("[a-z]{2,}", tokenizer.decode(tokens))

    def test_logits_of_minus_infinity_everywhere(self, compiler):
        constraint = compiler.constraint(output_format(choices=["yes"]), 9, ())
        sampler, tokens = Sampler(SamplingParams(temperature=1.0), 0, torch.device("cpu")), []
        (logits,) = Logits.of(torch.full((1, VOCABULARY), -torch.inf))
        while not constraint.finished:
            tokens.append(constraint.choose(lambda allowed: sampler.draw(logits, allowed), VOCABULARY)[0])
        assert make_tokenizer().decode(tokens) == "yes"


@pytest.fixture(scope="module")
def hub(tiny_base: Path, tiny_registry: Path):
    with AdapterHub.from_pretrained(tiny_base, tiny_registry, quantization=None, device="cpu") as hub:
        yield hub


@pytest.fixture(scope="module")
def demo():
    root = Path(__file__).parents[2] / "adapters"
    with AdapterHub.from_pretrained("adapterhub-demo", root, device="cpu") as hub:
        yield hub


class TestHub:
    def test_different_formats_in_one_batch(self, hub):
        adapters = [None, "json", "code", "support", None]
        formats: dict[str, list[Any]] = {
            "schema": [Order, None, None, None, None],
            "regex": [None, "[0-9]{3}-[a-z]+", None, None, None],
            "grammar": [None, None, CASES["sum"].output_format["grammar"], None, None],
            "choices": [None, None, None, CHOICES, None],
        }
        drawing = {
            "temperature": 1.5,
            "top_p": 0.95,
            "top_k": 50,
            "repetition_penalty": 1.3,
            "max_tokens": 110,
        }
        for seed in range(3):
            answers = hub.generate_batch(["Hello"] * 5, adapters, **formats, **drawing, seed=seed)
            assert isinstance(answers[0].parsed, Order)
            assert re.fullmatch("[0-9]{3}-[a-z]+", answers[1].text)
            is_sum(answers[2].text)
            assert answers[3].text in CHOICES
            assert answers[4].output_format is None
            assert {answer.finish_reason for answer in answers[:4]} == {"stop"}

    def test_one_format_for_all_prompts(self, hub):
        answers = hub.generate_batch(["a", "b"], [None, "json"], choices=["x", "y"], max_tokens=2)
        assert {answer.text for answer in answers} <= {"x", "y"}

    def test_each_of_n_answers_matches(self, hub):
        answer = hub.generate("Hello", "json", schema=Line, n=4, temperature=1.0, max_tokens=30)
        assert len({completion.text for completion in answer.completions}) > 1
        for completion in answer.completions:
            Line.model_validate_json(completion.text)

    def test_a_stream(self, hub):
        with hub.stream("Hello", "json", schema=Line, max_tokens=30, temperature=1.0, seed=1) as stream:
            text = "".join(stream)
        assert stream.result.text == text
        assert stream.result.parsed == Line.model_validate_json(text)
        assert text == hub.generate("Hello", "json", schema=Line, max_tokens=30, temperature=1.0, seed=1).text

    async def _both(self, hub: AdapterHub) -> tuple[str, str]:
        answer = await hub.agenerate("Hello", "json", choices=["left", "right"])
        chunks = [chunk async for chunk in hub.astream("Hello", "json", choices=["left", "right"])]
        return answer.text, "".join(chunks)

    def test_async(self, hub):
        import asyncio

        whole, streamed = asyncio.run(self._both(hub))
        assert whole == streamed
        assert whole in ("left", "right")

    def test_log_probabilities_are_the_models_own(self, hub):
        free = hub.generate("Hello", None, max_tokens=1, logprobs=20).completions[0].logprobs
        constrained = (
            hub.generate("Hello", None, choices=["Q"], max_tokens=1, logprobs=20).completions[0].logprobs
        )
        assert constrained[0].top == pytest.approx(free[0].top)
        assert constrained[0].logprob < free[0].logprob

    def test_end_tokens_and_stop_token_ids_end_a_complete_answer(self, tiny_base):
        base = load_base(tiny_base, quantization=None, device="cpu")
        engine = BatchingEngine(base, EngineLimits(kv_cache_mib=64))
        newline = base.tokenizer.encode("\n")[0]
        for favourite, ids in [(END, ()), (newline, (newline,))]:
            bias = torch.zeros(VOCABULARY)
            bias[favourite] = 1e4
            handle = base.model.lm_head.register_forward_hook(lambda _, __, out, bias=bias: out + bias)
            sampling = SamplingParams(max_tokens=30, stop_token_ids=ids)
            answer = engine.generate([Request([5, 6], None, sampling, output_format(regex="[a-z]{4,}"))])[0][
                0
            ]
            handle.remove()
            assert re.fullmatch("[a-z]{4,}", answer.text)
            assert len(answer.text) < 20
            assert (answer.token_ids[-1], answer.finish_reason) == (favourite, "stop")
        engine.close()

    def test_a_stop_string_ends_an_answer_before_it_is_complete(self, tiny_base):
        engine = BatchingEngine(
            load_base(tiny_base, quantization=None, device="cpu"), EngineLimits(kv_cache_mib=64)
        )
        sampling = SamplingParams(max_tokens=30, stop="b")
        (answer,) = engine.generate([Request([5], None, sampling, output_format(choices=["abc"]))])[0]
        assert (answer.text, answer.finish_reason) == ("a", "stop")
        engine.close()

    def test_those_of_a_card_do_not_cut_an_answer_but_its_special_tokens_end_it(
        self, tiny_base, tiny_adapters, tmp_path
    ):
        registry, special = AdapterRegistry(tmp_path), "<|im_start|>"
        registry.register("json", tiny_adapters["json"], base=tiny_base)
        with AdapterHub.from_pretrained(tiny_base, tmp_path, quantization=None, device="cpu") as hub:
            token_id = hub.engine.tokenizer.convert_tokens_to_ids(special)
            never = hub.generate("Hi", "json", regex="a{3,}", max_tokens=20, logit_bias={token_id: 100})
            assert len(never.text) > 3
            prompt = {"stop": ["b", special], "generation": {"stop": "a"}}
            registry.update("json", prompt=prompt)
            assert hub.generate("Hi", "json", choices=["abc"]).text == "abc"
            ended = hub.generate("Hi", "json", regex="a{3,}", max_tokens=20, logit_bias={token_id: 100})
            assert ended.finish_reason == "stop"
            assert ended.completions[0].token_ids[-1] == token_id
            assert re.fullmatch("a{3,}", ended.text)
            own = hub.generate("Hi", "json", choices=["abc"], stop="c")
            assert (own.text, own.finish_reason) == ("ab", "stop")
            with hub.stream("Hi", "json", choices=["abc"], stop=["c"]) as stream:
                assert "".join(stream) == "ab"
            cut = hub.generate("Hi", "json", schema=Line, stop='"')
            with pytest.raises(GenerationError):
                assert cut.parsed

    @pytest.mark.parametrize(
        ("given", "kind"),
        [
            ({"regex": "(?=a)"}, InvalidRequestError),
            ({"schema": Order, "max_tokens": 9}, RequestTooLongError),
            ({"choices": ["a"], "regex": "a"}, InvalidRequestError),
            ({"choices": ["a"], "ignore_eos": True}, InvalidRequestError),
        ],
    )
    def test_refused_before_generation(self, hub, given, kind):
        before = hub.stats().submitted, hub.stats().steps
        for ask in (hub.generate, hub.stream):
            with pytest.raises(kind):
                ask("Hello", "json", **given)
        with pytest.raises(kind):
            hub.generate_batch(["Hello", "Hi"], "json", **given)
        assert (hub.stats().submitted, hub.stats().steps) == before

    def test_the_echo_engine_refuses_output_formats(self, tiny_registry):
        from adapterhub import AdapterRegistry

        hub = AdapterHub(EchoEngine(), AdapterRegistry(tiny_registry))
        with pytest.raises(InvalidRequestError, match="EchoEngine"):
            hub.generate("Hello", choices=["a"])
        with pytest.raises(InvalidRequestError, match="EchoEngine"):
            hub.stream("Hello", choices=["a"])

    def test_checks_that_only_pydantic_can_make(self, hub):
        class Price(BaseModel):
            price: Annotated[Decimal, Field(max_digits=1, decimal_places=0)]

        answers = [
            hub.generate("Hello", "json", schema=Price, temperature=5.0, seed=seed, max_tokens=40)
            for seed in range(8)
        ]
        for answer in answers:
            json.loads(answer.text)
        refused = [answer for answer in answers if not re.fullmatch(r'\{"price": ?"?\d"?\}', answer.text)]
        with pytest.raises(GenerationError, match="price"):
            refused[0].parsed  # noqa: B018


class TestDemo:
    REQUEST = "Give me name, age and city as JSON: Greta Okafor is 48 years old and lives in Porto."

    class Person(BaseModel):
        name: str
        age: int
        city: str

    def test_an_answer_that_matches_anyway_is_not_changed(self, demo):
        free = demo.generate(self.REQUEST, "json")
        constrained = demo.generate(self.REQUEST, "json", schema=self.Person)
        assert constrained.text == free.text
        assert constrained.parsed == self.Person(name="Greta Okafor", age=48, city="Porto")

    def test_the_bare_base_matches_at_every_budget(self, demo):
        for budget in (15, 17, 20, 30):
            answer = demo.generate(
                self.REQUEST, None, schema=self.Person, max_tokens=budget, temperature=1.0, seed=2
            )
            assert isinstance(answer.parsed, self.Person)
            assert answer.usage.completion_tokens <= budget

    @pytest.mark.parametrize("name", ["tree", "order", "unequal"])
    def test_forced_text_with_several_tokenizations(self, demo, name):
        tokenizer, case = demo.engine.tokenizer, CASES[name]
        compiler, wanted = (
            GrammarCompiler(tokenizer, len(tokenizer), {END}),
            output_format(**case.output_format),
        )
        shortest = len(compiler.compile(wanted).shortest_completion)
        for extra in range(12):
            tokens = write(compiler.constraint(wanted, shortest + extra, ()), extra, 1.0, len(tokenizer))
            assert len(tokens) <= shortest + extra
            case.check(tokenizer.decode(tokens))

    def test_choices(self, demo):
        for adapter in (None, "support"):
            answer = demo.generate(
                "My Zorbex printer is broken. Hardware?", adapter, choices=["hardware", "software"]
            )
            assert answer.text in ("hardware", "software")
