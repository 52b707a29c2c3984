"""The tool call format of each chat template: detected, generated, parsed and rendered.

The templates are short ones that render calls as published ones do.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.utils.function_calling import convert_to_openai_tool
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import AddedToken, AutoModelForCausalLM, PreTrainedTokenizerFast

from adapterhub import AdapterHub
from adapterhub.errors import GenerationError
from adapterhub.langchain import ChatAdapterHub
from adapterhub.langchain.chat_request import chat_request
from adapterhub.langchain.message_conversion import convert_messages
from adapterhub.requests.prompts import choose_style, render
from adapterhub.tool_calling.call_format import HERMES, ToolCallFormat
from adapterhub.tool_calling.call_format_detection import ToolCallFormats, detect_format
from adapterhub.tool_calling.call_messages import fit_tool_calls
from adapterhub.tool_calling.call_parser import ToolCallParser, parse_tool_calls
from adapterhub.tool_calling.tool_choice import ToolChoice
from adapterhub.tool_calling.tool_prompt import prompt_tools
from tests.langchain.helpers import Person, add, now
from tests.tiny import make_adapter, make_base, make_tokenizer

END = "<|im_end|>"
FRAME = (
    "{{% if tools %}}<tools>{{% for t in tools %}}{{{{ t.function | tojson }}}}{{% endfor %}}</tools>{{% endif %}}"
    "{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n"
    "{{% if m.tool_call_id %}}{{{{ check(m.tool_call_id) }}}}{{{{ m.tool_call_id }}}}: {{% endif %}}"
    "{{% if m.tool_calls %}}{calls}{{% else %}}{{{{ m.content }}}}{{% endif %}}<|im_end|>\n"
    "{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)
CHECK = "{% macro check(id) %}{% if id | length != 9 %}{{ raise_exception('nine signs') }}{% endif %}{% endmacro %}"
EACH = "{{% for c in m.tool_calls %}}{0}{{% endfor %}}"


def template(calls: str, *, nine: bool = False) -> str:
    check = CHECK if nine else "{% macro check(id) %}{% endmacro %}"
    return check + FRAME.format(calls=calls)


def each(call: str) -> str:
    return EACH.format(call)


HERMES_TEMPLATE = template(
    "{{ m.content }}"
    + each(
        '{{ "\n" if m.content or not loop.first }}<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
        "{{ c.function.arguments | tojson }}}\n</tool_call>"
    )
)
ARGUMENTS_FIRST = template(
    each(
        '<tool_call>\n{"arguments": {{ c.function.arguments | tojson }}, "name": {{ c.function.name | tojson }}}\n'
        "</tool_call> "
    )
)
LLAMA = template(
    "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"
    '{% set c = m.tool_calls[0].function %}{"name": "{{ c.name }}", "parameters": {{ c.arguments | tojson }}}'
)
MISTRAL_V3 = template(
    "[TOOL_CALLS] ["
    + each(
        "{{ check(c.id) }}{% set out = c.function | tojson %}{{ out[:-1] }}"
        ', "id": "{{ c.id }}"}{% if not loop.last %}, {% endif %}'
    )
    + "]",
    nine=True,
)
CALL_ID = template(
    each(
        "{{ check(c.id) }}[TOOL_CALLS]{{ c.function.name }}[CALL_ID]{{ c.id }}[ARGS]"
        "{{ c.function.arguments | tojson }}"
    ),
    nine=True,
)
ARGS = template(
    "{{ m.content }}" + each("[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}")
)
AS_TEXT = template(
    "<calls>" + each("<call>{{ '' + c.function.name + '>' + c.function.arguments }}") + "<end>"
)
AS_HTML = template(  # what `safe` is joined with is escaped, so that an object's quotation marks are HTML's
    each(
        "{% set a = c.function.arguments %}{% set a = a if a is string else (a | tojson | safe) %}"
        """{{ '<tool_call>\n{"name": "' + c.function.name + '", "arguments": ' + a + '}\n</tool_call>' }}"""
    )
)
FORMATS = {
    "hermes": (HERMES_TEMPLATE, HERMES),
    "arguments first": (
        ARGUMENTS_FIRST,
        ToolCallFormat(
            '<tool_call>\n{"arguments": ',
            ("arguments", "name"),
            (', "name": "',),
            '"}\n</tool_call> ',
            '"}\n</tool_call> <tool_call>\n{"arguments": ',
        ),
    ),
    "llama": (LLAMA, ToolCallFormat('{"name": "', ("name", "arguments"), ('", "parameters": ',), "}")),
    "mistral v3": (
        MISTRAL_V3,
        ToolCallFormat(
            '[TOOL_CALLS] [{"name": "',
            ("name", "arguments", "id"),
            ('", "arguments": ', ', "id": "'),
            '"}]',
            '"}, {"name": "',
        ),
    ),
    "call id": (
        CALL_ID,
        ToolCallFormat(
            "[TOOL_CALLS]", ("name", "id", "arguments"), ("[CALL_ID]", "[ARGS]"), "", "[TOOL_CALLS]"
        ),
    ),
    "args": (ARGS, ToolCallFormat("[TOOL_CALLS]", ("name", "arguments"), ("[ARGS]",), "", "[TOOL_CALLS]")),
    "as html": (
        AS_HTML,
        replace(
            HERMES,
            call_separator='}\n</tool_call><tool_call>\n{"name": "',
            content_separator="",
            arguments_as_string=True,
        ),
    ),
    "as text": (
        AS_TEXT,
        ToolCallFormat("<calls><call>", ("name", "arguments"), (">",), "<end>", "<call>", "", True),
    ),
}
WITHOUT_FORMAT = {
    "none": None,
    "no tools": "{% for m in messages %}{{ m.content }}{% endfor %}",
    "ignores calls": template("{{ m.content }}"),
    "raises": template("{{ raise_exception('no calls') }}"),
    "not json": template(
        each(
            "<function={{ c.function.name }}>{% for k, v in c.function.arguments.items() %}"
            "<{{ k }}>{{ v }}</{{ k }}>{% endfor %}</function>"
        )
    ),
    "as python": template(each("<call>{{ c.function.name }}>{{ c.function.arguments.items() | list }}")),
    "no name": template(each("<call>{{ c.function.arguments | tojson }}")),
    "name without end": template(
        each("<call>{{ c.function.name }}{{ c.function.arguments | tojson }}</call>")
    ),
    "no mark": template(each("{{ c.function.name }}\n{{ c.function.arguments | tojson }}")),
    "tools not shown": "{% for m in messages %}{{ m.content }}"
    + each("<call>{{ c.function.name }}>{{ c.function.arguments | tojson }}")
    + "{% endfor %}",
}
RENDER_TEXT = ("hermes", "args")
"""TemplateCollection that write an answer's text before its calls."""
SPECIAL_TOKENS = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<tool_call>", "</tool_call>")


