"""Answers that begin otherwise than those of the training data are told of."""

import re
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from pydvl_datainf.asking import Question
from pydvl_datainf.asking.answering import Answered, answer_question, encode_answered
from pydvl_datainf.asking.borders import border_notes
from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface import AnswerEncoder, ChatEncoder, ClassEncoder
from tuned import tokenizer

PLAIN = AnswerEncoder(tokenizer(), 64)
SPACED = {"prompt": ["What is 1?", "And 2? "], "answer": [" It is 1.", "2."]}


def letters(chat=None):
    """A tokenizer that joins ab, also where a prompt ends with a and an answer begins with b."""
    table = {token: i for i, token in enumerate(["</s>", "a", "b", "c", "<", ">", "ab"])}
    made = Tokenizer(models.BPE(table, [("a", "b")]))
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", chat_template=chat)


def notes(encoder, *pairs, told=None, origin="given"):
    run = SimpleNamespace(metadata={"train": told or {}}.__getitem__)
    asked = []
    for number, pair in enumerate(pairs, 1):
        question = pair if isinstance(pair, Question) else Question(*pair)
        answered = Answered(question, origin)
        asked.append((answered, encode_answered(None, encoder, answered, number)))
    return border_notes(run, encoder, asked)


def test_a_token_across_the_border_is_told():
    encoder = AnswerEncoder(letters(), 64)
    (note,) = notes(encoder, ("ca", "ca"), ("ca", "bc"))
    assert note.startswith("questions, question 2: prompt and answer are tokenised as one text")
    assert "gives the token 'ab', which the model cannot write after this prompt by" in note
    assert len(notes(encoder, ("ca", "bc"), origin="generated")) == 1


@pytest.mark.parametrize(("end", "count"), [("", 0), ("c", 1)])
def test_a_template_that_asks_otherwise_than_it_writes_is_told(end, count):
    template = (
        "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
        "{% if add_generation_prompt %}<" + end + "{% endif %}"
    )
    encoder = ChatEncoder(letters(template), 64)
    assert len(notes(encoder, ("ca", "bc"))) == count
    assert len(notes(AnswerEncoder(letters(template), 64, chat=True), ("ca", "bc"))) == count


def test_a_conversation_that_a_template_takes_only_with_its_answer():
    template = (
        "{% if messages[-1]['role'] == 'system' %}{{ raise_exception('nobody asks') }}{% endif %}"
        "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    )
    encoder = ChatEncoder(letters(template), 64)
    asked = {"role": "system", "content": "ca"}
    said = {"role": "assistant", "content": "bc"}
    assert notes(encoder, Question(messages=[asked, said]), Question(messages=[said])) == []
    refusal = "questions, question 3: the chat template does not take this conversation: nobody"
    with pytest.raises(SourceError, match=refusal):
        answer_question(SimpleNamespace(generate=None), encoder, Question(messages=[asked]), 3, 9)


@pytest.mark.parametrize(
    ("told", "pair", "said"),
    [
        (SPACED, ("What is 3?", "It is 3."), "no space stands between prompt and answer, and one"),
        (SPACED, ("What is 3?", " It is 3."), None),
        (SPACED, ("What is 3? ", "It is 3."), "gives the token ' It'"),
        (SPACED, ("What is 3?", "\nIt is 3."), None),
        ({"prompt": ["a"], "completion": ["b"]}, ("a", " b"), "a space stands .* none does in all"),
        ({"prompt": ["a"], "chosen": [" b"]}, ("a", "b"), "no space stands"),
        ({"prompt": ["a", "a"], "answer": [" b", "b"]}, ("a", "b"), None),
        ({"text": ["a b"]}, ("a", "b"), None),
        ({}, ("a", "b"), None),
    ],
)
def test_a_space_that_is_always_or_never_there_is_told(told, pair, said):
    found = notes(PLAIN, pair, told=told)
    assert [bool(re.search(str(said), note)) for note in found] == [True] * (said is not None)


def test_what_the_model_or_a_template_writes_is_not_told():
    assert notes(PLAIN, ("a", "b"), told=SPACED, origin="generated") == []
    chat = AnswerEncoder(tokenizer(), 64, chat=True)
    assert notes(chat, ("a", "b"), told=SPACED) == []
    classes = ClassEncoder(tokenizer(), 64, {"b": 0}, 1)
    assert notes(classes, ("a", "b"), told=SPACED) == []
