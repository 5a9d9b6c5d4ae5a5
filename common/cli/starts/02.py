"""To do:
1. At the head of main: float64 for torch. In make_data: draw with numpy as before, then return tensors.
2. init_params: tensors whose gradients torch shall find.
3. Take out backward. In the loop: let torch find the gradients, and update the parameters outside its sight.
4. After the loop: plot_loss(run.out, "mean squared error", log="xy"), from common.plotting.
"""

from common.cli.check_it import are_equal, program, run_checks, run_main

import numpy as np
import torch
import train


def test_data():
    """the data are exercise 1's, number for number, as tensors of float64"""
    theirs = program(1).make_data(program(1).Config(num_samples=100, batch_size=50), np.random.default_rng(0))
    for name, mine, wanted in zip(("inputs", "targets"), train.make_data(config(), np.random.default_rng(0)), theirs):
        assert isinstance(mine, torch.Tensor), f"the {name} are of type {type(mine).__name__}, expected a tensor"
        assert mine.dtype == torch.float64, f"the {name} are of {mine.dtype}, expected torch.float64"
        are_equal(f"the {name}", mine.numpy(), wanted, 0)


def config():
    return train.Config(num_samples=100, batch_size=50)


def test_params():
    """the parameters are tensors of shape () that ask for a gradient"""
    for param in train.init_params():
        assert getattr(param, "requires_grad", False), "a parameter does not ask for a gradient (requires_grad)"
        assert param.shape == (), f"a parameter has the shape {tuple(param.shape)}, expected ()"


def test_losses():
    """the first twenty losses are exercise 1's, to ten digits"""
    flags = {"num_samples": 2000, "batch_size": 50, "steps": 20}
    losses, wanted = (np.array(run_main(program, **flags)[1]) for program in (train, program(1)))
    are_equal("the losses", losses, wanted, 1e-10)


def test_picture():
    """the run leaves a picture, loss.png"""
    files = run_main(train, num_samples=500, batch_size=50, steps=20)[2]
    assert "loss.png" in files, f"there is no loss.png among its files: {', '.join(sorted(files))}"


if __name__ == "__main__":
    run_checks(globals())
