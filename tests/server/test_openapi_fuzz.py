"""schemathesis sends what the OpenAPI document allows, and what it does not: nothing ends in a 500."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.schemas import OpenApiSchema

from adapterhub import AdapterHub
from adapterhub.server import ServerConfig, create_app

HONEST = (501, 503)
"""What is not offered, and what is busy; both have OpenAI's error object."""


@schemathesis.serializer("application/zip")
def as_it_is(context: object, value: object) -> bytes:
    """An upload that is no archive."""
    return value if isinstance(value, bytes) else str(value).encode(errors="surrogateescape")


@pytest.fixture(scope="module")
def api(app: FastAPI) -> OpenApiSchema:
    """On an engine without a model."""
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.fixture(scope="module")
def api_of_a_base(
    tiny_base: Path, tiny_registry: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenApiSchema]:
    """On a base, which computes what is asked."""
    registry = shutil.copytree(tiny_registry, tmp_path_factory.mktemp("fuzzed") / "registry")
    with AdapterHub.from_pretrained(tiny_base, registry, quantization=None, kv_cache_mib=64) as hub:
        yield schemathesis.openapi.from_asgi("/openapi.json", create_app(hub, ServerConfig(access_log=False)))


def fuzz(api: OpenApiSchema, examples: int) -> Counter[int]:
    """Sends requests to every operation of a document, in turn as it allows them and as it does not.

    schemathesis' own parametrizing does not run in this pytest.

    Returns:
        The statuses of the answers.
    """
    statuses: Counter[int] = Counter()

    def send(case: schemathesis.Case) -> None:
        if (
            isinstance(case.body, dict)
            and "model" in case.body
            and mode is schemathesis.GenerationMode.POSITIVE
        ):
            case.body["model"] = "json"  # a random one is never there, and nothing else would be looked at
        answer = case.call()
        statuses[answer.status_code] += 1
        assert answer.status_code < 500 or answer.status_code in HONEST, (answer.status_code, answer.text)
        if (
            answer.status_code >= 400 and "lora_adapter" not in case.operation.path
        ):  # those have vLLM's plain texts
            error: dict[str, Any] = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["message"]

    for operation in [result.ok() for result in api.get_all_operations()]:
        for mode in schemathesis.GenerationMode:
            cases = operation.as_strategy(generation_mode=mode)
            with suppress(Unsatisfiable):  # no request to this operation is against the document
                settings(max_examples=examples, suppress_health_check=list(HealthCheck))(given(cases)(send))()
    return statuses


def test_nothing_ends_in_a_500(api: OpenApiSchema):
    statuses = fuzz(api, 5)
    assert min(statuses[200], statuses[400]) >= 3


@pytest.mark.slow
def test_nothing_ends_in_a_500_on_a_base(api_of_a_base: OpenApiSchema):
    statuses = fuzz(api_of_a_base, 100)
    assert min(statuses[200], statuses[400]) >= 10
