"""What an adapter's own tokenizer files change: template and end token go onto the card, foreign tokens are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from adapterhub import AdapterHub, AdapterRegistry
from adapterhub.base.tokenizer_files import TokenizerFiles
from adapterhub.errors import AdapterIncompatibleError, AdapterInvalidError
from adapterhub.registry import PromptProfile
from adapterhub.requests.options import RequestOptions
from tests.registry.maker import make_adapter
from tests.tiny import CHAT_TEMPLATE
from tests.tiny import make_adapter as make_tiny_adapter

OWN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}\n{% endfor %}[assistant] "
LISTED = [{"name": "default", "template": OWN}, {"name": "tool_use", "template": "x"}]
Change = Callable[[PreTrainedTokenizerFast], object]


@pytest.fixture
def adapter(tmp_path: Path, tiny_base: Path) -> Path:
    return make_tiny_adapter(tmp_path / "adapter", tiny_base)


@pytest.fixture
def registry(tmp_path: Path) -> AdapterRegistry:
    return AdapterRegistry(tmp_path / "registry")


def save_tokenizer(folder: Path, base: Path, change: Change) -> PreTrainedTokenizerFast:
    """Saves the base's tokenizer beside an adapter, as trainers do, changed."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return tokenizer


def edit(folder: Path, name: str, change: Callable[[dict], object]) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def test_the_bases_own_tokenizer_changes_nothing(adapter: Path, tiny_base: Path, registry: AdapterRegistry):
    save_tokenizer(adapter, tiny_base, lambda tokenizer: None)
    card = registry.register("a", adapter, base=tiny_base)
    assert card.prompt == PromptProfile()
    assert not card.warnings


def test_its_template_and_end_token_are_used_as_transformers_uses_them(
    adapter: Path, tiny_base: Path, registry: AdapterRegistry
):
    def change(tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.chat_template, tokenizer.eos_token = OWN, "<|endoftext|>"

    own = save_tokenizer(adapter, tiny_base, change)
    card = registry.register("a", adapter, base=tiny_base)
    assert card.prompt.stop == ("<|endoftext|>",)
    assert any("chat template" in warning for warning in card.warnings)
    messages = [{"role": "user", "content": "Hi"}]
    with AdapterHub.from_pretrained(tiny_base, registry.root, quantization=None) as hub:
        assert str(hub.prompt_style("a")) == "chat template of the card"
        request = hub._preparer.prepare(messages, "a", RequestOptions({}, {})).request
        (sequence,) = hub.engine._builder.build(request, 1, lambda: None, stream=False)
    assert list(request.prompt) == own.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert sequence.end_token_ids == {0, 2}


FORMS = {
    "a file": {"chat_template.jinja": OWN},
    "in the config": {"tokenizer_config.json": {"chat_template": OWN, "eos_token": "<|endoftext|>"}},
    "one of several": {"tokenizer_config.json": {"chat_template": LISTED}},
    "the end token as an object": {"tokenizer_config.json": {"eos_token": {"content": "<|endoftext|>"}}},
    "the end token in the map": {"special_tokens_map.json": {"eos_token": "<|endoftext|>"}},
    "the end token in the generation config": {
        "generation_config.json": {"eos_token_id": [2, 0]},
        "added_tokens.json": {"<|endoftext|>": 0},
    },
}


@pytest.mark.parametrize("files", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("with_base", [True, False], ids=["base", "no base"])
def test_every_form_of_the_files_is_read(
    adapter: Path, tiny_base: Path, registry: AdapterRegistry, files: dict, with_base: bool
):
    for name, content in files.items():
        (adapter / name).write_text(content if isinstance(content, str) else json.dumps(content))
    card = registry.register("a", adapter, base=tiny_base if with_base else None)
    text = json.dumps(files)
    assert (card.prompt.chat_template or "").endswith(OWN) == ("messages" in text)
    assert card.prompt.stop == (("<|endoftext|>",) if "endoftext" in text else ())
    assert any("tool_use" in warning for warning in card.warnings) == ("tool_use" in text)


def test_without_a_base_the_template_and_end_token_are_taken_over(tmp_path: Path, registry: AdapterRegistry):
    adapter = make_adapter(tmp_path / "adapter")
    (adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": OWN, "eos_token": "</s>"}))
    prompt = registry.register("a", adapter).prompt
    assert prompt.chat_template == '{%- set eos_token = "</s>" -%}' + OWN
    assert prompt.stop == ("</s>",)


def test_what_the_caller_sets_wins_and_stops_add_up(
    adapter: Path, tiny_base: Path, registry: AdapterRegistry
):
    (adapter / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "own", "eos_token": "<|endoftext|>"})
    )

    def registered(prompt: object) -> PromptProfile:
        return registry.register("a", adapter, base=tiny_base, prompt=prompt).prompt  # type: ignore[arg-type]

    end = ("<|endoftext|>",)
    for system in ({"system": "Be brief."}, PromptProfile(system="Be brief.")):
        assert registered(system) == PromptProfile(system="Be brief.", chat_template="own", stop=end)
    assert registered({"chat_template": "mine"}).chat_template == "mine"
    for stop in ({"stop": ["x"]}, PromptProfile(stop=("x",))):
        assert registered(stop) == PromptProfile(chat_template="own", stop=(*end, "x"))


def test_a_trusted_card_outweighs_the_files_and_another_does_not(
    adapter: Path, tiny_base: Path, registry: AdapterRegistry, tmp_path: Path
):
    (adapter / "chat_template.jinja").write_text(OWN)
    first = registry.register("a", adapter, base=tiny_base)
    registry.update("a", prompt={"chat_template": "changed"})
    other = AdapterRegistry(tmp_path / "other")
    trusted = other.register("a", registry.folder(first), base=tiny_base, trust_card=True)
    assert trusted.prompt.chat_template == "changed"
    assert other.register("a", registry.folder(first), base=tiny_base).prompt.chat_template == OWN


def swap(content: dict) -> None:
    vocabulary = content["model"]["vocab"]
    one, two = sorted(vocabulary)[10:12]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]


