"""A job with LiSSA and a multiple of automatic damping."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

import dense
from pydvl_datainf import CausalLM, InfluenceRun
from pydvl_datainf.cli import main
from pydvl_datainf.huggingface import (
    AnswerEncoder,
    InfluenceBuilder,
    ModelFiles,
    TokenSamples,
    read_records,
)
from tuned import sums, tokenizer, write_lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:LiSSA has not converged"),
]


def run_job(folder, **fields):
    (folder / "job.yaml").write_text(json.dumps(fields))  # JSON is YAML
    return CliRunner().invoke(main, ["run", str(folder / "job.yaml"), "--no-progress"])


def test_a_job_with_lissa_and_ten_times_the_damping(tuned, tmp_path):
    files = {side: tmp_path / f"{side}.jsonl" for side in ("train", "test")}
    for (_, path), records in zip(files.items(), (sums(20), sums(4)[::-1]), strict=True):
        write_lines(path, records)
    job = {
        "task": "causal-lm",
        "model": str(tuned.causal),
        "adapter": str(tuned.causal_adapter),
        **{side: str(path) for side, path in files.items()},
        "out": "out.zarr",
        "device": "cpu",
        "method": "lissa",
        "damping_scale": 10,
        "iterations": 300,
        "tolerance": 0.005,
    }
    assert run_job(tmp_path, **job).exit_code == 0
    made = InfluenceRun(tmp_path / "out.zarr")
    places = ModelFiles("causal-lm", str(tuned.causal), str(tuned.causal_adapter), dtype="float64")
    encoder, influence = AnswerEncoder(tokenizer(), 512), InfluenceBuilder(places, CausalLM())()
    V, G = (
        influence.loss_gradients_by_block(next(iter(TokenSamples(encoded, 0).to_loader(50))))
        for side in ("test", "train")
        for encoded in [[encoder.encode(r) for r in read_records(files[side])]]
    )
    damping = {block: 10 * dense.automatic_damping(g) for block, g in G.items()}
    assert made.damping == pytest.approx(damping, rel=1e-4)
    exact = dense.influences(V, G, G, damping, dense.exact_matrix).numpy()
    np.testing.assert_allclose(made.scores[...], exact, rtol=0, atol=2e-2 * np.abs(exact).max())
    assert made.residual <= 0.005
    told = made.attrs["fingerprint"]["method settings"]
    assert told == {"iterations": 300, "tolerance": 0.005}
    assert made.metadata("run")["job"]["damping_scale"] == 10
    other = run_job(tmp_path, **{**job, "damping_scale": 11})
    assert other.exit_code == 1
    assert "damping_scale: 10.0" in other.stderr
