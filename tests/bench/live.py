"""Write the data of the site's interactive pictures, common/cli/live/NN.json, from runs of the exercises themselves.

    python tests/bench/live.py 1 5 8 9 12 13

Each is a run of the exercise's own main() with seed 0 and the flags below; what its pictures need is taken on the way,
from the arguments of its functions. (Exercise 8's is a valley and no run: its picture makes the steps itself.) A
quarter of an hour on two cores, most of it for 13.
"""

import argparse
import base64
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from common.cli.site import LIVE

import numpy as np
import torch
from helpers import load

MOST_BYTES = 200_000  # of a file
GRID, REACH = 81, 4.0  # points of a side, and half the width, of exercise 5's plane
FRAMES = (0, 100, 200, 300, 500, 700, 1000, 1500, 2000, 2500, 3000, 4000, 5000)  # its steps that are shown
CONVNET = {"channels": 16, "hidden": 32}  # exercise 9 with a tenth of the weights: 64,000, to be sent with a page
PROMPTS = ("ROMEO:\nI will not", "KING RICHARD III:\nMy", "To be, or not to", "JULIET:\nO,")
SHOWN = 30  # the likeliest words of a distribution, by name


def halves(array) -> str:
    """Return numbers as base64 of float16, little-endian, in C order."""
    return base64.b64encode(np.asarray(array).astype("<f2").tobytes()).decode()


def from_halves(text: str) -> np.ndarray:
    """Return what `halves` was given, as float32 (N,)."""
    return np.frombuffer(base64.b64decode(text), "<f2").astype(np.float32)


def watched(module, name: str, seen) -> None:
    """Let seen(arguments, result) look at every call of a module's function."""
    function = getattr(module, name)

    def call(*arguments, **options):
        result = function(*arguments, **options)
        seen(arguments, result)
        return result

    setattr(module, name, call)


def run(module, **flags) -> dict[str, float]:
    """Run an exercise's main() in a folder that is thrown away; return its metrics."""
    with tempfile.TemporaryDirectory() as out:
        return module.main(module.Config(out=Path(out), **flags))


def line() -> dict:
    """Return of exercise 1 what the loss depends on: means of x, x², y, xy, y² over all samples and over each batch."""
    ex01, batches = load(1), []
    config, rng = ex01.Config(), np.random.default_rng(0)
    x, y, _ = ex01.make_data(config, rng)
    for _, index in zip(range(config.steps), ex01.batches(rng, len(x), config.batch_size)):
        batches.append(moments(x[index], y[index]))
    return {"all": moments(x, y), "batches": batches, "learning_rate": config.learning_rate}


def moments(x: np.ndarray, y: np.ndarray) -> list[float]:
    return [float(f"{mean:.12g}") for mean in (x.mean(), (x * x).mean(), y.mean(), (x * y).mean(), (y * y).mean())]


def regions(steps: tuple[int, ...] = FRAMES) -> dict:
    """Return of exercise 5 the class at each point of a grid, row by row from below, and the metrics, at some steps."""
    ex05, frames = load(5), []
    side = torch.linspace(-REACH, REACH, GRID, dtype=torch.float64)
    points = torch.cartesian_prod(side, side).flip(1)  # (P, 2): x runs fastest

    def look(arguments, metrics):
        step = ex05.Config().eval_every * len(seen)
        seen.append(step)
        if step in steps:
            with torch.no_grad():
                classes = arguments[0](points).argmax(1)  # (P,)
            frames.append({"step": step, **metrics, "classes": "".join(map(str, classes.tolist()))})

    seen = []
    watched(ex05, "evaluate", look)
    run(ex05, steps=max(steps))
    torch.set_default_dtype(torch.float32)
    x, y, _ = ex05.make_data(ex05.Config(), np.random.default_rng(0))
    samples = [[round(a, 2), round(b, 2), k] for (a, b), k in zip(x[:300].tolist(), y[:300].tolist())]
    return {"grid": GRID, "reach": REACH, "frames": frames, "samples": samples}


