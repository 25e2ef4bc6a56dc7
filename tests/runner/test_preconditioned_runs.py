"""Runs in Adam's coordinates, and what their stores tell of these."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from commands import done as shown
from fitted import close
from pydvl_datainf import (
    AdamPreconditioner,
    DataInfInfluence,
    ExactInfluence,
    HessianFreeInfluence,
    ModelError,
    StoreExistsError,
    run_influences,
    sum_runs,
)
from pydvl_datainf.results.record import faults, sealed_attributes
from stepped import TEST, TRAIN, N, stepped

KEY = "preconditioner"


@pytest.fixture(scope="module")
def adam():
    model, optimizer = stepped()
    return model, AdamPreconditioner.from_optimizer(optimizer, model)


@pytest.fixture(scope="module")
def first(adam, tmp_path_factory):
    """A run that keeps its rows."""
    return run(tmp_path_factory.mktemp("first") / "run", made(adam), rows="zarr")


def made(adam, kind=DataInfInfluence, **settings):
    return kind(adam[0], F.cross_entropy, preconditioner=adam[1], **settings)


def run(store, influence, train=None, **options):
    train = train or [tuple(t[:6] for t in TRAIN), tuple(t[6:] for t in TRAIN)]
    options = {"progress": False, "tile": (3, 4), **options}
    return run_influences(influence, [TEST], train, store, **options)


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        (DataInfInfluence, "memory"),
        (DataInfInfluence, "recompute"),
        (ExactInfluence, "memory"),
        (HessianFreeInfluence, "recompute"),
    ],
)
def test_a_run_is_the_fitted_model(tmp_path, adam, kind, rows):
    influence = made(adam, kind).fit([TRAIN])
    found = run(tmp_path / "run", made(adam, kind), rows=rows)
    close(found.scores[:], influence.training_influences(*TEST))
    assert found.damping == pytest.approx(influence.damping, rel=1e-9)


def test_stored_and_compressed_rows(tmp_path, adam, first):
    exact = made(adam).fit([TRAIN]).training_influences(*TEST)
    atol = 8 * 2**-11 * float(exact.abs().max())
    np.testing.assert_allclose(first.scores[:], exact, rtol=0, atol=atol)
    few = run(
        tmp_path / "few", made(adam, ExactInfluence), rows="compressed", rank=N, basis_sample=N
    )
    exact = made(adam, ExactInfluence).fit([TRAIN]).training_influences(*TEST)
    atol = 8 * 2**-11 * float(exact.abs().max())
    np.testing.assert_allclose(few.scores[:], exact, rtol=0, atol=atol)


def test_the_store_tells_the_step_and_a_checksum(tmp_path, adam, first):
    told = first.attrs["fingerprint"][KEY]
    assert told == adam[1].told(made(adam).blocks)
    assert told["kind"] == "adam"
    assert told["step"] == 3
    assert "Gradients in coordinates of Adam after 3 steps" in shown("info", first.store.path)
    plain = run(tmp_path / "plain", DataInfInfluence(adam[0], F.cross_entropy))
    assert KEY not in plain.attrs["fingerprint"]
    assert "in coordinates of" not in shown("info", tmp_path / "plain")


def other(adam):
    """Another second moment of one parameter."""
    scales = dict(adam[1].scales)
    scales["2.bias"] = scales["2.bias"] * torch.tensor([1.0, 1.0, 1.0, 1.5])
    return adam[0], AdamPreconditioner(scales, adam[1].step)


def test_another_preconditioner_is_another_run(tmp_path, adam):
    run(tmp_path / "run", made(adam))
    with pytest.raises(StoreExistsError, match=r"preconditioner: 1 differ \('checksum'\)"):
        run(tmp_path / "run", made(other(adam)))
    with pytest.raises(StoreExistsError, match=r"preconditioner: .* None now"):
        run(tmp_path / "run", DataInfInfluence(adam[0], F.cross_entropy))
    assert run(tmp_path / "run", made(adam)).is_complete


def test_scales_of_parameters_outside_of_the_blocks_do_not_count(adam):
    blocks = {"0": ["0.weight", "0.bias"]}
    one, two = (made(a, block_structure=blocks) for a in (adam, other(adam)))
    assert adam[1].told(one.blocks) == other(adam)[1].told(two.blocks)


def test_a_query_takes_the_same_preconditioner(tmp_path, adam, first):
    query = run(tmp_path / "query", made(adam), train=first)
    close(query.scores[:], torch.as_tensor(first.scores[:]))
    assert query.attrs["fingerprint"][KEY] == first.attrs["fingerprint"][KEY]
    plain = run(tmp_path / "plain", DataInfInfluence(adam[0], F.cross_entropy), rows="zarr")
    asked = [
        (first, made(other(adam))),
        (first, DataInfInfluence(adam[0], F.cross_entropy)),
        (plain, made(adam)),
    ]
    for stored, influence in asked:
        with pytest.raises(ModelError, match=r"in other coordinates.*make a run of its own"):
            run(tmp_path / "refused", influence, train=stored)
    assert not (tmp_path / "refused").exists()


def test_sums_of_runs_in_different_coordinates(tmp_path, adam):
    parts = [run(tmp_path / str(k), made(a)) for k, a in enumerate((adam, other(adam)))]
    added = sum_runs(parts, tmp_path / "sum", [0.5, 2.0], progress=False)
    expected = 0.5 * parts[0].scores[:] + 2.0 * parts[1].scores[:]
    close(added.scores[:], torch.as_tensor(expected))
    assert KEY not in added.attrs["fingerprint"]


@pytest.mark.parametrize(
    "wrong",
    [
        "adam",
        {"kind": "adam", "step": 3},
        {"kind": "adam", "step": "3", "checksum": "00"},
        {"kind": "adam", "step": 3, "checksum": 0},
    ],
)
def test_an_entry_that_cannot_be_is_told(first, wrong):
    attributes = dict(first.attrs)
    assert not list(faults(attributes))
    said = {**attributes["fingerprint"], KEY: wrong}
    (fault,) = faults(sealed_attributes({**attributes, "fingerprint": said}))
    assert fault.startswith("fingerprint: preconditioner is")
