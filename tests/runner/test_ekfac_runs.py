"""Runs with EK-FAC: values, moments in the store, interruption, damage, queries and refusals."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tiny
from fitted import close
from pydvl_datainf import (
    CausalLM,
    DataInfInfluence,
    EkfacInfluence,
    ExactInfluence,
    ModelError,
    PlanError,
    SourceError,
    StoreError,
    approximation_error,
    compute_self_influence,
    run_influences,
)
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.runner import tasks
from small_runs import samples

N, M = 23, 6
HALF = 2**-11


def network():
    """Two layers with EK-FAC's inverse, and a norm with the exact one."""
    torch.manual_seed(0)
    layers = nn.Linear(3, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 4, bias=False)
    return nn.Sequential(*layers).double().eval()


def batches(data, size):
    return list(zip(*(t.split(size) for t in data), strict=True))


TRAIN, TEST = samples(N, 1), samples(M, 2)


def ekfac(regularization="auto", **settings):
    return EkfacInfluence(network(), F.cross_entropy, regularization, **settings)


def run(store, influence=None, train=None, **options):
    options = {"tile": (4, 3), "rows": "memory", "progress": False, **options}
    train = batches(TRAIN, 5) if train is None else train
    return run_influences(influence or ekfac(), batches(TEST, 4), train, store, **options)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A run that kept its rows, with all that there may be."""
    place = tmp_path_factory.mktemp("ekfac") / "run.zarr"
    return run(place, rows="zarr", self_influence=True, exact_sample=N)


def copied(stored, tmp_path, name="copy.zarr"):
    return shutil.copytree(str(stored.store), tmp_path / name)


def chunk_files(place, array):
    return sorted(
        file for file in (place / array).rglob("*") if file.is_file() and file.name != "zarr.json"
    )


# Values


@pytest.mark.parametrize("regularization", [0.01, "auto"])
def test_scores_are_those_of_the_fitted_model(tmp_path, regularization):
    fitted = ekfac(regularization).fit([TRAIN])
    assert list(fitted.block_inverses.values()) == ["EK-FAC", "exact", "EK-FAC"]
    done = run(tmp_path / "run.zarr", ekfac(regularization), self_influence=True)
    close(done.scores[:], fitted.training_influences(*TEST))
    close(done.self_influence(), fitted.self_influences())
    assert done.damping == pytest.approx(fitted.damping, rel=1e-9)


def test_the_moments_are_kept_with_the_run(tmp_path):
    done = run(tmp_path / "run.zarr")
    exact = ekfac().layer_moments([TRAIN])
    assert sorted(exact) == ["0", "3"]
    for b, block in ((0, "0"), (2, "3")):
        A, S = exact[block]
        close(done.store.read(f"moments/{b}"), torch.cat([A.flatten(), S.flatten()]))
    assert done.attrs["fingerprint"]["layers"] == {"0": [5, 4, True], "3": [4, 5, False]}
    done.check()


def test_stored_rows_cost_no_more_than_half_precision(stored):
    fitted = ekfac().fit([TRAIN])
    exact = fitted.training_influences(*TEST)
    assert np.abs(stored.scores[:] - exact.numpy()).max() <= 8 * HALF * float(exact.abs().max())
    own = fitted.self_influences().numpy()
    assert np.abs(stored.self_influence() - own).max() <= 8 * HALF * own.max()


def test_the_approximation_error_is_that_of_the_fitted_model(stored):
    fitted = ekfac().fit([TRAIN])
    expected = approximation_error(fitted, *TEST)
    assert min(expected.errors[[0, 2]]) > 0.01  # the premise
    assert stored.approximation_error.errors == pytest.approx(expected.errors, rel=1e-2, abs=1e-2)
    assert stored.approximation_error.score_error == pytest.approx(expected.score_error, rel=1e-2)


def test_by_block_top_and_groups(tmp_path):
    fitted = ekfac().fit([TRAIN])
    by_block = run(tmp_path / "blocks.zarr", by_block=True)
    for b, exact in enumerate(fitted.training_influences(*TEST, by_block=True).values()):
        close(by_block.scores[:][:, b], exact)
    exact = fitted.training_influences(*TEST)
    top = run(tmp_path / "top.zarr", top_k=3)
    close(top.store.read("top_scores")[:, 0], exact.topk(3).values)
    groups = run(tmp_path / "groups.zarr", query_groups=["a", "b", "a", "b", "a", "a"])
    in_a = torch.tensor([0, 2, 4, 5])
    close(groups.scores[:][0], exact[in_a].mean(0))


def test_a_layer_that_is_not_called_has_the_exact_inverse(tmp_path):
    """Attention uses the weight of its output layer, but not the layer."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(3, 1, batch_first=True)
            self.out = nn.Linear(3, 4)

        def forward(self, x):
            x = x[:, None] * torch.tensor([[1.0], [0.5]]).to(x)
            return self.out(self.attention(x, x, x)[0].mean(1))

    torch.manual_seed(0)
    influence = EkfacInfluence(Attention().double().eval(), F.cross_entropy, 0.01)
    done = run(tmp_path / "run.zarr", influence)
    assert set(done.attrs["fingerprint"]["layers"]) == {"attention.out_proj", "out"}
    influence.fit([TRAIN])
    assert influence.block_inverses["attention.out_proj"] == "exact"
    close(done.scores[:], influence.training_influences(*TEST))


