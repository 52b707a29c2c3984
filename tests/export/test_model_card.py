"""The model card of a merged model: both parts, their licences, and all that the adapter's card knows."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from adapterhub import AdapterRegistry
from adapterhub.export import merge_adapter
from adapterhub.peft_format import CONFIG_FILE
from adapterhub.registry import Evaluation, Lineage, Parent
from tests.tiny import make_adapter, make_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter") / "plain", base)


def merged_card(tmp_path: Path, base: Path, adapter: Path, **fields: object) -> ModelCard:
    registry = AdapterRegistry(tmp_path / "registry")
    card = registry.register("json", adapter, base=base, **fields)
    merge_adapter(base, registry.folder(card), tmp_path / "out")
    return ModelCard.load(tmp_path / "out" / "README.md")


@pytest.mark.parametrize(
    ("of_base", "of_adapter", "of_both"),
    [
        ("llama3", "mit", None),
        (None, "mit", None),
        ("apache-2.0", None, None),
        ("apache-2.0", "apache-2.0", "apache-2.0"),
        ("apache-2.0", "Apache-2.0", "apache-2.0"),
        (None, None, None),
    ],
)
def test_a_licence_stands_for_the_whole_model_only_if_both_parts_have_it(
    tmp_path: Path, adapter: Path, of_base: str | None, of_adapter: str | None, of_both: str | None
):
    base = make_base(tmp_path / "llama")
    if of_base:
        (base / "README.md").write_text(f"---\nlicense: {of_base}\n---\n")
    card = merged_card(tmp_path, base, adapter, license=of_adapter)
    assert card.data.license == of_both
    assert f"- base llama: {of_base or 'not recorded; see the base'}\n" in card.text
    assert f"- adapter json@1: {of_adapter or 'not recorded'}\n" in card.text


def test_the_licence_of_a_base_in_the_hubs_cache_is_read(tmp_path: Path, adapter: Path):
    base = make_base(tmp_path / "llama")
    (tmp_path / "blob").write_text("---\nlicense: mit\n---\n")
    (base / "README.md").symlink_to(tmp_path / "blob")
    assert merged_card(tmp_path, base, adapter, license="mit").data.license == "mit"


def test_it_has_all_that_the_adapters_card_knows(tmp_path: Path, base: Path, adapter: Path):
    card = merged_card(
        tmp_path,
        base,
        adapter,
        quantization="nf4",
        tags=["extraction"],
        language=["en"],
        datasets=["organisation/pairs", "train.jsonl sha256:ab12"],
        evaluation=[
            Evaluation(
                task_type="text-generation",
                dataset_name="held-out",
                dataset_split="test",
                metric_type="exact_match",
                metric_value=0.93,
            )
        ],
        prompt={"generation": {"temperature": 0.2, "max_tokens": 64}, "stop": ["###"]},
        lineage=Lineage(
            method="blend",
            parents=(
                Parent(name="names", version=2, digest="sha256:cd", weight=0.7),
                Parent(name="support", version=1, weight=-0.5),
            ),
            settings={"density": 0.3},
        ),
    )
    data = card.data.to_dict()
    assert (data["datasets"], data["language"]) == (["organisation/pairs"], ["en"])
    assert data["tags"] == ["lora", "merge", "extraction"]
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("exact_match", 0.93, "test")
    wanted = [
        "- base in training: nf4; merged into its unquantised weights",
        "- dataset: train.jsonl sha256:ab12",
        "- parent: names@2, weight 0.7, sha256:cd",
        "- parent: support@1, weight -0.5",
        '- settings: `{"density": 0.3}`',
        "- exact_match: 0.93 on held-out (test)",
        "- temperature: 0.2",
        "- max_tokens: 64",
        '- stop: "###"',
    ]
    assert [line for line in wanted if line not in card.text.splitlines()] == []


@pytest.mark.parametrize(
    ("name", "shown", "linked"),
    [
        ("organisation/llama", "organisation/llama", True),
        ("adapterhub-demo", "adapterhub-demo", False),
        ("/nowhere/models/my llama", "my llama", False),
        (r"C:\Users\alice\llama-8b", "llama-8b", False),
    ],
)
def test_it_links_to_a_base_on_the_hub_only(
    tmp_path: Path, base: Path, adapter: Path, name: str, shown: str, linked: bool
):
    source = shutil.copytree(adapter, tmp_path / "adapter")
    (source / "README.md").unlink()  # names it too
    config = json.loads((source / CONFIG_FILE).read_text()) | {"base_model_name_or_path": name}
    (source / CONFIG_FILE).write_text(json.dumps(config))
    registry = AdapterRegistry(tmp_path / "registry")
    merge_adapter(base, registry.folder(registry.register("json", source)), tmp_path / "out", verify=False)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    link = {"base_model": shown, "base_model_relation": "merge"} if linked else {}
    assert {key: value for key, value in card.data.to_dict().items() if key.startswith("base")} == link
    assert f"# json@1 merged into {shown}\n" in card.text
    assert not any(word in card.content for word in ("nowhere", "alice"))


def test_a_base_in_the_hubs_cache_has_its_name_there(tmp_path: Path, adapter: Path):
    base = make_base(tmp_path / "models--organisation--base" / "snapshots" / "0123abc")
    assert merge_adapter(base, adapter, tmp_path / "out", verify=False).base == "organisation/base"
    data = ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("organisation/base", "merge")


def test_an_adapter_without_a_card_has_one_without_sections(tmp_path: Path, base: Path, adapter: Path):
    merge_adapter(base, adapter, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "# plain merged into llama\n" in text
    assert [section for section in ("Training", "Evaluation", "Generation") if f"## {section}" in text] == []
