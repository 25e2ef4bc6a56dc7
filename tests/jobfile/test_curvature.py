"""Jobs under another curvature: what they ask of the method, and what does not go together."""

import pytest

from pydvl_datainf import JobError
from pydvl_datainf.inverse.methods import DATAINF
from pydvl_datainf.jobfile.estimate import gradients
from pydvl_datainf.jobfile.reading import read_job
from pydvl_datainf.results.plan import Plan
from pydvl_datainf.runner.worker_inputs import Description

MINIMAL = """\
task: causal-lm
model: models/base
train: train.jsonl
test: test.jsonl
out: influences.zarr
"""


def job_of(folder, text):
    path = folder / "job.yaml"
    path.write_text(MINIMAL + text, encoding="utf-8")
    return read_job(path, {})


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("method: exact\n", {}),
        ("method: exact\ncurvature: gauss-newton\n", {"curvature": "gauss-newton"}),
        (
            "method: datainf\ncurvature: gauss-newton\ncurvature_labels: drawn\nlabel_seed: 3\n",
            {"curvature": "gauss-newton", "labels": "drawn", "label_seed": 3},
        ),
        ("method: ekfac\n", {}),
        ("method: ekfac\ncurvature: gauss-newton\n", {"labels": "drawn"}),
        ("method: lissa\niterations: 10\n", {"iterations": 10}),
    ],
)
def test_what_the_method_is_given(tmp_path, text, settings):
    assert job_of(tmp_path, text).method_settings == settings


def test_jobs_of_old_are_told_as_before(tmp_path):
    assert (
        not {"curvature", "curvature_labels", "label_seed"} & job_of(tmp_path, "").as_told().keys()
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "method: lissa\ncurvature: gauss-newton\n",
            "methods datainf, exact and ekfac, and not to",
        ),
        ("curvature_labels: all\n", "'curvature_labels' belongs to 'curvature: gauss-newton'"),
        ("label_seed: 1\n", "'label_seed' belongs to 'curvature: gauss-newton'"),
        ("curvature: fisher\n", "'curvature' must be 'gauss-newton'"),
        (
            "method: ekfac\ncurvature: gauss-newton\ncurvature_labels: all\n",
            "leave 'curvature_labels' out",
        ),
        ("curvature: gauss-newton\nexact_sample: 5\n", "leave it or 'curvature' out"),
        ("curvature: gauss-newton\nrows: compressed\n", "bases of compressed rows are learned"),
    ],
)
def test_what_does_not_go_together(tmp_path, text, message):
    with pytest.raises(JobError, match=message):
        job_of(tmp_path, text)


def test_tasks_whose_loss_is_no_cross_entropy(tmp_path):
    text = MINIMAL.replace("causal-lm", "seq2seq-lm") + "curvature: gauss-newton\n"
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(JobError, match="'curvature' does not belong to task seq2seq-lm"):
        read_job(tmp_path / "job.yaml", {})


CUT = {"pieces": ((1, 3),), "test_tile": 2, "train_tile": 4, "group_tiles": 1, "span_tiles": 1}
SIZES = {"step": 4, "chunk": 4, "held": 1, "columns": 3, "part": 256, "self_tiles": 1}


@pytest.mark.parametrize(
    ("rows", "λ", "expected"),
    # In two groups of queries: rows once, and K = 3 of the inverse; or once more for each pass.
    [("zarr", {}, 1 + 3), ("recompute", {}, 2 + 2 * 3 + 3), ("recompute", {"a": 1.0}, 2 + 2 * 3)],
)
def test_gradients_that_an_estimate_counts(rows, λ, expected):
    plan = Plan(n=8, m=4, n_parameters=3, rows=rows, **CUT, **SIZES)
    model = Description(
        members={"a": ("a",)},
        widths={"a": 3},
        dtype="float32",
        fixed_damping=λ,
        n_samples=None,
        batch_size=None,
        objective="",
        model={},
        method=DATAINF,
        curvature={"labels": "all", "rows": 3},
    )
    assert gradients(plan, model) == (expected, 1)
