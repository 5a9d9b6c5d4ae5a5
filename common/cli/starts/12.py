"""To do:
1. Config: prompt, max_new_tokens, temperature, top_k, top_p.
2. draw(logits, config, generator): a token id (1,) from the logits (V,); never <unk>, which is token 0.
3. sample(model, tokens, config): the tokens (L,) and those that the model draws after them, without dropout.
4. main: run.write_sample(f"step {step}", …) at every evaluation, with a generator of its own.
"""

from common.cli.check_it import are_equal, has_shape, is_near, program, run_checks, run_main

import numpy as np
import torch
import train

logits = torch.tensor([9.0, 1.0, 3.0, 2.0, -1.0])  # (V,)


def draws(number=400, **flags):
    config, generator = train.Config(**flags), torch.Generator().manual_seed(0)
    return [train.draw(logits.clone(), config, generator).item() for _ in range(number)]


def test_shape():
    """draw returns one token id, of shape (1,), and never <unk>"""
    has_shape("a draw", train.draw(logits.clone(), train.Config(), torch.Generator().manual_seed(0)), 1)
    assert 0 not in draws(temperature=2.0, top_p=1.0), "<unk> was drawn, which has the largest logit here"


def test_temperature():
    """temperature 0 takes the likeliest token; 1 draws as the softmax says"""
    assert set(draws(20, temperature=0.0)) == {2}, f"temperature 0 drew {set(draws(20, temperature=0.0))}, expected 2"
    there = np.bincount(draws(2000, temperature=1.0, top_p=1.0), minlength=5) / 2000
    are_equal("shares of draws at temperature 1", there[1:], torch.softmax(logits[1:], 0).numpy(), 0.04)


def test_top_k():
    """top-k of 2 draws the two likeliest tokens, top-k of 1 what temperature 0 takes"""
    drawn = set(draws(temperature=2.0, top_k=2, top_p=1.0))
    assert drawn == {2, 3}, f"top-k of 2 drew {drawn}, expected 2 and 3"
    assert set(draws(20, temperature=2.0, top_k=1)) == {2}, "top-k of 1 drew more than the likeliest token"


def test_top_p():
    """top-p of 0.5 draws the likeliest token, which has 64 %; 0.7 the two likeliest"""
    for top_p, wanted in ((0.5, {2}), (0.7, {2, 3})):
        drawn = set(draws(temperature=1.0, top_p=top_p))
        assert drawn == wanted, f"top-p of {top_p} drew {drawn}, expected {wanted}"


def test_sample():
    """a sample begins with its prompt, is as long as it should be, and the same seed gives the same"""
    config = train.Config(max_new_tokens=7)
    model = train.MLP(config, 20)
    prompt = torch.tensor([3, 4])
    first, second = (train.sample(model, prompt, config) for _ in "ab")
    has_shape("the sample", first, 9)
    are_equal("the prompt", first[:2], prompt, 0)
    are_equal("two samples of one seed", first, second, 0)
    assert model.training, "after sample the model is still in evaluation: no dropout from then on"


def test_losses():
    """the training losses are exercise 11's, to the last digit, and a samples.txt is written"""
    _, losses, files = run_main(train, dry_run=True, dropout=0.1)
    _, wanted, _ = run_main(program(11), dry_run=True, dropout=0.1)
    for mine, theirs in zip(losses, wanted):
        is_near("a loss", mine, theirs, 0)
    assert "samples.txt" in files, "there is no samples.txt: run.write_sample writes it"


if __name__ == "__main__":
    run_checks(globals())
