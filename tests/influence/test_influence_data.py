"""What an influence model is fitted on: orders, batches, mappings, and how it knows them again."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dense
from fitted import SPLITS, N, Problem, close, datainf_problem
from pydvl_datainf import BatchError, DataInfInfluence, SourceError


@pytest.mark.parametrize("rows", ["memory", "recompute"])
def test_a_shuffled_loader_gives_the_same_inverse(rows):
    p = datainf_problem()
    loader = DataLoader(TensorDataset(*p.fitted), batch_size=4, shuffle=True)
    before = torch.get_rng_state()
    influence = DataInfInfluence(p.model, p.loss, rows=rows).fit(loader)
    close(influence.influences(*p.test, *p.train), p.influences(p.test, p.train, "auto"))
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(SourceError, match="random order"):
        influence.training_influences(*p.test)
    with pytest.raises(SourceError, match="random order"):
        influence.self_influences()
    with pytest.raises(SourceError, match="random order"):
        influence.self_influences(loader)


def test_self_influences_of_other_data():
    p = datainf_problem()
    influence = DataInfInfluence(p.model, p.loss, 0.1).fit([p.fitted])
    expected = p.influences(p.train, p.train, 0.1).diag()
    loader = DataLoader(TensorDataset(*p.train), batch_size=4)
    for data in (loader, p.train, [p.train]):
        close(influence.self_influences(data), expected)


def test_self_influences_of_no_data_are_refused():
    p = datainf_problem()
    with pytest.raises(SourceError, match="empty"):
        DataInfInfluence(p.model, p.loss, 0.1).fit([p.fitted]).self_influences([])


def test_self_influences_in_groups(monkeypatch):
    p = datainf_problem()
    monkeypatch.setattr("pydvl_datainf.influence.fitted_samples._GROUP_BYTES", 1000)
    influence = DataInfInfluence(p.model, p.loss, 0.1).fit(p.cut([2, 4, 1, 4]))
    close(influence.self_influences(), p.influences(p.fitted, p.fitted, 0.1).diag())


@pytest.mark.parametrize("size", [1, 3, 100])
def test_the_batch_size_of_gradients_does_not_matter(size):
    p = datainf_problem()
    influence = DataInfInfluence(p.model, p.loss, batch_size=size).fit(p.cut([8, 3]))
    close(influence.training_influences(*p.test), p.influences(p.test, p.fitted, "auto"))


def test_progress_bars_are_shown_for_passes_of_several_batches_only(capsys):
    p = datainf_problem()
    influence = DataInfInfluence(p.model, p.loss, 0.1, batch_size=2, progress=True)
    influence.fit([p.fitted])
    assert "gradients" in capsys.readouterr().err
    influence.training_influences(*p.test)
    assert "gradients" in capsys.readouterr().err
    influence.loss_gradients(*(tensor[:2] for tensor in p.test))
    assert capsys.readouterr().err == ""


class Mapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


class MappedLoss:
    """An objective for mappings {"x", "labels"}."""

    def losses(self, model, batch):
        return F.cross_entropy(model(x=batch["x"]), batch["labels"], reduction="none")


def test_mappings_carry_their_labels():
    p = datainf_problem()
    model = Mapped(p.model)
    fitted, test, train = ({"x": x, "labels": y} for x, y in (p.fitted, p.test, p.train))
    influence = DataInfInfluence(model, MappedLoss(), 0.1).fit([fitted])
    exact = p.influences(p.test, p.train, 0.1)
    close(influence.influences(test, None, train, None), exact)
    close(influence.influences(test), p.influences(p.test, p.test, 0.1))
    close(influence.influences_from_factors(influence.influence_factors(test), train), exact)
    close(influence.training_influences(test), p.influences(p.test, p.fitted, 0.1))
    close(influence.self_influences(train), p.influences(p.train, p.train, 0.1).diag())
    with pytest.raises(ValueError, match="y must be None"):
        influence.influences(test, p.test[1])
    with pytest.raises(BatchError, match=r"\(x, y\) batches"):
        influence.influences(test, None, train, None, "perturbation")


@pytest.mark.parametrize("rows", ["memory", "recompute"])
@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_it_knows_what_it_was_fitted_on(split, rows):
    problem = Problem(dense.datainf_matrix)
    influence = DataInfInfluence(problem.model, problem.loss, rows=rows)
    assert not influence.is_fitted_on(problem.cut(N))
    influence.fit(problem.cut(split))
    influence.training_influences(*problem.test)
    assert influence.is_fitted_on(problem.cut(N))
    assert influence.is_fitted_on(problem.cut([2, 9]))
    x, y = problem.fitted
    for other in ((x.flip(0), y.flip(0)), (x, 3 - y), (x[:-1], y[:-1]), (x.float(), y)):
        assert not influence.is_fitted_on([other])
    with torch.no_grad():
        problem.model[0].bias += 1
    assert not influence.is_fitted_on(problem.cut(N))


def test_the_order_of_batches_of_other_lengths_counts():
    """Tokens that are padded to each batch's longest."""
    config = {"num_embeddings": 7, "embedding_dim": 2}
    short, long = (torch.randint(0, 7, (3, width)) for width in (5, 7))
    model = nn.EmbeddingBag(**config).double()
    batches = [(short, torch.zeros(3, dtype=int)), (long, torch.zeros(3, dtype=int))]
    influence = DataInfInfluence(model, F.cross_entropy, 1.0).fit(batches)
    assert influence.is_fitted_on(batches)
    assert not influence.is_fitted_on(batches[::-1])


def test_a_shuffled_order_is_never_the_same():
    problem = Problem(dense.datainf_matrix)
    loader = DataLoader(TensorDataset(*problem.fitted), batch_size=N, shuffle=True)
    influence = DataInfInfluence(problem.model, problem.loss).fit(loader)
    assert not influence.is_fitted_on(problem.cut(N))


@pytest.mark.parametrize("rows", ["memory", "recompute"])
def test_training_gradients_are_those_of_the_samples(rows):
    problem = Problem(dense.datainf_matrix)
    influence = DataInfInfluence(problem.model, problem.loss, rows=rows)
    influence.fit(problem.cut(SPLITS["unequal last"]))
    random_state = torch.get_rng_state()
    chunks = influence.training_gradients_by_block()
    first = next(chunks)
    torch.rand(3)  # the caller's, which must not be taken back
    moved = torch.get_rng_state()
    rest = list(chunks)
    assert torch.equal(torch.get_rng_state(), moved)
    assert not torch.equal(moved, random_state)
    for block, expected in problem.rows(problem.fitted).items():
        found = torch.cat([chunk[block] for chunk in (first, *rest)])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
