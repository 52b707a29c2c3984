from __future__ import annotations

import os
from pathlib import Path

import pytest

from adapterhub.errors import AdapterInvalidError, InvalidRequestError, RegistryError
from adapterhub.registry import AdapterRegistry, Source, sources
from adapterhub.registry.sources import copy_adapter, locate_adapter
from tests.registry.maker import make_adapter

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_cache(tmp_path: Path) -> Path:
    """A snapshot as huggingface_hub stores it: links into the repository's blobs."""
    repository = tmp_path / "hub" / "models--org--json"
    snapshot = repository / "snapshots" / COMMIT
    blobs = make_adapter(repository / "blobs")
    (blobs / "README.md").write_text("---\nlicense: mit\n---\nWrites JSON.\n")
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def test_a_folder(adapter: Path) -> None:
    for path in (adapter, str(adapter)):
        assert locate_adapter(path).folder == adapter


@pytest.mark.parametrize(
    ("uri", "revision"),
    [
        ("org/json", None),
        ("hf://org/json", None),
        ("org/json@v1.0", "v1.0"),
        (f"hf://org/json@{COMMIT}", COMMIT),
    ],
)
def test_a_hub_id_is_downloaded_and_pinned(tmp_path: Path, uri: str, revision: str | None) -> None:
    asked = []

    def download(repo: str, wanted: str | None) -> Path:
        asked.append((repo, wanted))
        return hub_cache(tmp_path)

    card = AdapterRegistry(tmp_path / "registry").register("json", uri, download=download)
    assert asked == [("org/json", revision)]
    assert card.source == Source(uri="hf://org/json", revision=COMMIT)
    assert (card.license, card.description) == ("mit", "Writes JSON.")
    folder = tmp_path / "registry/json/1"
    assert not any(path.is_symlink() for path in folder.iterdir())


@pytest.mark.parametrize("trusted", [False, True])
def test_a_card_in_a_hub_repository_does_not_name_another_source(tmp_path: Path, trusted: bool) -> None:
    snapshot = hub_cache(tmp_path)
    other = AdapterRegistry(tmp_path / "other")
    card = other.register("json", make_adapter(tmp_path / "one"), source={"uri": "hf://famous/json"})
    (snapshot.parents[1] / "blobs/card").write_bytes((other.folder(card) / "card.json").read_bytes())
    (snapshot / "card.json").symlink_to("../../blobs/card")
    registry = AdapterRegistry(tmp_path / "registry")
    card = registry.register("json", "org/json", download=lambda *_: snapshot, trust_card=trusted)
    assert card.source == Source(uri="hf://org/json", revision=COMMIT)


