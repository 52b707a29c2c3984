"""Unpacking uploads: what is no adapter's archive is refused, and nothing is written outside the folder."""

import io
import stat
import zipfile
from pathlib import Path

import pytest

from adapterhub.errors import AdapterInvalidError
from adapterhub.server.adapters.uploads import MAX_FILES, unpack

LIMIT = 2**20


def archive(
    files: dict[str, bytes], *, mode: int = stat.S_IFREG | 0o644, compression: int = zipfile.ZIP_DEFLATED
):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as opened:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = compression
            opened.writestr(info, data)
    return content


@pytest.mark.parametrize("prefix", ["", "my-adapter/"])
def test_the_files_of_one_folder_are_unpacked(tmp_path: Path, prefix: str):
    unpack(archive({f"{prefix}a.json": b"{}", f"{prefix}b.txt": b"text"}), tmp_path, LIMIT)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "a.json": b"{}",
        "b.txt": b"text",
    }


@pytest.mark.parametrize(
    "name",
    [
        "../a.json",
        "/a.json",
        "/etc/a.json",
        "x/../a.json",
        "..",
        "a\\..\\b.json",
        "c:a.json",
        "a/b/c.json",
        "x" * 300,
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str):
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(AdapterInvalidError):
        unpack(archive({name: b"{}"}), target, LIMIT)
    assert [path.name for path in tmp_path.rglob("*")] == ["target"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int):
    with pytest.raises(AdapterInvalidError, match="no plain file"):
        unpack(archive({"adapter_config.json": b"/etc/passwd"}, mode=kind | 0o777), tmp_path, LIMIT)
    assert list(tmp_path.iterdir()) == []


def test_several_folders_or_too_many_files_are_refused(tmp_path: Path):
    with pytest.raises(AdapterInvalidError, match="more than one folder"):
        unpack(archive({"a/x.json": b"", "b/y.json": b""}), tmp_path, LIMIT)
    with pytest.raises(AdapterInvalidError, match="at most 64"):
        unpack(archive({f"{n}.txt": b"" for n in range(MAX_FILES + 1)}), tmp_path, LIMIT)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_that_zip_programs_do_not_choose_are_refused(tmp_path: Path, compression: int):
    with pytest.raises(AdapterInvalidError, match="compression"):
        unpack(archive({"a.json": b"{}"}, compression=compression), tmp_path, LIMIT)
    assert list(tmp_path.iterdir()) == []


def test_a_list_of_members_without_end_is_not_read(tmp_path: Path):
    content = archive({"a.json": b""}).getvalue()
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    entries = content[start:end] * 50_000
    last = bytearray(content[end:])
    last[8:12] = (50_000).to_bytes(2, "little") * 2
    last[12:16] = len(entries).to_bytes(4, "little")
    with pytest.raises(AdapterInvalidError, match="not a zip archive"):
        unpack(io.BytesIO(content[:start] + entries + bytes(last)), tmp_path, LIMIT)


def test_a_bomb_is_refused_by_the_size_that_it_states(tmp_path: Path):
    bomb = archive({"adapter_model.safetensors": bytes(4 * LIMIT)})
    assert len(bomb.getvalue()) < LIMIT / 100
    with pytest.raises(AdapterInvalidError, match="more than 1,048,576 bytes"):
        unpack(bomb, tmp_path, LIMIT)
    assert list(tmp_path.iterdir()) == []


def test_a_bomb_that_states_a_small_size_is_refused_too(tmp_path: Path):
    bomb = bytearray(archive({"a.json": bytes(4 * LIMIT)}).getvalue())
    directory = bomb.index(b"PK\x01\x02")
    bomb[directory + 24 : directory + 28] = (100).to_bytes(4, "little")  # the size in the central directory
    with pytest.raises(AdapterInvalidError):
        unpack(io.BytesIO(bytes(bomb)), tmp_path, LIMIT)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= LIMIT


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip archive"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes):
    with pytest.raises(AdapterInvalidError, match="not a zip archive"):
        unpack(io.BytesIO(content), tmp_path, LIMIT)


def test_damaged_data_is_refused(tmp_path: Path):
    content = bytearray(archive({"a.json": bytes(range(256)) * 40}).getvalue())
    content[60] ^= 0xFF
    with pytest.raises(AdapterInvalidError):
        unpack(io.BytesIO(bytes(content)), tmp_path, LIMIT)


def test_an_encrypted_archive_is_refused(tmp_path: Path):
    content = bytearray(archive({"a.json": b"{}"}).getvalue())
    directory = content.index(b"PK\x01\x02")
    content[6] |= 1
    content[directory + 8] |= 1
    with pytest.raises(AdapterInvalidError, match="without a password"):
        unpack(io.BytesIO(bytes(content)), tmp_path, LIMIT)


def test_two_files_of_one_name_are_refused(tmp_path: Path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as opened:
        opened.writestr("a.json", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            opened.writestr("a.json", b"2")
    with pytest.raises(AdapterInvalidError, match="same name"):
        unpack(content, tmp_path, LIMIT)
