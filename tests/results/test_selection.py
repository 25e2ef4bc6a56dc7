"""Which training samples a run says to keep, against scores from the formula."""

import numpy as np
import pytest

import small_runs
from pydvl_datainf.errors import StoreError
from pydvl_datainf.results.relabelling import suggest_labels
from pydvl_datainf.results.selection import mean_on, select_samples

TEST_LABELS = ["bad", "good", "bad", "good", "odd", "bad", "good"]
TRAIN_LABELS = [["bad", "good", "odd"][i % 3] for i in range(small_runs.N)]
IDS = {"test": [f"q{i}" for i in range(small_runs.M)], "train": range(100, 100 + small_runs.N)}


@pytest.fixture(scope="module")
def oracle():
    return small_runs.oracle()


@pytest.fixture(scope="module", params=[False, True], ids=["total", "by block"])
def run(request, tmp_path_factory):
    metadata = {"test": {"label": TEST_LABELS}, "train": {"label": TRAIN_LABELS}}
    store = tmp_path_factory.mktemp("selection") / "run.zarr"
    return small_runs.run(
        store,
        metadata=metadata,
        ids=IDS,
        self_influence=True,
        by_block=request.param,
        tile=(2, 5),
    )


def ascending(values):
    return sorted(range(len(values)), key=lambda i: (values[i], i))


def test_the_most_harmful_are_left_out(run, oracle):
    mean = oracle["scores"].sum(1).mean(0)
    chosen = select_samples(run, drop_harmful=4)
    assert chosen.dropped.tolist() == ascending(mean)[:4]
    assert chosen.kept.tolist() == sorted(ascending(mean)[4:])
    small_runs.close(chosen.values, mean)
    assert chosen.reason == "among the 4 most harmful on average"


def test_samples_that_help_are_not_left_out_as_harmful(run, oracle):
    mean = oracle["scores"].sum(1).mean(0)
    harming = int((mean < 0).sum())
    assert 0 < harming < small_runs.N
    chosen = select_samples(run, drop_harmful=small_runs.N)
    assert chosen.dropped.tolist() == ascending(mean)[:harming]
    assert (mean[chosen.kept] >= 0).all()


def test_a_share_of_the_most_helpful_is_kept(run, oracle):
    mean = oracle["scores"].sum(1).mean(0)
    chosen = select_samples(run, keep_helpful=0.3)
    assert len(chosen.kept) == round(0.3 * small_runs.N) == 7
    assert set(chosen.kept.tolist()) == set(ascending(-mean)[:7])
    assert chosen.dropped.tolist() == ascending(-mean)[7:][::-1]  # the most harmful first


def test_the_most_suspicious_are_left_out(run, oracle):
    mean = oracle["scores"].sum(1).mean(0)
    relative, losses = mean / np.sqrt(oracle["selves"]), oracle["losses"]
    ranks = [sum(v <= w for v in losses) for w in losses]  # no two are equal
    ranks = [r + sum(v >= w for v in relative) for r, w in zip(ranks, relative, strict=True)]
    chosen = select_samples(run, drop_suspicious=3)
    small_runs.close(chosen.values, np.array(ranks) / 2)
    assert chosen.dropped.tolist() == ascending([-rank for rank in ranks])[:3]


@pytest.mark.parametrize(
    ("group", "positions"),
    [("q4", [4]), ("label=bad", [0, 2, 5]), ("label=odd", [4])],
)
def test_some_test_samples_count_alone(run, oracle, group, positions):
    mean = oracle["scores"].sum(1)[positions].mean(0)
    chosen = select_samples(run, drop_harmful=2, group=group)
    small_runs.close(chosen.values, mean)
    small_runs.close(mean_on(run, np.array(positions)), mean)
    assert chosen.dropped.tolist() == ascending(mean)[:2]
    assert chosen.reason == f"among the 2 most harmful on {group}"


def test_groups_of_the_run_count_by_their_label(tmp_path, oracle):
    run = small_runs.run(tmp_path / "run.zarr", query_groups=TEST_LABELS)
    chosen = select_samples(run, keep_helpful=1, group="good")
    small_runs.close(chosen.values, oracle["scores"].sum(1)[[1, 3, 6]].mean(0))


def test_suggested_labels_are_those_of_the_test_samples_that_are_harmed(run, oracle):
    scores = oracle["scores"].sum(1)
    rows = {label: [i for i, t in enumerate(TEST_LABELS) if t == label] for label in TEST_LABELS}
    found = suggest_labels(run, np.arange(small_runs.N))
    expected = []
    for k, own in enumerate(TRAIN_LABELS):
        harms = {label: scores[of, k].mean() for label, of in rows.items() if label != own}
        worst = min(harms, key=harms.get)
        expected.append(worst if harms[worst] < 0 else None)
    assert found == expected
    assert None in found
    assert len(set(found)) == 4  # so that nothing above holds by chance


def test_labels_that_both_sides_write_otherwise_are_refused(tmp_path):
    numbers = {"train": [str(i % 3) for i in range(small_runs.N)], "test": TEST_LABELS}
    metadata = {side: {"label": labels} for side, labels in numbers.items()}
    run = small_runs.run(tmp_path / "run.zarr", metadata=metadata)
    with pytest.raises(StoreError, match=r"\(0, 1, 2\) is one of the test samples' \(bad, good, o"):
        suggest_labels(run, np.array([0]))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "drop_harmful, keep_helpful, drop_helpful, drop_suspicious; got none"),
        ({"drop_harmful": 1, "keep_helpful": 1}, "got drop_harmful, keep_helpful"),
        ({"drop_harmful": 0}, "a number of the 23 training samples"),
        ({"drop_harmful": 24}, "got 24"),
        ({"drop_harmful": True}, "got True"),
        ({"keep_helpful": 1.5}, "got 1.5"),
        ({"keep_helpful": 0.01}, "makes at least one; got 0.01"),
        ({"keep_helpful": 0.0}, "got 0.0"),
        ({"drop_harmful": 1, "group": "q9"}, "ids are q0, q1, q2, q3, q4, ..."),
        ({"drop_harmful": 1, "group": "label=fine"}, "label is one of bad, good, odd"),
    ],
)
def test_what_cannot_be_meant_is_refused(run, asked, message):
    with pytest.raises(ValueError, match=message):
        select_samples(run, **asked)


def test_what_the_run_has_not_kept_is_told(tmp_path):
    run = small_runs.run(tmp_path / "run.zarr", top_k=2)
    with pytest.raises(StoreError, match=r"takes all scores\. Make the run without top_k"):
        select_samples(run, drop_harmful=1, group="1")
    with pytest.raises(StoreError, match=r"has no self-influences"):
        select_samples(run, drop_suspicious=1)
    with pytest.raises(StoreError, match="no column 'label' on both sides"):
        suggest_labels(run, np.array([0]))
    assert len(select_samples(run, drop_harmful=1).dropped) == 1
