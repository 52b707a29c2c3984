import inspect
import pickle
import re

import pytest

from adapterhub import errors
from adapterhub.errors import AdapterHubError, AdapterNotFoundError, CapacityError, ConfigError

ALL = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_keeps_its_hint_through_a_process_pool(kind: type[AdapterHubError]):
    error = kind("It broke.", hint="Mend it.")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.message, again.hint) == (kind, "It broke.", "Mend it.")


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = re.findall(r"(\w+Error)", (errors.__doc__ or "").split("Every error")[0])
    assert [name for name in drawn if name not in ("ValueError", "LookupError")] == [
        kind.__name__ for kind in ALL
    ]


def test_built_in_families_can_be_caught():
    with pytest.raises(LookupError):
        raise AdapterNotFoundError("There is no adapter 'x'.")
    with pytest.raises(ValueError):
        raise ConfigError("Wrong.")


def test_the_text_shows_message_and_hint():
    assert str(ConfigError("It broke.", hint="Mend it.")) == "It broke. Hint: Mend it."
    assert str(ConfigError("It broke.")) == "It broke."


def test_only_what_may_pass_by_itself_is_retryable():
    assert {kind.__name__ for kind in ALL if kind.retryable} == {"CapacityError", "DeadlineError"}
    assert CapacityError.code == "capacity"


def test_codes_are_distinct():
    assert len({kind.code for kind in ALL}) == len(ALL)
