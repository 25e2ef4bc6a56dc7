"""EkfacInfluence against dense Kronecker products in float64, and the contract with pyDVL."""

import copy
import pickle

import pytest
import torch
from pydvl.utils.exceptions import NotFittedException
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dense
import kronecker
import tiny
from fitted import SPLITS, STRUCTURES, Problem, close
from pydvl_datainf import (
    BlockError,
    CausalLM,
    DampingError,
    DataInfInfluence,
    EkfacInfluence,
    ExactInfluence,
    ModelError,
    SourceError,
    approximation_error,
)
from stored_transposed import transposed
from zoo import Flat, Tied


class LayerProblem(Problem):
    """The classifier with EK-FAC's inverses."""

    def __init__(self, structure="module", n=11, dtype=torch.float64):
        super().__init__(dense.exact_matrix, structure, n, dtype)

    def matrices(self, regularization):
        rows, damping = self.rows(self.fitted), self.damping(regularization)
        return {b: self.matrix(b, rows[b], damping[b]) for b in rows}

    def matrix(self, block, rows, λ):
        """For a weight, a bias, or both, in the layer of this number."""
        names = self.members[block]
        model, wide = dense.in_float64(self.model), (self.fitted[0].double(), self.fitted[1])
        inputs = {
            ("weight",): lambda layer, x: x,
            ("bias",): lambda layer, x: [1.0],
            ("weight", "bias"): kronecker.with_one,
        }[tuple(name[2:] for name in names)]
        layer = model[int(names[0][0])]
        A, S = kronecker.moments(model, self.loss, wide, layer, inputs)
        return kronecker.ekfac_matrix(rows, λ, A, S, has_bias=len(names) == 2)


@pytest.fixture(scope="module")
def problem():
    return LayerProblem()


def fitted(p, regularization="auto", data=None, **settings):
    influence = EkfacInfluence(p.model, p.loss, regularization, p.structure, **settings)
    return influence.fit(p.batches() if data is None else data)


# Values


@pytest.mark.parametrize("regularization", [1e-3, "auto", 30.0])
@pytest.mark.parametrize("n", [1, 7, 30])
@pytest.mark.parametrize("structure", ["module", "parameter_wise"])
def test_everything_is_that_of_dense_kronecker_products(structure, n, regularization):
    p, λ = LayerProblem(structure, n), regularization
    influence = fitted(p, λ)
    assert set(influence.block_inverses.items()) == {(b, "EK-FAC") for b in STRUCTURES[structure]}
    close(influence.training_influences(*p.test), p.influences(p.test, p.fitted, λ))
    close(influence.influences(*p.test, *p.train), p.influences(p.test, p.train, λ))
    close(influence.influences(*p.train, *p.test), p.influences(p.train, p.test, λ))
    close(influence.self_influences(), p.influences(p.fitted, p.fitted, λ).diag())
    close(influence.self_influences(p.test), p.influences(p.test, p.test, λ).diag())
    for block, matrix in p.matrices(λ).items():
        found = influence.influence_factors_by_block(*p.test)[block]
        assert found.dtype == torch.float64
        close(found, p.rows(p.test)[block] @ matrix)
    flat = influence.influence_factors(*p.test)
    close(influence.influences_from_factors(flat, *p.train), p.influences(p.test, p.train, λ))


def test_weights_that_are_stored_transposed_have_the_same_influences():
    p = LayerProblem()
    influence = EkfacInfluence(transposed(p.model), p.loss, 0.01).fit(p.batches())
    assert set(influence.block_inverses.values()) == {"EK-FAC"}
    close(influence.training_influences(*p.test), p.influences(p.test, p.fitted, 0.01))
    close(influence.self_influences(), p.influences(p.fitted, p.fitted, 0.01).diag())


def test_perturbations_are_those_of_the_dense_products(problem):
    found = fitted(problem, 0.1).influences(*problem.test, *problem.train, "perturbation")
    close(found, problem.perturbations(problem.test, problem.train, 0.1))


def test_other_inverses_are_told_apart(problem):
    """Negative control: one sample twice, another λ, and the other methods."""
    p, (x, y) = problem, problem.fitted
    right = p.influences(p.test, p.fitted, 0.01)
    wrong = [
        fitted(p, 0.01, [p.fitted, (x[:1], y[:1])]),
        fitted(p, 0.0101),
        *(
            kind(p.model, p.loss, 0.01).fit([p.fitted])
            for kind in (ExactInfluence, DataInfInfluence)
        ),
    ]
    for influence in wrong:
        with pytest.raises(AssertionError):
            close(influence.influences(*p.test, *p.fitted), right, 1e-5)


@pytest.mark.parametrize("split", SPLITS)
def test_batches_and_their_order_do_not_matter(problem, split):
    p, right = problem, problem.influences(problem.test, problem.train, 0.01)
    close(fitted(p, 0.01, p.cut(SPLITS[split])).influences(*p.test, *p.train), right)
    close(fitted(p, 0.01, batch_size=2).influences(*p.test, *p.train), right)


