"""What is fuzzed: each target takes one example from outside and must work, or raise the library's own error."""

from __future__ import annotations

import atexit
import json
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterhub.errors import AdapterHubError
from tests.fuzz.strategies import (
    as_bytes,
    changed,
    chat_templates,
    json_schemas,
    json_values,
    numbers,
    objects,
    templates,
    texts,
)

TARGETS: dict[str, Target] = {}


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        examples: The inputs.
        check: What is done with one; fails if the library does wrong.
        seconds: The most processor time that one example may take.
    """

    examples: st.SearchStrategy[Any]
    check: Callable[[Any], None]
    seconds: float

    def test(self, accepted: list[Any] | None = None, **changes: Any) -> Any:
        """The target as a test of hypothesis.

        Args:
            accepted: Receives the examples that raised no error.
            changes: To hypothesis' settings.
        """

        _expected()  # what loads once is not part of an example's time

        @settings(deadline=None, suppress_health_check=list(HealthCheck), **changes)
        @given(self.examples)
        def run(example: Any) -> None:
            start = time.thread_time()
            with ours():
                self.check(example)
                if accepted is not None:
                    accepted.append(example)
            assert time.thread_time() - start < self.seconds, "took too long"

        return run


def target(examples: st.SearchStrategy[Any], seconds: float = 3.0) -> Callable[..., Any]:
    """Registers a function as the target of its name."""

    def register(check: Callable[[Any], None]) -> Callable[[Any], None]:
        TARGETS[check.__name__.removeprefix("fuzz_")] = Target(examples, check, seconds)
        return check

    return register


@contextmanager
def ours() -> Iterator[None]:
    """Lets the library's own errors pass, if they say something."""
    try:
        yield
    except AdapterHubError as error:
        text = str(error)
        assert 10 < len(text) < 3000, text
        text.encode()


@cache
def workspace() -> Path:
    """A folder for the files of this process: `base`, `adapter`, and room for one example."""
    from tests.registry.maker import make_adapter, make_base

    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    make_base(root / "base")
    make_adapter(root / "adapter")
    return root


@contextmanager
def example_folder(source: str = "") -> Iterator[Path]:
    """An empty folder, or a copy of one of the workspace."""
    folder = workspace() / "example"
    if source:
        shutil.copytree(workspace() / source, folder)
    else:
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


# --- names, cards, configurations, headers -------------------------------------------------------------------------


@target(st.one_of(texts, st.from_regex(r"[a-z0-9._~-]{1,9}(@[a-z0-9-]{1,9})?", fullmatch=True)))
def fuzz_names(text: str) -> None:
    from adapterhub.registry import Ref

    ref = Ref.parse(text)
    assert Ref.parse(str(ref)) == ref == Ref.parse(text)


_PARTS = st.builds(
    "{}:{}".format,
    st.one_of(*[st.sampled_from(["json", "json@1", "json@latest", "base", "none"])] * 3, texts),
    st.one_of(*[st.sampled_from(["1", "0.5", "-0.5", "0", "1e309", "nan", "1_0", "١"])] * 3, texts),
)


@target(st.one_of(st.lists(_PARTS, min_size=1, max_size=3).map("+".join), texts))
def fuzz_blends(text: str) -> None:
    with live_hub() as hub:
        hub.generate("hello", adapter=text, max_tokens=1)


_CARD = {
    "name": "json",
    "version": 1,
    "digest": "sha256:" + "0" * 64,
    "description": "Answers in JSON.",
    "tags": ["json"],
    "base": {},
    "prompt": {"system": "Be brief.", "stop": ["END"], "generation": {"temperature": 0.5}},
    "routing": {"examples": ["as json"], "patterns": ["json$"], "phrases": ["in json"], "threshold": 0.5},
    "serving": {"priority": 1},
    "lineage": {"method": "finetune", "settings": {"r": 8}},
}


@target(as_bytes(changed(_CARD)))
def fuzz_foreign_cards(content: bytes) -> None:
    from adapterhub.registry import AdapterRegistry

    with example_folder("adapter") as folder:
        (folder / "card.json").write_bytes(content)
        registry = AdapterRegistry(folder / "registry")
        card = registry.register("json", folder)
        assert registry.get("json") == card
        assert not registry.verify()


