"""OpenWebText, or documents of your own, as GPT-2's tokens in files that are read without being loaded.

    python -m common.openwebtext --whole

prepares all of OpenWebText; if interrupted, it continues where it stopped. It writes 16-bit token ids to train.bin and
val.bin: the documents in the order of a fixed shuffle, each followed by an end-of-text token, as in nanoGPT.
"""

import gzip
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from common.checkpoint import whole_file
from common.data import DataError, data_dir, fetch

import numpy as np
from filelock import FileLock
from tqdm import tqdm

REPOSITORY, REVISION = "Skylion007/openwebtext", "79d93d786212f7344586290adb811d4ae6a1762c"  # at huggingface.co
MIRRORS = tuple(
    f"https://{host}/datasets/{REPOSITORY}/resolve/{REVISION}/plain_text/"
    for host in ("huggingface.co", "hf-mirror.com")
)
FIRST_FILE = ("train-00000-of-00080.parquet", "caed9f4b7053d7cd4d1a13ce9ec9224d84a3bba1f11579193562a7e31ebe656e")
WHOLE_TOKENS = {"train": 9_035_582_198, "val": 4_434_897}  # of the whole set at --val-share 0.0005 (nanoGPT)
JSON = '{"text": "…"} on every line, or a list of such objects'
KINDS = {".parquet": 'a column "text" of strings', ".json": JSON, ".jsonl": JSON, ".txt": "UTF-8"}  # what to expect
END_OF_TEXT = 50_256
DOCUMENTS = 2_000  # tokenised before the next ones are read
NOTED = 20_000  # documents between two notes of the progress; a multiple of DOCUMENTS
BLANKS = 500_000  # in a row work; with 1,000,000 before a letter tiktoken's regular expression fails
BLANK = re.compile(r"[^\S\x1c-\x1f]+")  # that expression's \s, without four characters of Python's


def read(data: Path | None = None, whole: bool = False, val_share: float | None = None, dry_run: bool = False):
    """Return training and validation tokens, each (L,), as uint16 in memory-mapped files, and GPT-2's encoding.

    The documents are those of the file or folder `data`; without it, those of OpenWebText, of its first file of 80 or
    of the `whole` set. The share `val_share` of them is for validation; None is 0.0005, or 0.02 of fewer than 100,000.
    A folder `data` that has nanoGPT's train.bin and val.bin is read as it is, once all their token ids are checked.
    Tokens of an earlier call are used again; if several processes ask at once, one works and the others wait. With
    `dry_run` the tokens are random, and nothing is read. Raises DataError if anything is missing or damaged.
    """
    if val_share is not None and not 0 < val_share < 1:
        raise DataError(f"--val-share must be above 0 and below 1, not {val_share}")
    if dry_run:
        tokens = np.random.default_rng(0).integers(0, 256, 630_000, np.uint16)
        return tokens[:-30_000], tokens[-30_000:], encoding(dry_run)
    given = data is not None and (data / "train.bin").exists() and (data / "val.bin").exists()
    folder = data if given else data_dir() / "openwebtext" / _name(data, whole, val_share)
    try:
        if not _is_prepared(folder):  # if it is, the folder need not be writable
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                if given and not _is_prepared(folder):
                    count_tokens(folder)
                elif not _is_prepared(folder):  # no other process was quicker
                    if (folder / "tokens.json").exists():
                        print(f"the tokens in {folder} are damaged: they are made again", flush=True)
                    prepare(folder, load_documents(data, whole), val_share, whole and data is None)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"cannot use {folder} ({reason}): fix that, or set RAMPUP_DATA to another folder") from None
    return *(open_tokens(folder / f"{split}.bin") for split in ("train", "val")), encoding()


def encoding(dry_run: bool = False):
    """Return GPT-2's encoding of texts, with 50,257 tokens (tiktoken's); with `dry_run` one of bytes.

    tiktoken downloads it, 1.5 MB, into $TIKTOKEN_CACHE_DIR, here by default into data/tiktoken_cache, and verifies it.
    """
    import tiktoken

    if dry_run:
        ranks = {bytes([byte]): byte for byte in range(256)}
        special = {"<|endoftext|>": 256}
        return tiktoken.Encoding("bytes", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens=special)
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(data_dir() / "tiktoken_cache"))
    try:
        return tiktoken.get_encoding("gpt2")
    except OSError as error:  # requests' errors are such
        raise DataError(
            f"GPT-2's vocabulary is not in {os.environ['TIKTOKEN_CACHE_DIR']} and could not be downloaded "
            f"({type(error).__name__}): go online once, or set TIKTOKEN_CACHE_DIR to a folder that has it"
        ) from None


