"""Reading rows: every format of file, slices, datasets of `datasets`, and damaged files."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub.dataset import SourceOptions
from adapterhub.dataset.sources import open_source
from adapterhub.errors import DatasetError

ROWS = [{"a": str(number), "b": "привет"} for number in range(10)]


def rows(path: object, **options: Any) -> list[dict[str, Any]]:
    return list(open_source(SourceOptions(path=str(path), **options)).rows)


def write(path: Path, content: list[dict[str, Any]] = ROWS) -> Path:
    """Writes rows in the format of the path's suffix."""
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(content), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(content[0]), delimiter="\t" if path.suffix == ".tsv" else ";")
            writer.writeheader()
            writer.writerows(content)
    elif path.suffix == ".json":
        path.write_text(json.dumps(content), "utf-8")
    else:
        path.write_text("\n".join(map(json.dumps, content)) + "\n\n", "utf-8")
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str):
    assert rows(write(tmp_path / f"data.{suffix}")) == ROWS


def test_json_lines_under_the_name_of_json(tmp_path: Path):
    path = tmp_path / "data.json"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    assert rows(path) == ROWS


def test_rows_of_json_keep_their_own_keys_and_nulls(tmp_path: Path):
    content = [{"a": {"x": None}}, {"b": [{"y": 1}, {"z": "text"}]}]
    assert rows(write(tmp_path / "data.jsonl", content)) == content


def test_csv_keeps_quotes_and_line_ends(tmp_path: Path):
    content = [{"a": 'He said "no";\r\nshe left.', "b": ""}]
    assert rows(write(tmp_path / "data.csv", content)) == content


def test_parquet_has_no_nulls_of_its_own(tmp_path: Path):
    content = [{"a": {"x": 1}}, {"a": {"y": 2}}]
    assert rows(write(tmp_path / "data.parquet", content)) == content


@pytest.mark.parametrize(
    ("sample_by", "wanted"),
    [("line", ["a", "b", "", "c"]), ("paragraph", ["a\nb", "c"]), ("document", ["a\nb\n\nc\n"])],
)
def test_text(tmp_path: Path, sample_by: str, wanted: list[str]):
    (tmp_path / "data.txt").write_text("a\nb\n\nc\n")
    assert [row["text"] for row in rows(tmp_path / "data.txt", sample_by=sample_by)] == wanted


def test_a_pattern_names_several_files(tmp_path: Path):
    for name in ("b", "a"):
        write(tmp_path / f"{name}.jsonl", [{"a": name}])
    assert rows(tmp_path / "*.jsonl") == [{"a": "a"}, {"a": "b"}]


SLICES = {
    "train": range(10),
    "train[:3]": range(3),
    "train[2:4]": range(2, 4),
    "train[8:]": range(8, 10),
    "train[-2:]": range(8, 10),
    "train[:50%]": range(5),
    "train[10%:20%]": range(1, 2),
    "train[-10%:]": range(9, 10),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a dataset's repository on the Hub has it: two subsets, one with two splits."""
    folder = tmp_path_factory.mktemp("dataset")
    for name in ("ru/train", "ru/test", "en/train"):
        (folder / name).parent.mkdir(exist_ok=True)
        write(folder / f"{name}.jsonl", [{**row, "where": name} for row in ROWS])
    splits = "[{split: train, path: ru/train.jsonl}, {split: test, path: ru/test.jsonl}]"
    ru, en = f"{{config_name: ru, data_files: {splits}}}", "{config_name: en, data_files: en/train.jsonl}"
    card = f"---\nlicense: mit\nconfigs:\n- {ru}\n- {en}\n---\n"
    (folder / "README.md").write_text(card)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize(("split", "wanted"), SLICES.items(), ids=SLICES)
@pytest.mark.spec("2-F13")
def test_slices_are_those_of_datasets(tmp_path: Path, dataset: Path, split: str, wanted: range):
    assert rows(write(tmp_path / "data.jsonl"), split=split) == [ROWS[number] for number in wanted]
    for streaming in (False, True):
        found = rows(dataset, subset="ru", split=split, streaming=streaming)
        assert found == [{**ROWS[number], "where": "ru/train"} for number in wanted]


def test_subset_and_split_of_a_dataset(dataset: Path):
    assert {row["where"] for row in rows(dataset, subset="ru", split="test")} == {"ru/test"}
    assert {row["where"] for row in rows(dataset, subset="en")} == {"en/train"}


def test_a_split_or_subset_that_is_not_there(dataset: Path):
    with pytest.raises(DatasetError, match="could not be loaded: Unknown split"):
        rows(dataset, subset="ru", split="validation")
    with pytest.raises(DatasetError, match=r"could not be loaded: .*BuilderConfig 'de' not found"):
        rows(dataset, subset="de")


def test_the_licence_is_that_of_the_dataset_card(dataset: Path):
    opened = open_source(SourceOptions(path=str(dataset), subset="en"))
    assert (opened.license, opened.revision) == ("mit", None)


def test_a_licence_that_is_no_text(tmp_path: Path):
    write(tmp_path / "train.jsonl")
    (tmp_path / "README.md").write_text("---\nlicense: {name: mit}\n---\n")
    assert open_source(SourceOptions(path=str(tmp_path))).license is None


def test_the_commit_of_a_dataset_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    snapshot = tmp_path / ("0" * 40)
    snapshot.mkdir()
    (snapshot / "README.md").write_text("---\nlicense: [mit, apache-2.0]\n---\n")
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [{"text": "one"}])
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(snapshot / "README.md"))
    opened = open_source(SourceOptions(path="user/data", revision="main"))
    assert (opened.license, opened.revision) == ("mit, apache-2.0", snapshot.name)
    assert list(opened.rows) == [{"text": "one"}]


