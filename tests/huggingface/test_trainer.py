"""Influences of a model that a transformers Trainer tuned, against plain gradients."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    BartForSequenceClassification,
    BertForSequenceClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import dense
import tiny
from pydvl_datainf import (
    CausalLM,
    ExactInfluence,
    InfluenceRun,
    ModelError,
    ObjectiveError,
    Seq2SeqLM,
    SequenceClassification,
    SourceError,
    TokenClassification,
    influence_from_trainer,
    run_influences,
)
from pydvl_datainf.huggingface import AnswerEncoder, ModelFiles
from pydvl_datainf.huggingface.records import Place
from tuned import sums, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

TOKENIZER = tokenizer()


def answers(count):
    encoder = AnswerEncoder(TOKENIZER, 64)
    records = [(Place("x", "line", i), record) for i, record in enumerate(sums(count))]
    data = Dataset.from_list([dict(encoder.encode(record)) for record in records])
    return data.add_column("unused", ["text that the model does not take"] * count)


def reviews(count):
    texts = [f"What is {i}?" * (1 + i % 3) for i in range(count)]
    return Dataset.from_list([{**TOKENIZER(text), "labels": i % 2} for i, text in enumerate(texts)])


def trained(model, train, collator, folder, kind=Trainer, evaluation=None, **settings):
    """A trainer that has taken two steps."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        **settings,
    )
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=evaluation,
        data_collator=collator,
    )
    trainer.train()
    trainer.model.eval()
    return trainer


@pytest.fixture
def causal(tuned):
    torch.manual_seed(0)
    return ModelFiles("causal-lm", str(tuned.causal), str(tuned.causal_adapter)).load()


@pytest.fixture
def trainer(causal, tmp_path):
    collator = DataCollatorForSeq2Seq(TOKENIZER)
    return trained(causal, answers(10), collator, tmp_path, evaluation=answers(4))


def rows_of(influence, batches, names):
    """Gradients by transformers' own loss, one backward pass for each sample."""

    def loss(model, batch):
        return model(**batch).loss

    rows = [dense.gradients(influence.model, loss, dict(b), names) for b in batches]
    return torch.cat(rows).double()


def test_a_causal_language_model(trainer, tmp_path):
    influence, test, train = influence_from_trainer(trainer, max_tokens=60)
    assert isinstance(influence.objective, CausalLM)
    run = run_influences(influence, test, train, tmp_path / "run.zarr", progress=False)
    assert run.scores.shape == (4, 10)
    total = 0
    for block, names in influence.parameter_dict.items():
        g, v = (rows_of(influence, data, list(names)) for data in (train, test))
        total = total + v @ dense.datainf_matrix(g, run.damping[block]) @ g.T
    scores = torch.from_numpy(run.scores[...]).double()
    torch.testing.assert_close(scores, total, rtol=0, atol=1e-5 * float(total.abs().max()))
    assert InfluenceRun(tmp_path / "run.zarr").is_complete


def test_training_losses_are_the_models_own_and_in_the_order_of_the_data(trainer, tmp_path):
    made = influence_from_trainer(trainer, max_tokens=60)
    with torch.no_grad():
        expected = torch.stack(
            [
                trainer.model(**batch).loss
                for batch in DataLoader(made.train.dataset, 1, collate_fn=made.train.collate_fn)
            ]
        )
    torch.testing.assert_close(made.influence.losses(made.train), expected, rtol=1e-5, atol=1e-6)
    run = run_influences(*made, tmp_path / "run.zarr", progress=False)
    found = torch.from_numpy(run.training_loss())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert expected.std() > 1e-3  # premise: another order would show


def test_a_classifier(tuned, tmp_path):
    model = ModelFiles("sequence-classification", str(tuned.classifier)).load()
    collator = DataCollatorWithPadding(TOKENIZER)
    trainer = trained(model, reviews(9), collator, tmp_path, evaluation=reviews(3))
    influence, test, train = influence_from_trainer(trainer, block_structure="full")
    assert isinstance(influence.objective, SequenceClassification)
    assert [len(batch["labels"]) for batch in train] == [3, 3, 3]
    assert torch.cat([batch["labels"] for batch in train]).tolist() == [i % 2 for i in range(9)]
    rows = torch.cat([influence.loss_gradients(batch) for batch in test])
    exact = rows_of(influence, test, list(influence.blocks.shapes))
    assert ((rows - exact).norm(dim=1) <= 1e-5 * exact.norm(dim=1)).all()


