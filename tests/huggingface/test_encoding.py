"""From records to tokens and labels: what counts, what is cut, and what is refused."""

import datasets
import pytest
import torch
from tokenizers import processors

from pydvl_datainf import SourceError
from pydvl_datainf.huggingface import (
    AnswerEncoder,
    ChatEncoder,
    ClassEncoder,
    TagEncoder,
    TokenSamples,
    read_records,
)
from pydvl_datainf.huggingface.records import Place
from tuned import tokenizer

TOKENIZER = tokenizer()


def placed(**record):
    return Place("train.jsonl", "line", 3), record


def counted(sample):
    """The text of the tokens that have a label, each of which must be the token's own."""
    pairs = zip(sample["input_ids"], sample["labels"], strict=True)
    kept = [(token, label) for token, label in pairs if label != -100]
    assert all(token == label for token, label in kept)
    return TOKENIZER.decode([token for token, _ in kept])


def text_of(sample):
    return TOKENIZER.decode(sample["input_ids"])


def test_the_answer_and_the_end_of_the_text_count():
    sample = AnswerEncoder(TOKENIZER, 64).encode(placed(prompt="What is 2?", answer=" It is 2."))
    assert text_of(sample) == "What is 2? It is 2.</s>"
    assert counted(sample) == " It is 2.</s>"
    assert sample["attention_mask"] == [1] * len(sample["input_ids"])


def test_tokens_are_those_of_the_whole_text():
    sample = AnswerEncoder(TOKENIZER, 64).encode(placed(prompt="What is", answer=" 2 plus 2?"))
    assert sample["input_ids"][:-1] == TOKENIZER("What is 2 plus 2?")["input_ids"]


def test_a_text_may_count_as_a_whole():
    encoder = AnswerEncoder(TOKENIZER, 64, prompt=None, answer="text")
    sample = encoder.encode(placed(text="What is 2?"))
    assert counted(sample) == "What is 2?</s>"
    assert encoder.shown(placed(text="What is 2?")) == {"text": "What is 2?"}


def test_columns_may_have_other_names():
    encoder = AnswerEncoder(TOKENIZER, 64, "question", "reply")
    record = placed(question="What?", reply=" It.")
    assert counted(encoder.encode(record)) == " It.</s>"
    assert encoder.shown(record) == {"prompt": "What?", "answer": " It."}


def test_a_prompt_and_an_answer_in_the_chat_template():
    encoder = AnswerEncoder(TOKENIZER, 64, chat=True)
    sample = encoder.encode(placed(prompt="What?", answer="It."))
    assert text_of(sample) == "<user>What?</s><assistant>It.</s>"
    assert counted(sample) == "It.</s>"


def test_every_turn_of_the_assistant_counts():
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "It."},
        {"role": "user", "content": "Which?"},
        {"role": "assistant", "content": "That."},
    ]
    encoder = ChatEncoder(TOKENIZER, 200)
    assert counted(encoder.encode(placed(messages=messages))) == "It.</s>That.</s>"
    assert encoder.shown(placed(messages=messages))["messages"].endswith("assistant: That.")


@pytest.mark.parametrize(
    "messages",
    [
        "hello",
        [],
        [{"role": "assistant", "content": [{"type": "text", "text": "x"}]}],
        [{"role": "user", "content": "x"}],
        [{"role": "assistant"}],
        ["x"],
    ],
)
def test_what_is_no_conversation_is_refused(messages):
    with pytest.raises(SourceError, match=r"line 3.*'messages'"):
        ChatEncoder(TOKENIZER, 64).encode(placed(messages=messages))


def test_templates_that_refuse_a_conversation_are_told_with_its_place():
    strict = tokenizer()
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(SourceError, match=r"line 3: the chat template does not take.*alternate"):
        AnswerEncoder(strict, 64, chat=True).encode(placed(prompt="What?", answer="It."))


def test_the_header_of_a_turn_does_not_count():
    telling = tokenizer()
    telling.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    )
    sample = AnswerEncoder(telling, 64, chat=True).encode(placed(prompt="What?", answer="It."))
    assert counted(sample) == " It.</s>"  # the space before it is part of its first token
    first = [{"role": "assistant", "content": "It."}, {"role": "user", "content": "What?"}]
    assert counted(ChatEncoder(telling, 64).encode(placed(messages=first))) == " It.</s>"


