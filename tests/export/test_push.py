"""Sending an export to the Hub: a stand-in on this machine gets exactly the folder, and only when it is asked for."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file

from adapterhub import AdapterRegistry
from adapterhub.errors import AdapterNotFoundError, ExportError, InvalidRequestError
from adapterhub.export import export_peft, push_adapter, push_folder
from adapterhub.peft_format import CONFIG_FILE, WEIGHTS_FILE
from tests.export.hub_stand_in import HubStandIn, hub_stand_in

# How huggingface_hub calls httpx.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw:DeprecationWarning")

TOKEN = "hf_" + "x" * 34
REPO = "organisation/json-lora"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """The Hub that huggingface_hub calls in this process."""
    with hub_stand_in() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture(scope="module")
def registry(tiny_registry: Path) -> AdapterRegistry:
    return AdapterRegistry(tiny_registry)


@pytest.fixture
def folder(registry: AdapterRegistry, tmp_path: Path) -> Path:
    export_peft(registry, "json", tmp_path / "out")
    return tmp_path / "out"


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_dry_run_lists_the_files_and_sends_nothing(hub: HubStandIn, folder: Path):
    push = push_folder(folder, REPO)
    assert {file.path: file.size_bytes for file in push.files} == {
        name: len(data) for name, data in content(folder).items()
    }
    assert (push.url, push.skipped) == (None, ())
    assert (hub.repos, hub.commits, hub.tokens) == ({}, [], set())


def test_one_commit_has_exactly_the_folder(hub: HubStandIn, folder: Path):
    shown: list[tuple[int, int]] = []
    push = push_folder(folder, REPO, dry_run=False, message="A test", progress=lambda *at: shown.append(at))
    ((repo, branch, files, header),) = hub.commits
    assert (repo, branch, header["summary"]) == (REPO, "main", "A test")
    assert files == content(folder)
    assert push.url == f"{hub.url}/{REPO}/commit/{1:040x}"
    assert hub.tokens == {f"Bearer {TOKEN}"}
    total = sum(map(len, files.values()))
    assert shown[-1] == (total, total)
    assert [done for done, _ in shown] == sorted(done for done, _ in shown)


@pytest.mark.parametrize("private", [True, False])
def test_a_new_repository_is_private_unless_it_is_to_be_public(hub: HubStandIn, folder: Path, private: bool):
    push_folder(folder, REPO, dry_run=False, **({} if private else {"private": False}))
    assert hub.repos[REPO]["visibility"] == ("private" if private else "public")


def test_a_repository_that_exists_gets_another_commit(hub: HubStandIn, folder: Path):
    for revision in (None, "next"):
        push_folder(folder, REPO, dry_run=False, revision=revision)
    assert [branch for _, branch, _, _ in hub.commits] == ["main", "next"]


def test_a_pull_request_leaves_the_branch_as_it_is(hub: HubStandIn, folder: Path):
    push = push_folder(folder, REPO, dry_run=False, create_pr=True)
    ((_, branch, files, _),) = hub.commits
    assert (branch, push.url) == ("refs/pr/1", f"{hub.url}/{REPO}/discussions/1")
    assert files == content(folder)


def test_an_adapter_goes_with_its_card_as_readme(hub: HubStandIn, registry: AdapterRegistry, tiny_adapters):
    push_adapter(registry, "json", REPO, dry_run=False)
    files = hub.commits[0][2]
    assert files.keys() == {"README.md", CONFIG_FILE, WEIGHTS_FILE}
    assert files[WEIGHTS_FILE] == (tiny_adapters["json"] / WEIGHTS_FILE).read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert "The json adapter." in card.text
    assert f'PeftModel.from_pretrained(base, "{REPO}")' in card.text


def test_what_is_no_export_is_not_sent(hub: HubStandIn, folder: Path, tmp_path: Path):
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "linked.txt").symlink_to(tmp_path / "secret.txt")
    for name in ("model.bin", "run.py", ".env", ".git/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    push = push_folder(folder, REPO, dry_run=False)
    assert push.skipped == (".env", ".git/config.json", "linked.txt", "model.bin", "run.py")
    assert hub.commits[0][2].keys() == {"README.md", CONFIG_FILE, WEIGHTS_FILE}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"Use {TOKEN}", "a Hugging Face token is in the text"),
        ("Trained on /home/alice/data.jsonl", "a path of this machine is in it"),
        ("Trained on {other}/data.jsonl", "a path of this machine is in it"),
        (r"Trained on C:\Users\alice\data.jsonl", "a path of this machine is in it"),
        ("Made in {parent}/data", "a path of this machine is in it"),
    ],
)
@pytest.mark.parametrize("name", ["README.md", "Modelfile.f16", CONFIG_FILE])
def test_a_secret_or_a_path_of_this_machine_is_refused(
    hub: HubStandIn, folder: Path, name: str, text: str, reason: str
):
    other = Path(__file__).parent  # neither a home nor near the folder
    (folder / name).write_text(text.format(parent=folder.parent, other=other))
    with pytest.raises(ExportError, match=r"must not be published") as refused:
        push_folder(folder, REPO, dry_run=False)
    assert reason in refused.value.message
    assert "alice" not in str(refused.value)
    assert TOKEN not in str(refused.value)
    assert (hub.repos, hub.commits) == ({}, [])


def test_a_large_text_is_read_to_its_end(hub: HubStandIn, folder: Path):
    """A tokenizer's config with many added tokens has more than a million characters."""
    text = json.dumps({"added_tokens": ["<unused>"] * 120_000})
    assert len(text) > 2**20
    (folder / "tokenizer_config.json").write_text(text)
    assert "tokenizer_config.json" in {file.path for file in push_folder(folder, REPO).files}
    for found in (TOKEN, "/home/alice/model"):
        (folder / "tokenizer_config.json").write_text(text + found)
        with pytest.raises(ExportError, match=r"tokenizer_config\.json must not be published"):
            push_folder(folder, REPO)


