"""Jobs with EK-FAC, and their reports."""

import numpy as np
import pytest

from commands import done
from jobs import changed, write_language_job
from pydvl_datainf import CausalLM, EkfacInfluence, InfluenceRun
from pydvl_datainf.huggingface import AnswerEncoder, ModelFiles, TokenSamples, read_records
from pydvl_datainf.huggingface.builder import InfluenceBuilder
from tuned import tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]


@pytest.fixture
def folder(tuned, tmp_path):
    write_language_job(tmp_path, tuned)
    changed(tmp_path, method="ekfac")
    return tmp_path


def fitted(tuned, folder):
    """The scores of the fitted model, without a job."""
    files = ModelFiles("causal-lm", str(tuned.causal), str(tuned.causal_adapter), dtype="float64")
    model = InfluenceBuilder(files, CausalLM())().model
    encoder = AnswerEncoder(tokenizer(), 512)
    train, test = (
        next(iter(TokenSamples([encoder.encode(r) for r in records], 0).to_loader(50)))
        for records in (read_records(folder / f"{side}.jsonl") for side in ("train", "test"))
    )
    return EkfacInfluence(model, CausalLM()).fit([train]).training_influences(test).numpy()


def test_a_job_gives_the_scores_of_the_fitted_model_and_a_report(tuned, folder):
    shown = done("run", folder / "job.yaml", "--dry-run", "--no-progress")
    assert "Gradients 28, of" in shown  # 20 + 4, and 4 that are compared with the exact inverse
    done("run", folder / "job.yaml", "--no-progress")
    run = InfluenceRun(folder / "out.zarr")
    assert run.attrs["gradients"] == 28
    exact = fitted(tuned, folder)
    np.testing.assert_allclose(run.scores[...], exact, rtol=0, atol=1e-4 * np.abs(exact).max())
    assert run.approximation_error.score_error > 0.01
    assert "EK-FAC" in done("info", folder / "out.zarr")
    done("report", folder / "out.zarr", "-o", folder / "report.html")
    assert "EK-FAC" in (folder / "report.html").read_text()
