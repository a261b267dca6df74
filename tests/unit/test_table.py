from __future__ import annotations

import gzip
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_jobs.data.table import Table, content_digest, find_files, read_table
from ray_jobs.errors import DataError, RetryableError


def write(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path | str) -> Table:
    return read_table(find_files(str(path)))


def names(path: Path | str) -> list[str]:
    return [file.name for file in find_files(str(path))]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv: the file is empty. Give data.path a file with a header"),
        ("a.csv", b"\n \n", "a.csv: the file is empty. Give data.path a file with a header"),
        ("a.csv", b"x,y\n", "a.csv: a header and no rows. Give data.path a file with rows"),
        (
            "a.csv",
            b"x,y,x\n1,2,3\n",
            "a.csv: the column 'x' is there twice. Rename or delete one",
        ),
        (
            "a.csv",
            b"x,y\n1,2\n\n3,4,5\n",
            "a.csv, line 4: 3 values, but the header names 2 columns. Mend the line, or name every "
            "column in the header",
        ),
        (
            "a.csv",
            "x,y\n1,a\n1,é\n".encode("latin-1"),
            "a.csv: not UTF-8: byte 0xe9 at offset 10 (line 3). Save the file as UTF-8",
        ),
        (
            "a.csv",
            "é,y\n1,2\n".encode("latin-1"),
            "a.csv: not UTF-8: byte 0xe9 at offset 0 (line 1). Save the file as UTF-8",
        ),
        (
            "a.csv.gz",
            gzip.compress(b"x,y\n1,2\n" * 1000)[:-20],
            "a.csv.gz: cannot be read, damaged or not what its ending says: "
            "Truncated compressed stream",
        ),
        (
            "a.parquet",
            b"x,y\n1,2\n3,4\n5,6\n",
            "a.parquet: cannot be read, damaged or not what its ending says: Parquet magic bytes "
            "not found in footer. Either the file is corrupted or this is not a parquet file.",
        ),
        (
            "a.xlsx",
            b"PK",
            "a.xlsx: not known by its ending. Emberline reads CSV (.csv, .tsv, .txt; also .gz, "
            ".bz2, .zst) or Parquet (.parquet, .pq)",
        ),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as raised:
        read(path)
    assert str(raised.value) == message


def test_a_non_utf8_byte_beyond_the_first_chunk_is_found(tmp_path: Path) -> None:
    start = b"x,y\n" + b"1,abc\n" * 300_000
    path = write(tmp_path, "a.csv", start + b"1,\xff\n")
    with pytest.raises(DataError, match=rf"0xff at offset {len(start) + 2} \(line 300002\)"):
        read(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nope.csv: no such file or folder. Set data.path to a file"
    ):
        find_files(str(tmp_path / "nope.csv"))
    with pytest.raises(DataError, match=r"\*.nope: no data file there. Emberline reads CSV"):
        find_files(str(tmp_path / "*.nope"))


@pytest.mark.parametrize("header", ["x,y", "x;y", "x\ty", "\ufeffx,y", '"x","y"'])
def test_headers(tmp_path: Path, header: str) -> None:
    delimiter = next(c for c in ",;\t" if c in header)
    table = read(write(tmp_path, "a.csv", f"{header}\n1{delimiter}2.5\n"))
    assert table.columns.to_pydict() == {"x": [1], "y": [2.5]}


