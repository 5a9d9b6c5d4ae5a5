"""Do people write what is likely?

    python ex12_sampling/decoding.py

Predicted: no. Beam search finds text that the model thinks 2 nats a word likelier than Shakespeare's, and it goes round
in circles, as the likeliest word always does; draws do not repeat, and come close to his likelihood with top-p 0.9.
Measured: 24 openings of the test text, each continued by 40 words in nine ways, and by himself. 40 CPU seconds.
"""

import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer
from common.text import join_words

import numpy as np
import torch
import train as ex12
import tyro

SAMPLERS = {"top-k 20": {"top_k": 20}, "top-p 0.9": {"top_p": 0.9}}
SAMPLERS |= {f"temperature {temperature}": {"temperature": temperature} for temperature in (0.5, 0.8, 1.0, 1.5)}
BEAMS, WORDS = {"greedy": 1, "beam 4": 4, "beam 16": 16}, 40  # widths of the beams; words of each continuation


@dataclass
class Config:
    steps: int = 300  # training steps of exercise 12's network
    seed: int = 0  # random seed of the network, its batches, and what is drawn
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few steps on a made-up text, to check that everything works

    def __post_init__(self):
        check_config(self)


def train(ex, x, y, vocab_size):
    """Return exercise 12's network, trained on contexts (N, T) and next words (N,)."""
    torch.manual_seed(ex.seed)
    model = ex12.MLP(ex, vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=ex.weight_decay)
    minibatches = ex12.batches(np.random.default_rng(ex.seed), len(x), ex.batch_size)
    for step, index in zip(range(2 if ex.dry_run else ex.steps), minibatches):
        optimizer.param_groups[0]["lr"] = ex12.learning_rate(ex, step)
        ex12.loss_fn(model(x[index]), y[index]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def beam_search(model, tokens, size, words, width):
    """Return tokens (L,) and the likeliest words after them, as far as the `width` likeliest beginnings lead there."""
    beams, scores = tokens[None], torch.zeros(1)  # (1, L), (1,)
    for _ in range(words):
        log_probs = model(beams[:, -size:]).log_softmax(-1)  # (W, V)
        log_probs[:, 0] = -torch.inf  # never <unk>
        scores, best = (scores[:, None] + log_probs).flatten().topk(min(width, log_probs.numel()))  # (W,), (W,)
        beams = torch.cat([beams[best // log_probs.shape[1]], best[:, None] % log_probs.shape[1]], 1)  # (W, L + 1)
    return beams[0]


@torch.no_grad()
def nats_per_word(model, texts, size):
    """Return what the model thinks of texts (N, T + L), of the words after the first T, any of which may be <unk>."""
    windows, words = texts.unfold(1, size, 1)[:, :-1], texts[:, size:]  # (N, L, T), (N, L)
    return ex12.loss_fn(model(windows.flatten(0, 1)), words.flatten()).item()


def repeated(words):
    """Return the share of the runs of four words (L,) that stand there before."""
    runs = [tuple(run) for run in words.unfold(0, 4, 1).tolist()]
    return 1 - len(set(runs)) / len(runs)


def draw(nats, repeats, words):
    """Return the picture: likelihood and repetition of each way to write, and how some continue the same opening."""
    figure, (left, right) = panels("Likely, or not repeating", "One opening, continued", widths=(6.5, 6.5), height=5)
    for name in nats:
        color = SAFE[1 if name in BEAMS else 2 if name == "the text" else 0]
        left.plot(nats[name], 100 * repeats[name], "*" if name == "the text" else "o", color=color, markersize=9)
        shift = (9, -4) if name in BEAMS else (-28, 12) if name == "top-k 20" else (4, 12)
        turn = 0 if name in BEAMS else 45
        label(left, nats[name], 100 * repeats[name], name, color, shift, rotation=turn, rotation_mode="anchor")
    left.set(xlabel="nats a word, by the model", ylabel="runs of four words that repeat (%)", ylim=(-3, 90))
    for row, name in enumerate(words):
        excerpt = textwrap.fill(join_words(words[name]).replace("\n", " / "), 80)
        label(right, 0, row, f"{name}:\n{excerpt}", shift=(0, 0))
    right.set(ylim=(len(words) - 0.5, -0.5), xlim=(0, 1))
    right.axis("off")
    return figure


def main(config: Config) -> dict[str, float]:
    ex = ex12.Config(steps=config.steps, seed=config.seed, max_new_tokens=WORDS, dry_run=config.dry_run)
    train_tokens, test_tokens, vocab = ex12.read_tokens(ex)
    x, y, *_ = ex12.make_data(ex, train_tokens, test_tokens, "cpu")
    model, size = train(ex, x, y, len(vocab)), ex.block_size
    starts = torch.linspace(0, len(test_tokens) - size - WORDS, 2 if config.dry_run else 24).long()
    texts = {"the text": [test_tokens[start : start + size + WORDS] for start in starts]}
    openings = [text[:size] for text in texts["the text"]]
    texts |= {name: [beam_search(model, first, size, WORDS, w) for first in openings] for name, w in BEAMS.items()}
    for name, flags in SAMPLERS.items():
        flags = {"temperature": 1.0, "top_p": 1.0, **flags}
        texts[name] = [ex12.sample(model, opening, replace(ex, seed=n, **flags)) for n, opening in enumerate(openings)]
    nats = {name: nats_per_word(model.eval(), torch.stack(texts[name]), size) for name in texts}
    repeats = {name: np.mean([repeated(text[size:]) for text in texts[name]]) for name in texts}
    words = {name: [vocab[i] for i in texts[name][0]] for name in ("the text", *BEAMS, "top-p 0.9", "temperature 1.5")}
    return answer(
        config,
        draw(nats, repeats, words),
        text_minus_beam_16=(nats["the text"] - nats["beam 16"], 2, None),
        greedy_minus_beam_16=(nats["greedy"] - nats["beam 16"], 0, None),
        top_p_minus_text=(nats["top-p 0.9"] - nats["the text"], -0.5, 0.5),
        repeats_least_of_beams=(min(repeats[name] for name in BEAMS), 0.3, None),
        repeats_most_of_samplers=(max(repeats[name] for name in SAMPLERS), None, 0.1),
        repeats_text=(repeats["the text"], None, 0.1),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
