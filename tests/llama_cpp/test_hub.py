"""A hub over llama.cpp: the same registry, router, cards, LangChain model and commands."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from adapterhub import AdapterHub, AdapterRegistry
from adapterhub.base import BaseFingerprint
from adapterhub.base.locating import locate_base
from adapterhub.cli.main import cli
from adapterhub.errors import AdapterIncompatibleError, ConfigError
from tests.tiny import make_adapter, make_base, make_gguf

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make test-gguf)")

PROMPT = "the quick brown fox"


@pytest.fixture(scope="module")
def registry(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> AdapterRegistry:
    folder = tmp_path_factory.mktemp("adapters")
    registry = AdapterRegistry(folder / "registry")
    examples = {
        "json": ["as JSON", "make JSON", "JSON please"],
        "support": ["help me", "error 41", "it broke"],
    }
    for seed, (name, texts) in enumerate(examples.items()):
        source = make_adapter(folder / name, gguf_file.parent / "base", seed=seed)
        registry.register(
            name,
            source,
            base=str(gguf_file),
            description=f"Answers {texts[0]}.",
            routing={"examples": texts},
        )
    return registry


@pytest.fixture(scope="module")
def hub(gguf_file: Path, registry: AdapterRegistry) -> Iterator[AdapterHub]:
    with AdapterHub.from_pretrained(gguf_file, registry.root, engine="llama.cpp", kv_cache_mib=8) as hub:
        yield hub


@pytest.fixture(scope="module")
def own_hub(gguf_file: Path, registry: AdapterRegistry) -> Iterator[AdapterHub]:
    with AdapterHub.from_pretrained(gguf_file, registry.root, quantization=None) as hub:
        yield hub


@pytest.mark.parametrize("adapter", [None, "json", "support", "json:0.6+support:0.4", "auto"])
def test_a_hub_answers_as_over_our_own_engine(hub: AdapterHub, own_hub: AdapterHub, adapter: str | None):
    got, wanted = (one.generate(PROMPT, adapter, max_tokens=12) for one in (hub, own_hub))
    assert (got.text, got.adapter, got.route) == (wanted.text, wanted.adapter, wanted.route)


def test_a_batch_mixes_adapters(hub: AdapterHub):
    names = ["json", None, "support", "json"]
    batch = hub.generate_batch([PROMPT] * 4, names)
    assert [one.text for one in batch] == [hub.generate(PROMPT, name).text for name in names]
    assert len({one.text for one in batch}) == 3


def test_langchain_streams_it(hub: AdapterHub):
    from adapterhub.langchain import ChatAdapterHub

    model = ChatAdapterHub(hub=hub, model="json", max_tokens=12)
    assert (
        "".join(str(chunk.content) for chunk in model.stream(PROMPT))
        == hub.generate(PROMPT, "json", max_tokens=12).text
    )


def test_a_card_for_another_base_is_refused(hub: AdapterHub, registry: AdapterRegistry, tmp_path: Path):
    base = make_base(tmp_path / "base", seed=5)
    registry.register("foreign", make_adapter(tmp_path / "foreign", base), base=str(base))
    with pytest.raises(AdapterIncompatibleError, match="another base"):
        hub.generate(PROMPT, "foreign")


@pytest.mark.parametrize("merged", [False, True])
def test_a_file_that_was_exported_of_a_base_serves_the_base_s_adapters(tmp_path: Path, merged: bool):
    base = make_base(tmp_path / "base")
    registry = AdapterRegistry(tmp_path / "registry")
    registry.register("json", make_adapter(tmp_path / "json", base), base=base)
    origin = {"adapterhub__base_digest": BaseFingerprint.of(base).digest}
    if merged:
        origin |= {"adapterhub__adapter_digest": "sha256:0"}
    file = make_gguf(tmp_path / "tiny.gguf", base, quantization="Q8_0", **origin)
    with AdapterHub.from_pretrained(file, registry.root, engine="llama.cpp", kv_cache_mib=8) as hub:
        if merged:
            with pytest.raises(AdapterIncompatibleError, match="other weights"):
                hub.generate(PROMPT, "json", max_tokens=4)
        else:
            assert hub.generate(PROMPT, "json", max_tokens=4).adapter == "json"


def test_the_command_takes_an_engine(hub: AdapterHub, registry: AdapterRegistry, gguf_file: Path):
    arguments = [
        "run",
        "json",
        PROMPT,
        "--max-tokens=12",
        "--json",
        "--engine",
        "llama.cpp",
        "--base",
        str(gguf_file),
    ]
    result = CliRunner().invoke(cli, [*arguments, "--registry", str(registry.root)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["text"] == hub.generate(PROMPT, "json", max_tokens=12).text


def test_a_file_that_llama_cpp_does_not_load_is_one_clear_error(tmp_path: Path):
    file = make_gguf(tmp_path / "tiny.gguf", make_base(tmp_path / "base"))
    locate_base(file)  # its 16-bit form stays in the cache, by the file's size and time
    stat = file.stat()
    file.write_bytes(b"GGUX" + file.read_bytes()[4:])
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ConfigError, match=r"cannot load .tiny\.gguf.: .*magic"):
        AdapterHub.from_pretrained(file, tmp_path / "registry", engine="llama.cpp")
