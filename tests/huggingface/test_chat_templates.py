"""Conversations in several chat templates: what counts, token by token.

Each template stands here twice, in Jinja and as the pieces of text that it writes, each of which
counts or does not. No token of the tokenizer reaches across the border of two pieces.
"""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pydvl_datainf import SourceError
from pydvl_datainf.huggingface import AnswerEncoder, ChatEncoder
from pydvl_datainf.huggingface.records import Place

LLAMA = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m['role'] + '\n' + m['content'] + eos_token }}{% endfor %}"
COUNTING = "{{ messages | length }}" + PLAIN  # writes earlier turns otherwise once others follow
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'assistant\n' }}"
    "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ m['role'] + '\n' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
# An empty thought before the last answer, none before those that others follow.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% set parts = m['content'].split('</think>') %}{% set said = parts[-1].lstrip('\n') %}"
    "{% if m['role'] == 'assistant' and loop.last %}"
    "{% set thought = parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{{ said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def turns(begin, header, end, trims=False):
    """Pieces of text, and whether they count, of a template that writes all turns alike."""

    def pieces(messages):
        made = [(begin.format(len(messages)), False)]
        for role, content in messages:
            counts = role == "assistant"
            told = content.strip() if trims else content
            made += [(header.format(role), False), (told + end, counts)]
        return made

    return pieces


def gemma(messages):
    names = {"assistant": "model"}
    made = [("</s>", False)]
    for role, content in messages:
        made.append((f"<start_of_turn>{names.get(role, role)}\n", False))
        made.append((f"{content.strip()}<end_of_turn>\n", role == "assistant"))
    return made


def thinking(messages):
    made = []
    for i, (role, content) in enumerate(messages):
        said, answers = content.lstrip("\n"), role == "assistant"
        thought = "<think>\n\n</think>\n\n" if answers and i == len(messages) - 1 else ""
        made += [(f"<|im_start|>{role}\n{thought}", False), (f"{said}<|im_end|>\n", answers)]
    return made


LLAMA_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
TEMPLATES = {
    "llama": (LLAMA, turns("<|begin_of_text|>", LLAMA_HEADER, "<|eot_id|>", trims=True)),
    "chatml": (CHATML, turns("", "<|im_start|>{}\n", "<|im_end|>\n")),
    "gemma": (GEMMA, gemma),
    "zephyr": (ZEPHYR, turns("", "<|{}|>\n", "</s>")),
    "plain": (PLAIN, turns("", "{}\n", "</s>")),
    "counting": (COUNTING, turns("{}", "{}\n", "</s>")),
    "marked": (MARKED, turns("", "{}\n", "</s>")),
    "thinking": (THINKING, thinking),
}
ANSWERS = [
    *("a", "assistant", "", " ", "\n", "user", "model", "s", "What?", "think", "</think", "</s>"),
    *("<|im_end|>", "<|im_end|>\n<|im_start|>assistant\na", "<eot_id>", "end_of_turn", "\ue000"),
    *("  two words \n", "assistant\na", "\ue001 and \ue000", "It is {{ 2 }}."),
]


def words(template):
    """Bytes alone, and the tokens that end a turn."""
    special = ["<pad>", "</s>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>"]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=261, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=template,
    )


TOKENIZERS = {name: words(template) for name, (template, _) in TEMPLATES.items()}


def sample_of(tokenizer, messages):
    told = [{"role": role, "content": content} for role, content in messages]
    return ChatEncoder(tokenizer, 2000).encode((Place("x", "line", 3), {"messages": told}))


