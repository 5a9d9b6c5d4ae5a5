"""The list of exercises: the one place that knows their numbers, folders, parents and sentences."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the checkout


@dataclass(frozen=True)
class Exercise:
    """One step of the course."""

    number: int
    folder: str
    parent: int | None  # the exercise that it grew from
    sentence: str  # Jacob Buckman's own words
    budget: int = 40  # most lines of train.py that may differ from the parent's (added + removed)


EXERCISES = (
    Exercise(
        1,
        "ex01_linreg_numpy",
        None,
        "Linear regression where input & output are each a single scalar, with stochastic gradient descent "
        "(minibatches), using numpy. (The trickiest part is implementing backprop by hand.)",
    ),
    Exercise(
        2,
        "ex02_linreg_torch",
        1,
        "Same but using pytorch (torch.backward). Also, auto-render a plot of the results (steps of GD on x-axis, "
        "loss on y-axis).",
    ),
    Exercise(3, "ex03_vector_regression", 2, "Linear regression where input is a vector."),
    Exercise(
        4,
        "ex04_softmax",
        3,
        "Classification where input is a vector, output is categorical (softmax & negative log likelihood loss).",
    ),
    Exercise(
        5,
        "ex05_ffn_manual",
        4,
        "Now use N feedforward layers instead of pure linear regression (deep learning!)",
    ),
    Exercise(
        6,
        "ex06_ffn_nn",
        5,
        "Feedforward network but using torch library tools everywhere possible, like torch.nn and torch.functional.",
    ),
    Exercise(
        7,
        "ex07_mnist_mlp",
        6,
        "Still just classification on vector inputs, but now on MNIST. (Flatten each input into a vector.)",
        budget=120,
    ),
    Exercise(8, "ex08_mnist_adam", 7, "Use the optax library & the Adam optimizer.", budget=120),
    Exercise(9, "ex09_mnist_cnn", 8, "Change architecture to be a convnet.", budget=60),
    Exercise(10, "ex10_mnist_resnet", 9, "Change architecture to be a resnet.", budget=185),
    Exercise(
        11,
        "ex11_shakespeare_ffn",
        7,
        "Go back to a feedforward architecture. Each input should be a sequence of N words, output should be the "
        "(N+1)th word. (Classification, the classes are all the possible words in the vocabulary, negative log "
        "likelihood loss.)",
        budget=125,
    ),
    Exercise(
        12,
        "ex12_sampling",
        11,
        "Add a new evaluation mode: autoregressive sampling. Do this every time you evaluate the test set.",
    ),
    Exercise(
        13,
        "ex13_transformer",
        12,
        "Change architecture to be a causal transformer. Input data is still N words, but output data is now N "
        "next-words (ie the same sequence but offset by 1).",
        budget=130,
    ),
    Exercise(
        14,
        "ex14_gpu_resnet",
        10,
        "Go back to your resnet classification-on-MNIST example, and make it run fast on a GPU. (This will mostly "
        "mean doing as much as possible as conv/matmuls, and making sure data loading is not a bottleneck.)",
        budget=180,
    ),
    Exercise(
        15,
        "ex15_imagenet",
        14,
        "Switch from MNIST to ImageNet. Adjust your resnet setup by copying the literature. Do a multi-day run on "
        "ImageNet and see how you score, and compare to what other people have reported.",
        budget=310,
    ),
    Exercise(
        16,
        "ex16_gpu_nanogpt",
        13,
        "Go back to your transformer. Make it work on GPU, and try to match Karpathy's implementation and performance "
        "from the nanoGPT repo (on the shakespeare dataset).",
        budget=270,
    ),
    Exercise(
        17,
        "ex17_ddp_openwebtext",
        16,
        "Upgrade your code to work on multiple GPUs, get your hands on some, switch your dataset to openwebtext, and "
        "try to match Karpathy's implementation and performance (at GPT2 scale).",
        budget=255,
    ),
)


def find_exercise(name: int | str) -> Exercise | None:
    """Return the exercise of a number (7) or of a folder's name ("ex07_mnist_mlp"); None where there is none."""
    return next((exercise for exercise in EXERCISES if name in (exercise.number, exercise.folder)), None)
