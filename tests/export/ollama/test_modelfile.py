"""Modelfiles: what they hold, read as Ollama reads them, and what is refused."""

import json
from pathlib import Path

import pytest

from adapterhub.errors import ExportError
from adapterhub.export.ollama import GgufFiles, write_modelfiles
from adapterhub.export.ollama.deriving import derive_template
from adapterhub.export.ollama.modelfile import quoted
from adapterhub.registry.cards import PromptProfile
from tests.export.ollama.families import CHATML, DEMO_BASE, FAMILIES, SPECIAL_TOKENS, prompt_source
from tests.export.ollama.modelfile_parser import parse_modelfile

F16 = {"f16": GgufFiles("model-f16.gguf")}
VOCABULARY = {"<s>": 0, "</s>": 1, "<|im_end|>": 2, "<|eot_id|>": 3, "<pad>": 4}


def make_model(folder: Path, family: str = "chatml", **generation: object) -> Path:
    folder.mkdir()
    tokenizer = {"model": {"type": "BPE", "vocab": VOCABULARY, "merges": []}}
    contents = {
        "config.json": {"model_type": "llama", "max_position_embeddings": 32768},
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": SPECIAL_TOKENS,
        "generation_config.json": generation,
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(FAMILIES[family], encoding="utf-8")
    return folder


def parameters(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in parse_modelfile(path.read_text(encoding="utf-8")):
        found.setdefault(name, []).append(value)
    return found


def write(tmp_path: Path, model: Path, artefacts: dict[str, GgufFiles] = F16, **settings: object) -> dict:
    [path] = write_modelfiles(tmp_path, artefacts, model, **settings)  # type: ignore[arg-type]
    return parameters(path)


def test_one_for_each_artefact(tmp_path: Path):
    artefacts = {
        "f16": GgufFiles("demo-f16.gguf"),
        "q4_k_m": GgufFiles("demo-q4_k_m.gguf"),
        "json": GgufFiles("demo-f16.gguf", "json-f16.gguf"),
    }
    profile = PromptProfile(system='Answer in "JSON".\n\n  Always. ', stop=("\n\n", 'a "b"'))
    written = write_modelfiles(tmp_path, artefacts, DEMO_BASE, profile=profile)
    assert [path.name for path in written] == ["Modelfile.f16", "Modelfile.q4_k_m", "Modelfile.json"]
    template = derive_template(prompt_source("demo")).text
    assert "# demo-f16.gguf is a GGUF file of the adapter's base" in written[2].read_text()
    for path, files in zip(written, artefacts.values(), strict=True):
        assert parameters(path) == {
            "from": [f"./{files.model}"],
            **({"adapter": [f"./{files.adapter}"]} if files.adapter else {}),
            "template": [template],
            "system": ['Answer in "JSON".\n\n  Always. '],
            "stop": ["<|im_end|>", "\n\n", 'a "b"'],
            "num_ctx": ["1024"],
            "temperature": ["0"],
            "top_k": ["0"],
            "top_p": ["1"],
            "min_p": ["0"],
            "repeat_penalty": ["1"],
        }


@pytest.mark.parametrize("family", FAMILIES)
def test_the_template_of_every_family_is_read_back(tmp_path: Path, family: str):
    model = make_model(tmp_path / "model", family)
    assert write(tmp_path, model)["template"] == [derive_template(prompt_source(family)).text]


def test_sampling_parameters_of_model_and_card(tmp_path: Path):
    model = make_model(
        tmp_path / "model", do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05
    )
    card = PromptProfile(generation={"top_k": 5, "max_tokens": 64, "seed": 2**53 + 1, "stop": ["END"]})
    found = write(tmp_path, model, profile=card, num_ctx=8192)
    assert {name: values for name, values in found.items() if name not in ("from", "template")} == {
        "stop": ["</s>", "<|im_end|>", "END"],
        "num_ctx": ["8192"],
        "temperature": ["0.7"],
        "top_k": ["5"],
        "top_p": ["0.8"],
        "min_p": ["0"],
        "repeat_penalty": ["1.05"],
        "repeat_last_n": ["-1"],
        "num_predict": ["64"],
        "seed": [str(2**53 + 1)],
    }


def test_a_long_context_is_not_taken_whole(tmp_path: Path):
    assert write(tmp_path, make_model(tmp_path / "model"))["num_ctx"] == ["4096"]


def test_every_end_token_is_a_stop(tmp_path: Path):
    model = make_model(tmp_path / "model", "llama3", eos_token_id=[1, 2])
    assert write(tmp_path, model)["stop"] == ["</s>", "<|im_end|>", "<|eot_id|>"]


def test_the_instruction_format_ends_at_the_next_instruction(tmp_path: Path):
    model = make_model(tmp_path / "model")
    found = write(tmp_path, model, profile=PromptProfile(format="instruction"))
    assert found["stop"] == ["</s>", "\n### Instruction:"]
    assert "### Instruction:\n{{ .Content }}" in found["template"][0]


def test_the_cards_own_template_is_used(tmp_path: Path):
    model = make_model(tmp_path / "model")
    own = CHATML.replace("im_", "own_")
    [template] = write(tmp_path, model, profile=PromptProfile(chat_template=own))["template"]
    assert "<|own_end|>" in template
    assert "im_" not in template


def test_the_token_that_the_tokenizer_adds_is_left_out(tmp_path: Path):
    model = make_model(tmp_path / "model", "llama3")
    assert "<s>" in write(tmp_path, model)["template"][0]
    assert "<s>" not in write(tmp_path, model, add_bos=True)["template"][0]


@pytest.mark.parametrize(
    ("family", "settings", "note"),
    [
        ("gemma", {}, "takes no system message"),
        ("llama3", {}, "strips the contents of messages"),
        (
            "chatml",
            {
                "profile": PromptProfile(
                    chat_template=CHATML.replace(
                        "{{ m.content }}", "{{ m.content.strip() if m.role == 'assistant' else m.content }}"
                    )
                )
            },
            "strips the contents of messages",
        ),
        ("chatml", {"add_bos": True}, "llama.cpp begins prompts with the BOS token"),
        (
            "chatml",
            {"profile": PromptProfile(generation={"suppress_tokens": [3]})},
            "Ollama has no suppress_tokens",
        ),
        (
            "chatml",
            {"profile": PromptProfile(generation={"presence_penalty": 0.5})},
            "Ollama's presence_penalty counts the tokens of the prompt too",
        ),
    ],
)
def test_what_ollama_does_otherwise_is_noted(tmp_path: Path, family: str, settings: dict, note: str):
    [path] = write_modelfiles(tmp_path, F16, make_model(tmp_path / "model", family), **settings)
    assert any(line.startswith("# ") and note in line for line in path.read_text().splitlines())


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a b",
        "",
        ' "a" b "',
        "a\nb",
        "\n\na ",
        '"""',
        '"',
        'ends "quoted"',
        "{{ x }}",
        "`",
        "a\\nb",
        "é 🙂",
    ],
)
def test_quoted_texts_are_read_back(text: str):
    assert parse_modelfile(f"FROM x\nSYSTEM {quoted(text)}\nPARAMETER seed 1\n") == [
        ("from", "x"),
        ("system", text),
        ("seed", "1"),
    ]