def valley() -> dict:
    """Return where the optimizers of exercise 8 start, how steep the loss is along x and y, how many steps."""
    return {"start": [-4.0, 1.2], "steepness": [1, 20], "steps": 60}


def convnet() -> dict:
    """Return of exercise 9, made smaller, the weights in float16, its accuracy with them, and a digit of each class."""
    ex09, params = load(9), []
    watched(ex09, "evaluate", lambda arguments, _: params.append(arguments[0]))
    run(ex09, **CONVNET)
    layers = [{name: halves(array) for name, array in layer.items()} for layer in params[-1]]
    shapes = [np.asarray(layer["w"]).shape for layer in params[-1]]
    rounded = weights({"layers": layers, "shapes": shapes})
    *_, x_test, y_test = ex09.make_data(ex09.Config())
    digits = [np.flatnonzero(y_test == k)[0] for k in range(10)]
    images = [base64.b64encode(np.rint((x_test[i] * 0.3081 + 0.1307) * 255).astype(np.uint8)).decode() for i in digits]
    return {
        "flags": CONVNET,
        "shapes": shapes,
        "layers": layers,
        "digits": images,
        "indices": [int(i) for i in digits],
        **{f"test_{name}": value for name, value in ex09.evaluate(rounded, x_test, y_test).items()},
    }


def weights(live: dict) -> list[dict[str, np.ndarray]]:
    """Return the parameters of exercise 9 that a file of `convnet` holds."""
    return [
        {"w": from_halves(layer["w"]).reshape(shape), "b": from_halves(layer["b"])}
        for layer, shape in zip(live["layers"], live["shapes"])
    ]


def next_words() -> dict:
    """Return of exercise 12 all logits of the next word after some texts, the largest first, with the first's words."""
    ex12, models, vocab = load(12), [], ex12_vocab()
    watched(ex12, "evaluate", lambda arguments, _: models.append(arguments[0]))
    metrics = run(ex12, device="cpu")
    model, entries = models[-1].eval(), []
    size = ex12.Config().block_size
    for prompt in PROMPTS:
        words = ex12.text.split_words(prompt)
        tokens = torch.nn.functional.pad(ex12.encode(words, vocab), (size, 0))[-size:]  # (T,)
        with torch.no_grad():
            logits, order = model(tokens[None])[0, 1:].sort(descending=True)  # (V - 1,): <unk> is never drawn
        shown = [vocab[1 + i] for i in order[:SHOWN].tolist()]
        entries.append({"prompt": prompt, "words": shown, "logits": halves(logits)})
    return {"prompts": entries, "test_loss": metrics["test_loss"]}


def ex12_vocab() -> list[str]:
    ex12 = load(12)
    return ex12.read_tokens(ex12.Config())[2]


def attention() -> dict:
    """Return of exercise 13 the weights that its picture shows, attention.png, and the words."""
    ex13, seen = load(13), []
    watched(ex13, "plot_attention", lambda arguments, _: seen.append(arguments))
    metrics = run(ex13, device="cpu")
    _, patterns, words = seen[-1]
    rounded = [[[[round(w, 4) for w in row] for row in head] for head in layer.tolist()] for layer in patterns]
    return {"words": words, "weights": rounded, "test_loss": metrics["test_loss"]}


MAKERS = {1: line, 5: regions, 8: valley, 9: convnet, 12: next_words, 13: attention}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", type=int, nargs="+", choices=MAKERS)
    for number in parser.parse_args().numbers:
        text = json.dumps(MAKERS[number](), ensure_ascii=False, separators=(",", ":"))
        if len(text.encode()) > MOST_BYTES:
            sys.exit(f"{number:02}.json would have {len(text.encode()):,} bytes, at most {MOST_BYTES:,} are wanted")
        LIVE.mkdir(exist_ok=True)
        (LIVE / f"{number:02}.json").write_text(text + "\n", encoding="utf-8")
        print(f"{LIVE / f'{number:02}.json'}: {len(text.encode()):,} bytes", flush=True)


if __name__ == "__main__":
    main()
