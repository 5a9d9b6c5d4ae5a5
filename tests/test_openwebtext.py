"""Documents as tokens in files: against nanoGPT's way of writing them, cut off in the middle, and damaged."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
import weakref

from common import openwebtext as owt
from common.data import DataError

import numpy as np
import pytest
from helpers import one_sentence, run
from hypothesis import given, settings
from hypothesis import strategies as st

FLAGS = ["--block-size", 16, "--channels", 16, "--layers", 1, "--heads", 2, "--batch-size", 4, "--device", "cpu"]


@pytest.fixture
def here(openwebtext, tmp_path, monkeypatch):
    """Return a folder that tokens go to, empty at the start of each test."""
    monkeypatch.setenv("RAMPUP_DATA", str(tmp_path / "data"))
    return tmp_path


def write_documents(path, texts):
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    elif path.suffix == ".txt":
        path.write_text("\n\n".join(texts), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def documents_of(words, gpt2):
    """Return the documents that a file of tokens holds."""
    ends = np.flatnonzero(words == owt.END_OF_TEXT)
    assert ends[-1] == len(words) - 1  # one behind the last, too
    return [gpt2.decode(part[:-1].tolist()) for part in np.split(np.asarray(words), ends[:-1] + 1)]


def read_texts(path, **options):
    """Return the documents that read() makes of a user's files, sorted."""
    train, val, gpt2 = owt.read(path, **options)
    return sorted(documents_of(train, gpt2) + documents_of(val, gpt2))


TEXTS = [f"Document {i}, with a number: {i * i}.\nAnd “quotes”, 日本語, 🙂." for i in range(40)]


def test_sample_is_nanogpts_file(openwebtext):
    """The same split, tokens and order as by train_test_split, encode_ordinary and end-of-text behind each document."""
    import datasets
    import tiktoken

    train, val, _ = owt.read(openwebtext)
    with open(openwebtext / "docs.jsonl", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    splits = datasets.Dataset.from_dict({"text": texts}).train_test_split(test_size=0.02, seed=2357, shuffle=True)
    gpt2 = tiktoken.get_encoding("gpt2")
    for words, split, documents in ((train, "train", 980), (val, "test", 20)):
        assert words.dtype == np.uint16
        assert len(splits[split]) == documents
        theirs = [[*gpt2.encode_ordinary(text), gpt2.eot_token] for text in splits[split]["text"]]
        assert np.array_equal(words, np.concatenate(theirs))
    assert len(train) + len(val) == 1_203_184


@pytest.mark.parametrize("name", ["docs.parquet", "docs.jsonl", "docs.json", "docs.txt"])
def test_kinds_of_files(here, name):
    path = write_documents(here / name, TEXTS)
    train, val, gpt2 = owt.read(path, val_share=0.1)
    assert isinstance(train, np.memmap)
    assert len(documents_of(val, gpt2)) == 4
    assert sorted(documents_of(train, gpt2) + documents_of(val, gpt2)) == sorted(TEXTS)


def test_folder_of_files(here):
    (here / "many").mkdir()
    for i in range(3):
        write_documents(here / "many" / f"{i}.parquet", TEXTS[i::3])
    train, val, gpt2 = owt.read(here / "many", val_share=0.1)
    assert sorted(documents_of(train, gpt2) + documents_of(val, gpt2)) == sorted(TEXTS)


def test_hidden_and_other_files_are_passed_over(here, capsys):
    """What other programs leave in a folder would double the documents, and so tell the validation ones in training."""
    folder = here / ".home" / "docs"  # what is hidden above is the user's business
    for hidden in (".ipynb_checkpoints", ".git/a", "sub", "folder.jsonl"):
        (folder / hidden).mkdir(parents=True)
    path = write_documents(folder / "docs.jsonl", TEXTS)
    (folder / "sub" / "more.JSONL").write_text('{"text": "more"}\n')
    for copy in ("._docs.jsonl", ".DS_Store", ".ipynb_checkpoints/docs-checkpoint.jsonl", ".git/a/b.jsonl"):
        shutil.copy(path, folder / copy)
    (folder / "notes.csv").write_text("a,b\n")
    (here / "elsewhere.jsonl").write_text('{"text": "elsewhere"}\n')
    (folder / "link.jsonl").symlink_to(here / "elsewhere.jsonl")
    (folder / "again.jsonl").symlink_to(path)  # the same file once more
    (folder / "gone.jsonl").symlink_to(here / "gone.jsonl")
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "loop.jsonl").symlink_to(folder / "loop.jsonl")
    os.mkfifo(folder / "pipe.jsonl")
    assert read_texts(folder) == sorted([*TEXTS, "elsewhere", "more"])
    line = f"{folder}: 3 files of documents; skipped 4 hidden files and 5 others\n"
    assert capsys.readouterr().out.count(line) == 1
    assert read_texts(folder / "._docs.jsonl") == sorted(TEXTS)  # named, it is meant


