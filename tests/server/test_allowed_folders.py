from pathlib import Path

import pytest

from adapterhub.errors import AdapterNotFoundError
from adapterhub.server.access.errors import PermissionDeniedError
from adapterhub.server.adapters.allowed_folders import allowed_folder


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    (tmp_path / "allowed" / "sql").mkdir(parents=True)
    (tmp_path / "elsewhere" / "secret").mkdir(parents=True)
    (tmp_path / "allowed" / "link").symlink_to(tmp_path / "elsewhere" / "secret")
    (tmp_path / "allowed" / "inside").symlink_to("sql")
    (tmp_path / "allowed" / "loop").symlink_to("loop")
    (tmp_path / "allowed" / "file").write_text("")
    return tmp_path / "allowed"


@pytest.mark.parametrize("path", ["sql", "./sql", "inside", "sql/../sql"])
def test_a_folder_below_an_allowed_one(allowed: Path, path: str):
    assert allowed_folder(path, [allowed]) == (allowed / "sql").resolve()
    assert allowed_folder(str(allowed / path), [allowed]) == (allowed / "sql").resolve()


@pytest.mark.parametrize("path", ["../elsewhere/secret", "link", "/", "/etc", "..", "~"])
def test_what_lies_elsewhere_is_refused_without_saying_whether_it_exists(allowed: Path, path: str):
    with pytest.raises((PermissionDeniedError, AdapterNotFoundError)) as caught:
        allowed_folder(path, [allowed])
    assert str(allowed) not in str(caught.value)


@pytest.mark.parametrize("path", ["/nowhere/at/all", "/etc"])
def test_elsewhere_is_one_answer(allowed: Path, path: str):
    with pytest.raises(PermissionDeniedError, match="in none of the folders"):
        allowed_folder(path, [allowed])


@pytest.mark.parametrize("path", ["nothing", "file", "loop", "a\0b", "x" * 300, "x/" * 3000])
def test_what_is_no_folder_there_is_not_found(allowed: Path, path: str):
    with pytest.raises(AdapterNotFoundError):
        allowed_folder(path, [allowed])


def test_without_folders_nothing_is_allowed(allowed: Path):
    with pytest.raises(PermissionDeniedError, match="from no folder"):
        allowed_folder(str(allowed / "sql"), [])
