"""The OpenAPI document: whole, with examples that work, and true of errors."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

EXAMPLES = {"/v1/chat/completions", "/v1/completions"}


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


async def test_is_served(client: httpx.AsyncClient, document: dict[str, Any]):
    assert (await client.get("/openapi.json")).json() == document


def test_every_reference_has_its_definition(document: dict[str, Any]):
    found = set(references(document))
    assert "#/components/schemas/ChatMessage" in found
    for reference in found:
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]


def test_operation_ids_are_names_of_their_own(document: dict[str, Any]):
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)
    assert {"create_chat_completion", "create_completion", "list_models", "retrieve_model"} <= set(names)


def test_every_operation_is_described_with_its_errors(document: dict[str, Any]):
    for path, method, operation in operations(document):
        assert operation["description"], (path, method)
        assert "422" not in operation["responses"], (path, method)
        schema = operation["responses"]["default"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/Error"}


def test_every_field_of_a_body_is_described(document: dict[str, Any]):
    for path in EXAMPLES:
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        for name, field in body["schema"]["properties"].items():
            assert field.get("description"), (path, name)


@pytest.mark.parametrize("path", sorted(EXAMPLES))
async def test_examples_work_and_answers_have_the_fields_shown(
    client: httpx.AsyncClient, document: dict[str, Any], path: str
):
    operation = document["paths"][path]["post"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    answer = await client.post(path, json={**example, "model": "base"})
    assert answer.status_code == 200, answer.text
    shown = operation["responses"]["200"]["content"]["application/json"]["example"]
    assert answer.json().keys() == shown.keys()
    # FastAPI leaves null out of examples.
    assert answer.json()["choices"][0].keys() - {"logprobs"} == shown["choices"][0].keys()


async def test_no_page_loads_scripts_of_other_hosts(client: httpx.AsyncClient):
    assert [(await client.get(path)).status_code for path in ("/docs", "/redoc")] == [404, 404]
