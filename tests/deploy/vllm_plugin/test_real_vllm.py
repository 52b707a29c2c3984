"""A real vLLM with the plugin pulls adapters by name; needs an environment with vLLM."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapterhub import AdapterHub, AdapterRegistry
from adapterhub.base import demo_base_folder
from adapterhub.peft_format import WEIGHTS_FILE

VLLM = os.environ.get("ADAPTERHUB_TEST_VLLM", "")  # the command `vllm`; fixtures clear the variable
ROOT = Path(__file__).parents[3]
TEXT = "Make JSON with the keys name, city: Anna Meier lives in Basel and is 34."
OPTIONS = (
    "--enable-lora --max-loras 4 --max-lora-rank 32 --enforce-eager --max-model-len 512 --dtype bfloat16"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This package alone, as `pip install --no-deps` puts it beside vLLM."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", folder, ROOT], check=True)
    return folder


@contextmanager
def server(installed: Path, registry: Path, log: Path, **variables: str) -> Iterator[str]:
    """A vLLM with the plugin, and its address; in the end it is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(installed),
        "ADAPTERHUB_REGISTRY": str(registry),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_TARGET_DEVICE": "cpu",
        **variables,
    }
    command = [VLLM, "serve", str(demo_base_folder()), "--host", "127.0.0.1", "--port", str(port)]
    command += [*OPTIONS.split(), "--served-model-name", "adapterhub-demo"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        while process.poll() is None and status(f"{address}/health")[0] != 200:
            time.sleep(1)
        assert process.poll() is None, log.read_text()[-2000:]
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with its workers
        process.wait()


def status(url: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """The status and the JSON of an answer; the status 0 if there is none."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            content = answer.read()
            return answer.status, json.loads(content) if content else None
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
    except OSError:
        return 0, None


def chat(address: str, model: str) -> tuple[int, str]:
    """The status, and the answer's text or the error's message."""
    messages = [{"role": "user", "content": TEXT}]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 40}
    code, answer = status(f"{address}/v1/chat/completions", body)
    return code, answer["choices"][0]["message"]["content"] if code == 200 else answer["error"]["message"]


def damage(registry: AdapterRegistry, ref: str) -> None:
    """Changes one byte of the weights, so that they stay readable and are others."""
    path = registry.folder(registry.get(ref)) / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.slow  # starts a server, twice
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not VLLM, reason="needs ADAPTERHUB_TEST_VLLM, the path of a vllm command")
def test_it_pulls_what_the_registry_has_and_nothing_else(installed: Path, tmp_path: Path):
    folder, log = tmp_path / "registry", tmp_path / "server.log"
    shutil.copytree(ROOT / "adapters", folder)
    registry = AdapterRegistry(folder)
    with AdapterHub.from_pretrained(registry=folder, quantization=None) as hub:
        expected = {
            name: hub.generate(TEXT, name, temperature=0, max_tokens=40).text for name in ("json", "support")
        }
    assert expected["json"] != expected["support"]
    digest = registry.get("json").digest.removeprefix("sha256:")[:8]
    json_1, support_1 = f"json--v1-{digest}", "support@1"
    damage(registry, "code@1")

    with server(installed, folder, log, ADAPTERHUB_VLLM_NAMES="any") as address:
        assert chat(address, json_1) == (200, expected["json"])
        assert chat(address, support_1) == (200, expected["support"])
        assert chat(address, "json") == (200, expected["json"])
        models = {model["id"]: model["root"] for model in status(f"{address}/v1/models")[1]["data"]}
        assert models[json_1] == models["json"] == str((folder / "json" / "1").resolve())
        assert chat(address, "unknown")[0] == chat(address, "json@7")[0] == 404
        assert chat(address, "json--v1-00000000")[0] == chat(address, "../json")[0] == 404
        code, message = chat(address, "code")
        assert (code, "digest differs" in message) == (400, True)
        registry.register("fresh", folder / "json" / "1")
        assert chat(address, "fresh@1") == (200, expected["json"])

    with server(installed, folder, log) as address:  # it was killed, and only pinned names are asked for
        assert chat(address, json_1) == (200, expected["json"])
        code, message = chat(address, "json")
        assert (code, "json@1" in message) == (400, True)
        assert chat(address, "adapterhub-demo")[1] not in expected.values()
