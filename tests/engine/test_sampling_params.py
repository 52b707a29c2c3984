import pytest

from adapterhub import SamplingParams
from adapterhub.errors import InvalidRequestError


def test_the_default_is_greedy():
    assert SamplingParams().temperature == 0


def test_a_temperature_of_next_to_nothing_is_greedy_too():
    assert SamplingParams(temperature=1e-40).greedy
    assert not SamplingParams(temperature=0.01).greedy


def test_one_stop_string_may_stand_alone():
    assert SamplingParams(stop="END").stop == ("END",)


def test_none_is_no_stop_as_in_vllm():
    params = SamplingParams.of({"stop": None, "stop_token_ids": None})
    assert (params.stop, params.stop_token_ids) == ((), ())


@pytest.mark.parametrize(
    ("layers", "stop"),
    [
        ([("a",), "b"], ("a", "b")),
        (["a", None], ("a",)),
        ([None, "a"], ("a",)),
        (["a", ()], ("a",)),
        ([["a", "b"], ["c"], ("d", "a")], ("a", "b", "c", "d", "a")),
    ],
)
def test_stops_of_all_layers_add_up(layers: list, stop: tuple[str, ...]):
    assert SamplingParams.of(*({"stop": layer} for layer in layers)).stop == stop
    numbers = {"a": 1, "b": 2, "c": 3, "d": 4}
    ids = [tuple(map(numbers.get, layer or ())) for layer in layers]
    merged = SamplingParams.of(*({"stop_token_ids": layer} for layer in ids))
    assert merged.stop_token_ids == tuple(map(numbers.get, stop))


@pytest.mark.parametrize("wrong", [5, {"a": 1}, [["a"]], b"ab"])
def test_a_stop_of_a_wrong_type_is_named_above_any_layer(wrong: object):
    with pytest.raises(InvalidRequestError, match="stop"):
        SamplingParams.of({"stop": ("x",)}, {"stop": wrong})


def test_later_layers_win():
    params = SamplingParams.of({"temperature": 0.5, "stop": ("a",)}, {"temperature": 0.7}, {"max_tokens": 3})
    assert (params.temperature, params.stop, params.max_tokens) == (0.7, ("a",), 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"top_p": 0},
        {"max_tokens": 0},
        {"n": 0},
        {"logprobs": 99},
        {"stop": ["a", ""]},
    ],
)
def test_a_wrong_argument_is_named(wrong: dict[str, float]):
    with pytest.raises(InvalidRequestError, match=next(iter(wrong))) as caught:
        SamplingParams.of(wrong)
    assert caught.value.hint is None


def test_an_unknown_argument_is_named_beside_the_known_ones():
    with pytest.raises(InvalidRequestError, match="tempreature") as caught:
        SamplingParams.of({"tempreature": 1})
    assert "temperature" in (caught.value.hint or "")