def test_other_test_data_and_batches(trainer):
    made = influence_from_trainer(trainer, test=answers(7), batch_size=5)
    assert [len(batch["labels"]) for batch in made.test] == [5, 2]
    assert [len(batch["labels"]) for batch in made.train] == [5, 5]


def test_the_trainer_is_not_changed(trainer):
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    influence, test, train = influence_from_trainer(trainer)
    influence.fit(train).training_influences(next(iter(test)))
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert not trainer.model.training


def test_loaders_that_the_trainer_keeps_are_not_mistaken(causal, tmp_path):
    trainer = trained(
        causal,
        answers(5),
        DataCollatorForSeq2Seq(TOKENIZER),
        tmp_path,
        evaluation=answers(2),
        dataloader_num_workers=1,
        dataloader_persistent_workers=True,
    )
    kept = len(trainer.accelerator._dataloaders)
    made = influence_from_trainer(trainer)
    assert (len(made.test.dataset), len(made.train.dataset)) == (2, 5)
    assert len(trainer.accelerator._dataloaders) == kept


def test_collators_that_join_samples_are_refused(causal, tmp_path):
    trainer = trained(causal, answers(4), DataCollatorForSeq2Seq(TOKENIZER), tmp_path)
    trainer.data_collator = DataCollatorWithFlattening()
    with pytest.raises(SourceError, match=r"joins samples in one row.*DataCollatorForSeq2Seq"):
        influence_from_trainer(trainer, test=answers(2))

    def joining(samples):
        return {k: v.flatten()[None] for k, v in DataCollatorForSeq2Seq(TOKENIZER)(samples).items()}

    trainer.data_collator = joining
    influence, test, train = influence_from_trainer(trainer, test=answers(2))
    with pytest.raises(SourceError, match="1 samples where 2 were drawn"):
        run_influences(influence, test, train, tmp_path / "run.zarr", progress=False)


class Untouched:
    """Has arguments as trl's, and nothing else: whatever reads more of it fails."""

    def __init__(self, collator=None, **settings):
        self.args = SimpleNamespace(**settings)
        self.model = tiny.gpt2().train()  # which is a fault of its own, told later
        self.data_collator = collator


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"packing": True, "packing_strategy": "bfd"}, r"packing=True \(packing_strategy='bfd'\)"),
        ({"packing": True, "packing_strategy": "wrapped"}, "packing_strategy='wrapped'"),
        ({"packing": True, "eval_packing": False}, "packing=True"),
        ({"packing": False, "eval_packing": True}, "eval_packing=True"),
        ({"packing": False, "padding_free": True}, "padding_free=True"),
    ],
)
def test_settings_that_join_samples_are_refused_before_any_work(settings, told):
    with pytest.raises(SourceError, match=f"{told}.*Build the trainer again with packing=False"):
        influence_from_trainer(Untouched(**settings))


def test_collators_without_padding_are_refused_before_any_work():
    """As trl sets where it packs by itself."""
    with pytest.raises(SourceError, match=r"SimpleNamespace joins.*padding_free=False"):
        influence_from_trainer(Untouched(SimpleNamespace(padding_free=True), packing=False))


def test_packed_evaluation_data_may_be_replaced(trainer):
    trainer.args.packing, trainer.args.eval_packing = False, True
    assert len(influence_from_trainer(trainer, test=answers(2)).test.dataset) == 2


def test_mixed_precision_that_stays_is_told(causal, tmp_path):
    collator, data = DataCollatorForSeq2Seq(TOKENIZER), answers(4)
    trainer = trained(causal, data, collator, tmp_path, evaluation=data, bf16=True)
    with pytest.warns(UserWarning, match="mixed precision is still at work"):
        influence_from_trainer(trainer)
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    influence, _, train = influence_from_trainer(trainer)
    rows = torch.cat([influence.loss_gradients(batch) for batch in train])
    exact = rows_of(influence, train, list(influence.blocks.shapes))
    assert ((rows - exact).norm(dim=1) <= 1e-5 * exact.norm(dim=1)).all()


def test_losses_set_on_the_trainer_need_an_objective(trainer):
    trainer.compute_loss = lambda *arguments, **settings: 0.0
    with pytest.raises(ObjectiveError, match="not the model's own"):
        influence_from_trainer(trainer)


def weighted_loss(logits, labels, **settings):
    weight = torch.arange(1.0, 1 + logits.shape[-1])
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), weight)