def load_documents(path: Path | None, whole: bool):
    """Return the documents as a `datasets.Dataset` with a column "text", memory-mapped; DataError if there are none.

    In a .txt file blank lines separate the documents; without blank lines between them, every line is a document.
    """
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    cache = str(data_dir() / "openwebtext" / "cache")
    try:
        if path is None and whole:
            print("all of OpenWebText: a download of 24 GB, and 82 GB of disk while it is prepared", flush=True)
            documents = datasets.load_dataset(REPOSITORY, revision=REVISION, split="train", cache_dir=cache)
            return documents.select_columns("text")
        files, passed_over = _files(path) if path else ([_first_file()], "")
        if passed_over:
            print(f"{path}: {len(files)} files of documents; skipped {passed_over}", flush=True)
        features = datasets.Features({"text": datasets.Value("large_string")})  # of texts of more than 2 GB together
        options = {"source": str(path), "versions": _versions(files)}  # by which the cache of datasets recognises them
        return datasets.Dataset.from_generator(documents_of, features, cache, gen_kwargs=options)
    except Exception as error:  # of datasets, pyarrow, fsspec, requests, each with classes of its own
        cause = error.__cause__ or error
        if isinstance(cause, DataError):
            raise cause from None
        raise DataError(
            f"cannot prepare the documents of {path or REPOSITORY} in {cache} ({_why(cause)}): fix that, or delete "
            "what is damaged there, and run again, or give other documents with --data"
        ) from None


def documents_of(source: str, versions: tuple) -> Iterator[dict[str, str]]:
    """Yield the documents of files; a DataError says which file and line has something that is not a text."""
    filled = 0
    for name, *_ in versions:
        place, kind = "the content", _suffix(Path(name))
        try:
            for place, row in _rows(Path(name)):
                row = json.loads(row) if isinstance(row, str) else row
                if not isinstance(row, dict) or "text" not in row:
                    found = repr(list(row))[:100] if isinstance(row, dict) else type(row).__name__
                    raise ValueError(f'it has {found}, but no "text"')
                text = row["text"]
                if not isinstance(text, str):
                    raise ValueError(f'its "text" is {"null" if text is None else type(text).__name__}, not a string')
                text.encode()  # raises where _rows has met bytes that are not UTF-8, or JSON has half a character
                if kind == ".txt" and "\0" in text:
                    raise ValueError("it has a NUL byte, so it is not a text")
                yield {"text": text}
                filled += text != ""
                place = f"what follows {place}"
        except Exception as error:  # of gzip, zlib, json, pyarrow, each with classes of its own
            raise DataError(
                f"cannot read {place} of {name} ({_why(error)}): expected is {KINDS[kind]}; fix or remove the file"
            ) from None
    if filled < 2:
        raise DataError(
            f"{source} has {filled} documents that are not empty, but training and validation need one each: give more "
            "(in a .txt file blank lines separate documents; without any, every line is a document)"
        )


def _rows(file: Path) -> Iterator[tuple[str, object]]:
    """Yield where in a file each document is, and what is there: {"text": …} if all is right, or a line of JSON."""
    kind = _suffix(file)
    if kind == ".parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(file) as table:
            columns = ["text"] if "text" in table.schema_arrow.names else None
            rows = (row for batch in table.iter_batches(1_000, columns=columns) for row in batch.to_pylist())
            yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
        return
    with open(file, "rb") as start:
        opener = gzip.open if start.read(2) == b"\x1f\x8b" else open
    with opener(file, "rt", encoding="utf-8-sig", errors="surrogateescape") as lines:
        if kind == ".txt":
            several = sum(not blank for blank, _ in groupby(lines, str.isspace)) > 1
            lines.seek(0)
            for blank, run in groupby(enumerate(lines, 1), lambda line: line[1].isspace()):
                if several and not blank:
                    numbers, texts = zip(*run)
                    run = [(numbers[0], "".join(texts))]
                yield from ((f"line {number}", {"text": text.removesuffix("\n")}) for number, text in run if not blank)
            return
        first = next((line for line in lines if not line.isspace()), "")
        lines.seek(0)
        if first.lstrip().startswith("["):
            yield from ((f"item {number}", row) for number, row in enumerate(json.load(lines), 1))
        else:
            yield from ((f"line {number}", line) for number, line in enumerate(lines, 1) if not line.isspace())