def test_lora_over_padded_texts_in_pieces_by_tokens(tmp_path):
    torch.manual_seed(4)
    model = tiny.moved(tiny.lora(tiny.llama(), ["q_proj", "v_proj"]).double().eval())
    train, test = tiny.answers(7, 8), tiny.answers(3, 6)
    influence = EkfacInfluence(model, CausalLM(), max_tokens=17)
    done = run_influences(
        influence, [test], [train], tmp_path / "run.zarr", tile=(2, 2), progress=False
    )
    close(done.scores[:], influence.fit([train]).training_influences(test))


# The same bits


EVERYTHING = {"rows": "zarr", "self_influence": True, "exact_sample": N}


def assert_same_bits(done, stored):
    done.check()
    for name in ("scores", "self_influence", "moments/0", "moments/2", "approximation"):
        assert np.array_equal(done.store.read(name), stored.store.read(name))


@pytest.mark.usefixtures("fork_server")
def test_workers_change_no_bit(tmp_path, stored):
    assert_same_bits(run(tmp_path / "run.zarr", n_jobs=2, **EVERYTHING), stored)


def test_a_stop_in_the_middle_of_the_moments_changes_no_bit(tmp_path, stored, monkeypatch):
    place, write, done = tmp_path / "run.zarr", tasks.write_moments, []
    assert len(tasks.moment_spans(stored.plan)) == 8  # the premise: there is a middle

    def write_until(stop, span, context, inputs):
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(span)
        write(span, context, inputs)

    monkeypatch.setattr(tasks, "write_moments", partial(write_until, 3))
    with pytest.raises(KeyboardInterrupt):
        run(place, **EVERYTHING)
    assert len(chunk_files(place, "work/moments/0")) == 3
    monkeypatch.setattr(tasks, "write_moments", partial(write_until, None))
    assert_same_bits(run(place, **EVERYTHING), stored)
    assert sorted(done) == list(range(8))  # none was made twice


def test_damaged_moments_are_found_and_made_again(tmp_path, stored):
    place = copied(stored, tmp_path)
    (file,) = chunk_files(place, "moments/2")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match="moments/2"):
        InfluenceRun(place).check()
    again = run(place, rows="zarr")
    again.check()
    for name in ("moments/2", "scores"):
        assert np.array_equal(again.store.read(name), stored.store.read(name))


