"""`pydvl-datainf run` on classes: trained heads, and labels by name or number."""

import datasets
import numpy as np
import pytest
from transformers import BertConfig

from commands import done, failed
from jobs import changed, reviews
from pydvl_datainf import InfluenceRun, ModelError
from pydvl_datainf.jobfile import texts
from pydvl_datainf.jobfile.schema import Job
from tuned import tokenizer

pytestmark = pytest.mark.slow


def test_the_trained_head_is_left_out_or_in_and_the_result_says_so(classification):
    for parameters, is_in, count in (("adapters", False, 8), ("adapters+heads", True, 9)):
        changed(classification, parameters=parameters, out=f"{parameters}.zarr")
        done("run", classification / "job.yaml", "--no-progress")
        run = InfluenceRun(classification / f"{parameters}.zarr")
        told = run.metadata("run")
        assert told["heads trained with the adapter"] == ["classifier"]
        assert told["heads take part"] is is_in
        assert len(run.damping) == count
        assert run.metadata("test")["label"].tolist() == ["good", "bad", "good"]
    shown = done("run", classification / "job.yaml", "--dry-run", "--no-progress")
    assert "Heads classifier take part" in shown


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_labels_that_are_stored_as_numbers_go_by_their_names(classification, kind):
    done("run", classification / "job.yaml", "--no-progress")
    verdict = datasets.ClassLabel(names=["good", "bad"])  # the job has them the other way round
    for side, count in (("train", 15), ("test", 3)):
        data = datasets.Dataset.from_list(reviews(count)).cast_column("verdict", verdict)
        data = data.add_column("shown", data["verdict"]).cast_column("shown", verdict)
        data.save_to_disk(classification / f"{side}.folder")
        data.to_parquet(classification / f"{side}.parquet")
    columns = {"text": "review", "label": "verdict", "show": ["shown"]}
    files = {side: f"{side}.{kind}" for side in ("train", "test")}
    changed(classification, columns=columns, out="named.zarr", **files)
    done("run", classification / "job.yaml", "--no-progress")
    text, named = (InfluenceRun(classification / f"{name}.zarr") for name in ("out", "named"))
    np.testing.assert_array_equal(named.scores[...], text.scores[...])
    for name in ("label", "shown"):
        assert named.metadata("test")[name].tolist() == ["good", "bad", "good"]
    changed(classification, labels=["awful", "good"], out="unknown.zarr")
    message = failed(2, "run", classification / "job.yaml", "--no-progress")
    assert "row 1: label 'bad' is none of" in " ".join(message.split())


@pytest.mark.parametrize(
    ("id2label", "label2id"),
    [
        ({0: "bad", 1: "good"}, None),
        ({0: "LABEL_0", 1: "LABEL_1"}, {"bad": 0, "good": 1}),
        ({0: "bad", 1: "good"}, {"bad": 0, "good": 1}),
    ],
)
def test_names_of_outputs_from_either_table(id2label, label2id):
    config = BertConfig(id2label=id2label, label2id=label2id)
    job = Job(task="sequence-classification", model="m", train="t", test="t", out="o")
    encoder = texts.encoder_of(job, tokenizer(), config)
    assert [encoder.label_ids[name] for name in ("bad", "good")] == [0, 1]


def test_tables_of_outputs_that_contradict_each_other_are_refused():
    config = BertConfig(id2label={0: "bad", 1: "good"}, label2id={"bad": 1, "good": 0})
    job = Job(task="token-classification", model="m", train="t", test="t", out="o")
    with pytest.raises(ModelError, match=r"contradicts itself: id2label .*config\.json"):
        texts.encoder_of(job, tokenizer(), config)
