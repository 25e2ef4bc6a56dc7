"""EnsembleInfluence against the sums of the dense formulas of its members."""

import numpy as np
import pytest
import torch
from pydvl.influence import SequentialInfluenceCalculator
from pydvl.influence.torch.util import NestedTorchCatAggregator, TorchCatAggregator
from pydvl.utils.exceptions import NotFittedException
from pydvl.valuation.dataset import Dataset
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dense
from fitted import STRUCTURES, Problem, close
from pydvl_datainf import (
    BlockError,
    DampingError,
    DataInfInfluence,
    EnsembleInfluence,
    ExactInfluence,
    HessianFreeInfluence,
    Margin,
    ModelError,
    PlanError,
    SourceError,
    approximation_error,
    run_influences,
)
from pydvl_datainf.fingerprint import fingerprint
from pydvl_datainf.valuation import DataInfValuation

WEIGHTS = [0.5, 2.0, 0.25]
KINDS = [
    (DataInfInfluence, dense.datainf_matrix),
    (ExactInfluence, dense.exact_matrix),
    (DataInfInfluence, dense.datainf_matrix),
]


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def problem(seed, matrix, n=11):
    made = Problem(matrix, n=n)
    made.model = network(seed)
    return made


@pytest.fixture
def problems():
    return [problem(seed, matrix) for seed, (_, matrix) in enumerate(KINDS)]


def members(problems, **settings):
    pairs = zip(problems, KINDS, strict=True)
    return [kind(p.model, p.loss, **settings) for p, (kind, _) in pairs]


def fitted(problems, weights=WEIGHTS, sizes=(4, 4, 3), **settings):
    made = EnsembleInfluence(members(problems, **settings), weights)
    return made.fit(problems[0].cut(list(sizes)))


def summed(problems, ask, weights=WEIGHTS):
    """Σ_k w_k (what the oracle says of member k)."""
    return sum(w * ask(p) for w, p in zip(weights, problems, strict=True))


@pytest.mark.parametrize("sizes", [(11,), (4, 4, 3), (1,) * 11])
@pytest.mark.parametrize("weights", [WEIGHTS, None, [0.0, 1.0, 1.0]])
def test_sums_are_those_of_the_formula(problems, sizes, weights):
    made, p = fitted(problems, weights, sizes), problems[0]
    w = weights or [1.0, 1.0, 1.0]

    def expected(left, right):
        sides = lambda q: (getattr(q, left), getattr(q, right))  # noqa: E731
        return summed(problems, lambda q: q.influences(*sides(q), "auto"), w)

    close(made.influences(*p.test, *p.train), expected("test", "train"))
    close(made.influences(*p.train, *p.test), expected("train", "test"))
    close(made.influences(*p.test), expected("test", "test"))
    close(made.training_influences(*p.test), expected("test", "fitted"))
    close(made.self_influences(), expected("fitted", "fitted").diag())
    close(made.self_influences([p.train]), expected("train", "train").diag())
    with pytest.raises(AssertionError):  # negative control: the members differ
        close(made.influences(*p.test, *p.train), problems[1].influences(p.test, p.train, "auto"))


def test_blocks_add_up_to_the_formula(problems):
    made, p = fitted(problems), problems[0]
    found = {
        ("test", "train"): made.influences_by_block(*p.test, *p.train),
        ("test", "fitted"): made.training_influences(*p.test, by_block=True),
    }
    for (left, right), blocks in found.items():
        assert list(blocks) == list(STRUCTURES["module"])
        for block, scores in blocks.items():
            by_block = [
                q.influences_by_block(getattr(q, left), getattr(q, right), "auto")[block]
                for q in problems
            ]
            close(scores, sum(w * s for w, s in zip(WEIGHTS, by_block, strict=True)))
    own = made.self_influences(by_block=True)
    close(sum(own.values()), made.self_influences())


def test_factors_of_all_members_give_the_same(problems):
    made, p = fitted(problems), problems[0]
    factors = made.influence_factors(*p.test)
    assert factors.shape == (4, made.n_parameters) == (4, 3 * 44)
    for k, q in enumerate(problems):
        inverse = q.matrices("auto")
        parts = torch.cat([v @ inverse[b] for b, v in q.rows(q.test).items()], 1)
        close(factors[:, 44 * k : 44 * (k + 1)], parts)
    close(
        made.influences_from_factors(factors, *p.train),
        summed(problems, lambda q: q.influences(q.test, q.train, "auto")),
    )
    with pytest.raises(BlockError, match=r"shape \(4, 44\); expected \(m, 132\)"):
        made.influences_from_factors(factors[:, :44], *p.train)


