"""Exercises 11 to 13: words of Shakespeare, from a feedforward net to a transformer."""

import math
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

from common import UserError, plotting
from common.text import join_words, prompt_words, split_words

import pytest
import torch
import torch.nn.functional as F
from helpers import check_causality, load, one_sentence, read_metrics, run
from hypothesis import given, strategies
from hypothesis import settings as hypothesis_settings
from matplotlib import font_manager

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import kneser_ney

pytestmark = pytest.mark.usefixtures("without_pictures")

LANGUAGE = pytest.mark.parametrize("number", [11, 12, 13])
SAMPLING = pytest.mark.parametrize("number", [12, 13])
CPU = torch.device("cpu")
TEXT = "the cat sat on the mat, and the dog sat on the cat. the mat is on the dog!\n" * 20


def small(ex, **fields):
    return ex.Config(channels=16, block_size=8, batch_size=8, dropout=0.0, **fields)


def new_model(number, vocab_size=50, **fields):
    ex = load(number)
    torch.manual_seed(0)
    config = small(ex, **fields)
    return ex, config, (ex.Transformer if number == 13 else ex.MLP)(config, vocab_size)


def settings(temperature=1.0, top_k=0, top_p=1.0):
    return SimpleNamespace(temperature=temperature, top_k=top_k, top_p=top_p)


@pytest.fixture
def scenes(shakespeare, tmp_path):
    """Return a file of the first twentieth of the text, whose test words are soon evaluated."""
    path = tmp_path / "scenes.txt"
    path.write_text(shakespeare[: len(shakespeare) // 20], encoding="utf-8")
    return path


def test_words_of_the_text(shakespeare):
    words = split_words(shakespeare)
    assert len(words) == 292_299
    assert "".join(words) == re.sub(r"[^\S\n]", "", shakespeare)  # nothing is lost but spaces
    text = join_words(words)
    assert split_words(text) == words
    lines, originals = text.split("\n"), shakespeare.split("\n")
    assert len(lines) == len(originals)
    assert sum(line == original for line, original in zip(lines, originals)) / len(lines) > 0.99


def test_join_words():
    text = "He said: well (so--and-so) [Aside] no!\nYes, 'tis; is't?\n\nI"
    assert join_words(split_words(text)) == text
    assert join_words([]) == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("μῆνιν ἄειδε θεὰ, Πηληϊάδεω", ["μῆνιν", "ἄειδε", "θεὰ", ",", "Πηληϊάδεω"]),
        ("naïve Straße, l’été d'or", ["naïve", "Straße", ",", "l’été", "d'or"]),
        ("cafe\u0301 Tie\u0302\u0301ng", ["cafe\u0301", "Tie\u0302\u0301ng"]),  # marks that combine with a letter
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("나는 간다.", ["나는", "간다", "."]),
        ("我有iPhone手机，你好。\n", [*"我有", "iPhone", *"手机，你好。\n"]),
        ("サーバーの「日本語」", list("サーバーの「日本語」")),
        ("❤\ufe0f 1\ufe0f\u20e3 2x_y", ["❤\ufe0f", "1\ufe0f\u20e3", "2", "x", "_", "y"]),
        ("\ufeffone \ufefftwo", ["one", "two"]),  # a byte order mark is no word
    ],
)
def test_words_of_other_alphabets(text, words):
    assert split_words(text) == words
    assert split_words(join_words(words)) == words


def test_join_words_of_a_script_without_spaces():
    text = "我有iPhone手机，你好。\n「是」 (so)"
    assert join_words(split_words(text)) == "我有iPhone手机，你好。\n「是」(so)"


@hypothesis_settings(max_examples=2_000, deadline=None, database=None)
@given(strategies.text(alphabet=strategies.sampled_from("a'’é\u0301ж我カー。ไน์1(.[]-\n \u3000_❤\ufe0f\u200d\ufeff")))
def test_join_words_loses_no_word(text):
    words = split_words(text)
    assert split_words(join_words(words)) == words


