"""Word n-gram models of Tiny Shakespeare: the baselines that exercises 11 to 13 have to beat.

    python tests/bench/kneser_ney.py

Interpolated Kneser-Ney with one discount (Chen and Goodman 1999, "An empirical study of smoothing techniques for
language modeling", section 2.7), chosen for each order on the last tenth of the training words. Words, vocabulary and
split are exercise 11's; every test word is scored once, with all the words before it that the order looks at.
"""

import math
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))
from common.program import clean_exit

from helpers import load

DISCOUNTS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)


class KneserNey:
    """An n-gram model: `probability(history, word)` after counting `tokens`, a list of ints below `vocab_size`."""

    def __init__(self, tokens: list[int], order: int, discount: float, vocab_size: int):
        self.order, self.discount, self.vocab_size = order, discount, vocab_size
        # counts[n] of the n-grams: how often they occur at the highest order, and below it how many different words
        # they follow (their continuation count).
        self.counts = {order: Counter(zip(*(tokens[i:] for i in range(order))))}
        for n in range(order - 1, 0, -1):
            longer = zip(*(tokens[i:] for i in range(n + 1)))
            self.counts[n] = Counter(gram[1:] for gram in set(longer))
        self.totals = {n: Counter() for n in self.counts}  # by history: the sum of the counts, and how many are above 0
        self.kinds = {n: Counter() for n in self.counts}
        for n, counts in self.counts.items():
            for gram, count in counts.items():
                self.totals[n][gram[:-1]] += count
                self.kinds[n][gram[:-1]] += 1

    def probability(self, history: tuple[int, ...], word: int) -> float:
        """Return P(word | the last order - 1 words of history)."""
        p = 1 / self.vocab_size
        for n in range(1, self.order + 1):
            context = tuple(history[len(history) - n + 1 :])
            total = self.totals[n][context]
            if total:  # a history never seen says nothing: the lower order stands
                kept = max(self.counts[n][*context, word] - self.discount, 0)
                p = (kept + self.discount * self.kinds[n][context] * p) / total
        return p

    def loss(self, tokens: list[int], start: int) -> float:
        """Return the mean negative log likelihood of tokens[start:], in nats."""
        losses = (
            -math.log(self.probability(tuple(tokens[max(0, i - self.order + 1) : i]), tokens[i]))
            for i in range(start, len(tokens))
        )
        return sum(losses) / (len(tokens) - start)


def baselines(
    train: list[int], test: list[int], vocab_size: int, orders=(1, 2, 3, 4)
) -> dict[int, tuple[float, float]]:
    """Return by order the loss on the test words, in nats, and the discount, chosen on the last tenth of `train`."""
    found, cut = {}, len(train) * 9 // 10
    for order in orders:
        discount = min(DISCOUNTS, key=lambda d: KneserNey(train[:cut], order, d, vocab_size).loss(train, cut))
        found[order] = KneserNey(train, order, discount, vocab_size).loss(train + test, len(train)), discount
    return found


@dataclass
class Config:
    orders: tuple[int, ...] = (1, 2, 3, 4)  # words of an n-gram


def main(config: Config) -> None:
    ex = load(11)
    train, test, vocab = ex.read_tokens(ex.Config())
    print(f"{len(train)} training words, {len(test)} test words, {len(vocab)} in the vocabulary")
    for order, (loss, discount) in baselines(train.tolist(), test.tolist(), len(vocab), config.orders).items():
        print(f"order {order}: {loss:.3f} nats per word, discount {discount}", flush=True)


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
