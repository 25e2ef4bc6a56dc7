"""Prompts that name their class, in the manner of the paper's, from our own words.

Each class has one wording: a transformation is asked for by its name, and a kind of word problem is
one story, always of the same people and things, in which only the numbers change. So any measure of
the prompts' likeness tells the classes. In the prompts of benchmarks/language none does so surely.
"""

from random import Random

from borrowed import generators, maths, sentences

Sample = generators.Sample


def draw_sentence_task(label: str, random: Random) -> tuple[str, str]:
    """The transformation's name, and a sentence."""
    sentence = sentences.draw_sentence(random)
    return f"{label.capitalize()}: {sentence}", sentences.TRANSFORMATIONS[label](sentence)


def draw_problem(label: str, random: Random) -> tuple[str, str]:
    """The first story of the class, with people and things that belong to it."""
    kind, own = maths.KINDS[label], Random(label)
    x, y, z = own.sample(maths.NAMES.split(), 3)
    thing = own.choice(maths.THINGS.split())
    a, b, c = maths.draw_numbers(kind, random)
    prompt = kind.stories[0].format(a=a, b=b, c=c, x=x, y=y, z=z, t=thing)
    return prompt, str(kind.solve(a, b, c)[-1])


DRAWS = {"sentences": draw_sentence_task, "maths": draw_problem}


def draw_samples(task: str, train: int, test: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Training and test samples, so many of each of the ten classes; no prompt occurs twice."""
    labels, random = generators.TASKS[task][0], Random(f"{task} {seed}")
    prompts: set[str] = set()
    samples: list[Sample] = []
    for label in labels * (train + test):
        while (drawn := DRAWS[task](label, random))[0] in prompts:
            pass
        prompts.add(drawn[0])
        samples.append(Sample(*drawn, label))
    return samples[: train * len(labels)], samples[train * len(labels) :]