@LANGUAGE
def test_vocabulary(number, shakespeare, monkeypatch):
    ex = load(number)
    train, test, vocab = ex.read_tokens(ex.Config())
    assert (len(train), len(test), len(vocab)) == (263_069, 29_230, 7_190)
    assert vocab[0] == "<unk>"
    assert len(set(vocab)) == len(vocab)
    assert (test == 0).float().mean().item() == pytest.approx(0.061, abs=0.0005)
    words = split_words(shakespeare)
    assert all(vocab[n] in (word, "<unk>") for n, word in zip(train[:1000].tolist(), words))
    # It depends on the training part alone.
    monkeypatch.setattr("common.text.split_words", lambda text: words[:263_069] + ["zounds"] * 29_230)
    assert ex.read_tokens(ex.Config())[2] == vocab


@LANGUAGE
def test_vocabulary_is_the_words_seen_twice_in_training(number, tmp_path):
    ex = load(number)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(["a", "b", "a", "c", "b", "d", "a", "a", "b", "b"] * 9 + ["e", "f"] * 5), encoding="utf-8")
    train, test, vocab = ex.read_tokens(ex.Config(text=path, block_size=4))
    assert vocab == ["<unk>", "a", "b", "c", "d"]
    assert train[:5].tolist() == [1, 2, 1, 3, 2]
    assert test.tolist() == [0] * 10  # e and f are in the test part alone


@LANGUAGE
def test_every_test_word_is_scored_once_with_its_context(number):
    ex = load(number)
    for length, size in ((7, 4), (40, 8), (41, 8), (42, 5), (43, 1)):
        train, test = torch.arange(100), torch.arange(100, 100 + length)
        x, y, x_test, y_test = ex.make_data(ex.Config(block_size=size), train, test, CPU)
        assert x[0].tolist() == list(range(size))
        assert x.shape[1] == x_test.shape[1] == size
        if number < 13:
            assert (y == x[:, -1] + 1).all()
            assert y_test.tolist() == test.tolist()
            assert (y_test == x_test[:, -1] + 1).all()
            continue
        assert (y == x + 1).all()
        assert len(x) == 100 - size
        scored = y_test >= 0
        assert y_test[scored].tolist() == test.tolist()
        assert (y_test[scored] == x_test[scored] + 1).all()
        assert (scored.nonzero()[:, 1] >= size // 2).all()  # half a block before each, its own word counted
        assert (x_test >= 0).all()


@LANGUAGE
def test_evaluate(number):
    """Against a sum over all test words, one at a time, without dropout; the model goes on in training mode."""
    ex, config, model = new_model(number)
    model.dropout.p = 0.5
    train, test = torch.randint(50, (300,)), torch.randint(50, (75,))
    _, _, x, y = ex.make_data(config, train, test, CPU)
    found = ex.evaluate(model, x, y)
    assert model.training
    model.eval()
    losses, right = [], []
    for row, target in zip(x, y):
        logits = model(row[None])[0]
        for logit, word in zip(logits.reshape(-1, 50), target.reshape(-1)):
            if word >= 0:
                losses.append(-logit.log_softmax(0)[word].item())
                right.append(logit.argmax() == word)
    assert len(losses) == 75
    assert found["loss"] == pytest.approx(sum(losses) / 75, abs=1e-5)
    assert found["accuracy"] == pytest.approx(sum(right).item() / 75)


@LANGUAGE
def test_initial_loss_is_ln_v(number):
    ex, config, model = new_model(number, vocab_size=7190)
    x, y, *_ = ex.make_data(config, torch.randint(7190, (500,)), torch.randint(7190, (100,)), CPU)
    assert ex.evaluate(model, x, y)["loss"] == pytest.approx(math.log(7190), abs=0.1)


@LANGUAGE
def test_overfits(number):
    ex, config, model = new_model(number)
    train = torch.randint(50, (64,), generator=torch.Generator().manual_seed(0))
    x, y, *_ = ex.make_data(config, train, train, CPU)
    x, y = x[::8], y[::8]  # windows that do not overlap
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(300):
        loss = ex.loss_fn(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


@LANGUAGE
def test_table_is_tied_and_counted_once(number):
    _, config, model = new_model(number)
    assert model.head.weight is model.embedding.weight
    c, v, t = config.channels, 50, config.block_size
    count = sum(param.numel() for param in model.parameters())
    if number == 13:  # embeddings; blocks of two norms, attention and MLP; a last norm
        assert count == v * c + t * c + config.layers * (12 * c * c + 13 * c) + 2 * c
        bare = load(13).Transformer(small(load(13), bias=False), v)
        assert sum(param.numel() for param in bare.parameters()) == count - config.layers * 11 * c - c
    else:
        hidden = config.hidden
        assert config.layers == 2
        norms = 2 * (hidden * (config.layers - 1) + c)
        assert count == v * c + (t * c + 1) * hidden + (hidden + 1) * c + norms + v


def test_learning_rate():
    for number in (11, 12, 13):
        ex = load(number)
        config = ex.Config(learning_rate=0.5, warmup_steps=10, steps=100)
        rates = [ex.learning_rate(config, step) for step in range(100)]
        assert rates[0] == pytest.approx(0.05)  # not 0: the first step counts
        assert rates[9] == rates[10] == max(rates) == pytest.approx(0.5)  # the warm-up reaches the flag's rate
        assert rates[55] == pytest.approx(0.25)  # half-way down
        assert 0 < rates[99] < 0.001
        short = ex.Config(learning_rate=0.5, warmup_steps=10, steps=5)  # all of it warm-up
        assert [ex.learning_rate(short, step) for step in range(5)] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25])