@cache
def _stored_card() -> dict[str, Any]:
    from adapterhub.registry import AdapterRegistry

    registry = AdapterRegistry(workspace() / "registry")
    card = registry.register(
        "json", workspace() / "adapter", routing={"examples": ["one"], "patterns": ["a+"]}
    )
    return dict(json.loads((registry.folder(card) / "card.json").read_bytes()))


@target(st.deferred(lambda: as_bytes(changed(_stored_card()))))
def fuzz_stored_cards(content: bytes) -> None:
    from adapterhub.registry import AdapterRegistry
    from adapterhub.routing import routes_from_cards

    with example_folder("registry") as folder:
        (path,) = folder.glob("json/**/card.json")
        path.write_bytes(content)
        registry = AdapterRegistry(folder)
        registry.verify()
        routes_from_cards(registry.list())
        registry.get("json")


@target(st.one_of(texts, st.builds("---\n{}\n---\n{}".format, texts, texts)))
def fuzz_model_cards(text: str) -> None:
    from adapterhub.registry import AdapterRegistry

    with example_folder("adapter") as folder:
        (folder / "README.md").write_bytes(text.encode("utf-8", errors="surrogatepass"))
        AdapterRegistry(folder / "registry").register("json", folder)


@cache
def _config() -> dict[str, Any]:
    return dict(json.loads((workspace() / "adapter" / "adapter_config.json").read_bytes()))


@target(st.deferred(lambda: as_bytes(changed({**_config(), "alpha_pattern": {"q_proj": 2}, "bias": "none"}))))
def fuzz_adapter_configs(content: bytes) -> None:
    with example_folder("adapter") as folder:
        (folder / "adapter_config.json").write_bytes(content)
        _register_and_verify(folder)


@cache
def _header() -> dict[str, Any]:
    content = (workspace() / "adapter" / "adapter_model.safetensors").read_bytes()
    return dict(json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]]))


@target(
    st.tuples(
        st.deferred(lambda: as_bytes(changed(_header()))), st.one_of(st.none(), st.integers(0, 2**64 - 1))
    )
)
def fuzz_headers(example: tuple[bytes, int | None]) -> None:
    header, length = example
    with example_folder("adapter") as folder:
        path = folder / "adapter_model.safetensors"
        content = path.read_bytes()
        data = content[8 + struct.unpack("<Q", content[:8])[0] :]
        path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
        _register_and_verify(folder)


def _register_and_verify(folder: Path) -> None:
    from adapterhub.registry import AdapterRegistry

    registry = AdapterRegistry(folder / "registry")
    registry.register("json", folder, base=workspace() / "base")
    assert not registry.verify()


_FINETUNE = {
    "name": "json",
    "base": "base",
    "data": {"train": "train.jsonl", "validation_share": 0.1},
    "lora": {"r": 8, "alpha": 16, "target_modules": ["q_proj"]},
    "train": {"epochs": 1, "batch_size": 2, "learning_rate": 0.0002, "scheduler": "cosine"},
}


@target(st.one_of(as_bytes(changed(_FINETUNE)), texts.map(lambda text: text.encode(errors="surrogatepass"))))
def fuzz_finetune_configs(content: bytes) -> None:
    from adapterhub.training import FinetuneConfig

    with example_folder() as folder:
        (folder / "finetune.yaml").write_bytes(content)
        FinetuneConfig.load(folder / "finetune.yaml")


_COMPOSED = {
    "sources": [
        {
            "path": "a.csv",
            "split": "train[:10]",
            "mapping": {"rating": "score"},
            "prompts": {"*": "On {theme}."},
        },
        {"path": "user/data", "subset": "ru", "converter": "sharegpt", "weight": 0.5, "max_records": 5},
    ],
    "val_path": "val.jsonl",
    "filters": {"min_rating": 1, "include": ["a+"], "languages": []},
    "split": {"val_size": 0.1},
    "seed": 0,
}


@target(st.one_of(as_bytes(changed(_COMPOSED)), texts.map(lambda text: text.encode(errors="surrogatepass"))))
def fuzz_dataset_configs(content: bytes) -> None:
    from adapterhub.dataset import DatasetConfig

    with example_folder() as folder:
        (folder / "dataset.yaml").write_bytes(content)
        DatasetConfig.load(folder / "dataset.yaml")