def test_a_secret_across_two_blocks_is_found(folder: Path):
    """A long text is searched in blocks of a million characters."""
    for start in range(2**20 - len(TOKEN), 2**20 + 1, 6):
        (folder / "README.md").write_text("x " * (start // 2) + TOKEN)
        with pytest.raises(ExportError, match="a Hugging Face token is in the text"):
            push_folder(folder, REPO)


@pytest.mark.parametrize("text", ["See /usr/bin/env and /v1/completions", "https://hub.example/usr/share"])
def test_a_path_that_says_nothing_about_this_machine_is_sent(folder: Path, text: str):
    (folder / "README.md").write_text(text)
    assert "README.md" in {file.path for file in push_folder(folder, REPO).files}


def test_the_home_folder_is_a_path_of_this_machine(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/root")
    (folder / "README.md").write_text("Trained on /root/removed/data.jsonl")
    with pytest.raises(ExportError, match="a path of this machine is in it"):
        push_folder(folder, REPO)


def test_a_folder_below_the_root_may_have_addresses_in_its_card(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Path, "resolve", lambda self: Path("/out"))
    (folder / "README.md").write_text("See https://hub.example/organisation")
    assert len(push_folder(folder, REPO).files) == 3


def test_the_metadata_of_weights_is_read_too(folder: Path):
    weights = load_file(folder / WEIGHTS_FILE)
    save_file(weights, folder / WEIGHTS_FILE, {"data": "/home/alice/data.jsonl"})
    with pytest.raises(ExportError, match=f"{WEIGHTS_FILE} must not be published"):
        push_folder(folder, REPO)
    (folder / WEIGHTS_FILE).write_bytes(b"no weights")
    with pytest.raises(ExportError, match="no valid safetensors file"):
        push_folder(folder, REPO)


def test_metadata_that_the_hub_refuses_is_an_error(hub: HubStandIn, folder: Path):
    hub.refuse["/api/validate-yaml"] = (400, "base_model is not valid")
    with pytest.raises(ExportError, match=r"Invalid metadata in README\.md") as refused:
        push_folder(folder, REPO, dry_run=False)
    assert refused.value.hint == "Correct README.md."
    assert hub.commits == []


@pytest.mark.parametrize(
    "repo", ["json", "a/b/c", "../x/y", "organisation/", "organisation/json@main", "a/b.git", "a/b--c", ""]
)
def test_what_names_no_repository_is_refused(registry: AdapterRegistry, folder: Path, repo: str):
    for push in (lambda: push_folder(folder, repo), lambda: push_adapter(registry, "json", repo)):
        with pytest.raises(InvalidRequestError, match="not the name of a repository"):
            push()


def test_a_folder_without_weights_or_card_is_refused(folder: Path, tmp_path: Path):
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(ExportError, match="holds no weights"):
        push_folder(folder, REPO)
    (folder / "README.md").unlink()
    with pytest.raises(ExportError, match=r"has no README\.md"):
        push_folder(folder, REPO)
    with pytest.raises(InvalidRequestError, match="no folder 'nothing'"):
        push_folder(tmp_path / "nothing", REPO)


def test_an_unknown_adapter_is_refused(registry: AdapterRegistry):
    with pytest.raises(AdapterNotFoundError, match="no adapter 'jsn'"):
        push_adapter(registry, "jsn", REPO)


@pytest.mark.parametrize(
    ("path", "status", "hint"),
    [
        ("/api/repos/create", 401, "hf auth login"),
        ("/api/repos/create", 403, "may write"),
        ("/preupload/", 404, "revision"),
        ("/commit/", 403, "may write"),
    ],
)
def test_a_refusal_of_the_hub_is_an_error_with_a_hint(
    hub: HubStandIn, folder: Path, path: str, status: int, hint: str
):
    hub.refuse[path] = (status, "No, you may not")
    with pytest.raises(ExportError, match=str(status)) as refused:
        push_folder(folder, REPO, dry_run=False)
    assert hint in str(refused.value.hint)
    assert "No, you may not" in refused.value.message
    assert TOKEN not in str(refused.value)
    assert hub.commits == []


def test_an_unreachable_hub_is_an_error_with_a_hint(
    hub: HubStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ExportError, match="could not be reached") as refused:
        push_folder(folder, REPO, dry_run=False)
    assert "HF_ENDPOINT" in str(refused.value.hint)


def test_without_a_network_nothing_is_sent(folder: Path):
    with pytest.raises(ExportError, match="HF_HUB_OFFLINE is set"):
        push_folder(folder, REPO, dry_run=False)


def test_the_command_sends_to_the_hub_of_the_environment(folder: Path):
    """In a process of its own, for huggingface_hub reads the environment when it is imported."""
    with hub_stand_in() as server:
        environment = {
            **os.environ,
            "HF_ENDPOINT": server.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
        }
        command = [sys.executable, "-m", "adapterhub.cli.main", "push", f"{folder}/", REPO, "--json", "--yes"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["url"] == f"{server.url}/{REPO}/commit/{1:040x}"
    assert server.commits[0][2] == content(folder)
    assert TOKEN not in done.stdout + done.stderr