@pytest.mark.parametrize("number", [11, 12])
def test_mlp_by_hand(number):
    _, config, model = new_model(number)
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.3)
    words = torch.randint(50, (6, 8))
    x = model.embedding.weight[words].reshape(6, 8 * 16)
    for layer, norm in zip(model.layers, model.norms, strict=True):
        x = (x @ layer.weight.T + layer.bias).clamp(min=0)
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        x = x * norm.weight + norm.bias
    torch.testing.assert_close(model(words), x @ model.embedding.weight.T + model.head.bias, atol=1e-4, rtol=1e-4)


@LANGUAGE
def test_dropout_is_there_in_training_alone(number):
    ex, _, _ = new_model(number)
    config = ex.Config(channels=16, block_size=8, dropout=0.5)
    model = (ex.Transformer if number == 13 else ex.MLP)(config, 50)
    words = torch.randint(50, (4, 8))
    seen = []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            assert module.p == 0.5
            module.register_forward_hook(lambda _, inputs, output: seen.append((output == 0).float().mean().item()))
    assert (model(words) != model(words)).any()
    # The embeddings; then every hidden layer, or every block's attention weights and its two corrections.
    assert len(seen) == 2 * (1 + config.layers * (3 if number == 13 else 1))
    assert all(share > 0.3 for share in seen)
    model.eval()
    assert (model(words) == model(words)).all()


@LANGUAGE
def test_weight_decay_pulls(number, tmp_path):
    ex = load(number)
    (tmp_path / "text.txt").write_text(TEXT)
    losses = []
    for decay in (0.1, 10.0):
        config = ex.Config(text=tmp_path / "text.txt", out=tmp_path / "out", steps=20, warmup_steps=1, device="cpu")
        config.weight_decay, config.batch_size, config.channels, config.learning_rate = decay, 8, 16, 0.01
        ex.main(config)
        losses.append(read_metrics(tmp_path / "out")["train", "loss"])
    assert losses[0][0] == losses[1][0]
    assert losses[0][19] != losses[1][19]


# Exercise 12


@SAMPLING
def test_draw(number):
    ex = load(number)
    probs = torch.tensor([0.5, 0.04, 0.3, 0.1, 0.06])  # of <unk> and of four words

    def share(n=4000, **options):
        generator = torch.Generator().manual_seed(0)
        words = [ex.draw(probs.log(), settings(**options), generator).item() for _ in range(n)]
        return torch.bincount(torch.tensor(words), minlength=5) / n

    known = probs.clone()
    known[0] = 0  # <unk> is never drawn
    known /= known.sum()  # 0, 0.08, 0.6, 0.2, 0.12
    torch.testing.assert_close(share(), known, atol=0.03, rtol=0)
    torch.testing.assert_close(share(top_k=2), torch.tensor([0, 0, 0.75, 0.25, 0]), atol=0.03, rtol=0)
    # The smallest set that reaches p: 0.6 alone; 0.6 and 0.2; those and 0.12.
    assert (share(top_p=0.59) > 0).tolist() == [False, False, True, False, False]
    assert (share(top_p=0.79) > 0).tolist() == [False, False, True, True, False]
    assert (share(top_p=0.81) > 0).tolist() == [False, False, True, True, True]
    # Top-k first: of 0.75 and 0.25, the first reaches 0.7.
    assert (share(top_k=2, top_p=0.7) > 0).tolist() == [False, False, True, False, False]
    squared = known**2 / (known**2).sum()
    torch.testing.assert_close(share(temperature=0.5), squared, atol=0.03, rtol=0)
    for temperature in (0.0, 1e-6):
        assert share(10, temperature=temperature).argmax() == 2
        assert share(10, temperature=temperature).max() == 1


