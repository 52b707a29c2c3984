"""What tells one kind of processor from another."""

from pathlib import Path

import pytest

from adapterhub import _processor
from adapterhub._processor import processor

X86 = "processor : 0\nmodel name : Some CPU\ncpu MHz : {mhz}\nflags : fpu avx2{more}\n"


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(_processor.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(_processor, "_CPUINFO", tmp_path / "cpuinfo")

    def of(text: str) -> str:
        (tmp_path / "cpuinfo").write_text(text)
        processor.cache_clear()
        return processor()

    yield of
    processor.cache_clear()


def test_it_depends_on_model_and_features_alone(known):
    first = known(X86.format(mhz=2000, more=""))
    assert first.startswith("x86_64, Some CPU, ")
    assert known(2 * X86.format(mhz=3000, more="")) == first
    assert known(X86.format(mhz=2000, more=" avx512_bf16")) != first


def test_without_cpuinfo_it_is_what_the_platform_says(known, tmp_path: Path, monkeypatch):
    known("")
    (tmp_path / "cpuinfo").unlink()
    monkeypatch.setattr(_processor.platform, "processor", lambda: "arm")
    processor.cache_clear()
    assert processor() == "x86_64, arm"
