import shutil
from pathlib import Path

import pytest


@pytest.fixture
def own_registry(tiny_registry: Path, tmp_path: Path) -> Path:
    """A registry that a test may change."""
    return Path(shutil.copytree(tiny_registry, tmp_path / "registry"))
