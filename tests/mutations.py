"""Make one mistake after another in a copy of the checkout, and see that the tests notice every one.

    python tests/mutations.py                                  all of them, one after the other
    python tests/mutations.py --only 13-sees-the-next-token    some
    python tests/mutations.py --results results.json           go on where a run with the same file was cut off

Each is a change of one line that a learner or a maintainer could make by mistake, and names the tests that should fail.
The exit code is 1 if one survives, takes too long, or is of a line that is no longer there.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Config:
    only: tuple[str, ...] = ()  # names of mutations; these run also if their results are known
    list: bool = False  # print the names, run nothing
    jobs: int = 1  # processes at the same time
    limit: float = 180.0  # seconds after which the tests of a mutation are stopped
    results: Path | None = None  # JSON file that keeps the results


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    before: str  # what must be in the file exactly once
    after: str
    tests: tuple[str, ...]  # "foundations::noise_flag" is test_noise_flag in tests/test_foundations.py

    @property
    def node_ids(self) -> list[str]:
        """Return the tests as pytest calls them."""
        return ["tests/test_{}.py::test_{}".format(*test.split("::")) for test in self.tests]

    @property
    def digest(self) -> str:
        """Return a key that changes when the mutation does."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    def apply(self, source: str) -> str | None:
        """Return the mutated source; None if what should change is not there exactly once."""
        return source.replace(self.before, self.after) if source.count(self.before) == 1 else None


FOUNDATIONS = {
    "ex01_linreg_numpy/train.py": [
        ("01-gradient-without-2", "2 * (prediction - y)", "(prediction - y)", "foundations::01_gradient_by_hand"),
        (
            "01-gradient-is-a-mean",
            "(d_prediction * x).sum()",
            "(d_prediction * x).mean()",
            "foundations::01_gradient_by_hand",
        ),
        (
            "01-bias-gradient-of-w",
            "d_b = d_prediction.sum()",
            "d_b = (d_prediction * x).sum()",
            "foundations::01_gradient_by_hand",
        ),
        (
            "01-no-shuffle",
            "order = rng.permutation(n)",
            "order = np.arange(n)",
            "foundations::batches_shuffle_every_epoch",
        ),
        (
            "01-last-batch-dropped",
            "range(0, n - batch_size + 1, batch_size)",
            "range(0, n - batch_size, batch_size)",
            "foundations::01_equals_02[0]",
        ),
        ("01-whitened-by-the-variance", "/ x.std()", "/ x.var()", "foundations::01_whitening"),
        (
            "01-evaluated-on-the-last-batch",
            "final = evaluate(model, x, y)",
            "final = evaluate(model, x_batch, y_batch)",
            "foundations::01_equals_02[0]",
        ),
        (
            "01-noise-flag-not-used",
            "rng.normal(0.0, config.noise, config.num_samples)",
            "rng.normal(0.0, 0.1, config.num_samples)",
            "foundations::noise_flag",
        ),
    ],
    "ex02_linreg_torch/train.py": [
        (
            "02-gradients-pile-up",
            "                    param.grad = None",
            "                    pass",
            "foundations::01_equals_02[0]",
        ),
    ],
    "ex03_vector_regression/train.py": [
        ("03-whitened-by-the-variance", "np.sqrt(variances)", "variances", "foundations::03_to_06_whitening[3]"),
        ("03-axes-transposed", "@ axes / np", "@ axes.T / np", "foundations::03_to_06_whitening[3]"),
        ("03-no-bias", "return x @ w + b", "return x @ w", "foundations::03_with_one_feature_fits_like_02"),
    ],
    "ex04_softmax/train.py": [
        (
            "04-softmax-over-the-batch",
            "exp().sum(1, keepdim=True)",
            "exp().sum(0, keepdim=True)",
            "foundations::log_softmax_by_hand[4]",
        ),
        (
            "04-largest-logit-of-the-batch",
            "logits.amax(1, keepdim=True)",
            "logits.amax()",
            "foundations::log_softmax_is_stable[4]",
        ),
        ("04-sign-of-the-loss", "return -log_probs[", "return log_probs[", "foundations::log_softmax_by_hand[4]"),
        (
            "04-likeliest-class-instead-of-a-draw",
            "(truth + rng.gumbel(size=truth.shape)).argmax(1)",
            "truth.argmax(1)",
            "foundations::04_classes_are_drawn_from_the_softmax",
        ),
    ],
    "ex05_ffn_manual/train.py": [
        ("05-half-of-he", "(2 / fan_in) ** 0.5", "(1 / fan_in) ** 0.5", "foundations::05_he_initialisation"),
        ("05-last-layer-starts-large", "layers[-2] *= 0.1", "layers[-2] *= 1.0", "foundations::05_he_initialisation"),
        (
            "05-seed-of-the-weights-not-used",
            "torch.manual_seed(config.seed)",
            "torch.manual_seed(0)",
            "foundations::seed_is_that_of_the_weights_too[5]",
        ),
        (
            "05-twist-grows-with-the-square",
            "config.twist * np.abs(plane)",
            "config.twist * np.abs(plane) ** 2",
            "foundations::05_winding_turns_every_point_about_the_middle",
        ),
    ],
    "ex06_ffn_nn/train.py": [
        (
            "06-relu-behind-the-last-layer",
            "super().__init__(*layers[:-1])",
            "super().__init__(*layers)",
            "foundations::05_equals_06[1]",
        ),
        ("06-zero-grad-forgotten", "optimizer.zero_grad()", "pass", "foundations::05_equals_06[1]"),
        (
            "06-seed-of-the-data-not-used",
            "np.random.default_rng(config.seed)",
            "np.random.default_rng(0)",
            "foundations::seed_is_that_of_the_data[6]",
        ),
    ],
}