def test_a_shuffled_loader_gives_the_same_inverse(problem):
    loader = DataLoader(TensorDataset(*problem.fitted), 3, shuffle=True)
    influence = fitted(problem, 0.01, loader)
    right = problem.influences(problem.test, problem.train, 0.01)
    close(influence.influences(*problem.test, *problem.train), right)
    with pytest.raises(SourceError, match="shuffle=False"):
        influence.training_influences(*problem.test)


@pytest.mark.parametrize("gradients", ["capture", "functional"])
def test_any_engine_serves(problem, gradients):
    found = fitted(problem, 0.01, gradients=gradients).influences(*problem.test, *problem.train)
    close(found, problem.influences(problem.test, problem.train, 0.01))


def test_float32_is_right_to_its_own_digits():
    p = LayerProblem(dtype=torch.float32)
    influence = fitted(p, "auto")
    found = influence.training_influences(*p.test)
    assert found.dtype == torch.float32
    exact = p.influences(p.test, p.fitted, "auto")
    assert ((found - exact).abs() <= 1e-5 * p.largest_products("auto")).all()


def test_automatic_damping_is_a_tenth_of_the_mean_of_the_eigenvalues(problem):
    influence = fitted(problem)
    for block, λ in influence.damping.items():
        eigenvalues = influence._fit.methods[block].eigenvalues
        assert pytest.approx(0.1 * float(eigenvalues.mean()), rel=1e-12) == λ
        exact = dense.automatic_damping(problem.rows(problem.fitted)[block])
        assert pytest.approx(exact, rel=1e-9) == λ


def test_damping_is_changed_without_reading_the_data_again(problem):
    p, reads = problem, []

    class Counted(list):
        def __iter__(self):
            reads.append(1)
            return super().__iter__()

    influence = fitted(p, 1.0, Counted(p.cut([4, 7])))
    assert len(reads) == 1  # rows and moments in one pass
    influence.with_regularization(0.01)
    close(influence.training_influences(*p.test), p.influences(p.test, p.fitted, 0.01))
    influence.with_regularization("auto")
    close(influence.training_influences(*p.test), p.influences(p.test, p.fitted, "auto"))
    assert len(reads) == 1


def test_where_the_curvature_is_a_kronecker_product_it_is_exact():
    """y is linear in x, one token a sample; the loss g·y has the output gradient g whatever y is.

    Each pair of an x and a g is there once, so that the Gauss-Newton matrix is a product.
    """
    torch.manual_seed(0)
    xs, gs = torch.randn(6, 3).double(), torch.randn(4, 2).double()
    pairs = xs.repeat_interleave(4, 0), gs.repeat(6, 1)
    model = nn.Linear(3, 2, bias=False).double()

    def loss(output, g):
        return (output * g).sum()

    ekfac, exact = (
        kind(model, loss, 0.05).fit([pairs]).training_influences(xs[:2], gs[:2])
        for kind in (EkfacInfluence, ExactInfluence)
    )
    close(ekfac, exact)
    ekfac, exact = (  # negative control: without one of the pairs
        kind(model, loss, 0.05).fit([tuple(t[1:] for t in pairs)]).influences(xs[:2], gs[:2])
        for kind in (EkfacInfluence, ExactInfluence)
    )
    with pytest.raises(AssertionError):
        close(ekfac, exact, 1e-4)


# Layers


def compared(model, objective, loss, batch, test, layers, exact_blocks=(), **settings):
    """Influences under a tight λ beside those of dense matrices; layers by block."""
    members = {
        block: [f"{block}.{n}" for n, _ in layer.named_parameters()] for block, layer in layers
    }
    for block in exact_blocks:
        own = model.get_submodule(block).named_parameters(recurse=False)
        members[block] = [f"{block}.{n}" for n, _ in own]
    influence = EkfacInfluence(model, objective, 1e-3, members, **settings).fit([batch])
    assert influence.block_inverses == {
        **dict.fromkeys(members, "EK-FAC"),
        **dict.fromkeys(exact_blocks, "exact"),
    }
    train_rows = kronecker.rows_of(model, loss, batch, members)
    test_rows = kronecker.rows_of(model, loss, test, members)
    inverses = {b: dense.exact_matrix(train_rows[b], 1e-3) for b in exact_blocks}
    for block, layer in layers:
        has_bias = layer.bias is not None
        places = kronecker.patches if isinstance(layer, nn.Conv2d) else kronecker.tokens
        inputs = {"inputs": kronecker.with_one} if has_bias else {}
        moments = kronecker.moments(model, loss, batch, layer, places=places, **inputs)
        inverses[block] = kronecker.ekfac_matrix(train_rows[block], 1e-3, *moments, has_bias)
    close(
        influence.training_influences(*test if isinstance(test, tuple) else (test,)),
        kronecker.influences(inverses, test_rows, train_rows),
    )