_RECIPE = {
    "output_dir": "./models/jokes",
    "train_path": "train.jsonl",
    "datasets": [
        {"name": "a.jsonl", "only_target_loss": True, "max_tokens_count": 100, "mapping": {"input": "a"}}
    ],
    "model": {"name": "base", "load_in_4bit": True, "dtype": "bf16"},
    "lora": {"r": 8, "lora_alpha": 16, "task_type": "CAUSAL_LM"},
    "tokenizer": {"name": "base", "max_tokens_count": 100, "chat_template": "a"},
    "trainer": {
        "num_train_epochs": 1,
        "learning_rate": 0.0002,
        "optim": "adamw_torch",
        "report_to": ["none"],
    },
}


@target(as_bytes(changed(_RECIPE)))
def fuzz_recipes(content: bytes) -> None:
    from adapterhub.dataset import DatasetConfig
    from adapterhub.training import FinetuneConfig

    with example_folder() as folder:
        (folder / "recipe.yaml").write_bytes(content)
        with ours():
            FinetuneConfig.load(folder / "recipe.yaml")
        DatasetConfig.load(folder / "recipe.yaml")


_CHAT = {
    "adapter": "json",
    "system_prompt": "Be brief.",
    "history_limit": 4,
    "history_tokens": 100,
    "generation": {"temperature": 0.5, "do_sample": True, "max_new_tokens": 20, "stop": ["a"]},
}


@target(as_bytes(changed(_CHAT)))
def fuzz_chat_configs(content: bytes) -> None:
    from adapterhub.cli.chat_config import ChatConfig

    with example_folder() as folder:
        (folder / "chat.yaml").write_bytes(content)
        ChatConfig.load(folder / "chat.yaml")


_TURNS = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "two"}]
_CALL = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}
_SOURCE_ROWS = [
    {"messages": _TURNS, "tools": [{"name": "add", "parameters": {}}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "one?"}]}, _TURNS[1]]},
    {"conversations": [{"from": "human", "value": "one?"}, _CALL, {"from": "observation", "value": "2"}]},
    {"instruction": "one?", "input": "1", "output": "two", "history": [["a", "b"]], "rating": 5},
    {"instruction": "one?", "reasoning": "so", "output": "two"},
    {"prompt": _TURNS[:1], "completion": _TURNS[1:]},
    {"text": "two", "theme": "cats", "score": "4.5"},
]
_SOURCE_FILES = st.one_of(
    st.binary(), *(st.lists(as_bytes(changed(row)), max_size=3).map(b"\n".join) for row in _SOURCE_ROWS)
)


# Few examples are whole tables.
_MOSTLY_TEXT = [*["jsonl", "json", "txt"] * 2, "csv", "parquet"]


@target(st.tuples(st.sampled_from(_MOSTLY_TEXT), _SOURCE_FILES))
def fuzz_dataset_sources(example: tuple[str, bytes]) -> None:
    from adapterhub.dataset import SourceOptions
    from adapterhub.dataset.reading import SourceReader

    suffix, content = example
    with example_folder() as folder:
        (folder / f"data.{suffix}").write_bytes(content)
        source = SourceOptions(path=str(folder / f"data.{suffix}"), prompts=["Tell me.", "On {theme}."])
        for sample in SourceReader(source, "data").samples():
            assert sample.record.model_dump_json()


_LABELLED = {"text": "give me json", "adapter": "json", "expected": "json", "label": "json"}


@target(st.lists(as_bytes(changed(_LABELLED)), max_size=3).map(b"\n".join))
def fuzz_labelled_requests(content: bytes) -> None:
    from adapterhub.routing import read_corrections, read_labelled_requests

    with example_folder() as folder:
        (folder / "requests.jsonl").write_bytes(content)
        with ours():
            read_labelled_requests(folder / "requests.jsonl", ["json"])
        list(read_corrections(folder / "requests.jsonl"))


@cache
def _router_file() -> bytes:
    from adapterhub.routing import AdapterRouter

    router = AdapterRouter.fit({"json": ["as json please"] * 3, "code": ["a function"] * 3})
    router.save(workspace() / "router")
    return (workspace() / "router").read_bytes()