MNIST = {
    "ex07_mnist_mlp/train.py": [
        (
            "07-not-normalised",
            "(torch.from_numpy(images) / 255 - 0.1307) / 0.3081",
            "torch.from_numpy(images) / 255",
            "mnist_mlp::data_are_what_the_lesson_says",
        ),
        (
            "07-measured-on-the-training-set",
            "test = evaluate(model, x_test, y_test)",
            "test = evaluate(model, x, y)",
            "mnist_mlp::trains_on_training_and_measures_on_test_data",
        ),
        (
            "07-seed-of-the-weights-not-used",
            "torch.manual_seed(config.seed)",
            "torch.manual_seed(0)",
            "mnist_mlp::trains_on_training_and_measures_on_test_data",
        ),
        ("07-zero-grad-forgotten", "optimizer.zero_grad()", "pass", "mnist_mlp::short_run_learns_and_repeats"),
    ],
    "ex08_mnist_adam/train.py": [
        (
            "08-no-decay-of-the-learning-rate",
            "optax.cosine_decay_schedule(config.learning_rate, config.steps)",
            "optax.constant_schedule(config.learning_rate)",
            "mnist_adam::optax_and_torch_walk_together[adam]",
        ),
        ("08-more-momentum", "momentum=0.9)", "momentum=0.99)", "mnist_adam::optax_and_torch_walk_together[momentum]"),
        (
            "08-one-key-for-weight-and-bias",
            "jax.random.uniform(b_key",
            "jax.random.uniform(w_key",
            "mnist_adam::parameters",
        ),
        (
            "08-initial-weights-too-large",
            "bound = fan_in**-0.5",
            "bound = (3 / fan_in) ** 0.5",
            "mnist_adam::parameters",
        ),
        ("08-loss-is-a-sum", "labels(logits, y).mean()", "labels(logits, y).sum()", "mnist_adam::07_equals_08[1]"),
        (
            "08-measured-on-the-training-set",
            "test = evaluate(params, x_test, y_test)",
            "test = evaluate(params, x, y)",
            "mnist_adam::evaluates_on_the_test_set[8]",
        ),
    ],
    "ex09_mnist_cnn/train.py": [
        (
            "09-dropout-not-scaled",
            "x.shape) / (1 - dropout)",
            "x.shape)",
            "mnist_convnets::share_and_scale_of_what_is_dropped[9]",
        ),
        (
            "09-keeps-what-it-should-drop",
            "bernoulli(key, 1 - dropout, x.shape)",
            "bernoulli(key, dropout, x.shape)",
            "mnist_convnets::share_and_scale_of_what_is_dropped[9]",
        ),
        (
            "09-evaluates-with-dropout",
            "logits = forward(params, x)",
            "logits = forward(params, x, True, jax.random.key(0), 0.5)",
            "mnist_convnets::evaluate_is_not_in_training_mode[9]",
        ),
        (
            "09-drops-the-same-at-every-step",
            "jax.random.fold_in(dropout_key, step)",
            "dropout_key",
            "mnist_convnets::other_features_are_dropped_at_every_step[9]",
        ),
        (
            "09-fan-in-without-channels",
            "np.prod(fan_in) ** -0.5",
            "np.prod(fan_in[:2]) ** -0.5",
            "mnist_convnets::initial_weights",
        ),
    ],
    "ex10_mnist_resnet/train.py": [
        (
            "10-no-shortcut",
            "return jax.nn.relu(x + h), stats",
            "return jax.nn.relu(h), stats",
            "mnist_convnets::a_new_block_is_the_identity",
        ),
        (
            "10-relu-before-the-sum",
            "return jax.nn.relu(x + h), stats",
            "return x + jax.nn.relu(h), stats",
            "mnist_convnets::resnet_equals_torch[True-True]",
        ),
        (
            "10-weight-decay-of-all",
            "weight_decay=config.weight_decay, mask=weights",
            "weight_decay=config.weight_decay",
            "mnist_convnets::weight_decay_is_of_weights_alone[10]",
        ),
        (
            "10-running-mean-moves-too-far",
            '0.9 * stats["mean"] + 0.1 * mean',
            '0.1 * stats["mean"] + 0.9 * mean',
            "mnist_convnets::batch_norm_equals_torch",
        ),
        ("10-variance-not-about-the-mean", "square - mean**2", "square", "mnist_convnets::batch_norm_equals_torch"),
        (
            "10-running-variance-is-biased",
            "unbiased = var * n / max(n - 1, 1)",
            "unbiased = var",
            "mnist_convnets::batch_norm_equals_torch",
        ),
        (
            "10-running-statistics-stay",
            "stages[i].append(stats)",
            'stages[i].append(batch_stats["stages"][i][j])',
            "mnist_convnets::running_statistics_are_not_trained[10]",
        ),
        (
            "10-evaluates-by-the-batch",
            "forward(params, batch_stats, x)  # (N, K)",
            "forward(params, batch_stats, x, True, jax.random.key(0))",
            "mnist_convnets::evaluate_is_not_in_training_mode[10]",
        ),
        (
            "10-blocks-start-at-full-scale",
            "scale=0.0 if config.shortcuts else 1.0",
            "scale=1.0",
            "mnist_convnets::a_new_block_is_the_identity",
        ),
        (
            "10-half-of-he",
            "np.sqrt(2 / np.prod(shape[:-1]))",
            "np.sqrt(1 / np.prod(shape[:-1]))",
            "mnist_convnets::initial_weights",
        ),
        (
            "10-max-instead-of-mean-pooling",
            "x = x.mean((1, 2))",
            "x = x.max((1, 2))",
            "mnist_convnets::resnet_equals_torch[True-True]",
        ),
    ],
    "ex10_mnist_resnet/gradients.py": [
        ("10-gradients-from-last-to-first", "return norms[::-1]", "return norms", "mnist_convnets::gradients"),
    ],
    "ex14_gpu_resnet/train.py": [
        ("14-turns-one-way-only", "minval=-1)", "minval=0)", "gpu_resnet::augment"),
        ("14-shears-by-another-sign", "[cos - shear * sin, -sin]", "[cos + shear * sin, -sin]", "gpu_resnet::augment"),
        (
            "14-turns-about-another-centre",
            "np.array([height - 1, width - 1]) / 2",
            "np.array([height, width]) / 2",
            "gpu_resnet::affine_equals_scipy",
        ),
        (
            "14-same-noise-at-every-step",
            "jax.random.fold_in(key, step)",
            "jax.random.fold_in(key, 0)",
            "gpu_resnet::scanned_steps_equal_single_ones_and_a_loop_of_train_step",
        ),
        (
            "14-steps-of-a-call-one-late",
            "steps = first + jnp.arange(len(index))",
            "steps = first + 1 + jnp.arange(len(index))",
            "gpu_resnet::scanned_steps_equal_single_ones_and_a_loop_of_train_step",
        ),
        ("14-pools-in-bfloat16", "x = x.mean((1, 2), jnp.float32)", "x = x.mean((1, 2))", "gpu_resnet::bfloat16"),
        ("14-precision-not-used", "x[index], config), config.precision)", "x[index], config))", "gpu_resnet::bfloat16"),
        (
            "14-evaluations-missed-within-a-call",
            "step % config.eval_every < config.steps_per_call",
            "step % config.eval_every == 0",
            "gpu_resnet::every_loss_is_recorded_and_evaluations_where_asked[2]",
        ),
        (
            "14-clock-counts-evaluations",
            "            start = time.perf_counter()\n        index = ",
            "        index = ",
            "gpu_resnet::clock_counts_neither_evaluations_nor_compiling",
        ),
        (
            "14-every-seed-the-first",
            "_, test, seconds = train(config, seed, ",
            "_, test, seconds = train(config, config.seed, ",
            "gpu_resnet::seeds",
        ),
        (
            "14-losses-recorded-a-step-late",
            'run.record(step, "train", loss=losses)',
            'run.record(step + 1, "train", loss=losses)',
            "gpu_resnet::every_loss_is_recorded_and_evaluations_where_asked[2]",
        ),
    ],
}