def test_perturbations_are_added(problems):
    made, p = fitted(problems), problems[0]
    expected = summed(problems, lambda q: q.perturbations(q.test, q.train, "auto"))
    close(made.influences(*p.test, *p.train, mode="perturbation"), expected)
    factors = made.influence_factors(*p.test)
    close(made.influences_from_factors(factors, *p.train, mode="perturbation"), expected)


def test_one_member_and_one_training_sample():
    one = problem(0, dense.datainf_matrix, n=1)
    made = EnsembleInfluence([DataInfInfluence(one.model, one.loss)], [3.0]).fit([one.fitted])
    close(made.training_influences(*one.test), 3 * one.influences(one.test, one.fitted, "auto"))


def test_architectures_may_differ(problems):
    torch.manual_seed(9)
    wide = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    p, linear = problems[0], nn.Linear(3, 4).double()
    models = [p.model, wide, linear]
    made = EnsembleInfluence([DataInfInfluence(m, p.loss, 0.1) for m in models])
    made.fit(p.batches())
    expected = 0
    for model in models:
        blocks = {n: [f"{n}.weight", f"{n}.bias"] for n in ("0", "2")}
        names = {True: {"": ["weight", "bias"]}, False: blocks}[model is linear]
        v, g = (
            {b: dense.gradients(model, p.loss, data, n) for b, n in names.items()}
            for data in (p.test, p.fitted)
        )
        expected = expected + dense.influences(v, g, g, dict.fromkeys(names, 0.1))
    close(made.training_influences(*p.test), expected)
    with pytest.raises(BlockError, match="different blocks"):
        made.training_influences(*p.test, by_block=True)


def test_float32_members_are_added_in_float64(problems):
    models = [network(seed).float() for seed in range(3)]
    (x, y), (a, b) = problems[0].fitted, problems[0].test
    single = [DataInfInfluence(m, F.cross_entropy).fit([(x.float(), y)]) for m in models]
    made = EnsembleInfluence(single, WEIGHTS)
    wide = sum(
        w * m.training_influences(a.float(), b).double()
        for w, m in zip(WEIGHTS, single, strict=True)
    )
    found = made.training_influences(a.float(), b)
    assert found.dtype == made.dtype == torch.float32
    assert torch.equal(found, wide.float())


def test_a_sum_that_overflows(problems):
    p = problems[0]
    models = [network(seed).float() for seed in range(2)]
    made = EnsembleInfluence([DataInfInfluence(m, F.cross_entropy) for m in models], [1e38, 1e38])
    made.fit([(p.fitted[0].float(), p.fitted[1])])
    with pytest.raises(DampingError, match="overflow"):
        made.influences(p.test[0].float(), p.test[1])


# Members


def test_members_and_models_stay_as_they_are(problems):
    given = members(problems)
    before = [fingerprint(member.model) for member in given]
    made = EnsembleInfluence(given, WEIGHTS).fit(problems[0].batches())
    made.influences(*problems[0].test)
    assert not any(member.is_fitted for member in given)
    assert [fingerprint(member.model) for member in given] == before
    assert made.is_fitted
    assert made.n_samples == 11
    assert made.name == "sum of DataInf, exact"
    assert [list(λ) for λ in made.damping] == [["0", "2"]] * 3


