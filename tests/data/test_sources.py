"""Every kind of source with real files: what comes out is what is in the file, and bad files are named in one line."""

import json
import platform
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import readers, sources
from data.sources import Selection, find
from errors import InputError

TENTH = Selection(0.1)


def refused(name, selection=TENTH):
    """The one line that refuses a source, when it is found or when it is read."""
    with pytest.raises(InputError) as caught:
        list(find(str(name), selection).pieces())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def texts(source, validation=None):
    return [p.text for p in source.pieces() if validation is None or p.validation == validation]


def test_stdlib_is_real_text_without_tests(tmp_path):
    source = find("stdlib", TENTH)
    names = source.names()
    assert "argparse.py" in names
    assert names == sorted(names)
    assert not any(
        re.search(r"(^|/)(tests?|site-packages|idle_test|__pycache__)/|_sysconfigdata", name) for name in names
    )
    assert source.total > 5_000_000
    assert source.identity() == find("stdlib", TENTH).identity()
    assert source.identity()["python"] == platform.python_version()
    pieces = list(source.pieces())
    assert sum(p.size for p in pieces) == source.total
    held_out = sum(p.size for p in pieces if p.validation)
    assert 0.08 * source.total < held_out <= 0.1 * source.total


def test_stdlib_can_be_cut_short():
    source = find("stdlib", Selection(0.3, max_documents=40))
    assert len(source.paths) == 40
    assert any(p.validation for p in source.pieces())


def test_folder_of_texts(text_folder):
    source = find(str(text_folder), TENTH)
    pieces = list(source.pieces())
    assert [p.text for p in pieces] == [path.read_bytes().decode() for path in sorted(text_folder.rglob("*.txt"))]
    assert all(p.begins for p in pieces)
    assert [p.size for p in pieces] == source.sizes
    assert 0 < sum(p.size for p in pieces if p.validation) <= 0.1 * source.total
    assert [p.validation for p in pieces] == [p.validation for p in find(str(text_folder), TENTH).pieces()]


def test_hidden_files_and_broken_links_are_left_out(tmp_path):
    (tmp_path / "a.txt").write_text("shown\n" * 9)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "index").write_bytes(b"\0\0")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert find(str(tmp_path), TENTH).names() == ["a.txt"]


def test_single_text_file_gives_its_tail(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {i}\n" for i in range(1000)))
    train, validation = (("".join(texts(find(str(path), TENTH), v))) for v in (False, True))
    assert train + validation == path.read_text()
    assert train.endswith("\n")
    assert 0.08 < len(validation) / path.stat().st_size <= 0.1


def test_large_file_is_read_in_parts_that_join_to_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE", 7)  # so that every cut falls somewhere awkward
    path = tmp_path / "long.txt"
    for content in ("naïve 数据\n🙂🙂\n" * 20, "🙂数据é" * 40, "a\n" * 40):
        path.write_bytes(content.encode())
        pieces = list(find(str(path), Selection(0.25)).pieces())
        assert "".join(p.text for p in pieces) == content
        assert [p.begins for p in pieces].count(True) == 2
        assert sum(p.size for p in pieces) == len(content.encode())


def test_jsonl(tmp_path):
    path = tmp_path / "records.jsonl"
    documents = [f"document {i} é\u2028\n" for i in range(100)]
    path.write_text("\n\n".join(json.dumps({"id": i, "body": d}) for i, d in enumerate(documents)))
    source = find(str(path), Selection(0.1, text_field="body"))
    assert texts(source) == documents
    assert len(texts(source, True)) == 10
    assert texts(find(str(path), Selection(0.1, text_field="body", max_documents=7))) == documents[:7]


def test_parquet_and_folder_of_records(tmp_path):
    documents = [f"document {i} 数据" for i in range(1000)]
    for part in range(2):
        table = pa.table({"n": list(range(500)), "text": documents[part * 500 : part * 500 + 500]})
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=100)
    assert texts(find(str(tmp_path / "1.parquet"), TENTH)) == documents[500:]
    source = find(str(tmp_path), TENTH)
    assert texts(source) == documents
    assert len(texts(source, True)) == 100


def goes_on_anywhere(source):
    """Reading from behind any piece gives the pieces that follow it."""
    pieces = list(source.pieces())
    assert len(pieces) > 20
    for number in range(0, len(pieces), 1 + len(pieces) // 60):
        assert list(source.pieces(pieces[number].after)) == pieces[number + 1 :]
    return pieces


def test_reading_goes_on_behind_any_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE", 7)
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, content in (("a", "naïve 数据\n🙂🙂\n" * 6), ("b", "🙂数据é" * 15), ("c", "a\n" * 10), ("d", "")):
        (folder / f"{name}.txt").write_bytes(content.encode())
    lines = "\n\n".join(json.dumps({"text": f"line {i} é"}) for i in range(30))
    (folder / "b.jsonl").write_text(lines)
    (folder / "c.jsonl").write_text(lines)
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(50)]}), folder / "b.parquet", row_group_size=9)
    pieces = goes_on_anywhere(find(str(folder), Selection(0.3)))
    assert {piece.validation for piece in pieces} == {False, True}
    goes_on_anywhere(find(str(folder), Selection(0.3, max_documents=37)))
    tail = goes_on_anywhere(find(str(folder / "b.txt"), Selection(0.4)))
    assert [piece.begins for piece in tail].count(True) == 2
    # What is held out is found from anywhere without the rest; a record only by reading those before it.
    source = find(str(folder), Selection(0.3))
    expected = [piece.text for piece in pieces if piece.validation and piece.after.row == 0]
    assert [piece.text for piece in source.pieces(training=False)] == expected != []