IMAGENET = {
    "ex15_imagenet/train.py": [
        (
            "15-channels-in-opencvs-order",
            "np.array([0.485, 0.456, 0.406])",
            "np.array([0.406, 0.456, 0.485])",
            "imagenet::normalise",
        ),
        (
            "15-moving-average-not-evaluated",
            'run.record(config.steps, "validation", **evaluate(config, *state[3]',
            'run.record(config.steps, "validation", **evaluate(config, *state[:2]',
            "imagenet::what_is_loaded_and_what_is_evaluated",
        ),
        ("15-moving-average-of-the-newest", "mean, 1 - keep)", "mean, keep)", "imagenet::ema_by_hand[0.5]"),
        (
            "15-moving-average-starts-slowly",
            "keep = jnp.minimum(config.ema, (1 + step) / (10 + step))",
            "keep = config.ema",
            "imagenet::ema_by_hand[0.5]",
        ),
        ("15-no-smoothing", "), config.smoothing)", "), 0.0)", "imagenet::smoothing_by_hand"),
        (
            "15-decays-batch-norm",
            'path[-1].key == "w"',
            'path[-1].key in ("w", "scale")',
            "imagenet::optimizer_equals_torch_by_hand",
        ),
        ("15-plain-momentum", "nesterov=True", "nesterov=False", "imagenet::optimizer_equals_torch_by_hand"),
        (
            "15-warm-up-twice-as-long",
            "config.steps // 18",
            "config.steps // 9",
            "imagenet::optimizer_equals_torch_by_hand",
        ),
        (
            "15-padding-at-one-side",
            "pads = [(len(w) // 2, len(w) // 2)] * 2",
            'pads = "SAME"',
            "imagenet::equals_transformers[34-8-None]",
        ),
        (
            "15-top-4",
            "jax.lax.top_k(logits, min(5, ",
            "jax.lax.top_k(logits, min(4, ",
            "imagenet::every_validation_image_counts_once[8-10]",
        ),
        (
            "15-fillers-in-the-loss",
            "loss_fn(logits, y) * len(y)",
            "loss_fn(logits, y) * y.sum()",
            "imagenet::every_validation_image_counts_once[8-10]",
        ),
        (
            "15-resumed-run-sees-the-first-batches",
            "islice(enumerate(minibatches), first, max(",
            "islice(enumerate(minibatches, first), max(",
            "imagenet::exact_resume",
        ),
        (
            "15-resumed-run-drops-as-at-first",
            "jax.random.fold_in(step_key, step)",
            "jax.random.fold_in(step_key, step - first)",
            "imagenet::exact_resume",
        ),
        (
            "15-trains-at-the-evaluations-size",
            "imagenet.load(x, indices, config.train_size",
            "imagenet.load(x, indices, config.size",
            "imagenet::what_is_loaded_and_what_is_evaluated",
        ),
    ],
    "common/imagenet.py": [
        (
            "15-crops-never-at-the-right-edge",
            "int(rng.integers(width - w + 1))",
            "int(rng.integers(max(1, width - w)))",
            "imagenet_data::random_boxes_are_as_often_wide_as_high",
        ),
        (
            "15-aspect-ratio-is-uniform",
            "math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))",
            "rng.uniform(3 / 4, 4 / 3)",
            "imagenet_data::random_boxes_are_as_often_wide_as_high",
        ),
        ("15-upside-down", "FLIP_LEFT_RIGHT", "FLIP_TOP_BOTTOM", "imagenet_data::half_of_the_crops_are_mirrored"),
        (
            "15-left-and-top-swapped",
            "round((width - side) / 2), round((height - side) / 2)",
            "round((height - side) / 2), round((width - side) / 2)",
            "imagenet_data::central_crop_is_the_literatures",
        ),
        ("15-offsets-one-image-late", "np.cumsum(part) - part", "np.cumsum(part)", "imagenet_data::prepare[0]"),
        (
            "15-same-crop-in-every-epoch",
            "default_rng((seed, step, i))",
            "default_rng((seed, i))",
            "imagenet_data::same_batches_with_any_number_of_workers",
        ),
        (
            "15-last-validation-batch-dropped",
            "enumerate(range(0, n, batch_size))",
            "enumerate(range(0, n - batch_size + 1, batch_size))",
            "imagenet_data::validation_counts_every_image_once",
        ),
        (
            "15-checksum-not-compared",
            "if sealed == _sealed(content):",
            "if sealed:",
            "imagenet_data::damaged_note_is_made_again",
        ),
        (
            "15-truncated-shard-believed",
            'jpegs.exists() and jpegs.stat().st_size == sum(index["lengths"])',
            "jpegs.exists()",
            "imagenet_data::truncated_shard_is_packed_again",
        ),
        (
            "15-labels-of-the-other-images",
            "labels = np.where(indices < 0, -1, packed.labels[indices])",
            "labels = np.where(indices < 0, -1, packed.labels[: len(indices)])",
            "imagenet_data::each_image_once_an_epoch[0]",
        ),
    ],
}

WORDS = {
    "ex11_shakespeare_ffn/train.py": [
        (
            "11-next-word-in-the-context",
            "config.block_size, 1)[:-1]",
            "config.block_size, 1)[1:]",
            "shakespeare::every_test_word_is_scored_once_with_its_context[11]",
        ),
        (
            "11-vocabulary-of-the-test-text-too",
            "Counter(tokens[:cut])",
            "Counter(tokens)",
            "shakespeare::vocabulary_is_the_words_seen_twice_in_training[11]",
        ),
        (
            "11-words-seen-once",
            "counts[token] >= 2",
            "counts[token] >= 1",
            "shakespeare::vocabulary[11]",
        ),
        (
            "11-table-not-tied",
            "self.head.weight = self.embedding.weight",
            "self.head.weight.data = self.embedding.weight.data.clone()",
            "shakespeare::table_is_tied_and_counted_once[11]",
        ),
        ("11-evaluates-with-dropout", "    model.eval()", "    model.train()", "shakespeare::evaluate[11]"),
        (
            "11-trains-without-dropout-after-evaluating",
            "    model.train()",
            "    model.eval()",
            "shakespeare::evaluate[11]",
        ),
        (
            "11-warm-up-starts-at-0",
            "(step + 1) / config.warmup_steps",
            "step / config.warmup_steps",
            "shakespeare::learning_rate",
        ),
        (
            "11-learning-rate-never-set",
            '["lr"] = learning_rate(config, step)',
            '["lr"] = config.learning_rate',
            "shakespeare::11_equals_12",
        ),
        (
            "11-weight-decay-flag-not-used",
            ", weight_decay=config.weight_decay)",
            ")",
            "shakespeare::weight_decay_pulls[11]",
        ),
        ("11-norm-before-relu", "norm(F.relu(layer(x)))", "F.relu(norm(layer(x)))", "shakespeare::mlp_by_hand[11]"),
    ],
    "ex12_sampling/train.py": [
        (
            "12-multiplies-by-the-temperature",
            "logits / config.temperature",
            "logits * config.temperature",
            "shakespeare::draw[12]",
        ),
        ("12-nucleus-too-small", "probs.cumsum(0) - probs", "probs.cumsum(0)", "shakespeare::draw[12]"),
        ("12-draws-unk", "logits[0] = -torch.inf", "logits[0] = 0", "shakespeare::draw[12]"),
        (
            "12-top-k-and-one-more",
            "probs[config.top_k or len(probs) :]",
            "probs[config.top_k + 1 if config.top_k else len(probs) :]",
            "shakespeare::draw[12]",
        ),
        (
            "12-sampling-uses-up-the-trainings-numbers",
            "torch.multinomial(probs, 1, generator=generator)",
            "torch.multinomial(probs, 1)",
            "shakespeare::sample[12]",
        ),
        (
            "12-samples-with-dropout",
            "    model.eval()  # without dropout\n    generator",
            "    generator",
            "shakespeare::sampling_changes_no_training_number[12]",
        ),
        (
            "12-first-words-instead-of-the-last",
            "[None, -config.block_size :]",
            "[None, : config.block_size]",
            "shakespeare::sample[12]",
        ),
    ],
    "ex13_transformer/train.py": [
        ("13-sees-the-next-token", ".triu(1)", ".triu(2)", "shakespeare::causality"),
        ("13-scores-not-scaled", " / math.sqrt(q.shape[-1])", "", "shakespeare::attention_against_torch"),
        (
            "13-softmax-over-the-queries",
            ".softmax(-1)  # (B, A, T, T)",
            ".softmax(-2)  # (B, A, T, T)",
            "shakespeare::attention_against_torch",
        ),
        (
            "13-heads-side-by-side-with-positions",
            "y.transpose(1, 2).flatten(2)",
            "y.reshape(x.shape)",
            "shakespeare::attention_against_torch",
        ),
        (
            "13-norm-behind-attention",
            "self.attention(self.norm1(x))",
            "self.norm1(self.attention(x))",
            "shakespeare::transformer_against_torch",
        ),
        (
            "13-no-shortcut-around-the-mlp",
            "return x + self.dropout(self.down",
            "return self.dropout(self.down",
            "shakespeare::transformer_against_torch",
        ),
        ("13-no-last-norm", "self.head(self.norm(x))", "self.head(x)", "shakespeare::transformer_against_torch"),
        (
            "13-no-positions",
            " + self.positions.weight[: tokens.shape[1]]",
            "",
            "shakespeare::transformer_against_torch",
        ),
        (
            "13-corrections-start-too-large",
            "config.init_std / (2 * config.layers) ** 0.5",
            "config.init_std / config.layers**0.5",
            "shakespeare::initial_weights_of_the_transformer",
        ),
        (
            "13-test-tokens-scored-twice",
            "y_test[:, :-half] = -1",
            "y_test[:, : -half - 1] = -1",
            "shakespeare::every_test_word_is_scored_once_with_its_context[13]",
        ),
        (
            "13-predicts-what-it-sees",
            "train[1:].unfold(0, size, 1)",
            "train[:-1].unfold(0, size, 1)",
            "shakespeare::every_test_word_is_scored_once_with_its_context[13]",
        ),
        (
            "13-attention-weights-not-dropped",
            "self.dropout(self.weights) @ v",
            "self.weights @ v",
            "shakespeare::dropout_is_there_in_training_alone[13]",
        ),
    ],
}