@pytest.mark.parametrize(
    ("text", "reason"), [('a """ b', "three quotes"), ("a\u200db", r"U\+200D"), ("\0", r"U\+0000")]
)
def test_what_a_modelfile_cannot_hold_is_refused(text: str, reason: str):
    with pytest.raises(ExportError, match=reason):
        quoted(text)


def test_nothing_is_written_where_something_is_refused(tmp_path: Path):
    model = make_model(tmp_path / "model", "gemma")
    with pytest.raises(ExportError, match="the chat template takes no system message"):
        write_modelfiles(tmp_path, F16, model, profile=PromptProfile(system="Be brief."))
    (model / "chat_template.jinja").write_text("{{ messages[0].content | upper }}")
    with pytest.raises(ExportError, match="cannot be written as an Ollama template"):
        write_modelfiles(tmp_path, F16, model)
    with pytest.raises(ExportError, match="U\\+200D"):
        write_modelfiles(tmp_path, F16, DEMO_BASE, profile=PromptProfile(system="a\u200db"))
    with pytest.raises(ExportError, match="generation settings are not valid"):
        write_modelfiles(tmp_path, F16, DEMO_BASE, profile=PromptProfile(generation={"top_p": 2}))
    assert not list(tmp_path.glob("Modelfile*"))
