"""Vision language models: images follow their samples through loaders, runs and trainers."""

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import dense
import tiny
from pydvl_datainf import (
    CausalLM,
    DataInfInfluence,
    SourceError,
    influence_from_trainer,
    run_influences,
)
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine
from pydvl_datainf.gradients.padding import PaddingCheckEngine
from pydvl_datainf.objectives import ImageLayout
from vision_samples import rows_alone, tuned, typed

# Whole use


class Samples(torch.utils.data.Dataset):
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        return self.samples[i]


def exact_scores(influence, test, train, damping):
    """From rows (m, d) and (n, d), block by block."""
    names, total, start = tiny.names_of(influence.model), 0, 0
    assert [n for own in influence.parameter_dict.values() for n in own] == names
    for block, width in influence.blocks.widths.items():
        v, g = (rows[:, start : start + width] for rows in (test, train))
        total = total + v @ dense.datainf_matrix(g, damping[block]) @ g.T
        start += width
    return total


WHOLE = ("qwen2.5-vl", "gemma3", "smolvlm")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("qwen2.5-vl", {}),
        *((name, {"max_tokens": 30}) for name in WHOLE),
        ("gemma3", {"batch_size": 2}),
    ],
    ids=str,
)
def test_influences_of_loaders_whose_batches_differ(name, settings):
    model, samples, collate = tuned(name)
    loader = DataLoader(Samples(samples), 3, collate_fn=collate)
    influence = DataInfInfluence(model, CausalLM(), regularization=1e-3, **settings).fit(loader)
    assert influence.is_fitted_on(loader)
    assert not influence.is_fitted_on([collate(samples[:1])])
    rows = rows_alone(model, samples, collate)
    exact = exact_scores(influence, rows[:4], rows, influence.fixed_damping)
    test = collate(samples[:4])
    tiny.assert_scores_close(influence.training_influences(test), exact)
    joined = influence.influences(collate(samples[:4]), None, collate(samples), None)
    tiny.assert_scores_close(joined, exact)


@pytest.mark.parametrize(
    ("name", "rows"), [("qwen2.5-vl", "memory"), ("gemma3", "recompute"), ("smolvlm", "zarr")]
)
def test_runs(name, rows, tmp_path):
    model, samples, collate = tuned(name)
    influence = DataInfInfluence(model, CausalLM(), regularization=1e-3, max_tokens=40)
    test, train = (
        DataLoader(Samples(part), size, collate_fn=collate)
        for part, size in ((samples[1:4], 2), (samples, 4))
    )
    run = run_influences(
        influence, test, train, tmp_path / "run.zarr", rows=rows, progress=False, exact_sample=0
    )
    exact = rows_alone(model, samples, collate)
    scores = exact_scores(influence, exact[1:4], exact, influence.fixed_damping)
    bound = 2e-2 if rows == "zarr" else 1e-9  # those on disk are in half precision
    tiny.assert_scores_close(torch.from_numpy(run.scores[...]), scores, bound)


def test_a_trainer(tmp_path):
    model, samples, _ = tuned("qwen2.5-vl")
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_eval_batch_size=2,
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
    )
    data = {"train_dataset": Samples(samples), "eval_dataset": Samples(samples[:3])}
    trainer = Trainer(model, arguments, data_collator=typed, **data)
    influence, test, train = influence_from_trainer(trainer, regularization=1e-3)
    assert isinstance(influence.objective, CausalLM)
    scores = torch.cat([influence.fit(train).training_influences(batch) for batch in test])
    rows = rows_alone(model, samples, typed)
    exact = exact_scores(influence, rows[:3], rows, influence.fixed_damping)
    tiny.assert_scores_close(scores, exact)


class Recorder:
    """An engine that keeps what it was given."""

    def __init__(self, engine):
        self.engine, self.seen = engine, []

    def rows(self, batch):
        self.seen.append(batch)
        return self.engine.rows(batch)

    def rows_with_losses(self, batch):
        self.seen.append(batch)
        return self.engine.rows_with_losses(batch)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", WHOLE)
def test_the_sample_without_padding_keeps_its_images(name, side):
    model, samples, collate = tuned(name)
    engine = Recorder(CaptureEngine(model, CausalLM(), Blocks.from_model(model, "module")))
    images = ImageLayout.of(model)
    PaddingCheckEngine(engine, model).rows(images.by_sample(collate(samples, side)))
    _, alone = map(images.as_given, engine.seen)
    shortest = min(samples, key=lambda s: s["input_ids"].shape[1])
    expected = collate([shortest])
    assert alone.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(alone[name], tensor)


# What is not known


def test_a_collator_that_drops_samples_is_refused(tmp_path):
    model, samples, _ = tuned("qwen2.5-vl")
    loader = DataLoader(Samples(samples), 3, collate_fn=lambda some: typed(some[:2]))
    influence = DataInfInfluence(model, CausalLM(), regularization=1e-3)
    with pytest.raises(SourceError, match="has 2 samples where 3 were drawn"):
        run_influences(influence, loader, loader, tmp_path / "run.zarr", progress=False)
