from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from adapterhub._files import (
    new_folder,
    open_folder,
    read_bounded,
    remove_abandoned,
    sha256_file,
    temporary_folder,
    write_atomic,
)
from adapterhub.errors import AdapterInvalidError


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    for content in (b"old", b"new"):
        write_atomic(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_new_folders_files_have_the_permissions_of_new_files(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        with new_folder(tmp_path / "out") as folder:
            os.close(os.open(folder / "private", os.O_CREAT, 0o600))  # as safetensors makes them
    finally:
        os.umask(before)
    assert (tmp_path / "out" / "private").stat().st_mode & 0o777 == mode


def test_a_write_that_fails_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "target"
    folder.mkdir()
    (folder / "inside").touch()
    with pytest.raises(OSError, match="target"):  # a folder cannot be replaced by a file
        write_atomic(folder, b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target"]


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


def abandon(path: Path, *, seconds: float = 60) -> Path:
    os.utime(path, (time.time() - seconds, time.time() - seconds))
    return path


def test_what_killed_processes_left_beside_a_file_or_folder_is_removed(tmp_path: Path) -> None:
    residue = [tmp_path / f".{name}.{number:032x}" for name in ("router", "out") for number in range(2)]
    for path in (residue[0], residue[3]):
        path.write_bytes(b"half")
    for path in (residue[1], residue[2]):
        path.mkdir()
        (path / "shard").write_bytes(b"half")
        (path / "link").symlink_to(tmp_path)
    kept = [tmp_path / name for name in (f".other.{0:032x}", ".router.skops", ".out.backup")]
    for path in kept:
        path.write_bytes(b"mine")
    young = tmp_path / f".out.{9:032x}"
    young.mkdir()
    for path in (*residue, *kept):
        abandon(path)
    write_atomic(tmp_path / "router", b"new")
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"router", "out", young.name, *(path.name for path in kept)}


def test_the_lock_of_a_file_that_was_just_made_is_left_to_its_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held for a moment by others, it could not be taken by the writer, whose file would then count as abandoned."""
    (tmp_path / f".out.{1:032x}").touch()
    tried: list[int] = []
    monkeypatch.setattr("fcntl.flock", lambda descriptor, how: tried.append(descriptor))
    with open_folder(tmp_path) as folder:
        remove_abandoned(folder, re.compile(r"\.out\..+"))
        assert not tried
        abandon(tmp_path / f".out.{1:032x}")
        remove_abandoned(folder, re.compile(r"\.out\..+"))
    assert tried
    assert not list(tmp_path.iterdir())


def test_an_unfinished_folder_of_a_living_process_stays(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as first:
        abandon(first)
        with new_folder(tmp_path / "out") as second:
            (second / "file").touch()
            assert first.exists()
        (first / "file").touch()
        (tmp_path / "out" / "file").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILLED = """
import os, signal, tempfile
from adapterhub._files import temporary_folder
with temporary_folder() as folder:
    (folder / "adapter").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_temporary_folder_of_a_killed_process_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    os.utime(left, (0, 0))  # it is a moment old, when it could belong to a process that is about to lock it
    for other in ("adapterhub-trained-pairs-0123abcd", "tmpabcdefgh"):  # a kept adapter; another program's
        (tmp_path / other).mkdir()
        os.utime(tmp_path / other, (0, 0))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder() as mine:
        os.utime(mine, (0, 0))
        with temporary_folder() as another:
            found = {path.name for path in tmp_path.iterdir()}
    assert found == {mine.name, another.name, "adapterhub-trained-pairs-0123abcd", "tmpabcdefgh"}
    assert {path.name for path in tmp_path.iterdir()} == {"adapterhub-trained-pairs-0123abcd", "tmpabcdefgh"}