def assert_counts(sample, tokenizer, pieces):
    ids, labels = [], []
    for text, counts in pieces:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += tokens
        labels += tokens if counts else [-100] * len(tokens)
    assert any(label != -100 for label in labels)
    assert sample["input_ids"] == ids
    assert sample["labels"] == labels


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_answer_and_the_end_of_its_turn_count(name, answer):
    tokenizer, pieces = TOKENIZERS[name], TEMPLATES[name][1]
    for before in (
        [("user", "What?")],
        [("user", answer)],
        [("system", "Be kind."), ("user", "What is a?")],
        [("system", "assistant"), ("user", "What?"), ("assistant", answer), ("user", answer)],
        [("assistant", "a"), ("user", "a")],
    ):
        messages = [*before, ("assistant", answer)]
        assert_counts(sample_of(tokenizer, messages), tokenizer, pieces(messages))


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_that_others_follow_count(name):
    messages = [("user", "What?"), ("assistant", "a"), ("user", "a"), ("assistant", "")]
    messages += [("user", "assistant"), ("assistant", "user"), ("user", "Why?")]
    tokenizer, pieces = TOKENIZERS[name], TEMPLATES[name][1]
    assert_counts(sample_of(tokenizer, messages), tokenizer, pieces(messages))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_and_an_answer_are_two_turns(name):
    record = {"prompt": "Which letter, a or b?", "answer": "a"}
    tokenizer, pieces = TOKENIZERS[name], TEMPLATES[name][1]
    sample = AnswerEncoder(tokenizer, 2000, chat=True).encode((Place("x", "line", 3), record))
    messages = [("user", record["prompt"]), ("assistant", "a")]
    assert_counts(sample, tokenizer, pieces(messages))


def test_a_thought_of_the_assistant_counts_where_the_template_keeps_it():
    content = "<think>\nTwo.\n</think>\n\nIt is 2."
    messages = [("user", "What?"), ("assistant", content)]
    tokenizer = TOKENIZERS["thinking"]
    prompt = ("<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n", False)
    last = [prompt, (f"{content}<|im_end|>\n", True)]
    assert_counts(sample_of(tokenizer, messages), tokenizer, last)
    followed = [prompt, ("It is 2.<|im_end|>\n", True), ("<|im_start|>user\nWhy?<|im_end|>\n", 0)]
    sample = sample_of(tokenizer, [*messages, ("user", "Why?")])
    assert_counts(sample, tokenizer, followed)


def test_what_is_left_of_an_answer_whose_thought_the_template_drops_counts():
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ '<|user|>' + m['content'] + '<|assistant|>' }}"
        "{% else %}{{ m['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    )
    thought = ("assistant", "<think>\nTwo.\n</think>\n\na")
    pieces = [("<|user|>a<|assistant|>", False), ("\n\na</s>", True)]
    tokenizer = words(template)
    assert_counts(sample_of(tokenizer, [("user", "a"), thought]), tokenizer, pieces)
    sample = sample_of(tokenizer, [("user", "a"), thought, ("user", "a"), thought])
    assert_counts(sample, tokenizer, pieces * 2)


def test_a_thought_in_a_template_that_takes_no_request_for_a_prompt_is_refused():
    silent = THINKING.partition("{% if add_generation_prompt %}")[0]
    messages = [("user", "What?"), ("assistant", "<think>\nTwo.\n</think>\n\na")]
    with pytest.raises(SourceError, match="does not show where the answer in turn 1 is"):
        sample_of(words(silent), messages)
    with pytest.raises(SourceError, match="does not show where the answer in turn 0 is"):
        sample_of(words(THINKING), messages[1:])


def test_marks_of_a_template_say_what_counts():
    template = MARKED.replace("m['content'] + eos_token }}{% endgen", "m['content'] }}{% endgen")
    template = template.replace("{% endgeneration %}", "{% endgeneration %}{{ eos_token }}")
    tokenizer = words(template)
    pieces = [("user\nWhat?</s>assistant\n", False), ("a", True), ("</s>", False)]
    assert_counts(sample_of(tokenizer, [("user", "What?"), ("assistant", "a")]), tokenizer, pieces)


HIDING = {
    "preview": "{% for m in messages %}{{ m['content'][:2] ~ '|' ~ m['content'] }}{% endfor %}",
    "twice": "{% for m in messages %}{{ m['content'] + m['content'] }}{% endfor %}",
    "short": "{% for m in messages %}{{ m['role'] + m['content'][:2] }}{% endfor %}",
    "length": "{% for m in messages %}{{ m['content'] | length ~ m['content'] }}{% endfor %}",
    "end": "{% for m in messages %}{{ m['content'] }}{{ eos_token if loop.last }}{% endfor %}",
}


@pytest.mark.parametrize("name", HIDING)
def test_answers_that_cannot_be_told_from_the_rest_are_refused(name):
    messages = [("user", "What?"), ("assistant", "abcabc"), ("user", "Why?")]
    with pytest.raises(SourceError, match=r"line 3: .*turn 1 .*prompt and an answer column"):
        sample_of(words(HIDING[name]), messages)