@pytest.mark.parametrize("kind", [".jsonl", ".txt", ".parquet"])
@pytest.mark.parametrize("name", ["docs [v2]", "a*", "a?b", "[!a]", "x::y", "a%20b", "{a,b}", "#1", "~", "日本"])
def test_path_is_no_pattern(here, name, kind):
    for other in ("docs v", "docs 2", "ab", "acb", "b", "a", "x", "y"):
        write_documents(here / f"{other}{kind}", ["no", "no"])
    (here / name).mkdir()
    assert read_texts(write_documents(here / f"{name}{kind}", TEXTS)) == sorted(TEXTS)
    write_documents(here / name / f"docs{kind}", TEXTS)
    assert read_texts(here / name) == sorted(TEXTS)


@pytest.mark.parametrize("name", ["docs.txt", "docs.jsonl", "docs.jsonl.gz", "docs.json.gz", "docs.txt.gz"])
def test_packed_and_then_changed(here, name):
    """gzip is told by the bytes, and what a file held before is not what it holds; not even at the same time."""
    for texts in (TEXTS, ["other", *TEXTS[3:]]):
        plain = write_documents(here / ("plain.txt" if ".txt" in name else "plain.jsonl"), texts)
        (here / name).write_bytes(gzip.compress(plain.read_bytes()))
        os.utime(here / name, (1, 1))
        assert read_texts(here / name) == sorted(texts)
        os.utime(plain, (1, 1))
        assert read_texts(plain) == sorted(texts)


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("Ann\nBob\n\ufeffEve\n", ["Ann", "Bob", "\ufeffEve"]),
        ("\ufeffAnn\r\nBob\r\nEve", ["Ann", "Bob", "Eve"]),
        ("\n \n\nAnn\nBob\n\n\n", ["Ann", "Bob"]),
        ("Ann\nA.\n\nBob\nB.", ["Ann\nA.", "Bob\nB."]),
        ("Ann \r\n A.\r\n\r\nBob\r\nB.\r\n", ["Ann \n A.", "Bob\nB."]),
        ("Ann\n \t\n\u3000\nBob\nB.\n \n", ["Ann", "Bob\nB."]),
    ],
)
def test_documents_of_a_text(here, content, texts):
    """Blank lines part them, with blanks in them or not; where they part nothing, as in a list of names, lines do."""
    (here / "docs.txt").write_bytes(content.encode())
    assert read_texts(here / "docs.txt") == sorted(texts)


TEXT = st.text() | st.text(" \n\t\r\x0b\x1c\x85\xa0\u2003\u3000aé日7-'s🙂", max_size=60)
RUNS = st.lists(st.tuples(st.sampled_from(" \n\t\u3000\x1c"), st.integers(1, 3_000), TEXT), max_size=4)


@settings(max_examples=300, deadline=None)
@given(TEXT, RUNS, st.integers(1, 40))
def test_pieces_have_the_tokens_of_the_whole(start, runs, blanks):
    """Against tiktoken on the whole text, cut wherever it may be."""
    text = start + "".join(blank * count + rest for blank, count, rest in runs)
    gpt2 = owt.encoding()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owt, "BLANKS", blanks)
        found = list(owt.pieces(text))
    assert "".join(found) == text
    assert [token for piece in found for token in gpt2.encode_ordinary(piece)] == gpt2.encode_ordinary(text)


def test_blanks():
    """Those that Unicode calls white space, which is what tiktoken's regular expression goes by."""
    found = {chr(code) for code in range(sys.maxunicode + 1) if owt.BLANK.match(chr(code))}
    assert found == {chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()} - set("\x1c\x1d\x1e\x1f")


