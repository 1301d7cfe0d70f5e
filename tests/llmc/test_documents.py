"""JSON is read as the documents it holds, or refused with what it has instead."""

import bz2
import gzip
import json
import lzma
import shutil
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from llmc.calibration_recipe import Calibration, Check
from llmc.convert.checkpoint import Checkpoint
from llmc.documents import pieces, read_documents
from llmc.errors import InputError
from llmc.runtime.tokenizer import Tokenizer
from llmc.text import Texts, read_texts

ASK, SAY = {"role": "user", "content": "你好"}, {"role": "assistant", "content": "Hi\u2028!"}


def lines(folder: Path, *records: object, name: str = "t.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / name


@pytest.mark.parametrize(
    ("record", "document", "key"),
    [
        ({"text": "你好", "meta": 1}, "你好", "`text`"),
        ({"content": "a"}, "a", "`content`"),
        ("a\u2028b", "a\u2028b", "place"),
        ({"messages": [ASK, SAY]}, [ASK, SAY], "`messages`"),
        ({"conversations": [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "Hi\u2028!"}]}, [ASK, SAY],
         "`conversations`"),
        ({"prompt": "你好", "completion": "Hi\u2028!"}, [ASK, SAY], "`prompt` and `completion`"),
        ({"prompt": [ASK], "completion": [SAY]}, [ASK, SAY], "`prompt` and `completion`"),
        ({"instruction": "你", "input": "好", "output": "Hi\u2028!"}, [ASK | {"content": "你\n好"}, SAY],
         "`instruction` and `output`"),
        ({"instruction": "你好", "input": "", "output": "Hi\u2028!"}, [ASK, SAY], "`instruction` and `output`"),
        ({"question": "你好", "answer": "Hi\u2028!"}, [ASK, SAY], "`question` and `answer`"),
        ({"system": "Be brief", "conversations": [{"from": "human", "value": "你好"}]},
         [{"role": "system", "content": "Be brief"}, ASK], "`conversations`"),
        ({"system": "", "messages": [ASK, SAY]}, [ASK, SAY], "`messages`"),
        ({"system": "No", "messages": [{"role": "system", "content": "Yes"}, ASK]},
         [{"role": "system", "content": "Yes"}, ASK], "`messages`"),
    ],
)  # fmt: skip
def test_records(tmp_path: Path, record, document, key: str) -> None:
    columns = []
    if isinstance(record, dict):
        table = {key: [value, value] for key, value in record.items()}
        columns = [lines(tmp_path, table, name="columns.json")]
    for path in (
        lines(tmp_path, record, record),
        lines(tmp_path, record, record, name="lines.json"),
        lines(tmp_path, [record, record], name="list.json"),
        lines(tmp_path, [record, record], name="list.jsonl"),
        *columns,
    ):
        read = read_documents(path)
        assert list(read.found) == [document, document] and read.kind == f"records read by {key}"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "t.jsonl",
            '{"text": "a"}\n{"body": "a", "id": 1}\n',
            r"t\.jsonl:2: has the keys 'body', 'id'; give it one of `t",
        ),
        ("t.jsonl", '{"text": "a"}\n{"text": 1}\n', r"t\.jsonl:2: `text` is a number; it has to be text"),
        ("t.jsonl", '{"text": null}\n', r"t\.jsonl:1: `text` is null; it has to be text"),
        ("t.jsonl", '{"text": ["a"]}\n', r"t\.jsonl:1: `text` is a list; it has to be text"),
        ("t.jsonl", '{"messages": "[{}]"}\n', r"t\.jsonl:1: `messages` is text; it has to be a list of messages"),
        ("t.jsonl", '{"text": "a"}\n{"text": "ab\\ud83d"}\n', r"t\.jsonl:2: half a character at place 2 of its text"),
        (
            "t.jsonl",
            '{"messages": [{"role": "a", "content": "\\udc00"}]}\n',
            r"t\.jsonl:1: half a character at place 0",
        ),
        ("t.jsonl", "[1]\n[2]\n", r"t\.jsonl:1: is a list; a record is text"),
        ("t.jsonl", '{"text": "a"}\n{"text": \n', r"t\.jsonl:2: not valid JSON"),
        ("t.jsonl", "5\n", r"t\.jsonl:1: is a number; a record is text or an object"),
        ("t.jsonl", '{"messages": ["a"]}\n', r"t\.jsonl:1: messages must hold messages with role and content"),
        ("t.jsonl", '{"prompt": [1], "completion": "a"}\n', r"t\.jsonl:1: prompt and completion must both be text"),
        ("t.jsonl", "{}\n", r"t\.jsonl:1: has no keys"),
        ("t.json", '{"data": [{"text": "a"}]}', r"t\.json: record 1: has the keys 'data'"),
        ("t.json", "{", r"t\.json: not valid JSON"),
        ("t.json", "[" * 100_000, r"t\.json: not valid JSON"),
        ("t.parquet", "PAR1", r"t\.parquet: cannot be read as Parquet"),
        ("t.csv", "a,b", r"t\.csv: \.csv files are not read; turn it into JSON lines"),
        ("t.csv.gz", "", r"t\.csv\.gz: \.csv files are not read"),
        ("t.jsonl.gz", "no", r"t\.jsonl\.gz: cannot be unpacked"),
        ("t.jsonl.xz", "no", r"t\.jsonl\.xz: cannot be unpacked"),
        ("t.jsonl.zst", "no", r"t\.jsonl\.zst: cannot be unpacked"),
        ("t.zip", "", r"t\.zip: \.zip files are not read; unpack it first"),
        (
            "t.jsonl",
            '{"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]}',
            r"t\.jsonl:1: the chat holds more than text \(image\)",
        ),
        (
            "t.jsonl",
            '{"images": ["a.png"], "messages": [{"role": "user", "content": "?"}]}',
            r"t\.jsonl:1: the chat holds more than text \(images\)",
        ),
    ],
)
def test_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said):
        read_documents(tmp_path / name)


