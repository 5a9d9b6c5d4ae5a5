"""To do:
1. make_data: samples of T tokens, and as targets the same moved on by one, (N, T) both. Test windows overlap by half,
   and -1 marks the targets that are not scored.
2. Attention(config): causal self-attention with config.heads heads, written yourself. It maps (B, T, C) to (B, T, C).
3. Block(config): attention, then an MLP, each behind a LayerNorm and with a shortcut.
4. Transformer(config, vocab_size): tokens (B, T) to logits (B, T, V), with the embedding's table at the end.
5. loss_fn(logits, y) over all positions; evaluate on those that are scored; sample reads the last position.
6. Config: heads, bias, a block_size of 32, and the lesson's sizes.
"""

import math

from common.cli.check_it import are_equal, has_shape, is_near, run_checks

import torch
import train

torch.manual_seed(0)
tokens, following = torch.randint(1, 50, (4, 8)), torch.randint(1, 50, (4, 8))  # (B, T), (B, T)


def config(**flags):
    return train.Config(**{"layers": 2, "channels": 32, "heads": 4, "block_size": 8, "dropout": 0.0} | flags)


def test_data():
    """targets are the next tokens, and each test token is scored once"""
    x, y, x_test, y_test = train.make_data(config(), torch.arange(100), torch.arange(100, 131), torch.device("cpu"))
    has_shape("the training tokens", x, 92, 8)
    assert x[5, 1:].equal(y[5, :-1]), f"sample 5 is {x[5].tolist()}, its targets {y[5].tolist()}"
    scored = y_test[y_test >= 0]
    assert sorted(scored.tolist()) == list(range(100, 131)), f"scored test tokens: {sorted(scored.tolist())}"
    assert all((target == token + 1) for token, target in zip(x_test[y_test >= 0], scored)), "targets are not the next"


def test_shapes():
    """attention keeps the shape, logits are (B, T, V), also for a text that is shorter than a block"""
    has_shape("attention's answer", train.Attention(config())(torch.randn(4, 8, 32)), 4, 8, 32)
    model = train.Transformer(config(), 50)
    has_shape("the logits", model(tokens), 4, 8, 50)
    has_shape("the logits of three tokens", model(tokens[:, :3]), 4, 3, 50)


def test_causality():
    """a change of a token changes no logit before it, and those from it on"""
    model, changed = train.Transformer(config(), 50), tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 50
    there = (model(tokens) - model(changed)).abs().amax((0, 2))  # (T,)
    assert there[:5].max() < 1e-6, f"token 5 changes the logits at positions {there.nonzero().flatten().tolist()}"
    assert there[5:].min() > 1e-6, f"token 5 changes the logits at positions {there.nonzero().flatten().tolist()} only"


def test_order():
    """what came before is not a heap: another order gives other logits"""
    model, turned = train.Transformer(config(layers=1), 50), tokens.clone()  # two layers could tell the order anyway
    turned[:, :4] = tokens[:, [1, 0, 3, 2]]
    assert (model(tokens) - model(turned))[:, -1].abs().max() > 1e-6, "positions make no difference"


def test_attention():
    """what is read from earlier tokens: scores are divided by the root of a head's width, heads look by themselves"""
    torch.manual_seed(1)
    attention, x = train.Attention(config(heads=1)), 3 * torch.randn(1, 8, 32)
    q, k, v = attention.qkv(x).chunk(3, -1) if hasattr(attention, "qkv") else (None, None, None)
    if q is not None:  # torch's own kernel as the oracle, where the layers have the lesson's names
        wanted = attention.out(torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        are_equal("attention's answers", attention(x).detach(), wanted.detach(), 1e-5)
    answers = []
    for heads in (1, 4):
        torch.manual_seed(2)
        answers.append(train.Attention(config(heads=heads))(x))
    assert (answers[0] - answers[1]).abs().max() > 1e-6, "one head and four give the same"


def test_table():
    """the embedding's table also makes the logits: there is one of (V, C)"""
    model = train.Transformer(config(), 50)
    tables = {id(param) for param in model.parameters() if tuple(param.shape) == (50, 32)}
    is_near("the number of tables of (V, C)", len(tables), 1, 0)


def test_first_loss():
    """the first loss is near ln V"""
    loss = train.loss_fn(train.Transformer(config(), 50)(tokens), following).item()
    is_near("the first loss", loss, math.log(50), 0.3)


def test_evaluate():
    """evaluation leaves out what is marked -1, has no dropout, and leaves the model in training"""
    model, y = train.Transformer(config(dropout=0.3), 50), following.clone()
    y[:, :4] = -1
    measured = train.evaluate(model, tokens, y)["loss"]
    assert model.training, "after evaluate the model is still in evaluation: no dropout from then on"
    model.eval()
    is_near("the loss", measured, train.loss_fn(model(tokens)[:, 4:], following[:, 4:]).item(), 1e-5)


def test_sample():
    """a sample begins with its prompt, and may become longer than a block"""
    text = train.sample(train.Transformer(config(), 50), torch.tensor([3, 4]), config(max_new_tokens=12))
    has_shape("the sample", text, 14)
    are_equal("the prompt", text[:2], torch.tensor([3, 4]), 0)


def test_one_batch_by_heart():
    """four blocks are learnt by heart"""
    model = train.Transformer(config(), 50)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        loss = train.loss_fn(model(tokens), following)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1, f"after 100 steps on one batch the loss is {loss.item():.3g}, expected less than 0.1"


if __name__ == "__main__":
    run_checks(globals())