@pytest.mark.parametrize("blank", [" ", "\n", "\t", " \n", "\u3000"])
def test_a_million_blanks(here, blank):
    """tiktoken gives up a run of so many before another character."""
    texts = [f"a{blank * 1_000_000} b", f"{blank * 600_000}c{blank * 1_300_000}", *"de"]
    assert read_texts(write_documents(here / "docs.jsonl", texts), val_share=0.5) == sorted(texts)


def test_special_and_empty_documents(here):
    """The name of the end-of-text token in a text is a text; a document may be empty."""
    texts = ["<|endoftext|>", "", " " * 5_000, *TEXTS]
    train, val, gpt2 = owt.read(write_documents(here / "docs.jsonl", texts), val_share=0.1)
    found = documents_of(train, gpt2) + documents_of(val, gpt2)
    assert {"<|endoftext|>", "", " " * 5_000} <= set(found)
    assert len(found) == 43


def test_tokens_are_used_again(here, monkeypatch):
    path = write_documents(here / "docs.jsonl", TEXTS)
    first, _, _ = owt.read(path)
    monkeypatch.setattr(owt, "load_documents", lambda *args: pytest.fail("read again"))
    again, _, _ = owt.read(path)
    assert np.array_equal(first, again)
    monkeypatch.undo()
    os.utime(path, (1, 1))  # another version of the file
    monkeypatch.setenv("RAMPUP_DATA", str(here / "data"))
    assert len(list((here / "data" / "openwebtext").glob("docs-*"))) == 1
    owt.read(path)
    owt.read(path, val_share=0.5)
    assert len(list((here / "data" / "openwebtext").glob("docs-*"))) == 3


@pytest.mark.parametrize("cut", [1, 2, 4, 6])
def test_cut_off_and_gone_on(here, monkeypatch, capsys, cut):
    path = write_documents(here / "docs.jsonl", TEXTS)
    whole = [np.asarray(words).copy() for words in owt.read(path, val_share=0.3)[:2]]
    monkeypatch.setenv("RAMPUP_DATA", str(here / "again"))
    monkeypatch.setattr(owt, "DOCUMENTS", 6)
    monkeypatch.setattr(owt, "NOTED", 6)  # 12 documents and 28 are 2 notes and 4
    write, notes = owt.write_json, []

    def stop(name, content):
        notes.append(content)
        if len(notes) == cut:
            raise KeyboardInterrupt
        write(name, content)

    monkeypatch.setattr(owt, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        owt.read(path, val_share=0.3)
    monkeypatch.setattr(owt, "write_json", write)
    kept = len(list((here / "again").rglob("train.json")))
    for part in (here / "again").rglob("*.part"):
        part.write_bytes(part.read_bytes() + b"half a token")
    capsys.readouterr()
    for words, expected in zip(owt.read(path, val_share=0.3), whole):
        assert np.array_equal(words, expected)
    assert f"tokenising {28 - 6 * max(0, cut - 3)} documents" in capsys.readouterr().out
    assert kept == (cut > 3)
    assert not list((here / "again").rglob("*.part"))


def test_two_at_once(here, monkeypatch):
    path, results = write_documents(here / "docs.jsonl", TEXTS), []
    made = []
    prepare = owt.prepare
    monkeypatch.setattr(owt, "prepare", lambda *args: (made.append(1), prepare(*args)))
    threads = [threading.Thread(target=lambda: results.append(owt.read(path)[0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all(np.array_equal(words, results[0]) for words in results)


def test_windows(here):
    words = np.arange(100, dtype=np.uint16)
    words.tofile(here / "a.bin")
    rows = owt.windows(owt.open_tokens(here / "a.bin"), [0, 95, 7], 5)
    assert rows.dtype == np.int64
    assert rows.tolist() == [list(range(start, start + 5)) for start in (0, 95, 7)]
    assert np.array_equal(owt.windows(words, [3], 4), [[3, 4, 5, 6]])


def test_windows_keep_no_file_open(here, monkeypatch):
    """Each call maps the file anew, for what is read through a mapping counts as memory as long as that is there."""
    np.arange(100, dtype=np.uint16).tofile(here / "a.bin")
    words, opened, memmap = np.memmap(here / "a.bin", np.uint16, "r"), [], np.memmap

    def spy(path, *args, **options):
        mapped = memmap(path, *args, **options)
        opened.append((os.fspath(path), weakref.ref(mapped)))
        return mapped

    monkeypatch.setattr(np, "memmap", spy)
    rows = [owt.windows(words, [offset, 90], 10) for offset in (0, 50)]
    assert [path for path, _ in opened] == [str(here / "a.bin")] * 2
    assert all(mapping() is None for _, mapping in opened)  # closed again
    assert [row[0, 0] for row in rows] == [0, 50]


def test_dry_run_reads_nothing(monkeypatch):
    monkeypatch.setenv("RAMPUP_DATA", "/nowhere")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "/nowhere")
    train, val, encoding = owt.read(dry_run=True)
    assert encoding.decode(encoding.encode_ordinary("any text")) == "any text"
    assert train.max() < encoding.n_vocab


# Bad input


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda here: here / "none.parquet", "none.parquet is missing: give a file or a folder with one kind of"),
        (lambda here: here, "has no documents: give a file or a folder with one kind of .parquet, .json, .jsonl"),
        (lambda here: write_documents(here / "docs.csv", TEXTS), "docs.csv has no documents: give a file or a folder"),
        (lambda here: write_documents(here / "docs.jsonl", TEXTS[:1]), "docs.jsonl has 1 documents that are not empty"),
        (lambda here: write_documents(here / "docs.txt", ["", ""]), "docs.txt has 0 documents that are not empty"),
        (lambda here: write_documents(here / "docs.jsonl", ["", "", ""]), "docs.jsonl has 0 documents"),
        (lambda here: write_documents(here / "docs.txt", TEXTS[:1]).parent, "has several kinds of files"),
    ],
)
def test_documents_that_are_refused(here, prepare, message):
    if message == "has several kinds of files":
        write_documents(here / "docs.jsonl", TEXTS)
    with pytest.raises(DataError, match=message):
        owt.read(prepare(here))


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ({"text": None}, 'its "text" is null, not a string'),
        ({"text": 7}, 'its "text" is int, not a string'),
        ({"title": "a", "body": "b"}, "it has ['title', 'body'], but no \"text\""),
        (["a"], 'it has list, but no "text"'),
        ({"text": "\ud83d"}, "it is not UTF-8"),
    ],
)
@pytest.mark.parametrize(("name", "place"), [("b.jsonl", "line 32"), ("b.jsonl.gz", "line 32"), ("b.json", "item 31")])
def test_place_of_a_document_that_is_no_text(here, name, place, bad, what):
    """The place is the one in the user's file, with blank lines, and not the one after shuffling."""
    rows = [*({"text": text} for text in TEXTS[:30]), bad, {"text": "a"}]
    content = json.dumps(rows, indent=1) if name == "b.json" else "\n" + "".join(json.dumps(row) + "\n" for row in rows)
    write_documents(here / "a.jsonl", TEXTS)
    (here / name).write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    with pytest.raises(DataError) as error:
        owt.read(here)
    assert f"cannot read {place} of {here / name} ({what}): expected is" in str(error.value)