def test_pieces_of_text(tmp_path: Path) -> None:
    text = "".join(f"line {number}\r\n" for number in range(3000)) + " \r\n"
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = read_documents(tmp_path / "t.txt").found
    assert "".join(found) == text.replace("\r\n", "\n") and all(8000 <= len(each) < 8010 for each in found[:-1])
    for cut in (pieces("word " * 100, 32, within_lines=True), pieces("a" * 500, 32, within_lines=True)):
        assert 10 < len(cut) < 20 and max(map(len, cut)) <= 64
    assert pieces("word " * 100, 32) == ["word " * 100]


RECORDS = [{"messages": [ASK, SAY], "id": 1}, {"messages": [SAY], "id": 2}]


def test_packed(tmp_path: Path) -> None:
    data = lines(tmp_path, *RECORDS).read_bytes()
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(data))
    (tmp_path / "t.jsonl.bz2").write_bytes(bz2.compress(data))
    (tmp_path / "T.JSONL.XZ").write_bytes(lzma.compress(data))
    with pyarrow.CompressedOutputStream(str(tmp_path / "t.jsonl.zst"), "zstd") as file:
        file.write(data)
    for name in ("t.jsonl.gz", "t.jsonl.bz2", "T.JSONL.XZ", "t.jsonl.zst"):
        read = read_documents(tmp_path / name)
        assert list(read.found) == [[ASK, SAY], [SAY]] and read.kind == "records read by `messages`"


def test_what_grows_too_large_when_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmc.documents._MOST_BYTES", 1000)
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(b"a" * 1001))
    with pytest.raises(InputError, match=r"t\.txt\.gz: larger than the 1,000 bytes .* unpacked"):
        read_documents(tmp_path / "t.txt.gz")


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
    read = read_documents(path)
    assert list(read.found) == [[ASK, SAY], [SAY]] and read.kind == "records read by `messages`"
    parquet.write_table(pyarrow.table({"text": ["a", "b", None], "embedding": [[1.0]] * 3}), path)
    found = read_documents(path).found
    assert found[:2] == ["a", "b"] and len(found) == 3
    with pytest.raises(InputError, match=r"t\.parquet: row 3: `text` is null"):
        found[2]
    parquet.write_table(pyarrow.table({"body": ["a"]}), path)
    with pytest.raises(InputError, match=r"t\.parquet: row 1: has the keys 'body'"):
        read_documents(path)