@target(st.tuples(st.integers(0, 10**6), st.binary(max_size=40), st.booleans()), seconds=10)
def fuzz_router_files(example: tuple[int, bytes, bool]) -> None:
    from adapterhub.routing import AdapterRouter

    place, insertion, cut = example
    content = _router_file()
    place %= len(content)
    rest = b"" if cut else content[place + len(insertion) :]
    with example_folder() as folder:
        (folder / "router").write_bytes(content[:place] + insertion + rest)
        AdapterRouter.load(folder / "router").route("some json")


@target(st.deferred(lambda: as_bytes(changed(_router_parts()[0]))), seconds=10)
def fuzz_router_settings(settings: bytes) -> None:
    """Files whose digest is right, as a stranger makes them."""
    from skops import io

    from adapterhub.routing import AdapterRouter
    from adapterhub.routing.classifier.storage import _digest

    text, arrays = settings.decode(errors="replace"), _router_parts()[1]
    with example_folder() as folder:
        content = {"meta": text, "digest": _digest(text, arrays), **arrays}
        (folder / "router").write_bytes(io.dumps(content))
        AdapterRouter.load(folder / "router").route("some json")


@cache
def _router_parts() -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings and the arrays of a router's file."""
    from skops import io

    content = io.loads(_router_file(), trusted=[])
    return json.loads(content.pop("meta")), {k: v for k, v in content.items() if k != "digest"}


# --- the tools -----------------------------------------------------------------------------------------------------


_FIELDS = {"x": [{"b": "1"}, {"b": "2"}], "a": "3"}


@target(st.tuples(templates, changed(_FIELDS, objects)))
def fuzz_templates(example: tuple[str, Any]) -> None:
    from adapterhub.agent_tools import Template

    text, fields = example
    Template({"en": text}).render(fields if isinstance(fields, dict) else {"x": fields})


@target(st.tuples(texts, texts))
def fuzz_patterns(example: tuple[str, str]) -> None:
    from adapterhub.routing.routes import Route
    from adapterhub.routing.rules import first_match

    pattern, text = example
    with suppress(ValueError):  # pydantic's, of the rule
        _validate(text, [{"rule": "regex", "pattern": pattern}])
    first_match([Route.make("json", ["as json"], patterns=[pattern])], text)


_RULES: list[dict[str, Any]] = [
    {"rule": name}
    for name in ("not_empty", "no_placeholders", "no_secrets", "email", "url", "json", "markdown_table")
]


@target(st.tuples(texts, json_values, json_schemas, st.lists(texts, min_size=1, max_size=3)))
def fuzz_validator(example: tuple[str, Any, Any, list[str]]) -> None:
    text, value, schema, sections = example
    _validate(text, _RULES)
    if isinstance(schema, dict):
        _validate(json.dumps(value), [{"rule": "json_schema", "json_schema": schema}])
    with suppress(ValueError):  # pydantic's: a section is empty or long
        _validate(text, [{"rule": "required_sections", "sections": sections}])


def _validate(text: str, rules: list[dict[str, Any]]) -> None:
    from pydantic import TypeAdapter

    from adapterhub.agent_tools import Rule, validate_text

    str(validate_text(text, TypeAdapter(list[Rule]).validate_python(rules)))


@target(
    st.tuples(
        texts,
        st.one_of(st.integers(10, 90), st.integers(-1, 90)),
        st.integers(-1, 9),
        st.one_of(st.none(), st.integers(0, 9)),
        st.sampled_from(["left", "right", "center", "justify"]),
        st.booleans(),
    )
)
def fuzz_formatter(example: tuple[str, int, int, int | None, Any, bool]) -> None:
    from adapterhub.agent_tools import TextLayout, format_text

    text, width, indent, first_line_indent, align, preserve_paragraphs = example
    layout = TextLayout(width, indent, first_line_indent, align, preserve_paragraphs)
    once = format_text(text, layout)
    assert "".join(once.split()) == "".join(text.split()) or "\0" in text, "characters were lost"
    if align == "left":
        assert format_text(once, layout) == once


_SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "format": "date"}}, "required": ["a"]}
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "text_formatter": {"text": "- one\n  two", "width": 40, "indent": 2, "align": "justify"},
    "template_generator": {"template": "email", "fields": {"subject": "x", "body": ["a"], "to": 1}},
    "content_validator": {
        "text": '{"a": "2024-01-01"}',
        "rules": [
            *_RULES,
            {"rule": "json_schema", "json_schema": _SCHEMA},
            {"rule": "regex", "pattern": "a+"},
        ],
    },
    "list_adapters": {"contains": "js", "limit": 3},
    "route_request": {"text": "as json"},
}


@target(
    st.sampled_from(sorted(_ARGUMENTS)).flatmap(
        lambda name: st.tuples(st.just(name), changed(_ARGUMENTS[name]))
    )
)
def fuzz_tool_arguments(example: tuple[str, Any]) -> None:
    from pydantic import ValidationError

    from adapterhub.langchain import AdapterToolkit

    name, arguments = example
    if not isinstance(arguments, dict):
        return  # LangChain's own messages hold nothing else
    with live_hub() as hub:
        (tool,) = AdapterToolkit(hub=hub, selected=[name]).get_tools()
        call = {"type": "tool_call", "id": "1", "name": name, "args": arguments}
        with suppress(ValidationError):  # LangChain's agents show it to the model
            assert isinstance(tool.invoke(call).content, str)


_words = st.one_of(
    texts,
    st.sampled_from(["json", "json@1", "json@latest", "--json", "--all", "-", "--", "1"]),
    st.sampled_from(["adapter", "--base", "base", "new"]),
)


@target(
    st.tuples(
        st.sampled_from(["list", "show", "verify", "alias", "rm", "add", "route"]),
        st.lists(_words, max_size=4),
    )
)
def fuzz_commands(example: tuple[str, list[str]]) -> None:
    from click.testing import CliRunner

    from adapterhub.cli.main import cli

    command, words = example
    _stored_card()
    words = [str(workspace() / word) if word in ("adapter", "base") else word for word in words]
    with example_folder("registry") as folder:
        environment = {"ADAPTERHUB_REGISTRY": str(folder), "ADAPTERHUB_BASE": None}
        result = CliRunner().invoke(cli, [command, *words], env=environment, input="some text")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception


# --- requests ------------------------------------------------------------------------------------------------------


@cache
def _live_hub() -> Any:
    from adapterhub import AdapterHub
    from tests.tiny import make_adapter, make_base

    root = workspace() / "live"
    base = make_base(root / "base", num_hidden_layers=1)
    hub = AdapterHub.from_pretrained(base, root / "registry", quantization=None)
    hub.registry.register("json", make_adapter(root / "json", base, seed=1), base=base)
    atexit.register(hub.close)
    return hub


@cache
def _expected() -> str:
    return str(_live_hub().generate("ping", adapter="json", max_tokens=3, temperature=0.0).text)


@contextmanager
def live_hub() -> Iterator[Any]:
    """A hub on a tiny base, which answers afterwards as it did before and holds nothing."""
    expected = _expected()
    try:
        yield _live_hub()
    finally:
        hub = _live_hub()
        assert hub.generate("ping", adapter="json", max_tokens=3, temperature=0.0).text == expected
        assert not hub.stats().running
        assert not hub.stats().waiting


_MESSAGE = {"role": "user", "content": "hello"}
_TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}},
}
_token_ids = st.lists(st.integers(-1, 300), max_size=3)
_OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("max_tokens", "min_tokens", "top_k", "seed", "n", "logprobs", "priority"), numbers),
    **dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty"), numbers),
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), numbers),
    "logit_bias": st.dictionaries(st.one_of(st.integers(-1, 300), texts), numbers, max_size=3),
    "bad_words": st.one_of(texts, st.lists(texts, max_size=3)),
    **dict.fromkeys(("ignore_eos", "raw"), st.booleans()),
    **dict.fromkeys(("schema", "json"), json_schemas),
    **dict.fromkeys(("regex", "grammar"), texts),
    **dict.fromkeys(("choices", "choice"), st.lists(texts, max_size=3)),
    "stop": st.one_of(texts, st.lists(texts, max_size=3)),
    "stop_token_ids": _token_ids,
    "suppress_tokens": _token_ids,
    "bad_words_ids": st.lists(_token_ids, max_size=2),
    "adapter": st.sampled_from(["json", "base", "auto", "none", None]),
    "tools": changed([_TOOL]),
    "strange": json_values,
}


