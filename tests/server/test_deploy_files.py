"""The files of the deployment guide agree with the server and are valid where their programs can say so."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from adapterhub.cli.serve import serve
from adapterhub.server import ServerConfig

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
UNIT = DEPLOY / "adapterhub@.service"


def test_every_file_is_in_the_guide():
    guide = (DEPLOY.parents[1] / "docs" / "deployment.md").read_text(encoding="utf-8")
    named = set(re.findall(r"examples/deploy/([\w@.-]+\.\w+)", guide))
    assert named == {path.name for path in DEPLOY.iterdir()}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_takes_the_unit_and_rates_it_as_safe(tmp_path: Path):
    unit = tmp_path / "adapterhub@8000.service"
    unit.write_text(UNIT.read_text().replace("/opt/adapterhub/bin/adapterhub", "/bin/true"))
    checked = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", unit],
        capture_output=True,
        text=True,
    )
    assert rated.returncode == 0, rated.stdout[-500:]  # at most 2.5 of 10, "OK"


def test_the_unit_starts_the_server_with_options_that_it_has_and_waits_for_its_drain():
    unit = UNIT.read_text().replace("\\\n", " ")
    command = shlex.split(re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)[1])
    assert command[1] == "serve"
    known = {flag for parameter in serve.params for flag in parameter.opts}
    assert {word for word in command if word.startswith("--")} <= known
    seconds = int(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[1])
    assert seconds > ServerConfig().drain_seconds


def test_the_manifests_are_yaml_and_agree_on_the_port():
    pool, route = yaml.safe_load_all((DEPLOY / "inference-pool.yaml").read_text())
    assert pool["apiVersion"] == "inference.networking.k8s.io/v1"
    (backend,) = route["spec"]["rules"][0]["backendRefs"]
    assert (backend["kind"], backend["name"]) == (pool["kind"], pool["metadata"]["name"])
    scraped = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["scrape_configs"][0]["static_configs"]
    (port,) = pool["spec"]["targetPorts"]
    assert scraped == [{"targets": [f"127.0.0.1:{port['number']}"]}]


def test_the_board_is_json_with_one_source():
    board = json.loads((DEPLOY / "grafana.json").read_text())
    sources = {panel["datasource"]["uid"] for panel in board["panels"]}
    assert sources == {"${datasource}"}
    assert [one["name"] for one in board["templating"]["list"]] == ["datasource"]
