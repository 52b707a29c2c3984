from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.registry.hub_address import HubAddress

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "repo", "subfolder", "revision"),
    [
        ("org/name", "org/name", None, None),
        ("hf://org/name", "org/name", None, None),
        ("org/name/", "org/name", None, None),
        ("org/name@v1.0", "org/name", None, "v1.0"),
        ("org/name@refs/pr/1", "org/name", None, "refs/pr/1"),
        ("org/name/checkpoint-500", "org/name", "checkpoint-500", None),
        ("hf://org/name/runs/a/checkpoint-500@main", "org/name", "runs/a/checkpoint-500", "main"),
        ("https://huggingface.co/org/name", "org/name", None, None),
        ("https://huggingface.co/org/name/", "org/name", None, None),
        ("huggingface.co/org/name?library=peft", "org/name", None, None),
        ("huggingface.co/org/name", "org/name", None, None),
        ("hf.co/org/name/tree/main/checkpoint-500", "org/name", "checkpoint-500", "main"),
        ("https://hf.co/org/name#usage", "org/name", None, None),
        ("https://huggingface.co/org/name/tree/main", "org/name", None, "main"),
        ("https://huggingface.co/org/name/tree/main/checkpoint-500", "org/name", "checkpoint-500", "main"),
        (f"https://huggingface.co/org/name/tree/{COMMIT}/a/b", "org/name", "a/b", COMMIT),
        ("https://huggingface.co/org/name/tree/refs%2Fpr%2F3", "org/name", None, "refs/pr/3"),
        ("https://huggingface.co/org/name/blob/main/adapter_config.json", "org/name", None, "main"),
        (
            "https://huggingface.co/org/name/resolve/v2/x/adapter_model.safetensors?download=true",
            "org/name",
            "x",
            "v2",
        ),
    ],
)
def test_addresses(text: str, repo: str, subfolder: str | None, revision: str | None) -> None:
    assert HubAddress.parse(text) == HubAddress(repo, subfolder, revision)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "a/../b",
        "org/name/..",
        "org/name/../other",
        "org/name/.hidden",
        "/org/name",
        "./org/name",
        "https://huggingface.co/datasets/org/name",
        "https://huggingface.co/spaces/org/name",
        "https://example.com/org/name",
        "https://huggingface.co/org/name/tree/main/../x",
        "https://huggingface.co.example.com/org/name",
        "org/name@",
        "org/" + "x" * 97,
        "org/name/" + "/".join("abcdefghi"),
    ],
)
def test_what_is_no_address(text: str) -> None:
    assert HubAddress.parse(text) is None


def test_folders_of_the_hubs_cache(tmp_path: Path) -> None:
    root = tmp_path / "hub" / "models--org--name"
    for folder, subfolder in {"": None, "checkpoint-5": "checkpoint-5", "a/b": "a/b"}.items():
        found = HubAddress.of_cached(root / "snapshots" / COMMIT / folder)
        assert found == (HubAddress("org/name", subfolder, COMMIT), root)
    for other in (root, root / "snapshots", root / "blobs", tmp_path / "snapshots" / COMMIT):
        assert HubAddress.of_cached(other) is None
    folder = root / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    assert HubAddress.of_cached(tmp_path / "link") == (HubAddress("org/name", None, COMMIT), root)
    assert HubAddress.of_cached(folder / ".." / ".." / ".." / "other") is None
