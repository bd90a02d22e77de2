"""Rows of lists, files and Arrow tables: which files are read, which values arrive, and what errors name."""

from __future__ import annotations

import csv
import datetime as dt
import errno
import gzip
import json
import os
import sys
import traceback
import tracemalloc
import uuid
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, ObjectStoragePath
from object_store import ObjectStore, attach

from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.table.reader import open_rows

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

ROWS = [{"sku": "a1", "title": "a kettle"}, {"sku": "b2", "title": 'a "desk",\nold'}]


@pytest.fixture
def store() -> ObjectStore:
    """The files of ``memory://shop@…``."""
    return attach(conn_id="shop")


class ArrowStream:
    """What data frames have in common: columns when iterated over, and Arrow's stream."""

    def __init__(self, *batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[str]:
        return iter(self.batches[0].schema.names)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        reader = pa.RecordBatchReader.from_batches(self.batches[0].schema, self.batches)
        return reader.__arrow_c_stream__(requested_schema)


def json_lines(rows: Iterable[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet_bytes(table: Any, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, **options)
    content: bytes = sink.getvalue().to_pybytes()
    return content


CSV = b'sku,title\r\na1,a kettle\r\nb2,"a ""desk"",\nold"\r\n'
#: The same rows in each format.
CONTENTS = {
    ".jsonl": json_lines(ROWS),
    ".ndjson": json_lines(ROWS),
    ".csv": CSV,
    ".jsonl.gz": gzip.compress(json_lines(ROWS)),
    ".csv.gz": gzip.compress(CSV),
    ".parquet": parquet_bytes(pa.Table.from_pylist(ROWS)),
    ".pq": parquet_bytes(pa.Table.from_pylist(ROWS)),
    ".CSV": CSV,
}


def files_of(rows: Iterable[Any]) -> list[str]:
    """Return the files that rows are from, in their order."""
    return list(dict.fromkeys(rows.place.partition(" of ")[2] for _ in rows))  # type: ignore[attr-defined]


def failure(source: Any, **options: Any) -> RunGenInputError:
    """Return the error of reading all rows."""
    with pytest.raises(RunGenInputError) as caught:
        list(open_rows(source, **options))
    return caught.value


# --- files ---


@pytest.mark.parametrize("suffix", CONTENTS)
def test_a_file_is_read_by_its_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(CONTENTS[suffix])
    rows = open_rows(path)
    assert [list(rows), list(rows)] == [ROWS, ROWS]


def test_a_file_of_another_suffix_is_read_by_a_function(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes(CSV)
    error = failure(path)
    assert error.message == f"Could not read table: no file of rows in {path}"
    assert "a function as table reads others" in error.hint

    def read() -> Iterator[Any]:
        with path.open(newline="") as file:
            yield from csv.DictReader(file)

    assert list(open_rows(read)) == ROWS


@pytest.mark.parametrize("as_source", [str, Path, "file://{}".format, ObjectStoragePath])
def test_a_path_of_any_kind_is_read(tmp_path: Path, as_source: Callable[[Any], Any]) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "rows.csv").write_bytes(CSV)
    (tmp_path / "t" / "latest.csv").symlink_to("../rows.csv")
    prefix = "file://" if str(as_source("/")).startswith("file") else ""
    for source in (f"{tmp_path}/t/latest.csv", f"{tmp_path}/t", f"{tmp_path}/*/latest.csv"):
        rows = open_rows(as_source(source))
        assert list(rows) == ROWS
        assert rows.uri == str(as_source(source))
        assert rows.place == f"line 3 of {prefix}{tmp_path}/t/latest.csv"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("source", ["", "/", "/dt=*", "/dt=*/*{suffix}"])
def test_the_folders_of_hive_keep_their_columns(tmp_path: Path, suffix: str, source: str) -> None:
    root = tmp_path / "a=b" / "products"
    for folder in ("dt=2026-01-31/country=de%20at", "dt=2026-02-01/country=__HIVE_DEFAULT_PARTITION__"):
        (root / folder).mkdir(parents=True)
        (root / folder / f"0{suffix}").write_bytes(CONTENTS[suffix])
    uri = f"{root}{source.format(suffix=suffix)}".replace(f"*/*{suffix}", f"*/*/*{suffix}")
    rows = open_rows(uri)
    added = [("2026-01-31", "de at")] * 2 + [("2026-02-01", None)] * 2
    expected = [
        {**row, "dt": day, "country": country} for row, (day, country) in zip(ROWS * 2, added, strict=True)
    ]
    assert list(rows) == expected
    types = rows.column_types()
    assert types is None or {name: types[name] for name in ("dt", "country")} == {
        "dt": "text",
        "country": "text",
    }


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_column_of_the_file_wins_over_its_folder(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "sku=other" / "title"
    folder.mkdir(parents=True)
    (folder / f"0{suffix}").write_bytes(CONTENTS[suffix])
    assert list(open_rows(tmp_path)) == ROWS
    assert list(open_rows(folder)) == ROWS


def put(store: ObjectStore, *names: str) -> None:
    for name in names:
        suffix = Path(name).suffix
        store.pipe_file(f"/bucket/{name}", CONTENTS.get(suffix, b"not rows"))


FOLDER = (
    "t/b.csv",
    "t/a/2.jsonl",
    "t/a/1.csv",
    "t/_SUCCESS",
    "t/_temporary/0.csv",
    "t/.hidden.csv",
    "t3.csv/part-0.snappy.parquet",
    "t3.csv/_SUCCESS",
    "t/notes.txt",
    "t2/c.csv",
)


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("t", ["t/a/1.csv", "t/a/2.jsonl", "t/b.csv"]),
        ("t/", ["t/a/1.csv", "t/a/2.jsonl", "t/b.csv"]),
        ("t/*.csv", ["t/b.csv"]),
        ("t/**/*.csv", ["t/a/1.csv", "t/b.csv"]),
        ("t/a/?.csv", ["t/a/1.csv"]),
        ("t/a/[12].*", ["t/a/1.csv", "t/a/2.jsonl"]),
        ("t[!3]*", ["t2/c.csv"]),
        ("t3.csv", ["t3.csv/part-0.snappy.parquet"]),
        ("t/_temporary", ["t/_temporary/0.csv"]),
        ("t/_temporary/*", ["t/_temporary/0.csv"]),
    ],
)
def test_folders_and_patterns_yield_files_in_the_order_of_their_paths(
    store: ObjectStore, source: str, files: list[str]
) -> None:
    put(store, *FOLDER)
    rows = open_rows(f"memory://shop@bucket/{source}")
    uris = [f"memory://shop@bucket/{name}" for name in files]
    assert files_of(rows) == uris
    assert list(rows) == ROWS * len(files)
    # each of them can be read with the same connection
    assert [list(open_rows(uri)) for uri in uris] == [ROWS] * len(files)


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    for name in ("[1]?.csv", "1x.csv"):
        (tmp_path / name).write_bytes(CSV)
    assert files_of(open_rows(tmp_path / "[1]?.csv")) == [f"{tmp_path}/[1]?.csv"]


@pytest.mark.parametrize("source", ["t", "t/", "t/*.parquet", "none/*"])
def test_no_file_is_an_error_that_names_what_is_read(store: ObjectStore, source: str) -> None:
    put(store, "t/notes.txt", "t/_x.csv")
    error = failure(f"memory://shop@bucket/{source}")
    assert f"Could not read table: no file of rows in memory://shop@bucket/{source}. " in str(error)
    assert ".parquet" in error.hint
    assert not error.retryable


def test_a_file_written_after_a_listing_is_found(store: ObjectStore) -> None:
    put(store, "t/a.csv")
    assert len(files_of(open_rows("memory://shop@bucket/t"))) == 1
    put(store, "t/b.csv")
    assert len(files_of(open_rows("memory://shop@bucket/t"))) == 2


# --- errors of storage ---


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (OSError(errno.EIO, "the network is down"), True),
        (TimeoutError("too slow"), True),
        (RuntimeError("an error of a storage library"), True),
        (PermissionError("Forbidden"), True),
        (FileNotFoundError("gone"), False),
        (ValueError("bad settings"), False),
        (ImportError("no s3fs"), False),
    ],
)
def test_an_error_of_the_storage_is_retried_if_that_may_help(
    store: ObjectStore, error: Exception, retryable: bool
) -> None:
    put(store, "a.csv")
    store.refuse("open", error)
    caught = failure("memory://shop@bucket/a.csv")
    assert caught.message.startswith("Could not read table from memory://shop@bucket/a.csv: ")
    assert str(error.args[-1]) in caught.message
    assert caught.retryable is retryable


