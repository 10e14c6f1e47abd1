"""One table of everything that people (and attackers) upload: each ends in its stated verdict, and nothing is half-loaded."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from utils.errors import DataError
from utils.training import data_readers, data_store
from utils.training.dataset_utilities import DatasetLoader

GREETING = "Grüße, мир, 世界 👋\nsecond line\n"
FRENCH = "Le café est fermé, l'été est passé et il fait déjà froid dehors.\n" * 20
pa = pytest.importorskip("pyarrow")


def parquet(table: pa.Table | None = None, **options: object) -> bytes:
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(table if table is not None else pa.table({"text": ["a", "b", None]}), sink, **options)
    return sink.getvalue()


def arrow(writer: Callable[..., object], **columns: object) -> bytes:
    table = pa.table(columns or {"text": ["a", "b"]})
    sink = io.BytesIO()
    with writer(sink, table.schema) as out:  # type: ignore[attr-defined]
        out.write_table(table)
    return sink.getvalue()


def invalid_text() -> pa.Array:
    """A column that claims to be text and is not."""
    ends = struct.pack("<2i", 0, 1)
    return pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(ends), pa.py_buffer(b"\xff")])


def outside() -> bytes:
    """An Arrow file whose text ends far behind the end of its buffer."""
    content = arrow(pa.ipc.new_file, text=["x" * 77, "y" * 73])
    offsets = struct.pack("<3i", 0, 77, 150)
    assert content.count(offsets) == 1
    return content.replace(offsets, struct.pack("<3i", 0, 77, 1 << 30))


def zipped() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.txt", "text")
    return sink.getvalue()


def claims(size: int) -> bytes:
    """A Parquet file whose footer says that it is `size` bytes long."""
    content = parquet()
    return content[:-8] + struct.pack("<i", size) + content[-4:]


# name → (content, options, documents it gives, words that the report must hold) or (content, options, words of the error)
TAKEN = {
    # encodings
    "utf-8.txt": (GREETING.encode(), {}, [GREETING], ""),
    "utf-8-mark.txt": (codecs.BOM_UTF8 + GREETING.encode(), {}, [GREETING], ""),
    "utf-16-le-mark.txt": (
        codecs.BOM_UTF16_LE + GREETING.encode("utf-16-le"),
        {},
        [GREETING],
        "UTF-16-LE, by its byte-order mark",
    ),
    "utf-16-be-mark.txt": (codecs.BOM_UTF16_BE + GREETING.encode("utf-16-be"), {}, [GREETING], "UTF-16-BE"),
    "utf-32-le-mark.txt": (codecs.BOM_UTF32_LE + GREETING.encode("utf-32-le"), {}, [GREETING], "UTF-32-LE"),
    "utf-32-be-mark.txt": (codecs.BOM_UTF32_BE + GREETING.encode("utf-32-be"), {}, [GREETING], "UTF-32-BE"),
    "utf-16-named.txt": (GREETING.encode("utf-16-le"), {"encoding": "utf-16-le"}, [GREETING], ""),
    "latin-1.txt": (
        FRENCH.encode("latin-1"),
        {},
        [FRENCH],
        "byte 6 (0xe9) is no UTF-8, so the file was decoded as Windows-1252",
    ),
    "windows-1252.txt": (
        "“Smart” – quotes €5\n".encode("cp1252") * 9,
        {},
        ["“Smart” – quotes €5\n" * 9],
        "byte 0 (0x93)",
    ),
    "cyrillic-named.txt": ("Привет\n".encode("cp1251"), {"encoding": "cp1251"}, ["Привет\n"], ""),
    "japanese-named.txt": ("こんにちは\n".encode("shift_jis"), {"encoding": "shift_jis"}, ["こんにちは\n"], ""),
    "mark-in-the-middle.txt": ("a\ufeffb\n".encode(), {}, ["a\ufeffb\n"], "1 byte-order marks inside its text"),
    "mixed-line-ends.txt": (b"a\r\nb\nc\rd", {}, ["a\nb\nc\nd"], "mixes line ends"),
    "windows-line-ends.txt": (b"a\r\nb\r\n", {}, ["a\nb\n"], ""),
    "control-characters.txt": (b"\x1b[31mred\x1b[0m\x07\x0c ok", {}, ["\x1b[31mred\x1b[0m\x07\x0c ok"], ""),
    "markup.md": (b"<script>alert(1)</script> **x**", {}, ["<script>alert(1)</script> **x**"], ""),
    "paragraphs.txt": (b"\n\na\nb\n\n \nc\n", {"split_on": "blank lines"}, ["a\nb", "c"], ""),
    "lines.txt": (b"a\n\nb\r\nc", {"split_on": "lines"}, ["a", "b", "c"], ""),
    "no-suffix-case.TXT": (b"a", {}, ["a"], ""),
    # csv and tsv
    "plain.csv": (b"text\na\nb\n", {}, ["a", "b"], ""),
    "quoted.csv": (b'text,n\n"a ""quoted"", b\nsecond",1\n', {}, ['a "quoted", b\nsecond'], ""),
    "header-with-blanks.csv": ("\ufeff text ,n \r\r\na,1\r\r\n".encode(), {"column": "text"}, ["a"], ""),
    "two-marks.csv": ('\ufeff\ufeff"text"\na\n'.encode(), {}, ["a"], ""),
    "semicolons.csv": (b"text;n\na,b;1\n", {}, ["a,b"], "separated by ';'"),
    "sep-line.csv": (b"sep=|\ntext|n\na;b|1\n", {}, ["a;b"], ""),
    "ragged.csv": (
        b"text,n\na,1\nb\nc,2,3\nd,4\n",
        {},
        ["a", "d"],
        "row 2: has not the 2 fields of the header (1 fields, line 3)",
    ),
    "blank-rows.csv": (b"text,n\n\na,1\n\n,2\n", {}, ["a"], "row 2: is empty or blank"),
    "formulas.csv": (b"text,n\n=1+1,1\n", {}, ["=1+1"], ""),
    "old-mac.csv": (b"text,n\ra,1\rb,2\r", {}, ["a", "b"], ""),
    "no-header.csv": (b"a b c,1\nd e f,2\n", {"has_header": False}, ["a b c", "d e f"], ""),
    "sentences.csv": (
        b"first sentence\nsecond one\n",
        {},
        ["second one"],
        "looks like data; if it is, pass has_header=False",
    ),
    "header-is-data.csv": (
        b"It was a dark and stormy night; the rain fell in torrents, except at times,1\nb,2,3\n",
        {"has_header": True, "delimiter": ","},
        ["b"],
        "has_header=False",
    ),
    "quotes-as-text.tsv": (
        b'text\tn\n"Hi," he said\t1\n5" pipe\t2\n',
        {},
        ['"Hi," he said', '5" pipe'],
        "quotes do not pair",
    ),
    "lone-quote.csv": (b'text,n\n"a,1\nb,2\n', {}, ['"a', "b"], "warning: lone-quote.csv: its quotes do not pair"),
    "huge-field.csv": (b'text,n\n"' + b"x " * 200_000 + b'",1\n', {}, ["x " * 200_000], ""),
    "latin-1.csv": (
        b"text,n\n" + "café\n".encode("latin-1").replace(b"\n", b",1\n") * 9,
        {},
        ["café"] * 9,
        "Windows-1252",
    ),
    # json
    "texts.json": (b'["a", "b"]', {}, ["a", "b"], ""),
    "objects.json": (b'[{"text": "a"}, {"text": "b"}]', {}, ["a", "b"], ""),
    "wrapped.json": (b'{"version": 1, "data": [{"text": "a"}]}', {}, ["a"], "the list under the key 'data'"),
    "columns.json": (b'{"text": ["a", "b"], "n": [1, 2]}', {}, ["a", "b"], ""),
    "one-object.json": (b'{"text": "a", "n": 1}', {}, ["a"], ""),
    "lines-called.json": (b'{"text": "a"}\n{"text": "b"}\n', {}, ["a", "b"], "read as JSON lines"),
    "marked.json": (codecs.BOM_UTF8 + b'["a"]', {}, ["a"], ""),
    "utf-16.json": (codecs.BOM_UTF16_LE + '["ä"]'.encode("utf-16-le"), {}, ["ä"], "UTF-16-LE"),
    "mixed-rows.json": (
        b'["a", {"text": "b"}, 3, null]',
        {},
        ["a", "b"],
        "row 3: is neither an object nor a text (it is a number)",
    ),
    "nested.json": (b'[{"doc": {"body": "a b", "n": 1}}]', {}, ["a b"], "doc.body"),
    "lines.jsonl": (b'{"text": "a"}\n\n{"text": "b"}\n', {}, ["a", "b"], ""),
    "strings.jsonl": (b'"a"\n"b"\n', {}, ["a", "b"], ""),
    "surrogates.jsonl": (
        b'{"text": "\\ud800"}\n{"text": "\\ud83d\\ude00"}\n',
        {},
        ["😀"],
        "row 1: holds half a surrogate pair",
    ),
    "nul-escape.jsonl": (b'{"text": "a\\u0000b"}\n{"text": "ok"}\n', {}, ["ok"], "row 1: holds a NUL character"),
    "trailing-comma.jsonl": (b'{"text": "a"},\n{"text": "b"}\n', {}, ["b"], "row 1: is no JSON"),
    "twice-a-key.jsonl": (b'{"text": "a", "text": "b"}\n{"text": "c"}\n', {}, ["c"], "'text' stands twice"),
    "not-finite.jsonl": (
        b'{"text": "a", "n": NaN}\n{"text": "b", "n": 1e999}\n{"text": "c", "n": 1}\n',
        {},
        ["c"],
        "rejected 2 ×",
    ),
    "deep.jsonl": (
        b'{"text": "a", "n": ' + b"[" * 5000 + b"]" * 5000 + b'}\n{"text": "b"}\n',
        {},
        ["b"],
        "5001 levels deep",
    ),
    "gaps.jsonl": (
        b'{"text": "a"}\n{"other": 1}\n{"text": null}\n{"text": 5}\n',
        {"column": "text"},
        ["a"],
        "rejected 2 × has no text",
    ),
    "long-number.jsonl": (b'{"text": "a", "n": ' + b"9" * 5000 + b'}\n{"text": "b"}\n', {}, ["b"], "row 1: is no JSON"),
    # binary tables
    "plain.parquet": (parquet(), {}, ["a", "b"], "row 3: has no text"),
    "nested.parquet": (parquet(pa.table({"doc": [{"body": "a b", "n": 1}, None]})), {}, ["a b"], "doc.body"),
    "dictionary.parquet": (
        parquet(pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()})),
        {},
        ["a", "b", "a"],
        "",
    ),
    "file.arrow": (arrow(pa.ipc.new_file), {}, ["a", "b"], ""),
    "stream.arrow": (arrow(pa.ipc.new_stream), {}, ["a", "b"], ""),
}
REFUSED = {
    "empty.txt": (b"", {}, r"is empty \(0 bytes\)"),
    "blank.txt": (b" \n\t\r\n", {}, "no text that can be used.*empty or blank"),
    "only-a-mark.txt": (codecs.BOM_UTF8, {}, "no text|has no rows"),
    "nul.txt": (b"a\x00b", {}, "NUL character at byte 1: it is no text file"),
    "nul-late.txt": (b"a" * 3_000_000 + b"\x00", {}, "NUL character at byte 3,000,000"),
    "utf-16-le-no-mark.txt": ("hello there".encode("utf-16-le"), {}, "encoding='utf-16-le'"),
    "utf-16-be-no-mark.txt": ("hello there".encode("utf-16-be"), {}, "encoding='utf-16-be'"),
    "utf-16-half-character.txt": (codecs.BOM_UTF16_LE + b"a\x00b", {}, "no UTF-16-LE text: byte 4"),
    "utf-16-lone-surrogate.txt": (codecs.BOM_UTF16_LE + b"a\x00\x00\xd8b\x00", {}, "no UTF-16-LE text: byte 4"),
    "cyrillic.txt": ("Привет, мир! Как дела?\n".encode("cp1251"), {}, r"above 0x7f.*encoding='cp1251'"),
    "japanese.txt": ("こんにちは世界\n".encode("shift_jis"), {}, "encoding='cp1251'.*'shift_jis'"),
    "random.txt": (bytes(range(1, 256)) * 40, {}, "not UTF-8"),
    "broken-utf-8.txt": (b"\xc3" * 50 + b"\xff", {}, "not UTF-8.*byte 0 is 0xc3"),
    "wrong-name.txt": (b"abc \xff", {"encoding": "ascii"}, "no ASCII text: byte 4"),
    "unknown-encoding.txt": (b"abc", {"encoding": "utf-99"}, "no text encoding that Python knows"),
    "no-text-encoding.txt": (b"abc", {"encoding": "zlib"}, "no text encoding that Python knows"),
    "gzip.txt": (gzip.compress(b"text"), {}, r"compressed \(gzip\): unpack it first"),
    "text.txt.gz": (gzip.compress(b"text"), {}, "is compressed: unpack it first"),
    "archive.zip": (zipped(), {}, "is compressed"),
    "sheet.xlsx": (zipped(), {}, "save the sheet as CSV"),
    "zip-called.csv": (zipped(), {}, "zip archive"),
    "parquet-called.csv": (parquet(), {}, "is a Parquet file: call it .parquet"),
    "picture.txt": (b"\x89PNG\r\n\x1a\n123", {}, "picture"),
    "weights.pkl": (b"cos\nsystem\n", {}, "may run code"),
    "program.exe": (b"MZ", {}, "'.exe', which is not read"),
    "no_suffix": (b"abc", {}, "no suffix"),
    # csv
    "unclosed-quote.csv": (b'text,n\n"a",1\n"b,2\n', {}, r"record at line 3: its quotes do not pair"),
    "unclosed-quote-of-commas.csv": (b'text,n\n"a, b",1\nc,"2\n', {}, r"record at line 3: its quotes do not pair"),
    "text-behind-quote.csv": (b'text,n\n"a"b,1\nc,2,3\n', {}, "quotes do not pair"),
    "header-only.csv": (b"text,n\n", {}, "has no rows"),
    "two-equal-columns.csv": (b"text,text \na,b\n", {}, "two columns called 'text'"),
    "numbers-only.csv": (b"a,b\n1,2\n", {}, "no column with text"),
    "several-texts.csv": (
        b"question,answer\nwho are you,I am me\n",
        {},
        r"several columns with text: 'question', 'answer'(.|\n)*who are you",
    ),
    "wrong-column.csv": (b"review,n\na,1\n", {"column": "Review"}, "no column 'Review'. Did you mean 'review'"),
    "nul.csv": (b"text,n\na\x00,1\n", {}, "NUL character at byte 8"),
    "many-columns.csv": (b",".join(b"c%d" % i for i in range(5000)) + b"\n", {}, "5,000 columns; at most"),
    "column-of-plain.txt": (b"abc", {"column": "text"}, "has no columns"),
    "all-ragged.csv": (b"text,n\na\nb\n", {}, "no text that can be used.*2 rows"),
    # json
    "cut.json": (b'[{"text": "a"}, {"te', {}, "no JSON"),
    "trailing-comma.json": (b'[{"text": "a"},]', {}, "no JSON.*line 1, column 1[56]"),
    "scalar.json": (b"42", {}, "holds a number; data is a list"),
    "one-text.json": (b'"all of it"', {}, "holds one text"),
    "null.json": (b"null", {}, "holds null"),
    "deep.json": (b"[" * 100_000 + b"]" * 100_000, {}, "100000 levels deep"),
    "deep-unclosed.json": (b'{"a":' * 100_000, {}, "levels deep"),
    "twice-a-key.json": (b'[{"text": "a", "text": "b"}]', {}, "'text' stands twice"),
    "not-finite.json": (b'[{"text": "a", "n": Infinity}]', {}, "Infinity is no JSON number"),
    "several-lists.json": (
        b'{"train": [{"text": "a"}], "test": [{"text": "b"}, {"text": "c"}]}',
        {},
        "several lists.*'train', 'test'.*field=",
    ),
    "wrong-field.json": (b'{"data": [{"text": "a"}]}', {"field": "rows"}, "no list under the key 'rows'.*'data'"),
    "empty-list.json": (b"[]", {}, "has no rows"),
    "blank.json": (b"  \n", {}, "nothing but blanks"),
    "all-broken.jsonl": (b"{oops\n{again\n", {}, "all 2 rows.*First: .*row 1"),
    "messages.jsonl": (
        b'{"messages": [{"role": "user", "content": "hi"}]}\n',
        {},
        "no column with text(.|\n)*messages",
    ),
    # binary tables
    "cut.parquet": (parquet()[:-20], {}, "is damaged or no file of its kind"),
    "magic-only.parquet": (b"PAR1" + b"\x00" * 50 + b"PAR1", {}, "is damaged"),
    "text-called.parquet": (b"just some text", {}, "is damaged"),
    "footer-too-large.parquet": (claims(2_000_000_000), {}, "is damaged"),
    "footer-negative.parquet": (claims(-5), {}, "is damaged"),
    "no-text.parquet": (parquet(pa.table({"n": [1, 2]})), {}, "no column with text"),
    "no-rows.parquet": (parquet(pa.table({"text": pa.array([], pa.string())})), {}, "has no rows"),
    "equal-columns.parquet": (
        parquet(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])),
        {},
        "two columns of one name",
    ),
    "no-utf-8.parquet": (parquet(pa.table({"text": invalid_text()})), {}, "is damaged"),
    "no-utf-8.arrow": (arrow(pa.ipc.new_file, text=invalid_text()), {}, "is damaged"),
    "offsets-outside.arrow": (outside(), {}, "is damaged"),
    "cut.arrow": (arrow(pa.ipc.new_file)[:-30], {}, "is damaged"),
    "cut-stream.arrow": (arrow(pa.ipc.new_stream)[:200], {}, "is damaged|no text"),
    "text-called.arrow": (b"just some text that is long enough", {}, "is damaged"),
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRANSFORMER_BUILDER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", TAKEN)
def test_what_can_be_read_is_read_as_stated(name, tmp_path, cache):
    content, options, documents, words = TAKEN[name]
    (tmp_path / name).write_bytes(content)
    loaded = DatasetLoader.from_anything(tmp_path / name, **options)
    assert list(loaded) == documents
    assert words in loaded.summary()
    assert list(DatasetLoader.from_anything({name: content}, **options)) == documents, "an upload is read otherwise"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_its_reason(name, tmp_path, cache, monkeypatch):
    content, options, words = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(data_store, "MEMORY_BYTES", 0)
    with pytest.raises(DataError, match=rf"(?s){words}"):
        DatasetLoader.from_file(tmp_path / name, **options)
    with pytest.raises(DataError, match=rf"(?s){words}"):
        DatasetLoader.from_anything({name: content}, **options)
    assert not list(cache.rglob("*.*")), "something was left behind"


def test_the_table_is_large():
    assert len(TAKEN) + len(REFUSED) > 100


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_that_fails_late_leaves_nothing(kind, tmp_path, cache, monkeypatch):
    """Rows are on disk already when the fault comes."""
    monkeypatch.setattr(data_readers, "MAX_RECORD_CHARACTERS", 100)
    row = {"csv": "some words,1\n", "jsonl": '{"text": "some words"}\n'}[kind]
    bad = {"csv": '"' + "x" * 300 + "\n", "jsonl": "\0\n"}[kind]
    (tmp_path / f"a.{kind}").write_text(("text,n\n" if kind == "csv" else "") + row * 500 + bad)
    monkeypatch.setattr(data_store.DocumentStore.__init__, "__defaults__", (("text",), 100))
    with pytest.raises(DataError):
        DatasetLoader.from_file(tmp_path / f"a.{kind}")
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_too_long_records_are_rejected_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data_readers, "MAX_RECORD_CHARACTERS", 50)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 90}) + '\n{"text": "ok"}\n')
    loaded = DatasetLoader.from_file(tmp_path / "a.jsonl")
    assert list(loaded) == ["ok"] and "row 1: is too long" in loaded.summary()
    (tmp_path / "a.csv").write_text("text,n\nok,1\n" + "x" * 90 + ",2\n")
    with pytest.raises(DataError, match=r"line 3 is longer than 50 characters"):
        DatasetLoader.from_file(tmp_path / "a.csv")


def test_what_is_no_ordinary_file_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    (tmp_path / "nowhere.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "device.txt").symlink_to("/dev/zero")
    for name, words in {
        "pipe.txt": "no ordinary file",
        "device.txt": "no ordinary file",
        "loop.txt": "cannot be read",
        "nowhere.txt": "a link that leads nowhere",
        "folder.txt": "is a folder",
        "absent.txt": "does not exist",
    }.items():
        with pytest.raises(DataError, match=words):
            DatasetLoader.from_file(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        DatasetLoader.from_anything(str(tmp_path / "loop.txt"))


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    real = Path.open

    def refusing(self, *arguments, **options):  # root may read everything, so the system's answer is played
        if self.name == "a.txt":
            raise PermissionError(13, "Permission denied")
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(DataError, match=r"a.txt cannot be read: Permission denied"):
        DatasetLoader.from_file(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["plain.parquet", "file.arrow", "stream.arrow"])
def test_damaged_bytes_never_escape_as_other_errors(name, tmp_path):
    """Each byte flipped in turn: the file is read, or refused in our words."""
    content = bytearray(TAKEN[name][0])
    refused = 0
    for place in range(0, len(content), 3):
        damaged = bytes(content[:place]) + bytes([content[place] ^ 0xFF]) + bytes(content[place + 1 :])
        try:
            DatasetLoader.from_uploaded_file(damaged, name.rpartition(".")[2], column="text")
        except DataError:
            refused += 1
    assert refused > 10
