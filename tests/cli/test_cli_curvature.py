"""Jobs whose inverse is made of the true Gauss-Newton matrix."""

import numpy as np
import pytest

from commands import done
from jobs import changed
from pydvl_datainf import CausalLM, InfluenceRun
from pydvl_datainf.huggingface import (
    AnswerEncoder,
    InfluenceBuilder,
    ModelFiles,
    TokenSamples,
    read_records,
)
from tuned import tokenizer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("method", "settings"),
    [("exact", {"curvature": "gauss-newton", "labels": "drawn"}), ("ekfac", {"labels": "drawn"})],
)
def test_a_job_is_the_fitted_model(tuned, folder, method, settings):
    changed(folder, method=method, curvature="gauss-newton", label_seed=2, rows="memory")
    shown = done("run", folder / "job.yaml", "--dry-run", "--no-progress")
    assert "Gradients 44" in shown  # 20 at given and at drawn labels, 4 of the test samples
    done("run", folder / "job.yaml", "--no-progress")
    run = InfluenceRun(folder / "out.zarr")
    told = {"labels": "drawn", "rows": 1, "label_seed": 2}
    assert run.attrs["fingerprint"]["curvature"] == told
    files = ModelFiles("causal-lm", str(tuned.causal), str(tuned.causal_adapter), dtype="float64")
    encoder = AnswerEncoder(tokenizer(), 512)
    train, test = (
        next(iter(TokenSamples([encoder.encode(r) for r in records], 0).to_loader(50)))
        for records in (read_records(folder / f"{side}.jsonl") for side in ("train", "test"))
    )
    build = InfluenceBuilder(
        files, CausalLM(), method=method, settings=settings | {"label_seed": 2}
    )
    exact = build().fit([train]).training_influences(test).numpy()
    np.testing.assert_allclose(run.scores[...], exact, rtol=0, atol=1e-4 * np.abs(exact).max())
    other = build.__class__(files, CausalLM(), method=method)().fit([train])
    wrong = other.training_influences(test).numpy()
    assert np.abs(run.scores[...] - wrong).max() > 1e-2 * np.abs(wrong).max()
