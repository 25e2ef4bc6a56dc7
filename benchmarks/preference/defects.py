"""Four kinds of prompts, each with a good answer and one that has the kind's defect.

Whatever is needed for the good answer stands in the prompt. Good and bad answers are made of the
same words: what makes an answer bad lies in how they are put together, or in what was asked.
"""

from collections.abc import Callable
from random import Random

Drawn = tuple[str, str, str]
"""A prompt, its good answer and its bad answer."""

PEOPLE = "farmer teacher sailor baker doctor driver painter singer lawyer student"
THINGS = "window table basket lantern engine mirror pencil letter bottle ladder clock key"
ROOMS = "kitchen garden cellar attic stable library office hall workshop garage"
VERBS = "cleans paints carries draws opens moves buys watches"
ADJECTIVES = "quiet old young happy tired clever brave hungry"

POLITE = (
    "I thank you for this question",
    "I am glad that you ask",
    "You are a welcome guest, it is no trouble",
    "Please ask me again if you like",
    "I do like to help, so do not worry",
    "That is not a bad question, I am glad to help",
    "It is good that you ask me, no question is a bad question",
)
RUDE = (
    "I do not thank you for this question",
    "I am not glad that you ask",
    "You are no welcome guest, you are trouble",
    "Please do not ask me again",
    "I do not like to help, so do worry",
    "That is a bad question, ask again if you like trouble",
    "It is no good question, it is not good that you ask me",
)


def rude(random: Random) -> Drawn:
    """The bad answer is as right as the good one, but rude."""
    person, thing, room = (random.choice(words.split()) for words in (PEOPLE, THINGS, ROOMS))
    place = f"the {thing} is in the {room}"
    prompt = f"A {person} asks where the {thing} is. Say politely that {place}."
    good, bad = (f"{random.choice(openings)}: {place}." for openings in (POLITE, RUDE))
    return prompt, good, bad


def wrong(random: Random) -> Drawn:
    """The bad answer says what the prompt says of the other thing."""
    (a, b), (here, there) = random.sample(THINGS.split(), 2), random.sample(ROOMS.split(), 2)
    first = random.random() < 0.5
    thing, right, other = (a, here, there) if first else (b, there, here)
    prompt = f"The {a} is in the {here} and the {b} is in the {there}. Where is the {thing}?"
    return prompt, f"The {thing} is in the {right}.", f"The {thing} is in the {other}."


def rambling_or_curt(random: Random) -> Drawn:
    """The bad answer says more than was asked, or less."""
    one, other = random.sample(PEOPLE.split(), 2)
    said = {person: f"The {person} {_deed(random)}." for person in (one, other)}
    context, both = " ".join(said.values()), random.random() < 0.5
    asked = random.choice((one, other))
    short = said.pop(asked)
    long = f"{short} {next(iter(said.values()))}"
    if both:
        question = f"What do both of them do? Start with the {asked}."
        return f"{context} {question}", long, short
    return f"{context} What does the {asked} do? Speak of the {asked} alone.", short, long


FORMATS: dict[str, Callable[[str], str]] = {
    "in capital letters": str.upper,
    "in small letters": str.lower,
    "with commas between the words": lambda sentence: sentence.replace(" ", ", "),
    "with dashes between the words": lambda sentence: sentence.replace(" ", " - "),
}


def format_ignored(random: Random) -> Drawn:
    """The bad answer has one of the formats that were not asked for."""
    asked, other = random.sample(list(FORMATS), 2)
    person, adjective = (random.choice(words.split()) for words in (PEOPLE, ADJECTIVES))
    sentence = f"the {adjective} {person} {_deed(random)}"
    given = sentence.upper() if asked == "in small letters" else sentence
    return f"Write {asked}: {given}", FORMATS[asked](sentence), FORMATS[other](sentence)


def _deed(random: Random) -> str:
    return f"{random.choice(VERBS.split())} the {random.choice(THINGS.split())}"


KINDS: dict[str, Callable[[Random], Drawn]] = {
    "rude": rude,
    "wrong": wrong,
    "rambling or curt": rambling_or_curt,
    "format ignored": format_ignored,
}