def test_a_kill_is_not_an_error_of_the_storage(store: ObjectStore) -> None:
    put(store, "a.csv")
    store.refuse("open", AirflowException("Task received SIGTERM signal"))
    with pytest.raises(AirflowException, match="SIGTERM"):
        list(open_rows("memory://shop@bucket/a.csv"))


@pytest.mark.parametrize("content", [b"", b"a,b\n1\n", b"\xff", b"\0"])
def test_no_error_shows_a_secret_of_the_uri(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a?X-Amz-Signature=S3CRET&name=.csv"
    if content:
        path.write_bytes(content)
    error = failure(str(path))
    assert "a?X-Amz-Signature=***" in str(error)
    assert "S3CRET" not in "".join(traceback.format_exception(error))


# --- rows that cannot be read ---


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "not JSON": ("a.jsonl", b'{"a": 1}\n\n{"a": \n', "line 3 of {} is not JSON"),
    "JSON of another encoding": ("a.jsonl", b'{"a": 1}\n{"a": "\xe4"}\n', "line 2 of {} is not UTF-8"),
    "nested too deeply": ("a.jsonl", b"[" * 100_000, "line 1 of {} is not JSON"),
    "too few values": ("a.csv", b"a,b\n1,2\n3\n", "line 3 of {} has 1 values, but the header has 2"),
    "too many values": ("a.csv", b'a,b\n"1\n",2\n3,4,5\n', "line 4 of {} has 3 values, but the header has 2"),
    "a column twice": ("a.csv", b"a,b,a\n1,2,3\n", "line 1 of {} has two columns named 'a'"),
    "a column without a name": ("a.csv", b"a,,b\n1,2,3\n", "line 1 of {} has no name for column 2"),
    "CSV of another encoding": ("a.csv", b"a\nx\n\xe4\n", "line 3 of {} is not UTF-8"),
    "UTF-16": ("a.csv", "a\n1\n".encode("utf-16"), "line 1 of {} is not UTF-8"),
    "UTF-16 without a mark": ("a.csv", "a\n1\n".encode("utf-16-le"), "line 1 of {} has a NUL character"),
    "an open quotation": ("a.csv", b'a,b\n1,2\n3,"x\ny\n', "line 3 of {} is not CSV: unexpected end of data"),
    "text after a quotation": ("a.csv", b'a\n"x"y\n', "line 2 of {} is not CSV"),
    "two Parquet columns": (
        "a.parquet",
        parquet_bytes(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])),
        "{} has two columns named 'a'",
    ),
    "Parquet bytes": (
        "a.parquet",
        parquet_bytes(pa.table({"n": range(3000), "raw": [None] * 2999 + [b"x"]})),
        "row 3000 of {} has bytes in column 'raw'",
    ),
    "infinity": (
        "a.parquet",
        parquet_bytes(pa.table({"price": [1.0, float("nan"), float("-inf")]})),
        "row 3 of {} has -inf in column 'price'",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_row_that_cannot_be_read_is_named_with_its_file(store: ObjectStore, kind: str) -> None:
    name, content, words = BROKEN[kind]
    put(store, f"t/0{Path(name).suffix}")
    store.pipe_file(f"/bucket/t/{name}", content)
    error = failure("memory://shop@bucket/t")
    assert error.message.startswith(f"Could not read table: {words.format(f'memory://shop@bucket/t/{name}')}")
    assert not error.retryable


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b"PAR1 is no Parquet"),
        ("a.parquet", CONTENTS[".parquet"][:-20]),
        ("a.parquet", b""),
        ("a.jsonl.gz", b"not compressed"),
        ("a.csv.gz", gzip.compress(os.urandom(9000).hex().encode())[:-100]),
    ],
)
def test_a_file_that_is_broken_is_named_and_not_retried(
    store: ObjectStore, name: str, content: bytes
) -> None:
    store.pipe_file(f"/bucket/{name}", content)
    error = failure(f"memory://shop@bucket/{name}")
    assert error.message.startswith(f"Could not read table from memory://shop@bucket/{name}")
    assert not error.retryable


