"""The end of an answer counts where the model wrote it, or the answer was given."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from pydvl_datainf.asking import Question
from pydvl_datainf.asking.answering import answer_question, encode_answered
from pydvl_datainf.huggingface import AnswerEncoder, ChatEncoder, TranslationEncoder
from pydvl_datainf.objectives.tokens import IGNORED
from tuned import tokenizer

PROMPT, ANSWER = "What is 3?", "It is 9."
THOUGHTS = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'].split('|')[-1] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""A template that leaves out what stands before a stroke."""


def ending():
    """The tokenizer, which writes an end after each text."""
    made = tokenizer()
    made._tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", made.eos_token_id)]
    )
    return made


def thinking():
    made = tokenizer()
    made.chat_template = THOUGHTS
    return made


WORDS = tokenizer()
EOS, OTHER = WORDS.eos_token_id, WORDS.pad_token_id
SAID = WORDS(ANSWER)["input_ids"]


class Writes(torch.nn.Module):
    """A model that goes on with these tokens up to one at which it is asked to stop."""

    def __init__(self, tokens, end=None, begin=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.generation_config = SimpleNamespace(eos_token_id=end)
        self.config = SimpleNamespace(decoder_start_token_id=0, pad_token_id=0)
        self.tokens, self.begin = tokens, begin

    def generate(self, input_ids, max_new_tokens, eos_token_id, **_):
        found = input_ids[0].tolist() if self.begin is None else [self.begin]
        for token in self.tokens[:max_new_tokens]:
            found.append(token)
            if token in eos_token_id:
                break
        return torch.tensor([found])


def counted(model, encoder, room=99):
    """What the model answers, and the text of the tokens of that which count."""
    answered = answer_question(model, encoder, Question(PROMPT), 1, room)
    asked = encode_answered(model, encoder, answered, 1)
    ids = [label for label in asked.sample["labels"] if label != IGNORED]
    assert [asked.sample["labels"][t] for t in asked.counted] == ids
    return answered.answer, WORDS.decode(ids)


DECODERS = {
    "plain": AnswerEncoder(WORDS, 64),
    "own end": AnswerEncoder(ending(), 64),
    "texts": AnswerEncoder(WORDS, 64, prompt=None),
    "chat": AnswerEncoder(WORDS, 64, chat=True),
    "conversation": ChatEncoder(WORDS, 64),
    "changed": ChatEncoder(thinking(), 64),
    "translation": TranslationEncoder(ending(), 64),
}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    ("written", "end", "room", "behind"),
    [
        ([*SAID, EOS], None, 99, "</s>"),
        ([*SAID, EOS], [OTHER], len(SAID) + 1, "</s>"),
        ([*SAID, EOS], None, len(SAID), ""),
        ([*SAID, OTHER, EOS], [EOS, OTHER], 99, ""),
        ([*SAID, OTHER], OTHER, 99, ""),
    ],
    ids=["ended", "ended at the last token", "cut", "ended by another", "by that alone"],
)
def test_the_end_counts_where_the_model_wrote_it(name, written, end, room, behind):
    begin = 0 if name == "translation" else None
    found = counted(Writes(written, end, begin), DECODERS[name], room)
    assert found == (ANSWER, ANSWER + behind)


def test_what_a_template_leaves_out_hides_no_end():
    thought = [*WORDS("9 or so|")["input_ids"], *SAID]
    for room, behind in ((99, "</s>"), (len(thought), "")):
        found = counted(Writes([*thought, EOS]), DECODERS["changed"], room)
        assert found == ("9 or so|" + ANSWER, ANSWER + behind)


@pytest.mark.parametrize("name", DECODERS)
def test_the_end_of_a_given_answer_counts(name):
    model, encoder = Writes([]), DECODERS[name]
    answered = answer_question(model, encoder, Question(PROMPT, ANSWER), 1, 1)
    assert "".join(encode_answered(model, encoder, answered, 1).tokens) == ANSWER + "</s>"