def test_damaged_layers_in_the_attributes_are_refused(tmp_path, stored):
    for layers in ({"0": [5, 4]}, {"0": [5, -4, True]}, {"other": [5, 4, True]}, {}, None):
        place = copied(stored, tmp_path, f"{len(str(layers))}.zarr")
        text = (place / "zarr.json").read_text()
        said = json.loads(text)
        said["attributes"]["fingerprint"]["layers"] = layers
        (place / "zarr.json").write_text(json.dumps(said))
        with pytest.raises(StoreError, match="layers"):
            InfluenceRun(place)


# Afterwards: queries and self-influences


def test_a_query_uses_the_moments_of_the_run(tmp_path, stored):
    place, x = copied(stored, tmp_path, "run.zarr"), samples(3, 9)
    query = run_influences(
        ekfac(), [x], InfluenceRun(place), tmp_path / "query.zarr", progress=False
    )
    direct = run_influences(
        ekfac(), [x], batches(TRAIN, 5), tmp_path / "direct.zarr", rows="zarr", tile=(4, 3)
    )
    close(query.scores[:], torch.from_numpy(direct.scores[:]))
    assert not (tmp_path / "query.zarr" / "moments").exists()
    query.check()
    again = run_influences(ekfac(), [x], query, tmp_path / "again.zarr", progress=False)
    assert np.array_equal(again.scores[:], query.scores[:])
    shutil.rmtree(place / "moments" / "0" / "c")
    with pytest.raises(StoreError, match="moments/0"):
        run_influences(ekfac(), [x], InfluenceRun(place), tmp_path / "third.zarr", progress=False)


def test_a_query_of_a_run_without_moments_is_refused_with_the_remedy(tmp_path, stored):
    plain = run(tmp_path / "run.zarr", DataInfInfluence(network(), F.cross_entropy), rows="zarr")
    query = partial(run_influences, test=[TEST], store=tmp_path / "query.zarr", progress=False)
    with pytest.raises(ModelError, match=r"own method, DataInf, or make a run with an EkfacInf"):
        query(ekfac(), train=plain)
    with pytest.raises(ModelError, match="method"):
        query(ExactInfluence(network(), F.cross_entropy), train=stored)
    assert not (tmp_path / "query.zarr").exists()


def test_self_influences_are_made_without_the_model(tmp_path, stored):
    done = run(tmp_path / "run.zarr", rows="zarr")
    found = compute_self_influence(done, progress=False)
    assert np.array_equal(found, stored.self_influence())


# Refusals and plans


def test_rows_that_are_computed_again_are_refused(tmp_path):
    with pytest.raises(SourceError, match='run_influences with rows="zarr"'):
        run(tmp_path / "run.zarr", rows="recompute")
    assert not (tmp_path / "run.zarr" / "zarr.json").exists()


def test_memory_for_the_moments_counts(tmp_path):
    """A layer of 300 inputs and 1 output has 300 numbers in a row, and 90,001 in its moments."""
    model = nn.Linear(300, 1, bias=False)
    torch.manual_seed(0)
    x, y = torch.randn(8, 300), torch.randn(8, 1)
    ask = partial(run_influences, test=[(x, y)], train=[(x, y)], progress=False)
    influence = EkfacInfluence(model, F.mse_loss)
    with pytest.raises(PlanError, match=r"second moments of layers take 3,600,040") as caught:
        ask(influence, store=tmp_path / "small.zarr", memory="2MiB")
    smallest = int(str(caught.value).split("memory=")[1].split(".")[0].replace(",", ""))
    assert smallest > 3_600_040
    done = ask(influence, store=tmp_path / "run.zarr", memory=smallest)
    fitted = influence.fit([(x, y)]).training_influences(x, y)
    torch.testing.assert_close(torch.from_numpy(done.scores[:]), fitted, rtol=1e-3, atol=1e-3)
    ask(DataInfInfluence(model, F.mse_loss), store=tmp_path / "datainf.zarr", memory="2MiB")
