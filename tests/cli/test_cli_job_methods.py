"""`pydvl-datainf run --method`: scores and errors against the dense formulas."""

import numpy as np
import pytest
import torch

import dense
from commands import done, failed
from jobs import changed
from pydvl_datainf import CausalLM, InfluenceRun
from pydvl_datainf.huggingface import (
    AnswerEncoder,
    InfluenceBuilder,
    ModelFiles,
    TokenSamples,
    read_records,
)
from tuned import sums, tokenizer, write_lines

pytestmark = pytest.mark.slow
MATRICES = {
    "datainf": dense.datainf_matrix,
    "exact": dense.exact_matrix,
    "hessian-free": lambda rows, λ: torch.eye(rows.shape[1], dtype=rows.dtype),
    "scaled-hessian-free": dense.scaled_identity,
}


@pytest.fixture(scope="module")
def plain_rows(tuned, tmp_path_factory):
    """For each side the gradients of each block, in float64."""
    files = ModelFiles("causal-lm", str(tuned.causal), str(tuned.causal_adapter), dtype="float64")
    influence, encoder = InfluenceBuilder(files, CausalLM())(), AnswerEncoder(tokenizer(), 512)
    folder = tmp_path_factory.mktemp("rows")
    samples = {
        side: read_records(write_lines(folder / f"{side}.jsonl", records))
        for side, records in (("train", sums(20)), ("test", sums(4)[::-1]))
    }
    batches = {
        side: TokenSamples([encoder.encode(r) for r in records], 0).to_loader(50)
        for side, records in samples.items()
    }
    return {side: influence.loss_gradients_by_block(next(iter(b))) for side, b in batches.items()}


@pytest.mark.parametrize(("method", "matrix"), MATRICES.items(), ids=MATRICES)
def test_a_method_by_name(folder, plain_rows, method, matrix):
    done("run", folder / "job.yaml", "--no-progress", "--method", method)
    run = InfluenceRun(folder / "out.zarr")
    V, G = plain_rows["test"], plain_rows["train"]
    damping = {block: dense.automatic_damping(g) for block, g in G.items()}
    exact = dense.influences(V, G, G, damping, matrix).numpy()
    np.testing.assert_allclose(run.scores[...], exact, rtol=0, atol=1e-5 * np.abs(exact).max())
    for other in MATRICES.keys() - {method}:  # the negative control
        wrong = dense.influences(V, G, G, damping, MATRICES[other]).numpy()
        assert np.abs(run.scores[...] - wrong).max() > 1e-2 * np.abs(wrong).max()
    assert run.metadata("run")["job"]["method"] == method
    is_compared = method in ("datainf", "scaled-hessian-free")
    assert (run.approximation_error is not None) is is_compared
    message = failed(1, "run", folder / "job.yaml", "--no-progress", "--method", other)
    assert "method: " in message


def test_the_error_of_a_job_is_that_of_the_dense_formula(folder, plain_rows):
    changed(folder, exact_sample=1000)
    done("run", folder / "job.yaml", "--no-progress")
    found = InfluenceRun(folder / "out.zarr").approximation_error
    assert (found.n, found.m) == (20, 4)
    V, G = plain_rows["test"], plain_rows["train"]
    for block, error in zip(found.blocks, found.errors, strict=True):
        λ = dense.automatic_damping(G[block])
        A, E = (V[block] @ m(G[block], λ) for m in (dense.datainf_matrix, dense.exact_matrix))
        assert error == pytest.approx(float((A - E).norm() / E.norm()), rel=1e-3)


# Passes over the training samples, and whether four test samples are compared with exact
TAKEN = {
    ("datainf", "auto"): 20 + 4 + 4,
    ("exact", "auto"): 20 + 4,
    ("hessian-free", "recompute"): 20 + 4,
    ("scaled-hessian-free", "recompute"): 2 * 20 + 4 + 4 + 20,
}


@pytest.mark.parametrize(("method", "rows"), TAKEN)
def test_a_dry_run_foretells_the_gradients_of_each_method(folder, method, rows):
    changed(folder, method=method, rows=rows)
    shown = done("run", folder / "job.yaml", "--dry-run", "--no-progress")
    assert f"Gradients {TAKEN[method, rows]}, of" in shown
    assert not (folder / "out.zarr").exists()
    done("run", folder / "job.yaml", "--no-progress")
    assert InfluenceRun(folder / "out.zarr").attrs["gradients"] == TAKEN[method, rows]


def test_the_exact_inverse_does_not_compute_rows_again(folder):
    changed(folder, rows="recompute")
    for options in ((), ("--dry-run",)):
        message = failed(2, "run", folder / "job.yaml", "--method", "exact", *options)
        assert "let 'rows' be zarr or memory" in " ".join(message.split())
