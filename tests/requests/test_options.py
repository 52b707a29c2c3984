"""The options of a request: typed, under vLLM's names, and refused where they are unknown."""

import typing

import pytest

from adapterhub import SamplingParams
from adapterhub.engine.output_format import OUTPUT_FORMAT_ARGUMENTS
from adapterhub.errors import InvalidRequestError
from adapterhub.requests import BatchGenerationOptions, GenerationOptions
from adapterhub.requests.options import VLLM_NAMES, RequestOptions
from adapterhub.requests.template_options import TEMPLATE_ARGUMENTS


@pytest.mark.parametrize("options", [GenerationOptions, BatchGenerationOptions])
def test_the_typed_options_are_the_sampling_parameters_and_output_formats(options):
    assert set(typing.get_type_hints(options)) == {
        *SamplingParams.model_fields,
        *OUTPUT_FORMAT_ARGUMENTS,
        *VLLM_NAMES,
        *TEMPLATE_ARGUMENTS,
        "priority",
        "where",
        "user",
    }
    assert not options.__required_keys__


def test_single_options_win_over_sampling_params_of_which_only_set_fields_count():
    params = SamplingParams(temperature=0.5, max_tokens=7)
    asked = RequestOptions.of({"max_tokens": 9, "priority": 2}, params)
    assert asked.sampling == {"temperature": 0.5, "max_tokens": 9}
    assert asked.priority == 2
    assert RequestOptions.of({}, SamplingParams()).sampling == {}
    assert RequestOptions.of({}).priority is None


@pytest.mark.parametrize(("vllm", "ours"), VLLM_NAMES.items())
def test_vllm_names_of_output_formats_are_accepted(vllm, ours):
    assert RequestOptions.of({vllm: ["a"]}).output_format == {ours: ["a"]}
    for options in ({vllm: ["a"], ours: ["a"]}, {ours: ["a"], vllm: ["a"]}):
        with pytest.raises(InvalidRequestError, match=f"{vllm}= and {ours}= mean the same"):
            RequestOptions.of(options)


@pytest.mark.parametrize(
    ("options", "hint"),
    [({"tempreature": 1}, "Did you mean 'temperature'"), ({"qqqqq": 1}, "Known options: max_tokens")],
)
def test_an_unknown_option_is_an_error_with_a_hint(options, hint):
    with pytest.raises(InvalidRequestError, match=hint):
        RequestOptions.of(options)


@pytest.mark.parametrize("priority", [True, "1", 0.5])
def test_a_priority_is_a_whole_number(priority):
    with pytest.raises(InvalidRequestError, match="whole number"):
        RequestOptions.of({"priority": priority})


def test_sampling_params_of_another_type_are_refused():
    with pytest.raises(InvalidRequestError, match="takes a SamplingParams, not dict"):
        RequestOptions.of({}, {"max_tokens": 3})  # type: ignore[arg-type]
