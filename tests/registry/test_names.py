from __future__ import annotations

from pathlib import PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.errors import InvalidRequestError
from adapterhub.registry.references import LATEST, RESERVED, Ref, check_alias, check_name


def is_free(name: str) -> bool:
    return name not in RESERVED and not name.endswith(".") and not PureWindowsPath(name).is_reserved()


WRITTEN = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True)
NAMES = WRITTEN.filter(is_free)
ALIASES = NAMES.filter(lambda name: not name.isdigit())


@pytest.mark.parametrize("name", ["json", "a", "0", "qwen3-0.6b_v2.1", "x" * 63])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "JSON",
        "a b",
        "a@b",
        "a:b",
        "a/b",
        "../x",
        "..",
        ".hidden",
        "-a",
        "_a",
        "a\n",
        "a\x00",
        "ä",
        "x" * 64,
    ],
)
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="not an adapter's name"):
        check_name(name)


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_names(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="reserved"):
        check_name(name)
    with pytest.raises(InvalidRequestError, match=r"is not an alias|cannot be set"):
        check_alias(name)


@given(
    st.sampled_from(["con", "prn", "aux", "nul", "com1", "com9", "lpt1", "lpt9"]),
    st.text("ab.-_1", max_size=3),
)
def test_windows_can_store_every_name(device: str, rest: str) -> None:
    name = device + rest
    if is_free(name):
        assert check_name(name) == name
    else:
        with pytest.raises(InvalidRequestError, match="Windows"):
            check_name(name)


def test_latest_is_read_in_references_and_nowhere_else() -> None:
    assert Ref.parse("json@latest") == Ref("json", alias=LATEST)
    assert str(Ref("json", alias=LATEST)) == "json@latest"
    for text in ("latest", "latest@1", "json@Latest", "json@auto", "json@base", "json@__base__"):
        with pytest.raises(InvalidRequestError):
            Ref.parse(text)


@pytest.mark.parametrize("alias", ["3", "03", "", "Prod", "a@b", "../x", "prod\n"])
def test_bad_aliases(alias: str) -> None:
    with pytest.raises(InvalidRequestError):
        check_alias(alias)


@pytest.mark.parametrize(
    "text", ["json@", "json@0", "json@03", "json@-1", "@3", "json@3@4", "json@prod ", "json@a/b"]
)
def test_bad_references(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        Ref.parse(text)


@given(NAMES, st.integers(1, 999_999_999), ALIASES)
def test_a_reference_reads_as_it_is_written(name: str, version: int, alias: str) -> None:
    for ref in (Ref(name), Ref(name, version=version), Ref(name, alias=alias)):
        assert Ref.parse(str(ref)) == ref
    assert Ref(name).is_bare
    assert not Ref(name, version=version).is_bare


@given(st.text())
def test_any_text_is_a_reference_or_a_clear_error(text: str) -> None:
    try:
        ref = Ref.parse(text)
    except InvalidRequestError:
        return
    assert str(ref) == text
    assert "/" not in ref.name
    assert not ref.name.startswith(".")
