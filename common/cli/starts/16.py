"""To do:
1. read_tokens: characters; all that occur are in the vocabulary. make_data: validation in blocks, each token once.
2. batches(config, n, step, device): from any step on the same as if they had been drawn from the first.
3. Attention: F.scaled_dot_product_attention in place of your own; no biases by default.
4. Transformer.forward(tokens, y=None): the loss where y is given. bfloat16 where the device has it.
5. make_optimizers(config, model): a list of one, AdamW with weight decay on matrices alone. Clip the gradients.
6. Checkpoints: save at every evaluation, and go on from there (common.checkpoint). Print milliseconds per step.
"""

from itertools import islice

from common.cli.check_it import are_equal, has_shape, is_near, program, run_checks, run_main

import torch
import train

torch.manual_seed(0)
sizes = {"layers": 2, "channels": 32, "heads": 4, "block_size": 8}
config = train.Config(**sizes, batch_size=4)
tokens, following = torch.randint(50, (4, 8)), torch.randint(50, (4, 8))  # (B, T), (B, T)


def test_logits():
    """with the same weights, the logits are exercise 13's"""
    parent = program(13)
    theirs = parent.Transformer(parent.Config(**sizes, bias=True), 50).eval()
    mine = train.Transformer(train.Config(**sizes, bias=True), 50).eval()
    mine.load_state_dict(theirs.state_dict())
    are_equal("the logits", mine(tokens).detach(), theirs(tokens).detach(), 1e-4)


def test_loss():
    """given targets, the model returns the loss of its logits"""
    model = train.Transformer(config, 50)
    is_near("the loss", model(tokens, following).item(), train.loss_fn(model(tokens), following).item(), 1e-5)


def test_bias():
    """there are no biases by default: only norms' scales beside the matrices"""
    names = [name for name, param in train.Transformer(config, 50).named_parameters() if name.endswith("bias")]
    assert not names, f"there are biases: {', '.join(names[:5])}"


def test_batches():
    """batches from step 7 on are the eighth and later ones; an epoch has no token twice"""
    first = list(islice(train.batches(config, 200, 0, "cpu"), 12))
    later = list(islice(train.batches(config, 200, 7, "cpu"), 5))
    for mine, wanted in zip(later, first[7:]):
        are_equal("a batch", mine, wanted, 0)
    has_shape("a batch", first[0], 4)
    epoch = torch.cat(first[: 200 // 8 // 4]).sort().values  # where the samples of an epoch begin
    assert epoch.diff().min() >= 8, "two samples of an epoch overlap"


def test_optimizer():
    """weight decay is on matrices, not on the scales of norms"""
    model = train.Transformer(config, 50)
    groups = [group for optimizer in train.make_optimizers(config, model) for group in optimizer.param_groups]
    assert groups, "make_optimizers returns no optimizer"
    for group in groups:
        for param in group["params"]:
            wanted = config.weight_decay if param.ndim >= 2 else 0.0
            is_near(f"weight decay of a {tuple(param.shape)} parameter", group["weight_decay"], wanted, 0)


def test_validation():
    """each validation token is scored once"""
    *_, y = train.make_data(config, torch.arange(100), torch.arange(100, 130), torch.device("cpu"))
    scored = sorted(y[y >= 0].tolist())
    assert scored == list(range(100, 130)), f"scored tokens: {scored}"


def test_checkpoint():
    """a run leaves a checkpoint"""
    files = run_main(train, dry_run=True)[2]
    assert "checkpoint.pt" in files, f"there is no checkpoint.pt among its files: {', '.join(sorted(files))}"


if __name__ == "__main__":
    run_checks(globals())