@SAMPLING
def test_sample(number):
    ex, _, model = new_model(number)
    for param in model.parameters():
        torch.nn.init.normal_(param)  # so that what stands before a word matters
    config = small(ex, max_new_tokens=30, temperature=1.0, top_p=1.0)
    prompt = torch.tensor([0] * 8 + [3, 4])
    torch.manual_seed(5)
    first = ex.sample(model, prompt, config)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1) == after  # the training's own random numbers are untouched
    assert (first == ex.sample(model, prompt, config)).all()  # same seed, same sample
    assert (first != ex.sample(model, prompt, small(ex, max_new_tokens=30, seed=1))).any()
    assert first[:10].tolist() == prompt.tolist()
    assert len(first) == 40
    assert (first[10:] > 0).all()
    assert model.training
    # A shorter prompt stands behind <unk> in 12; 13 needs nothing there.
    short = ex.sample(model, prompt[8:], config)
    assert (short[2:].tolist() == first[10:].tolist()) == (number == 12)
    # Greedy: each word is the likeliest after the words before it.
    greedy = ex.sample(model, prompt, small(ex, max_new_tokens=5, temperature=0.0))
    model.eval()
    for end in range(10, 15):
        logits = model(greedy[None, end - 8 : end])[0].reshape(-1, 50)[-1]
        assert greedy[end] == 1 + logits[1:].argmax()
    assert len(set(greedy[10:].tolist())) > 1


TINY = {"block_size": 4, "channels": 16, "batch_size": 8, "device": "cpu", "dropout": 0.1, "eval_every": 5}


@SAMPLING
def test_sampling_changes_no_training_number(number, scenes, tmp_path):
    ex = load(number)
    for words in (1, 20):
        more = {"text": scenes, "prompt": "All:\n", "max_new_tokens": words, "out": tmp_path / str(words)}
        ex.main(ex.Config(steps=20, **TINY, **more))
    assert (tmp_path / "1" / "metrics.csv").read_bytes() == (tmp_path / "20" / "metrics.csv").read_bytes()
    text = (tmp_path / "20" / "samples.txt").read_text(encoding="utf-8")
    assert [int(step) for step in re.findall(r"^--- step (\d+), ", text, re.M)] == [0, 5, 10, 15, 20]
    assert "<unk>" not in text
    assert text.count("All:\n") == 5


def test_11_equals_12(scenes, tmp_path):
    """The new mode of evaluation is all that is new."""
    for number in (11, 12):
        ex = load(number)
        ex.main(ex.Config(text=scenes, steps=10, out=tmp_path / str(number), **TINY))
    assert (tmp_path / "11" / "metrics.csv").read_bytes() == (tmp_path / "12" / "metrics.csv").read_bytes()


def test_share_of_copied_4_grams(tmp_path):
    from common.record import Run

    ex = load(12)
    vocab = ["<unk>", "a", "b", ",", "\n"]
    words, training = torch.tensor([0, 1, 2, 3, 1, 2, 1, 1]), torch.tensor([1, 2, 3, 1, 2, 1, 4, 4])
    # Of the four 4-grams of known words, three stand in the training words: 1 2 3 1, 2 3 1 2, 3 1 2 1. Where three
    # words are drawn, the first of these is all of the prompt; where two are, so is the second.
    for drawn, share in ((100, "75%"), (8, "75%"), (4, "75%"), (3, "67%"), (2, "50%"), (1, "0%")):
        with Run(ex.Config(out=tmp_path, max_new_tokens=drawn), {"ln V": 1.0}) as run_:
            run_.sample(7, words, vocab, training)
        text = (tmp_path / "samples.txt").read_text(encoding="utf-8")
        assert text == f"--- step 7, {share} of its 4-grams stand in the training text\na b, a b a a\n\n"


def prompt(words, vocab, **fields):
    """Return what samples go on from in a text of words."""
    return prompt_words(load(12).Config(**fields), vocab, [vocab.index(word) for word in words])


