"""A hub over vLLM servers: registry, router, prompts, formats, LangChain, server and commands, unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from langchain_core.messages import HumanMessage

from adapterhub import AdapterHub, AdapterRegistry
from adapterhub.base import DEMO_BASE, demo_base_folder
from adapterhub.cli.main import cli
from adapterhub.errors import (
    ConfigError,
    GenerationError,
    InvalidRequestError,
    RequestTooLongError,
)
from adapterhub.langchain import ChatAdapterHub
from adapterhub.server import ServerConfig, create_app
from adapterhub.vllm import VLLMEngine
from tests.fake_vllm import FakeServer, FakeVllm

ADAPTERS = Path(__file__).parents[2] / "adapters"


def reply(model: str, prompt: str) -> str:
    """What the fake's adapters say: as JSON if that is their task."""
    return '{"name": "Ann"}' if model.startswith("json") else f"I am {model}."


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from adapterhub.base.loading import load_tokenizer

    return load_tokenizer(DEMO_BASE)


@pytest.fixture(scope="module")
def server(tokenizer: Any) -> Iterator[FakeServer]:
    fake = FakeVllm(
        base=DEMO_BASE,
        root=str(demo_base_folder()),
        max_model_len=512,
        max_lora_rank=32,
        tokenizer=tokenizer,
        end_token_id=tokenizer.eos_token_id,
        answer=reply,
    )
    with FakeServer(fake) as server:
        yield server


@pytest.fixture(scope="module")
def hub(server: FakeServer) -> Iterator[AdapterHub]:
    with AdapterHub.connect(server.url, ADAPTERS) as hub:
        yield hub


@pytest.fixture
def fake(server: FakeServer) -> Iterator[FakeVllm]:
    yield server.fake
    server.fake.answer, server.fake.token_seconds = reply, 0.0


def model_of(hub: AdapterHub, name: str) -> str:
    card = hub.registry.get(name)
    return f"{card.name}--v{card.version}-{card.digest.removeprefix('sha256:')[:8]}"


# Connecting


def test_the_base_s_tokenizer_identity_and_context_are_known_without_its_weights(hub: AdapterHub):
    assert isinstance(hub.engine, VLLMEngine)
    assert hub.engine.base_name == DEMO_BASE
    assert hub.engine.fingerprint == hub.registry.get("json").base.fingerprint
    assert hub.engine.context_length == 512


def test_without_cards_the_base_is_the_server_s(server: FakeServer, tmp_path: Path):
    with AdapterHub.connect([server.url], tmp_path) as hub:
        assert hub.engine.base_name == str(demo_base_folder())
        assert hub.generate("hi").text == f"I am {DEMO_BASE}."


def test_a_base_that_is_not_the_servers_is_refused(server: FakeServer, tiny_base: Path):
    with pytest.raises(ConfigError, match="another base"):
        AdapterHub.connect(server.url, ADAPTERS, base=tiny_base)


def test_a_server_whose_base_is_elsewhere_needs_a_name(tmp_path: Path):
    with (
        FakeServer(FakeVllm(root=str(tmp_path / "missing"))) as other,
        pytest.raises(ConfigError, match="not on this machine") as caught,
    ):
        AdapterHub.connect(other.url, tmp_path)
    assert "base=" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ({"quantization": "nf4"}, "--quantization"),
        ({"quantization": None}, "--quantization"),
        ({"max_loras": 4}, "--max-loras"),
        ({"device": "cuda"}, "leave it out"),
        ({"batch_invariant": True}, "VLLM_BATCH_INVARIANT"),
    ],
)
def test_settings_that_a_server_does_not_have_are_refused(
    server: FakeServer, setting: dict[str, Any], hint: str
):
    with pytest.raises(ConfigError, match=next(iter(setting))) as caught:
        AdapterHub.connect(server.url, ADAPTERS, **setting)
    assert hint in (caught.value.hint or "")


def test_settings_of_a_registry_at_a_url_are_taken(server: FakeServer):
    with AdapterHub.connect(server.url, ADAPTERS, registry_refresh=5, registry_cache_mib=64) as hub:
        assert hub.engine.context_length == 512


@pytest.mark.parametrize("urls", ["transformers", "llama.cpp", "", []])
def test_connecting_needs_a_url(urls: str | list[str]):
    with pytest.raises(ConfigError, match="http://host:8000"):
        AdapterHub.connect(urls, ADAPTERS)