def test_the_end_that_a_tokenizer_adds_itself_counts_once():
    ending = tokenizer()
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", ending.eos_token_id)]
    )
    sample = AnswerEncoder(ending, 64).encode(placed(prompt="What?", answer=" It."))
    assert counted(sample) == " It.</s>"


def test_a_tokenizer_without_a_template_is_refused():
    plain = tokenizer()
    plain.chat_template = None
    with pytest.raises(SourceError, match="no chat template"):
        AnswerEncoder(plain, 64, chat=True).encode(placed(prompt="What?", answer="It."))


def test_long_samples_are_cut_as_long_as_some_of_the_answer_remains():
    record = placed(prompt="What is 2?", answer=" It is 2.")
    whole = AnswerEncoder(TOKENIZER, 64).encode(record)["input_ids"]
    prompt = len(TOKENIZER("What is 2?")["input_ids"])
    cut = AnswerEncoder(TOKENIZER, prompt + 1).encode(record)
    assert cut["input_ids"] == whole[: prompt + 1]
    with pytest.raises(SourceError, match="line 3: no token has a label within max_length"):
        AnswerEncoder(TOKENIZER, prompt).encode(record)


class Slices(list):
    """A list of which only parts are looked at."""

    def __iter__(self):
        raise AssertionError("all of it was looked at")


def test_of_a_text_far_too_long_no_more_is_looked_at_than_stays():
    words = tokenizer()

    def long(text, **options):
        encoded = words(text, **options)
        return {**encoded, "offset_mapping": Slices(encoded["offset_mapping"])}

    long.eos_token_id = words.eos_token_id
    placed = (Place("x", "line", 1), {"prompt": "What is 2?", "answer": " It is 2." * 100})
    cut = AnswerEncoder(long, 12).encode(placed)
    whole = AnswerEncoder(words, 10**6).encode(placed)
    assert len(whole["labels"]) > 100
    assert cut == {name: values[:12] for name, values in whole.items()}


def test_a_text_of_one_token_has_no_loss():
    with pytest.raises(SourceError, match="no token has a label"):
        AnswerEncoder(TOKENIZER, 1, prompt=None, answer="text").encode(placed(text="What"))


# Classification


def classes(**kwargs):
    settings = {"label_ids": {"bad": 0, "good": 1}, "n_labels": 2, **kwargs}
    return ClassEncoder(TOKENIZER, 64, **settings)


@pytest.mark.parametrize(("label", "number"), [("good", 1), ("bad", 0), (1, 1), ("0", 0)])
def test_labels_are_names_or_numbers(label, number):
    sample = classes().encode(placed(text="What is 2?", label=label))
    assert sample["labels"] == number
    assert sample["input_ids"] == TOKENIZER("What is 2?")["input_ids"]


def test_names_that_are_numbers_leave_no_room_for_numbers_of_outputs():
    encoder = classes(label_ids={"1": 0, "2": 1})
    assert encoder.encode(placed(text="x", label="1"))["labels"] == 0
    for label in (1, 0, "0"):
        with pytest.raises(SourceError, match="line 3: label"):
            encoder.encode(placed(text="x", label=label))


def in_folder(folder, names, labels, **columns):
    """Records of a `datasets` folder whose labels are numbers that stand for names."""
    label = datasets.ClassLabel(names=names)
    kinds = {True: datasets.List(label), False: label}
    features = {name: datasets.Value("string") for name in columns}
    features |= {"label": kinds[isinstance(labels[0], list)]}
    columns |= {"label": labels}
    data = datasets.Dataset.from_dict(columns).cast(datasets.Features(features))
    data.save_to_disk(folder)
    return read_records(folder)


def test_names_of_labels_win_over_their_positions(tmp_path):
    good, bad = in_folder(tmp_path, ["good", "bad"], [0, 1], text=["x", "y"])
    assert [classes().encode(record)["labels"] for record in (good, bad)] == [1, 0]
    assert classes().shown(good) == {"text": "x", "label": "good"}


