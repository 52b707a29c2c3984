"""The benchmark of the engine runs, and its answers are those of our own engine."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make test-gguf)")

from benchmarks.llama_cpp_engine import run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_compares_answers_and_times(tmp_path: Path):
    found = run("adapterhub-demo", 0, 1, tmp_path)
    assert found["same answers as our engine"] == found["requests"] == 14
    assert found["ratio to llama-cpp-python"] > 0
