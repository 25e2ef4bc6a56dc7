"""The pairs of benchmarks/preference: seeded, disjoint, swapped as stated, told by no word."""

import re
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "preference"))
defects = import_module("defects")
pairs = import_module("pairs")


def better_and_worse(pair):
    clean = pairs.swap(pair) if pair.swapped else pair
    return clean.chosen, clean.rejected


def test_a_seed_gives_the_same_pairs_and_another_seed_others():
    first = pairs.draw_pairs(20, 5, 0.2, seed=0)
    assert first == pairs.draw_pairs(20, 5, 0.2, seed=0)
    assert first != pairs.draw_pairs(20, 5, 0.2, seed=1)


def test_kinds_are_equally_large_and_no_prompt_occurs_twice():
    train, test = pairs.draw_pairs(60, 12, 0.2, seed=0)
    assert Counter(p.kind for p in train) == dict.fromkeys(defects.KINDS, 60)
    assert Counter(p.kind for p in test) == dict.fromkeys(defects.KINDS, 12)
    assert len({p.prompt for p in [*train, *test]}) == 4 * 72


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.2, 12), (0.35, 21), (1.0, 60)])
def test_exactly_the_stated_share_of_each_kind_is_swapped(share, count):
    train, test = pairs.draw_pairs(60, 12, share, seed=0)
    swapped = Counter(p.kind for p in train if p.swapped)
    assert [swapped[kind] for kind in defects.KINDS] == [count] * 4
    assert not any(p.swapped for p in test)


@pytest.mark.parametrize("share", [0.21, -0.2, 1.2])
def test_a_share_that_is_no_number_of_pairs_is_refused(share):
    with pytest.raises(ValueError, match=f"a share of {share} of 60 pairs is not a number"):
        pairs.draw_pairs(60, 12, share, seed=0)


def test_swapping_changes_the_order_of_the_answers_alone():
    clean, _ = pairs.draw_pairs(30, 5, 0.0, seed=0)
    some, _ = pairs.draw_pairs(30, 5, 0.2, seed=0)
    assert clean != some
    assert [pairs.swap(p) if p.swapped else p for p in some] == clean


def test_the_two_answers_differ():
    train, test = pairs.draw_pairs(60, 12, 0.2, seed=0)
    assert all(p.chosen != p.rejected for p in [*train, *test])


# The better answer, worked out again from the prompt


def clean_pairs(kind):
    train, test = pairs.draw_pairs(60, 12, 0.2, seed=0)
    return [(p.prompt, *better_and_worse(p)) for p in [*train, *test] if p.kind == kind]


def test_right_answers_stand_in_the_prompt_and_wrong_ones_do_not():
    for prompt, right, wrong in clean_pairs("wrong"):
        assert right[3:-1] in prompt
        assert wrong[3:-1] not in prompt
        assert wrong.split()[-1].strip(".") in prompt


def test_polite_and_rude_answers_say_the_same_of_the_place():
    for prompt, polite, rude in clean_pairs("rude"):
        assert polite.split(": ")[0] in defects.POLITE
        assert rude.split(": ")[0] in defects.RUDE
        assert polite.split(": ")[1] == rude.split(": ")[1]
        assert polite.split(": ")[1] in prompt


def test_answers_are_as_long_as_was_asked():
    for prompt, asked, other in clean_pairs("rambling or curt"):
        lengths = asked.count("."), other.count(".")
        assert lengths == ((2, 1) if "both" in prompt else (1, 2))
        person = re.search(r"(?:Start with|Speak of) the (\w+)", prompt)[1]
        assert asked.split()[1] == other.split()[1] == person


MARKS = {"capital": str.isupper, "small": str.islower, "commas": lambda s: ", " in s}
MARKS["dashes"] = lambda s: " - " in s


def test_answers_have_the_format_that_was_asked_for():
    for prompt, asked, other in clean_pairs("format ignored"):
        [is_right] = [mark for word, mark in MARKS.items() if word in prompt.split()]
        assert is_right(asked)
        assert asked != other
        words = [re.findall("[a-z]+", text.lower()) for text in (asked, other)]
        assert words[0] == words[1]


# What answers give away


def sides_by_word(train):
    counts = {}
    for pair in train:
        for side, text in zip(("better", "worse"), better_and_worse(pair), strict=True):
            for word in set(re.findall(r"[a-z]+|[,:.-]", text.lower())):
                counts.setdefault(word, Counter())[side] += 1
    return counts


def test_no_word_belongs_to_one_side():
    train, _ = pairs.draw_pairs(300, 0, 0.2, seed=0)
    counts = sides_by_word(train)
    assert len(counts) > 60
    telling = {w: max(sides.values()) / sides.total() for w, sides in counts.items()}
    assert max(telling.values()) < 0.9, max(telling, key=telling.get)


def test_a_word_of_one_side_would_be_found(monkeypatch):
    monkeypatch.setattr(defects, "RUDE", ("Go away",))
    counts = sides_by_word(pairs.draw_pairs(300, 0, 0.2, seed=0)[0])
    assert {w for w, sides in counts.items() if sides["better"] == 0} == {"go", "away"}
