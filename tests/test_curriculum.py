"""The course as a whole: the tree, the size of each step, what stays the same from folder to folder."""

import ast
import re

from common.cli.commits import read_commits
from common.cli.diff import changed_lines
from common.curriculum import EXERCISES, ROOT, find_exercise

import pytest
from helpers import BUILT, train_py
from mutations import TABLE

STEPS = [exercise for exercise in BUILT if exercise.parent]


def test_tree():
    assert [exercise.number for exercise in EXERCISES] == list(range(1, 18))
    assert all(exercise.folder.startswith(f"ex{exercise.number:02d}_") for exercise in EXERCISES)
    parents = {exercise.number: exercise.parent for exercise in EXERCISES}
    assert parents == {1: None, **{n: n - 1 for n in range(2, 18)}, 11: 7, 14: 10, 16: 13}


def test_find_exercise():
    assert find_exercise(7).folder == "ex07_mnist_mlp"
    assert find_exercise("ex07_mnist_mlp").number == 7
    assert find_exercise(18) is None


def test_changed_lines():
    before = '"""One docstring."""\na = 1\nb = 2\nc = 3\n'
    after = '"""Quite\nanother."""\na = 1\nif a:\n    b = 2\nc = 4\nd = 5\n'
    # + if a:   - c = 3   + c = 4   + d = 5; the docstring and the indentation of b = 2 do not count
    assert changed_lines(before, after) == 4
    assert changed_lines(before, before) == 0


@pytest.mark.parametrize("exercise", STEPS, ids=lambda exercise: exercise.folder)
def test_step_is_within_its_budget(exercise):
    parent, child = (train_py(number).read_text(encoding="utf-8") for number in (exercise.parent, exercise.number))
    changed = changed_lines(parent, child)
    print(f"{exercise.parent:02d} -> {exercise.number:02d}: {changed} changed lines, budget {exercise.budget}")
    assert 0 < changed <= exercise.budget


@pytest.mark.parametrize("exercise", BUILT, ids=lambda exercise: exercise.folder)
def test_train_py_has_the_shape_of_all(exercise):
    source = train_py(exercise.number).read_text(encoding="utf-8")
    module = ast.parse(source)
    docstring = " ".join(ast.get_docstring(module).split())
    assert docstring.startswith(f"Exercise {exercise.number}: ")
    assert exercise.sentence in docstring
    assert f"python {exercise.folder}/train.py" in docstring
    if exercise.parent:
        bullets = re.findall(r"^- ", ast.get_docstring(module).split(f"Changes from ex{exercise.parent:02d}")[1], re.M)
        assert 2 <= len(bullets) <= 5
    names = [node.name for node in module.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert names[0] == "Config"
    assert names[-1] == "main"
    imported = {node.module or "" for node in module.body if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith(("ex", "tests")) for name in imported)


def test_batches_is_the_same_everywhere():
    """But from 16 on, where a batch follows from its step."""
    sources = [train_py(e.number).read_text(encoding="utf-8") for e in BUILT if e.number < 16]
    functions = {re.search(r"def batches\(.*?(?=\n\n\n)", source, re.S)[0] for source in sources}
    assert len(functions) == 1


def test_every_number_in_a_config_says_what_it_means():
    for exercise in BUILT:
        config = re.search(r"class Config:\n(.*?)\n\n", train_py(exercise.number).read_text(encoding="utf-8"), re.S)[1]
        for line in config.splitlines():
            assert re.search(r"  # \S", line), f"{exercise.folder}: no meaning beside {line.strip()}"


def test_common_is_light():
    """What every exercise needs fits into 1,130 lines; what the long runs alone need lies in files of its own."""
    lines = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "common").glob("*.py")}
    assert sum(lines[name] for name in ("__init__", "curriculum", "data", "plotting", "record")) <= 1130
    assert sum(lines.values()) <= 2980
    for path in (ROOT / "common").glob("*.py"):
        top = [
            node
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        assert not any(alias.name.split(".")[0] in ("torch", "jax") for node in top for alias in node.names)


@pytest.mark.parametrize("exercise", BUILT, ids=lambda exercise: exercise.folder)
def test_readme_of_folder(exercise):
    folder = ROOT / exercise.folder
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert exercise.sentence in " ".join(text.replace("\n> ", "\n").split())
    assert f"python {exercise.folder}/train.py" in text
    # Two questions with folded answers, before the programs that go further, which test_questions.py looks at.
    assert text.partition("\n## Going further\n")[0].count("<details><summary>Answer</summary>") == 2
    folds = re.findall(r"^<details><summary>(.*)</summary>$", text, re.M)
    assert text.count("<details") == text.count("</details>") == len(folds)
    hints = [fold for fold in folds if fold != "Answer"]
    assert [re.match(r"Hint (\d): ", hint)[1] for hint in hints] == [str(n + 1) for n in range(len(hints))]
    if exercise.parent:
        parent = find_exercise(exercise.parent).folder
        assert f"diff {parent}/train.py {exercise.folder}/train.py" in text
    for image in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text):
        assert (folder / image).exists(), f"{exercise.folder}/README.md shows {image}, which is not there"