def test_convolutions_and_norms():
    """Norms have no Kronecker form and the exact inverse."""
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=1)
    model = Flat(conv, nn.GroupNorm(1, 3), nn.Tanh(), nn.Conv2d(3, 2, 2, bias=False))
    model = model.double().eval()
    data = [torch.randn(length, 2, 4, 3).double() for length in (6, 2)]
    batch, test = ((x, torch.randn_like(model(x))) for x in data)
    layers = [(f"layers.{i}", model.layers[i]) for i in (0, 3)]
    compared(model, F.mse_loss, F.mse_loss, batch, test, layers, ["layers.1"])


def test_a_layer_that_is_called_twice_and_an_embedding():
    torch.manual_seed(0)
    model = Tied().double()
    batch, test = (
        (torch.randint(0, 6, (length, 4)), torch.randn(length, 6).double()) for length in (5, 2)
    )
    layers = [("hidden", model.hidden)]
    compared(model, F.mse_loss, F.mse_loss, batch, test, layers, ["embedding"])


@pytest.mark.parametrize("max_tokens", [None, 9])
def test_lora_over_padded_texts(max_tokens):
    torch.manual_seed(4)
    model = tiny.moved(tiny.lora(tiny.llama(), ["q_proj", "v_proj"]).double().eval())
    batch, test = tiny.answers(5, 8), tiny.answers(3, 6)
    assert (batch["attention_mask"] == 0).any()  # the premise
    names = [name.removesuffix(".weight") for name in tiny.names_of(model)]
    layers = [(name, model.get_submodule(name)) for name in names]
    compared(model, CausalLM(), tiny.answer_loss, batch, test, layers, max_tokens=max_tokens)


# Refusals, copies and the state


def test_no_linear_layer_is_refused_with_a_remedy(problem):
    for structure in ("full", {"both": ["0.weight", "2.weight"]}):
        with pytest.raises(BlockError, match='Use block_structure="module", or ExactInfluence'):
            EkfacInfluence(problem.model, problem.loss, 0.1, structure)


def test_rows_that_are_computed_again_are_refused(problem):
    with pytest.raises(SourceError, match='Use rows="memory"'):
        EkfacInfluence(problem.model, problem.loss, rows="recompute")


def test_moments_that_overflow_are_refused():
    model = nn.Linear(2, 1, bias=False).double()
    x, y = 1e160 * torch.ones(3, 2).double(), torch.zeros(3, 1).double()

    def loss(output, y):
        return 1e-160 * output.sum()

    with pytest.raises(DampingError, match="Scale the inputs"):
        EkfacInfluence(model, loss, 1.0).fit([(x, y)])


def test_before_fit_nothing_is_known(problem):
    influence = EkfacInfluence(problem.model, problem.loss)
    for call in (lambda: influence.block_inverses, lambda: influence.influences(*problem.test)):
        with pytest.raises(NotFittedException):
            call()


def test_a_failed_fit_leaves_the_fitted_model_as_it_was(problem):
    influence = fitted(problem, 0.01)
    with pytest.raises(SourceError, match="empty"):
        influence.fit([])
    close(
        influence.training_influences(*problem.test),
        problem.influences(problem.test, problem.fitted, 0.01),
    )


def test_the_model_is_as_it_was_and_must_stay_so():
    p = LayerProblem()
    before = copy.deepcopy(p.model.state_dict())
    influence = fitted(p, 0.01)
    assert all(torch.equal(t, before[name]) for name, t in p.model.state_dict().items())
    assert all(parameter.grad is None for parameter in p.model.parameters())
    with torch.no_grad():
        p.model[0].weight += 1
    with pytest.raises(ModelError, match="changed after fit"):
        influence.influences(*p.test)


def test_copies_travel_with_what_was_fitted(problem):
    influence = fitted(problem, 0.01)
    right = problem.influences(problem.test, problem.train, 0.01)
    for twin in (pickle.loads(pickle.dumps(influence)), copy.deepcopy(influence)):
        close(twin.influences(*problem.test, *problem.train), right)
    influence.to("cpu")
    close(influence.influences(*problem.test, *problem.train), right)
    again = influence.unfitted().fit(problem.batches())
    close(again.influences(*problem.test, *problem.train), right)


def test_is_compared_with_the_exact_inverse_over_the_same_samples(problem):
    """Over all samples the eigenvalues are those fitted; over fewer they are those of the few."""
    p = problem
    influence = fitted(p, 0.01)
    error = approximation_error(influence, *p.test)
    E = {b: p.rows(p.test)[b] @ dense.exact_matrix(g, 0.01) for b, g in p.rows(p.fitted).items()}
    A = {b: p.rows(p.test)[b] @ matrix for b, matrix in p.matrices(0.01).items()}
    exact = [float((A[b] - E[b]).norm() / E[b].norm()) for b in E]
    assert min(exact) > 0.01  # the premise
    assert error.errors == pytest.approx(exact, rel=1e-9)
    few = approximation_error(influence, *p.test, samples=3)
    assert few.n == 3
    assert (few.errors > 0).all()
    assert few.errors != pytest.approx(exact, rel=1e-3)
