# ruff: noqa: E501  templates on one line
"""Chat templates render as in transformers, and within limits whatever they do."""

import asyncio
import re
from typing import Any

import pytest

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine, SamplingParams
from adapterhub.errors import InvalidRequestError, RequestTooLongError
from adapterhub.requests import template_limits
from adapterhub.requests.chat_template import render_template
from adapterhub.requests.encoding import PromptEncoder
from adapterhub.requests.prompts import choose_style, render
from tests.requests.test_control_tokens import ATTACK, TEMPLATES, accepted, control, encode, tokenizer_for
from tests.tiny import make_tokenizer

TURNS = [{"role": "user", "content": "abc " * 50}]
LARGE = {
    "product": "{{ 'a' * 2000000000 }}",
    "product of a list": "{{ [1] * 2000000000 }}",
    "product of a tuple": "{{ (1,) * 2000000000 }}",
    "product without a text": "{{ [[]] * 2000000000 }}",
    "number": "{{ 10 ** (10 ** 9) }}",
    "squares": "{% set ns = namespace(x=7) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "sums": "{% set ns = namespace(x='abc') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "joins": "{% set ns = namespace(x='abc') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "list sums": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "nested lists": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "nested tuples": "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ ns.x | tojson }}",
    "nested mappings": "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x }}",
    "nested namespaces": "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = namespace(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
    "dict": "{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
    "set blocks": "{% set ns = namespace(x='abc') %}{% for i in range(60) %}{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = x %}{% endfor %}",
    "a loop in a block": "{% set x = 'a' * 1000000 %}{% set y %}{% for i in range(100000) %}{{ x }}{% endfor %}{% endset %}",
    "literals in a block": "{% set y %}{% for i in range(100000) %}" + "x" * 5000 + "{% endfor %}{% endset %}",
    "macros": "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{{ " + "m(" * 60 + "'abc'" + ")" * 60 + " }}",
    "format": "{{ '%2000000000d' % 1 }}",
    "format with a star": "{{ '%*d' % (2000000000, 1) }}",
    "format method": "{{ '{:2000000000}'.format(1) }}",
    "nested format": "{{ '{:{}}'.format(1, 2000000000) }}",
    "format filter": "{{ '%2000000000d' | format(1) }}",
    "many formats": "{{ ('%(a)s' * 100000) % {'a': 'a' * 100000} }}",
    "many format fields": "{{ ('{0}' * 100000).format('a' * 100000) }}",
    "many fields of a map": "{{ ('{a}' * 100000).format_map({'a': 'a' * 100000}) }}",
    "many fields of a filter": "{{ ('%(a)s' * 100000) | format(a='a' * 100000) }}",
    "ljust": "{{ 'a'.ljust(2000000000) }}",
    "zfill": "{{ 'a'.zfill(2000000000) }}",
    "center": "{{ 'a'.center(2000000000) }}",
    "attr": "{{ ('a' | attr('rjust'))(2000000000) }}",
    "center filter": "{{ 'a' | center(2000000000) }}",
    "expandtabs": "{{ ('\t' * 1000000).expandtabs(100000) }}",
    "replace": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "replace nothing": "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
    "replace filter": "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "join": "{{ ('b' * 1000000).join(['a'] * 100000) }}",
    "join filter": "{{ (['a'] * 100000) | join('b' * 1000000) }}",
    "join of the same": "{{ ''.join(['a' * 1000000] * 100000) }}",
    "translate": "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
    "indent": "{{ ('a\n' * 1000000) | indent(10000) }}",
    "indent with a text": "{{ ('a\n' * 1000000) | indent('b' * 1000000) }}",
    "json indent": "{{ ([[[[[1]]]]] * 100000) | tojson(indent=10000) }}",
    "bytes": "{{ (1).to_bytes(2000000000, 'big') }}",
    "batch": "{{ [1] | batch(2000000000, 'x') | list }}",
    "slice": "{{ [1] | slice(2000000000) | list }}",
    "sum": "{{ ([[1] * 10000] * 10000) | sum(start=[]) }}",
    "round": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "numbers": "{% set n = ('9' * 4000) | int %}{{ ([n] * 100000) | string }}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "printed list": "{% set x = ['a' * 1000000] * 4 %}{{ x }}{{ [x] * 1000 }}",
    "recursion": "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    "many texts": "".join("{% set x" + str(i) + " = 'a' * 3999999 %}" for i in range(100)),
    "texts in namespaces": "{% for n in [" + "namespace()," * 100 + "] %}{% set n.x = '\U0001f642' * 3999999 %}{% endfor %}",
    "many slices": "{% set x = 'a' * 3999999 %}" + "".join("{% set x" + str(i) + " = x[1:] %}" for i in range(100)),
    "many reversed texts": "{% set x = 'a' * 3999999 %}" + "".join("{% set x" + str(i) + " = x | reverse %}" for i in range(100)),
    "list of a text": "{{ ('a' * 3999999) | list | length }}",
    "date": "{{ strftime_now('%9999d' * 500000) }}",
    "json separators": "{{ (range(99999) | list) | tojson(separators=('a' * 1000000, ':')) }}",
    "bits": "{{ ('1' * 3999999) | int(0, 2) // (('1' * 1999999) | int(0, 2)) }}",
    "bits of a literal": "{% set x = 0x" + "f" * 90000 + " // 3 %}",
    "rfind": "{{ ('a' * 2000000).rfind('ab' ~ 'a' * 1000000) }}",
    "rsplit": "{{ ('a' * 2000000).rsplit('ab' ~ 'a' * 1000000) }}",
    "strip": "{{ ('a' * 2000000).strip('b' * 2000000 ~ 'a') }}",
    "trim": "{{ ('a' * 2000000) | trim('b' * 2000000 ~ 'a') }}",
    "numbers of one hash": "{{ dict.fromkeys(range(0, 2305843009213693951 * 99999, 2305843009213693951)) }}",
    "deep": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "long": "x" * 300_000,
}  # fmt: skip
"""Templates that would make a large text, list or number, or compare for hours in one step."""
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}BODY{% endfor %}{% endfor %}"
ENDLESS = {
    "empty": LOOP.replace("BODY", ""),
    "assignments": LOOP.replace("BODY", "{% set x = 1 %}"),
    "calls": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursive loop": "{% for a in [[1, 2]] recursive %}{{ loop([a, a]) if loop.depth < 60 }}{{ loop([a, a]) if loop.depth < 60 }}{% endfor %}",
    "filters": "{% for a in range(99999) %}{% set x = range(99999) | list %}{% endfor %}",
    "comparisons": "{% set x = 'a' * 1000000 %}{% for a in range(99999) %}{% if x in x %}{% endif %}{{ '' if x == x + '' }}{% endfor %}",
    "tests": "{% set l = range(100000, 199999) | list %}{{ range(99999) | select('in', l) | list }}",
    "searches": "{% set x = range(99999) | list %}" + "{% if -1 in x %}{% endif %}" * 500,
    "map": "{% for a in range(99999) %}{{ range(99999) | map('string') | list | length }}{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_no_large_value_is_made(name: str):
    with pytest.raises(InvalidRequestError, match="chat template"):
        render(TURNS, choose_style(LARGE[name]), make_tokenizer(), max_characters=4_000_000)


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_template_ends(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(template_limits, "MAX_RENDER_SECONDS", 0.1)
    with pytest.raises(InvalidRequestError, match=re.escape("exceeds a limit: it takes more than 0.1 s")):
        render(TURNS, choose_style(ENDLESS[name]), make_tokenizer())


def test_a_long_message_of_a_template_is_cut():
    with pytest.raises(InvalidRequestError) as caught:
        render(TURNS, choose_style("{{ raise_exception('a' * 1000000) }}"), make_tokenizer())
    assert 100 < len(str(caught.value)) < 1000


@pytest.mark.parametrize("expression", [
    "''.__class__.__mro__", "messages.__class__", "namespace.__init__.__globals__", "namespace(_x=1)",
    "dict.__class__", "raise_exception.__globals__", "cycler.__init__.__globals__", "messages.append(1)",
    "self.__init__", "{}.update({'a': 1})", "'{0.__class__}'.format('a')",
])  # fmt: skip
def test_the_sandbox(expression: str):
    source = f"{{% set x = {expression} %}}{{{{ x }}}}"
    try:
        text = render_template(source, {"messages": TURNS})
    except Exception:  # noqa: BLE001  refused
        return
    assert text == "", "an unsafe attribute is undefined"


def test_values_are_plain_data():
    class Text(str):
        def secret(self) -> str:
            return "secret"

    source = "{{ messages[0].content.secret }}|{{ messages[0].extra }}"
    turns = [{"role": "user", "content": Text("a"), "extra": object()}]
    assert render(turns, choose_style(source), make_tokenizer()) == "|<object>"


@pytest.mark.parametrize("name", TEMPLATES)
def test_published_templates_are_far_from_the_limits(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(template_limits, "MAX_RENDER_SECONDS", 1.0)
    monkeypatch.setattr(template_limits, "_MAX_VALUE_CHARACTERS", 20_000)
    tokenizer = tokenizer_for(TEMPLATES[name])
    messages, tools, _ = accepted(tokenizer, "x")
    assert render(messages, choose_style(TEMPLATES[name]), tokenizer, tools=tools, max_characters=20_000)


def test_a_long_conversation_renders():
    turn = [{"role": "user", "content": "one? " * 100}, {"role": "assistant", "content": "two " * 100}]
    tokenizer = make_tokenizer()
    text = render([*turn * 500, turn[0]], choose_style(tokenizer.chat_template), tokenizer)
    assert text.count("<|im_start|>") == 1002


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for a in [1, 2] %}{{ loop.index }}{{ loop.last }}{% endfor %}", "1False2True"),
        ("{% for a in messages | selectattr('role', 'equalto', 'user') %}{{ loop.length }}{% endfor %}", "1"),
        ("{% for k, v in {'a': 1, 'b': (2, 3)}.items() %}{{ k ~ v }}{% endfor %}", "a1b(2, 3)"),
        ("{% for a in range(9) %}{% if a == 2 %}{% break %}{% endif %}{{ a }}{% endfor %}", "01"),
        ("{% for a in [] %}{% else %}none{% endfor %}{% for a in nothing %}x{% endfor %}", "none"),
        ("{% macro m(a, b=[1]) %}{{ a }}{{ b }}{{ caller() if caller }}{% endmacro %}{% call m(1) %}x{% endcall %}", "1[1]x"),
        ("{% generation %}{% set a = 1 %}{{ a }}{% endgeneration %}{{ a }}", "1"),
        ("{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ namespace(self=3).self }}", "23"),
        ("{{ 'a,b'.split(',') | join('-') }}{{ '%s-%d' % ('x', 3) }}{{ '{:>3}'.format(1) }}{{ 'a' * 3 }}", "a-bx-3  1aaa"),
        ("{{ {'a': 'é<', 'b': [1]} | tojson }}{{ [1] | tojson(indent=2) }}", '{"a": "é<", "b": [1]}[\n  1\n]'),
        ("{{ [3, 1] | sort | first }}{{ [1, 2] | sum }}{{ 'x' | default('y') }}{{ zz | default('y') }}", "13xy"),
        ("{% set x %}{% for a in 'ab' %}{{ a }}{% endfor %}{% endset %}{{ x | upper }}{{ dict(a=1).a }}", "AB1"),
        ("{{ 'abcd'[1:3] }}{{ [1, 2, 3][::-1] }}{{ 'ab' | reverse }}{{ [1, 2] | reverse | list }}", "bc[3, 2, 1]ba[2, 1]"),
        ("{{ 'a' in 'ab' }}{{ 3 not in [1] }}{{ 1 is in [1] }}{{ x is defined }}{{ 4 is divisibleby 2 }}", "TrueTrueTrueFalseTrue"),
        ("{% for a in range(1, 6, 2) %}{{ a }}{% endfor %}{{ ' ab '.strip() }}{{ 'aba'.rfind('a') }}{{ 'xab' | trim('x') }}", "135ab2ab"),
        ("{{ strftime_now('%%') }}{{ dict.fromkeys(['a'], 1) }}{{ 7 // 2 }}{{ 2 ** 10 }}{{ -1 % 3 }}", "%{'a': 1}310242"),
    ],
)  # fmt: skip
def test_the_language_is_that_of_transformers(source: str, text: str):
    tokenizer = make_tokenizer(chat_template=source)
    assert render(TURNS, choose_style(source), tokenizer) == text
    assert tokenizer.apply_chat_template(TURNS, tokenize=False) == text


