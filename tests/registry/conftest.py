from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.registry import AdapterRegistry
from tests.registry.maker import make_adapter, make_base


@pytest.fixture
def registry(tmp_path: Path) -> AdapterRegistry:
    return AdapterRegistry(tmp_path / "registry")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter")
