"""Ten kinds of word problems that share names, things, numbers and words; the operation differs.

The larger number of a story lies between 12 and 60, the others between 2 and 9, in whatever class.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

NAMES = (
    "Anna Ben Clara David Emma Felix Grace Henry Irene Jack Kate Leo Maria Noah Olga Paul Rosa Sam "
    "Tina Victor"
)
THINGS = (
    "apples books coins cards stamps pencils shells stones eggs flowers cakes balls keys cups "
    "tickets photos"
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A class of problems.

    Attributes:
        stories: templates with the numbers a, b and c, the names x, y and z, and the things t.
        steps: for each step of the solution, text with the numbers and results r1, r2 in it.
        solve: the results of the steps.
        fits: whether numbers make a story with whole, positive results.
        large: whether a is a large number.
    """

    stories: tuple[str, ...]
    steps: tuple[str, ...]
    solve: Callable[[int, int, int], tuple[int, ...]]
    fits: Callable[[int, int, int], bool] = lambda a, b, c: True
    large: bool = True


KINDS: dict[str, Kind] = {
    "sum": Kind(
        (
            "{x} has {a} {t} and {y} has {b}. How many {t} do they have together?",
            "{x} has {a} {t} and gets {b} more from {y}. How many {t} does {x} have now?",
            "There are {a} {t} in one box and {b} in the other. How many {t} are there in all?",
            "{x} finds {a} {t} on one day and {b} more on the other. How many {t} is that in all?",
        ),
        ("{a} + {b} = {r1}",),
        lambda a, b, c: (a + b,),
    ),
    "difference": Kind(
        (
            "{x} has {a} {t} and {y} has {b}. How many more {t} than {y} does {x} have?",
            "{x} has {a} {t} and gives {b} to {y}. How many {t} does {x} have now?",
            "There are {a} {t} in a box. {x} takes {b} of them. How many {t} are left?",
            "{x} needs {a} {t} and has {b}. How many more {t} does {x} need?",
        ),
        ("{a} - {b} = {r1}",),
        lambda a, b, c: (a - b,),
    ),
    "product": Kind(
        (
            "{x} has {a} boxes with {b} {t} in each. How many {t} does {x} have?",
            "There are {a} boxes and {b} {t} in each box. How many {t} are there in all?",
            "{x} gives {b} {t} to each of {a} friends. How many {t} does {x} need?",
            "{x} gets {b} {t} on each of {a} days. How many {t} is that in all?",
        ),
        ("{a} * {b} = {r1}",),
        lambda a, b, c: (a * b,),
        large=False,
    ),
    "quotient": Kind(
        (
            "{x} puts {a} {t} in boxes, {b} in each box. How many boxes are there?",
            "{x} gives {a} {t} to friends, {b} to each. How many friends does {x} have?",
            "{x} needs {a} {t} and gets {b} on each day. How many days is that?",
            "There are {a} {t} in boxes with {b} {t} in each. How many boxes is that in all?",
        ),
        ("{a} / {b} = {r1}",),
        lambda a, b, c: (a // b,),
        lambda a, b, c: a % b == 0,
    ),
    "sum, less": Kind(
        (
            "{x} has {a} {t}, gets {b} more from {y} and gives {c} to {z}. "
            "How many {t} does {x} have now?",
            "There are {a} {t} in a box. {x} puts {b} more in and {y} takes {c}. "
            "How many {t} are left?",
            "{x} has {a} {t} and {y} has {b}. They give {c} of them to {z}. "
            "How many {t} do they have left together?",
            "{x} finds {a} {t} on one day and {b} more on the other. {y} takes {c} of them. "
            "How many {t} does {x} have left?",
        ),
        ("{a} + {b} = {r1}", "{r1} - {c} = {r2}"),
        lambda a, b, c: (a + b, a + b - c),
    ),
    "product, more": Kind(
        (
            "{x} has {a} boxes with {b} {t} in each and {c} {t} more. "
            "How many {t} does {x} have in all?",
            "There are {a} boxes and {b} {t} in each box. {x} finds {c} more. "
            "How many {t} are there now?",
            "{x} gets {b} {t} on each of {a} days and {c} more from {y}. "
            "How many {t} does {x} have now?",
            "{x} has {a} boxes with {b} {t} in each and {y} has {c} {t}. "
            "How many {t} do they have together?",
        ),
        ("{a} * {b} = {r1}", "{r1} + {c} = {r2}"),
        lambda a, b, c: (a * b, a * b + c),
        large=False,
    ),
    "product, less": Kind(
        (
            "{x} has {a} boxes with {b} {t} in each and gives {c} {t} to {y}. "
            "How many {t} are left?",
            "There are {a} boxes and {b} {t} in each box. {x} takes {c} of them. "
            "How many {t} are there now?",
            "{x} gets {b} {t} on each of {a} days and gives {c} of them to {y}. "
            "How many {t} does {x} have now?",
            "{x} has {a} boxes with {b} {t} in each and {y} has {c} {t}. "
            "How many more {t} than {y} does {x} have?",
        ),
        ("{a} * {b} = {r1}", "{r1} - {c} = {r2}"),
        lambda a, b, c: (a * b, a * b - c),
        lambda a, b, c: a * b > c,
        large=False,
    ),
    "more than, together": Kind(
        (
            "{x} has {a} {t} and {y} has {b} more than {x}. How many {t} do they have together?",
            "There are {a} {t} in one box and {b} more than that in the other. "
            "How many {t} are there in all?",
            "{x} finds {a} {t} on one day and {b} more than that on the other. "
            "How many {t} is that in all?",
            "{x} needs {a} {t} and {y} needs {b} more than {x}. "
            "How many {t} do they need together?",
        ),
        ("{a} + {b} = {r1}", "{a} + {r1} = {r2}"),
        lambda a, b, c: (a + b, 2 * a + b),
    ),
    "half, more": Kind(
        (
            "{x} has {a} {t}, gives half of them to {y} and gets {b} more. "
            "How many {t} does {x} have now?",
            "There are {a} {t} in a box. {x} takes half of them and puts {b} more in. "
            "How many {t} are in the box now?",
            "{x} has {b} {t} and gets half of the {a} {t} in a box. "
            "How many {t} does {x} have in all?",
            "{x} finds {a} {t} on one day and gives half of them to {y}. On the other day {x} "
            "finds {b} more. How many {t} does {x} have left?",
        ),
        ("{a} / 2 = {r1}", "{r1} + {b} = {r2}"),
        lambda a, b, c: (a // 2, a // 2 + b),
        lambda a, b, c: a % 2 == 0,
    ),
    "half of the sum": Kind(
        (
            "{x} has {a} {t}, gets {b} more and gives half of them to {y}. "
            "How many {t} does {x} have now?",
            "There are {a} {t} in a box. {x} puts {b} more in and takes half of them. "
            "How many {t} are in the box now?",
            "{x} has {b} {t} and {y} has {a}. They give half of them to {z}. "
            "How many {t} do they have left together?",
            "{x} finds {a} {t} on one day and {b} more on the other, and gives half of them to "
            "{y}. How many {t} does {x} have left?",
        ),
        ("{a} + {b} = {r1}", "{r1} / 2 = {r2}"),
        lambda a, b, c: (a + b, (a + b) // 2),
        lambda a, b, c: (a + b) % 2 == 0,
    ),
}


def draw_numbers(kind: Kind, random: Random) -> tuple[int, int, int]:
    while True:
        a = random.randint(12, 60) if kind.large else random.randint(2, 9)
        b, c = random.randint(2, 9), random.randint(2, 9)
        if kind.fits(a, b, c):
            return a, b, c


def draw(label: str, random: Random, reasoning: bool) -> tuple[str, str]:
    """A prompt and its answer: the number alone, or the steps that lead to it before it."""
    kind = KINDS[label]
    a, b, c = draw_numbers(kind, random)
    x, y, z = random.sample(NAMES.split(), 3)
    story = random.choice(kind.stories)
    prompt = story.format(a=a, b=b, c=c, x=x, y=y, z=z, t=random.choice(THINGS.split()))
    results = kind.solve(a, b, c)
    if not reasoning:
        return prompt, str(results[-1])
    named = {f"r{i}": result for i, result in enumerate(results, start=1)}
    steps = [step.format(a=a, b=b, c=c, **named) for step in kind.steps]
    return prompt, ". ".join([*steps, f"The answer is {results[-1]}."])
