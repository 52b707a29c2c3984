"""Filters: what each keeps and drops, and the reason that it counts."""

import pytest
from pydantic import ValidationError

from adapterhub.dataset import filters
from adapterhub.dataset.filters import FilterOptions, filter_samples
from adapterhub.dataset.records import Record, Sample
from adapterhub.dataset.token_counts import TokenCounter
from adapterhub.errors import ConfigError, DatasetError, InvalidRequestError
from tests.dataset.samples import sample, texts


@pytest.mark.spec("2-F9")
def test_ratings():
    samples = [sample("?", str(rating), rating=rating) for rating in (0.0, 1.0, 4.5, None, float("nan"))]
    result = filter_samples(samples, FilterOptions(min_rating=1.0))
    assert (texts(result.kept), result.dropped) == (["1.0", "4.5"], {"rating too low": 2, "no rating": 1})
    assert texts(filter_samples(samples, FilterOptions(rating_above=1.0)).kept) == ["4.5"]
    assert filter_samples(samples, FilterOptions()).kept == samples


def test_characters_of_answer_and_conversation_do_not_count_the_system_prompt():
    samples = [sample("12345", "a" * n, system="s" * 100) for n in (2, 3, 5, 6)]
    answers = filter_samples(samples, FilterOptions(min_answer_characters=3, max_answer_characters=5))
    assert texts(answers.kept) == ["aaa", "aaaaa"]
    assert answers.dropped == {"answer too short": 1, "answer too long": 1}
    whole = filter_samples(samples, FilterOptions(min_characters=5 + 1 + 3, max_characters=5 + 1 + 5))
    assert texts(whole.kept) == ["aaa", "aaaaa"]
    assert whole.dropped == {"conversation too short": 1, "conversation too long": 1}


def test_patterns():
    samples = [
        sample("q1", "see https://x.org"),
        sample("q2", "fine"),
        sample("p", "fine"),
        sample("q3", "Fine"),
    ]
    result = filter_samples(samples, FilterOptions(include=[r"^q\d"], exclude=["https?://", "(?i)FINE$"]))
    assert texts(result.kept) == []
    assert result.dropped == {"has an excluded pattern": 3, "lacks an included pattern": 1}
    assert texts(filter_samples(samples, FilterOptions(exclude=["http", "p\n"])).kept) == ["fine", "Fine"]


def test_a_pattern_that_takes_too_long_is_an_error_without_the_text(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(filters, "_PATTERN_SECONDS", 0.1)
    slow = FilterOptions(exclude=["(a+)+b(?=c)"])
    with pytest.raises(DatasetError, match=r"takes too long on row 1 of 'a'") as error:
        filter_samples([sample("?", "a" * 5000)], slow)
    assert "aaaa" not in str(error.value)


def test_languages():
    russian = "Совет всем, кто в спешке пользуется принтером: не показывайте, что торопитесь."
    samples = [
        sample("Шутка", russian),
        sample("Joke", "This is the answer to your question."),
        sample("2", "4"),
    ]
    result = filter_samples(samples, FilterOptions(languages=["ru"]))
    assert (texts(result.kept), result.dropped) == ([russian, "4"], {"language": 1})
    assert len(filter_samples(samples, FilterOptions(languages=["ru", "en"])).kept) == 3


def test_tokens_are_counted_and_stay_with_the_sample():
    samples = [sample("?", "a" * n) for n in (1, 5, 9)]
    result = filter_samples(
        samples, FilterOptions(min_tokens=3, max_tokens=6), lambda record: len(answer(record))
    )
    assert result.dropped == {"too few tokens": 1, "too many tokens": 1}
    assert [one.tokens for one in result.kept] == [5]


def answer(record: Record) -> str:
    return record.messages[-1].content or ""


def test_a_sample_that_the_chat_template_refuses_is_dropped():
    def refuse(record: Record) -> int:
        raise InvalidRequestError("No system role.")

    result = filter_samples([sample("?", "a")], FilterOptions(), refuse)
    assert (result.kept, result.dropped) == ([], {"refused by the chat template": 1})


def test_limits_of_tokens_need_a_tokenizer():
    with pytest.raises(ConfigError, match="need a tokenizer"):
        filter_samples([], FilterOptions(max_tokens=10))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"languages": ["ru", "klingon"]}, "unknown: klingon"),
        ({"include": ["("]}, "no regular expression"),
        ({"exclude": ["(a{1000}){1000}"]}, "counted repetitions"),
        ({"min_tokens": 10, "max_tokens": 9}, "min_tokens is above max_tokens"),
        ({"min_length": 3}, "Extra inputs"),
    ],
)
def test_invalid_options(options, reason):
    with pytest.raises(ValidationError, match=reason):
        FilterOptions(**options)


def test_a_token_counter_counts_what_transformers_counts():
    from transformers import AutoTokenizer

    from adapterhub.base.locating import demo_base_folder

    tokenizer = AutoTokenizer.from_pretrained(demo_base_folder())
    counter = TokenCounter.of_base("adapterhub-demo")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4"},
    ]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    assert counter(Record.model_validate({"messages": messages, "line": 1})) == len(ids)


def test_a_token_counter_of_what_is_no_base(tmp_path):
    with pytest.raises(ConfigError, match="no base model"):
        TokenCounter.of_base(str(tmp_path / "none"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="tokenizer"):
        TokenCounter.of_base(str(tmp_path))


def test_samples_with_tools_count_their_tools():
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    plain = sample("?", "a")
    with_tools = Sample(plain.record.model_copy(update={"tools": [tool]}), "a")
    counter = TokenCounter.of_base("adapterhub-demo")
    assert counter(with_tools.record) > counter(plain.record)
