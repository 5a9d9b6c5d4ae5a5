"""To do:
1. class MLP, a torch.nn.Module made by MLP(config), in place of init_params and forward: linear layers, ReLU between.
2. The loss of torch.nn.functional in place of loss_fn, and in evaluate.
3. The optimizer of torch.optim in place of your update; zero the gradients.
4. A DataLoader in place of index arrays. Choose float64 before you make the layers.
"""

from common.cli.check_it import are_equal, has_shape, program, run_checks, run_main

import torch
import train
from torch import nn

torch.set_default_dtype(torch.float64)
x = torch.randn(50, 2)  # (B, D)


def linear_layers(model):
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def test_shapes():
    """MLP(config) is a torch module with three linear layers, and gives logits (B, 3)"""
    model = train.MLP(train.Config())
    assert isinstance(model, nn.Module), f"MLP(config) is of type {type(model).__name__}, expected an nn.Module"
    assert len(linear_layers(model)) == 3, f"it has {len(linear_layers(model))} linear layers, expected 3"
    has_shape("the logits", model(x), 50, 3)


def test_logits():
    """with exercise 5's weights in it, it gives exercise 5's logits"""
    parent, model = program(5), train.MLP(train.Config())
    params = parent.init_params(parent.Config())  # w, b of each layer, w being (fan_in, fan_out)
    with torch.no_grad():
        for layer, w, b in zip(linear_layers(model), params[::2], params[1::2]):
            layer.weight.copy_(w.T)
            layer.bias.copy_(b)
    are_equal("the logits", model(x).detach(), parent.forward(params, x).detach(), 1e-9)


def test_train():
    """the program is torch's: nothing of exercise 5's hand-made parts is left"""
    names = ("init_params", "forward", "loss_fn")
    left = [name for name in names if getattr(vars(train).get(name), "__module__", "") == "train"]
    assert not left, f"train.py still has its own {', '.join(left)}"


def test_one_batch_by_heart():
    """a hundred samples are learnt by heart"""
    metrics, losses, _ = run_main(train, num_samples=100, batch_size=100, steps=1500)
    assert losses[-1] < 0.5 * losses[0], f"the loss goes from {losses[0]:.3g} to {losses[-1]:.3g}"
    assert metrics["accuracy"] > 0.85, f"the accuracy ends at {metrics['accuracy']:.0%}, expected 100 %, or nearly"


if __name__ == "__main__":
    run_checks(globals())