def test_place_in_parquet(here):
    write_documents(here / "a.parquet", TEXTS)
    write_documents(here / "b.parquet", [*TEXTS * 30, None, "a"])  # more than are read at once
    with pytest.raises(DataError, match=r'cannot read row 1201 of .*b.parquet \(its "text" is null, not a string\)'):
        owt.read(here)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"', r"cannot read line 2 of .*a.jsonl \(Expecting ',' delimiter\)"),
        ("a.json", b'[{"text": "a"},\n{"text": "b"}', r"the content of .*a.json \(Expecting ',' delimiter: line 2 col"),
        ("a.json", b"[" * 100_000, r"cannot read the content of .*a.json \(.*; fix or remove the file"),
        ("a.json", b'{\n "text": "a"\n}', r"line 1 of .*\(Expecting property name.*expected is .* on every line, or a"),
        ("a.txt", b"a\n\nb\n\nc\xff", r"cannot read line 5 of .*a.txt \(it is not UTF-8\): expected is UTF-8"),
        ("a.txt", "a\nb\nc".encode("utf-16"), r"cannot read line 1 of .*a.txt \(it is not UTF-8\)"),
        ("a.txt", b"a\nb\nc\0d", r"cannot read line 3 of .*a.txt \(it has a NUL byte, so it is not a text\)"),
        (
            "a.txt",
            gzip.compress(os.urandom(300).hex().encode())[:-90],
            r"cannot read the content of .*\(Compressed file",
        ),
        (
            "a.parquet",
            b"",
            r"cannot read the content of .*a.parquet \(.*\): expected is a column \"text\" of strings",
        ),
    ],
)
def test_file_that_cannot_be_read(here, name, content, message):
    (here / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        owt.read(here / name)


def test_half_downloaded_parquet(here):
    path = write_documents(here / "docs.parquet", TEXTS)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"cannot read the content of .*docs.parquet \(Parquet magic bytes not found"):
        owt.read(path)
    write_documents(path, TEXTS)
    assert len(owt.read(path)[0]) > 100  # nothing of the first attempt is left


