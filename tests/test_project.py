"""pyproject.toml, the pinned versions and the developer's files agree with each other."""

import re
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.version import Version

from tests import hooks

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
SHIPPED = [
    Requirement(text)
    for texts in (PROJECT["dependencies"], *map(EXTRAS.get, ("train", "agents", "llama", "ray")))
    for text in texts
    if not text.startswith("adapterhub[")  # an extra that has another one in it
]


def pinned(name: str) -> dict[str, Version]:
    found = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    return {package.lower().replace("_", "-"): Version(version) for package, version in found}


def lower_bound(requirement: Requirement) -> Version:
    (bound,) = [Version(one.version) for one in requirement.specifier if one.operator in (">=", "==")]
    return bound


@pytest.mark.parametrize("requirement", SHIPPED, ids=lambda one: one.name)
def test_the_oldest_tested_version_is_the_lower_bound(requirement: Requirement):
    oldest = pinned("constraints-min.txt").get(requirement.name)
    assert oldest, f"pin the lower bound of {requirement.name} in constraints-min.txt"
    if requirement.name == "torch":  # see the comment in constraints-min.txt
        assert oldest in requirement.specifier
        return
    bound = lower_bound(requirement)
    # `>=2026.1` is the first release of that month: 2026.1.14.
    assert oldest.release[: len(bound.release)] == bound.release, f"{oldest} is tested, and {bound} allowed"


@pytest.mark.parametrize("requirement", SHIPPED, ids=lambda one: one.name)
def test_the_pinned_version_is_allowed(requirement: Requirement):
    version = pinned("constraints.txt").get(requirement.name)
    assert version, f"pin {requirement.name} in constraints.txt"
    assert version in requirement.specifier


def test_the_wheel_has_the_package_data(tmp_path: Path):
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    folders = {
        ROOT / "adapterhub": "adapterhub",
        ROOT / "adapters": "adapterhub/demo/adapters",
        ROOT / "examples" / "demo_real" / "adapters": "adapterhub/demo/adapters-real",
    }
    paths = [
        f"{name}/{path.relative_to(folder).as_posix()}"
        for folder, name in folders.items()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".py"
    ]
    # without bytecode and a registry's working files
    data = {path for path in paths if "/__pycache__/" not in path and "/." not in path}
    assert {"adapterhub/py.typed", "adapterhub/routing/analysis/report.html.jinja"} <= data
    with zipfile.ZipFile(wheel) as archive:
        assert data <= set(archive.namelist())


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split())
    # In `make test` this is a make within make, which prints the directory too.
    command = ["make", "--no-print-directory", "help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in shown.splitlines()} == targets
    assert all(len(line.split()) > 1 for line in shown.splitlines())


def test_the_commit_hooks_need_no_network():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repo["repo"] == "local"
    assert {hook["language"] for hook in repo["hooks"]} == {"system"}
    checks = {re.search(r"tests\.hooks (\S+)", hook["entry"]) for hook in repo["hooks"]} - {None}
    assert {match[1] for match in checks if match} == set(hooks.CHECKS)


@pytest.mark.parametrize(
    ("check", "content", "refused"),
    [
        ("end-of-file", b"one\ntwo\n", False),
        ("end-of-file", b"", False),
        ("end-of-file", b"one", True),
        ("end-of-file", b"one\n\n", True),
        ("end-of-file", b"one \ntwo\n", True),
        ("end-of-file", b"one\r\ntwo\n", True),
        ("large-files", b"x" * hooks.MAX_BYTES, False),
        ("large-files", b"x" * (hooks.MAX_BYTES + 1), True),
        ("yaml", b"a: [1, 2]\n", False),
        ("yaml", b"a: [1, 2\n", True),
    ],
)
def test_a_commit_hook_refuses_what_is_wrong(
    check: str, content: bytes, refused: bool, tmp_path: Path, capsys
):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert hooks.main(check, str(path)) == refused
    assert (str(path) in capsys.readouterr().out) == refused