def test_a_parquet_file_that_is_broken_in_the_middle_names_the_last_row(store: ObjectStore) -> None:
    content = bytearray(parquet_bytes(pa.table({"a": range(5000)}), row_group_size=2500, compression="zstd"))
    with parquet.ParquetFile(pa.BufferReader(bytes(content))) as file:
        second = file.metadata.row_group(1).column(0)
        start = second.dictionary_page_offset or second.data_page_offset
    content[start : start + second.total_compressed_size] = b"\xff" * second.total_compressed_size
    store.pipe_file("/bucket/a.parquet", bytes(content))
    assert "memory://shop@bucket/a.parquet after row 2" in failure("memory://shop@bucket/a.parquet").message


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.jsonl", "a\n", "line 1"),
        ("a.csv", "a\n", "line 2"),
        ("b.csv", 'a\n"' + f"{'x' * 999}\n" * 17_000, "line 2"),
    ],
)
def test_a_row_that_never_ends_does_not_fill_the_memory(
    tmp_path: Path, name: str, content: str, line: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    if len(content) < 9:
        os.truncate(path, 1 << 36)  # a sparse file of 64 GiB
    error = failure(path)
    assert line in error.message
    assert name != "b.csv" or "more than 16 MiB" in error.message


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".csv.gz", ".parquet"])
def test_a_pipe_or_a_device_is_not_read(tmp_path: Path, suffix: str) -> None:
    path, device = tmp_path / f"pipe{suffix}", tmp_path / f"device{suffix}"
    os.mkfifo(path)
    device.symlink_to("/dev/zero")
    for source in (path, tmp_path, device):
        error = failure(source)
        assert "is not a regular file" in error.message
        assert not error.retryable


