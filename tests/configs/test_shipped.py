"""The shipped configurations: each is valid and complete, is copied whole, and runs by its name."""

import json
from pathlib import Path

import pytest

from adapterhub import AdapterRegistry
from adapterhub.base.locating import DEMO_BASE
from adapterhub.configs import ShippedConfig, copy_config, read_config, shipped_configs
from adapterhub.dataset import DatasetConfig
from adapterhub.errors import ConfigError
from adapterhub.training.config import FinetuneConfig
from adapterhub.training.finetuning import finetune
from adapterhub.training.planning import plan_finetune
from adapterhub.training.preparing import with_composed_data
from adapterhub.training.trainer import first_example

SHIPPED = shipped_configs()
BASES = {
    DEMO_BASE,
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "distilbert/distilgpt2",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "mistralai/Mistral-7B-Instruct-v0.3",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3.5-0.8B",
    "google/gemma-3-1b-it",
    "meta-llama/Llama-3.2-1B-Instruct",
}


@pytest.mark.parametrize("config", SHIPPED, ids=lambda config: config.name)
def test_every_configuration_is_valid_by_its_name(
    config: ShippedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    kind = FinetuneConfig if config.command == "finetune" else DatasetConfig
    loaded = kind.load(config.name)
    assert config.base is None or loaded.base == config.base
    assert config.description.endswith(".")
    assert config.name in config.path.read_text(encoding="utf-8")  # the command that takes it


def test_there_is_one_for_every_base_that_is_named():
    assert {config.base for config in SHIPPED} - {None} >= BASES


def test_a_relative_path_starts_here_and_what_ships_with_the_configuration_there():
    content, folder = read_config("lora/smollm2_135m")
    assert (content["data"]["train"], folder) == ("train.jsonl", Path())
    content, folder = read_config("priority/demo.yaml")
    assert Path(content["data"]["train"]).is_file()


def test_a_file_of_that_name_is_read_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "priority").mkdir()
    (tmp_path / "priority" / "demo").write_text("{name: mine}")
    assert read_config("priority/demo") == ({"name": "mine"}, Path("priority"))


def test_the_demo_configuration_trains_as_it_stands(tiny_base: Path, tmp_path: Path):
    config = FinetuneConfig.load("priority/demo")
    short = config.train.model_copy(update={"epochs": None, "max_steps": 2})
    registry = AdapterRegistry(tmp_path)
    card = finetune(config.model_copy(update={"base": str(tiny_base), "train": short}), registry)
    assert (card.ref, card.lineage.settings["records"]) == ("priority@1", 49)


def test_its_data_are_those_of_the_example():
    example = Path(__file__).parents[2] / "examples" / "finetune.jsonl"
    (demo,) = (config for config in SHIPPED if config.name == "priority/demo")
    assert demo.companions == ["support.jsonl"]
    assert (demo.path.parent / "support.jsonl").read_bytes() == example.read_bytes()


@pytest.mark.parametrize("config", SHIPPED, ids=lambda config: config.name)
def test_a_copy_is_whole_and_valid(config: ShippedConfig, tmp_path: Path):
    own, *companions = copy_config(config.name, tmp_path / "own.yaml")
    assert own.read_bytes() == config.path.read_bytes()
    assert [path.name for path in companions] == config.companions
    kind = FinetuneConfig if config.command == "finetune" else DatasetConfig
    kind.load(own)
    assert copy_config(config.name, own) == [own, *companions]  # nothing to do


def test_a_copy_goes_into_a_folder_under_its_name(tmp_path: Path):
    assert copy_config("lora/gemma3_1b.yaml", tmp_path) == [tmp_path / "gemma3_1b.yaml"]