GPT = {
    "ex16_gpu_nanogpt/train.py": [
        (
            "16-next-token-after-the-padding",
            "model(padded)[0, len(window) - 1]",
            "model(padded)[0, -1]",
            "nanogpt::sample_shows_the_model_one_shape[16]",
        ),
        ("16-other-betas", "beta2: float = 0.99 ", "beta2: float = 0.999 ", "nanogpt::betas_are_nanogpts"),
        (
            "16-decays-biases",
            '{"params": vectors, "weight_decay": 0.0}',
            '{"params": vectors, "weight_decay": config.weight_decay}',
            "nanogpt::decay_groups",
        ),
        (
            "16-gradients-not-clipped",
            "config.grad_clip or math.inf",
            "math.inf",
            "nanogpt::gradients_are_clipped",
        ),
        (
            "16-warm-up-starts-at-0",
            "(step + 1) / config.warmup_steps",
            "step / config.warmup_steps",
            "nanogpt::learning_rate",
        ),
        (
            "16-cosine-from-the-first-step",
            "max(0, step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)",
            "step / config.steps",
            "nanogpt::learning_rate",
        ),
        ("16-decays-to-0", "(config.decay_to + (1 - config.decay_to) * cosine)", "cosine", "nanogpt::learning_rate"),
        ("16-sees-the-next-token", "is_causal=True", "is_causal=False", "nanogpt::causality"),
        (
            "16-drops-attention-in-evaluation",
            "self.dropout.p if self.training else 0.0",
            "self.dropout.p",
            "nanogpt::dropout_is_there_in_training_alone",
        ),
        ("16-logits-in-bfloat16", "self.head(self.norm(x)).float()", "self.head(self.norm(x))", "nanogpt::autocast"),
        (
            "16-every-epoch-the-same",
            "default_rng([config.seed, epoch])",
            "default_rng(config.seed)",
            "nanogpt::batches_cover_the_text[1000]",
        ),
        (
            "16-resumed-epoch-begins-anew",
            "range(done * batch_size, ",
            "range(0, ",
            "nanogpt::batches_follow_from_seed_and_step",
        ),
        (
            "16-resumed-run-sees-the-first-batches",
            "zip(steps, batches(config, len(x), start_step, device))",
            "zip(steps, batches(config, len(x), 0, device))",
            "nanogpt::exact_resume[9]",
        ),
        ("16-gradients-stay-scaled", "scaler.unscale_(optimizer)", "pass", "nanogpt::float16_scales_the_gradients"),
        ("16-scale-never-changes", "            scaler.update()\n", "", "nanogpt::float16_scales_the_gradients"),
        (
            "16-step-in-spite-of-an-overflow",
            "scaler.step(optimizer)",
            "optimizer.step()",
            "nanogpt::float16_scales_the_gradients",
        ),
        (
            "16-checkpoint-one-step-ahead",
            "checkpoint.save_torch(run, step, vocab",
            "checkpoint.save_torch(run, step + 1, vocab",
            "nanogpt::exact_resume[9]",
        ),
        (
            "16-flops-of-the-forward-pass",
            "return 6 * params",
            "return 2 * params",
            "nanogpt::parameters_as_nanogpt_counts_them",
        ),
        (
            "16-fillers-are-scored",
            "-len(val) % size), value=-1)",
            "-len(val) % size), value=0)",
            "nanogpt::every_validation_character_is_scored_once",
        ),
        (
            "16-blocks-begin-at-multiples",
            "rng.permutation(blocks) * size + rng.integers(size)",
            "rng.permutation(blocks) * size",
            "nanogpt::batches_cover_the_text[1000]",
        ),
    ],
    "ex16_gpu_nanogpt/sample.py": [
        (
            "16-cached-positions-begin-at-0",
            "model.positions.weight[done:end]",
            "model.positions.weight[: end - done]",
            "nanogpt::cached_is_uncached[10]",
        ),
        (
            "16-writes-on-after-the-end",
            "if config.stop and token == openwebtext.END_OF_TEXT",
            "if False",
            "ddp::samples_begin_at_the_end_of_text",
        ),
        ("16-prompt-without-a-mask", "is_causal=done == 0", "is_causal=False", "nanogpt::cached_is_uncached[10]"),
        (
            "16-cache-kept-when-the-view-moves",
            "start, done = first, 0",
            "start = first",
            "nanogpt::cached_is_uncached[60]",
        ),
    ],
    "ex16_gpu_nanogpt/pretrained.py": [
        (
            "16-export-keeps-the-padding",
            '["embedding.weight"][: END_OF_TEXT + 1]',
            '["embedding.weight"]',
            "ddp::samples_begin_at_the_end_of_text",
        ),
        ("16-one-matrix-not-transposed", '"qkv.weight", "out.weight"', '"qkv.weight"', "nanogpt::from_transformers"),
    ],
    "ex17_ddp_openwebtext/train.py": [
        (
            "17-processes-drop-the-same",
            "hash((config.seed, step, rank))",
            "hash((config.seed, step))",
            "ddp::processes_drop_other_units",
        ),
        (
            "17-dropout-not-seeded",
            "            torch.manual_seed(\n",
            "            hash(\n",
            "ddp::processes_drop_other_units",
        ),
        (
            "17-gradients-not-clipped",
            "config.grad_clip or math.inf",
            "math.inf",
            "ddp::gradients_are_clipped",
        ),
        (
            "17-accumulated-loss-not-divided",
            "ddp_model(x, y) * share",
            "ddp_model(x, y)",
            "ddp::accumulation",
        ),
        (
            "17-ragged-parts-weigh-the-same",
            "share = len(x) * world_size / config.batch_size",
            "share = 1 / grad_accum_steps",
            "ddp::ragged_parts_weigh_as_much_as_they_have",
        ),
        (
            "17-exchanges-after-the-first-part",
            "micro_step == grad_accum_steps - 1",
            "micro_step == 0",
            "ddp::processes_talk_after_the_last_part",
        ),
        (
            "17-all-processes-see-the-same",
            "index[rank::world_size].tensor_split",
            "index[: len(index) // world_size].tensor_split",
            "ddp::processes_share_a_step",
        ),
        ("17-default-is-the-whole-set", "if whole and preset", "if preset", "ddp::presets"),
        ("17-other-betas", "beta2: float = 0.95 ", "beta2: float = 0.99 ", "ddp::betas_are_nanogpts"),
        (
            "17-samples-numbers-that-are-no-tokens",
            "len(window) - 1, : vocab.n_vocab]",
            "len(window) - 1]",
            "ddp::sample_draws_tokens_alone",
        ),
        (
            "17-muon-for-the-embeddings",
            "for param in model.blocks.parameters() if",
            "for param in model.parameters() if",
            "ddp::muon",
        ),
        ("17-muon-not-scaled-like-adamw", '"match_rms_adamw"', '"original"', "ddp::muon_moves_as_far_as_adamw[down]"),
        (
            "17-predicts-the-token-before",
            "return rows[:, :-1], rows[:, 1:]",
            "return rows[:, 1:], rows[:, :-1]",
            "ddp::16_equals_17",
        ),
        (
            "17-resumed-run-sees-the-first-batches",
            'batches(config, n, start_step, "cpu")',
            'batches(config, n, 0, "cpu")',
            "ddp::exact_resume[7]",
        ),
        (
            "17-learning-rate-never-set",
            'group["lr"] = lr',
            'group["lr"] = config.learning_rate',
            "ddp::16_equals_17",
        ),
    ],
}

