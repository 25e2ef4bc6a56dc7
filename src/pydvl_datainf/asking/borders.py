"""Whether an answer follows its prompt as answers follow prompts in the training data."""

from pydvl_datainf.asking.answering import Answered, QuestionEncoder
from pydvl_datainf.asking.encoding import AnswersEncoder, Asked
from pydvl_datainf.asking.generation import prompt_ids
from pydvl_datainf.asking.questions import Question, place_of
from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface import AnswerEncoder, ChatEncoder
from pydvl_datainf.huggingface.record_values import brief
from pydvl_datainf.results.reader import InfluenceRun

ANSWERS = ("answer", "completion", "chosen")
"""What runs of jobs and of trainers call answers."""


def border_notes(
    run: InfluenceRun, encoder: QuestionEncoder, asked: list[tuple[Answered, Asked]]
) -> list[str]:
    """What is unusual about the places where answers begin.

    Args:
        run: keeps the texts of the training samples, or does not.
        encoder: that of the training data.
        asked: questions, tokenised.

    Returns:
        A sentence for each question whose answer begins elsewhere.
    """
    if not isinstance(encoder, AnswerEncoder | ChatEncoder):
        return []
    usual = None if isinstance(encoder, ChatEncoder) or encoder.chat else _spaced(run)
    notes = []
    for number, (answered, one) in enumerate(asked, 1):
        ids, before = one.sample["input_ids"], _before(encoder, answered.question, number)
        if ids[: len(before)] != before:
            pairs = zip(ids, before, strict=False)
            first = next((i for i, (a, b) in enumerate(pairs) if a != b), len(ids))
            token = brief(encoder.tokenizer.decode(ids[first : first + 1]))
            notes.append(
                f"{place_of(number)}: prompt and answer are tokenised as one text, and where they "
                f"meet that gives the token {token}, which the model cannot write after this "
                "prompt by itself. That is right where prompts of the training data end so too."
            )
        elif answered.origin == "given" and usual is not None:
            is_spaced = _has_space(one.prompt, one.answer)
            if is_spaced != usual:
                notes.append(
                    f"{place_of(number)}: "
                    + ("a space" if is_spaced else "no space")
                    + " stands between prompt and answer, and "
                    + ("one" if usual else "none")
                    + " does in all training samples. Begin the answer as theirs begin."
                )
    return notes


def _before(encoder: AnswersEncoder, question: Question, number: int) -> list[int]:
    """Tokens of the prompt; none where a template takes it only with its answer."""
    try:
        return prompt_ids(encoder, question, number)
    except SourceError:
        return []


def _spaced(run: InfluenceRun) -> bool | None:
    """Whether a space stands between prompts and answers; None = not always, or unknown."""
    told = run.metadata("train")
    answers = next((told[name] for name in ANSWERS if name in told), None)
    if answers is None or "prompt" not in told:
        return None
    found = {_has_space(*pair) for pair in zip(told["prompt"], answers, strict=True)}
    return found.pop() if len(found) == 1 else None


def _has_space(prompt: object, answer: object) -> bool:
    """Whether white space ends a prompt or begins an answer."""
    border = str(prompt)[-1:] + str(answer)[:1]
    return any(character.isspace() for character in border)
