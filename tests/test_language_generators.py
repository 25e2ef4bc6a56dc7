"""The data of benchmarks/language: seeded, right, and without a word that names the class."""

import re
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "language"))
generators = import_module("generators")
maths = import_module("maths")
sentences = import_module("sentences")

TASKS = list(generators.TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_gives_the_same_samples_and_another_seed_others(task):
    first = generators.draw_samples(task, 10, 6, 3, seed=0)
    assert first == generators.draw_samples(task, 10, 6, 3, seed=0)
    others = generators.draw_samples(task, 10, 6, 3, seed=1)
    assert {s.prompt for s in first[0]} != {s.prompt for s in others[0]}


@pytest.mark.parametrize("task", TASKS)
def test_classes_are_equally_large_and_no_prompt_occurs_twice(task):
    train, test = generators.draw_samples(task, 7, 50, 10, seed=0)
    assert set(Counter(s.label for s in train).values()) == {50}
    assert set(Counter(s.label for s in test).values()) == {10}
    assert len({s.label for s in train}) == 7
    assert len({s.prompt for s in [*train, *test]}) == 7 * 60


@pytest.mark.parametrize("classes", [1, 11])
def test_other_numbers_of_classes_are_refused(classes):
    with pytest.raises(ValueError, match=f"has 10 classes and needs 2 of them, not {classes}"):
        generators.draw_samples("maths", classes, 3, 2, seed=0)


# Answers, worked out again

EXAMPLE = "the old farmer never sees one bridge"
TRANSFORMED = {
    "reverse words": "bridge one sees never farmer old the",
    "sort words": "bridge farmer never old one sees the",
    "upper case": "THE OLD FARMER NEVER SEES ONE BRIDGE",
    "title case": "The Old Farmer Never Sees One Bridge",
    "initials": "tofnsob",
    "last letters": "edrrsee",
    "double words": "the the old old farmer farmer never never sees sees one one bridge bridge",
    "echo last word": "the old farmer never sees one bridge bridge",
    "no vowels": "th ld frmr nvr ss n brdg",
    "capital vowels": "thE Old fArmEr nEvEr sEEs OnE brIdgE",
}


@pytest.mark.parametrize("label", sentences.TRANSFORMATIONS)
def test_transformation_of_an_example(label):
    assert sentences.TRANSFORMATIONS[label](EXAMPLE) == TRANSFORMED[label]


def test_prompts_hold_the_sentence_that_the_answer_transforms():
    (train, _) = generators.draw_samples("sentences", 10, 30, 5, seed=0)
    words = " ".join(
        [sentences.NOUNS, sentences.ADJECTIVES, sentences.VERBS, sentences.ADVERBS, "the one"]
    ).split()
    doubled = [s for s in train if s.label == "double words"]
    for sample in doubled:
        sentence = sample.answer.split()[::2]
        assert sentence == sample.answer.split()[1::2]
        assert set(sentence) <= set(words)
        assert " ".join(sentence) in sample.prompt


ARITHMETIC = {  # of the numbers in a story, in the order in which it names them
    "sum": lambda n: n[0] + n[1],
    "difference": lambda n: n[0] - n[1],
    "product": lambda n: n[0] * n[1],
    "quotient": lambda n: n[0] / n[1],
    "sum, less": lambda n: n[0] + n[1] - n[2],
    "product, more": lambda n: n[0] * n[1] + n[2],
    "product, less": lambda n: n[0] * n[1] - n[2],
    "more than, together": lambda n: n[0] + (n[0] + n[1]),
    "half, more": lambda n: max(n) / 2 + min(n),
    "half of the sum": lambda n: (n[0] + n[1]) / 2,
}


def numbers(text):
    return [int(digits) for digits in re.findall(r"\d+", text)]


@pytest.mark.parametrize("task", ["maths", "maths-reasoning"])
def test_maths_answers_are_right(task):
    train, test = generators.draw_samples(task, 10, 100, 10, seed=0)
    for sample in [*train, *test]:
        expected = ARITHMETIC[sample.label](numbers(sample.prompt))
        assert numbers(sample.answer)[-1] == expected
        assert expected > 0


def test_every_step_of_reasoning_is_right_and_leads_to_the_answer():
    train, _ = generators.draw_samples("maths-reasoning", 10, 100, 10, seed=0)
    compute = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
        "/": lambda a, b: a / b,
    }
    for sample in train:
        steps = re.findall(r"(\d+) (.) (\d+) = (\d+)\.", sample.answer)
        assert steps
        assert all(compute[sign](int(a), int(b)) == int(r) for a, sign, b, r in steps)
        assert sample.answer.endswith(f"{steps[-1][3]}. The answer is {steps[-1][3]}.")


def test_without_reasoning_the_answer_is_a_number_alone():
    train, _ = generators.draw_samples("maths", 10, 30, 5, seed=0)
    assert all(sample.answer.isdigit() for sample in train)


# What prompts give away


def classes_by_word(task):
    train, _ = generators.draw_samples(task, 10, 300, 0, seed=0)
    counts = {}
    for sample in train:
        for word in set(re.findall(r"[a-z]+", sample.prompt.lower())):
            counts.setdefault(word, Counter())[sample.label] += 1
    return counts


@pytest.mark.parametrize("task", TASKS)
def test_no_word_belongs_to_one_class(task):
    counts = classes_by_word(task)
    assert len(counts) > 60
    assert [word for word, labels in counts.items() if len(labels) == 1] == []
    telling = {w: max(labels.values()) / labels.total() for w, labels in counts.items()}
    assert max(telling.values()) < 0.75, max(telling, key=telling.get)


def test_a_word_of_one_class_would_be_found(monkeypatch):
    monkeypatch.setitem(sentences.INSTRUCTIONS, "upper case", ("Shout the sentence",))
    assert [w for w, labels in classes_by_word("sentences").items() if len(labels) == 1] == [
        "shout"
    ]


def test_sentences_are_drawn_alike_in_all_classes():
    """Names, things and sentence words: each class uses most of each pool."""
    counts = classes_by_word("sentences")
    nouns = [counts[noun] for noun in sentences.NOUNS.split()]
    assert all(len(labels) == 10 for labels in nouns)
    assert max(max(labels.values()) / labels.total() for labels in nouns) < 0.25


@pytest.mark.parametrize("task", ["maths", "maths-reasoning"])
@pytest.mark.parametrize("pool", [maths.NAMES, maths.THINGS], ids=["names", "things"])
def test_names_and_things_are_drawn_alike_in_all_classes(task, pool):
    counts = classes_by_word(task)
    shares = [counts[word.lower()] for word in pool.split()]
    assert all(len(labels) == 10 for labels in shares)
    assert max(max(labels.values()) / labels.total() for labels in shares) < 0.25
