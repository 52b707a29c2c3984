"""Model names of adapters."""

from pathlib import Path

import pytest

from adapterhub.errors import InvalidRequestError
from adapterhub.lora.request import BlendedLoraRequest, StoredLoraRequest
from adapterhub.vllm.adapter_names import AdapterName, stored_adapter

DIGEST = "1a2b3c4d" + "0" * 56


@pytest.mark.parametrize("name", ["sql", "a.b_c-d", "x--v2-00000000", "0" * 63])
def test_a_name_is_made_and_parsed(name: str):
    made = AdapterName.of(f"{name}@12", f"sha256:{DIGEST}")
    assert str(made) == f"{name}--v12-1a2b3c4d"
    assert AdapterName.parse(str(made)) == made == AdapterName(name, 12, "1a2b3c4d")


def test_versions_and_weights_have_names_of_their_own():
    names = {
        str(AdapterName.of(ref, f"sha256:{digest}"))
        for ref in ("sql@1", "sql@2", "json@1")
        for digest in (DIGEST, DIGEST[::-1])
    }
    assert len(names) == 6


@pytest.mark.parametrize(
    "model",
    [
        "meta-llama/Llama-3.1-8B",
        "sql",
        "sql--v3",
        "sql--v3-1a2b3c4",
        "sql--v3-1a2b3c4d5",
        "sql--v3-1A2B3C4D",
        "sql--v0-1a2b3c4d",
        "SQL--v3-1a2b3c4d",
        "../sql--v3-1a2b3c4d",
        "sql--v3-1a2b3c4d\n",
        "",
    ],
)
def test_other_names_are_left_alone(model: str):
    assert AdapterName.parse(model) is None


@pytest.mark.parametrize(
    ("name", "digest"), [("sql", DIGEST), ("sql@prod", DIGEST), ("sql@1", "sha256:none"), ("sql@1", "")]
)
def test_only_a_version_with_its_digest_has_a_name(name: str, digest: str):
    with pytest.raises(InvalidRequestError):
        AdapterName.of(name, digest)


def test_a_blend_is_not_stored():
    stored = StoredLoraRequest("sql@1", f"sha256:{DIGEST}", Path("/x"))
    assert stored_adapter(stored) is stored
    with pytest.raises(InvalidRequestError, match=r"hub\.blend"):
        stored_adapter(BlendedLoraRequest.of("half", [(stored, 0.5)]))