def test_a_bad_line_is_named_by_its_number_in_the_file_when_reading_goes_on(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b"}\n{"tex\n')
    source = find(str(path), TENTH)
    first = next(source.pieces())
    with pytest.raises(InputError, match="line 4 is not JSON"):
        list(source.pieces(first.after))


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_library_reads_fields_and_splits(tmp_path, monkeypatch, streaming):
    # A local folder goes through the same call of `datasets` as a name of the hub.
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "stories"
    folder.mkdir()
    for split, word in (("train", "seen"), ("test", "unseen")):
        lines = "".join(json.dumps({"story": f"{word} {i}"}) + "\n" for i in range(20))
        (folder / f"{split}.jsonl").write_text(lines)
    choice = Selection(0.1, text_field="story", split="test", streaming=streaming)
    source = find(f"hub:{folder}", choice)
    assert texts(source) == [f"unseen {i}" for i in range(20)]
    pieces = list(source.pieces())
    assert list(source.pieces(pieces[7].after)) == pieces[8:]
    assert list(source.pieces(training=False)) == []
    assert len(texts(source, True)) == 2
    choice = Selection(0.1, text_field="story", split="tset", streaming=streaming)
    assert "test" in refused(f"hub:{folder}", choice)
    choice = Selection(0.1, text_field="stroy", streaming=streaming)
    assert "no field 'stroy' (did you mean 'story'?); present: story" in refused(f"hub:{folder}", choice)


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_without_network_says_so_in_one_line(streaming):
    message = refused("someone/some-dataset", Selection(0.1, streaming=streaming))
    assert "'someone/some-dataset': the hub cannot be reached" in message
    assert "no file or folder of that name" in message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stdlb", "unknown data source 'stdlb' (did you mean 'stdlib'?)"),
        ("bigram-backcopy", "did you mean 'bigram_backcopy'?"),
        ("wikitext", "hub:NAME"),
        ("./nothing", "no such file"),
        ("nothing.txt", "data file nothing.txt: no such file"),
    ],
)
def test_unknown_names(name, expected):
    assert expected in refused(name)


def test_missing_file_suggests_its_neighbour(tmp_path):
    (tmp_path / "story.txt").write_text("x")
    assert f"did you mean {tmp_path / 'story.txt'}?" in refused(tmp_path / "storry.txt")


def test_empty_file_and_folder(tmp_path):
    (tmp_path / "empty.txt").touch()
    assert f"data file {tmp_path / 'empty.txt'} is empty" in refused(tmp_path / "empty.txt")
    assert f"data folder {tmp_path} is empty" in refused(tmp_path)
    (tmp_path / "empty.txt").unlink()
    assert "holds no files" in refused(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"plain\nthen \0 binary", "NUL byte at offset 11"),
        (b"plain\nthen \xff\n", "byte offset 11"),
        (b"cut inside a character \xf0\x9f", "byte offset 23"),
        (b"x\n" * 5000 + b"\xe9t\xe9\n" + b"x\n" * 5000, "byte offset 10000"),
    ],
)
@pytest.mark.parametrize("piece", [8, 1 << 20])
def test_binary_or_broken_text_names_file_and_offset(tmp_path, monkeypatch, content, expected, piece):
    monkeypatch.setattr(readers, "PIECE", piece)
    (tmp_path / "data.txt").write_bytes(content)
    (tmp_path / "small.txt").write_bytes(b"y\n")  # the one that is held out
    message = refused(tmp_path)
    assert expected in message
    assert str(tmp_path / "data.txt") in message


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('{"text": "a"}\n{"text": "b}\n', "line 2 is not JSON"),
        ('{"text": "a"}\n{"tex', "line 2 is not JSON"),
        ('{"text": "a"}\n{"tex', "half-written"),
        ('{"text": "a"}\n{"title": "b", "texts": "c"}\n', "line 2 has no field 'text' (did you mean 'texts'?)"),
        ('{"title": "b", "body": "c"}\n', "present: title, body"),
        ('["a"]\n', "line 1 is a JSON list"),
        ('{"text": 3}\n', "line 1: 'text' is int, not text"),
        ('{"text": "\\ud800"}\n', "not valid Unicode"),
        ('{"text": "\0"}\n', "NUL byte"),
    ],
)
def test_bad_jsonl(tmp_path, lines, expected):
    path = tmp_path / "records.jsonl"
    path.write_text(lines)
    message = refused(path)
    assert expected in message
    assert str(path) in message


def test_bad_parquet(tmp_path):
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), path)
    assert "no column 'text'; present: body, n" in refused(path)
    assert "row 0: 'n' is int, not text" in refused(path, Selection(0.1, text_field="n"))
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a readable Parquet file" in refused(path)
    pq.write_table(pa.table({"text": ["a plain text"]}), path, compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"a plain text", b"a \xff\xffain text"))
    assert "not a readable Parquet file" in refused(path)


def test_identity_follows_content_names_and_size(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    seen = set()
    for content in ("one\n", "two\n", "two\ntwo\n"):
        path.write_text(content)
        seen.add(find(str(path), TENTH).identity()["sha256"])
    path.rename(tmp_path / "b.txt")
    seen.add(find(str(tmp_path / "b.txt"), TENTH).identity()["sha256"])
    monkeypatch.setattr(sources, "_CONTENT_HASH_LIMIT", 1)  # as for a source too large to hash
    seen.add(find(str(tmp_path / "b.txt"), TENTH).identity()["sha256"])
    assert len(seen) == 5