def rename(content: dict) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["zzzzz"] = vocabulary.pop(max(vocabulary, key=len))
    content["model"]["merges"] = []


def move(content: dict) -> None:
    content["added_tokens"][1]["id"], content["added_tokens"][2]["id"] = 2, 1


@pytest.mark.parametrize("change", [swap, rename, move])
def test_another_tokenizer_is_refused_like_another_base(
    adapter: Path, tiny_base: Path, registry: AdapterRegistry, change: Callable[[dict], object]
):
    save_tokenizer(adapter, tiny_base, lambda tokenizer: None)
    edit(adapter, "tokenizer.json", change)
    with pytest.raises(AdapterIncompatibleError, match="tokenizer"):
        registry.register("a", adapter, base=tiny_base)
    assert registry.list() == []
    card = registry.register("a", adapter, base=tiny_base, force=True)
    assert any("tokens are others" in warning for warning in card.warnings)


def needs_in_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens(["<call>"], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|im_start|>", "<call>")


def needs_at_the_end(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens(["<call>"], special_tokens=True)
    tokenizer.eos_token = "<call>"


def needs_as_variable(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens(["<call>"], special_tokens=True)
    tokenizer.bos_token, tokenizer.chat_template = "<call>", "{{ bos_token }}{{ messages[0]['content'] }}"


@pytest.mark.parametrize("change", [needs_in_template, needs_at_the_end, needs_as_variable])
def test_a_token_that_prompts_or_answers_need_and_the_base_lacks_is_refused(
    adapter: Path, tiny_base: Path, registry: AdapterRegistry, change: Change
):
    save_tokenizer(adapter, tiny_base, change)
    with pytest.raises(AdapterIncompatibleError, match="'<call>', which the base lacks"):
        registry.register("a", adapter, base=tiny_base)
    assert any("<call>" in w for w in registry.register("a", adapter, base=tiny_base, force=True).warnings)


def test_any_other_token_that_the_base_lacks_is_told(
    adapter: Path, tiny_base: Path, registry: AdapterRegistry
):
    save_tokenizer(adapter, tiny_base, lambda tokenizer: tokenizer.add_tokens(["<a>", "<b>"]))
    (warning,) = registry.register("a", adapter, base=tiny_base).warnings
    assert "'<a>', '<b>'" in warning


DAMAGED = {
    "not JSON": ("tokenizer_config.json", b"{"),
    "not an object": ("tokenizer.json", b"[]"),
    "not UTF-8": ("chat_template.jinja", b"\xff"),
    "nested": ("tokenizer.json", b'{"a":' * 100_000),
    "a lone surrogate": ("tokenizer_config.json", b'{"chat_template": "\\ud800"}'),
    "a huge template": ("chat_template.jinja", b"x" * 300_000),
    "a huge number": (
        "tokenizer_config.json",
        b'{"added_tokens_decoder": {"' + b"9" * 5000 + b'": {"content": "x"}}}',
    ),
}


@pytest.mark.parametrize(("name", "content"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused(
    adapter: Path, tiny_base: Path, registry: AdapterRegistry, name: str, content: bytes
):
    (adapter / name).write_bytes(content)
    with pytest.raises(AdapterInvalidError, match="tokenizer files"):
        registry.register("a", adapter, base=tiny_base)
    assert registry.list() == []


def test_more_end_tokens_than_a_request_takes_are_refused(
    adapter: Path, tiny_base: Path, registry: AdapterRegistry
):
    save_tokenizer(adapter, tiny_base, lambda tokenizer: None)
    (adapter / "generation_config.json").write_text(json.dumps({"eos_token_id": [*range(100)]}))
    with pytest.raises(AdapterInvalidError, match="99 further end tokens"):
        registry.register("a", adapter, base=tiny_base)


@pytest.mark.parametrize("value", [None, 5, "x", [], [5], {}, {"a": []}, True])
@pytest.mark.parametrize(
    "field", ["model", "added_tokens", "added_tokens_decoder", "chat_template", "eos_token"]
)
def test_values_of_wrong_types_say_nothing(tmp_path: Path, field: str, value: object):
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_text(json.dumps({field: value, "eos_token_id": value}))
    files = TokenizerFiles(tmp_path)
    assert files.vocabulary == files.added_tokens == {}
    assert files.tokenizer_digest is None
    if isinstance(value, str):
        return
    assert (files.chat_templates, files.end_tokens) == ({}, frozenset())
