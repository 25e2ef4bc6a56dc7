"""What influences of trl's trainers leave as it was, and what their stores show."""

import pytest
import torch
from click.testing import CliRunner
from datasets import Dataset

from pydvl_datainf import InfluenceRun, influence_from_trainer, run_influences
from pydvl_datainf.cli import main
from pydvl_datainf.report import write_report
from trl_trainers import FORMS, TOKENIZER, asked, lora, pair, trained, tuned_before

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The trainer's loss counts all turns:UserWarning"),
]


@pytest.mark.parametrize("name", ["SFT", "DPO", "Reward"])
def test_the_trainer_and_its_model_are_not_changed(trainers, name):
    trainer = trainers[name]
    model = trainer.model
    before = {n: p.detach().clone() for n, p in model.state_dict().items()}
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    held = dict(vars(trainer)), dict(vars(trainer.args))
    random = torch.get_rng_state()
    influence, test, train = influence_from_trainer(trainer)
    assert torch.equal(torch.get_rng_state(), random)
    influence.fit(train).training_influences(next(iter(test)))
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert any(flags.values())
    assert (dict(vars(trainer)), dict(vars(trainer.args))) == held
    assert all(p.grad is None for p in model.parameters())
    assert model.active_adapter == "default"
    assert not model.training


def test_activity_of_adapters_is_as_before_after_a_reference_that_is_one(tmp_path):
    trainer = trained("DPO", tmp_path, pair, model=tuned_before())
    flags = {n: p.requires_grad for n, p in trainer.model.named_parameters()}
    influence_from_trainer(trainer)
    assert trainer.model.active_adapter == "default"
    assert {n: p.requires_grad for n, p in trainer.model.named_parameters()} == flags


def test_a_store_shows_texts_ids_and_losses(tmp_path):
    def sample(i):
        return {"id": f"sum {i}", "prompt": asked(i), "completion": f" It is {i}.", "level": i % 3}

    trainer = trained("SFT", tmp_path, sample, peft_config=lora())
    made = influence_from_trainer(trainer)
    run = run_influences(*made, tmp_path / "run.zarr", progress=False)
    assert run.train_ids.tolist() == [f"sum {i}" for i in range(7)]
    assert run.test_ids.tolist() == [f"sum {i}" for i in range(20, 23)]
    told = InfluenceRun(tmp_path / "run.zarr").metadata("train")
    assert told["prompt"].tolist() == [asked(i) for i in range(7)]
    assert told["completion"].tolist() == [f" It is {i}.</s>" for i in range(7)]  # as trl ends it
    assert told["level"].tolist() == [i % 3 for i in range(7)]
    losses = made.influence.losses(made.train)
    torch.testing.assert_close(torch.from_numpy(run.training_loss()), losses, rtol=1e-5, atol=1e-6)
    shown = CliRunner().invoke(main, ["top", str(tmp_path / "run.zarr"), "--test", "sum 21"])
    assert shown.exit_code == 0, shown.output
    assert "It is 21." in shown.output
    assert "sum 6" in shown.output
    write_report(run, tmp_path / "report.html")
    assert "It is 6." in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_conversations_are_shown_as_texts(trainers, tmp_path):
    run = run_influences(*influence_from_trainer(trainers["SFT"]), tmp_path / "r", progress=False)
    expected = f"user: {asked(3)}\nassistant: It is 3."
    assert run.metadata("train")["messages"][3] == expected
    assert run.train_ids.tolist() == list(range(7))


def test_what_the_caller_tells_takes_the_place_of_what_the_data_tells(trainers, tmp_path):
    run = run_influences(
        *influence_from_trainer(trainers["SFT"]),
        tmp_path / "run.zarr",
        ids={"train": list("abcdefg")},
        metadata={"test": {"topic": ["x", "y", "z"]}, "run": {"by": "hand"}},
        progress=False,
    )
    assert run.train_ids.tolist() == list("abcdefg")
    assert list(run.metadata("test")) == ["topic"]
    assert list(run.metadata("train")) == ["messages"]
    assert run.metadata("run") == {"by": "hand"}


def test_groups_of_test_samples_have_no_columns_of_their_samples(trainers, tmp_path):
    made = influence_from_trainer(trainers["SFT"])
    run = run_influences(*made, tmp_path / "r", query_groups=["p", "q", "p"], progress=False)
    assert run.test_ids.tolist() == ["p", "q"]
    assert run.metadata("test") == {}
    assert list(run.metadata("train")) == ["messages"]


def test_tokens_alone_are_written_out(tmp_path):
    trainer = trained("SFT", tmp_path, lambda i: dict(TOKENIZER(asked(i))))
    made = influence_from_trainer(trainer)
    assert made.train.columns == {"text": [asked(i) for i in range(7)]}


@pytest.mark.parametrize("name", ["SFT", "DPO", "Reward"])
def test_other_test_data_is_prepared_as_the_trainers_own(trainers, name):
    form = FORMS["messages"][1] if name == "SFT" else pair
    raw = Dataset.from_list([form(i) for i in range(20, 23)])
    own, other = (influence_from_trainer(trainers[name], test=test) for test in (None, raw))
    for mine, others in zip(own.test, other.test, strict=True):
        assert mine.keys() == others.keys()
        assert all(torch.equal(mine[key], others[key]) for key in mine)