COMMON = {
    "common/record.py": [
        (
            "record-waiting-rows-lost",
            "self._record_waiting()\n        np.seterr",
            "pass\n        np.seterr",
            "record_and_plotting::rows_on_a_gpu_are_written_when_a_run_is_interrupted",
        ),
        ("record-rows-not-cut-back", "os.truncate(path, sizes.get(name, 0))", "continue", "nanogpt::exact_resume[9]"),
        (
            "record-least-is-the-largest",
            "= min(value, self.least",
            "= max(value, self.least",
            "nanogpt::best_is_the_least_validation_loss",
        ),
        (
            "record-dry-run-over-a-real-one",
            'self.out = config.out / "dry_run" if config.dry_run else config.out',
            "self.out = config.out",
            "nanogpt::dry_run_leaves_a_trained_model_alone",
        ),
        (
            "record-half-a-row-stays",
            "self._csv.truncate(self._csv_bytes)",
            "pass",
            "record_and_plotting::disk_that_fills_up_in_the_middle_of_a_row",
        ),
        (
            "record-dry-run-longer-than-asked",
            "min(total, DRY_RUN_STEPS) if",
            "DRY_RUN_STEPS if",
            "record_and_plotting::dry_run_is_never_longer_than_asked",
        ),
        (
            "record-largest-of-the-seeds",
            "float(np.mean(value))",
            "float(np.max(value))",
            "record_and_plotting::many_seeds",
        ),
        (
            "record-losses-on-a-gpu-one-later",
            "in self._waiting[:-1])) >= 10",
            "in self._waiting[:-1])) > 10",
            "nanogpt::losses_on_a_gpu_are_read_later",
        ),
        (
            "record-long-runs-replaced",
            "seconds > DEAR",
            "seconds < DEAR",
            "every_exercise::checkpoint_that_took_long_is_not_replaced",
        ),
        (
            "record-n-grams-of-the-prompt-count",
            "length, len(tokens) - self.config.max_new_tokens, words)",
            "length, 0, words)",
            "shakespeare::share_of_copied_4_grams",
        ),
    ],
    "common/plotting.py": [
        (
            "plot-overfits-from-the-largest",
            "steps[values.argmin()]}: overfits",
            "steps[values.argmax()]}: overfits",
            "record_and_plotting::overfitting_is_marked_at_the_least_validation_loss",
        ),
        (
            "plot-runs-accuracy-as-error",
            "100 * (1 - values) if metric",
            "100 * values if metric",
            "record_and_plotting::runs_beside_one_another_show_losses_and_errors",
        ),
        (
            "plot-filters-in-reverse",
            "np.moveaxis(pictures, -1, 0)",
            "np.moveaxis(pictures, -1, 0)[::-1]",
            "record_and_plotting::features_picture",
        ),
        (
            "plot-attention-transposed",
            "np.asarray(weights[layer][head])",
            "np.asarray(weights[layer][head]).T",
            "record_and_plotting::attention_picture",
        ),
        (
            "plot-accuracy-as-error",
            "100 * (1 - values) if name",
            "100 * values if name",
            "record_and_plotting::loss_picture",
        ),
        ("plot-smoothed-by-too-many", "min(width, 1 + step // 10)", "width", "record_and_plotting::smoothing"),
        (
            "plot-labels-at-the-wrong-side",
            "right = value >= to_beat",
            "right = value <= to_beat",
            "record_and_plotting::baseline_labels_stand_where_the_loss_is_not",
        ),
        (
            "plot-regions-transposed",
            "plane[:, 0], plane[:, 1] = ",
            "plane[:, 1], plane[:, 0] = ",
            "record_and_plotting::pictures_are_files",
        ),
    ],
    "common/data.py": [
        (
            "data-sha256-not-compared",
            "if found.result() != sha256:",
            "if not found.result():",
            "data::no_mirror_helps[wrong-(wrong sha256)]",
        ),
        (
            "data-damaged-mnist-believed",
            "if hashlib.sha256(content).hexdigest() != MNIST_CONTENTS[name]:",
            "if not content:",
            "data::damaged_mnist[another set]",
        ),
        (
            "data-training-set-as-test-set",
            "return (train_images, train_labels), (test_images, test_labels)",
            "return (train_images, train_labels), (train_images, train_labels)",
            "data::mnist",
        ),
        (
            "data-download-not-cut-off",
            "if file.tell() > (size or LARGEST):",
            "if file.tell() > LARGEST:",
            "data::mirror_is_cut_off_at_the_size",
        ),
    ],
    "common/checkpoint.py": [
        (
            "checkpoint-forgets-the-scale",
            "scaler.load_state_dict(scale)",
            "pass",
            "nanogpt::float16_scales_the_gradients",
        ),
        (
            "checkpoint-written-over-the-old-one",
            'temporary = path.with_name(f"{path.name}.tmp")',
            "temporary = path",
            "nanogpt::checkpoint_on_a_full_disk",
        ),
        (
            "checkpoint-not-on-the-disk",
            "            os.fsync(file.fileno())\n        os.replace",
            "        os.replace",
            "checkpoint::whole_and_on_the_disk_before_it_gets_its_name",
        ),
        ("checkpoint-moments-lost", '{"state": moments, ', '{"state": {}, ', "nanogpt::exact_resume[9]"),
        (
            "checkpoint-random-state-lost",
            'torch.set_rng_state(state["rng"])',
            'len(state["rng"])',
            "nanogpt::exact_resume[9]",
        ),
        (
            "checkpoint-half-finished-is-finished",
            "if step == config.steps and all(",
            "if step == config.steps and any(",
            "imagenet::exact_resume",
        ),
        ("checkpoint-checksums-not-compared", "while file.read(2**20):", "if file.read(1):", "nanogpt::flipped_bits"),
        (
            "checkpoint-best-is-the-last",
            'run.latest["validation loss"] == run.least',
            'run.latest["validation loss"] >= run.least',
            "nanogpt::best_is_the_least_validation_loss",
        ),
    ],
    "common/text.py": [
        (
            "text-n-grams-with-unk-count",
            "if not (words and 0 in gram)",
            "if gram",
            "shakespeare::share_of_copied_4_grams",
        ),
        (
            "text-last-n-gram-forgotten",
            "range(max(length, first + 1), len(tokens) + 1)",
            "range(max(length, first + 1), len(tokens))",
            "shakespeare::share_of_copied_4_grams",
        ),
        (
            "text-space-behind-an-opening-bracket",
            r"[(\[]) (?!\p{M})",
            r"[(]) (?!\p{M})",
            "shakespeare::words_of_the_text",
            "shakespeare::join_words",
        ),
        ("text-apostrophe-ends-a-word", r"[\p{{L}}\p{{M}}'’])+", r"[\p{{L}}\p{{M}}’])+", "shakespeare::join_words"),
    ],
    "common/distributed.py": [
        (
            "distributed-one-gpu-too-few",
            "if local >= torch.cuda.device_count():",
            "if local > torch.cuda.device_count():",
            "ddp::more_processes_than_gpus",
        ),
        (
            "distributed-two-steps-are-one",
            "len(set(steps)) > 1",
            "len(set(steps)) > 2",
            "ddp::checkpoint_that_one_host_does_not_see",
        ),
    ],
    "common/speed.py": [
        ("speed-an-a100-is-an-a1000", 'rf"\\b{part}\\b"', "part", "nanogpt::speed"),
        ("speed-micro-batch-twice-as-large", "math.ceil(math.log2(32e9", "math.floor(math.log2(32e9", "ddp::presets"),
        ("speed-peak-of-one-gpu", "rate / peak / devices:.1%", "rate / peak:.1%", "nanogpt::speed"),
        (
            "speed-minutes-as-hours",
            "left * tokens / rate / 3600",
            "left * tokens / rate / 60",
            "nanogpt::speed_on_the_way",
        ),
        (
            "speed-emulated-bfloat16",
            "including_emulation=False",
            "including_emulation=True",
            "nanogpt::gpu_without_bfloat16",
        ),
        (
            "speed-gradients-of-the-trial-stay",
            "    model.zero_grad()",
            "    pass",
            "nanogpt::compiled_model_is_the_same",
        ),
    ],
    "common/openwebtext.py": [
        (
            "openwebtext-map-stays-open",
            'np.memmap(path, np.uint16, "r") if path else tokens',
            "tokens",
            "openwebtext::windows_keep_no_file_open",
        ),
        ("openwebtext-no-end-of-text", "ids.append([END_OF_TEXT])", "pass", "openwebtext::special_and_empty_documents"),
        (
            "openwebtext-nanogpts-tokens-not-checked",
            "            _check(tokens[start : start + 10_000_000], path)",
            "            pass",
            "openwebtext::tokens_of_nanogpt",
        ),
        ("openwebtext-another-shuffle", "seed=2357", "seed=0", "openwebtext::sample_is_nanogpts_file"),
        (
            "openwebtext-part-cut-at-half",
            'file.truncate(2 * done["tokens"])',
            'file.truncate(done["tokens"])',
            "openwebtext::cut_off_and_gone_on[4]",
        ),
        (
            "openwebtext-any-number-is-a-token",
            "tokens.max()) > END_OF_TEXT",
            "tokens.max()) > 2**16",
            "openwebtext::damaged_tokens",
        ),
    ],
    "common/program.py": [
        (
            "program-code-for-newer-cards-runs",
            "(major, minor) <= capability and",
            "",
            "mnist_mlp::has_code",
        ),
        (
            "program-cuda-12-has-no-code-for-a-p100",
            "int(cuda[1]) >= 13_000 and",
            "",
            "mnist_adam::gpu_that_jax_has_no_code_for",
        ),
        ("program-ctrl-c-is-success", "code = 130", "code = 0", "record_and_plotting::clean_exit"),
        (
            "program-zero-is-in-range",
            "not 0 < value <= most",
            "not 0 <= value <= most",
            "record_and_plotting::check_config",
        ),
        (
            "program-nan-is-in-range",
            "not 0 < value <= most",
            "(value <= 0 or value > most)",
            "record_and_plotting::check_config",
        ),
        (
            "program-the-most-is-out-of-range",
            "not least <= value <= most",
            "not least <= value < most",
            "record_and_plotting::check_config",
        ),
        (
            "program-auto-is-the-cpu",
            "next(device for device in present if",
            "next(device for device in reversed(present) if",
            "mnist_mlp::auto_takes_the_gpu_where_there_is_one",
        ),
    ],
}

