"""Trainers of trl with another loss than the plain one, or with data that is packed or a stream."""

from functools import partial

import pytest
from datasets import Dataset

from pydvl_datainf import (
    ObjectiveError,
    Preference,
    SourceError,
    influence_from_trainer,
    run_influences,
)
from trl_trainers import FORMS, trained

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The trainer's loss counts all turns:UserWarning"),
]


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("SFT", {"loss_type": "dft"}, "SFTTrainer: loss_type='dft'"),
        ("SFT", {"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1"),
        ("SFT", {"use_liger_kernel": True}, "use_liger_kernel=True"),
        ("DPO", {"loss_type": ["ipo"]}, r"DPOTrainer: loss_type=\['ipo'\]"),
        ("DPO", {"loss_type": ["sigmoid", "sft"]}, r"loss_type=\['sigmoid', 'sft'\]"),
        ("DPO", {"loss_weights": [2.0]}, r"loss_weights=\[2.0\]"),
        ("DPO", {"label_smoothing": 0.1}, "label_smoothing=0.1"),
        ("DPO", {"ld_alpha": 0.5}, "ld_alpha=0.5"),
        ("DPO", {"use_weighting": True}, "use_weighting=True"),
        ("DPO", {"f_divergence_type": "forward_kl"}, "f_divergence_type='forward_kl'"),
        ("DPO", {"sync_ref_model": True}, "sync_ref_model=True"),
        ("Reward", {"center_rewards_coefficient": 0.01}, "center_rewards_coefficient=0.01"),
    ],
)
def test_losses_that_are_not_plain_are_refused_by_name(trainers, name, settings, told):
    trainer = trainers[name]
    before = {setting: getattr(trainer.args, setting) for setting in settings}
    for setting, value in settings.items():
        setattr(trainer.args, setting, value)
    try:
        with pytest.raises(ObjectiveError, match=f"not the plain one of trl's .*{told}"):
            influence_from_trainer(trainer)
    finally:
        for setting, value in before.items():
            setattr(trainer.args, setting, value)


def test_an_auxiliary_loss_is_refused(trainers, monkeypatch):
    monkeypatch.setattr(trainers["SFT"], "aux_loss_enabled", True)
    with pytest.raises(ObjectiveError, match="the router's auxiliary loss"):
        influence_from_trainer(trainers["SFT"])


@pytest.mark.parametrize(("name", "method"), [("SFT", "compute_loss"), ("DPO", "_compute_loss")])
def test_a_loss_of_ones_own_needs_an_objective(trainers, name, method, monkeypatch):
    monkeypatch.setattr(trainers[name], method, lambda *inputs, **settings: 0.0)
    with pytest.raises(ObjectiveError, match=f"a {method} of its own"):
        influence_from_trainer(trainers[name])


def test_an_objective_takes_the_place_of_a_loss_that_is_not_plain(trainers, monkeypatch):
    monkeypatch.setattr(trainers["DPO"].args, "loss_type", ["ipo"])
    made = influence_from_trainer(trainers["DPO"], Preference(0.7))
    assert made.influence.objective.beta == 0.7
    assert {"chosen_labels", "ref_rejected_logps"} <= set(next(iter(made.train)))


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_packing_is_refused_whatever_the_strategy(strategy, tmp_path):
    settings = {"packing": True, "packing_strategy": strategy, "max_length": 32}
    trainer = trained("SFT", tmp_path, FORMS["text"][1], **settings)
    with pytest.raises(SourceError, match=f"packing_strategy='{strategy}'.*packing=False"):
        influence_from_trainer(trainer)


@pytest.mark.parametrize(("name", "told"), [("SFT", "is a stream"), ("DPO", "are a stream")])
def test_streams_are_refused(trainers, name, told, monkeypatch, tmp_path):
    stream = trainers[name].train_dataset.to_iterable_dataset()
    monkeypatch.setattr(trainers[name], "train_dataset", stream)
    made = partial(influence_from_trainer, trainers[name])
    with pytest.raises(SourceError, match=told):
        run_influences(*made(), tmp_path / "run.zarr", progress=False)


@pytest.mark.parametrize("name", ["SFT", "DPO", "Reward"])
@pytest.mark.parametrize(
    ("data", "told"),
    [
        (Dataset.from_list([]), "The data set is empty"),
        (Dataset.from_list([{"question": "a"}]), "cannot prepare data with the columns question"),
        ([{"prompt": "a", "completion": "b"}], "take a Dataset, got a list"),
        ("test", "take a Dataset, got a str"),
    ],
    ids=["empty", "columns", "list", "text"],
)
def test_test_data_that_trl_does_not_take_is_told(trainers, name, data, told):
    with pytest.raises(SourceError, match=told):
        influence_from_trainer(trainers[name], test=data)
