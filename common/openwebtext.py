"""OpenWebText, or documents of your own, as GPT-2's tokens in files that are read without being loaded.

    python -m common.openwebtext --whole

prepares all of OpenWebText. Cut off, it goes on where it was. Two files come of it, train.bin and val.bin, of 16-bit
numbers: the documents in the order of a fixed shuffle, an end-of-text token after each, as nanoGPT has them.
"""

import hashlib
import json
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from common.data import DataError, data_dir, fetch

REPOSITORY, REVISION = "Skylion007/openwebtext", "79d93d786212f7344586290adb811d4ae6a1762c"  # at huggingface.co
MIRRORS = tuple(
    f"https://{host}/datasets/{REPOSITORY}/resolve/{REVISION}/plain_text/"
    for host in ("huggingface.co", "hf-mirror.com")
)
FIRST_FILE = ("train-00000-of-00080.parquet", "caed9f4b7053d7cd4d1a13ce9ec9224d84a3bba1f11579193562a7e31ebe656e")
WHOLE_TOKENS = {"train": 9_035_582_198, "val": 4_434_897}  # of the whole set at the share of 0.0005 (nanoGPT)
KINDS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".txt": "text"}  # of files, for `datasets`
END_OF_TEXT = 50_256
DOCUMENTS = 2_000  # tokenised before the next are read


def read(path: Path | None = None, whole: bool = False, val_share: float | None = None, dry_run: bool = False):
    """Return training tokens (N,), validation tokens (M,), both uint16 in memory-mapped files, and GPT-2's encoding.

    The documents are those of the file or folder `path`; without one those of OpenWebText, of its first file of 80 or
    of the `whole`. The share `val_share` of them is for validation; None is 0.0005, or 0.02 of fewer than 100,000.
    What was tokenised before is used again; of several processes that ask at once, one works and the others wait. With
    `dry_run` the tokens are drawn at random, and nothing is read. Raises DataError where documents or tokens cannot
    be had or are not what they should be.
    """
    if dry_run:
        words = np.random.default_rng(0).integers(0, 256, 600_000, np.uint16)
        return words[:-20_000], words[-20_000:], encoding(dry_run)
    folder = data_dir() / "openwebtext" / _name(path, whole, val_share)
    try:
        if not (folder / "tokens.json").exists():  # where it does, the folder need not be writable
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                if not (folder / "tokens.json").exists():  # nor has another process been quicker
                    prepare(folder, load_documents(path, whole), val_share, whole and path is None)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"cannot use {folder} ({reason}): mend that, or set RAMPUP_DATA to another folder") from None
    counts = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    return *(open_tokens(folder / f"{split}.bin", counts[split]) for split in ("train", "val")), encoding()


def encoding(dry_run: bool = False):
    """Return GPT-2's encoding of texts as 50,257 tokens (tiktoken's); with `dry_run` one of bytes and no more.

    tiktoken downloads it, 1.5 MB, into $TIKTOKEN_CACHE_DIR, here by default into data/tiktoken_cache, and verifies it.
    """
    import tiktoken

    if dry_run:
        ranks = {bytes([byte]): byte for byte in range(256)}
        return tiktoken.Encoding("bytes", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={})
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(data_dir() / "tiktoken_cache"))
    try:
        return tiktoken.get_encoding("gpt2")
    except OSError as error:  # requests' errors are such
        raise DataError(
            f"GPT-2's vocabulary is not in {os.environ['TIKTOKEN_CACHE_DIR']} and could not be downloaded "
            f"({type(error).__name__}): go online once, or set TIKTOKEN_CACHE_DIR to a folder that tiktoken has filled"
        ) from None


def load_documents(path: Path | None, whole: bool):
    """Return the documents as a `datasets.Dataset` with a column "text", memory-mapped; DataError where there are none.

    Of a .txt file a document is a paragraph, with empty lines around it.
    """
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    options = {"split": "train", "cache_dir": str(data_dir() / "openwebtext" / "cache")}
    try:
        if path is None and whole:
            documents = datasets.load_dataset(REPOSITORY, revision=REVISION, **options)
        else:
            files = _files(path) if path else [fetch("openwebtext", *FIRST_FILE, MIRRORS)]
            kind = KINDS[files[0].suffix]
            options |= {"sample_by": "paragraph"} if kind == "text" else {}
            documents = datasets.load_dataset(kind, data_files=[str(file) for file in files], **options)
    except DataError as error:
        raise DataError(f"{error}{'' if path else '; or give documents of your own with --data'}") from None
    except Exception as error:  # of datasets, pyarrow, pandas, fsspec, requests, each with classes of its own
        cause = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        source = path or f"{REPOSITORY} at huggingface.co"
        raise DataError(f"cannot read documents from {source} ({cause[0]}): fetch it again, or give --data") from None
    if "text" not in documents.column_names:
        raise DataError(f'{path} has the columns {", ".join(documents.column_names)}, but none "text": rename one')
    return documents.select_columns("text")


