"""Documents as tokens in files: against nanoGPT's way of writing them, cut off in the middle, and damaged."""

import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from helpers import one_sentence, run

from common import openwebtext as owt
from common.data import DataError

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
def test_cut_off_and_gone_on(here, monkeypatch, cut):
    path = write_documents(here / "docs.jsonl", TEXTS)
    whole = [np.asarray(words).copy() for words in owt.read(path, val_share=0.3)[:2]]
    monkeypatch.setenv("RAMPUP_DATA", str(here / "again"))
    monkeypatch.setattr(owt, "DOCUMENTS", 6)  # 12 documents and 28 are 2 notes and 5
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
    for part in (here / "again").rglob("*.part"):
        part.write_bytes(part.read_bytes() + b"half a token")
    for words, expected in zip(owt.read(path, val_share=0.3), whole):
        assert np.array_equal(words, expected)
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
    rows = owt.windows(owt.open_tokens(here / "a.bin", 100), [0, 95, 7], 5)
    assert rows.dtype == np.int64
    assert rows.tolist() == [list(range(start, start + 5)) for start in (0, 95, 7)]
    assert np.array_equal(owt.windows(words, [3], 4), [[3, 4, 5, 6]])


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
        (lambda here: here / "none.parquet", "is no file or folder of documents"),
        (lambda here: here, "is no file or folder of documents"),  # an empty one
        (lambda here: write_documents(here / "docs.csv", TEXTS), "it takes one kind out of .parquet, .json"),
        (lambda here: write_documents(here / "docs.jsonl", TEXTS[:1]), "1 documents are too few"),
        (lambda here: write_documents(here / "docs.jsonl", [*TEXTS, None]), "has no text: leave it out"),
    ],
)
def test_documents_that_are_refused(here, prepare, message):
    with pytest.raises(DataError, match=message):
        owt.read(prepare(here))


def test_half_downloaded_parquet(here):
    path = write_documents(here / "docs.parquet", TEXTS)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"cannot read documents from .*docs.parquet \(.*: fetch it again"):
        owt.read(path)
    write_documents(path, TEXTS)
    assert len(owt.read(path)[0]) > 100  # nothing of the first attempt is left


def test_renamed_column(here):
    (here / "docs.jsonl").write_text('{"content": "a"}\n' * 5)
    with pytest.raises(DataError, match='has the columns content, but none "text"'):
        owt.read(here / "docs.jsonl")


def test_damaged_tokens(here):
    path = write_documents(here / "docs.jsonl", TEXTS * 5)
    owt.read(path)
    file = next((here / "data").rglob("train.bin"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-2])
    with pytest.raises(DataError, match=r"train.bin has \d+ bytes, not \d+: delete the folder"):
        owt.read(path)
    file.write_bytes(b"\xff\xff" + whole[2:])  # 65,535 is no token
    with pytest.raises(DataError, match=r"train.bin holds 65535, which is no token"):
        owt.read(path)
    one_sentence(run(17, *FLAGS, "--data", path, "--out", here / "out"), "train.bin holds 65535, which is no token")
    train = np.memmap(file, np.uint16, "r")  # a larger file is not looked through at the start
    with pytest.raises(DataError, match=r"train.bin holds 65535, which is no token"):
        owt.windows(train, [5, 0], 4)
    assert owt.windows(train, [5, 1], 4).shape == (2, 4)


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
    code = "from common import openwebtext, record\nwith record.clean_exit(): openwebtext.encoding()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)
    one_sentence(result, "GPT-2's vocabulary is not in", "go online once, or set TIKTOKEN_CACHE_DIR")