def test_a_parquet_row_of_more_than_the_limit_is_named_with_its_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    texts = ["a"] * 30 + ["x" * (17 << 20)] + ["b"]
    path.write_bytes(parquet_bytes(pa.table({"n": range(32), "text": texts}), use_dictionary=False))
    error = failure(path)
    assert error.message == (
        f"Could not read table: row 31 of {path} has more than 16 MiB, 17 of them in column 'text'"
    )
    assert "Leave out the large values" in error.hint


@pytest.mark.parametrize(
    "columns",
    [{"text": ["x" * (40 << 20)]}, {f"c{number}": ["x" * (2 << 20)] for number in range(20)}],
    ids=["one", "wide"],
)
def test_a_row_that_is_too_large_by_the_footer_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: dict[str, list[str]]
) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet_bytes(pa.table(columns), compression="zstd"))
    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("it is decoded"))
    error = failure(path)
    assert f"row 1 of {path} or one after it has more than 16 MiB: row group 1 has 40 MiB in 1 rows" in str(
        error
    )
    assert "fewer rows in each row group" in error.hint


@pytest.mark.parametrize("kind", ["text", "list", "fixed list", "struct"])
def test_views_of_text_count_for_their_own_row_only(kind: str) -> None:
    """Data frames have texts as views, a slice of which Arrow counts as the whole column."""
    if not hasattr(pa, "string_view"):
        pytest.skip("this pyarrow has no views")
    view = pa.string_view()
    types = {"list": pa.list_(view), "fixed list": pa.list_(view, 1), "struct": pa.struct([("a", view)])}

    def values(texts: list[str]) -> list[Any]:
        return [{"a": text} if kind == "struct" else text if kind == "text" else [text] for text in texts]

    given, large = values(["x" * (1 << 20)] * 30), values(["x", "x" * (22 << 20)])
    table = pa.table({"text": pa.array(given, types.get(kind, view))})
    assert [row["text"] for row in open_rows(table)] == given
    table = pa.table({"text": pa.array(large, types.get(kind, view))})
    assert "row 2 of a Table has more than 16 MiB, 22 of them in column 'text'" in failure(table).message


