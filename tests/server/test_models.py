"""`/v1/models`, and what `model` of a request may name."""

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.errors import ConfigError
from adapterhub.server import ServerConfig, create_app

PROMPT = {"prompt": "Hi", "max_tokens": 64}


async def answered(client: httpx.AsyncClient, model: str) -> dict[str, Any]:
    answer = await client.post("/v1/completions", json={"model": model, **PROMPT})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def hub(hub: AdapterHub) -> AdapterHub:
    card = hub.registry.get("json")
    hub.registry.register("json", hub.registry.folder(card))
    hub.registry.alias("json", "prod", 1)
    return hub


class TestNames:
    @pytest.mark.parametrize(
        ("model", "adapter", "version"),
        [
            ("json", "json", 2),
            ("json@1", "json", 1),
            ("json@prod", "json", 1),
            ("json@latest", "json", 2),
            ("base", None, None),
            ("__base__", None, None),
            ("echo", None, None),
            ("echo:json", "json", 2),
            ("base:json@1", "json", 1),
            ("echo:base", None, None),
            ("json:0.6+code:0.4", "json@2:0.6+code@1:0.4", None),
        ],
    )
    async def test_what_a_name_means(
        self, client: httpx.AsyncClient, model: str, adapter: str | None, version: int | None
    ):
        answer = await answered(client, model)
        assert answer["model"] == (adapter or "echo")
        assert answer["adapterhub"] == {"adapter": adapter, "version": version, "route": None}
        shown = "base" if adapter is None else f"json@{version}" if version else "json"
        assert answer["choices"][0]["text"].startswith(f"[{shown}")

    @pytest.mark.parametrize(
        "model",
        [
            "nobody",
            "json@9",
            "json@staging",
            "json@1@2",
            "echo:nobody",
            "echo2:json",
            "nobody:0.5+json:0.5",
            "GPT-4",
            "meta-llama/Llama-3.2-1B",
            "../json",
            "имя",
            "base@1",
        ],
    )
    async def test_unknown_ones_are_404(self, client: httpx.AsyncClient, model: str):
        """No silent base: a name that nobody has is never answered by it."""
        answer = await client.post("/v1/completions", json={"model": model, **PROMPT})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (404, "model", "model_not_found")
        assert (await client.get(f"/v1/models/{quote(model)}")).status_code == 404

    async def test_a_base_that_is_called_as_an_adapter_is_refused(self, hub: AdapterHub):
        """Else requests for the adapter would be answered by the base."""
        with pytest.raises(ConfigError, match="both called 'json'"):
            create_app(hub, ServerConfig(base_model="json"))
        with AdapterHub(EchoEngine("/bases/code"), hub.registry) as own:
            with pytest.raises(ConfigError, match="--base-model"):
                create_app(own)
            transport = httpx.ASGITransport(create_app(own, ServerConfig(base_model="mine")))
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                assert (await answered(client, "code"))["model"] == "code"

    async def test_an_adapter_that_gets_the_name_of_the_base_is_not_served_under_it(
        self, hub: AdapterHub, tmp_path: Path
    ):
        """Another program may register one while the server runs."""
        registry = AdapterRegistry(shutil.copytree(hub.registry.root, tmp_path / "registry"))
        with AdapterHub(EchoEngine(), registry) as own:
            transport = httpx.ASGITransport(create_app(own))
            card, folder = registry.get("support"), registry.folder(registry.get("support"))
            registry.register("echo", folder, description=card.description, routing=card.routing)
            registry.update("support", status="disabled")
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                assert (await answered(client, "echo"))["adapterhub"]["adapter"] is None
                assert (await answered(client, "echo@1"))["adapterhub"]["adapter"] == "echo"
                listed = [model["root"] for model in (await client.get("/v1/models")).json()["data"]]
                assert listed.count("echo") == 1
                assert "echo@1" not in listed
                prompt = {"prompt": "my printer is broken", "max_tokens": 4}
                chosen = await client.post("/v1/completions", json={"model": "auto", **prompt})
                assert chosen.headers["x-adapterhub-adapter"] != "echo"
                told = await client.post("/v1/adapterhub/route", json={"prompt": "my printer is broken"})
                assert told.json()["adapter"] != "echo"

    @pytest.mark.parametrize(
        "model", ["json:11+code:1", "json:1+base:1", "+".join(f"a{number}" for number in range(9))]
    )
    async def test_what_is_wrong_with_a_blend_is_the_models_fault(
        self, client: httpx.AsyncClient, model: str
    ):
        error = (await client.post("/v1/completions", json={"model": model, **PROMPT})).json()["error"]
        assert (error["param"], error["code"]) == ("model", "invalid_value")

    @pytest.mark.parametrize("body", [PROMPT, {"model": "", **PROMPT}, {"model": None, **PROMPT}])
    async def test_a_model_has_to_be_named(self, client: httpx.AsyncClient, body: dict[str, object]):
        answer = await client.post("/v1/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")

    async def test_headers_tell_who_answered(self, client: httpx.AsyncClient):
        for stream in (False, True):
            answer = await client.post(
                "/v1/completions", json={"model": "json@prod", "stream": stream, **PROMPT}
            )
            assert answer.headers["x-adapterhub-adapter"] == "json"
            assert answer.headers["x-adapterhub-version"] == "1"
            assert "x-adapterhub-route" not in answer.headers


