"""Reading JSON Lines of conversations: what is read, and errors that name lines and never quote them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.dataset import read_records
from adapterhub.errors import DatasetError

TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "two, привет"},
]


@pytest.fixture
def dataset(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: object) -> Path:
        path = tmp_path / "data.jsonl"
        path.write_text(
            "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8"
        )
        return path

    return write


GOOD = {"messages": TURNS[1:3]}


def test_read_records(dataset: Callable[..., Path]):
    records = read_records(dataset(GOOD, "", {**GOOD, "id": 5, "tools": [{"name": "add"}]}))
    assert [(record.line, record.tools) for record in records] == [(1, None), (3, [{"name": "add"}])]
    assert records[0].messages[1].content == "two, привет"
    assert len(read_records(dataset(GOOD, GOOD, "broken"), max_records=2)) == 2


def test_a_byte_order_mark_is_no_part_of_the_first_record(dataset: Callable[..., Path]):
    path = dataset(GOOD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_records(path)[0].messages[1].content == "two, привет"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{secret", "not JSON"),
        ('["secret"]', "not an object"),
        ({"text": "secret"}, "messages: Field required"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "user", "content": "secret"}]}, "no assistant message"),
        ({"messages": [{"role": "secret", "content": "secret"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}, *TURNS]}, "messages.0: Value error, content is missing"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "needs content or tool_calls"),
        ({"messages": [{"role": "assistant", "content": ["secret"]}]}, "messages.0.content"),
        ({"messages": "secret"}, "messages: Input should be a valid list"),
        ("[" * 100_000, "not JSON|recursion"),
        ('{"messages": [{"role": "assistant", "content": "secret \\ud800"}]}', "half of a surrogate pair"),
        ({**GOOD, "tools": [{"name": "\udfff"}]}, "half of a surrogate pair"),
    ],
)
def test_errors_name_bad_lines_by_number_and_never_by_text(
    dataset: Callable[..., Path], line: object, reason: str
):
    with pytest.raises(DatasetError, match=f"line 2: .*({reason})") as caught:
        read_records(dataset(GOOD, line))
    assert "secret" not in str(caught.value)


def test_a_whole_surrogate_pair_is_a_character(dataset: Callable[..., Path]):
    (record,) = read_records(dataset(r'{"messages": [{"role": "assistant", "content": "\ud83d\ude00"}]}'))
    assert record.messages[0].content == "\N{GRINNING FACE}"


def test_one_error_names_several_bad_lines(dataset: Callable[..., Path]):
    with pytest.raises(DatasetError, match=r"line 1: .*; line 3: .*"):
        read_records(dataset("x", GOOD, "y"))


def test_files_that_are_no_dataset(tmp_path: Path, dataset: Callable[..., Path]):
    with pytest.raises(DatasetError, match="holds no records"):
        read_records(dataset("", ""))
    with pytest.raises(DatasetError, match="No such file"):
        read_records(tmp_path / "none.jsonl")
    (tmp_path / "data.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="not UTF-8"):
        read_records(tmp_path / "data.jsonl")
