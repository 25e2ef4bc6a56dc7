"""The losses of samples against one forward pass for each sample, in float64."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dense
import tiny
from pydvl_datainf import (
    BatchError,
    CausalLM,
    DataInfInfluence,
    ModelError,
    NonFiniteError,
    ObjectiveError,
    SourceError,
)
from small_runs import network

N = 11


def samples(length, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 4, (length,), generator=generator)


def loader(data, **settings):
    return DataLoader(TensorDataset(*data), **{"batch_size": 4, **settings})


def influence(model=None, loss=F.cross_entropy, **settings):
    return DataInfInfluence(network() if model is None else model, loss, **settings)


def truth(model, batch, loss=F.cross_entropy):
    with torch.no_grad():
        return torch.stack([value.reshape(()) for value in dense.sample_losses(model, loss, batch)])


def close(actual, expected):
    np.testing.assert_allclose(actual.numpy(), expected.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch_size", [None, 1, 3])
@pytest.mark.parametrize("n", [1, N])
def test_losses_are_those_of_each_sample_alone(n, batch_size):
    data, made = samples(n), influence(batch_size=batch_size)
    expected = truth(network(), data)
    for given in (data, loader(data), list(loader(data))):
        close(made.losses(given), expected)
    assert not made.is_fitted
    assert not made.losses(data).requires_grad


def test_swapped_samples_have_other_losses():
    """The control: losses in another order are not close."""
    x, y = samples(N)
    with pytest.raises(AssertionError):
        close(influence().losses((x.flip(0), y.flip(0))), truth(network(), (x, y)))


@pytest.mark.parametrize("max_tokens", [None, 1, 12])
def test_texts_are_cut_by_tokens_and_come_back_in_order(max_tokens):
    model = tiny.gpt2().double().eval()
    batch = tiny.answers(5, 9)
    with torch.no_grad():
        expected = dense.sample_losses(model, tiny.answer_loss, batch)
    made = DataInfInfluence(model, CausalLM(), max_tokens=max_tokens)
    close(made.losses(batch), torch.stack(expected).reshape(-1))


def test_the_model_is_left_as_it_was():
    model = network()
    before = {name: p.clone() for name, p in model.named_parameters()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    influence(model).losses(samples(N))
    assert torch.equal(torch.get_rng_state(), state)
    for name, p in model.named_parameters():
        assert p.grad is None
        torch.testing.assert_close(p.detach(), before[name].detach(), rtol=0, atol=0)


class Penalised:
    """Cross entropy and the squared gradient by the input, which it takes itself."""

    def losses(self, model, batch):
        x, y = batch
        x = x.requires_grad_()
        losses = F.cross_entropy(model(x), y, reduction="none")
        (g,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
        return losses + (g**2).sum(1)


def test_an_objective_may_take_gradients_of_its_own():
    made, data = influence(loss=Penalised()), samples(5)
    alone = [
        made.objective.losses(network(), (x[None], y[None])) for x, y in zip(*data, strict=True)
    ]
    close(made.losses(data), torch.cat(alone).detach())


def test_losses_survive_pickling():
    data = samples(N)
    close(pickle.loads(pickle.dumps(influence())).losses(data), truth(network(), data))


def test_float32_losses_are_float32():
    model = network().float()
    x, y = samples(N)
    losses = influence(model).losses((x.float(), y))
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), truth(network(), (x, y)), rtol=1e-5, atol=1e-6)


def test_random_order_and_no_data_are_refused():
    with pytest.raises(SourceError, match="random order"):
        influence().losses(loader(samples(N), shuffle=True))
    with pytest.raises(SourceError, match="losses need at least one sample"):
        influence().losses([])


def test_a_loss_that_is_no_number_is_refused_with_its_sample():
    x, y = samples(N)
    x[3, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="loss of sample 3 of a batch is nan"):
        influence().losses((x, y))


def test_dropout_in_training_mode_is_refused():
    model = nn.Sequential(network(), nn.Dropout()).train()
    with pytest.raises(ModelError, match="dropout in training mode"):
        influence(model).losses(samples(N))


class Mean:
    def losses(self, model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])


def test_one_loss_for_all_is_refused():
    with pytest.raises(ObjectiveError, match="one loss per sample"):
        influence(loss=Mean()).losses(samples(N))


def test_max_tokens_needs_texts():
    with pytest.raises(BatchError, match="max_tokens needs batches that are mappings"):
        influence(max_tokens=4).losses(samples(N))