def test_renamed_column(here):
    write_documents(here / "docs.parquet", TEXTS)
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"content": TEXTS, "id": range(40)}), here / "docs.parquet")
    with pytest.raises(DataError, match=r'row 1 of .*docs.parquet \(it has \[.content., .id.\], but no "text"\)'):
        owt.read(here / "docs.parquet")


@pytest.mark.parametrize("share", [1.5, 1.0, 0.0, -0.1, float("nan")])
def test_share_out_of_range(here, share):
    with pytest.raises(DataError, match="--val-share must be above 0 and below 1, not"):
        owt.read(write_documents(here / "docs.jsonl", TEXTS), val_share=share)


def test_share_that_leaves_nothing(here):
    path = write_documents(here / "docs.jsonl", TEXTS[:3])
    assert len(read_texts(path, val_share=0.5)) == 3
    with pytest.raises(DataError, match=r"--val-share 0.9 of 3 documents leaves none for training: lower it"):
        owt.read(path, val_share=0.9)


def test_program(here):
    """What the program says to a user, of whom it takes the same flags as the exercise does."""
    path = write_documents(here / "names.txt", [f"name {i}" for i in range(100)])
    command = [sys.executable, "-m", "common.openwebtext", "--data", str(path), "--val-share"]
    result = subprocess.run([*command, "0.5"], capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "150 training and 150 validation tokens"
    one_sentence(
        subprocess.run([*command, "1.5"], capture_output=True, text=True, timeout=60), "error: --val-share must be"
    )


def test_tokens_of_nanogpt(here, capsys, monkeypatch):
    """A folder with train.bin and val.bin is read as it is, and checked once; what is not GPT-2's tokens is refused."""
    folder = here / "theirs"
    folder.mkdir()
    for name, count in (("train", 500), ("val", 50)):
        (np.arange(count, dtype=np.uint16) + 50_257 - count).tofile(folder / f"{name}.bin")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    train, val, _ = owt.read(folder)
    assert (train[0], train[-1], len(train), val[0], len(val)) == (49_757, 50_256, 500, 50_207, 50)
    assert {path.name: path.read_bytes() for path in folder.glob("*.bin")} == before
    assert json.loads((folder / "tokens.json").read_text()) == {"train": 500, "val": 50}
    assert capsys.readouterr().out.count("checking ") == 2
    owt.read(folder)
    assert "checking " not in capsys.readouterr().out
    assert not (here / "data").exists()  # nothing is copied
    np.full(9, 50_257, np.uint16).tofile(folder / "train.bin")  # the sizes differ: all is checked again
    with pytest.raises(DataError, match=r"train.bin holds 50257, above the largest token id 50256"):
        owt.read(folder)
    assert json.loads((folder / "tokens.json").read_text())["train"] == 500  # not counted before it is checked
    np.arange(9, dtype=np.uint16).tofile(folder / "train.bin")
    (folder / "val.bin").write_bytes(b"odd")
    with pytest.raises(DataError, match=r"val.bin does not hold GPT-2's tokens as 16-bit numbers: give another folder"):
        owt.read(folder)
    np.arange(9, dtype=np.uint16).tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(b"")  # of nanoGPT's shakespeare_char: characters
    with pytest.raises(DataError, match=r"train.bin does not hold GPT-2's tokens"):
        owt.read(folder)


def test_damaged_tokens(here, capsys):
    """A file of another size is made again; one that holds what is no token is for the user to delete."""
    path = write_documents(here / "docs.jsonl", TEXTS * 5)
    owt.read(path)
    file = next((here / "data").rglob("train.bin"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-2])
    capsys.readouterr()
    owt.read(path)
    assert capsys.readouterr().out.count("are damaged: they are made again\n") == 1
    assert file.read_bytes() == whole
    file.with_name("val.bin").unlink()
    owt.read(path)
    file.write_bytes(b"\xff\xff" + whole[2:])  # 65,535 is no token
    with pytest.raises(DataError, match=r"train.bin holds 65535, above the largest token id"):
        owt.read(path)
    one_sentence(run(17, *FLAGS, "--data", path, "--out", here / "out"), "train.bin holds 65535, above")
    train = np.memmap(file, np.uint16, "r")  # a larger file is not looked through at the start
    with pytest.raises(DataError, match=r"train.bin holds 65535, above the largest token id 50256"):
        owt.windows(train, [5, 0], 4)
    assert owt.windows(train, [5, 1], 4).shape == (2, 4)


NOTES = [
    *(b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"[]", b"7", b"{}"),
    *(b"{%s: 1}", b'{%s: "1", %s: "1"}', b"{%s: -1, %s: -1}", b"{%s: 0, %s: 0}", b"{%s: 1.5, %s: 1e400}"),
    *(b"{%s: true, %s: true}", b"{%s: null, %s: 1}", b"{%s: 18446744073709551616, %s: 18446744073709551616}"),
    *(b"{%s: 1, %s: 1}", b'{%s: 1, %s: 1, "more": 1}'),
]


@pytest.mark.parametrize("note", NOTES)
def test_tokens_json_that_is_not_as_it_was_written(here, capsys, note):
    path = write_documents(here / "docs.jsonl", TEXTS)
    whole = [np.asarray(words).copy() for words in owt.read(path)[:2]]
    written = next((here / "data").rglob("tokens.json"))
    content = written.read_bytes()
    written.write_bytes(note % tuple([b'"train"', b'"val"'][: note.count(b"%s")]))
    capsys.readouterr()
    for words, expected in zip(owt.read(path), whole):
        assert np.array_equal(words, expected)
    assert capsys.readouterr().out.count("made again") == 1
    assert written.read_bytes() == content


@pytest.fixture
def cut(here, monkeypatch):
    """Return a file of 40 documents, what their tokens are, and the .part and note of a run that had 20 of them."""
    path = write_documents(here / "docs.jsonl", TEXTS)
    whole = [np.asarray(words).copy() for words in owt.read(path)[:2]]
    shutil.rmtree(here / "data")
    for name in ("DOCUMENTS", "NOTED"):
        monkeypatch.setattr(owt, name, 10)
    write = owt.write_json

    def stop(note, content):
        write(note, content)
        if content.get("documents") == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(owt, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        owt.read(path)
    monkeypatch.setattr(owt, "write_json", write)
    return path, whole, next((here / "data").rglob("train.part")), next((here / "data").rglob("train.json"))


@pytest.mark.parametrize("content", [*NOTES, (19, 0), (40, 0), (10**9, 0), (20, -1), (20, 3)])
def test_note_that_is_not_as_it_was_written(cut, capsys, content):
    """Neither is it believed where it could be true: so many documents, and so many tokens more than those of 20."""
    path, whole, part, note = cut
    if isinstance(content, tuple):
        tokens = json.loads(note.read_bytes())["tokens"] + content[1]
        content = b"{%%s: %d, %%s: %d}" % (content[0], tokens)
    part.write_bytes(part.read_bytes() + b"\1\0" * 5)  # the next document's, of which the note does not know
    note.write_bytes(content % tuple([b'"documents"', b'"tokens"'][: content.count(b"%s")]))
    capsys.readouterr()
    for words, expected in zip(owt.read(path), whole):
        assert np.array_equal(words, expected)
    assert capsys.readouterr().out.count("train.part does not agree with train.json: it is written again") == 1
    assert not note.exists()


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:-200] + bytes(200)])
def test_part_that_is_not_as_it_was_written(cut, capsys, damage):
    """As after a loss of power: it is shorter, or has zeros."""
    path, whole, part, _ = cut
    part.write_bytes(damage(part.read_bytes()[: 2 * json.loads(part.with_suffix(".json").read_bytes())["tokens"]]))
    capsys.readouterr()
    for words, expected in zip(owt.read(path), whole):
        assert np.array_equal(words, expected)
    assert capsys.readouterr().out.count("written again from the start") == 1


