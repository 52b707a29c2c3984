"""Configurations of training runs: what YAML sets, what is refused, and that one error names every wrong field."""

from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from adapterhub.base.weight_only import WeightOnlyQuantization
from adapterhub.config import HubConfig
from adapterhub.errors import ConfigError
from adapterhub.training.config import FinetuneConfig

MINIMAL = "name: json\nbase: adapterhub-demo\ndata:\n  train: train.jsonl\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_required_fields(tmp_path: Path):
    config = FinetuneConfig.load(write(tmp_path, MINIMAL))
    assert (config.name, config.base, config.quantization) == ("json", "adapterhub-demo", "nf4")
    assert config.lora.target_modules == "all-linear"
    assert config.train.adapter_dtype == "float32"


def test_yaml_reads_2e_4_as_text_and_it_is_a_number_here(tmp_path: Path):
    config = FinetuneConfig.load(write(tmp_path, MINIMAL + "train: {learning_rate: 2e-4}\n"))
    assert config.train.learning_rate == 0.0002


def test_a_path_may_start_at_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text = (
        MINIMAL.replace("train: train.jsonl", "train: ~/a.jsonl")
        + "output_dir: ~/out\ninitial_adapter: ~/json\n"
    )
    config = FinetuneConfig.load(write(tmp_path, text))
    paths = [config.data.train, config.output_dir, config.initial_adapter]
    assert paths == [tmp_path / "home" / name for name in ("a.jsonl", "out", "json")]
    with pytest.raises(ConfigError, match=r"output_dir: .*'~nobody-here/out' is not a path"):
        FinetuneConfig.load(write(tmp_path, MINIMAL + "output_dir: ~nobody-here/out\n"))


def test_paths_are_relative_to_the_files_folder(tmp_path: Path):
    text = MINIMAL.replace("train: train.jsonl", "{train: data/a.jsonl, validation: /srv/b.jsonl}")
    config = FinetuneConfig.load(write(tmp_path, text + "initial_adapter: adapters/json/1\n"))
    assert config.data.train == tmp_path / "data/a.jsonl"
    assert config.data.validation == Path("/srv/b.jsonl")
    assert config.initial_adapter == tmp_path / "adapters/json/1"


def test_a_relative_base_is_in_the_files_folder_and_a_hub_id_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    runs = tmp_path / "runs"
    for folder in (runs / "models" / "tiny", tmp_path / "elsewhere" / "models" / "tiny"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")

    def base(given: str) -> str:
        return FinetuneConfig.load(write(runs, MINIMAL.replace("adapterhub-demo", given))).base

    assert base("models/tiny") == base("./models/tiny") == str(runs / "models" / "tiny")
    assert base("../models/tiny") == str(tmp_path / "models" / "tiny")  # and not the current folder's
    assert base("organisation/tiny") == "organisation/tiny"
    assert base("adapterhub-demo") == "adapterhub-demo"
    assert base(str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        '{"messages": [{"role": "user", "content": "my secret"}]}\n{"messages": []}\n',
        "card:\n  description: my secret: is\n",
        "a: *secret\n",
        "a: !secret x\n",
        'a: "my secret\n',
        "- secret\n- [\n",
        "\tsecret: 1\n",
    ],
)
def test_an_error_of_yaml_says_the_line_and_not_its_text(tmp_path: Path, text: str):
    with pytest.raises(ConfigError) as caught:
        FinetuneConfig.load(write(tmp_path, text))
    assert "secret" not in str(caught.value)
    (tmp_path / "adapterhub.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        HubConfig.load(tmp_path)
    assert "secret" not in str(caught.value)


def test_an_error_of_yaml_says_what_is_wrong_where(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"line 2, column 3: mapping values are not allowed here\.$"):
        FinetuneConfig.load(write(tmp_path, "a: 1\n b: 2\n"))
    wanted = r"line 2, column 1: expected '<document start>', but found '\{'\.$"
    with pytest.raises(ConfigError, match=wanted):
        FinetuneConfig.load(write(tmp_path, '{"a": 1}\n{"b": 2}\n'))


def test_one_error_names_every_wrong_field(tmp_path: Path):
    text = """
name: Not A Name
data: {train: x.jsonl, validation: y.jsonl, validation_share: 0.1}
lora: {r: 0, rank: 8}
train: {learning_rate: fast, epochs: 1, max_steps: 5}
quantization: 3bit
card: {descripton: typo, routing: {exmples: [a]}}
"""
    with pytest.raises(ConfigError) as caught:
        FinetuneConfig.load(write(tmp_path, text))
    wanted = [
        "name: ",
        "base: Field required",
        "data: ",
        "lora.r: ",
        "lora.rank: ",
        "train.learning_rate: ",
        "quantization: ",
        "card.descripton: ",
        "card.routing.exmples: ",
    ]
    assert [field for field in wanted if field not in caught.value.message] == []
    assert caught.value.hint


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("train", "train: {epochs: 1, max_steps: 5}\n"),
        ("train.warmup", "train: {warmup: -1}\n"),
        ("lora.target_modules", "lora: {target_modules: []}\n"),
        ("card.language", "card: {language: en}\n"),
        ("card.prompt.format", "card: {prompt: {format: xml}}\n"),
    ],
)
def test_invalid_values(tmp_path: Path, field: str, text: str):
    with pytest.raises(ConfigError, match=field):
        FinetuneConfig.load(write(tmp_path, MINIMAL + text))


@pytest.mark.parametrize("quantization", get_args(WeightOnlyQuantization))
def test_a_quantisation_that_no_gradient_flows_through_is_refused(tmp_path: Path, quantization: str):
    with pytest.raises(ConfigError, match=r"no gradient flows through .*train with 'nf4'"):
        FinetuneConfig.load(write(tmp_path, f"{MINIMAL}quantization: {quantization}\n"))


@pytest.mark.parametrize("text", ["- a\n- b\n", "", "a: [\n", "x: !!python/object/apply:os.getcwd []\n"])
def test_files_that_are_no_configuration(tmp_path: Path, text: str):
    with pytest.raises(ConfigError):
        FinetuneConfig.load(write(tmp_path, text))


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(ConfigError, match="could not be read"):
        FinetuneConfig.load(tmp_path / "none.yaml")


def test_a_configuration_does_not_change():
    config = FinetuneConfig(name="a", base="b", data={"train": "c"})
    with pytest.raises(ValidationError):
        config.name = "d"


def test_only_fields_that_were_set_go_on_the_card():
    config = FinetuneConfig(name="a", base="b", data={"train": "c"}, card={"description": "d", "tags": ["e"]})
    assert config.card.fields() == {"description": "d", "tags": ("e",)}


def test_every_field_has_its_description():
    def fields(schema: dict, path: str = ""):
        for name, field in schema.get("properties", {}).items():
            yield f"{path}{name}", field

    schema = FinetuneConfig.model_json_schema()
    options = [schema, *(part for name, part in schema["$defs"].items() if name.endswith("Options"))]
    assert [name for part in options for name, field in fields(part) if not field.get("description")] == []