def test_prompt(capsys):
    vocab = ["<unk>", "a", "b", "c", "\n"]
    assert prompt("abc", vocab, prompt="a c\\n") == ["a", "c", "\n"]
    assert capsys.readouterr().out == ""
    assert prompt("abc", vocab, prompt="a dog, b") == ["a", "dog", ",", "b"]
    assert "--prompt: the vocabulary lacks 'dog', ',';" in capsys.readouterr().out
    assert prompt("abcabcabcabc", vocab) == list("abcabcab")  # ROMEO is not asked for
    assert "it lacks 'ROMEO', ':'; set others with --prompt" in capsys.readouterr().out
    assert prompt("abc", [*vocab, "ROMEO", ":"]) == ["ROMEO", ":", "\n"]
    assert prompt("abc", list("abc"), prompt="cab") == list("cab")  # of characters
    assert prompt("abc", list("abc")) == list("abc")
    assert "it lacks 'R', 'O', 'M', 'E', ':', '\\n';" in capsys.readouterr().out
    for text in ("x" * 3000, "x " * 3000, " ".join(chr(ord("我") + i) for i in range(3000))):
        with pytest.raises(UserError) as error:
            prompt("abc", vocab, prompt=text)
        assert len(str(error.value)) < 220
        prompt("abc", vocab, prompt="a " + text)
        assert len(capsys.readouterr().out) < 220


def test_unknown_characters_are_named_in_a_line():
    ex = load(16)
    vocab = [chr(ord("一") + i) for i in range(3000)]
    with pytest.raises(
        UserError, match="^--prompt: the vocabulary lacks 'c', 'b', 'a': use only characters of '一丁丂.*…$"
    ) as error:
        ex.encode("cba" + vocab[7], vocab)
    assert len(str(error.value)) < 160
    with pytest.raises(UserError) as error:
        ex.encode(vocab, ["a"])
    assert len(str(error.value)) < 160


