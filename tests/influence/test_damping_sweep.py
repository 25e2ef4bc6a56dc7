"""Influences under several λ at once, against the formulas at each of them."""

import pytest
import torch
from pydvl.utils.exceptions import NotFittedException
from torch.utils.data import DataLoader, TensorDataset

import dense
from fitted import Problem, close
from pydvl_datainf import (
    DampingError,
    DataInfInfluence,
    EkfacInfluence,
    ExactInfluence,
    HessianFreeInfluence,
    LissaInfluence,
    SourceError,
)

SCALES = (0.1, 1.0, 10.0, 100.0)
COMPRESSED = {"rows": "compressed", "rank": 4, "basis_sample": 7}


def scaled(*arguments, **settings):
    return HessianFreeInfluence(*arguments, scaled=True, **settings)


KINDS = {
    DataInfInfluence: dense.datainf_matrix,
    ExactInfluence: dense.exact_matrix,
    scaled: dense.scaled_identity,
}


@pytest.mark.parametrize("n", [1, 11, 30])  # the exact inverse in the space of samples, and not
@pytest.mark.parametrize("kind", KINDS)
def test_each_is_that_of_the_formula(kind, n):
    p = Problem(KINDS[kind], n=n)
    influence = kind(p.model, p.loss, 0.02).fit([p.fitted])
    found = influence.damping_sweep(*p.test, scales=SCALES)
    assert tuple(found) == SCALES
    for scale, influences in found.items():
        close(influences, p.influences(p.test, p.fitted, 0.02 * scale))
    with pytest.raises(AssertionError):  # negative control
        close(found[1.0], found[10.0], 1e-2)
    assert influence.damping == dict.fromkeys(influence.damping, 0.02)
    close(influence.training_influences(*p.test), found[1.0])


@pytest.mark.parametrize("labels", ["given", "drawn"])
@pytest.mark.parametrize("structure", ["module", "some"])  # and with exact blocks
def test_eigenvectors_are_computed_once(monkeypatch, labels, structure):
    p = Problem(dense.exact_matrix, structure)
    members = p.members | ({"c": ["2.bias"]} if structure == "some" else {})

    def build(scale):
        given = (p.model, p.loss, "auto", members)
        return EkfacInfluence(*given, labels=labels, damping_scale=scale).fit([p.fitted])

    right = {scale: build(scale).training_influences(*p.test) for scale in SCALES}
    influence = build(1)
    monkeypatch.delattr(torch.linalg, "eigh")
    for scale, found in influence.damping_sweep(*p.test).items():
        close(found, right[scale])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (DataInfInfluence, {"rows": "recompute"}),
        (ExactInfluence, {"curvature": "gauss-newton"}),
        (LissaInfluence, {"iterations": 5000, "tolerance": 1e-11}),
        *((kind, COMPRESSED) for kind in (DataInfInfluence, ExactInfluence, scaled)),
        (LissaInfluence, {**COMPRESSED, "iterations": 5000, "tolerance": 1e-11}),
    ],
)
def test_other_rows_and_answers_that_are_iterated_for(kind, settings):
    """The oracle is the same influence at one λ, which has tests of its own."""
    p = Problem(dense.exact_matrix)
    influence = kind(p.model, p.loss, **settings).fit(p.cut([4, 4, 3]))
    for scale, found in influence.damping_sweep(*p.test, scales=(1, 10)).items():
        twin = kind(p.model, p.loss, damping_scale=scale, **settings).fit([p.fitted])
        close(found, twin.training_influences(*p.test), 1e-8)


def test_rows_are_added_up_once_for_all(monkeypatch):
    """Recomputed rows: a pass for the inverses, and one for the products, however many λ."""
    p = Problem(dense.datainf_matrix)
    influence = DataInfInfluence(p.model, p.loss, 0.1, rows="recompute").fit([p.fitted])
    rows, seen = type(influence.sample_rows.engine).rows, []

    def counted(engine, batch):
        seen.append(len(batch[0]))
        return rows(engine, batch)

    monkeypatch.setattr(type(influence.sample_rows.engine), "rows", counted)
    influence.damping_sweep(*p.test)
    assert seen == [4, 11, 11]


def test_what_cannot_be_swept():
    p = Problem(dense.exact_matrix)
    influence = ExactInfluence(p.model, p.loss)
    with pytest.raises(NotFittedException):
        influence.damping_sweep(*p.test)
    influence.fit([p.fitted])
    for scales in ((1.0, 0.0), (-1.0,), (float("nan"),)):
        with pytest.raises(DampingError, match="damping_scale must be positive"):
            influence.damping_sweep(*p.test, scales=scales)
    with pytest.raises(DampingError, match="out of the range"):
        influence.damping_sweep(*p.test, scales=(1e-320,))
    plain = HessianFreeInfluence(p.model, p.loss).fit([p.fitted])
    for one, scales in ((plain, (1.0,)), (influence, ())):
        with pytest.raises(DampingError, match="Give a method with a damping"):
            one.damping_sweep(*p.test, scales=scales)
    shuffled = DataLoader(TensorDataset(*p.fitted), 3, shuffle=True)
    with pytest.raises(SourceError, match="shuffle=False"):
        ExactInfluence(p.model, p.loss).fit(shuffled).damping_sweep(*p.test)
