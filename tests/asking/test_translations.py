"""Questions to an encoder and a decoder: the scores of a sample, and of its tokens the oracle's."""

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import T5Config, T5ForConditionalGeneration

import dense
from pydvl_datainf import DataInfInfluence, Seq2SeqLM, run_influences
from pydvl_datainf.asking import Question, ask
from pydvl_datainf.errors import ModelError, SourceError
from pydvl_datainf.huggingface import TokenSamples, TranslationEncoder
from pydvl_datainf.huggingface.records import Place
from tuned import tokenizer

pytestmark = pytest.mark.slow
NAME = "decoder.block.0.layer.0.SelfAttention.q.weight"
RECORDS = [{"source": f"What is {i}?" * (1 + i % 2), "target": f"It is {i * i}."} for i in range(6)]
QUESTION = Question("What is 7?", "It is 7, I think 7.")
HALF = 2e-3
"""Of the largest score: rows are kept in half precision."""
CONFIGURED = {
    "encoder_no_repeat_ngram_size": 1,
    "encoder_repetition_penalty": 9.0,
    "watermarking_config": {"greenlist_ratio": 0.25, "bias": 9.0},
    "max_time": 1e-9,
    "stop_strings": ["a", " "],
    "forced_bos_token_id": 50,
    "forced_eos_token_id": 1,
    "max_length": 3,
}
"""What a configuration may ask for that makes answers others, or shorter."""
REDUCTIONS = {"mean": torch.mean, "sum": torch.sum}


def ending():
    """The tokenizer, which writes an end after each text, as T5's does."""
    made = tokenizer()
    made._tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", made.eos_token_id)]
    )
    return made


WORDS = ending()
ENCODER = TranslationEncoder(WORDS, 64)


def loader(records, size):
    encoded = [ENCODER.encode((Place("a", "line", 1), record)) for record in records]
    return TokenSamples(encoded, 0).to_loader(size)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    ids = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    made = T5ForConditionalGeneration(T5Config(vocab_size=len(WORDS), **sizes, **ids))
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(name == NAME)
    return made.double().eval()


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):
    """For each reduction the influence model, and a run whose test sample is the question."""
    test = [{"source": QUESTION.prompt, "target": QUESTION.answer}]
    folder, made = tmp_path_factory.mktemp("asked"), {}
    for name in REDUCTIONS:
        influence = DataInfInfluence(model, Seq2SeqLM(name), max_tokens=60)
        settings = {"rows": "zarr", "progress": False}
        store = folder / f"{name}.zarr"
        data = loader(test, 1), loader(RECORDS, 4)
        made[name] = influence, run_influences(influence, *data, store, **settings)
    return made


def token_losses(model, source, target):
    """−log p of each token of a target, by the oracle."""
    ids = torch.tensor([WORDS(target)["input_ids"]])
    given = torch.cat([torch.zeros(1, 1, dtype=torch.long), ids[:, :-1]], 1)
    read = torch.tensor([WORDS(source)["input_ids"]])
    log_p = model(input_ids=read, decoder_input_ids=given).logits[0].log_softmax(-1)
    return -log_p.gather(1, ids[0][:, None])[:, 0]


def rows_of(model, losses):
    (weight,) = (p for p in model.parameters() if p.requires_grad)
    grads = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses]
    return torch.stack([g.flatten() for g in grads])


def influences(model, run, losses, name):
    """V (DataInf's inverse) Gᵀ for queries with these losses."""
    texts = [(r["source"], r["target"]) for r in RECORDS]
    G = rows_of(model, [REDUCTIONS[name](token_losses(model, *pair)) for pair in texts])
    (damping,) = run.damping.values()
    V = rows_of(model, losses)
    return (V @ dense.datainf_matrix(G, damping) @ G.T).detach().numpy()


def close(found, expected, bound):
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * np.abs(expected).max())


@pytest.mark.parametrize("name", REDUCTIONS)
def test_an_answer_and_its_tokens(runs, model, name):
    influence, run = runs[name]
    found = ask(run, influence, QUESTION, encoder=ENCODER)
    close(found.scores[...], run.scores[...], 1e-9)
    assert found.metadata("test")["origin"].tolist() == ["given"]
    assert found.metadata("test")["counted"][0] == "It is 7, I think 7.</s>"
    by_token = ask(run, influence, QUESTION, encoder=ENCODER, by_token=True)
    losses = token_losses(model, QUESTION.prompt, QUESTION.answer)
    close(by_token.scores[...], influences(model, run, losses, name), HALF)
    close(REDUCTIONS[name](torch.tensor(by_token.scores[...]), 0), found.scores[0], 1e-6)
    assert "".join(by_token.metadata("test")["counted"]) == "It is 7, I think 7.</s>"


def test_only_a_span_counts_and_the_decoder_reads_all(runs, model):
    influence, run = runs["sum"]
    question = Question(QUESTION.prompt, QUESTION.answer, span="7")
    found = ask(run, influence, question, encoder=ENCODER)
    assert found.metadata("test")["counted"][0].replace(" ", "") == "77"
    places = WORDS(QUESTION.answer, return_offsets_mapping=True)["offset_mapping"]
    spans = [t for t, place in enumerate(places) if "7" in QUESTION.answer[slice(*place)]]
    losses = token_losses(model, QUESTION.prompt, QUESTION.answer)[spans]
    assert len(losses) == 2
    expected = influences(model, run, [losses.sum()], "sum")
    close(found.scores[...], expected, HALF)
    assert np.abs(found.scores[...] - run.scores[...]).max() > 10 * HALF * np.abs(expected).max()


def test_answers_are_generated_greedily(runs, model, monkeypatch, caplog):
    influence, run = runs["mean"]
    ids, source = [0], torch.tensor([WORDS("What is 3?")["input_ids"]])
    with torch.no_grad():
        for _ in range(6):
            logits = model(input_ids=source, decoder_input_ids=torch.tensor([ids])).logits
            ids.append(int(logits[0, -1].argmax()))
    assert WORDS.eos_token_id not in ids
    for name, value in CONFIGURED.items():
        monkeypatch.setattr(model.generation_config, name, value)
    found = ask(run, influence, "What is 3?", encoder=ENCODER, max_new_tokens=6)
    assert caplog.text == ""
    told = found.metadata("test")
    assert told["answer"].tolist() == [WORDS.decode(ids, skip_special_tokens=True)]
    assert told["counted"].tolist() == told["answer"].tolist()  # it was cut, and has no end
    assert told["origin"].tolist() == ["generated"]


def test_answers_of_unequal_length_are_asked_together(runs):
    influence, run = runs["mean"]
    others = [Question(r["source"], r["target"]) for r in RECORDS]
    found = ask(run, influence, [*others, QUESTION], encoder=ENCODER)
    assert found.plan.m == 7
    close(found.scores[6], run.scores[0], 1e-6)


def test_what_cannot_be_asked_is_refused(runs, monkeypatch):
    influence, run = runs["mean"]
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for question, message in (
        (Question("a", "b", span="c"), r"question 1: 'c' is no part of the answer 'b'"),
        (Question(messages=talk), "question 1: it is a conversation"),
        (Question("a", "b", text_pair="c"), "question 1: 'text_pair' is asked of classifiers"),
        (Question("a", "b " * 70 + "c", span="c"), "nothing of the answer counts within max_le"),
    ):
        with pytest.raises(SourceError, match=message):
            ask(run, influence, question, encoder=ENCODER)
    monkeypatch.setattr(type(influence.model), "generate", property())
    with pytest.raises(ModelError, match=r"generates no text\. Give the answer"):
        ask(run, influence, "a", encoder=ENCODER)