def test_lists_of_a_category_count_for_their_own_row_only() -> None:
    """Arrow counts the texts of a dictionary once, however often a row has them."""

    def table(*counts: int) -> Any:
        texts = pa.DictionaryArray.from_arrays(pa.array([0] * sum(counts), pa.int32()), ["x" * (1 << 20)])
        offsets = pa.array([0, *accumulate(counts)], pa.int32())
        return pa.table({"texts": pa.ListArray.from_arrays(offsets, texts)})

    assert [len(row["texts"]) for row in open_rows(table(*[10] * 5))] == [10] * 5
    assert (
        "row 2 of a Table has more than 16 MiB, 22 of them in column 'texts'" in failure(table(1, 22)).message
    )


def test_rows_that_need_smaller_batches_are_read_once_each(tmp_path: Path) -> None:
    """Small rows come first, so that many rows are read at a time when large ones appear."""
    path = tmp_path / "rows.parquet"
    long = ["x" * 4_000_000] * 100
    with parquet.ParquetWriter(path, pa.schema({"text": pa.string()}), compression="zstd") as writer:
        for texts in (["s"] * 100_000, *(long[:10] for _ in range(10)), ["t"] * 3000):
            writer.write_batch(pa.record_batch({"text": texts}))
    lengths = [len(row["text"]) for row in open_rows(path)]
    assert lengths == [1] * 100_000 + [4_000_000] * 100 + [1] * 3000


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b'{"a": 1}\r\n{"a": 2}\r\n', [{"a": 1}, {"a": 2}]),
        (b'\xef\xbb\xbf{"a": 1}\n{"a": 2}', [{"a": 1}, {"a": 2}]),
        (b'\n\n \t\n{"a": 1}\n\n', [{"a": 1}]),
        ('{"a": "\u2028"}\n'.encode(), [{"a": "\u2028"}]),
        (b'{"a": "%s"}\n{"a": 2}' % (b"x" * 300_000), [{"a": "x" * 300_000}, {"a": 2}]),
        *((b"", []), (b"\xef\xbb\xbf", [])),
    ],
)
def test_every_usual_json_lines_file_is_read(tmp_path: Path, content: bytes, rows: list[Any]) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    assert list(open_rows(tmp_path / "rows.jsonl")) == rows


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        *((b"", []), (b"a,b\n", [])),
        (b"\xef\xbb\xbfa,b\n1,2", [{"a": "1", "b": "2"}]),
        (b"\n\na\n\n1\n\n2\n\n", [{"a": "1"}, {"a": "2"}]),
        ("a\n\u2028 \x85\n".encode(), [{"a": "\u2028 \x85"}]),
        (b'a,b\n"",NULL\n', [{"a": "", "b": "NULL"}]),
        (f'a\n"{"x" * 999}\n{"y" * 1_000_000}"\n'.encode(), [{"a": f"{'x' * 999}\n{'y' * 1_000_000}"}]),
    ],
)
def test_every_usual_csv_file_is_read(tmp_path: Path, content: bytes, rows: list[dict[str, str]]) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    assert list(open_rows(tmp_path / "rows.csv")) == rows


# --- values ---