CLI = {
    "common/cli/review.py": [
        (
            "review-marks-what-was-not-changed",
            "reference.get(name, value) != value",
            "reference.get(name, value) == value",
            "rampup::review_marks_what_is_not_the_references",
        ),
        ("review-first-part-of-the-samples", "folder.samples[-SAMPLE:]", "folder.samples[:-SAMPLE]", "rampup::review"),
    ],
    "common/cli/judge.py": [
        ("judge-every-run-is-short", "if excess < -figure.margin:", "if excess < figure.margin:", "rampup::hints"),
        (
            "judge-worse-than-the-baseline-is-ok",
            "if value < 0.97 * least:",
            "if value > 0.97 * least:",
            "rampup::hints",
        ),
        ("judge-any-first-loss-is-ok", "first > 1.25 * uniform", "first > 12.5 * uniform", "rampup::hints"),
        ("judge-no-overfitting", "points[-1][1] > 1.05 * (least", "points[-1][1] > 5.05 * (least", "rampup::hints"),
        ("judge-flat-loss-is-ok", "    if last > 0.95 * first:", "    if last > 1.5 * first:", "rampup::hints"),
        ("judge-a-missing-minus-is-well-done", "if least < 0:", "if least < -100:", "rampup::a_loss_that_cannot_be"),
        (
            "judge-a-loss-that-comes-back-is-ok",
            "least < 0.8 * first and last > 1.5",
            "least < 0.8 * first and last < 1.5",
            "rampup::hints",
        ),
    ],
    "common/cli/course.py": [
        (
            "course-higher-loss-is-better",
            'value - self.mean if "accuracy" in self.metric',
            'value - self.mean if "loss" in self.metric',
            "rampup::expected_figures_are_read_right",
        ),
        (
            "course-margin-of-one-deviation",
            "deviations * spread",
            "spread",
            "rampup::expected_figures_are_read_right",
        ),
        (
            "course-shares-as-per-cent",
            'f"{100 * value:.{self.decimals}f} %" if',
            'f"{value:.{self.decimals}f} %" if',
            "rampup::expected_figures_are_read_right",
        ),
    ],
    "common/cli/check.py": [
        ("check-seeds-must-be-alike", "verdict(first != other", "verdict(first == other", "rampup::check_dry_run"),
        ("check-metrics-of-the-wrong-seed", '"--seed", "1")', '"--seed", "0")', "rampup::check_dry_run"),
    ],
    "common/cli/commands.py": [
        ("check-exit-code-the-other-way", "if not check_folder(", "if check_folder(", "rampup::check_dry_run"),
    ],
    "common/cli/folder.py": [
        (
            "folder-hidden-files-in-the-zip",
            '            if name.startswith("."):',
            '            if name.startswith("_"):',
            "rampup::stranger",
        ),
        (
            "folder-links-are-followed",
            "if path.is_symlink() or path.parent.is_symlink():",
            "if path.parent.is_symlink():",
            "rampup::stranger",
        ),
    ],
    "common/cli/html.py": [
        ("html-not-escaped", "autoescape=True", "autoescape=False", "rampup::stranger"),
    ],
    "common/cli/diff.py": [
        (
            "diff-lines-counted-from-0",
            "None if a is None else a + 1",
            "None if a is None else a",
            "rampup::diff_hides_nothing[ex02_linreg_torch]",
        ),
    ],
}