def test_losses_set_on_the_model_need_an_objective(trainer):
    trainer.model.get_base_model().loss_function = weighted_loss
    with pytest.raises(ObjectiveError, match=r"not the model's own.*the model's loss_function"):
        influence_from_trainer(trainer)
    assert influence_from_trainer(trainer, CausalLM()).influence.objective.reduction == "mean"


class WeightedForSequenceClassification(BertForSequenceClassification):
    def forward(self, labels=None, **inputs):
        outputs = super().forward(**inputs)
        outputs.loss = weighted_loss(outputs.logits, labels)
        return outputs


def test_models_with_a_loss_of_their_own_need_an_objective(trainer):
    trainer.model = WeightedForSequenceClassification(tiny.bert().config).eval()
    with pytest.raises(ObjectiveError, match=r"forward of its own.*SequenceClassification\(\) if"):
        influence_from_trainer(trainer)
    made = influence_from_trainer(trainer, SequenceClassification())
    assert type(made.influence.objective) is SequenceClassification


def test_the_method_by_its_name(trainer):
    trainer.model.eval()
    assert type(influence_from_trainer(trainer, method="exact").influence) is ExactInfluence
    with pytest.raises(ModelError, match="one of datainf, exact, ekfac, hessian-free"):
        influence_from_trainer(trainer, method="DataInf")


def test_models_in_training_mode_are_refused(trainer):
    trainer.model.train()
    with pytest.raises(ModelError, match=r"trainer\.model\.eval\(\)"):
        influence_from_trainer(trainer)


class OwnLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        return (2 * outputs.loss, outputs) if return_outputs else 2 * outputs.loss


@pytest.mark.parametrize(
    ("kind", "settings"), [(OwnLoss, {}), (Trainer, {"label_smoothing_factor": 0.1})]
)
def test_losses_of_ones_own_need_an_objective(causal, tmp_path, kind, settings):
    collator = DataCollatorForSeq2Seq(TOKENIZER)
    data = answers(4)
    trainer = trained(causal, data, collator, tmp_path, kind, evaluation=data, **settings)
    with pytest.raises(ObjectiveError, match="not the model's own"):
        influence_from_trainer(trainer)
    assert influence_from_trainer(trainer, CausalLM("sum")).influence.objective.reduction == "sum"


@pytest.mark.parametrize(
    ("build", "objective"),
    [
        (tiny.t5, Seq2SeqLM),
        (tiny.bart, Seq2SeqLM),
        (tiny.gpt2, CausalLM),
        (tiny.vit, SequenceClassification),
        (tiny.bert_tokens, TokenClassification),
    ],
)
def test_the_objective_follows_from_the_class_of_the_model(trainer, build, objective):
    trainer.model = build().eval()
    assert type(influence_from_trainer(trainer).influence.objective) is objective


def test_encoder_decoders_that_classify_are_not_translators(trainer):
    trainer.model = BartForSequenceClassification(tiny.bart().config).eval()
    made = influence_from_trainer(trainer)
    assert type(made.influence.objective) is SequenceClassification


def test_models_of_unknown_tasks_need_an_objective(trainer):
    class Unknown(torch.nn.Module):
        pass

    trainer.model = Unknown().eval()
    with pytest.raises(ObjectiveError, match="The task of a Unknown is not known"):
        influence_from_trainer(trainer)


def test_missing_and_several_evaluation_data_are_refused(causal, tmp_path):
    collator = DataCollatorForSeq2Seq(TOKENIZER)
    trainer = trained(causal, answers(4), collator, tmp_path)
    with pytest.raises(SourceError, match="no evaluation data; pass test"):
        influence_from_trainer(trainer)
    trainer.eval_dataset = {"one": answers(2), "two": answers(3)}
    with pytest.raises(SourceError, match=r"several evaluation datasets \(one, two\)"):
        influence_from_trainer(trainer)
    assert len(influence_from_trainer(trainer, test=answers(2)).test.dataset) == 2


def test_random_masks_are_refused(causal, tmp_path):
    masked = tokenizer()
    masked.mask_token = "<pad>"
    trainer = trained(causal, answers(4), DataCollatorForSeq2Seq(TOKENIZER), tmp_path)
    trainer.data_collator = DataCollatorForLanguageModeling(masked)
    with pytest.raises(SourceError, match="masks tokens at random"):
        influence_from_trainer(trainer, test=answers(2))
