"""Is a token a letter, a syllable or a word?

    python ex16_gpu_nanogpt/bpe.py

Predicted: after 1,000 merges a token of new text has 2 to 3 characters, a syllable; after 4,000 nine words in ten are
one token, and words that were never seen are cut into syllables, too. Measured: byte-pair encoding from scratch, on
nine tenths of Shakespeare; with GPT-2's merges it must give tiktoken's tokens. 16 CPU seconds.
"""

import heapq
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from common import openwebtext
from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import regex
import train as ex16
import tyro

# No token crosses the border of a chunk, which is a word with the space before it (GPT-2's rule).
CHUNK = regex.compile(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
BYTES = [bytes([b]) for b in sorted(range(256), key=lambda b: (not chr(b).isprintable() or b in b" \xa0\xad", b))]
LINES = "GREMIO:\nGood morrow, neighbour Baptista.\n"


@dataclass
class Config:
    seed: int = 0  # as all programs have; nothing here is random
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # a made-up text, to check that everything works

    def __post_init__(self):
        check_config(self)


def merge(tokens, pair):
    """Return a list of tokens in which each pair is one, from left to right: of a, a, a it makes aa, a."""
    merged = []
    for token in tokens:
        if merged and (merged[-1], token) == pair:
            token = merged.pop() + token
        merged.append(token)
    return merged


def learn(text, size):
    """Return a vocabulary, the id of each token, of the bytes and of what byte-pair encoding adds (Sennrich 2016).

    Each token is made of the most frequent pair; of equals, that of the smaller ids. Only chunks with it are recounted.
    """
    times = Counter(CHUNK.findall(text))
    chunks, pairs, places = {}, Counter(), defaultdict(set)  # how often each pair occurs, in which chunks it may
    heap, ids = [], {token: i for i, token in enumerate(BYTES)}

    def replace(chunk, tokens):
        old, chunks[chunk] = chunks.get(chunk, []), tokens
        for sign, counted in ((-1, old), (1, tokens)):
            for a, b in pairwise(counted):
                pairs[a, b] += sign * times[chunk]
                places[a, b].add(chunk)
                heapq.heappush(heap, (-pairs[a, b], ids[a], ids[b], (a, b)))

    for chunk in times:
        replace(chunk, [bytes([b]) for b in chunk.encode()])
    while heap and len(ids) < size:
        n, *_, pair = heapq.heappop(heap)
        if 0 < -n == pairs[pair]:  # else it was counted anew since
            ids.setdefault(b"".join(pair), len(ids))
            for chunk in places.pop(pair):
                replace(chunk, merge(chunks[chunk], pair))
    return ids


def encode(text, ids):
    """Return the tokens of a text: in each chunk, of all pairs that make a token, the one of the smallest id first."""
    found = {}
    for chunk in set(CHUNK.findall(text)):
        tokens = [bytes([b]) for b in chunk.encode()]
        while pairs := [pair for pair in pairwise(tokens) if b"".join(pair) in ids]:
            tokens = merge(tokens, min(pairs, key=lambda pair: ids[b"".join(pair)]))
        found[chunk] = tokens
    return [token for chunk in CHUNK.findall(text) for token in found[chunk]]


def draw(vocabularies):
    """Return the picture: the same lines as each vocabulary cuts them."""
    figure, (ax,) = panels("The same lines, cut into tokens", widths=(8,), height=4)
    for n, (name, ids) in enumerate(vocabularies.items()):
        row, column = 3 * n, 0
        tokens = encode(LINES, ids)
        label(ax, -10, row + 1, f"{name}:\n{len(tokens)} tokens", shift=(0, 0))
        for i, token in enumerate(tokens):
            ax.barh(row, len(token), left=column, height=0.95, color=SAFE[i % 3], alpha=0.35, align="edge")
            for k, char in enumerate(token.decode()):
                ax.text(column + k + 0.5, row + 0.5, char, ha="center", va="center", family="monospace", fontsize=9)
            row, column = (row + 1, 0) if token.endswith(b"\n") else (row, column + len(token))
    ax.set(xlim=(-10, 34), ylim=(3 * len(vocabularies) - 1, 0))
    ax.axis("off")
    return figure


def main(config: Config) -> dict[str, float]:
    *texts, characters = ex16.read_tokens(ex16.Config(dry_run=config.dry_run))
    training, new = ("".join(characters[i] for i in text) for text in texts)
    gpt2 = openwebtext.encoding(config.dry_run)
    ids = {gpt2.decode_single_token_bytes(i): i for i in range(gpt2.eot_token)}
    unlike = [ids[token] for token in encode(training + new, ids)] != gpt2.encode_ordinary(training + new)
    learnt = learn(training, 256 + 4_000)
    cuts = {n: {token: i for token, i in learnt.items() if i < 256 + n} for n in (0, 250, 1_000, 4_000)}
    pieces = {word: len(encode(word, learnt)) for word in set(CHUNK.findall(new)) if word.strip().isalpha()}
    words = [word for word in CHUNK.findall(new) if word in pieces]
    unseen = set(words) - set(CHUNK.findall(training))
    return answer(
        config,
        draw({f"{n:,} merges": cut for n, cut in cuts.items()} | {"GPT-2's 50,000": ids}),
        tokens_unlike_tiktoken=(unlike, None, 0),
        characters_per_token=(len(new) / len(encode(new, cuts[1_000])), 2, 3),
        whole_words=(sum(pieces[word] == 1 for word in words) / len(words), 0.9, None),
        characters_per_token_if_unseen=(sum(map(len, unseen)) / max(1, sum(pieces[w] for w in unseen)), 2, 3),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