DAY, MOMENT = dt.date(2024, 2, 29), dt.datetime(2024, 2, 29, 1, 2, 3, 456789)
NANOSECONDS = 1_709_168_523_456_789_123
UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")
VALUES: dict[str, tuple[Any, Any]] = {
    "integer": (pa.array([2**63 - 1, None]), [2**63 - 1, None]),
    "unsigned": (pa.array([2**64 - 1], pa.uint64()), [2**64 - 1]),
    "number": (pa.array([0.1, float("nan"), None]), [0.1, None, None]),
    "boolean": (pa.array([True, None]), [True, None]),
    "text": (pa.array(["ä", None, ""]), ["ä", None, ""]),
    "category": (pa.array(["a", "b", "a", None]).dictionary_encode(), ["a", "b", "a", None]),
    "nothing": (pa.nulls(2), [None, None]),
    "date": (pa.array([DAY, None]), ["2024-02-29", None]),
    "time": (pa.array([3_723_000_001_999], pa.time64("ns")), ["01:02:03.000001"]),
    "moment": (pa.array([MOMENT]), ["2024-02-29T01:02:03.456789"]),
    "moment in UTC": (pa.array([MOMENT], pa.timestamp("us", "UTC")), ["2024-02-29T01:02:03.456789+00:00"]),
    "nanoseconds": (pa.array([NANOSECONDS], pa.timestamp("ns")), ["2024-02-29T01:02:03.456789"]),
    "duration": (pa.array([-90_500], pa.duration("ms")), ["-PT90.5S"]),
    "decimal": (pa.array([Decimal("1.50"), Decimal("0.00")]), ["1.50", "0.00"]),
    **({"UUID": (pa.array([UUID.bytes, None], pa.uuid()), [str(UUID), None])} if hasattr(pa, "uuid") else {}),
    "list": (pa.array([[1.5, float("nan")], None, []]), [[1.5, None], None, []]),
    "list of texts": (pa.array([["a", None]]), [["a", None]]),
    "struct": (
        pa.array([{"d": DAY, "l": [{"m": Decimal(7)}], "x": "y"}, {"d": None, "l": None, "x": None}]),
        [{"d": "2024-02-29", "l": [{"m": "7"}], "x": "y"}, {"d": None, "l": None, "x": None}],
    ),
    "struct of plain values": (pa.array([{"a": 1}]), [{"a": 1}]),
    "map": (pa.array([[("k", 1), ("l", None)]], pa.map_(pa.string(), pa.int32())), [{"k": 1, "l": None}]),
    "map of dates": (pa.array([[("k", DAY)]], pa.map_(pa.string(), pa.date32())), [{"k": "2024-02-29"}]),
    "nested nanoseconds": (
        pa.array([[[("k", [NANOSECONDS])]]], pa.list_(pa.map_(pa.string(), pa.list_(pa.timestamp("ns"))))),
        [[{"k": ["2024-02-29T01:02:03.456789"]}]],
    ),
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("source", ["stream", "file"])
def test_values_arrive_as_json_has_them(tmp_path: Path, kind: str, source: str) -> None:
    column, expected = VALUES[kind]
    table: Any = pa.table({"value": column})
    if source == "file":
        if kind == "UUID":
            pytest.skip("a file has the type for old versions of pyarrow, too")
        table = tmp_path / "rows.parquet"
        table.write_bytes(parquet_bytes(pa.table({"value": column}), store_schema=True))
    values = [row["value"] for row in open_rows(table)]
    assert values == expected
    assert [type(value) for value in values] == [type(value) for value in expected]
    assert json.loads(json.dumps(values, allow_nan=False)) == expected


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([b"x"]), "bytes"),
        (pa.array([[b"x"]]), "bytes"),
        (pa.array([b"xx"], pa.binary(2)), "bytes"),
        (pa.array([[(1, 2)]], pa.map_(pa.int32(), pa.int32())), "a map whose keys are not text"),
        (pa.array([{"a": float("inf")}]), "inf"),
        (pa.StructArray.from_arrays([pa.array([1])] * 2, ["a", "a"]), "two fields of one name"),
        (pa.array([(1, 2, 3)], pa.month_day_nano_interval()), "a month_day_nano_interval"),
        (pa.array([10**18], pa.timestamp("us")), "an unreadable value"),
    ],
)
def test_values_that_json_lacks_are_refused_with_row_and_column(column: Any, words: str) -> None:
    error = failure(pa.table({"value": pa.concat_arrays([pa.nulls(2, column.type), column])}))
    assert error.message.startswith(f"Could not read table: row 3 of a Table has {words} in column 'value'")


TYPES = pa.schema(
    [
        ("count", pa.uint8()),
        ("price", pa.float32()),
        ("is_new", pa.bool_()),
        ("title", pa.string()),
        ("day", pa.date32()),
        ("cost", pa.decimal128(5, 2)),
        ("tags", pa.list_(pa.int64())),
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("level", pa.dictionary(pa.int8(), pa.int64())),
        ("__index_level_0__", pa.int64()),
    ]
)
NUMBERS = {"count": "integer", "price": "number", "is_new": "boolean", "level": "integer"}
WORDS = dict.fromkeys(TYPES.names[:-1], "text") | NUMBERS


@pytest.mark.parametrize(
    ("name", "content", "types"),
    [
        ("rows.parquet", parquet_bytes(TYPES.empty_table()), WORDS),
        ("rows.csv", b"sku,title\n", {"sku": "text", "title": "text"}),
        ("rows.csv", b"", {}),
        ("rows.jsonl", b"", None),
        ("", b"", WORDS),
    ],
)
def test_column_types_are_known_without_a_row(tmp_path: Path, name: str, content: bytes, types: Any) -> None:
    (tmp_path / (name or "-")).write_bytes(content)
    rows = open_rows(tmp_path / name if name else TYPES.empty_table())
    assert rows.column_types() == types
    assert list(rows) == []