def test_limits_are_the_fleet_s(server: FakeServer, fake: FakeVllm):
    fake.max_in_flight, fake.token_seconds = 0, 0.005
    with AdapterHub.connect(server.url, ADAPTERS, max_num_seqs=2) as hub:
        hub.generate_batch(["hi"] * 12, "support", max_tokens=4)
    assert fake.max_in_flight == 2


@pytest.mark.parametrize("engine", ["vllm", "localhost:8000", "ftp://host"])
def test_what_is_no_engine(engine: str):
    with pytest.raises(ConfigError, match="engine"):
        AdapterHub.from_pretrained(DEMO_BASE, ADAPTERS, engine=engine)


# Answers


def test_an_adapter_answers_under_its_version_and_digest(hub: AdapterHub):
    generation = hub.generate("Ann Lee. Keys: name", "json")
    assert (generation.text, generation.adapter) == ('{"name": "Ann"}', "json")
    assert generation.finish_reason == "stop"
    assert hub.generate("My printer is broken", "support").text == f"I am {model_of(hub, 'support')}."
    assert hub.generate("hi", None).text == f"I am {DEMO_BASE}."


def test_the_prompt_is_the_one_that_the_card_describes(hub: AdapterHub, fake: FakeVllm, tokenizer: Any):
    hub.generate("Ann Lee. Keys: name", "json")
    rendered = tokenizer.decode(fake.bodies[-1]["prompt"])
    profile = hub.registry.get("json").prompt
    assert "Ann Lee. Keys: name" in rendered
    assert not profile.system or profile.system in rendered


def test_the_router_chooses(hub: AdapterHub):
    generation = hub.generate("My printer shows error 41", "auto")
    assert generation.route
    assert generation.route.adapter == "support"


async def test_streams_batches_and_asyncio(hub: AdapterHub):
    with hub.stream("hi", "support") as stream:
        assert "".join(stream) == f"I am {model_of(hub, 'support')}."
    chunks = [text async for text in hub.astream("hi", "support")]
    assert "".join(chunks) == f"I am {model_of(hub, 'support')}."
    generations = await hub.agenerate_batch(["hi", "hi"], ["json", None])
    assert [one.text for one in generations] == ['{"name": "Ann"}', f"I am {DEMO_BASE}."]


SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def test_a_schema_goes_to_the_server_as_llguidance_s_grammar(hub: AdapterHub, fake: FakeVllm):
    assert hub.generate("Ann", "json", schema=SCHEMA).parsed == {"name": "Ann"}
    grammar = fake.bodies[-1]["structured_outputs"]["grammar"]
    header, _, schema = grammar.partition("\nstart: %json ")
    assert header == "%llguidance {}"
    assert json.loads(schema)["properties"] == {"name": {"type": "string"}}
    assert json.loads(schema)["x-guidance"]["whitespace_flexible"] is False


@pytest.mark.parametrize(
    ("output_format", "grammar"),
    [
        ({"regex": r"[a-z]/\d+"}, r"start: /[a-z]\/\d+/"),
        ({"grammar": 'start: "a" | "b"'}, 'start: "a" | "b"'),
        ({"choices": ["yes", "no"]}, "start: /yes|no/"),
    ],
)
def test_other_formats_go_there_as_grammars(
    hub: AdapterHub, fake: FakeVllm, output_format: dict[str, Any], grammar: str
):
    fake.answer = lambda model, prompt: {"regex": "a/1", "grammar": "b", "choices": "no"}[
        next(iter(output_format))
    ]
    assert hub.generate("hi", None, **output_format).text in ("a/1", "b", "no")
    assert fake.bodies[-1]["structured_outputs"]["grammar"] == f"%llguidance {{}}\n{grammar}"


def test_an_answer_that_leaves_its_format_is_an_error(hub: AdapterHub, fake: FakeVllm):
    fake.answer = lambda model, prompt: "no JSON at all"
    with pytest.raises(GenerationError, match="leaves its output format") as caught:
        hub.generate("Ann", "json", schema=SCHEMA)
    assert "guidance" in (caught.value.hint or "")


def test_a_format_that_cannot_be_enforced_is_refused_here(hub: AdapterHub, fake: FakeVllm):
    sent = len(fake.bodies)
    with pytest.raises(InvalidRequestError, match="cannot be enforced"):
        hub.generate("hi", None, regex="(")
    with pytest.raises(RequestTooLongError, match="shortest answer"):
        hub.generate("hi", None, schema=SCHEMA, max_tokens=2)
    assert len(fake.bodies) == sent