def make_tokenizer_with_special_tokens() -> PreTrainedTokenizerFast:
    """Mistral's marks are special tokens, which decoding leaves out; Qwen's are not special."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(
        [AddedToken(mark, special=mark.startswith("["), normalized=False) for mark in SPECIAL_TOKENS]
    )
    return tokenizer


PLAIN, MARKED = make_tokenizer(), make_tokenizer_with_special_tokens()
each_format = pytest.mark.parametrize("name", FORMATS)


TOOLS = [convert_to_openai_tool(one) for one in (add, now)]
SCHEMAS = {one["function"]["name"]: one["function"]["parameters"] for one in TOOLS}


def made(name: str, args: dict[str, Any], number: int = 1) -> dict[str, Any]:
    return {"name": name, "args": args, "id": f"call{number:05}", "type": "tool_call"}


def written(name: str, calls: list[dict[str, Any]], text: str = "") -> str:
    """What a template writes for an answer with calls."""
    source, call_format = FORMATS[name]
    message = AIMessage(content=text, tool_calls=calls)
    turns = fit_tool_calls(convert_messages([HumanMessage("Hi"), message]), call_format)
    style = choose_style(source)
    whole = render(turns, style, PLAIN, tools=TOOLS, add_generation_prompt=False)
    prompt = render(turns[:1], style, PLAIN, tools=TOOLS)
    assert whole.startswith(prompt)
    return whole[len(prompt) :].removesuffix(f"{END}\n")


@cache
def _llguidance(tokenizer: PreTrainedTokenizerFast) -> LLTokenizer:
    return from_tokenizer(tokenizer)


def accepts(grammar: str, answer: str, tokenizer: PreTrainedTokenizerFast) -> bool:
    matcher = LLMatcher(_llguidance(tokenizer), LLMatcher.grammar_from_lark(grammar), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = tokenizer.encode(answer, add_special_tokens=False)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


class TestDetection:
    @each_format
    def test_each_format(self, name: str):
        source, call_format = FORMATS[name]
        assert detect_format(choose_style(source), PLAIN) == call_format

    @pytest.mark.parametrize("name", WITHOUT_FORMAT)
    def test_templates_without_one(self, name: str):
        assert detect_format(choose_style(WITHOUT_FORMAT[name]), PLAIN) is None

    def test_numbered_calls_have_no_separator(self):
        call = "<call {{ loop.index }}>{{ c.function.name }}>{{ c.function.arguments | tojson }}"
        found = detect_format(choose_style(template(each(call))), PLAIN)
        assert found == ToolCallFormat("<call 1>", ("name", "arguments"), (">",), "")

    def test_special_tokens_stay_whole(self):
        source = (
            "{{ tools[0].function.name }}{% for m in messages %}{% if m.tool_calls %}"
            + each("<|called|>{{ c.function.name }}>{{ c.function.arguments | tojson }}")
            + "<|call_end|>{% else %}<|content|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        )
        found = detect_format(choose_style(source), PLAIN)
        assert found == ToolCallFormat(
            "<|called|>", ("name", "arguments"), (">",), "<|call_end|>", "<|called|>"
        )

    def test_the_demo_base_has_the_default(self):
        source = (files("adapterhub.demo") / "base" / "chat_template.jinja").read_text()
        assert detect_format(choose_style(source), PLAIN) == HERMES

    def test_once_for_a_template(self, monkeypatch: pytest.MonkeyPatch):
        formats, style = ToolCallFormats(), choose_style(LLAMA)
        found = formats.of(style, PLAIN)
        assert formats.of(choose_style(WITHOUT_FORMAT["raises"]), PLAIN) is None
        monkeypatch.setattr("adapterhub.tool_calling.call_format_detection.detect_format", None)
        assert formats.of(style, PLAIN) is found
        assert formats.of(choose_style(WITHOUT_FORMAT["raises"]), PLAIN) is None

    def test_once_for_a_model_and_its_copies(self, hub: AdapterHub, monkeypatch: pytest.MonkeyPatch):
        model = ChatAdapterHub(hub=hub, model="llama", max_tokens=80)
        model.bind_tools([now], tool_choice="any").invoke("Hi")
        monkeypatch.setattr("adapterhub.tool_calling.call_format_detection.detect_format", None)
        again = model.with_adapter("args").with_adapter("llama").bind_tools([now], tool_choice="any")
        assert again.invoke("Hi").tool_calls
        assert ChatAdapterHub(hub=hub, model="llama", max_tokens=80) == model


@pytest.mark.parametrize("tokenizer", [PLAIN, MARKED], ids=["plain", "marked"])
class TestGrammar:
    @each_format
    def test_accepts_what_the_template_renders(self, name: str, tokenizer: PreTrainedTokenizerFast):
        call_format = FORMATS[name][1]
        grammar = ToolChoice.of(TOOLS, "any").grammar(tokenizer, call_format)
        one, other = made("add", {"a": 3, "b": "two"}), made("now", {}, 2)
        assert accepts(grammar, written(name, [one]), tokenizer)
        assert accepts(grammar, written(name, [other]), tokenizer)
        assert not accepts(grammar, written(name, [made("add", {"a": 3})]), tokenizer)
        assert not accepts(grammar, written(name, [made("else", {})]), tokenizer)
        assert not accepts(grammar, "Hi", tokenizer)
        assert not accepts(grammar, written(name, [one])[:-1], tokenizer)
        if call_format.call_separator is not None:
            both = written(name, [one, other])
            assert accepts(grammar, both, tokenizer)
            alone = ToolChoice.of(TOOLS, "any", parallel=False).grammar(tokenizer, call_format)
            assert not accepts(alone, both, tokenizer)

    def test_names_that_json_escapes(self, tokenizer: PreTrainedTokenizerFast):
        name, call_format = 'no"w', FORMATS["arguments first"][1]
        tool = {"type": "function", "function": {"name": name}}
        answer = written("arguments first", [made(name, {})])
        assert accepts(ToolChoice.of([tool], "any").grammar(tokenizer, call_format), answer, tokenizer)
        assert parse_tool_calls(answer, call_format)[1][0]["name"] == name

    @each_format
    def test_a_text_cannot_contain_the_start_marker(self, name: str, tokenizer: PreTrainedTokenizerFast):
        call_format = FORMATS[name][1]
        grammar = ToolChoice.of(TOOLS).grammar(tokenizer, call_format)
        assert accepts(grammar, written(name, [made("now", {})]), tokenizer)
        for text in ("Well", "{", '{"x": 1}', "a [TOOL", "<"):
            assert accepts(grammar, text, tokenizer)
            assert parse_tool_calls(text, call_format) == (text, [])
        after_text = f"Well.{call_format.content_separator}{written(name, [made('now', {})])}"
        assert accepts(grammar, after_text, tokenizer)
        text, calls = parse_tool_calls(after_text, call_format)
        assert (text, len(calls)) == ((after_text, 0) if call_format.only_at_start else ("Well.", 1))
        assert not accepts(grammar, f"{call_format.start_marker} nothing", tokenizer)
        assert (
            accepts(grammar, f"Well {call_format.start_marker} nothing", tokenizer)
            is call_format.only_at_start
        )


class TestParser:
    @each_format
    @settings(max_examples=25)
    @given(
        arguments=st.lists(
            st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.none()), max_size=3),
            min_size=1,
            max_size=3,
        ),
        cuts=st.lists(st.integers(0, 400)),
        text=st.sampled_from(["", "Well.", 'a {"b', "<tool"]),
    )
    def test_parses_what_the_template_renders(
        self, name: str, arguments: list[dict[str, Any]], cuts: list[int], text: str
    ):
        call_format = FORMATS[name][1]
        calls = [
            made(f"f-{number}", args, number)
            for number, args in enumerate(arguments[: None if call_format.call_separator is not None else 1])
        ]
        text = text if name in RENDER_TEXT else ""
        answer = written(name, calls, text)
        parser, message = ToolCallParser(call_format), AIMessageChunk(content="")
        places = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
        parts: list[Any] = []
        for start, end in pairwise(places):
            parts += parser.push(answer[start:end])
        parts += parser.flush()
        for part in parts:
            message += (
                AIMessageChunk(content=part)
                if isinstance(part, str)
                else AIMessageChunk(content="", tool_call_chunks=[part])
            )
        assert message.content == text
        assert [(call["name"], call["args"]) for call in message.tool_calls] == [
            (call["name"], call["args"]) for call in calls
        ]
        assert not message.invalid_tool_calls
        assert len({call["id"] for call in message.tool_calls} - {None, ""}) == len(calls)
        whole, read = parse_tool_calls(answer, call_format)
        assert (whole, [call["args"] for call in read]) == (text, arguments[: len(calls)])

    @each_format
    def test_every_split_and_truncated_calls(self, name: str):
        call_format = FORMATS[name][1]
        calls = [made("add", {"a": '}]"{', "b": {"c": "\\"}}), made("now", {}, 2)]
        answer = written(name, calls[: 2 if call_format.call_separator is not None else 1])
        expected = [(call["name"], call["args"]) for call in parse_tool_calls(answer, call_format)[1]]
        for place in range(1, len(answer)):
            parser = ToolCallParser(call_format)
            chunks = [*parser.push(answer[:place]), *parser.push(answer[place:]), *parser.flush()]
            assert [chunk["name"] for chunk in chunks if chunk["name"]] == [name for name, _ in expected]
            for number, (_, args) in enumerate(expected):
                text = "".join(chunk["args"] for chunk in chunks if chunk["index"] == number)
                assert json.loads(text) == args
        with pytest.raises(GenerationError):
            parse_tool_calls(answer[: len(call_format.prefix) + 3], call_format)

    @pytest.mark.parametrize("text", ['{"name"', '{"name": ', '{"nam": 1}', ' {"name": "x"}', "{}"])
    def test_text_that_only_looks_like_a_call_without_a_marker(self, text: str):
        assert parse_tool_calls(text, FORMATS["llama"][1]) == (text, [])


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterHub]:
    """A random base whose tokenizer has the marks, and an adapter with each template."""
    root = tmp_path_factory.mktemp("formats")
    base = make_base(root / "base", num_hidden_layers=1, max_position_embeddings=8192)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(MARKED), mean_resizing=False)
    model.save_pretrained(base)
    MARKED.save_pretrained(base)
    adapter = make_adapter(root / "adapter", base)
    hub = AdapterHub.from_pretrained(base, root / "registry", quantization=None)
    for name, (source, _) in FORMATS.items():
        hub.registry.register(
            name.replace(" ", "-"), adapter, base=base, prompt={"chat_template": source, "format": "chat"}
        )
    yield hub
    hub.close()


@each_format
class TestAnswers:
    @pytest.fixture
    def model(self, hub: AdapterHub, name: str) -> ChatAdapterHub:
        adapter = name.replace(" ", "-")
        return ChatAdapterHub(hub=hub, model=adapter, max_tokens=80, temperature=1.0, seed=5)

    def check(self, message: Any, call_format: ToolCallFormat) -> None:
        assert not message.invalid_tool_calls
        assert len({call["id"] for call in message.tool_calls}) == len(message.tool_calls)
        for call in message.tool_calls:
            jsonschema.validate(call["args"], SCHEMAS[call["name"]])
            assert call["id"]
            assert "id" not in call_format.fields or len(call["id"]) == 9

    def test_calls_streamed_and_not(self, model: ChatAdapterHub, name: str):
        call_format, bound = FORMATS[name][1], model.bind_tools([add, now], tool_choice="any")
        answer = bound.invoke("Hi")
        assert answer.tool_calls
        assert answer.text == ""
        assert call_format.call_separator is not None or len(answer.tool_calls) == 1
        assert answer.response_metadata["finish_reason"] == "tool_calls"
        self.check(answer, call_format)
        chunks = list(bound.stream("Hi"))
        first = next(part for chunk in chunks for part in chunk.tool_call_chunks)
        assert first["name"]
        assert first["id"]
        whole = sum(chunks[1:], start=chunks[0])
        self.check(whole, call_format)
        assert [(call["name"], call["args"]) for call in whole.tool_calls] == [
            (call["name"], call["args"]) for call in answer.tool_calls
        ]

    def test_the_answer_is_what_the_template_renders(self, model: ChatAdapterHub, hub: AdapterHub, name: str):
        call_format = FORMATS[name][1]
        request = chat_request(
            hub,
            model.model,
            [HumanMessage("Hi")],
            {"tools": TOOLS, "tool_choice": "now", "max_tokens": 100},
            ToolCallFormats(),
        )
        assert request.call_format == call_format
        assert request.tools == prompt_tools(TOOLS)
        generated = hub.generate(
            request.messages, request.adapter, tools=request.tools, **request.options
        ).text
        (call,) = parse_tool_calls(generated, call_format)[1]
        ids = re.findall(r'(?:"id": "|\[CALL_ID\])(\w{9})', generated)
        assert generated == written(name, [{**call, "id": ids[0]} if ids else call])
        assert bool(ids) is ("id" in call_format.fields)

    def test_texts_and_calls(self, model: ChatAdapterHub, name: str):
        bound = model.bind_tools([add, now])
        for answer in bound.batch(["Hi", "Ho", "Hey"], max_tokens=40):
            assert answer.text or answer.tool_calls
            self.check(answer, FORMATS[name][1])

    def test_a_history_with_calls(self, model: ChatAdapterHub, name: str):
        call_format = FORMATS[name][1]
        calls = [made("now", {}) | {"id": "call_of_another_model"}]
        history = [
            HumanMessage("Hi"),
            AIMessage(content="", tool_calls=calls),
            ToolMessage("noon", tool_call_id="call_of_another_model"),
        ]
        request = chat_request(model.hub, model.model, history, {"tools": TOOLS}, ToolCallFormats())
        shown = render(request.messages, model.hub.prompt_style(model.model), PLAIN, tools=request.tools)
        _, turn, result = request.messages
        assert call_format.prefix in shown
        assert result["tool_call_id"] == turn["tool_calls"][0]["id"]
        assert (len(result["tool_call_id"]) == 9) is ("id" in call_format.fields)
        answer = model.bind_tools([add, now], tool_choice="any").invoke(history)
        self.check(answer, call_format)

    def test_calls_or_structured_output(self, model: ChatAdapterHub, name: str):
        bound = model.bind_tools([now], response_format=Person)
        for answer in bound.batch(["Hi", "Ho", "Hey"]):
            self.check(answer, FORMATS[name][1])
            if not answer.tool_calls:
                Person.model_validate_json(answer.text)


def test_calls_that_the_template_cannot_render_are_plain_text(hub: AdapterHub):
    calls = [made("now", {}), made("now", {}, 2)]
    history = [HumanMessage("Hi"), AIMessage(content="", tool_calls=calls)]
    request = chat_request(hub, "llama", history, {"tools": TOOLS}, ToolCallFormats())
    assert request.call_format is HERMES
    assert request.tools is None
    assert request.messages[1]["content"].count("<tool_call>") == 2
    one = chat_request(hub, "llama", [HumanMessage("Hi")], {"tools": TOOLS}, ToolCallFormats())
    assert one.call_format.only_at_start
    object_too = {"tools": TOOLS, "response_format": Person}
    assert (
        chat_request(hub, "llama", [HumanMessage("Hi")], object_too, ToolCallFormats()).call_format is HERMES
    )