def test_json_with_escapes():
    template = "{% for m in messages %}{{ m.content | tojson(ensure_ascii=True) }}<|im_end|>{% endfor %}"
    tokenizer = make_tokenizer(chat_template=template)
    token_ids = encode(tokenizer, [{"role": "user", "content": ATTACK + "é🙂"}], None)
    assert control(tokenizer, token_ids) == ["<|im_end|>"]
    assert "udb80" not in tokenizer.decode(token_ids)
    plain = [{"role": "user", "content": 'é🙂\x7f"'}]
    assert (
        encode(tokenizer, plain, None) == tokenizer.apply_chat_template(plain, return_dict=True)["input_ids"]
    )


@pytest.fixture
def hub(tmp_path: Any) -> AdapterHub:
    engine = EchoEngine(context_length=100)
    engine.tokenizer = make_tokenizer()  # type: ignore[assignment]
    return AdapterHub(engine, AdapterRegistry(tmp_path))


async def test_an_endless_template_holds_no_other_request(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(template_limits, "MAX_RENDER_SECONDS", 0.1)
    hub.engine.tokenizer.chat_template = (
        "{% if messages[0].content == 'loop' %}" + ENDLESS["empty"] + "{% endif %}{{ messages[0].content }}"
    )
    endless, cancelled = (asyncio.ensure_future(hub.agenerate("loop")) for _ in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    answered = await hub.agenerate("x", max_tokens=1)
    assert answered.finish_reason
    with pytest.raises(InvalidRequestError, match="exceeds a limit"):
        await endless
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    hub.close()


class TestPromptsBeyondTheContext:
    def refuse_to_encode(self, hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
        def encode(*_: Any, **__: Any) -> Any:
            raise AssertionError("it was encoded")

        monkeypatch.setattr(hub.engine.tokenizer, "encode", encode)

    @pytest.mark.parametrize("options", [{}, {"raw": True}, {"adapter": "base"}])
    def test_no_token_is_made_of_them(self, hub: AdapterHub, monkeypatch: pytest.MonkeyPatch, options: Any):
        self.refuse_to_encode(hub, monkeypatch)
        with pytest.raises(RequestTooLongError, match="characters"):
            hub.generate("a" * 10_000_000, **options)

    def test_nor_are_they_routed(self, hub: AdapterHub, monkeypatch: pytest.MonkeyPatch):
        def route(*_: Any) -> Any:
            raise AssertionError("it was routed")

        monkeypatch.setattr(hub._preparer, "route", route)
        for prompt in ("a" * 10_000_000, [{"role": "user", "content": "a" * 10_000_000}]):
            with pytest.raises(RequestTooLongError, match="characters"):
                hub.generate(prompt, "auto")

    def test_nor_of_what_a_template_makes(self, hub: AdapterHub, monkeypatch: pytest.MonkeyPatch):
        hub.engine.tokenizer.chat_template = "{% for a in range(9999) %}abcdefghij{% endfor %}"
        hub.generate("x", raw=True, sampling_params=SamplingParams(max_tokens=1))
        self.refuse_to_encode(hub, monkeypatch)
        with pytest.raises(RequestTooLongError, match="characters"):
            PromptEncoder.render(hub._preparer._encoder, TURNS, hub.prompt_style(None), max_characters=1000)
        with pytest.raises(RequestTooLongError, match="characters"):
            hub.generate("x")

    def test_counting_has_no_such_limit(self, hub: AdapterHub):
        assert hub._count_prompt_tokens([{"role": "user", "content": "a b " * 5000}], None, None) > 5000

    def test_a_prompt_that_fits_is_never_refused(self, hub: AdapterHub):
        longest = max(hub.engine.tokenizer.get_vocab(), key=len)
        text = hub.engine.tokenizer.convert_tokens_to_string([longest]) * 99
        assert len(hub.engine.tokenizer.encode(text)) == 99
        assert hub.generate(text, raw=True, sampling_params=SamplingParams(max_tokens=1)).text is not None