def test_an_answer_in_a_format_may_end_at_max_tokens_unlike_in_process(hub: AdapterHub, fake: FakeVllm):
    fake.answer = lambda model, prompt: '{"name": "Ann and a very long name that goes on and on and on"}'
    assert hub.generate("Ann", "json", schema=SCHEMA, max_tokens=12).finish_reason == "length"


# Adapters


def test_pin_preload_unload_and_figures(hub: AdapterHub, fake: FakeVllm):
    hub.pin("code")
    hub.generate("hi", "code", max_tokens=1)
    assert model_of(hub, "code") in fake.loaded
    assert fake.loaded[model_of(hub, "code")] == str(hub.registry.folder(hub.registry.get("code")).absolute())
    hub.pin("code", False)
    hub.unload("code")
    hub.generate("hi", "code", max_tokens=1)
    assert hub.stats().tokens
    assert hub.stats().runner == "vllm"


def test_a_registry_given_by_a_relative_path_is_told_as_an_absolute_one(
    server: FakeServer, fake: FakeVllm, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ADAPTERS.parent)
    fake.restart()
    with AdapterHub.connect(server.url, "adapters") as hub:
        hub.generate("hi", "json", max_tokens=1)
    assert all(Path(path).is_absolute() for path in fake.loaded.values())


@pytest.fixture
def own_registry(hub: AdapterHub, tmp_path: Path) -> AdapterRegistry:
    registry = AdapterRegistry(tmp_path / "registry")
    for name in ("json", "support"):
        registry.register(name, hub.registry.folder(hub.registry.get(name)), base=DEMO_BASE)
    return registry


async def test_a_blend_is_served(server: FakeServer, own_registry: AdapterRegistry):
    with AdapterHub.connect(server.url, own_registry.root, max_lora_rank=32) as own:
        found = own.generate("hi", "json:0.7+support:0.3")
        assert found.text.startswith("I am blend-")
        assert found.adapter == "json@1:0.7+support@1:0.3"
        transport = httpx.ASGITransport(create_app(own, ServerConfig()))
        async with httpx.AsyncClient(transport=transport, base_url="http://server/v1") as client:
            body = {"model": "support:0.3+json:0.7", "messages": [{"role": "user", "content": "hi"}]}
            answer = (await client.post("/chat/completions", json=body)).json()
        assert answer["choices"][0]["message"]["content"] == found.text


def test_a_blend_that_was_registered_is_served(server: FakeServer, own_registry: AdapterRegistry):
    with AdapterHub.connect(server.url, own_registry.root) as own:
        card = own.blend("both", {"json": 0.5, "support": 0.5}, method="svd", rank=16)
        assert own.generate("hi", "both").text == f"I am {model_of(own, 'both')}."
        assert card.version == 1


# Everything above


def test_langchain(hub: AdapterHub):
    model = ChatAdapterHub(hub=hub, model="support")
    assert model.invoke([HumanMessage("hi")]).content == f"I am {model_of(hub, 'support')}."
    assert "".join(str(chunk.content) for chunk in model.stream("hi")) == f"I am {model_of(hub, 'support')}."


async def test_the_server(hub: AdapterHub):
    transport = httpx.ASGITransport(create_app(hub, ServerConfig()))
    async with httpx.AsyncClient(transport=transport, base_url="http://server/v1") as client:
        body = {"model": "support", "messages": [{"role": "user", "content": "hi"}]}
        answer = (await client.post("/chat/completions", json=body)).json()
        assert answer["choices"][0]["message"]["content"] == f"I am {model_of(hub, 'support')}."


def test_commands_take_urls(server: FakeServer, fake: FakeVllm):
    options = ["--registry", str(ADAPTERS), "--engine", server.url]
    shown = CliRunner().invoke(cli, ["run", "json", "Ann Lee. Keys: name", *options, "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["text"] == '{"name": "Ann"}'
    refused = CliRunner().invoke(cli, ["run", "json", "hi", *options, "--quantization", "nf4"])
    assert isinstance(refused.exception, ConfigError)
    wrong = CliRunner().invoke(cli, ["run", "json", "hi", "--engine", "gpu"])
    assert wrong.exit_code == 2


def test_the_environment_names_the_servers(server: FakeServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ADAPTERHUB_ENGINE", server.url)
    with AdapterHub.from_pretrained(registry=ADAPTERS) as hub:
        assert isinstance(hub.engine, VLLMEngine)
