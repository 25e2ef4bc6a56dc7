"""Questions from Python: the scores of a query of the run, with the model as it was."""

import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import tiny
from pydvl_datainf import CausalLM, DataInfInfluence, InfluenceRun, run_influences
from pydvl_datainf.asking import Question, ask
from pydvl_datainf.errors import ModelError, SourceError, StoreError
from pydvl_datainf.fingerprint import fingerprint
from pydvl_datainf.huggingface import AnswerEncoder, TokenSamples
from pydvl_datainf.huggingface.records import Place
from tuned import sums, tokenizer

pytestmark = pytest.mark.slow
ENCODER = AnswerEncoder(tokenizer(), 64)


def loader(records, size):
    encoded = [ENCODER.encode((Place("a", "line", 1), record)) for record in records]
    return TokenSamples(encoded, 0).to_loader(size)


@pytest.fixture(scope="module")
def influence():
    sizes = {**tiny.SIZES, "vocab_size": 300, "intermediate_size": 24}
    config = LlamaConfig(**sizes, pad_token_id=0, eos_token_id=1, bos_token_id=1)
    model = tiny.lora(LlamaForCausalLM(config).eval(), ["q_proj"])
    return DataInfInfluence(model.double().eval(), CausalLM("sum"), max_tokens=60)


@pytest.fixture(scope="module")
def run(influence, tmp_path_factory):
    store = tmp_path_factory.mktemp("asked") / "run.zarr"
    settings = {"rows": "zarr", "progress": False}
    return run_influences(influence, loader(sums(1), 1), loader(sums(7), 3), store, **settings)


def test_more_questions_than_training_samples(run, influence, tmp_path):
    records = sums(11)[::-1]
    questions = [Question(r["prompt"], r["answer"], id=r["id"]) for r in records]
    before = fingerprint(influence.model), [p.requires_grad for p in influence.model.parameters()]
    found = ask(run, influence, questions, encoder=ENCODER)
    expected = run_influences(
        influence, loader(records, 4), run, tmp_path / "query.zarr", progress=False
    )
    scale = np.abs(expected.scores[...]).max()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-9 * scale)
    assert found.test_ids.tolist() == [r["id"] for r in records]
    assert found.metadata("test")["origin"].tolist() == ["given"] * 11
    now = fingerprint(influence.model), [p.requires_grad for p in influence.model.parameters()]
    assert now == before
    assert not influence.model.training


def test_a_prompt_alone_is_answered(run, influence, tmp_path):
    store = tmp_path / "asked.zarr"
    found = ask(
        run, lambda: influence, "What is 2 plus 2?", encoder=ENCODER, max_new_tokens=5, store=store
    )
    told = found.metadata("test")
    assert told["origin"].tolist() == ["generated"]
    (answer,) = told["answer"]
    assert not told["counted"][0].endswith("</s>")  # it was cut, and has no end
    again = ask(run, influence, "What is 2 plus 2?", answer=answer, span=answer, encoder=ENCODER)
    np.testing.assert_array_equal(again.scores, InfluenceRun(store).scores)


def test_texts_in_a_list_are_prompts(run, influence):
    settings = {"encoder": ENCODER, "max_new_tokens": 2}
    found = ask(run, influence, ["What is 3?", Question("And 4?", " 4.")], **settings)
    one = ask(run, influence, "What is 3?", **settings)
    assert found.metadata("test")["prompt"].tolist() == ["What is 3?", "And 4?"]
    scale = np.abs(one.scores[...]).max()
    np.testing.assert_allclose(found.scores[:1], one.scores, rtol=0, atol=1e-6 * scale)


def test_what_a_model_is_configured_to_say_does_not_count(run, influence, monkeypatch):
    def said():
        found = ask(run, influence, "What is 2 plus 2?", encoder=ENCODER, max_new_tokens=9)
        return found.metadata("test")["answer"].tolist()

    plain = said()
    settings = {
        "repetition_penalty": 9.0,
        "no_repeat_ngram_size": 1,
        "guidance_scale": 3.0,
        "num_return_sequences": 2,
        "num_beams": 2,
        "return_dict_in_generate": True,
        "suppress_tokens": list(range(2, 290)),
        "forced_eos_token_id": 1,
        "watermarking_config": {"greenlist_ratio": 0.25, "bias": 9.0},
        "max_time": 1e-9,
        "stop_strings": ["a", " "],
        "token_healing": True,
        "dola_layers": "low",
    }
    for name, value in settings.items():
        monkeypatch.setattr(influence.model.generation_config, name, value)
    assert said() == plain


def test_tokens_of_several_answers_add_up_to_them(run, influence):
    questions = [Question("What is 3?", " It is 3."), Question("And 4?", " 4, not 44.", span="4")]
    whole = ask(run, influence, questions, encoder=ENCODER).scores[...]
    by_token = ask(run, influence, questions, encoder=ENCODER, by_token=True)
    owner = np.array([name.split(".")[0] for name in by_token.test_ids])
    assert len(set(owner)) == 2
    parts = np.stack([by_token.scores[...][owner == str(i)].sum(0) for i in range(2)])
    # Llama takes norms in float32, which rounds each gradient.
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-6 * np.abs(whole).max())


def test_a_run_of_unit_gradients_answers_in_these(run, influence, tmp_path):
    settings = {"normalize": "unit", "progress": False}
    unit = run_influences(influence, loader(sums(1), 1), run, tmp_path / "unit.zarr", **settings)
    question = Question("What is 3?", " It is 3.")
    found, plain = (ask(asked, influence, question, encoder=ENCODER) for asked in (unit, run))
    norms = np.sqrt(run.store.read("squared_norms").sum(1))
    np.testing.assert_allclose(found.scores[...], plain.scores[...] / norms, rtol=1e-9)


def test_what_cannot_be_asked_is_refused(run, influence, tmp_path):
    question = Question("a", "b", id="0")
    for questions, message in (
        ([], "There are no questions"),
        ([Question("a", "b"), question], "Two questions have the id '0'"),
    ):
        with pytest.raises(SourceError, match=message):
            ask(run, influence, questions, encoder=ENCODER)
    with pytest.raises(SourceError, match="'answer' and 'span' belong to a prompt"):
        ask(run, influence, question, encoder=ENCODER, span="b")
    bare = run_influences(
        influence, loader(sums(1), 1), loader(sums(2), 1), tmp_path / "bare.zarr", progress=False
    )
    with pytest.raises(StoreError, match="keeps no training rows"):
        ask(bare, influence, question, encoder=ENCODER)
    other = DataInfInfluence(tiny.moved(influence.model), CausalLM("sum"), max_tokens=60)
    with pytest.raises(ModelError, match="was computed with another model"):
        ask(run, other, question, encoder=ENCODER)
