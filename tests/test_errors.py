import inspect
import pickle
import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from adapterhub import errors
from adapterhub.errors import (
    AdapterDisabledError,
    AdapterHubError,
    AdapterIncompatibleError,
    AdapterNotFoundError,
    CapacityError,
    ConfigError,
    EngineClosedError,
    InvalidRequestError,
    RequestTooLongError,
    describe_validation,
    traceback_without_texts,
)

ALL = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_keeps_its_hint_through_a_process_pool(kind: type[AdapterHubError]):
    error = kind("It broke.", hint="Repair it.")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.message, again.hint) == (kind, "It broke.", "Repair it.")


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = re.findall(r"(\w+Error)", (errors.__doc__ or "").split("Every error")[0])
    assert [name for name in drawn if name not in ("ValueError", "LookupError")] == [
        kind.__name__ for kind in ALL
    ]


def test_the_table_in_the_docs_is_the_tree():
    page = (Path(__file__).parents[1] / "docs" / "concepts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+Error)` \| `(\w+)` \| (\d+) \| (yes|no) \|", page, re.MULTILINE)
    assert rows == [
        (kind.__name__, kind.code, str(kind.http_status), "yes" if kind.retryable else "no") for kind in ALL
    ]


def test_built_in_families_can_be_caught():
    with pytest.raises(LookupError):
        raise AdapterNotFoundError("There is no adapter 'x'.")
    with pytest.raises(ValueError):
        raise ConfigError("Wrong.")


def test_the_text_shows_message_and_hint():
    assert str(ConfigError("It broke.", hint="Repair it.")) == "It broke. Hint: Repair it."
    assert str(ConfigError("It broke.")) == "It broke."


def test_only_transient_errors_are_retryable():
    transient = {"CapacityError", "DeadlineError", "RegistryLockedError", "RegistryUnavailableError"}
    assert {kind.__name__ for kind in ALL if kind.retryable} == transient


def test_codes_are_distinct_and_statuses_known():
    assert len({kind.code for kind in ALL}) == len(ALL)
    assert {kind.http_status for kind in ALL} <= {400, 404, 409, 422, 429, 500, 503, 504}


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (InvalidRequestError, 400, "invalid_value"),
        (RequestTooLongError, 400, "context_length_exceeded"),
        (AdapterNotFoundError, 404, "model_not_found"),
        (AdapterDisabledError, 404, "adapter_disabled"),
        (AdapterIncompatibleError, 422, "adapter_incompatible"),
        (CapacityError, 429, "rate_limit_exceeded"),
        (EngineClosedError, 503, "overloaded"),
    ],
)
def test_the_status_and_code_that_clients_see(kind: type[AdapterHubError], status: int, code: str):
    assert (kind.http_status, kind.code) == (status, code)


class _Settings(BaseModel):
    size: int
    nested: dict[str, int] = {}


def test_one_formatter_names_fields_and_never_values():
    with pytest.raises(ValidationError) as caught:
        _Settings.model_validate({"size": "secret", "nested": {"a": "secret"}})
    assert describe_validation(caught.value).startswith("size: Input should be a valid integer")
    every = describe_validation(caught.value, limit=None)
    assert "; nested.a: " in every
    assert "secret" not in every


def test_a_traceback_for_the_log_has_the_places_and_not_the_texts():
    def fail() -> None:
        try:
            raise KeyError("the prompt")
        except KeyError as error:
            raise ValueError("the answer") from error

    with pytest.raises(ValueError, match="the answer") as caught:
        fail()
    text = traceback_without_texts(caught.value)
    assert text.endswith("builtins.KeyError")
    assert "builtins.ValueError\nafter\n" in text
    assert text.count("in fail") == 2
    assert "test_errors.py" in text
    values = [line for line in text.splitlines() if "raise " not in line]  # the lines of the source
    assert not any("the prompt" in line or "the answer" in line for line in values)