class TestAuto:
    async def test_the_router_chooses_and_says_why(self, client: httpx.AsyncClient):
        asked = {"model": "auto", "messages": [{"role": "user", "content": "my printer is broken"}]}
        for stream in (False, True):
            answer = await client.post("/v1/chat/completions", json={**asked, "stream": stream})
            assert answer.headers["x-adapterhub-adapter"] == "support"
            assert answer.headers["x-adapterhub-route"] == "matched"
            assert 0.5 < float(answer.headers["x-adapterhub-confidence"]) <= 1
        body = (await client.post("/v1/chat/completions", json=asked)).json()
        assert body["model"] == "support"
        route = body["adapterhub"]["route"]
        assert route.keys() == {"reason", "confidence", "threshold"}
        assert route["reason"] == "matched"
        assert route["confidence"] >= route["threshold"]

    async def test_each_prompt_of_a_request_is_routed(self, client: httpx.AsyncClient):
        prompts = ["my printer is broken", "write a python function"]
        body = (await client.post("/v1/completions", json={"model": "auto", "prompt": prompts})).json()
        assert [choice["adapterhub"]["adapter"] for choice in body["choices"]] == ["support", "code"]


class TestList:
    async def test_base_router_and_adapters(self, client: httpx.AsyncClient):
        listed = (await client.get("/v1/models")).json()
        assert listed["object"] == "list"
        lineage = {model["id"]: (model["root"], model["parent"]) for model in listed["data"]}
        assert lineage == {
            "echo": ("echo", None),
            "auto": ("auto", "echo"),
            "code": ("code@1", "echo"),
            "json": ("json@2", "echo"),
            "support": ("support@1", "echo"),
        }
        assert {model["max_model_len"] for model in listed["data"]} == {8192}
        assert {model["object"] for model in listed["data"]} == {"model"}

    @pytest.mark.parametrize(
        ("model", "root"),
        [
            ("json", "json@2"),
            ("json@prod", "json@1"),
            ("echo", "echo"),
            ("base", "echo"),
            ("auto", "auto"),
            ("code:0.25+json:0.75", "json@2:0.75+code@1:0.25"),
        ],
    )
    async def test_one(self, client: httpx.AsyncClient, model: str, root: str):
        answer = await client.get(f"/v1/models/{model}")
        assert (answer.status_code, answer.json()["root"]) == (200, root)

    async def test_a_disabled_adapter_is_not_there(self, client: httpx.AsyncClient, hub: AdapterHub):
        hub.registry.update("code", status="disabled")
        try:
            listed = (await client.get("/v1/models")).json()["data"]
            assert "code" not in {model["id"] for model in listed}
            assert (await client.get("/v1/models/code")).status_code == 404
        finally:
            hub.registry.update("code", status="ready")

    async def test_an_adapter_of_another_base_is_not_there(self, hub: AdapterHub):
        trained_on = hub.registry.get("json").base.fingerprint
        assert trained_on is not None

        class OtherBase(EchoEngine):
            fingerprint = trained_on.model_copy(update={"digest": "sha256:" + "0" * 64})

        with AdapterHub(OtherBase(), hub.registry) as own:
            assert not own.fits_base(hub.registry.get("json"))
            transport = httpx.ASGITransport(create_app(own))
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                assert len((await client.get("/v1/models")).json()["data"]) == 1
                for model in ("json", "json@1", "json:0.5+code:0.5"):
                    assert (await client.get(f"/v1/models/{model}")).status_code == 404

    async def test_the_base_shows_no_path(self, hub: AdapterHub):
        with AdapterHub(EchoEngine("/somewhere/secret/llama-1b"), hub.registry) as own:
            for config, name in ((ServerConfig(), "llama-1b"), (ServerConfig(base_model="mine"), "mine")):
                transport = httpx.ASGITransport(create_app(own, config))
                async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                    answers = [
                        await client.get("/v1/models"),
                        await client.post("/v1/completions", json={"model": name, **PROMPT}),
                        await client.post("/v1/completions", json={"model": f"{name}:json", **PROMPT}),
                    ]
                assert [answer.status_code for answer in answers] == [200] * 3
                assert answers[1].json()["model"] == name
                assert "secret" not in "".join(answer.text for answer in answers)