TEXTS = {  # of char-rnn #44, nanoGPT #434, tflearn #931
    "names": "\n".join(["emma", "olivia", "ava"] * 100),
    "Chinese": "天地玄黄，宇宙洪荒。\n日月盈昃，辰宿列张。" * 30,
    "DNA": "GATTACACATTAG" * 60,
    "digits": "31415926535897932384" * 40,
    "emoji": "😀😂❤👍🎉" * 100,
    "Greek": "μῆνιν ἄειδε θεὰ\n" * 60,
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("number", [12, 13, 16])
def test_any_text_runs_without_a_prompt(number, name, tmp_path, capsys):
    ex = load(number)
    (tmp_path / "text.txt").write_text(TEXTS[name], encoding="utf-8")
    config = ex.Config(text=tmp_path / "text.txt", out=tmp_path / "out", device="cpu", steps=1, max_new_tokens=3)
    config.batch_size, config.block_size, config.channels = 2, 4, 16
    if (number, name) in ((12, "DNA"), (13, "DNA")):  # one word, and no more
        with pytest.raises(UserError, match="must be more than --block-size 4, and hold one twice"):
            ex.main(config)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ex.main(config)
    text = (tmp_path / "out" / "samples.txt").read_text(encoding="utf-8")
    assert text.count("--- step") == 2
    words = list(TEXTS[name]) if number == 16 else split_words(TEXTS[name])
    assert "\n" + ("".join(words[:8]) if number == 16 else join_words(words[:8])) in text
    assert "samples continue the text's first tokens" in capsys.readouterr().out


# Exercise 13


@pytest.mark.draws
def test_attention_in_any_script(tmp_path, monkeypatch):
    """No warning of a glyph that is missing (matplotlib #14269): another font has it, or the picture says so."""
    words = ["天", "λόγος", "cafe\u0301", "\n", "$", "❤\ufe0f", "हिन्दी", "x" * 5000]
    weights = [torch.eye(len(words)).expand(2, -1, -1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plotting.plot_attention(tmp_path, weights, words)
        assert (tmp_path / "attention.png").stat().st_size > 0
        labels, fonts, _ = plotting._labels(["the", "\n", "x" * 5000])
    assert (labels[:2], len(labels[2]), fonts) == (["the", "\\n"], 20, ["DejaVu Sans"])

    with monkeypatch.context() as patch:
        figures = []
        patch.setattr(plotting, "_labels", lambda words: (words, ["DejaVu Serif", "DejaVu Sans"], "; a note"))
        patch.setattr(plotting, "save", lambda figure, path: figures.append(figure))
        plotting.plot_attention(tmp_path, weights, ["a"] * len(words))
    for label in figures[0].axes[1].get_xticklabels() + figures[0].axes[1].get_yticklabels():
        assert label.get_fontfamily() == ["DejaVu Serif", "DejaVu Sans"]
    assert figures[0].get_suptitle().endswith("; a note")

    # With fonts that have some, all, or none of the characters.
    fonts = [SimpleNamespace(name=name, fname=__file__) for name in "AB"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    monkeypatch.setattr(font_manager, "findfont", lambda name: name)
    monkeypatch.setattr(font_manager, "get_font", lambda path: SimpleNamespace(get_charmap=lambda: next(charmap)))
    for maps, expected in (
        (["ab", "地", "天"], (["天a", "地"], ["DejaVu Sans", "A", "B"], "")),
        (["ab", "天地", "天"], (["天a", "地"], ["DejaVu Sans", "A"], "")),
        (["ab", "天", "ab"], (["天a", "□"], ["DejaVu Sans", "A"], "\n□: a character that no font here has")),
    ):
        charmap = iter([{ord(char): 1 for char in chars} for chars in maps])
        assert plotting._labels(["天a", "地"]) == expected


def test_causality():
    _, _, model = new_model(13, layers=3)
    model.eval()
    check_causality(model, torch.randint(50, (4, 8)))


def test_attention_against_torch():
    ex, config, _ = new_model(13)
    attention = ex.Attention(config)
    x = torch.randn(3, 8, 16)
    out = attention(x)
    weights = attention.weights
    assert weights.shape == (3, 4, 8, 8)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 8))
    assert (weights.triu(1) == 0).all()
    assert (weights.tril() > 0).sum() == 3 * 4 * 36
    q, k, v = (part.reshape(3, 8, 4, 4).transpose(1, 2) for part in attention.qkv(x).split(16, dim=-1))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    expected = attention.out(y.transpose(1, 2).reshape(3, 8, 16))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def twin(block):
    """Return torch's own pre-norm encoder layer, with tanh GELU, and the weights of a block."""
    theirs = torch.nn.TransformerEncoderLayer(
        16, 4, 64, dropout=0.0, activation=lambda x: F.gelu(x, approximate="tanh"), batch_first=True, norm_first=True
    )
    pairs = {
        "self_attn.in_proj_weight": block.attention.qkv.weight,
        "self_attn.in_proj_bias": block.attention.qkv.bias,
        "self_attn.out_proj.weight": block.attention.out.weight,
        "self_attn.out_proj.bias": block.attention.out.bias,
        "linear1.weight": block.up.weight,
        "linear1.bias": block.up.bias,
        "linear2.weight": block.down.weight,
        "linear2.bias": block.down.bias,
        "norm1.weight": block.norm1.weight,
        "norm1.bias": block.norm1.bias,
        "norm2.weight": block.norm2.weight,
        "norm2.bias": block.norm2.bias,
    }
    theirs.load_state_dict(pairs)
    return theirs


def test_transformer_against_torch():
    """The whole model, with all parameters at random, is torch's encoder between embeddings and a tied head."""
    _, config, model = new_model(13)
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.3)
    words = torch.randint(50, (3, 8))
    x = model.embedding.weight[words] + model.positions.weight[:8]
    mask = torch.nn.Transformer.generate_square_subsequent_mask(8)
    for block in model.blocks:
        x = twin(block)(x, src_mask=mask)
    x = F.layer_norm(x, (16,), model.norm.weight, model.norm.bias)
    torch.testing.assert_close(model(words), x @ model.embedding.weight.T, atol=1e-3, rtol=1e-4)


def test_initial_weights_of_the_transformer():
    ex = load(13)
    torch.manual_seed(0)
    model = ex.Transformer(ex.Config(channels=128, layers=2, init_std=0.04), 1000)
    for name, param in model.named_parameters():
        if param.ndim == 2:
            std = 0.02 if name.endswith(("out.weight", "down.weight")) else 0.04
            assert param.std().item() == pytest.approx(std, rel=0.05), name
        else:
            assert (param == (0 if name.endswith("bias") else 1)).all(), name


# The baselines


def test_kneser_ney_is_a_distribution():
    torch.manual_seed(0)
    tokens = torch.randint(6, (200,)).tolist()
    for order in (1, 2, 3):
        model = kneser_ney.KneserNey(tokens, order, 0.7, 8)
        for history in ((), (0,), (1, 2), (5, 5), (7, 7), tuple(tokens[:2])):
            assert sum(model.probability(history, word) for word in range(8)) == pytest.approx(1)
            assert all(model.probability(history, word) > 0 for word in range(8))
    # By hand: "a b a c" as a bigram model. After a stand b and c, once each; of the three kinds of bigrams each word
    # ends one. So P(b) = (1 - d) / 3 + d / V, and P(b | a) = (1 - d) / 2 + d P(b).
    model = kneser_ney.KneserNey([0, 1, 0, 2], 2, 0.5, 4)
    unigram = 0.5 / 3 + 0.5 / 4
    assert model.probability((0,), 1) == pytest.approx(0.5 / 2 + 0.5 * unigram)


def test_kneser_ney_baselines(shakespeare):
    ex = load(11)
    train, test, vocab = ex.read_tokens(ex.Config())
    found = {}
    for order, discount in ((1, 0.95), (2, 0.85), (3, 0.9)):
        model = kneser_ney.KneserNey(train.tolist(), order, discount, len(vocab))
        found[order] = model.loss(train.tolist() + test.tolist(), len(train))
    assert found == {
        1: pytest.approx(5.518, abs=0.005),
        2: pytest.approx(4.568, abs=0.005),
        3: pytest.approx(4.451, abs=0.005),
    }


# Runs


@LANGUAGE
def test_short_run_learns_and_repeats(number, scenes, tmp_path, capsys):
    ex = load(number)
    options = {
        "text": scenes,
        "steps": 150,
        "eval_every": 50,
        "channels": 64,
        "warmup_steps": 20,
        "learning_rate": 0.01,
        "device": "cpu",
    }
    for name in "ab":
        metrics = ex.main(ex.Config(out=tmp_path / name, **options))
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()
    series = read_metrics(tmp_path / "a")
    assert list(series["train", "loss"]) == list(range(150))
    assert list(series["test", "loss"]) == [0, 50, 100, 150]
    unigram = float(re.search(r"unigram ([0-9.]+)", capsys.readouterr().out)[1])
    assert series["test", "loss"][150] == metrics["test_loss"] < unigram - 0.05
    assert metrics["test_perplexity"] == pytest.approx(math.exp(metrics["test_loss"]))


@LANGUAGE
def test_text_of_ones_own(number, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    prompt = ("--prompt", "the cat") if number > 11 else ()
    flags = ("--text", tmp_path / "text.txt", "--steps", 300, "--learning-rate", 0.01, "--channels", 32)
    result = run(number, *flags, "--batch-size", 16, *prompt, "--out", tmp_path / "out", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert float(re.search(r"test_loss=(\S+)", result.stdout)[1]) < 1


@pytest.mark.parametrize(
    ("content", "flags", "words"),
    [
        (b"", (), "is empty"),
        (b"  \n\n", (), "is empty"),
        (b"\xff\xfe\x00", (), "is not UTF-8 text"),
        (b"one two three", (), "must be more than --block-size"),
        (b" ".join(b"w" + b"x" * i for i in range(200)), (), "and hold one twice"),
        (TEXT.encode(), ("--block-size", 1000), "must be more than --block-size 1000"),
        (TEXT.encode(), ("--dropout", 1), "--dropout must be at least 0 and at most 0.99"),
        (TEXT.encode(), ("--prompt", ""), "--prompt is empty"),
        (TEXT.encode(), ("--prompt", "zounds"), "--prompt: the vocabulary lacks 'zounds'"),
        (TEXT.encode(), ("--prompt", "the", "--top-k", 1000), "--top-k 1000 is larger than the"),
        (TEXT.encode(), ("--temperature", -1), "--temperature must be at least 0"),
        (TEXT.encode(), ("--top-p", 1.5), "--top-p must be at least 0.01 and at most 1"),
        (TEXT.encode(), ("--heads", 3), "must be a multiple of --heads 3"),
        (None, (), "cannot read the text"),
    ],
)
def test_bad_input(content, flags, words, tmp_path):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    result = run(13, "--text", path, "--out", tmp_path / "out", "--steps", 1, *flags)
    one_sentence(result, words)
    assert not (tmp_path / "out").exists()