QUESTIONS = {
    "ex01_linreg_numpy/landscape.py": [
        ("landscape-half-of-the-curvature", "return 2 * np.array([[", "return np.array([[", "questions::01_landscape"),
    ],
    "ex02_linreg_torch/autograd.py": [
        (
            "autograd-overwrites-a-gradient",
            "parent.grad = parent.grad + grad.sum(",
            "parent.grad = grad.sum(",
            "questions::02_autograd",
        ),
        ("autograd-oldest-first", "sorted(found, reverse=True)", "sorted(found)", "questions::02_autograd"),
        ("autograd-forgets-the-batch", "g / a.size)", "g)", "questions::02_autograd"),
    ],
    "ex03_vector_regression/double_descent.py": [
        (
            "double-descent-variance-of-few",
            "predictions.var(0, ddof=1)",
            "predictions.var(0)",
            "questions::03_double_descent",
        ),
        ("double-descent-ridge-always", "if ridge else", "if True else", "questions::03_double_descent"),
    ],
    "ex03_vector_regression/echo.py": [
        ("echo-not-whitened", "white = ex03.whiten(x)", "white = x - x.mean(0)", "questions::03_echo"),
    ],
    "ex04_softmax/losses.py": [
        ("losses-no-margin", "others(logits, y) + 1)", "others(logits, y))", "questions::04_losses"),
        ("losses-scale-not-used", "config.scale * ex04", "1.0 * ex04", "questions::04_losses"),
    ],
    "ex04_softmax/neighbours.py": [
        ("neighbours-the-farthest", "distances.argsort(1)", "(-distances).argsort(1)", "questions::04_neighbours"),
    ],
    "ex05_ffn_manual/by_hand.py": [
        (
            "by-hand-no-mask",
            "d = d @ params[2 * n].T * (inputs[n] > 0)",
            "d = d @ params[2 * n].T",
            "questions::05_by_hand",
        ),
    ],
    "ex05_ffn_manual/differences.py": [
        ("differences-of-one-h", "(2 * h if central else h)", "h", "questions::05_differences"),
    ],
    "ex05_ffn_manual/signals.py": [
        ("signals-fan-out", "variance(m) ** 0.5", "variance(n) ** 0.5", "questions::05_signals"),
    ],
    "ex06_ffn_nn/width.py": [
        ("width-slopes-not-their-changes", "prepend=0.0)", "prepend=1.0)", "questions::06_width"),
    ],
    "ex07_mnist_mlp/mistakes.py": [
        ("mistakes-step-as-it-was", "rate = 20.0", "rate = 0.2", "questions::07_mistakes"),
        ("mistakes-no-look-at-the-data", "or known > 0.1", "or False", "questions::07_mistakes"),
    ],
    "ex07_mnist_mlp/regularize.py": [
        ("regularize-dropout-in-evaluation", "dropout, model.training)", "dropout, True)", "questions::07_regularize"),
        ("regularize-moved-one-way", "rng.integers(-pixels,", "rng.integers(0,", "questions::07_regularize"),
    ],
    "ex07_mnist_mlp/from_scratch.py": [
        ("from-scratch-no-mask", " * (inputs[n] > 0)", "", "questions::07_from_scratch"),
        (
            "from-scratch-weights-transposed",
            "d.T @ inputs[n]",
            "(inputs[n].T @ d).T[::-1]",
            "questions::07_from_scratch",
        ),
    ],
    "ex07_mnist_mlp/baselines.py": [
        ("baselines-the-farthest", "largest=False", "largest=True", "questions::07_baselines"),
    ],
    "ex08_mnist_adam/valley.py": [
        ("valley-no-velocity", "velocity = beta * state[0] + g", "velocity = g", "questions::08_valley"),
        ("valley-adam-uncorrected", "mean / (1 - 0.9**step)", "mean", "questions::08_valley"),
        ("valley-decay-in-the-gradient", "update + decay * x", "update", "questions::08_valley"),
    ],
    "ex09_mnist_cnn/receptive_field.py": [
        ("field-jump-not-doubled", "2 * jump", "1 * jump", "questions::09_receptive_field"),
        ("field-pools-by-the-sum", "else x / 4", "else x", "questions::09_receptive_field"),
        ("field-mean-of-some", "x.mean((1, 2)) if", "x[:, :, :4].mean((1, 2)) if", "questions::09_receptive_field"),
    ],
    "ex09_mnist_cnn/layers.py": [
        ("layers-the-farthest", "known.T).argmin(1)", "known.T).argmax(1)", "questions::09_layers"),
    ],
    "ex09_mnist_cnn/stages.py": [
        ("photo-mass-not-in-the-middle", "14 - m", "13 - m", "read_photo::normalising_mnist_changes_nothing"),
        (
            "photo-few-points-stay",
            "ink.shape) < longest",
            "ink.shape) < 0",
            "read_photo::few_points_become_smooth_lines",
        ),
        ("photo-nothing-is-blank", "> 5 * noise", "> 0 * noise", "read_photo::otsu"),
        (
            "photo-boards-as-paper",
            "if (away**3).sum() <= 0 else 1 - page",
            "if True else 1 - page",
            "read_photo::a_board",
        ),
        ("photo-lines-not-turned", "- slope * middle[:, 1]", "- 0 * middle[:, 1]", "read_photo::reading_order"),
    ],
    "ex09_mnist_cnn/pages.py": [
        (
            "photo-not-turned-upright",
            "image = ImageOps.exif_transpose(image)",
            "image.load()",
            "read_photo::photographs_of_every_kind",
        ),
        (
            "photo-dark-behind-glass",
            'image.size, "white"',
            'image.size, "black"',
            "read_photo::photographs_of_every_kind",
        ),
        ("photo-coarse-but-slanted", "round(slope *", "round(0 *", "read_photo::as_coarse_as_ucis"),
        ("photo-coarse-but-thick", "if count > 412", "if count > 912", "read_photo::as_coarse_as_ucis"),
        ("photo-16-bits-as-8", "65535 if", "255 if", "read_photo::photographs_of_every_kind"),
    ],
    "ex09_mnist_cnn/read_photo.py": [
        ("photo-counted-twice", "left.difference_update(inside)", "pass", "read_photo::a_digit_counts_once"),
    ],
    "ex09_mnist_cnn/distorted.py": [
        (
            "photo-never-on-a-form",
            "jax.random.bernoulli(keys[4])",
            "jax.random.bernoulli(keys[4], 0)",
            "read_photo::distorted_as_on_a_form",
        ),
        (
            "photo-weights-of-other-flags",
            "[config.seed, config.steps, config.held_out] and",
            'file["setting"].tolist() and',
            "read_photo::weights_are_kept_and_damaged_ones_are_not_used",
        ),
    ],
    "ex10_mnist_resnet/transfer.py": [
        ("transfer-starts-anew", "fit(*before, known", "fit(*new(config, 3), known", "questions::10_transfer"),
        ("transfer-head-is-no-identity", "jnp.eye(c)", "jnp.ones((c, c))", "questions::10_transfer"),
    ],
    "ex14_gpu_resnet/roofline.py": [
        ("roofline-last-product-only", "c += column", "c = column", "questions::14_roofline"),
        (
            "roofline-does-not-wait",
            "        jax.block_until_ready(function(*inputs))\n        runs",
            "        function(*inputs)\n        runs",
            "questions::14_roofline",
        ),
    ],
    "common/record.py": [
        ("answer-no-upper-end", "zip(ends, (1, -1))", "zip(ends, (1, 1))", "questions::answer"),
    ],
    "ex11_shakespeare_ffn/memory.py": [
        ("memory-another-gate", "bias[C : 2 * C]", "bias[:C]", "questions::11_memory"),
        ("memory-of-the-output", "state[1] if isinstance", "state[0] if isinstance", "questions::11_memory"),
    ],
    "ex11_shakespeare_ffn/cells.py": [
        ("lstm-forgets-nothing", "torch.sigmoid(f) * c +", "c +", "questions::11_recurrent"),
        ("rnn-without-tanh", "torch.tanh(read + h @ w_h.T)", "read + h @ w_h.T", "questions::11_recurrent"),
    ],
    "ex11_shakespeare_ffn/recurrent.py": [
        ("recurrent-scores-what-fills-up", "% n), value=-1)", "% n), value=0)", "questions::11_recurrent"),
    ],
    "ex12_sampling/decoding.py": [
        ("decoding-beam-forgets-its-past", "(scores[:, None] + log_probs)", "log_probs", "questions::12_decoding"),
        ("decoding-says-unknown", "log_probs[:, 0] = -torch.inf", "pass", "questions::12_decoding"),
    ],
    "ex13_transformer/scores.py": [
        ("scores-divided-by-d", "math.sqrt(q.shape[-1]) if", "q.shape[-1] if", "questions::13_scores"),
    ],
    "ex13_transformer/order.py": [
        ("order-keys-not-turned", "turn(q), turn(k), v", "turn(q), k, v", "questions::13_order"),
        ("order-positions-stay", "table.data.zero_()", "pass", "questions::13_order"),
    ],
    "ex13_transformer/heads.py": [
        ("heads-look-at-themselves", "earlier = there < here", "earlier = there <= here", "questions::13_heads"),
    ],
    "ex13_transformer/copying.py": [
        ("copying-scores-the-unknown", "place[1:] > length", "place[1:] >= length", "questions::13_heads"),
    ],
    "ex13_transformer/encoder_decoder.py": [
        ("translate-attends-to-what-fills-up", "(source > 0)[", "(source > -1)[", "questions::13_translate"),
        ("translate-sees-the-next-character", ".tril()", ".tril(1)", "questions::13_translate"),
        ("translate-no-root", " / math.sqrt(q.shape[-1])", "", "questions::13_translate"),
    ],
    "ex13_transformer/translate.py": [
        (
            "translate-last-character-unscored",
            "target[:, 1:]).all(1)",
            "target[:, 1:])[:, :-1].all(1)",
            "questions::13_translate",
        ),
    ],
    "ex17_ddp_openwebtext/batch_size.py": [
        (
            "batch-size-noise-in-the-mean",
            "(len(gradients) * large - small)",
            "(len(gradients) * large)",
            "questions::17_batch_size",
        ),
        ("batch-size-law-of-steps-alone", "1 / (b * s)]", "1 / b]", "questions::17_batch_size"),
    ],
    "ex17_ddp_openwebtext/pieces.py": [
        ("pieces-sum-for-mean", "else 1 / pieces", "else 1", "questions::17_pieces"),
        (
            "pieces-weighted-by-sequences",
            "(y_piece >= 0).sum() / (y >= 0).sum()",
            "len(y_piece) / len(y)",
            "questions::17_pieces",
        ),
    ],
    "ex16_gpu_nanogpt/scaling.py": [
        (
            "scaling-steps-of-one-sample",
            "ex.batch_size * ex.block_size * ex16.",
            "ex.block_size * ex16.",
            "questions::16_scaling",
        ),
        (
            "scaling-exponent-of-the-other-sign",
            "np.exp(start), -slope",
            "np.exp(start), slope",
            "questions::16_scaling",
        ),
    ],
    "ex16_gpu_nanogpt/tokens.py": [
        ("tokens-spelling-without-an-end", "for char in [*word, END])", "for char in word)", "questions::16_tokens"),
        (
            "tokens-unknown-for-nothing",
            "return *texts, vocab, nats",
            "return *texts, vocab, 0.0",
            "questions::16_tokens",
        ),
    ],
    "ex16_gpu_nanogpt/bpe.py": [
        (
            "bpe-ties-by-the-larger-id",
            "(-pairs[a, b], ids[a], ids[b], ",
            "(-pairs[a, b], -ids[a], ids[b], ",
            "questions::16_bpe",
        ),
        ("bpe-latest-merge-first", "merge(tokens, min(pairs", "merge(tokens, max(pairs", "questions::16_bpe"),
    ],
}