@pytest.mark.parametrize("exercise", BUILT, ids=lambda exercise: exercise.folder)
def test_task_of_folder(exercise):
    """The lesson's first section: data, training, what to print, when it is done, with the numbers of the program."""
    text = (ROOT / exercise.folder / "README.md").read_text(encoding="utf-8")
    title, task = text.split("\n## ")[:2]
    assert exercise.sentence.split()[0] in title
    assert task.startswith("Your task\n")
    assert 6 <= len(task.splitlines()) <= 28
    assert all(f"**{word}**" in task for word in ("Data", "Print", "Done"))
    assert f"`rampup hint {exercise.number}`" in task
    source = train_py(exercise.number).read_text(encoding="utf-8")
    assert [line for line in source.splitlines() if len(line.strip()) > 25 and line.strip() in task] == []
    said = set(map(float, re.findall(r"\d+(?:\.\d+)?", task.replace(",", ""))))
    for name in ("steps", "learning_rate", "batch_size"):
        values = re.findall(rf"(?:\b|\"){name}(?:: [\w |]+ =|\":) ([\d._]+)", source)
        numbers = {float(value.replace("_", "")) for value in values}
        inherited = exercise.number == 12 or not numbers  # all of 12's are exercise 11's; 15 counts in epochs
        assert inherited or numbers & said, f"{name}: {numbers}"


def test_top_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for exercise in BUILT:
        assert f"python {exercise.folder}/train.py" in text
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for exercise in STEPS:
        count = changed_lines(*(train_py(n).read_text(encoding="utf-8") for n in (exercise.parent, exercise.number)))
        lines = [commit.lines for commit in read_commits(exercise)]
        ideas = f"{len(lines)}, of {min(lines)} to {max(lines)}" if lines else "1"
        assert f"| {exercise.parent} → {exercise.number} | {count} | {exercise.budget} | {ideas} |" in text
    commands = re.findall(r"^    (pip install .*)$", text, re.M)
    assert len(commands) == 2
    assert commands[1] in ci  # CI runs the README's own test command


def test_links_lead_somewhere():
    pages = (ROOT / "common" / "cli" / "pages").glob("*.md")
    for path in [ROOT / "README.md", *pages, *(ROOT / exercise.folder / "README.md" for exercise in BUILT)]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path}: {target}"


GONE = (  # words that the field does not use for these things, and halves of sentences
    *(
        "words/s",
        "flops_per_word",
        "sample_words",
        "words_per_second",
        "drawn at random",
        "what is measured of the model",
    ),
    *("is no multiple of", "but for your flags", "as if nothing had been", "share of it that is left"),
)
NAMED = {  # terms that a person who looks for them finds in these programs
    9: ("kernel", "receptive field", "Dropout", "memorises"),
    10: ("Residual", "Batch norm", "Global average pooling"),
    14: ("augmentation", "bfloat16", "augment(", "normalise("),
    15: (
        "max pooling",
        "random resized crop",
        "horizontal flip",
        "exponential moving average",
        "label smoothing",
        "Data parallelism",
        "sharded",
        "replicated",
        "centre crop",
        "weight decay",
    ),
    11: ("token", "weight tying", "context length", "warm-up"),
    12: ("autoregressive sampling", "nucleus", "top-k", "temperature", "max_new_tokens"),
    13: ("self-attention", "positions", "attention heads"),
    16: ("gradient clipping", "weight decay on matrices", "flops_per_token", "compiled_model", "start_step"),
    17: (
        "Gradient accumulation",
        "grad_accum_steps",
        "micro_step",
        "world_size",
        "tokens_per_step",
        "offsets",
        "ddp_model",
    ),
}


@pytest.mark.parametrize("exercise", BUILT, ids=lambda exercise: exercise.folder)
def test_the_words_of_the_field(exercise):
    source = train_py(exercise.number).read_text(encoding="utf-8")
    assert [word for word in GONE if word in source] == []
    text = " ".join(source.replace("\n#", "\n").split())
    assert [term for term in NAMED.get(exercise.number, ()) if term not in text] == []


def test_every_mutation_applies():
    """Each changes one place in a file that is there, into valid Python, and names tests that there are."""
    assert len(TABLE) >= 100
    assert len({mutation.name for mutation in TABLE}) == len(TABLE)
    for mutation in TABLE:
        source = (ROOT / mutation.file).read_text(encoding="utf-8")
        mutated = mutation.apply(source)
        assert mutated is not None, f"{mutation.name}: {mutation.before!r} is not in {mutation.file} exactly once"
        assert mutated != source, mutation.name
        compile(mutated, mutation.file, "exec")
        for test in mutation.node_ids:
            path, name = test.split("::")
            assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text(encoding="utf-8"), test