def test_neither_nulls_nor_the_index_of_pandas_are_refused() -> None:
    raw = pa.nulls(1, pa.binary())
    table = pa.table({"a": [1], "raw": raw, "__index_level_0__": pa.array([b"x"])})
    assert list(open_rows(table)) == [{"a": 1, "raw": None}]


# --- what is no file ---


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (lambda: ArrowStream(*pa.Table.from_pylist(ROWS).to_batches(max_chunksize=1)), " of a ArrowStream"),
        (lambda: pa.Table.from_pylist(ROWS), " of a Table"),
        (lambda: iter(ROWS), ""),
        (lambda: ROWS, ""),
    ],
)
def test_other_sources_name_their_rows(source: Callable[[], Any], kind: str) -> None:
    rows = open_rows(source())
    assert [(row, rows.place) for row in rows] == [(ROWS[0], f"row 1{kind}"), (ROWS[1], f"row 2{kind}")]
    assert rows.uri is None


def test_files_name_their_rows_and_those_of_text_need_no_pyarrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in (".csv", ".jsonl", ".parquet"):
        (tmp_path / f"rows{suffix}").write_bytes(CONTENTS[suffix])
    lines = [("line 2", ".csv"), ("line 3", ".csv"), ("line 1", ".jsonl"), ("line 2", ".jsonl")]
    rows = open_rows(tmp_path)
    places = [f"{row} of {tmp_path}/rows{suffix}" for row, suffix in lines]
    assert [rows.place for _ in rows] == [*places, *(f"row {n} of {tmp_path}/rows.parquet" for n in (1, 2))]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    read: list[str] = []
    with pytest.raises(RunGenInputError) as caught:
        read.extend(rows.place for _ in rows)
    assert read == places
    assert caught.value.hint == "Install it with: pip install 'airflow-provider-rungen[tables]'"
    assert not caught.value.retryable
    with pytest.raises(RunGenInputError, match="pyarrow, which is not installed"):
        open_rows(ArrowStream(pa.RecordBatch.from_pylist(ROWS)))


def test_a_query_that_fails_midway_names_the_last_row() -> None:
    def batches() -> Iterator[Any]:
        yield pa.RecordBatch.from_pylist(ROWS)
        raise OSError("lost the connection to s3://user:S3CRET@bucket")

    reader = pa.RecordBatchReader.from_batches(pa.Table.from_pylist(ROWS).schema, batches())
    error = failure(reader)
    assert error.message.startswith("Could not read table from a RecordBatchReader after row 2: ")
    assert "S3CRET" not in "".join(traceback.format_exception(error))
    assert error.retryable


@pytest.mark.parametrize("source", [{"a": 1}, b"a.csv", 7, None])
def test_other_sources_are_refused(source: Any) -> None:
    kind = type(source).__name__
    assert f"table must be a list, the URI of files or a table, not a {kind}" in str(failure(source))


# --- memory ---


def _table(count: int) -> Any:
    return pa.table({"n": range(count), "text": [os.urandom(500).hex() for _ in range(count)]})


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".csv.gz", ".parquet", "stream"])
def test_rows_are_read_as_a_stream(tmp_path: Path, suffix: str) -> None:
    count = 12_000
    table = _table(count)
    source: Any = tmp_path / f"rows{suffix}"
    if suffix == "stream":
        source = ArrowStream(*table.to_batches())  # as one batch
    elif suffix == ".parquet":
        source.write_bytes(parquet_bytes(table, row_group_size=count))
    elif suffix == ".jsonl":
        source.write_bytes(json_lines(table.to_pylist()))
    else:
        text = "n,text\n" + "".join(f"{row['n']},{row['text']}\n" for row in table.to_pylist())
        source.write_bytes(gzip.compress(text.encode(), 1) if suffix.endswith("gz") else text.encode())
    del table
    allocated = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        assert sum(1 for _ in open_rows(source)) == count
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6_000_000, "of 12 MB"
    assert pa.total_allocated_bytes() - allocated < 1_000_000