def test_on_the_disk_before_it_is_believed(here, monkeypatch):
    """The .part is on the disk as far as the note says before the note is written, and all before tokens.json is."""
    path, on_disk, told = write_documents(here / "docs.jsonl", TEXTS), {}, []
    fsync, write = os.fsync, owt.write_json
    for name in ("DOCUMENTS", "NOTED"):
        monkeypatch.setattr(owt, name, 10)

    def keep(number):
        fsync(number)
        on_disk[os.fstat(number).st_ino] = os.fstat(number).st_size

    def look(note, content):
        told.append(note.name)
        for name, tokens in content.items():
            file = note.with_suffix(".part") if name == "tokens" else note.with_name(f"{name}.bin")
            if name != "documents":
                assert on_disk[file.stat().st_ino] == 2 * tokens
        write(note, content)
        assert on_disk[note.stat().st_ino]

    monkeypatch.setattr(os, "fsync", keep)
    monkeypatch.setattr(owt, "write_json", look)
    owt.read(path)
    assert told == ["train.json"] * 3 + ["tokens.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="no limits there")
@pytest.mark.parametrize("done", [False, True])  # the documents, so that the tokens are what there is no room for
def test_disk_is_full(here, done):
    path = write_documents(here / "docs.jsonl", [f"{text} 1 2 3 4 5 6 7 8 9" * 10 for text in TEXTS])
    if done:
        owt.read(path)
    code = f"""import resource; from pathlib import Path; from common import openwebtext, program
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
with program.clean_exit(): openwebtext.read(Path({str(path)!r}), val_share=0.5)"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    if done:
        one_sentence(result, "error: cannot use", "(File too large): fix that, or set RAMPUP_DATA to another folder")
    else:
        one_sentence(result, f"error: cannot prepare the documents of {path} in", "(File too large): fix that, or")
    assert ("tokenising" in result.stdout) == done


def test_damaged_cache(here):
    """What `datasets` has kept of the documents is a copy, which the user may delete; its order is made anew anyway."""
    path = write_documents(here / "docs.jsonl", TEXTS)
    owt.read(path, val_share=0.3)
    copies = sorted((here / "data").rglob("*.arrow"))
    assert len(copies) == 3
    for copy in copies:
        content = copy.read_bytes()
        copy.unlink()  # it is memory-mapped
        copy.write_bytes(b"")
        shutil.rmtree(next((here / "data").rglob("tokens.json")).parent)
        if copy.name.startswith("generator-"):
            with pytest.raises(DataError, match=r"the documents of .*docs.jsonl in .*cache \(.*delete what is damaged"):
                owt.read(path, val_share=0.3)
            copy.unlink()
            copy.write_bytes(content)
        assert read_texts(path, val_share=0.3) == sorted(TEXTS)


def test_whole_set_is_counted(here, monkeypatch, capsys):
    """All of OpenWebText should have as many tokens as nanoGPT found in it; else one is told, and may go on."""
    import datasets

    monkeypatch.setattr(owt, "load_documents", lambda *args: datasets.Dataset.from_dict({"text": TEXTS}))
    warning = "tokens, but nanoGPT found {'train': 9035582198, 'val': 4434897}"
    train, val, _ = owt.read(whole=True)
    assert warning in capsys.readouterr().err
    monkeypatch.setattr(owt, "WHOLE_TOKENS", {"train": len(train), "val": len(val)})
    shutil.rmtree(here / "data")
    owt.read(whole=True)
    assert "warning" not in capsys.readouterr().err


def test_prepared_tokens_need_not_be_writable(here, monkeypatch):
    path = write_documents(here / "docs.jsonl", TEXTS)
    owt.read(path)
    monkeypatch.setattr(owt, "FileLock", lambda *args: pytest.fail("locked"))
    assert len(owt.read(path)[0]) > 100


def test_offline(here, monkeypatch):
    """Without network and data there is one sentence, of the file or of the vocabulary."""
    monkeypatch.setattr(owt, "MIRRORS", ("http://localhost:9/",))
    with pytest.raises(
        DataError, match=r"train-00000-of-00080.parquet is missing and could not be downloaded from.*--data"
    ):
        owt.read()
    env = os.environ | {"TIKTOKEN_CACHE_DIR": str(here / "none"), "http_proxy": "http://localhost:9"}
    env |= {"https_proxy": "http://localhost:9", "no_proxy": "", "NO_PROXY": ""}
    code = "from common import openwebtext, program\nwith program.clean_exit(): openwebtext.encoding()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)
    one_sentence(result, "GPT-2's vocabulary is not in", "go online once, or set TIKTOKEN_CACHE_DIR")
