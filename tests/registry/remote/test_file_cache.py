"""The cache of downloaded versions: shared by processes, bounded, whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from adapterhub.registry.remote.file_cache import FileCache
from tests.waiting import wait_for


def write(size: int = 100):
    def download(folder: Path) -> None:
        (folder / "weights").write_bytes(b"x" * size)

    return download


def fail(folder: Path) -> None:
    raise AssertionError("it is there")


def age(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder, (then, then))


def test_a_folder_is_downloaded_once(tmp_path: Path):
    folder = FileCache(tmp_path / "cache", 1000).get("a", write())
    assert (folder / "weights").read_bytes() == b"x" * 100
    assert FileCache(tmp_path / "cache", 1000).get("a", fail) == folder


def test_a_failed_download_leaves_nothing(tmp_path: Path):
    cache = FileCache(tmp_path / "cache", 1000)

    def die(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get("a", die)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".locks"]
    assert cache.get("a", write()).is_dir()


def test_the_longest_unused_leave_first(tmp_path: Path):
    cache = FileCache(tmp_path / "cache", 250, in_use_s=60)
    for key, seconds in (("a", 200), ("b", 300)):
        age(cache.get(key, write()), seconds)
    cache.get("c", write())
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [".locks", "a", "c"]


def test_none_in_use_leaves(tmp_path: Path):
    cache = FileCache(tmp_path / "cache", 150, in_use_s=60)
    for key in "abc":
        cache.get(key, write())
    assert len([path for path in (tmp_path / "cache").iterdir() if path.name != ".locks"]) == 3


def test_a_file_beside_the_folders_does_no_harm(tmp_path: Path):
    cache = FileCache(tmp_path / "cache", 150, in_use_s=60)
    age(cache.get("a", write()), 300)
    (tmp_path / "cache" / "notes.txt").write_text("mine")
    cache.get("b", write())
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [".locks", "b", "notes.txt"]


def test_asking_for_a_folder_is_a_use_in_any_process(tmp_path: Path):
    one, other = (FileCache(tmp_path / "cache", 250, in_use_s=60) for _ in range(2))
    for key in "ab":
        age(one.get(key, write()), 300)
    other.get("a", fail)
    one.get("c", write())
    assert (tmp_path / "cache" / "a").is_dir()
    assert not (tmp_path / "cache" / "b").exists()


def test_a_folder_that_somebody_deleted_is_downloaded_again(tmp_path: Path):
    cache = FileCache(tmp_path / "cache", 1000)
    folder = cache.get("a", write())
    (folder / "weights").unlink()
    folder.rmdir()
    assert (cache.get("a", write()) / "weights").is_file()


def test_threads_share_one_download(tmp_path: Path):
    cache, downloads = FileCache(tmp_path / "cache", 1000), []

    def download(folder: Path) -> None:
        downloads.append(folder)
        time.sleep(0.05)
        write()(folder)

    threads = [threading.Thread(target=cache.get, args=("a", download)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(downloads) == 1


def _fill(root: Path, log: Path) -> None:
    def download(folder: Path) -> None:
        with log.open("a") as lines:
            lines.write(f"{os.getpid()}\n")
        time.sleep(0.2)
        write()(folder)

    FileCache(root, 1000).get("a", download)


def _hang(root: Path) -> None:
    def download(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        (root.parent / "begun").touch()
        time.sleep(60)

    FileCache(root, 1000).get("a", download)


def test_processes_share_one_download(tmp_path: Path):
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_fill, args=(tmp_path / "cache", tmp_path / "log")) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_a_killed_download_is_done_anew(tmp_path: Path):
    process = multiprocessing.get_context("spawn").Process(target=_hang, args=(tmp_path / "cache",))
    process.start()
    wait_for((tmp_path / "begun").exists)
    process.kill()
    process.join()
    folder = FileCache(tmp_path / "cache", 1000).get("a", write())
    assert (folder / "weights").read_bytes() == b"x" * 100