def test_a_cached_snapshot_is_used_offline(
    registry: AdapterRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    repository = hub_cache(tmp_path).parent.parent
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    card = registry.register("json", "org/json")
    assert card.source == Source(uri="hf://org/json", revision=COMMIT)


@pytest.mark.parametrize(
    "path", ["org/json/checkpoint-500", "https://huggingface.co/org/json/tree/main/checkpoint-500"]
)
def test_a_subfolder_of_a_repository(
    registry: AdapterRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    from huggingface_hub import constants

    cache_of_checkpoints(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    card = registry.register("json", path)
    assert card.source == Source(uri="hf://org/json/checkpoint-500", revision=COMMIT)
    # Without a folder, the hint can be followed; it names the newest.
    with pytest.raises(AdapterInvalidError) as caught:
        registry.register("json", "org/json")
    assert caught.value.hint == "Did you mean its folder 'org/json/checkpoint-1000'?"
    assert registry.register("json", "org/json/checkpoint-1000").version == 2
    with pytest.raises(AdapterInvalidError, match="no folder 'org/json/checkpoint-7' on the hub"):
        registry.register("json", "org/json/checkpoint-7")


def cache_of_checkpoints(tmp_path: Path) -> Path:
    """A snapshot with an adapter in each of three sub-folders, as links into the blobs."""
    repository = tmp_path / "hub" / "models--org--json"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    blobs.mkdir()
    for number in (60, 500, 1000):
        adapter = make_adapter(tmp_path / f"source-{number}", seed=number)
        (snapshot / f"checkpoint-{number}").mkdir(parents=True)
        for file in adapter.iterdir():
            file.rename(blobs / f"{number}-{file.name}")
            link = Path("../../../blobs") / f"{number}-{file.name}"
            (snapshot / f"checkpoint-{number}" / file.name).symlink_to(link)
    return snapshot


def test_folders_of_the_hubs_cache(registry: AdapterRegistry, tmp_path: Path) -> None:
    snapshot = cache_of_checkpoints(tmp_path)
    card = registry.register("json", snapshot / "checkpoint-500")
    assert card.source == Source(uri="hf://org/json/checkpoint-500", revision=COMMIT)
    with pytest.raises(AdapterInvalidError) as caught:
        registry.register("json", snapshot)
    newest = snapshot / "checkpoint-1000"
    assert caught.value.hint == f"Did you mean its folder '{newest}'?"
    assert registry.register("json", newest).version == 2
    with pytest.raises(AdapterInvalidError) as caught:
        registry.register("json", snapshot.parent.parent)
    assert "give the hub id: 'org/json'" in str(caught.value.hint)


def test_links_out_of_the_hubs_cache_are_refused(registry: AdapterRegistry, tmp_path: Path) -> None:
    snapshot = cache_of_checkpoints(tmp_path)
    (tmp_path / "secret.txt").write_text("secret")
    (snapshot / "checkpoint-60" / "notes.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(AdapterInvalidError, match="leads out of the adapter's folder"):
        registry.register("json", snapshot / "checkpoint-60")


def test_without_a_network_the_hub_is_a_clear_error(registry: AdapterRegistry) -> None:
    with pytest.raises(
        RegistryError, match=r"'org/json' is not a local folder and could not be downloaded"
    ) as caught:
        registry.register("json", "org/json")
    assert "network" in str(caught.value.hint)
    assert "HF_HUB_OFFLINE" in str(caught.value.hint)
    assert registry.list() == []


def test_only_safe_files_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked = {}

    def snapshot_download(repo: str, **options: object) -> str:
        asked.update(options, repo=repo)
        return str(hub_cache(tmp_path))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert locate_adapter("org/json@main").source == Source(uri="hf://org/json", revision=COMMIT)
    assert asked == {"repo": "org/json", "revision": "main", "allow_patterns": list(sources.SAFE_PATTERNS)}


@pytest.mark.parametrize(
    "path", ["nowhere", "/no/such/folder", "org/name/more", "", "https://example.com/x", "a/../b/c"]
)
def test_a_path_without_an_adapter(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InvalidRequestError, RegistryError)) as caught:
        locate_adapter(path)
    assert caught.value.hint


def test_a_file_of_an_adapter_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_adapter(tmp_path / "lora")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequestError, match="is a file") as caught:
        locate_adapter("lora/adapter_config.json")
    assert caught.value.hint == "Give the folder that it is in: 'lora'."


def test_the_folder_above_an_adapter_has_a_hint(tmp_path: Path) -> None:
    for number in (60, 500, 1000):
        make_adapter(tmp_path / "run" / f"checkpoint-{number}")
    with pytest.raises(AdapterInvalidError, match=r"no adapter_config\.json") as caught:
        locate_adapter(tmp_path / "run")
    assert caught.value.hint == f"Did you mean its folder '{tmp_path / 'run' / 'checkpoint-1000'}'?"


def copied(folder: Path, tmp_path: Path) -> tuple[list[str], tuple[str, ...]]:
    target = tmp_path / "target"
    target.mkdir()
    warnings = copy_adapter(locate_adapter(folder), target)
    return sorted(path.name for path in target.iterdir()), warnings


def test_what_is_copied(adapter: Path, tmp_path: Path) -> None:
    documents = ["LICENSE", "README.md", "chat_template.jinja", "merges.txt", "tokenizer.json"]
    for name in (*documents, "card.json", "run.py", "optimizer.safetensors", ".hidden.json", "notes.pdf"):
        (adapter / name).write_text("{}")
    (adapter / "checkpoint-1").mkdir()
    names, warnings = copied(adapter, tmp_path)
    assert names == sorted([*documents, "adapter_config.json", "adapter_model.safetensors"])
    assert warnings == ()


def test_pickles_beside_the_weights_are_not_copied(adapter: Path, tmp_path: Path) -> None:
    (adapter / "training_args.bin").write_bytes(b"\x80\x04")
    names, warnings = copied(adapter, tmp_path)
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    assert warnings == ("training_args.bin was not copied: pickle files can run code",)


@pytest.mark.parametrize("name", ["adapter_model.bin", "weights.pt", "weights.pkl", "weights.ckpt"])
def test_pickled_weights_are_refused_unopened(adapter: Path, tmp_path: Path, name: str) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / name)
    (adapter / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(AdapterInvalidError, match="pickled") as caught:
        copied(adapter, tmp_path)
    assert "safe_serialization" in str(caught.value.hint)


def test_weights_that_are_missing(adapter: Path, tmp_path: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterInvalidError, match=r"no adapter_model\.safetensors"):
        copied(adapter, tmp_path)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "README.md", "unrelated"])
def test_links_that_lead_out_are_refused(adapter: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.write_text("secret")
    (adapter / name).unlink(missing_ok=True)
    (adapter / name).symlink_to(outside)
    with pytest.raises(AdapterInvalidError, match="leads out of the adapter's folder"):
        copied(adapter, tmp_path)


def test_links_within_the_folder_are_followed(adapter: Path, tmp_path: Path) -> None:
    (adapter / "README.md").symlink_to("adapter_config.json")
    names, _ = copied(adapter, tmp_path)
    assert "README.md" in names
    assert not (tmp_path / "target/README.md").is_symlink()


def test_pipes_are_not_opened(adapter: Path, tmp_path: Path) -> None:
    os.mkfifo(adapter / "README.md")
    names, _ = copied(adapter, tmp_path)
    assert "README.md" not in names


def test_files_beyond_the_limits(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_MAX_FILE_BYTES", 1000)
    (adapter / "vocab.json").write_bytes(b" " * 1001)
    with pytest.raises(AdapterInvalidError, match=r"vocab\.json has 1,001 bytes"):
        copied(adapter, tmp_path)
    for number in range(70):
        (adapter / f"{number}.txt").touch()
    with pytest.raises(AdapterInvalidError, match="at most 64"):
        copy_adapter(locate_adapter(adapter), tmp_path)
