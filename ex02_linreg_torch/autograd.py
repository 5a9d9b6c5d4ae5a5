"""What does loss.backward() do?

    python ex02_linreg_torch/autograd.py

Predicted: an engine of 40 lines, which notes every operation and then walks the notes back, gives exercise 2's losses
to 1e-10; torch's, which is compiled, is twice as fast or more. Measured: exercise 2's run with both. 4 CPU seconds.
"""

import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from common.plotting import SAFE, label, panels
from common.program import check_config, clean_exit
from common.record import answer

import numpy as np
import train as ex02
import tyro


@dataclass
class Config:
    seed: int = 0  # random seed of data and batches
    out: Path = Path(__file__).parent / "out"  # folder for the picture and the numbers
    dry_run: bool = False  # few steps, to check that everything works

    def __post_init__(self):
        check_config(self)


def operation(name, forward, *backs):
    """Return a function of nodes; backs[i](g, *inputs) is the gradient by input i if that by the result is g."""

    def apply(*inputs):
        nodes = [node if isinstance(node, Node) else Node(node) for node in inputs]
        values = [node.value for node in nodes]
        return Node(forward(*values), [(node, back, values) for node, back in zip(nodes, backs)], name)

    return apply


class Node:
    """An array that knows which nodes it was made of, and how a gradient goes back to them."""

    def __init__(self, value, parents=(), name="", numbers=count()):  # noqa: B008, one count for all nodes
        self.value, self.parents, self.name, self.grad = np.asarray(value), parents, name, 0.0
        self.shape, self.item, self.number = self.value.shape, self.value.item, next(numbers)

    __add__ = operation("+", np.add, lambda g, a, b: g, lambda g, a, b: g)
    __sub__ = operation("−", np.subtract, lambda g, a, b: g, lambda g, a, b: -g)
    __mul__ = operation("×", np.multiply, lambda g, a, b: g * b, lambda g, a, b: g * a)
    __pow__ = operation("²", np.power, lambda g, a, n: g * n * a ** (n - 1))  # n is a constant
    __matmul__ = operation("@", np.matmul, lambda g, a, b: g @ b.T, lambda g, a, b: a.T @ g)
    mean = operation("mean", np.mean, lambda g, a: np.full(a.shape, g / a.size))

    def backward(self):
        """Leave the gradient of this node by each that it was made of in their `grad`; return them, newest first."""
        found, stack = {}, [self]
        while stack:  # no recursion, which would end at a chain of 1,000
            node = stack.pop()
            stack += [parent for parent, *_ in node.parents if parent.number not in found]
            found[node.number] = node
        self.grad = np.ones_like(self.value)
        for node in (order := [found[number] for number in sorted(found, reverse=True)]):  # from the newest
            for parent, back, values in node.parents:
                grad = back(node.grad, *values)
                repeated = grad.ndim - parent.value.ndim  # what broadcasting has repeated is summed up
                ones = [i + repeated for i, n in enumerate(parent.shape) if n == 1]
                parent.grad = parent.grad + grad.sum((*range(repeated), *ones)).reshape(parent.shape)
        return order


def run(parameter, x, y, seed, steps):
    """Return the losses (steps,) of exercise 2's loop, its parameters made by `parameter`, and CPU seconds a step."""
    values, losses, start = [x[0] * 0, x[0] * 0], [], time.process_time()
    for _, index in zip(range(steps), ex02.batches(np.random.default_rng(seed), len(x), 500)):
        params = [parameter(value) for value in values]
        loss = ex02.loss_fn(ex02.forward(params, x[index]), y[index])
        loss.backward()
        values = [value - 0.1 * param.grad for value, param in zip(values, params)]
        losses.append(loss.item())
    return np.array(losses), (time.process_time() - start) / steps


def draw():
    """Return the picture: the graph of the loss of two points, with what went forward and what came back."""
    figure, (ax,) = panels("Black: values, forward. Orange: the loss's gradient by each, back.", widths=(11,), height=4)
    w, b, x, y = (Node(v, name=name) for v, name in ((0.5, "w"), (1.0, "b"), ([1.0, -2.0], "x"), ([5.0, -4.0], "y")))
    place, up = {}, 1
    for node in ex02.loss_fn(ex02.forward([w, b], x), y).backward():
        at = place.setdefault(node.number, (0, 0))
        ax.plot(*at, "o", color="0.9", markersize=32)
        for text, color, shift in ((node.value, "black", 25), (node.name, "black", 0), (node.grad, SAFE[1], -25)):
            label(ax, *at, str(text), color, (0, shift), ha="center")
        for parent, *_ in node.parents:
            up, place[parent.number] = -up, (at[0] - 1, at[1] if parent.parents else -up)
            ax.annotate("", at, place[parent.number], arrowprops={"arrowstyle": "->", "shrinkA": 17, "shrinkB": 17})
    ax.set(ylim=(-1.6, 1.6), xticks=[], yticks=[], frame_on=False)
    return figure


def main(config: Config) -> dict[str, float]:
    x, y, _ = ex02.make_data(ex02.Config(), np.random.default_rng(config.seed))
    for steps in (20, 30 if config.dry_run else 1_000):  # the first time, both warm up
        theirs, fast = run(lambda value: value.clone().requires_grad_(), x, y, config.seed, steps)
        ours, slow = run(Node, x.numpy(), y.numpy(), config.seed, steps)
    return answer(
        config,
        draw(),
        off_from_torch=(abs(ours - theirs).max(), None, 1e-10),
        torch_is_faster=(slow / fast, 2, None),
    )


if __name__ == "__main__":
    with clean_exit():
        main(tyro.cli(Config, description=__doc__))