def prepare(folder: Path, documents, val_share: float | None, whole: bool) -> None:
    """Write train.bin, val.bin and then tokens.json, which has their numbers of tokens, into a folder."""
    count = len(documents)
    share = val_share or (0.0005 if count >= 100_000 else 0.02)
    if math.ceil(share * count) == count:
        raise DataError(f"--val-share {share} of {count} documents leaves none for training: lower it")
    splits = documents.train_test_split(test_size=share, seed=2357, shuffle=True, load_from_cache_file=False)
    counts = {
        name: tokenise(splits[key], folder / f"{name}.bin") for name, key in (("val", "test"), ("train", "train"))
    }
    if whole and not val_share and counts != WHOLE_TOKENS:
        print(f"warning: {counts} tokens, but nanoGPT found {WHOLE_TOKENS}: losses may differ", file=sys.stderr)
    write_json(folder / "tokens.json", counts)


def count_tokens(folder: Path) -> None:
    """Write tokens.json for a folder's train.bin and val.bin; DataError if they do not hold GPT-2's token ids."""
    counts = {}
    for path in (folder / "train.bin", folder / "val.bin"):
        if path.stat().st_size % 2 or not path.stat().st_size or (folder / "meta.pkl").exists():
            raise DataError(f"{path} does not hold GPT-2's tokens as 16-bit numbers: give another folder with --data")
        print(f"checking {path}", flush=True)
        tokens = np.memmap(path, np.uint16, "r")
        for start in range(0, len(tokens), 10_000_000):
            _check(tokens[start : start + 10_000_000], path)
        counts[path.stem] = len(tokens)
    write_json(folder / "tokens.json", counts)


