"""LissaInfluence: against the dense iteration and the exact inverse, its residuals and warnings."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dense
from fitted import STRUCTURES, Problem, close
from pydvl_datainf import (
    ExactInfluence,
    LissaInfluence,
    ModelError,
    SourceError,
    approximation_error,
    influence_from_trainer,
)
from pydvl_datainf.influence import METHODS

STEPS, NEVER = 9, 1e-300
NOT_CONVERGED = "ignore:LiSSA has not converged"


def problem(structure="module", n=11):
    return Problem(lambda rows, λ: dense.lissa_matrix(rows, λ, STEPS), structure, n)


def fitted(p, regularization="auto", iterations=STEPS, tolerance=NEVER, batches=None):
    steps = {"iterations": iterations, "tolerance": tolerance}
    influence = LissaInfluence(p.model, p.loss, regularization, p.structure, **steps)
    return influence.fit(batches or p.batches())


# Each structure with each n, and each of both with each λ.
SETTINGS = [
    (structure, n, ["auto", 0.5][(i + j) % 2])
    for i, structure in enumerate(STRUCTURES)
    for j, n in enumerate([1, 7, 30])
]


@pytest.mark.filterwarnings(NOT_CONVERGED)
@pytest.mark.parametrize(("structure", "n", "regularization"), SETTINGS)
def test_influences_are_those_of_the_dense_iteration(structure, n, regularization):
    p = problem(structure, n)
    influence = fitted(p, regularization)
    close(influence.training_influences(*p.test), p.influences(p.test, p.fitted, regularization))
    close(influence.influences(*p.test, *p.train), p.influences(p.test, p.train, regularization))
    close(influence.self_influences(), p.influences(p.fitted, p.fitted, regularization).diag())
    v = p.rows(p.test)
    factors = torch.cat([v[b] @ M for b, M in p.matrices(regularization).items()], 1)
    close(
        influence.influence_factors(*p.test),
        influence.blocks.flatten(influence.influence_factors_by_block(*p.test)),
    )
    blocks = influence.influence_factors_by_block(*p.test)
    close(torch.cat(list(blocks.values()), 1), factors)


@pytest.mark.filterwarnings(NOT_CONVERGED)
def test_residuals_are_the_dense_ones():
    p = problem()
    found = fitted(p, 0.5).residuals_by_block(*p.test)
    assert list(found) == ["0", "2"]
    for block, v in p.rows(p.test).items():
        exact = dense.lissa(p.rows(p.fitted)[block], v, 0.5, STEPS)[1]
        torch.testing.assert_close(found[block], exact, rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_converged_it_is_the_exact_inverse_and_warns_of_nothing(structure):
    p = problem(structure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        influence = fitted(p, 0.2, 20_000, 1e-11)
        exact = ExactInfluence(p.model, p.loss, 0.2, p.structure).fit(p.batches())
        close(influence.training_influences(*p.test), exact.training_influences(*p.test))
        close(influence.self_influences(), exact.self_influences())
        assert max(float(r.max()) for r in influence.residuals_by_block(*p.test).values()) <= 1e-11
        assert approximation_error(influence, *p.test).score_error < 1e-9


def test_what_is_not_converged_is_warned_of_once_a_call():
    p = problem()
    influence = fitted(p, "auto", 10, 1e-2)
    for call in (lambda: influence.training_influences(*p.test), influence.self_influences):
        with pytest.warns(UserWarning, match=r"after 10 iterations.*0\.01 was asked") as told:
            call()
        assert len(told) == 1
    assert max(float(r.max()) for r in influence.residuals_by_block(*p.test).values()) > 1e-2


@pytest.mark.filterwarnings(NOT_CONVERGED)
@pytest.mark.parametrize("sizes", [[4, 4, 3], [1] * 11])
def test_batches_order_and_copies_do_not_matter(sizes):
    p = problem()
    x, y = p.fitted
    whole = fitted(p, "auto", 30, 1e-3, [p.fitted]).influences(*p.test, *p.train)
    others = [p.cut(sizes), [(x.flip(0), y.flip(0))], [p.fitted, p.fitted]]
    for batches in others:
        close(fitted(p, "auto", 30, 1e-3, batches).influences(*p.test, *p.train), whole)
    # More queries than training samples, and each by itself.
    influence = fitted(p, "auto", 30, 1e-3, [(x[:3], y[:3])])
    together = influence.influence_factors(*p.test)
    alone = [
        influence.influence_factors(p.test[0][i : i + 1], p.test[1][i : i + 1]) for i in (0, 3)
    ]
    close(torch.cat(alone), together[[0, 3]])


def test_samples_without_a_gradient_are_solved():
    """Linear in x: a sample of zeros moves no weight."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2, bias=False).double(), torch.randn(4, 3).double(), torch.ones(4, 2)
    influence = LissaInfluence(model, F.mse_loss, iterations=2000).fit([(x, y.double())])
    zero = torch.zeros(1, 3).double(), y[:1].double()
    assert torch.equal(influence.influences(*zero, x, y.double()), torch.zeros(1, 4).double())
    assert influence.residuals_by_block(*zero)[""].tolist() == [0.0]


def test_another_damping_keeps_the_rows_and_travels():
    p = problem()
    influence = fitted(p, 0.5, 20_000, 1e-11)
    again = pickle.loads(pickle.dumps(copy.deepcopy(influence))).with_regularization(2.0)
    exact = ExactInfluence(p.model, p.loss, 2.0, p.structure).fit(p.batches())
    close(again.influences(*p.test, *p.train), exact.influences(*p.test, *p.train))


def test_settings_and_rows_are_checked_at_once():
    p = problem()
    with pytest.raises(ModelError, match="iterations must be a positive number, got 0"):
        LissaInfluence(p.model, p.loss, iterations=0)
    with pytest.raises(ModelError, match="tolerance must be a positive number"):
        LissaInfluence(p.model, p.loss, tolerance=0.0)
    with pytest.raises(SourceError, match=r'up to 120 times.*rows="memory"'):
        LissaInfluence(p.model, p.loss, rows="recompute")
    assert LissaInfluence(p.model, p.loss).rows_kept == "memory"


def test_it_is_known_by_name():
    p = problem()
    made = METHODS["lissa"](p.model, p.loss, iterations=3)
    assert type(made) is LissaInfluence
    assert made.inverse.settings == {"iterations": 3, "tolerance": 0.01}
    with pytest.raises(ModelError, match="lissa; got 'newton'"):
        influence_from_trainer(_Trainer(p.model.eval()), method="newton")


class _Trainer:
    args = None

    def __init__(self, model):
        self.model = model