def test_an_error_at_a_row_of_a_dataset_is_not_quoted(monkeypatch: pytest.MonkeyPatch):
    def load_dataset(*_: object, **__: object) -> Iterator[dict[str, Any]]:
        yield {"text": "one"}
        raise ValueError("secret")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DatasetError, match="could not be loaded: ValueError") as caught:
        rows("user/data")
    assert "secret" not in str(caught.value)


def test_code_of_a_dataset_is_trusted_only_if_asked(dataset: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[dict[str, Any]] = []

    def load_dataset(*_: object, **options: Any) -> Any:
        asked.append(options)
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    for trust in (False, True):
        with pytest.raises(DatasetError, match="the Hub cannot be reached"):
            rows("user/data", trust_remote_code=trust)
    assert [options.get("trust_remote_code") for options in asked] == [None, True]


DAMAGED = {
    "jsonl": ("data.jsonl", b'{"a": 1}\n{"secret', "row 2 is not JSON"),
    "list": ("data.jsonl", b'["secret"]', "row 1 is not an object"),
    "json": ("data.json", b'[{"a": "secret"', "not JSON"),
    "deep": ("data.jsonl", b"[" * 100_000, "row 1 is (nested too deep|not JSON)"),
    "latin-1": ("data.csv", "a,b\n1,säcret".encode("latin-1"), "not UTF-8"),
    "ragged": ("data.csv", b"a,b\n1,2\n3,4,secret\n", "row 2 has more fields than the header"),
    "quote": ("data.csv", b'a,b\n1,2\n3,"secret\n', "row 2: unexpected end of data"),
    "parquet": ("data.parquet", b"secret", "not a Parquet file"),
}


@pytest.mark.parametrize(("name", "content", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_named_and_not_quoted(tmp_path: Path, name: str, content: bytes, reason: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=f"{name}' could not be read: .*{reason}") as caught:
        rows(tmp_path / name)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("jsonl", "Give one object a line"),
        ("json", "or one list of objects"),
        ("ragged", "Quote fields"),
        ("latin-1", "Save it as UTF-8"),
    ],
)
def test_the_hint_for_a_damaged_file_can_be_followed(tmp_path: Path, kind: str, hint: str):
    name, content, _ = DAMAGED[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        rows(tmp_path / name)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(("path", "package"), [("data.parquet", "pyarrow"), ("user/data", "datasets")])
def test_a_package_that_is_missing(tmp_path: Path, path: str, package: str, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=f"the package '{package}'") as caught:
        rows(path)
    assert caught.value.hint == 'pip install "adapterhub[train]"'


def test_a_file_of_another_format(tmp_path: Path):
    (tmp_path / "data.jsonl.gz").write_bytes(b"")
    source = SourceOptions(path="data.jsonl.gz").in_folder(tmp_path)
    with pytest.raises(DatasetError, match=r"'data\.jsonl\.gz' are not read") as caught:
        open_source(source)
    assert ".jsonl, .ndjson, .json, .csv" in caught.value.hint


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(DatasetError, match="There is no file"):
        rows(tmp_path / "none.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DatasetError, match="could not be read"):
        rows(tmp_path / "folder.jsonl")
