"""Forms of a base that are made once and kept: each in a folder of the cache, until what it was made of is another.

A conversion removes those whose file or folder has changed or is gone, and what killed conversions have left.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from adapterhub._files import new_folder, open_folder, remove_abandoned

_NAME = re.compile(r".+-[0-9a-f]{16}", re.DOTALL)
_UNFINISHED = re.compile(rf"\.{_NAME.pattern}\.[0-9a-f]{{32}}", re.DOTALL)
_SOURCE = ".gguf"
"""In a converted folder: the path of what it was made of."""


def converted_folder(
    cache: Path,
    source: Path,
    files: Callable[[Path], Iterable[Path]],
    version: int,
    convert: Callable[[Path], None],
) -> Path:
    """The folder with another form of a file or folder, made at the first use.

    Args:
        cache: The folder of all such forms.
        source: What it is made of.
        files: The files of a source that decide what is made; their paths, sizes and times are compared. Hashing
            gigabytes at each start would take longer than loading them.
        version: Counts changes of what is made, so that an older form is not used.
        convert: Writes it into an empty folder.

    Raises:
        OSError: There is no such source, or the folder cannot be written.
    """
    from filelock import FileLock

    def name_of(one: Path) -> str:
        stamps = [(str(path), path.stat()) for path in map(Path.resolve, files(one))]
        content = f"{version} " + " ".join(
            f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stamps
        )
        return f"{one.stem}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"

    source = source.absolute()  # the working folder has no name otherwise
    folder = cache / name_of(source)
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(_lock(folder)):
        if not folder.is_dir():
            with new_folder(folder) as temporary:
                convert(temporary)
                (temporary / _SOURCE).write_bytes(os.fsencode(source))
        _remove_outdated(cache, name_of)
    return folder


def _lock(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _remove_outdated(cache: Path, name_of: Callable[[Path], str]) -> None:
    with open_folder(cache) as opened:
        remove_abandoned(opened, _UNFINISHED)
    for folder in cache.iterdir():
        if _NAME.fullmatch(folder.name) and folder.is_dir() and not _is_current(folder, name_of):
            shutil.rmtree(folder, ignore_errors=True)
            _lock(folder).unlink(missing_ok=True)


def _is_current(folder: Path, name_of: Callable[[Path], str]) -> bool:
    try:
        return name_of(Path(os.fsdecode((folder / _SOURCE).read_bytes()))) == folder.name
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, KeyError):  # it may be there
        return True