def tokenise(documents, path: Path) -> int:
    """Write the tokens of documents, in their order, as uint16 to a file, and return how many there are.

    It has another name until it is complete, and a note of the progress, from which an interrupted run continues.
    Threads do the work, since tiktoken does not hold Python's lock; at most DOCUMENTS texts are in memory at once.
    """
    part, note = path.with_suffix(".part"), path.with_suffix(".json")
    done = _progress(part, note)
    gpt2, cores = encoding(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    def encode(texts):
        ids = []
        for text in texts:
            ids += [gpt2.encode_to_numpy(piece, disallowed_special=()) for piece in pieces(text)]  # each (n,)
            ids.append([END_OF_TEXT])
        return np.concatenate(ids, dtype=np.uint16, casting="unsafe")

    print(f"tokenising {len(documents) - done['documents']:,} documents into {path}", flush=True)
    bar = {"total": len(documents), "initial": done["documents"], "unit": " documents", "disable": None}
    with open(part, "ab") as file, ThreadPoolExecutor(cores) as pool, tqdm(**bar) as bar:
        file.truncate(2 * done["tokens"])
        for start in range(done["documents"], len(documents), DOCUMENTS):
            texts = documents[start : start + DOCUMENTS]["text"]
            step = -(-len(texts) // (4 * cores))
            for ids in pool.map(encode, [texts[i : i + step] for i in range(0, len(texts), step)]):
                file.write(ids.data)
                done["tokens"] += len(ids)
            done["documents"] = start + len(texts)
            if done["documents"] % NOTED == 0:
                file.flush()
                os.fsync(file.fileno())  # before the note, so that the note is true
                write_json(note, done)
            bar.update(len(texts))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    note.unlink(missing_ok=True)
    return done["tokens"]


def pieces(text: str) -> Iterator[str]:
    """Yield a text in pieces that together have the same tokens, without too many blanks before something else.

    GPT-2's pattern matches a run of blanks without its last one, which may belong to a word: it may be cut there.
    """
    start = 0
    for offset in range(BLANKS, len(text), BLANKS):
        run = BLANK.match(text, offset)
        if run and run.end() < len(text):
            yield text[start : run.end() - 1]
            start = run.end() - 1
    yield text[start:]


def open_tokens(path: Path) -> np.ndarray:
    """Return the tokens (L,) of a file, memory-mapped; DataError if it has numbers that are not token ids."""
    tokens = np.memmap(path, np.uint16, "r")
    _check(tokens[-10_000_000:], path)  # the rest when it is read
    return tokens


def windows(tokens: np.ndarray, offsets: list[int], size: int) -> np.ndarray:
    """Return the windows (B, size) of tokens (L,) that begin at `offsets`, as int64; DataError if one has no token id.

    A memory-mapped file is opened again: else every page that was ever read would count as memory of this process.
    """
    path = getattr(tokens, "filename", None)
    tokens = np.memmap(path, np.uint16, "r") if path else tokens
    rows = np.stack([tokens[offset : offset + size] for offset in offsets])  # (B, size)
    _check(rows, path)
    return rows.astype(np.int64)


def _check(tokens: np.ndarray, path: Path) -> None:
    if (most := tokens.max()) > END_OF_TEXT:
        raise DataError(f"{path} holds {most}, above the largest token id {END_OF_TEXT}: delete it, and make it again")


def write_json(path: Path, content: dict) -> None:
    """Write a small JSON file, whole or not at all."""
    with whole_file(path) as file:
        file.write(json.dumps(content).encode() + b"\n")


def _read_json(path: Path, *names: str) -> dict[str, int] | None:
    """Return what write_json has written, integers by these names; None if the file is missing or another one."""
    try:
        content = json.loads(path.read_bytes()) if path.exists() else None
    except (ValueError, RecursionError):
        return None
    numbers = list(content.values()) if isinstance(content, dict) and content.keys() == set(names) else [None]
    return content if all(type(number) is int and number >= 0 for number in numbers) else None


def _is_prepared(folder: Path) -> bool:
    """Return whether a folder has the token files that its tokens.json describes."""
    counts, files = _read_json(folder / "tokens.json", "train", "val"), (folder / "train.bin", folder / "val.bin")
    return bool(counts) and all(file.exists() and file.stat().st_size == 2 * counts[file.stem] > 0 for file in files)


def _progress(part: Path, note: Path) -> dict[str, int]:
    """Return how many documents and tokens an interrupted run has written: 0 if its note and its file disagree.

    Each document has one end-of-text token, at its end: the file must have as many of them as the note has documents.
    """
    done = _read_json(note, "documents", "tokens")
    if done and part.exists() and part.stat().st_size >= 2 * done["tokens"] > 0:
        tokens = np.memmap(part, np.uint16, "r", shape=done["tokens"])
        chunks = (tokens[i : i + 10_000_000] for i in range(0, len(tokens), 10_000_000))
        ends = sum(np.count_nonzero(chunk == END_OF_TEXT) for chunk in chunks)
        if ends == done["documents"] and tokens[-1] == END_OF_TEXT:
            return done
    if note.exists():
        print(f"{part} does not agree with {note.name}: it is written again from the start", flush=True)
    return {"documents": 0, "tokens": 0}


def _first_file() -> Path:
    """Return OpenWebText's first file."""
    try:
        return fetch("openwebtext", *FIRST_FILE, MIRRORS, 302_848_326)
    except DataError as error:
        raise DataError(f"{error}; or give documents of your own with --data") from None


def _files(path: Path) -> tuple[list[Path], str]:
    """Return the files of documents in a path, all of one kind, and how many others were skipped.

    Hidden files and folders belong to other programs and are not data. A file under two names counts once.
    """
    files, hidden, others = {}, 0, 0
    for entry in sorted(path.rglob("*")) if os.path.isdir(path) else [path]:
        if os.path.isdir(entry) and not entry.is_symlink():
            continue
        if any(part.startswith(".") for part in entry.relative_to(path).parts):
            hidden += 1
        elif os.path.isfile(entry) and _suffix(entry) in KINDS:
            files[entry.resolve()] = entry
        else:
            others += 1
    kinds = {KINDS[_suffix(file)] for file in files.values()}
    if len(kinds) != 1:
        what = "has several kinds of files" if kinds else "has no documents" if os.path.exists(path) else "is missing"
        raise DataError(f"--data {path} {what}: give a file or a folder with one kind of {', '.join(KINDS)}")
    return list(files.values()), f"{hidden} hidden files and {others} others" if hidden or others else ""


def _suffix(file: Path) -> str:
    """Return the suffix of a file's name, without the .gz of a compressed one."""
    return Path(file.name.lower().removesuffix(".gz")).suffix


def _versions(files: list[Path]) -> tuple[tuple[str, int, int], ...]:
    """Return path, size and time of each file, which change when the file does."""
    return tuple((str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def _name(path: Path | None, whole: bool, val_share: float | None) -> str:
    """Return the name of the folder for the tokens of these documents, another one for every version of a file."""
    share = f"-{val_share}" if val_share else ""
    if path is None:
        return ("whole" if whole else "first-file") + share
    versions = _versions(_files(path)[0])
    return f"{path.resolve().stem[:50]}-{hashlib.sha256(repr(list(versions)).encode()).hexdigest()[:8]}{share}"


def _why(error: BaseException) -> str:
    """Return in a few words what went wrong in another library."""
    if isinstance(error, UnicodeError):
        return "it is not UTF-8"
    text = str(getattr(error, "strerror", None) or error).split(": line 1 column")[0]  # of a line of JSON
    return (text.splitlines() or [type(error).__name__])[0][:200]


if __name__ == "__main__":
    from common.program import clean_exit

    import tyro

    with clean_exit():
        train, val, _ = tyro.cli(read)
        print(f"{len(train):,} training and {len(val):,} validation tokens")
