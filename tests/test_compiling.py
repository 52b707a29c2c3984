"""Compiled libraries are kept where nobody else can write, are whole, and are compiled again where they are not."""

import ctypes
import os
import shlex
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

import adapterhub
from adapterhub._compiling import CompilingError, compile_library
from adapterhub.config import cache_folder

SOURCES = sorted(Path(adapterhub.__file__).parent.rglob("*.cpp"))

needs_compiler = pytest.mark.skipif(
    not shutil.which(shlex.split(os.environ.get("CXX") or "c++")[0]) or not hasattr(os, "getuid"),
    reason="needs a C++ compiler",
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.cpp"
    path.write_text('extern "C" int answer() { return 42; }\n')
    return path


def answer(library: Path) -> int:
    result: int = ctypes.CDLL(str(library)).answer()
    return result


@needs_compiler
def test_a_library_is_compiled_once(source: Path, tmp_path: Path):
    library = compile_library(source, tmp_path / "kept")
    written = library.stat().st_mtime_ns
    assert compile_library(source, tmp_path / "kept") == library
    assert library.stat().st_mtime_ns == written
    assert answer(library) == 42
    assert not (tmp_path / "kept").stat().st_mode & 0o077


@needs_compiler
@pytest.mark.parametrize("source", [pytest.param(path, id=path.name) for path in SOURCES])
def test_what_the_package_has_is_compiled(source: Path):
    """The tests of what is compiled are skipped where it is not."""
    ctypes.CDLL(str(compile_library(source, cache_folder("kernels"))))


@needs_compiler
def test_another_source_is_another_library(source: Path, tmp_path: Path):
    before = compile_library(source, tmp_path / "kept")
    source.write_text(source.read_text().replace("42", "43"))
    after = compile_library(source, tmp_path / "kept")
    assert (answer(before), answer(after)) == (42, 43)


@needs_compiler
@pytest.mark.parametrize("damaged", [b"", b"\x7fELF", b"no library"])
def test_a_damaged_library_is_compiled_again(source: Path, tmp_path: Path, damaged: bytes):
    library = compile_library(source, tmp_path / "kept")
    library.write_bytes(damaged)
    assert answer(compile_library(source, tmp_path / "kept")) == 42


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="a link to a file is changed with it")
def test_a_link_to_a_library_is_not_followed(source: Path, tmp_path: Path):
    library = compile_library(source, tmp_path / "kept")
    elsewhere = library.rename(tmp_path / "elsewhere.so")
    library.symlink_to(elsewhere)
    assert not compile_library(source, tmp_path / "kept").is_symlink()


@needs_compiler
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_to_is_refused(source: Path, tmp_path: Path, mode: int):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(CompilingError, match="others may write"):
        compile_library(source, folder)
    assert not list(folder.iterdir())


@needs_compiler
def test_a_library_that_others_may_write_to_is_compiled_again(source: Path, tmp_path: Path):
    library = compile_library(source, tmp_path / "kept")
    library.chmod(0o777)
    assert not compile_library(source, tmp_path / "kept").stat().st_mode & 0o022


@needs_compiler
def test_a_library_is_private_from_its_first_moment(source: Path, tmp_path: Path, monkeypatch):
    """Another process that looks for it then finds it sound."""
    monkeypatch.setattr(Path, "chmod", lambda *_: None)
    before = os.umask(0o002)
    try:
        library = compile_library(source, tmp_path / "kept")
    finally:
        os.umask(before)
    assert not library.stat().st_mode & 0o077


@needs_compiler
def test_a_library_may_vanish_while_it_is_looked_at(source: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda folder, _: [folder / "answer-of-another-process.so"])
    assert answer(compile_library(source, tmp_path / "kept")) == 42


@needs_compiler
def test_a_compiler_may_have_arguments(source: Path, tmp_path: Path, monkeypatch):
    source.write_text(source.read_text().replace("42", "ANSWER"))
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    for number in (43, 44):
        monkeypatch.setenv("CXX", shlex.join([*compiler, f"-DANSWER={number}"]))
        assert answer(compile_library(source, tmp_path / "kept")) == number


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="only there libraries have OpenMP")
def test_threads_are_those_of_torch(source: Path, tmp_path: Path):
    import sklearn.linear_model  # noqa: F401  brings a runtime of its own

    def runtime(library: ctypes.CDLL) -> int | None:
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value

    torch_cpu = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not hasattr(ctypes.CDLL(str(torch_cpu)), "GOMP_parallel"):
        pytest.skip("torch has another OpenMP runtime")
    source.write_text(
        'extern "C" int answer() { int sum = 0;\n#pragma omp parallel for reduction(+ : sum)\n'
        "for (int i = 0; i < 42; i++) sum++;\nreturn sum; }\n"
    )
    library = compile_library(source, tmp_path / "kept")
    assert answer(library) == 42
    assert runtime(ctypes.CDLL(str(library))) == runtime(ctypes.CDLL(str(torch_cpu)))


@needs_compiler
def test_two_processes_may_compile_at_once(source: Path, tmp_path: Path):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        tasks = [pool.submit(compile_library, source, tmp_path / "kept") for _ in range(4)]
        libraries = {task.result() for task in tasks}
    assert {answer(library) for library in libraries} == {42}
    assert set((tmp_path / "kept").iterdir()) >= libraries


@needs_compiler
def test_what_the_compiler_says_is_the_reason(source: Path, tmp_path: Path):
    source.write_text("this is not C++\n")
    with pytest.raises(CompilingError, match="error"):
        compile_library(source, tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())


def test_without_a_compiler(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    with pytest.raises(CompilingError, match="no C\\+\\+ compiler"):
        compile_library(source, tmp_path / "kept")


def test_a_compiler_that_is_no_command(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", 'c++ "')
    with pytest.raises(CompilingError, match="CXX is no command"):
        compile_library(source, tmp_path / "kept")


@needs_compiler
def test_a_folder_that_cannot_be_made(source: Path, tmp_path: Path):
    with pytest.raises(CompilingError, match="Not a directory"):
        compile_library(source, source / "kept")
