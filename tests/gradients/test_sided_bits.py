"""Rows behind side bases do not depend on what else was computed in a process before."""

import pytest
import torch
from torch.nn import functional as F

from fitted import close
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import gradient_engine
from pydvl_datainf.gradients.side_learning import SideLearner
from pydvl_datainf.gradients.sided import on_sides
from pydvl_datainf.inverse.sides import SideMoments, Sides
from pydvl_datainf.objectives import as_objective
from wide_layers import Model, batches, plain_rows, problem

WANTED = {"tokens.layer": (6, 5), "tokens.plain": (5, 6)}
SIDES = {
    "tokens.layer": Sides(torch.eye(12).double()[:, :6], torch.eye(10).double()[:, :5], True),
    "tokens.plain": Sides(torch.eye(10).double()[:, :5], torch.eye(12).double()[:, :6], False),
}


def engine_of(model):
    blocks = Blocks.from_model(model, "module")
    return gradient_engine("auto", model, as_objective(F.cross_entropy), blocks)


@pytest.mark.parametrize("before", range(1, 8))
def test_rows_and_moments_are_those_of_a_new_process(before):
    model, train, *_ = problem()
    *others, last = batches(*train)[: before + 1]
    for make in (rows_of, moments_of):
        engines = [engine_of(model) for _ in range(2)]
        for batch in others:
            rows_of(engines[1], batch)
        first, later = (make(engine, last) for engine in engines)
        assert all(torch.equal(first[block], later[block]) for block in first)


def rows_of(engine, batch):
    return on_sides(engine, SIDES).rows_with_losses(batch)


def moments_of(engine, batch):
    learner = SideLearner(engine, WANTED)
    learner.rows(batch)
    return {block: moments.outputs for block, moments in learner.moments.items()}


def test_moments_of_large_batches_come_from_tokens(monkeypatch):
    """Of more samples than are computed without one of them alone."""
    torch.manual_seed(0)
    model = Model().double()
    x, y = torch.randn(130, 2, 18, dtype=torch.float64), torch.randint(0, 3, (130,))
    expected = plain_rows(model, x, y)["tokens.plain"].reshape(130, 10, 12)
    with monkeypatch.context() as patch:
        patch.delattr(SideMoments, "add_rows")
        learner = SideLearner(engine_of(model), WANTED)
        learner.rows((x, y))
    close(learner.moments["tokens.plain"].outputs, (expected @ expected.mT).sum(0))
    close(learner.moments["tokens.plain"].inputs, (expected.mT @ expected).sum(0))