def test_nothing_is_replaced_unasked(tmp_path: Path):
    own = tmp_path / "own.yaml"
    (tmp_path / "support.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match=r"support\.jsonl' exists already") as error:
        copy_config("priority/demo", own)
    assert "--force" in error.value.hint
    assert not own.exists()
    copy_config("priority/demo", own, keep=True)
    assert (own.exists(), (tmp_path / "support.jsonl").read_text()) == (True, "mine")
    copy_config("priority/demo", own, overwrite=True)
    assert (tmp_path / "support.jsonl").read_text() != "mine"


def test_a_folder_that_is_missing_is_made_if_asked(tmp_path: Path):
    target = tmp_path / "new" / "own.yaml"
    with pytest.raises(ConfigError, match="no folder") as error:
        copy_config("lora/qwen3_0.6b", target)
    assert "--make-parents" in error.value.hint
    copy_config("lora/qwen3_0.6b", target, make_parents=True)
    assert target.is_file()


def test_a_mistyped_name_gets_the_nearest(tmp_path: Path):
    with pytest.raises(ConfigError, match="no shipped configuration") as error:
        copy_config("lora/qwen3_06b", tmp_path)
    assert "'lora/qwen3_0.6b'" in error.value.hint
    with pytest.raises(ConfigError, match="could not be read") as error:
        FinetuneConfig.load("lora/qwen3_06b")
    assert "'lora/qwen3_0.6b'" in error.value.hint
    with pytest.raises(ConfigError, match="could not be read"):
        FinetuneConfig.load("long" * 2000)


JOKES = [
    "Студент спрашивает профессора: сколько раз можно сдавать экзамен? Пока не надоест, отвечает тот.",
    "Программист поставил у кровати два стакана: один с водой, другой пустой, на случай если не захочет пить.",
    "Математик заказал кофе без сливок. Сливок нет, говорят ему, могу предложить без молока.",
    "Футболист промахнулся с двух метров и сказал, что ворота стоят совсем не там, где вчера.",
    "Кот сел на клавиатуру и написал письмо начальнику, и письмо это оказалось самым вежливым за год.",
    "Врач велел больше гулять, и теперь я хожу к холодильнику самой длинной дорогой через весь дом.",
    "Сосед купил скрипку, и весь подъезд вдруг полюбил дальние прогулки под дождём и снегом.",
    "Учитель попросил назвать два местоимения. Кто, я? Отлично, садись, сказал учитель и поставил пять.",
]


def test_the_jokes_go_from_a_csv_file_to_an_adapter(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    rows = [*((joke, 4.2) for joke in JOKES), (f"{JOKES[0]} Так!", 2.1), ("Коротко.", 5.0)]
    lines = [f'"{text}&quot;",{score}' for text, score in rows]
    (tmp_path / "jokes.csv").write_text("\n".join(["text,score", *lines]), encoding="utf-8")
    config = FinetuneConfig.load("jokes/smollm2_135m")
    short = config.train.model_copy(update={"epochs": None, "max_steps": 2, "batch_size": 2})
    registry = AdapterRegistry(tmp_path / "registry")
    plan = plan_finetune(config.model_copy(update={"base": str(tiny_base)}), measure=0)
    assert (plan.records, plan.steps) == (7, 2)  # in batches of 8, twice
    assert [path.name for path in tmp_path.iterdir()] == ["jokes.csv"]  # a plan leaves nothing
    card = finetune(config.model_copy(update={"base": str(tiny_base), "train": short}), registry)
    assert (card.ref, card.language) == ("jokes@1", ("ru",))
    composed = [json.loads(line) for line in Path("jokes-train.jsonl").read_text("utf-8").splitlines()]
    held_out = Path("jokes-val.jsonl").read_text("utf-8").splitlines()
    # One is rated too low and one is too short; a tenth of the others is held out.
    assert (len(composed), len(held_out)) == (7, 1)
    system, request, answer = composed[0]["messages"]
    assert (system["content"], request["role"]) == (config.card.prompt.system, "user")
    assert answer["content"].removesuffix('"') in JOKES
    assert card.evaluation[0].dataset_split == "validation"


def test_the_assistant_learns_instructions_under_its_system_prompt(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    turns = [{"from": "human", "value": "one two"}, {"from": "gpt", "value": "three " * 8}]
    (tmp_path / "tome.jsonl").write_text(json.dumps({"conversations": turns}) + "\n")
    config = FinetuneConfig.load("assistant/tinyllama_1.1b")
    compose = config.data.compose
    (source,) = compose.sources
    assert source.path == "mlabonne/FineTome-100k"
    local = source.model_copy(update={"path": str(tmp_path / "tome.jsonl"), "split": "train"})
    data = config.data.model_copy(
        update={"compose": compose.model_copy(update={"sources": [local], "val_path": None})}
    )
    own = config.model_copy(update={"base": str(tiny_base), "data": data})
    with with_composed_data(own) as ready:
        parts = first_example(ready).parts
    text = "".join(part for part, _ in parts)
    learned = "".join(part for part, is_learned in parts if is_learned)
    assert text.startswith("You explain things so that they are understood")
    assert "### Instruction:\none two" in text
    assert learned.startswith("three three")
