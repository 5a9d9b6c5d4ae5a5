"""To do:
1. read_tokens(config): token ids of the training and of the test text, and the vocabulary, "<unk>" first.
   encode(tokens, vocab): a list of words to ids, 0 for the unknown.
2. make_data(config, train, test, device): contexts (N, T) and next tokens (N,) of both; a test word's context may
   reach back into the training text.
3. MLP(config, vocab_size): embeddings side by side, layers with ReLU, LayerNorm and dropout, logits by the same table.
4. evaluate in parts, without dropout; AdamW; learning_rate(config, step): warm-up, then half a cosine.
5. Config: block_size, channels, dropout, warmup_steps, weight_decay, and the lesson's sizes.
"""

import math

from common.cli.check_it import has_shape, is_near, run_checks

import torch
import torch.nn.functional as F
import train

torch.manual_seed(0)
config = train.Config(dry_run=True)
x, y = torch.randint(1, 7190, (32, 5)), torch.randint(1, 7190, (32,))  # (B, T), (B,)


def test_encode():
    """known words have their index in the vocabulary, all others 0"""
    ids = train.encode(["to", "be", "forsooth", "be"], ["<unk>", "be", "to"])
    assert ids.tolist() == [2, 1, 0, 1], f"to be forsooth be: {ids.tolist()}, expected [2, 1, 0, 1]"


def test_data():
    """a context has the five tokens before its next token; the first test token looks back into the training text"""
    contexts, following, test_contexts, test_following = train.make_data(
        config, torch.arange(100), torch.arange(100, 130), torch.device("cpu")
    )
    has_shape("the training contexts", contexts, 95, 5)
    has_shape("the test contexts", test_contexts, 30, 5)
    for name, there, then in (("training", contexts, following), ("test", test_contexts, test_following)):
        wanted = list(range(then[0] - 5, then[0]))
        assert there[0].tolist() == wanted, f"the {name} context of {then[0]} is {there[0].tolist()}: not {wanted}"
    is_near("the first test token", test_following[0].item(), 100, 0)


def test_model():
    """logits are (B, V), the first loss is near ln V + 0.32, and the table is one"""
    model = train.MLP(config, 7190)
    has_shape("the logits", model(x), 32, 7190)
    is_near("the first loss", F.cross_entropy(model.eval()(x), y).item(), math.log(7190) + 0.32, 0.2)
    tables = {id(param) for param in model.parameters() if tuple(param.shape) == (7190, config.channels)}
    is_near("the number of tables of (V, C)", len(tables), 1, 0)


def test_evaluate():
    """evaluation has no dropout, takes all samples, however they are split, and leaves the model in training"""
    model = train.MLP(train.Config(dropout=0.1), 50)
    many, following = torch.randint(1, 50, (1500, 5)), torch.randint(1, 50, (1500,))
    following[1024:] = 1  # parts of other losses, of which the mean is not the mean of all
    measured = train.evaluate(model, many, following)["loss"]
    model.eval()
    is_near("the loss of 1,500 samples", measured, F.cross_entropy(model(many), following).item(), 1e-5)
    train.evaluate(model, x % 50, y % 50)
    assert model.training, "after evaluate the model is still in evaluation: no dropout from then on"


def test_dropout():
    """in training, two passes over the same contexts differ; each layer is normalised"""
    model = train.MLP(train.Config(dropout=0.1), 50)
    assert (model(x % 50) - model(x % 50)).abs().max() > 0, "two passes give the same logits: is there any dropout?"
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == config.layers, f"there are {len(norms)} LayerNorms for {config.layers} layers"


def test_learning_rate():
    """the learning rate rises at first, and ends near 0"""
    full = train.Config()
    rates = [train.learning_rate(full, step) for step in (0, full.warmup_steps, full.steps - 1)]
    assert rates[0] < 0.1 * rates[1], f"step 0 has a rate of {rates[0]:.4g}, step {full.warmup_steps} {rates[1]:.4g}"
    assert rates[2] < 0.01 * rates[1], f"the last step has a rate of {rates[2]:.4g}"


def test_one_batch_by_heart():
    """32 contexts are learnt by heart"""
    model = train.MLP(config, 7190)
    optimizer = torch.optim.AdamW(model.parameters(), 0.003)
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5, f"after 40 steps on one batch the loss is {loss.item():.3g}, expected less than 0.5"


if __name__ == "__main__":
    run_checks(globals())
