"""What commands say of how far their numbers may be trusted, and on which scale they are."""

import numpy as np
import pytest

import small_runs
from commands import done, failed
from pydvl_datainf.results.facts import run_facts
from pydvl_datainf.results.selection import select_samples
from pydvl_datainf.yardstick import validate

N, M = small_runs.N, small_runs.M


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A run that holds comparisons, with retrainings beside it."""
    store = tmp_path_factory.mktemp("reliability") / "run.zarr"
    run = small_runs.run(store, exact_sample=N, self_influence=True)
    waves = np.sin(np.outer(np.arange(1, M + 1), np.arange(N)))
    validate(run, lambda indices, seed: 9 + waves[:, indices].sum(1), subsets=12, progress=False)
    return run


@pytest.mark.parametrize("order", [(), ("--test", "2"), ("--by", "suspicion")])
def test_top_says_what_was_measured_of_its_order(compared, order):
    text = done("top", compared.store, *order)
    rank = compared.approximation_error.rank_correlation
    assert f"Rank correlation with the exact inverse: {rank:.2f}." in text
    lds = validate(compared, None, subsets=12, progress=False)  # all is in the bank
    told = f"against the retrainings beside it: {lds.lds:.2f} ± {lds.error:.2f}."
    assert f"Linear datamodelling score {told}" in text


def test_nothing_is_said_of_losses_nor_to_programs(compared):
    assert "correlation" not in done("top", compared.store, "--by", "loss")
    assert "correlation" not in done("top", compared.store, "--format", "jsonl")


def test_nothing_is_said_where_nothing_was_measured(tmp_path):
    small_runs.run(tmp_path / "run.zarr")
    text = done("top", tmp_path / "run.zarr")
    assert "correlation" not in text
    assert "Linear datamodelling score" not in text


def test_comparisons_are_told_to_be_of_undivided_influences(tmp_path):
    settings = {"rows": "compressed", "rank": 2, "normalize": "unit", "exact_sample": N}
    run = small_runs.run(tmp_path / "run.zarr", **settings)
    text = done("top", run.store)
    for error, digits, of in (
        (run.approximation_error, 2, "with the exact inverse"),
        (run.compression_error, 3, "of compressed rows with whole ones"),
    ):
        rank = f"{error.rank_correlation:.{digits}f}"
        assert f"Rank correlation {of}, before influences are divided: {rank}" in text
    facts = run_facts(run)["The run"]
    assert facts["Compared with the exact inverse"].endswith(", before influences are divided")
    kept = facts["Influences against those of whole rows, on a sample"]
    assert kept.endswith(", before influences are divided")


def test_suspicion_is_shown_with_its_scale(compared):
    text = done("top", compared.store, "--by", "suspicion", "--k", "1")
    average = "the average of the ranks of training loss and relative influence"
    scale = "from 1 to the number of training samples, the most suspicious"
    assert f"Suspicion is {average}, {scale}." in text
    assert 1 <= compared.suspicion().min() <= compared.suspicion().max() <= N
    assert "Suspicion is" not in done("top", compared.store, "--by", "self")


# A control: without what helps


def test_the_most_helpful_are_left_out_as_far_as_they_help(compared):
    mean = compared.mean_influence()
    order = np.argsort(-mean, kind="stable").tolist()
    helping = int((mean > 0).sum())
    assert 3 < helping < N
    for asked, count in ((3, 3), (N, helping)):
        chosen = select_samples(compared, drop_helpful=asked)
        assert chosen.dropped.tolist() == order[:count]
        assert chosen.kept.tolist() == sorted(order[count:])
        assert chosen.reason == f"among the {count} most helpful on average"


def test_select_drops_the_helpful_and_says_what_was_measured(compared, tmp_path):
    lines = [f"{i},text {i}\n" for i in range(N)]
    (tmp_path / "train.csv").write_text("".join(["id,text\n", *lines]))
    best = np.argsort(-compared.mean_influence(), kind="stable")
    args = (
        "select",
        compared.store,
        "--train",
        tmp_path / "train.csv",
        "-o",
        tmp_path / "next.csv",
    )
    assert "--keep-helpful, --drop-helpful, --drop-suspicious" in failed(2, *args)
    text = done(*args, "--drop-helpful", N)
    helping = int((compared.mean_influence() > 0).sum())
    assert f"Left out {helping}, among the {helping} most helpful on average" in text
    assert "No more of them help: the mean influence of all others is not positive." in text
    assert "Rank correlation with the exact inverse: " in text
    kept = [lines[i] for i in sorted(best[helping:].tolist())]
    assert (tmp_path / "next.csv").read_text() == "".join(["id,text\n", *kept])


QUOTED = [
    'id,text\n0,plain\n1,"with, comma"\n2,"say ""no"""\n3,"two\nlines"\n4,\n',  # what needs it
    '"id","text"\n"0","plain"\n"1","with, comma"\n"2","a"\n"3","b"\n"4",""\n',  # all
    'id,"text"\r\n0,"plain"\r\n1,"with, comma"\r\n"2",mixed\r\n3,"a"\r\n4,b\r\n',
]


@pytest.mark.parametrize("text", QUOTED)
def test_a_trainer_s_table_keeps_its_own_quotes(tmp_path, text):
    ends = "\r\n" if "\r" in text else "\n"
    run = small_runs.run(tmp_path / "run.zarr", train=small_runs.loader(5, 1, 5))
    path, out = tmp_path / "train.csv", tmp_path / "next.csv"
    path.write_text(text, newline="")
    best = sorted(np.argsort(-run.mean_influence(), kind="stable")[:3].tolist())
    done("select", run.store, "--keep-helpful", 3, "--train", path, "-o", out)
    rows = text.replace("two\nlines", "two|lines").split(ends)
    kept = ends.join([rows[0], *(rows[i + 1] for i in best), ""]).replace("two|lines", "two\nlines")
    assert out.read_bytes().decode() == kept