def test_names_of_several_labels_win_over_their_positions(tmp_path):
    good, none = in_folder(tmp_path, ["good", "bad"], [[0], []], text=["x", "y"])
    several = classes(problem="multi_label_classification")
    assert several.encode(good)["labels"] == [0.0, 1.0]
    assert several.encode(none)["labels"] == [0.0, 0.0]
    assert several.shown(good)["label"] == "good"


def test_names_of_tags_win_over_their_positions(tmp_path):
    tags = datasets.List(datasets.ClassLabel(names=["B", "O"]))
    features = {"words": datasets.List(datasets.Value("string")), "tags": tags}
    columns = {"words": [["What", "is"]], "tags": [[0, 1]]}
    datasets.Dataset.from_dict(columns, datasets.Features(features)).save_to_disk(tmp_path)
    (record,) = read_records(tmp_path)
    encoder = TagEncoder(TOKENIZER, 64, {"O": 0, "B": 1}, 2)
    assert [label for label in encoder.encode(record)["labels"] if label != -100] == [1, 0]
    assert encoder.shown(record) == {"text": "What/B is/O"}


@pytest.mark.parametrize("names", [["good", "ugly"], ["2", "1"], ["0", "00"]])
def test_names_that_are_no_output_are_refused(tmp_path, names):
    *_, record = in_folder(tmp_path, names, [0, 1], text=["x", "y"])
    with pytest.raises(SourceError, match=rf"row 1: label '{names[1]}' is none of bad, good"):
        classes().encode(record)
    unnamed = classes(label_ids={"LABEL_0": 0, "LABEL_1": 1})
    with pytest.raises(SourceError, match=rf"row 1: label '{names[1]}' .*in the job: labels:"):
        unnamed.encode(record)


def test_names_that_are_their_own_positions_are_numbers(tmp_path):
    records = in_folder(tmp_path, ["0", "1"], [1, 0], text=["x", "y"])
    unnamed = classes(label_ids={"LABEL_0": 0, "LABEL_1": 1})
    assert [unnamed.encode(record)["labels"] for record in records] == [1, 0]
    swapped = classes(label_ids={"1": 0, "0": 1})
    assert [swapped.encode(record)["labels"] for record in records] == [0, 1]


def test_numbers_of_a_regression_are_read_by_their_names(tmp_path):
    record, _ = in_folder(tmp_path, ["1", "2.5"], [1, 0], text=["x", "y"])
    assert classes(problem="regression", n_labels=1).encode(record)["labels"] == 2.5


def test_a_sample_without_a_label_is_refused(tmp_path):
    *_, record = in_folder(tmp_path, ["good", "bad"], [0, -1], text=["x", "y"])
    with pytest.raises(SourceError, match="row 1: column 'label' is empty"):
        classes().encode(record)


def test_a_text_without_tokens_is_refused():
    with pytest.raises(SourceError, match="line 3: nothing is left of column 'text'"):
        classes().encode(placed(text="", label="good"))


@pytest.mark.parametrize("label", ["ugly", 2, "-1", 1.0, True, ["good"]])
def test_labels_that_are_no_output_are_refused(label):
    with pytest.raises(
        SourceError, match=r"line 3: label .* is none of bad, good, or a number from 0 to 1"
    ):
        classes().encode(placed(text="x", label=label))


def test_pairs_of_texts():
    encoder = classes(text_pair="other")
    record = placed(text="What", other="is", label="good")
    assert encoder.encode(record)["input_ids"] == TOKENIZER("What", "is")["input_ids"]
    assert encoder.shown(record) == {"text": "What", "text_pair": "is", "label": "good"}


def test_several_labels_and_numbers():
    several = classes(problem="multi_label_classification")
    assert several.encode(placed(text="x", label=["good"]))["labels"] == [0.0, 1.0]
    assert several.encode(placed(text="x", label=[]))["labels"] == [0.0, 0.0]
    assert several.shown(placed(text="x", label=["good", "bad"]))["label"] == "good, bad"
    number = classes(problem="regression", n_labels=1)
    assert number.encode(placed(text="x", label="0.5"))["labels"] == 0.5
    with pytest.raises(SourceError, match="must be a list of labels"):
        several.encode(placed(text="x", label="good"))
    with pytest.raises(SourceError, match="must be a finite number, got 'nan'"):
        number.encode(placed(text="x", label="nan"))


