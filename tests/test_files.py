from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from adapterhub._files import new_folder, read_bounded, sha256_file, write_atomic
from adapterhub.errors import AdapterInvalidError


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    for content in (b"old", b"new"):
        write_atomic(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("staged", [False, True])
def test_a_write_that_fails_changes_nothing(tmp_path: Path, staged: bool) -> None:
    staging = tmp_path / "staging"
    staging.mkdir()
    folder = tmp_path / "target"
    folder.mkdir()
    (folder / "inside").touch()
    with pytest.raises(OSError, match="target"):  # a folder cannot be replaced by a file
        write_atomic(folder, b"new", staging=staging if staged else None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["staging", "target"]
    assert not any(staging.iterdir())


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with new_folder(target) as folder:
        (folder / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x"

    def fail() -> None:
        with new_folder(tmp_path / "c") as folder:
            (folder / "file").write_text("x")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_bounded_reading(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(AdapterInvalidError, match="5 bytes; at most 4"):
        read_bounded(path, 4)
    with pytest.raises(AdapterInvalidError, match="cannot be read"):
        read_bounded(tmp_path / "nothing", 5)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "."):
        with pytest.raises(AdapterInvalidError, match="not a regular file"):
            read_bounded(tmp_path / name, 100)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(b"x" * 100_000).hexdigest()
