"""Compiles a C++ file for this processor, once, into a folder that belongs to the user alone.

What is compiled becomes code of this process. So the folder and the file must belong to the user and be writable by
nobody else, and the file's name has the digest of its content: one that was cut short or changed is compiled again.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from adapterhub._files import write_atomic
from adapterhub._processor import processor
from adapterhub.errors import ConfigError

_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-march=native")
_TIMEOUT_S = 120


def is_switched_off(variable: str) -> bool:
    """Whether an environment variable chooses torch in place of what is compiled.

    Raises:
        ConfigError: It has another value than "auto" and "torch".
    """
    wanted = os.environ.get(variable) or "auto"
    if wanted not in ("auto", "torch"):
        raise ConfigError(f"{variable}={wanted} is not known.", hint="It can be auto or torch.")
    return wanted == "torch"


class CompilingError(Exception):
    """It cannot be compiled here, for the reason in the message."""


def compile_library(source: Path, folder: Path) -> Path:
    """The shared library of a C++ file, compiled at the first use on this machine.

    With GCC on Linux it is linked to torch's OpenMP runtime, so that it runs in the same threads; elsewhere it
    has no OpenMP.

    Args:
        source: The C++ file.
        folder: Where libraries are kept; made if need be, for the user alone.

    Raises:
        CompilingError: There is no compiler, it fails, or others may write into the folder.
    """
    compiler = _compiler()
    try:
        _make_private_folder(folder)
        openmp = _openmp_of_torch()
        version = _run([*compiler, "--version"])
        made_for = (shlex.join(compiler), str(openmp), processor())
        key = _digest(source.read_bytes(), version, *(one.encode() for one in made_for))
        for found in folder.glob(f"{source.stem}-{key}-*.so"):
            if _is_sound(found):
                return found
        if not os.access(folder, os.W_OK):
            raise CompilingError(f"{folder} cannot be written")
        content = _compile(compiler, source, openmp)
        library = folder / f"{source.stem}-{key}-{_digest(content)}.so"
        write_atomic(library, content, mode=0o700)
    except OSError as error:
        raise CompilingError(str(error)) from error
    return library


def _compiler() -> list[str]:
    """The compiler's command; as for make, it may have arguments: "ccache g++"."""
    try:
        command = shlex.split(os.environ.get("CXX") or "c++")
    except ValueError as error:
        raise CompilingError(f"CXX is no command: {error}") from error
    if not command or shutil.which(command[0]) is None:
        raise CompilingError("there is no C++ compiler")
    return command


def _is_sound(library: Path) -> bool:
    """Whether nobody else can have written a library, and it is whole. Another process may be replacing it."""
    try:
        return _is_private(library) and _digest(library.read_bytes()) == library.stem.rpartition("-")[2]
    except FileNotFoundError:
        return False


def _compile(compiler: Sequence[str], source: Path, openmp: Path | None) -> bytes:
    """The library's content. Each try asks less of the compiler; what the first one says is the reason."""
    tries = [(_FLAGS, openmp), (_FLAGS, None), (_FLAGS[:-1], openmp), (_FLAGS[:-1], None)]
    first: CompilingError | None = None
    for flags, runtime in tries:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            compiled, library = Path(scratch, "compiled.o"), Path(scratch, "library.so")
            try:
                # In two steps: `-fopenmp` at linking would name the compiler's own runtime, perhaps a second one.
                parallel = ["-fopenmp"] if runtime else []
                _run([*compiler, *flags, *parallel, "-c", str(source), "-o", str(compiled)])
                link = [str(runtime), "-Wl,-z,defs"] if runtime else []
                _run([*compiler, "-shared", str(compiled), "-o", str(library), *link])
                return library.read_bytes()
            except CompilingError as error:
                first = first or error
    raise first or CompilingError("nothing was tried")


def _run(command: Sequence[str]) -> bytes:
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=_TIMEOUT_S)  # noqa: S603
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        said = [line for line in said if "error" in line] or said or [f"exit status {error.returncode}"]
        raise CompilingError(f"{command[0]} fails: {said[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise CompilingError(f"{command[0]} takes longer than {_TIMEOUT_S} s") from error
    return done.stdout


def _openmp_of_torch() -> Path | None:
    """The OpenMP runtime that torch runs in; others, such as scikit-learn, may have brought one too."""
    if sys.platform != "linux":
        return None
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    loaded = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) .*?(/\S.*)$", maps, re.MULTILINE)
    try:
        of_torch = ctypes.CDLL(next(path for _, _, path in loaded if path.endswith("/libtorch_cpu.so")))
        address = ctypes.cast(of_torch.GOMP_parallel, ctypes.c_void_p).value or 0
    except (StopIteration, OSError, AttributeError):
        return None
    return next((Path(path) for low, high, path in loaded if int(low, 16) <= address < int(high, 16)), None)


def _make_private_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(folder):
        raise CompilingError(f"{folder} belongs to another user, or others may write into it")


def _is_private(path: Path) -> bool:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode) or not hasattr(os, "getuid"):
        return False
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _digest(*contents: bytes) -> str:
    whole = hashlib.sha256()
    for content in contents:
        whole.update(hashlib.sha256(content).digest())
    return whole.hexdigest()[:16]