def test_several_labels_are_told_apart():
    names = ["a", "b", "a, b", "", ' "c"']
    several = classes(
        problem="multi_label_classification",
        n_labels=5,
        label_ids={n: i for i, n in enumerate(names)},
    )
    for given, expected in (
        (["a, b"], '"a, b"'),
        (["b", "a"], "b, a"),
        ([1, "a"], "1, a"),
        ([""], '""'),
        ([], ""),
        ([' "c"', ""], '" ""c""", ""'),
    ):
        assert several.shown(placed(text="x", label=given))["label"] == expected


def test_zeros_and_ones_for_each_label_are_no_list_of_labels():
    several = classes(problem="multi_label_classification", n_labels=3, label_ids={})
    with pytest.raises(SourceError, match=r"line 3: column 'label' names label 1 twice.*that hold"):
        several.encode(placed(text="x", label=[0, 1, 1]))
    named = classes(problem="multi_label_classification")
    with pytest.raises(SourceError, match="names label 'good' twice"):
        named.encode(placed(text="x", label=["good", "good"]))


def test_the_first_token_of_a_word_has_its_label():
    encoder = TagEncoder(TOKENIZER, 64, {"O": 0, "B": 1}, 2)
    record = placed(words=["What", "zebra", "is"], tags=["O", "B", "O"])
    sample = encoder.encode(record)
    encoded = TOKENIZER(record[1]["words"], is_split_into_words=True)
    firsts = [encoded.word_ids().index(i) for i in range(3)]
    assert [sample["labels"][i] for i in firsts] == [0, 1, 0]
    assert sum(label != -100 for label in sample["labels"]) == 3
    assert len(sample["labels"]) == len(sample["input_ids"]) > 3
    assert encoder.shown(record) == {"text": "What/O zebra/B is/O"}


def test_words_without_labels_are_refused():
    encoder = TagEncoder(TOKENIZER, 64, {"O": 0}, 1)
    with pytest.raises(SourceError, match="lists of the same length"):
        encoder.encode(placed(words=["What", "is"], tags=["O"]))
    with pytest.raises(SourceError, match="the first of texts"):
        encoder.encode(placed(words=["What", None], tags=["O", "O"]))


# Batches


def test_batches_are_padded_to_their_longest():
    encoder = AnswerEncoder(TOKENIZER, 64)
    records = [placed(prompt="What?", answer=" It."), placed(prompt="What is 2?", answer=" 2.")]
    samples = TokenSamples([encoder.encode(record) for record in records], pad=0)
    (batch,) = samples.to_loader(4)
    longest = max(samples.lengths)
    assert {tuple(tensor.shape) for tensor in batch.values()} == {(2, longest)}
    for i, length in enumerate(samples.lengths):
        assert batch["input_ids"][i, :length].tolist() == samples[i]["input_ids"]
        assert batch["attention_mask"][i].tolist() == [1] * length + [0] * (longest - length)
        assert (batch["labels"][i, length:] == -100).all()


def test_labels_of_samples_are_not_padded():
    several = [classes(problem="multi_label_classification"), classes()]
    for encoder, label, shape in zip(several, (["good"], "good"), ((2, 2), (2,)), strict=True):
        texts = ("What is 2?", "What")
        samples = [encoder.encode(placed(text=text, label=label)) for text in texts]
        (batch,) = TokenSamples(samples, pad=0).to_loader(2)
        assert batch["labels"].shape == shape


def test_batches_keep_the_order():
    encoder = AnswerEncoder(TOKENIZER, 64, prompt=None, answer="text")
    texts = ["What is 2?", "It", "What is 3 plus 4?", "plus", "It is 9."]
    samples = TokenSamples([encoder.encode(placed(text=text)) for text in texts], pad=0)
    batches = list(samples.to_loader(2))
    assert [len(batch["labels"]) for batch in batches] == [2, 2, 1]
    firsts = torch.cat([batch["input_ids"][:, 0] for batch in batches]).tolist()
    assert firsts == [sample["input_ids"][0] for sample in samples]
