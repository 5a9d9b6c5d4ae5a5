"""The words or characters of a text: read a file, split it and join it again, and see what a model has copied."""

from collections.abc import Sequence
from pathlib import Path

from common import UserError
from common.data import DataError

import numpy as np
import regex

# A character of the scripts that leave no space between words, or of their punctuation, is a word by itself.
SPACELESS = r"(?!\p{M})[\p{Han}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u3001-\u30ff\uff00-\uffef]"
WORD = regex.compile(rf"(?:(?!{SPACELESS})[\p{{L}}\p{{M}}'’])+|\n|[^\s\ufeff]\p{{M}}*")  # M: marks; ufeff: a BOM


def read(path: Path) -> str:
    """Return the text of a user's own file, without byte order marks; DataError where it cannot be read as UTF-8 text.

    An empty file is refused, too.
    """
    try:
        content = path.read_text(encoding="utf-8").replace("\ufeff", "")
    except OSError as error:
        raise DataError(f"cannot read the text {path}: {error.strerror or error}; name another file") from None
    except UnicodeDecodeError as error:
        if error.object.startswith(b"\x1f\x8b"):
            raise DataError(f"{path} is a gzip file, not UTF-8 text: unpack it first") from None
        kind = "but UTF-16" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else f"(byte {error.start})"
        raise DataError(f"{path} is not UTF-8 text {kind}: save it as plain text in UTF-8") from None
    if "\0" in content:
        raise DataError(f"{path} holds NUL characters, so it is UTF-16 or not a text: save it as plain text in UTF-8")
    if not content.strip():
        raise DataError(f"the text {path} is empty: give a text with words in it")
    return content


def split_words(content: str) -> list[str]:
    """Return the words of a text in order: runs of letters and apostrophes, single other characters, ends of lines.

    A letter is one of any alphabet, with its accents; a character of a script without spaces, as Chinese, is a word.
    """
    return WORD.findall(content)


def join_words(words: Sequence[str]) -> str:
    """Return words as a text that reads well: no space before commas, at hyphens, Chinese, ends of lines."""
    content = regex.sub(r" ([.,:;?!)\]])", r"\1", " ".join(words))
    content = regex.sub(r"([(\[]) (?!\p{M})", r"\1", content)  # a mark would become one of the bracket
    return regex.sub(rf" ?([-\n]|{SPACELESS}\p{{M}}*) ?(?!\p{{M}})", r"\1", content)


def prompt_words(config, vocab: Sequence[str], train: Sequence[int]) -> list[str]:
    """Return the tokens that samples continue: the words of `config.prompt`, or its characters if there is no <unk>.

    If the vocabulary lacks some and the user gave no prompt, the first eight tokens of the text (`train` has their ids)
    are used. Raises UserError if the user's words are all unknown; for characters, encode() is stricter.
    """
    content, unknown = config.prompt.replace("\\n", "\n"), vocab[0] == "<unk>"
    words = split_words(content) if unknown else list(content)
    lacking = _lacking(words, vocab)
    if lacking and config.prompt == type(config).prompt:
        print(f"samples continue the text's first tokens, because it lacks {lacking}; set others with --prompt")
        return [vocab[token] for token in train[:8]]
    if lacking and unknown:
        if set(words).isdisjoint(vocab):
            raise UserError(f"--prompt: the vocabulary lacks {lacking}: use words that the training text has twice")
        print(f"--prompt: the vocabulary lacks {lacking}; the model reads them as <unk>")
    return words


def check_characters(content: str, vocab: Sequence[str]) -> None:
    """Raise UserError where a prompt has characters that the vocabulary lacks, and name them."""
    if lacking := _lacking(content, vocab):
        known = shorten(repr("".join(vocab)), 50)
        raise UserError(f"--prompt: the vocabulary lacks {lacking}: use only characters of {known}")


def _lacking(words: Sequence[str], vocab: Sequence[str]) -> str:
    """Return the words that a vocabulary lacks as a readable list, cut off after 50 characters."""
    known = set(vocab)
    return shorten(", ".join(repr(word) for word in dict.fromkeys(words) if word not in known), 50)


def as_characters(tokens: Sequence[int]) -> str:
    """Return token ids (L,) as a string with a character for each, in which n-grams are found fast."""
    return "".join(map(chr, np.asarray(tokens)))


def copied_share(tokens: Sequence[int], training: str, length: int, first: int, words: bool) -> float:
    """Return which share of the n-grams (n = `length`) of token ids (L,) also occurs in the training tokens.

    `training` is what as_characters() made of these. Only n-grams count that end at the token `first` or later. Of
    `words`, id 0 is "<unk>", and n-grams with it do not count.
    """
    grams = [tokens[end - length : end] for end in range(max(length, first + 1), len(tokens) + 1)]
    grams = [as_characters(gram) for gram in grams if not (words and 0 in gram)]
    return sum(gram in training for gram in grams) / max(1, len(grams))


def shorten(content: str, most: int = 100) -> str:
    """Return a text, cut off after `most` characters."""
    return content if len(content) <= most else content[: most - 1] + "…"
