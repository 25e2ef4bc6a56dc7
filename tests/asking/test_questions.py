"""Questions: what they are, and which tokens of their answers count."""

import json

import pytest

from pydvl_datainf.asking import Question, read_questions
from pydvl_datainf.asking.encoding import encode_question
from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface import AnswerEncoder, ChatEncoder
from tuned import tokenizer

TALK = [
    {"role": "user", "content": "What is 1 plus 1?"},
    {"role": "assistant", "content": "It is 2."},
    {"role": "user", "content": "plus 2?"},
]


def encoded(encoder, question, answer):
    """The text of all tokens, of those that count, and of each of these."""
    asked = encode_question(encoder, question, answer, 1)
    ids, labels = asked.sample["input_ids"], asked.sample["labels"]
    counted = [label for label in labels if label != -100]
    assert all(label in (-100, token) for token, label in zip(ids, labels, strict=True))
    decode = encoder.tokenizer.decode
    assert list(asked.tokens) == [decode([t]) for t in counted]
    return decode(ids), decode(counted)


@pytest.mark.parametrize(
    ("span", "counted"), [(None, " It is 7, or 17.</s>"), ("17", "17"), ("7", "77"), (".", ".")]
)
def test_tokens_that_reach_into_the_span_count(span, counted):
    question = Question("What is 3 plus 4?", " It is 7, or 17.", span)
    text, found = encoded(AnswerEncoder(tokenizer(), 99), question, question.answer)
    assert text == "What is 3 plus 4? It is 7, or 17.</s>"
    assert found.replace(" ", "") == counted.replace(" ", "")


def test_spans_that_overlap_count_whole():
    question = Question("Say", " ababa.", "aba")
    assert encoded(AnswerEncoder(tokenizer(), 99), question, " ababa.")[1].strip() == "ababa"


@pytest.mark.parametrize(
    "fields",
    [{"prompt": "a\udcff"}, {"prompt": "a", "span": "\ud800"}, {"prompt": "a", "id": "\ud800"}],
    ids=ascii,
)
def test_halves_of_characters_are_refused(fields):
    with pytest.raises(SourceError, match="is not text: it holds half of a surrogate pair"):
        Question(**fields)
    with pytest.raises(SourceError, match="with role and content, both texts, got"):
        Question(messages=[{"role": "user", "content": "\ud800"}])


def test_of_a_conversation_the_last_answer_counts():
    said = [*TALK, {"role": "assistant", "content": "It is 4, not 2."}]
    chat = ChatEncoder(tokenizer(), 99)
    text, found = encoded(chat, Question(messages=said), "It is 4, not 2.")
    assert text.endswith("<user>plus 2?</s><assistant>It is 4, not 2.</s>")
    assert found == "It is 4, not 2.</s>"
    _, found = encoded(chat, Question(messages=said, span="2"), "It is 4, not 2.")
    assert found == " 2"  # and not that of the first answer
    assert Question(messages=said).known_answer == "It is 4, not 2."
    assert Question(messages=TALK).known_answer is None
    assert Question(messages=TALK).conversation == TALK


def test_whole_texts_are_asked_by_prompt_and_answer():
    encoder = AnswerEncoder(tokenizer(), 99, prompt=None, answer="text")
    assert encoded(encoder, Question("What is"), " it?")[1] == " it?</s>"
    with pytest.raises(SourceError, match="question 1: it is a conversation, and the training"):
        encode_question(encoder, Question(messages=TALK), "a", 1)


def test_tokens_by_themselves():
    question = Question("What is 3 plus 4?", " It is 7.")
    asked = encode_question(AnswerEncoder(tokenizer(), 99), question, question.answer, 1)
    parts = list(asked.by_token())
    assert len(parts) == len(asked.tokens) > 3
    assert [part.tokens for part in parts] == [(token,) for token in asked.tokens]
    together = [max(labels) for labels in zip(*(p.sample["labels"] for p in parts), strict=True)]
    assert together == asked.sample["labels"]
    assert all(sum(label >= 0 for label in p.sample["labels"]) == 1 for p in parts)


def test_an_answer_that_is_cut_off_does_not_count():
    with pytest.raises(SourceError, match="nothing of the answer counts within max_length=4"):
        encode_question(AnswerEncoder(tokenizer(), 4), Question("What is this?"), " b", 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({}, "line 2: A question is either a prompt or messages"),
        ({"prompt": "a", "messages": TALK}, "either a prompt or messages"),
        ({"prompt": 3}, "line 2: The prompt of a question must be text, got 3"),
        ({"prompt": "a", "span": ["b"]}, "The span of a question must be text"),
        ({"prompt": "a", "question": "b"}, "'question' is no field of a question"),
        ({"messages": []}, "Messages must be a list of mappings"),
        ({"messages": [{"role": "user"}]}, "Messages must be a list of mappings"),
        ({"messages": [*TALK, TALK[1]], "answer": "b"}, "end with an answer, and there is another"),
    ],
)
def test_lines_that_are_no_questions_are_named(tmp_path, line, message):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"prompt": "a"}\n' + json.dumps(line) + "\n")
    with pytest.raises(SourceError, match=message):
        read_questions(path)


def test_questions_are_read_from_lines_of_json(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(
        f'{{"prompt": "a", "answer": "b", "id": "c"}}\n{{"messages": [{json.dumps(TALK[0])}]}}\n'
    )
    assert read_questions(path) == [Question("a", "b", id="c"), Question(messages=TALK[:1])]
    with pytest.raises(SourceError, match=r"name a file \.jsonl"):
        read_questions(tmp_path / "questions.csv")