@st.composite
def _options(draw: st.DrawFn) -> dict[str, Any]:
    """Options of a request, one of them in four of a wrong type."""
    names = draw(st.lists(st.sampled_from(sorted(_OPTIONS)), max_size=3, unique=True))
    return {name: draw(objects if draw(st.integers(0, 3)) == 3 else _OPTIONS[name]) for name in names}


@target(st.tuples(st.one_of(texts, st.just([_MESSAGE]), objects), _options()), seconds=10)
def fuzz_requests(example: tuple[Any, dict[str, Any]]) -> None:
    prompt, options = example
    with live_hub() as hub:
        hub.generate(prompt, **{"max_tokens": 3, **options})


_CALL = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}
_RESULT = {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "1"}]}


@target(
    st.lists(
        st.sampled_from([_MESSAGE, {**_MESSAGE, "role": "system"}, _CALL, _RESULT]).flatmap(
            lambda message: changed(message, objects)
        ),
        max_size=3,
    ),
    seconds=10,
)
def fuzz_conversations(messages: list[Any]) -> None:
    with live_hub() as hub:
        hub.generate(messages, max_tokens=2)


@target(chat_templates, seconds=10)
def fuzz_chat_templates(template: str) -> None:
    with live_hub() as hub:
        hub.registry.update("json", prompt={"chat_template": template})
        try:
            hub.generate([_MESSAGE], adapter="json", max_tokens=1)
        finally:
            hub.registry.update("json", prompt={"chat_template": None})


@target(json_schemas, seconds=10)
def fuzz_schemas(schema: Any) -> None:
    with live_hub() as hub:
        hub.generate("x", schema=schema, max_tokens=200).parsed  # noqa: B018


@target(st.tuples(st.sampled_from(["regex", "grammar", "choices"]), texts, texts), seconds=10)
def fuzz_formats(example: tuple[str, str, str]) -> None:
    kind, one, two = example
    value: Any = {"regex": one, "grammar": f"start: {one}\n{two}", "choices": [one, two]}[kind]
    with live_hub() as hub:
        hub.generate("x", **{kind: value}, max_tokens=100)


_PART = {"type": "text", "text": "hello", "id": "1", "reasoning": "so", "name": "tool", "args": {"a": 1}}


@target(
    st.lists(st.tuples(st.integers(0, 3), changed([_PART], json_values), json_values), max_size=3), seconds=10
)
def fuzz_chat_messages(example: list[tuple[int, Any, Any]]) -> None:
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

    from adapterhub.langchain import ChatAdapterHub

    kinds: list[Any] = [HumanMessage, SystemMessage, AIMessage, ToolMessage]
    messages = []
    for kind, content, extra in example:
        if not all(isinstance(part.get("type", ""), str) for part in _parts(content)):
            continue  # LangChain itself fails on these before it asks the model
        fields = {"content": content, **({"tool_call_id": "1"} if kinds[kind] is ToolMessage else {})}
        with suppress(Exception):  # what LangChain itself does not take is no input of ours
            messages.append(kinds[kind](**fields, additional_kwargs={"tool_calls": extra}))
    with live_hub() as hub:
        ChatAdapterHub(hub=hub, max_tokens=2).invoke(messages or [HumanMessage("x")])


def _parts(content: Any) -> list[dict[str, Any]]:
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


_calls = changed({"name": "f", "arguments": {"a": 1}}).map(json.dumps).map("{}\n</tool_call>".format)


@target(st.tuples(texts, st.lists(st.one_of(_calls, texts), max_size=4)))
def fuzz_tool_calls(example: tuple[str, list[str]]) -> None:
    from adapterhub.tool_calling.call_format import HERMES
    from adapterhub.tool_calling.call_parser import parse_tool_calls

    start, rest = example
    content, calls = parse_tool_calls("<tool_call>\n".join([start, *rest]), HERMES)
    assert isinstance(content, str)
    assert all(isinstance(call["args"], dict) for call in calls)
