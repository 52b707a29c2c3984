"""The digests of tokenizer and chat template: equal for the same content, whatever form it is saved in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from adapterhub.base import tokenizer_files
from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.base.tokenizer_files import TokenizerFiles


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_base, tmp_path / "copy")


def test_the_vocabulary_is_that_of_transformers(tiny_base: Path):
    assert TokenizerFiles(tiny_base).vocabulary == AutoTokenizer.from_pretrained(tiny_base).get_vocab()


def test_a_tokenizer_that_is_saved_again_has_the_same_digests(tiny_base: Path, copy: Path):
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.padding_side = "left"
    tokenizer("text", truncation=True, max_length=3)
    tokenizer.save_pretrained(copy)
    content = json.loads((copy / "tokenizer.json").read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]  # the older form
    (copy / "tokenizer.json").write_text(json.dumps(content))
    assert BaseFingerprint.of(copy) == BaseFingerprint.of(tiny_base)


def test_a_template_in_the_config_is_that_in_a_file(tiny_base: Path, copy: Path):
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    config = json.loads((copy / "tokenizer_config.json").read_text())
    for stored in (template, [{"name": "default", "template": template}]):
        (copy / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": stored}))
        assert BaseFingerprint.of(copy) == BaseFingerprint.of(tiny_base)


def test_swapped_tokens_are_another_base(tiny_base: Path, copy: Path):
    content = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = dict(zip(vocabulary, reversed(vocabulary.values()), strict=True))
    (copy / "tokenizer.json").write_text(json.dumps(content))
    one, other = BaseFingerprint.of(tiny_base), BaseFingerprint.of(copy)
    assert one.digest == other.digest
    assert "tokenizer" in str(one.mismatch(other))
    assert not one.has_other_template(other)


@pytest.mark.parametrize("change", ["merges", "added_tokens"])
def test_other_merges_or_added_tokens_are_another_tokenizer(tiny_base: Path, copy: Path, change: str):
    content = json.loads((copy / "tokenizer.json").read_text())
    part = content["model"] if change == "merges" else content
    part[change] = part[change][:-1]
    if change == "added_tokens":
        content["model"]["vocab"].pop("<|im_end|>")
        for name in ("tokenizer_config.json",):
            config = json.loads((copy / name).read_text())
            (copy / name).write_text(json.dumps({**config, "added_tokens_decoder": {}}))
    (copy / "tokenizer.json").write_text(json.dumps(content))
    assert BaseFingerprint.of(tiny_base).mismatch(BaseFingerprint.of(copy)) is not None


def test_another_template_is_the_same_base_and_known_to_differ(tiny_base: Path, copy: Path):
    one = BaseFingerprint.of(tiny_base)
    for template in ("another", ""):
        (copy / "chat_template.jinja").write_text(template)
        other = BaseFingerprint.of(copy)
        assert one.mismatch(other) is None
        assert one.has_other_template(other)
        assert one.chat_template_digest != other.chat_template_digest


def test_the_digest_is_computed_once_for_the_same_files(copy: Path, monkeypatch: pytest.MonkeyPatch):
    read, reads = tokenizer_files._read_json, []
    monkeypatch.setattr(tokenizer_files, "_read_json", lambda path: reads.append(path.name) or read(path))
    first = TokenizerFiles(copy).tokenizer_digest
    assert "tokenizer.json" in reads
    reads.clear()
    assert TokenizerFiles(copy).tokenizer_digest == first
    assert reads == []
    (copy / "added_tokens.json").write_text('{"<new>": 300}')
    assert TokenizerFiles(copy).tokenizer_digest != first


def test_no_code_of_a_base_is_offered_to_be_run(copy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    monkeypatch.setattr("transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE", 1)
    content = json.loads((copy / "tokenizer.json").read_text())["model"]
    (copy / "vocab.json").write_text(json.dumps(content["vocab"]))
    (copy / "tokenizer.json").unlink()
    config = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    assert TokenizerFiles(copy).tokenizer_digest is None


def test_digests_that_a_card_does_not_know_are_not_compared(tiny_base: Path):
    known = BaseFingerprint.of(tiny_base)
    unknown = known.model_copy(update={"tokenizer_digest": None, "chat_template_digest": None})
    for one, other in ((known, unknown), (unknown, known)):
        assert one.mismatch(other) is None
        assert not one.has_other_template(other)


def test_a_base_without_tokenizer_json_is_read_through_transformers(tmp_path: Path, tiny_base: Path):
    content = json.loads((tiny_base / "tokenizer.json").read_text())["model"]
    folder = tmp_path / "gpt2"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in content["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}'
    )
    loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    files = TokenizerFiles(folder)
    assert files.vocabulary == loaded.get_vocab()
    loaded.save_pretrained(folder)
    assert TokenizerFiles(folder).tokenizer_digest == files.tokenizer_digest is not None