def test_folder(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / ".git").mkdir()
    parquet.write_table(pyarrow.table({"text": ["p", "q"]}), folder / "b" / "c.parquet")
    lines(folder, *RECORDS, name="z.jsonl")
    (folder / "a.py").write_text("print()\n")
    (folder / ".git" / "x.txt").write_text("hidden")
    (folder / "picture.png").write_bytes(b"\x89PNG\xff")
    (folder / "package.json").write_text('{"name": "a"}')
    read = read_documents(folder)
    assert list(read.found) == ["print()\n", "p", "q", [ASK, SAY], [SAY]]
    assert read.kind.startswith("3 files of text, 2 others left out: pieces of text and records read by `text`")
    lines(folder, {"body": 1}, name="z.jsonl")
    with pytest.raises(InputError, match=r"z\.jsonl:1: has the keys 'body'"):
        read_documents(folder)
    with pytest.raises(InputError, match=r"texts/\.git: holds no file of text"):
        shutil.rmtree(folder / "b")
        (folder / ".git" / "x.txt").unlink()
        read_documents(folder / ".git")


@pytest.fixture
def checkpoint(small_model: Path, tmp_path: Path) -> Checkpoint:
    """Its template writes <bos> and, behind answers, <eos>."""
    folder = Path(shutil.copytree(small_model, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(
        "<bos>{% for m in messages %}{{ m.role[0] }}:{{ m.content }}"
        "{% if m.role != 'user' %}<eos>\n{% endif %}{% endfor %}"
    )
    return Checkpoint.open(folder)


def calibrated(checkpoint: Checkpoint, path: Path, samples: int, length: int) -> str:
    """The calibration text, special tokens too."""
    read = read_texts(
        Calibration(text=path.name, samples=samples, length=length), Check(tokens=128), checkpoint, path.parent
    )
    tokenizer = Tokenizer(checkpoint.path, checkpoint.spec.vocab_size)
    return tokenizer.decode(read.calibration.ravel().tolist(), skip_special_tokens=False)


def test_chats_are_calibrated_on_as_the_template_writes_them(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = lines(tmp_path, *[{"messages": [ASK, SAY]}] * 20)
    chat = "<bos>u:你好a:Hi\u2028!<eos>\n"
    length = len(Tokenizer(checkpoint.path, checkpoint.spec.vocab_size).encode(chat).ids)
    assert calibrated(checkpoint, path, 4, 2 * length) == chat * 8
    (checkpoint.path / "chat_template.jinja").unlink()
    chat = "你好\nHi\u2028!<eos>"
    length = len(Tokenizer(checkpoint.path, checkpoint.spec.vocab_size).encode(chat).ids)
    assert calibrated(checkpoint, path, 4, 2 * length) == chat * 8


def test_records_are_documents(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = lines(tmp_path, *[{"text": "a" * 9}] * 40, {"text": ""})
    text = calibrated(checkpoint, path, 10, 16)
    assert text.count("aaaaaaaaa<eos>") == 16
    read = read_texts(Calibration(text=path.name, samples=2, length=16), Check(tokens=128), checkpoint, tmp_path)
    assert "calibration: records read by `text`" in read.note


def both(checkpoint: Checkpoint, folder: Path, text: str, tokens: int) -> Texts:
    (folder / "t.txt").write_text(text)
    samples = Calibration(text="t.txt", samples=3, length=tokens)
    return read_texts(samples, Check(text="t.txt", tokens=tokens, length=tokens), checkpoint, folder)


@pytest.mark.parametrize("text", ["word " * 100, "a" * 500, "line\n" * 100, "one line\n" + "word " * 100])
def test_a_short_text_serves_both_purposes(checkpoint: Checkpoint, tmp_path: Path, text: str) -> None:
    read = both(checkpoint, tmp_path, text, 64)
    assert read.calibration.shape == (3, 64) and read.check.shape == (1, 64)


def test_one_that_is_too_short_is_told_what_there_is(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"calibration.text t.txt has 199 tokens for the calibration, but 3 windows of 128"
    ):
        both(checkpoint, tmp_path, "word " * 50, 128)
    with pytest.raises(InputError, match="too few documents"):
        both(checkpoint, tmp_path, "", 64)


def test_no_more_is_tokenized_than_is_needed(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.txt").write_text("word " * 800_000)  # one line
    read: list[int] = []
    encode = Tokenizer.encode
    monkeypatch.setattr(
        Tokenizer,
        "encode",
        lambda self, text, *rest, **more: read.append(len(text)) or encode(self, text, *rest, **more),
    )
    texts = read_texts(Calibration(text="t.txt", samples=4, length=64), Check(tokens=128), checkpoint, tmp_path)
    assert texts.calibration.shape == (4, 64) and max(read) < 1_100_000