def test_a_column_without_a_name_gets_one(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.csv", ",y\n0,2\n")).columns.column_names == ["unnamed_0", "y"]


def test_rows_are_placed_as_an_editor_counts(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "\nx\n1\n\n2\n")
    write(tmp_path, "b.csv", "x\r\n3\r\n")
    pq.write_table(pa.table({"x": [4, 5]}), tmp_path / "c.parquet")
    table = read(tmp_path)
    assert table.columns.column("x").to_pylist() == [1, 2, 3, 4, 5]
    places = [table.place(row) for row in range(5)]
    assert places == [
        "a.csv, line 3",
        "a.csv, line 5",
        "b.csv, line 2",
        "c.parquet, row 1",
        "c.parquet, row 2",
    ]
    assert table.file_of_row().tolist() == [0, 0, 1, 2, 2]


def test_what_a_path_stands_for(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv.gz", "sub/c.parquet", "README.txt", "_x.csv", ".h/d.csv", "n.md"):
        write(tmp_path, name, "")
    write(tmp_path, "splits.parquet", "")
    assert names(tmp_path) == ["a.csv.gz", "b.csv", "sub/c.parquet"]
    assert names(tmp_path / "*.csv*") == ["_x.csv", "a.csv.gz", "b.csv"]
    assert names(tmp_path / "[bx].csv") == ["b.csv"]
    assert names(tmp_path / "**/*.parquet") == ["splits.parquet", "sub/c.parquet"]
    assert names(tmp_path / "s?b/*") == ["sub/c.parquet"]
    assert names(tmp_path / "README.txt") == ["README.txt"]


def test_a_name_with_brackets_is_a_name_first(tmp_path: Path) -> None:
    assert names(write(tmp_path, "run[1].csv", "")) == ["run[1].csv"]


def test_files_must_have_the_same_columns(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "x,y\n1,2\n")
    write(tmp_path, "b.csv", "y,x\n4.5,3\n")
    assert read(tmp_path).columns.to_pydict() == {"x": [1, 3], "y": [2.0, 4.5]}
    write(tmp_path, "c.csv", "x,z\n1,2\n")
    with pytest.raises(DataError, match=r"c.csv: the column 'y' of a.csv is missing. Give all"):
        read(tmp_path)
    write(tmp_path, "c.csv", "x,y,z\n1,2,3\n")
    with pytest.raises(DataError, match=r"c.csv: has a column 'z' that a.csv lacks. Give all"):
        read(tmp_path)


def test_types_that_differ_between_files(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "x,y\n1,2\n")
    write(tmp_path, "b.csv", "y,x\n3,hot\n")
    assert read(tmp_path).columns.to_pydict() == {"x": ["1", "hot"], "y": [2, 3]}
    write(tmp_path, "b.csv", "y,x\n3,true\n")
    with pytest.raises(DataError, match=r"do not fit together: .*Field x has incompatible types"):
        read(tmp_path)


def test_categories_are_read_as_their_values(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": pa.array(["a", "b"]).dictionary_encode()}), tmp_path / "a.pq")
    assert read(tmp_path / "a.pq").columns.column("x").type == pa.string()


def test_the_digest_is_of_names_and_bytes(tmp_path: Path) -> None:
    def digest() -> str:
        return content_digest(find_files(str(tmp_path)))

    path = write(tmp_path, "a.csv", "x\n1\n")
    first = digest()
    os.utime(path, (1, 1))
    assert digest() == first
    write(tmp_path, "a.csv", "x\n2\n")
    assert digest() != first
    write(tmp_path, "a.csv", "x\n1\n").rename(tmp_path / "b.csv")
    assert digest() != first


def test_tables_on_s3(bucket: str) -> None:
    import boto3

    client = boto3.client("s3")
    for key, body in (("d/a.csv", "x,y\n1,2\n"), ("d/sub/b.csv", "x,y\n3,4\n"), ("d/n.md", "")):
        client.put_object(Bucket=bucket, Key=key, Body=body.encode())
    assert names(f"s3://{bucket}/d") == ["a.csv", "sub/b.csv"]
    assert names(f"s3://{bucket}/d/*.csv") == ["a.csv"]
    assert read(f"s3://{bucket}/d/").columns.column("x").to_pylist() == [1, 3]
    for uri in (f"s3://{bucket}/nothing", "s3://no-such-bucket/d"):
        with pytest.raises(DataError, match=f"^{uri}: no such file or folder. Set data.path to"):
            find_files(uri)


@pytest.mark.slow  # the S3 client retries for seconds
def test_an_unreachable_endpoint_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(RetryableError) as raised:
        find_files("s3://readings/d")
    assert str(raised.value).startswith(
        "storage 's3://readings/d' does not answer (AWS Error NETWORK_CONNECTION). Look at the "
        "network and AWS_ENDPOINT_URL."
    )