TABLE = [
    Mutation(name, file, before, after, tuple(tests))
    for part in (FOUNDATIONS, MNIST, IMAGENET, WORDS, GPT, COMMON, CLI, QUESTIONS)
    for file, rows in part.items()
    for name, before, after, *tests in rows
]


def main(config: Config) -> int:
    """Run what the flags say and return the exit code."""
    if config.list:
        print("\n".join(mutation.name for mutation in TABLE))
        return 0
    if unknown := set(config.only) - {mutation.name for mutation in TABLE}:
        print(f"no such mutation: {', '.join(sorted(unknown))}; see --list", file=sys.stderr)
        return 1
    known = json.loads(config.results.read_text()) if config.results and config.results.exists() else {}
    known = {mutation.name: known[mutation.digest] for mutation in TABLE if mutation.digest in known}
    chosen = [mutation for mutation in TABLE if not config.only or mutation.name in config.only]
    todo = [mutation for mutation in chosen if config.only or mutation.name not in known]
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05"}
    os.environ["RAMPUP_REQUIRE_DATA"] = "1"  # a test that is skipped would notice nothing
    with tempfile.TemporaryDirectory(prefix="mutations-") as temporary:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{temporary}/compiled"  # what one process compiles, all can use
        folders = [Path(temporary) / f"checkout{job}" for job in range(min(config.jobs, len(todo)))]
        for folder in folders:
            copy_checkout(folder)
        import_all()
        if todo and not pass_unchanged(todo, folders[0]):
            return 1
        for mutation, result in run_all(todo, folders, config.limit):
            known[mutation.name] = result
            print(f"{mutation.name}: {result['outcome']}, {result['seconds']:.0f} s", flush=True)
            if config.results:
                digests = {mutation.digest: known[mutation.name] for mutation in TABLE if mutation.name in known}
                config.results.write_text(json.dumps(digests, indent=1) + "\n")
    return summarise([(mutation, known[mutation.name]) for mutation in chosen])


def copy_checkout(folder: Path) -> None:
    """Copy the files that git knows, as they are now, and those that it does not ignore; link the data."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "data").symlink_to(Path(os.environ.get("RAMPUP_DATA") or ROOT / "data").resolve())


def import_all() -> None:
    """Import what takes long, for the processes that are forked from here; nothing of the checkout itself."""
    import datasets  # noqa: F401
    import hypothesis  # noqa: F401
    import jax  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import optax  # noqa: F401
    import pytest  # noqa: F401
    import scipy.ndimage  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401


def pass_unchanged(mutations: list[Mutation], folder: Path) -> bool:
    """Return whether the tests pass in the unchanged copy, without which no mutation can be judged."""
    tests = list(dict.fromkeys(test for mutation in mutations for test in mutation.node_ids))
    start = time.monotonic()
    process = start_tests(folder, tests)
    code, failed = end_tests(process, folder, wait=True)
    print(f"unchanged: {len(tests)} tests, {time.monotonic() - start:.0f} s", flush=True)
    if code:
        print(f"the unchanged checkout fails {', '.join(failed)}\n{output(folder)}", file=sys.stderr)
    return code == 0


def run_all(mutations: list[Mutation], folders: list[Path], limit: float):
    """Yield each mutation with its result: outcome, and seconds. Each folder has one mutation at a time."""
    waiting, free, running = list(mutations), list(folders), []
    try:
        while waiting or running:
            while waiting and free:
                mutation, folder = waiting.pop(0), free.pop()
                source = (folder / mutation.file).read_text(encoding="utf-8")
                mutated = mutation.apply(source)
                if mutated is None:
                    free.append(folder)
                    yield mutation, {"outcome": "does not apply", "seconds": 0.0}
                    continue
                (folder / mutation.file).write_text(mutated, encoding="utf-8")
                running.append((mutation, folder, source, start_tests(folder, mutation.node_ids), time.monotonic()))
            time.sleep(0.05)
            for entry in list(running):
                mutation, folder, source, process, start = entry
                seconds = time.monotonic() - start
                ended = end_tests(process, folder, wait=False)
                if ended is None and seconds < limit:
                    continue
                if ended is None:
                    os.killpg(process, signal.SIGKILL)
                    os.waitpid(process, 0)
                running.remove(entry)
                free.append(folder)
                (folder / mutation.file).write_text(source, encoding="utf-8")
                yield mutation, {"outcome": outcome(ended, folder), "seconds": round(seconds, 1)}
    finally:
        for _, _, _, process, _ in running:
            os.killpg(process, signal.SIGKILL)


def outcome(ended: tuple[int, list[str]] | None, folder: Path) -> str:
    """Return in words how the tests of a mutation have ended."""
    if ended is None:
        return "time-out"
    code, failed = ended
    if code == 0:
        return "survived"
    return f"killed by {failed[0]}" if failed else f"pytest ended with {code}: {output(folder)[-300:]}"


def start_tests(folder: Path, tests: list[str]) -> int:
    """Run tests in a copy of the checkout and return the process; it ends at the first that fails."""
    (folder / "failed.json").unlink(missing_ok=True)
    temporary = folder.with_name(f"{folder.name}.tmp")  # of the tests, emptied for those of the next mutation
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 3
    try:
        os.setsid()  # so that what a test has started can be stopped, too
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.chdir(folder)
        os.environ |= {"PYTHONPATH": str(folder), "TMPDIR": str(temporary)}
        tempfile.tempdir = str(temporary)
        sys.path[:] = [
            str(folder),
            *(path for path in sys.path if not Path(path or ".").resolve().is_relative_to(ROOT)),
        ]
        import pytest

        noted = Failed()
        code = int(pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider", *tests], plugins=[noted]))
        (folder / "failed.json").write_text(json.dumps(noted.tests))
    finally:
        sys.stdout.flush()
        os._exit(code)


class Failed:
    """A plugin of pytest that notes the tests that fail."""

    def __init__(self):
        self.tests = []

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.tests.append(report.nodeid.removeprefix("tests/"))


def end_tests(process: int, folder: Path, wait: bool) -> tuple[int, list[str]] | None:
    """Return the exit code and the tests that failed; None if the process still runs."""
    found, status = os.waitpid(process, 0 if wait else os.WNOHANG)
    if not found:
        return None
    with suppress(ProcessLookupError):  # nothing that a test has started is left
        os.killpg(process, signal.SIGKILL)
    failed = folder / "failed.json"
    return os.waitstatus_to_exitcode(status), json.loads(failed.read_text()) if failed.exists() else []


def output(folder: Path) -> str:
    """Return the end of what pytest has printed."""
    return (folder / "log.txt").read_text(errors="replace")[-3000:]


def summarise(results: list[tuple[Mutation, dict]]) -> int:
    """Print how many there are of each outcome, and those that were not noticed; return the exit code."""
    counts = Counter(result["outcome"].partition(" by ")[0] for _, result in results)
    seconds = sum(result["seconds"] for _, result in results)
    print(f"{len(results)} mutations: {', '.join(f'{n} {what}' for what, n in counts.most_common())}; {seconds:.0f} s")
    left = [(mutation, result) for mutation, result in results if not result["outcome"].startswith("killed")]
    for mutation, result in left:
        print(f"{result['outcome']}: {mutation.name}, {mutation.file}: {mutation.before!r} → {mutation.after!r}")
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
