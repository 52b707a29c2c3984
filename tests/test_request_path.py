"""The files that docs/architecture.md lists for a request are those that run code in one."""

import re
import sys
from pathlib import Path
from types import FrameType

import pytest
import torch

import adapterhub
from adapterhub import AdapterHub
from adapterhub.engine.kv.decode_kernel import DecodeKernel
from adapterhub.lora.kernels.choosing import compiled_library

PACKAGE = Path(adapterhub.__file__).parent
DOC = Path(__file__).parents[1] / "docs" / "architecture.md"
NOT_IN_A_WARM_REQUEST = {
    "adapterhub/routing/router.py",  # "auto" only
    "adapterhub/engine/scheduling/cpu_adapter_cache.py",  # the adapter is in its slot
    "adapterhub/requests/generation.py",  # a dataclass, whose generated code belongs to no file
}


pytestmark = pytest.mark.skipif(
    compiled_library()[0] is None or DecodeKernel.find(torch.device("cpu"), torch.float32) is None,
    reason="the path is that of a machine with a C++ compiler",
)


@pytest.fixture(scope="module")
def hub(tiny_base: Path, tiny_registry: Path):
    with AdapterHub.from_pretrained(tiny_base, tiny_registry, quantization=None, device="cpu") as hub:
        yield hub


def files_of_a_warm_request(hub: AdapterHub, adapter: str | None) -> set[str]:
    hub.generate("Hello", adapter, max_tokens=4)
    files: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            files.add(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        hub.generate("Hello", adapter, max_tokens=4)
    finally:
        sys.setprofile(before)
    inside = (Path(file) for file in files if file.startswith(f"{PACKAGE}/"))
    return {path.relative_to(PACKAGE.parent).as_posix() for path in inside}


def test_the_documented_files_run_code_in_a_warm_request(hub: AdapterHub):
    section = DOC.read_text(encoding="utf-8").partition("## A request's path")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(adapterhub/[\w/]+\.py)` \|", section, re.MULTILINE)
    files = files_of_a_warm_request(hub, "json")
    assert files == set(rows) - NOT_IN_A_WARM_REQUEST
    assert f"{len(files)} files run code in a warm request" in section


def test_the_bare_base_passes_fewer(hub: AdapterHub):
    assert f"bare base passes {len(files_of_a_warm_request(hub, None))} files" in DOC.read_text(
        encoding="utf-8"
    )