def prepare(folder: Path, documents, val_share: float | None, whole: bool) -> None:
    """Write train.bin, val.bin and, at last, tokens.json with their numbers of tokens into a folder."""
    count = len(documents)
    share = val_share or (0.0005 if count >= 100_000 else 0.02)
    if not 0 < math.ceil(share * count) < count:
        raise DataError(f"{count} documents are too few to take a share of {share} for validation: set --val-share")
    splits = documents.train_test_split(test_size=share, seed=2357, shuffle=True)
    counts = {
        name: tokenise(splits[key], folder / f"{name}.bin") for name, key in (("val", "test"), ("train", "train"))
    }
    if whole and not val_share and counts != WHOLE_TOKENS:
        print(f"warning: {counts} tokens, but nanoGPT found {WHOLE_TOKENS}: losses may differ", file=sys.stderr)
    write_json(folder / "tokens.json", counts)


def tokenise(documents, path: Path) -> int:
    """Write the tokens of documents, in their order, as uint16 to a file, and return how many there are.

    It grows under another name, beside a note of how far it has come, from where a run that was cut off goes on.
    Threads do the work, since tiktoken does not hold Python's lock; DOCUMENTS texts at most are in memory at once.
    """
    part, note = path.with_suffix(".part"), path.with_suffix(".json")
    done = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {"documents": 0, "tokens": 0}
    if not part.exists() or part.stat().st_size < 2 * done["tokens"]:
        done = {"documents": 0, "tokens": 0}
    gpt2, cores = encoding(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    def encode(texts):
        ids = [gpt2.encode_to_numpy(text, disallowed_special=()) for text in texts]  # each (n,)
        return np.concatenate([np.append(text, END_OF_TEXT) for text in ids]).astype(np.uint16)

    print(f"tokenising {len(documents) - done['documents']:,} documents into {path}", flush=True)
    bar = {"total": len(documents), "initial": done["documents"], "unit": " documents", "disable": None}
    with open(part, "ab") as file, ThreadPoolExecutor(cores) as pool, tqdm(**bar) as bar:
        file.truncate(2 * done["tokens"])
        for start in range(done["documents"], len(documents), DOCUMENTS):
            texts = documents[start : start + DOCUMENTS]["text"]
            if not all(isinstance(text, str) for text in texts):
                raise DataError(f"one of the documents {start} to {start + len(texts) - 1} has no text: leave it out")
            step = -(-len(texts) // (4 * cores))
            for ids in pool.map(encode, [texts[i : i + step] for i in range(0, len(texts), step)]):
                file.write(ids.data)
                done["tokens"] += len(ids)
            file.flush()
            done["documents"] = start + len(texts)
            write_json(note, done)
            bar.update(len(texts))
        os.fsync(file.fileno())
    os.replace(part, path)
    note.unlink(missing_ok=True)
    return done["tokens"]


def open_tokens(path: Path, count: int) -> np.ndarray:
    """Return the tokens (count,) of a file, memory-mapped; DataError where it is not the file that was written."""
    size = path.stat().st_size if path.exists() else 0
    if size != 2 * count or not count:
        raise DataError(f"{path} has {size} bytes, not {2 * count}: delete the folder {path.parent} and run again")
    words = np.memmap(path, np.uint16, "r")
    _check(words[-10_000_000:], path)  # the rest when it is read
    return words


def windows(words: np.ndarray, starts: list[int], size: int) -> np.ndarray:
    """Return the windows (B, size) of words (N,) that begin at `starts`, as int64; DataError where one is no token.

    A memory-mapped file is opened anew: else every page that was ever read would count as memory of this process.
    """
    path = getattr(words, "filename", None)
    words = np.memmap(path, np.uint16, "r") if path else words
    rows = np.stack([words[start : start + size] for start in starts])  # (B, size)
    _check(rows, path)
    return rows.astype(np.int64)


def _check(words: np.ndarray, path: Path) -> None:
    if words.max() > END_OF_TEXT:
        raise DataError(f"{path} holds {words.max()}, which is no token: delete the folder it is in and run again")


def write_json(path: Path, content: dict) -> None:
    """Write a small file, which is always whole."""
    path.with_suffix(".tmp").write_text(json.dumps(content) + "\n", encoding="utf-8")
    os.replace(path.with_suffix(".tmp"), path)


def _files(path: Path) -> list[Path]:
    """Return the files of documents that a path names, all of one kind; DataError where there is none."""
    files = sorted(file for file in path.rglob("*") if file.suffix in KINDS) if path.is_dir() else [path]
    kinds = {KINDS.get(file.suffix) for file in files}
    if not path.exists() or len(kinds) != 1 or None in kinds:
        raise DataError(f"--data {path} is no file or folder of documents: it takes one kind out of {', '.join(KINDS)}")
    return files


def _name(path: Path | None, whole: bool, val_share: float | None) -> str:
    """Return the name of the folder for the tokens of these documents, another one for every version of a file."""
    share = f"-{val_share:g}" if val_share else ""
    if path is None:
        return ("whole" if whole else "first-file") + share
    seen = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in _files(path)]
    return f"{path.resolve().stem}-{hashlib.sha256(repr(seen).encode()).hexdigest()[:8]}{share}"


if __name__ == "__main__":
    import tyro

    from common.program import clean_exit

    with clean_exit():
        train, val, _ = tyro.cli(read)
        print(f"{len(train):,} training and {len(val):,} validation tokens")
