"""To do:
1. make_data(config, device): MNIST by common.data, as inputs and classes of the training set, then of the test set.
   Pixels are normalised; tensors of float32 and int64.
2. MLP: 784 to 256 to 256 to 10. Now there are other images to measure: the test set, every 100 steps and at the end.
3. main: record the test set under "test"; run.finish(test_loss=…, test_accuracy=…). A field device in Config.
4. The winding, the Bayes baseline and the picture of the plane have no place here: take them out.
"""

import math

from common.cli.check_it import has_shape, is_near, run_checks, run_main

import torch
import torch.nn.functional as F
import train

torch.set_default_dtype(torch.float32)
torch.manual_seed(0)
images, labels = torch.randn(64, 28, 28), torch.randint(10, (64,))  # (B, H, W), (B,)


def answer(model):
    """The logits for images as the program has them: (B, H, W), or flattened to (B, D) in make_data."""
    inputs = train.make_data(train.Config(dry_run=True), torch.device("cpu"))[0]
    return model(images.reshape(len(images), *inputs.shape[1:]))


def test_data():
    """training and test set: normalised pixels and classes"""
    x, y, x_test, y_test = train.make_data(train.Config(dry_run=True), torch.device("cpu"))
    for name, inputs, classes in (("training", x, y), ("test", x_test, y_test)):
        has_shape(f"the classes of the {name} set", classes, len(inputs))
        assert inputs[0].numel() == 784, f"an input of the {name} set has {inputs[0].numel()} numbers, expected 784"
        assert inputs.dtype == torch.float32, f"the {name} inputs are of {inputs.dtype}, expected torch.float32"
        is_near(f"the least pixel of the {name} set (paper)", inputs.min().item(), -0.1307 / 0.3081, 1e-4)


def test_model():
    """269,322 parameters, and logits (B, 10)"""
    model = train.MLP(train.Config())
    is_near("the number of parameters", sum(param.numel() for param in model.parameters()), 269_322, 0)
    has_shape("the logits", answer(model), 64, 10)


def test_first_loss():
    """the first loss is near ln 10"""
    is_near("the first loss", F.cross_entropy(answer(train.MLP(train.Config())), labels).item(), math.log(10), 0.3)


def test_one_batch_by_heart():
    """64 images of noise are learnt by heart"""
    model = train.MLP(train.Config())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss = F.cross_entropy(answer(model), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1, f"after 100 steps on one batch the loss is {loss.item():.3g}, expected less than 0.1"


def test_run():
    """a run measures the test set at its end"""
    metrics, _, _ = run_main(train, dry_run=True)
    assert {"test_loss", "test_accuracy"} <= set(metrics), f"run.finish gets {', '.join(metrics)}"


if __name__ == "__main__":
    run_checks(globals())