class AfraidOfZeros(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network(5)

    def forward(self, x):
        return self.inner(torch.where(x == 0, torch.nan, x))


def test_a_fit_that_fails_changes_nothing(problems):
    p, (x, y) = problems[0], problems[0].fitted
    last = DataInfInfluence(AfraidOfZeros(), p.loss)
    made = EnsembleInfluence([*members(problems)[:2], last]).fit(p.batches())
    before = made.training_influences(*p.test)
    with pytest.raises(ModelError, match=r"not finite|NaN|nan"):
        made.fit([(torch.zeros_like(x), y)])
    assert torch.equal(made.training_influences(*p.test), before)


def test_members_that_are_fitted_on_the_same_data_need_no_fit(problems):
    p = problems[0]
    given = [member.fit(p.cut([1, 10])) for member in members(problems)]
    made = EnsembleInfluence(given, WEIGHTS)
    expected = summed(problems, lambda q: q.influences(q.test, q.fitted, "auto"))
    close(made.training_influences(*p.test), expected)
    assert made.is_fitted_on(p.cut([4, 4, 3]))
    assert not made.is_fitted_on([p.train])


def test_members_that_are_fitted_on_different_data(problems):
    a, b, c = members(problems)
    x, y = problems[0].fitted
    a.fit([(x, y)])
    with pytest.raises(SourceError, match=r"different data, of \[11, 10\] samples"):
        EnsembleInfluence([a, b.fit([(x[:10], y[:10])])])
    with pytest.raises(SourceError, match=r"different data, of \[11, 11\] samples"):
        EnsembleInfluence([a, b.fit([(x + 1, y)])])
    with pytest.raises(SourceError, match="Some members are fitted and some are not"):
        EnsembleInfluence([a, c])
    shuffled = DataLoader(TensorDataset(x, y), 4, shuffle=True)
    EnsembleInfluence([a, b.fit(shuffled)])  # whose order is not known


def test_what_is_refused(problems):
    given = members(problems)
    with pytest.raises(PlanError, match="There are no members to add"):
        EnsembleInfluence([])
    for weights, message in (
        ([1.0], "1 weights for 3 members"),
        ([1.0, -1.0, 1.0], "not negative"),
        ([0.0, 0.0, 0.0], "not all zero"),
        ([1.0, np.nan, 1.0], "must be finite"),
    ):
        with pytest.raises(PlanError, match=message):
            EnsembleInfluence(given, weights)
    with pytest.raises(ModelError, match="A member is a Linear"):
        EnsembleInfluence([nn.Linear(3, 4)])
    made, p = EnsembleInfluence(given), problems[0]
    for ask in (made.influences, made.influence_factors, made.training_influences):
        with pytest.raises(NotFittedException):
            ask(*p.test)
    with pytest.raises(NotFittedException):
        made.self_influences()
    with pytest.raises(ModelError, match="one of the members of an ensemble"):
        approximation_error(made, *p.test)


def test_a_model_that_changed_since_is_noticed(problems):
    made = fitted(problems)
    with torch.no_grad():
        problems[1].model[0].bias += 1
    with pytest.raises(ModelError, match="changed after fit"):
        made.influences(*problems[0].test)


def test_a_run_of_an_ensemble_is_refused_with_the_remedy(problems, tmp_path):
    made, p = fitted(problems), problems[0]
    for given in (made, lambda: made):
        with pytest.raises(ModelError, match=r"run of each member.*add these with sum_runs"):
            run_influences(given, [p.test], p.batches(), tmp_path / "run.zarr", progress=False)
    assert list(tmp_path.iterdir()) == []


# In pyDVL


def test_pydvl_s_calculator_takes_it(problems):
    made, p = fitted(problems), problems[0]
    calculator = SequentialInfluenceCalculator(made)
    loaders = DataLoader(TensorDataset(*p.test), 3), DataLoader(TensorDataset(*p.train), 4)
    expected = summed(problems, lambda q: q.influences(q.test, q.train, "auto"))
    close(calculator.influences(*loaders).compute(aggregator=NestedTorchCatAggregator()), expected)
    factors = calculator.influence_factors(loaders[0]).compute(TorchCatAggregator()).split(3)
    found = calculator.influences_from_factors(factors, loaders[1])
    close(found.compute(aggregator=NestedTorchCatAggregator()), expected)


def test_values_are_means_of_the_sums(problems):
    p = problems[0]
    train, test = (Dataset(*(t.numpy() for t in data)) for data in (p.fitted, p.test))
    made = EnsembleInfluence(members(problems), WEIGHTS)
    result = DataInfValuation(made, test, batch_size=3).fit(train).result
    scores = summed(problems, lambda q: q.influences(q.test, q.fitted, "auto"))
    close(result.values, scores.mean(0))
    close(result.variances, scores.var(0))
    assert result.algorithm == "sum of DataInf, exact"
    assert not made.is_fitted
    for settings in ({"store": "values.zarr"}, {"n_jobs": 2}):
        with pytest.raises(PlanError, match=r"run of each member with run_influences, add these"):
            DataInfValuation(made, test, **settings)


def test_plain_products_are_added_too(problems):
    p = problems[0]
    given = [HessianFreeInfluence(q.model, q.loss) for q in problems]
    made = EnsembleInfluence(given, WEIGHTS).fit(p.batches())
    rows = [(q.rows(q.test), q.rows(q.fitted)) for q in problems]
    expected = sum(
        w * sum(v[b] @ g[b].T for b in v) for w, (v, g) in zip(WEIGHTS, rows, strict=True)
    )
    close(made.training_influences(*p.test), expected)


QUESTIONS = [
    {"test_objective": Margin()},
    {"test_objective": Margin("all")},
    {"loss": nn.CrossEntropyLoss(reduction="sum")},
]


@pytest.mark.parametrize("other", QUESTIONS)
def test_members_that_ask_something_else_are_refused(other):
    settings = {"loss": F.cross_entropy} | other
    pair = [
        DataInfInfluence(network(0), F.cross_entropy),
        DataInfInfluence(network(1), settings.pop("loss"), **settings),
    ]
    with pytest.raises(ModelError, match=r"do not ask the same.*same test_objective"):
        EnsembleInfluence(pair)


def test_equal_questions_need_not_be_the_same_objects():
    ask = [DataInfInfluence(network(k), F.cross_entropy, test_objective=Margin()) for k in (0, 1)]
    assert len(EnsembleInfluence(ask).members) == 2
