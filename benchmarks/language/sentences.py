"""Ten transformations of a sentence; all classes draw their sentences from the same grammar.

An instruction has to say what is to be done, so its words differ between classes. They are chosen
so that each of them occurs in at least two classes: what is asked lies in their combination.
"""

from collections.abc import Callable
from random import Random

NOUNS = (
    "farmer teacher sailor baker doctor driver painter singer lawyer student river garden window "
    "kitchen bridge market forest table basket letterbox lantern island engine mirror pencil"
)
ADJECTIVES = (
    "quiet old young happy tired clever brave green little heavy narrow bright empty early gentle "
    "hungry modern famous careful lonely"
)
VERBS = (
    "sees paints finds likes carries watches remembers visits moves cleans describes follows opens "
    "draws buys protects"
)
ADVERBS = "today slowly again often never always quickly sometimes gladly tomorrow"

PATTERNS = (
    "the {adjective} {noun} {verb} the {other}",
    "the {noun} {verb} one {adjective} {other}",
    "{adverb} the {noun} {verb} the {other}",
    "the {noun} {adverb} {verb} one {other}",
    "the {noun} {verb} the {other} {adverb}",
)

FRAMES = (
    "{instruction}: {sentence}",
    "{sentence}. {instruction}.",
    "Read: {sentence}. {instruction}.",
)

INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "reverse words": (
        "Write the words in order, the last of them first",
        "Give the words of the sentence in order, but start at the end",
        "Put the words in order, the last at the start and the first at the end",
        "Start at the end and write the sentence word by word",
        "Go word by word, the last word first",
    ),
    "sort words": (
        "Write the words in the order of the first letters",
        "Give the words in order by the first letter",
        "Put the words of the sentence in order, letter by letter",
        "Order all words by the letter at the start",
        "Go by the first letter of every word and put the words in order",
    ),
    "upper case": (
        "Write all letters of the sentence as capitals",
        "Give the sentence in capital letters",
        "Put every word in capitals",
        "Make every letter a capital",
        "Write the sentence again, every letter as a capital",
    ),
    "title case": (
        "Write the first letter of every word as a capital",
        "Give every word a capital at the start",
        "Put a capital at the start of every word of the sentence",
        "Make the first letter of every word a capital",
        "Write the sentence again, the first letter of all words as capitals",
    ),
    "initials": (
        "Write only the first letter of every word",
        "Give only the letter at the start of every word, in order",
        "Leave out all letters but the first of every word",
        "Go word by word, keep the first letter and leave out the other letters",
        "Make a word of the first letters of all words, in order",
    ),
    "last letters": (
        "Write only the last letter of every word",
        "Give only the letter at the end of every word, in order",
        "Leave out all letters but the last of every word",
        "Go word by word, keep the last letter and leave out the other letters",
        "Make a word of the last letters of all words, in order",
    ),
    "double words": (
        "Write every word twice",
        "Give all words of the sentence twice",
        "Repeat every word of the sentence",
        "Go word by word and write every word twice",
        "Write every word and write every word again",
    ),
    "echo last word": (
        "Write the sentence and put the last word in twice",
        "Give the sentence and the last word again",
        "Repeat the last word at the end of the sentence",
        "Write the last word of the sentence twice, the other words as they are",
        "Keep the words as they are, and write the last of them again",
    ),
    "no vowels": (
        "Leave out the vowels",
        "Write the sentence and leave out every vowel",
        "Give all letters of the sentence but the vowels",
        "Keep only the letters that are not vowels",
        "Go letter by letter and leave the vowels out",
    ),
    "capital vowels": (
        "Make the vowels capitals",
        "Write the sentence and make every vowel a capital",
        "Give all vowels of the sentence as capital letters",
        "Keep the letters that are not vowels as they are, and make the vowels capitals",
        "Go letter by letter and put the vowels in capitals",
    ),
}


def _each(change: Callable[[str], str]) -> Callable[[str], str]:
    return lambda sentence: " ".join(map(change, sentence.split()))


def _is_vowel(letter: str) -> bool:
    return letter in "aeiou"


TRANSFORMATIONS: dict[str, Callable[[str], str]] = {
    "reverse words": lambda s: " ".join(s.split()[::-1]),
    "sort words": lambda s: " ".join(sorted(s.split())),
    "upper case": str.upper,
    "title case": _each(str.capitalize),
    "initials": lambda s: "".join(word[0] for word in s.split()),
    "last letters": lambda s: "".join(word[-1] for word in s.split()),
    "double words": _each(lambda word: f"{word} {word}"),
    "echo last word": lambda s: f"{s} {s.split()[-1]}",
    "no vowels": lambda s: "".join(c for c in s if not _is_vowel(c)),
    "capital vowels": lambda s: "".join(c.upper() if _is_vowel(c) else c for c in s),
}


def draw_sentence(random: Random) -> str:
    """A sentence in lower case, without full stop, whose words differ in all but "the"."""
    noun, other = random.sample(NOUNS.split(), 2)
    return random.choice(PATTERNS).format(
        noun=noun,
        other=other,
        adjective=random.choice(ADJECTIVES.split()),
        verb=random.choice(VERBS.split()),
        adverb=random.choice(ADVERBS.split()),
    )


def draw(label: str, random: Random) -> tuple[str, str]:
    """A prompt and its answer."""
    sentence = draw_sentence(random)
    instruction = random.choice(INSTRUCTIONS[label])
    prompt = random.choice(FRAMES).format(instruction=instruction, sentence=sentence)
    return prompt, TRANSFORMATIONS[label](sentence)
