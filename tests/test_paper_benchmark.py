"""benchmarks/paper: methods on given rows, published baselines, prompts, and a small run."""

import json
import re
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import dense
import tuned

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "paper"))
correlation, costs, detection, given_rows, glue, named = map(
    import_module, ("correlation", "costs", "detection", "given_rows", "glue", "named")
)


def rows(n, seed, widths=(3, 5)):
    torch.manual_seed(seed)
    return {f"b{i}": torch.randn(n, d, dtype=torch.float64) for i, d in enumerate(widths)}


def damping(G):
    return {block: dense.automatic_damping(g) for block, g in G.items()}


INVERSES = {
    "datainf": dense.datainf_matrix,
    "exact": dense.exact_matrix,
    "hessian-free": lambda rows, _: torch.eye(rows.shape[1], dtype=rows.dtype),
    "scaled-hessian-free": dense.scaled_identity,
}


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("method", INVERSES)
def test_methods_on_given_rows_are_the_formulas(method, n):
    G, V = rows(n, 0), rows(4, 1)
    found = given_rows.fitted(method, G).training_influences(*given_rows.side_by_side(V))
    expected = dense.influences(V, G, G, damping(G), INVERSES[method])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_damping_comes_in_the_order_of_the_rows():
    G = rows(5, 0, widths=range(1, 14))
    found = list(given_rows.fitted("exact", G).damping.values())
    assert found == pytest.approx(list(damping(G).values()), rel=1e-9)


def test_the_published_lissa_is_its_recursion():
    G, V = rows(7, 0), rows(4, 1)
    expected = 0
    for block, λ in damping(G).items():
        A = dense.gauss_newton(G[block]) + λ * torch.eye(G[block].shape[1], dtype=torch.float64)
        r = V[block]
        for _ in range(10):
            r = V[block] + r - r @ A
        expected = expected + r @ G[block].T
    found = given_rows.published_lissa(G, V, damping(G))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(given_rows.published_lissa(G, V, damping(G), steps=9), expected)


@pytest.mark.parametrize("n", [1, 7])
def test_loops_are_datainf(n):
    G, V = rows(n, 0), rows(1, 1)
    found = costs.loops(G, V, damping(G))
    for block, λ in damping(G).items():
        expected = (V[block] @ dense.datainf_matrix(G[block], λ))[0]
        torch.testing.assert_close(found[block], expected, rtol=1e-9, atol=1e-9)


def test_a_slope_is_the_exponent():
    assert costs.slope([1, 2, 4, 8], [3 * x**1.5 for x in (1, 2, 4, 8)]) == 1.5
    assert costs.slope([1, 2], [None, None]) is None


# Prompts


@pytest.mark.parametrize("task", named.DRAWS)
def test_classes_are_equally_large_and_no_prompt_occurs_twice(task):
    train, test = named.draw_samples(task, 20, 3, seed=0)
    assert set(Counter(s.label for s in train).values()) == {20}
    assert set(Counter(s.label for s in test).values()) == {3}
    assert len({s.prompt for s in [*train, *test]}) == 230
    assert (train, test) == named.draw_samples(task, 20, 3, seed=0)
    assert train != named.draw_samples(task, 20, 3, seed=1)[0]


def test_a_kind_of_problem_is_one_story():
    train, _ = named.draw_samples("maths", 20, 0, seed=0)
    stories = {(s.label, re.sub(r"\d+", "#", s.prompt)) for s in train}
    assert len(stories) == len({s.label for s in train}) == len({text for _, text in stories}) == 10


def test_answers_are_right():
    train, _ = named.draw_samples("maths", 20, 0, seed=0)
    for s in (s for s in train if s.label == "sum"):
        assert int(s.answer) == sum(map(int, re.findall(r"\d+", s.prompt)))
    train, _ = named.draw_samples("sentences", 20, 0, seed=0)
    for s in (s for s in train if s.label == "upper case"):
        assert s.prompt == f"Upper case: {s.answer.lower()}"


def test_quality_by_sign_and_by_size():
    train = [named.Sample("", "", label) for label in "aabb"]
    test = [named.Sample("", "", label) for label in "ab"]
    scores = np.array([[0.1, 0.2, -3.0, -4.0], [-0.1, -0.2, 3.0, 4.0]])
    assert detection.quality(scores, train, test) == {
        "auc, signed": [1.0, 0.0],
        "auc, absolute": [0.5, 0.5],
        "recall, signed": [1.0, 0.0],
        "recall, absolute": [0.5, 0.5],
    }


# Figures 1 and 2


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tuned.save_tuned(tmp_path_factory.mktemp("models")).classifier


def write_table(folder, side, count):
    lines = [f"{i} plus {i % 3}\t{i % 2}" for i in range(count)]
    (folder / "SST-2").mkdir(exist_ok=True)
    text = "\n".join(["sentence\tlabel", *lines]) + "\n"
    (folder / "SST-2" / f"{side}.tsv").write_text(text, encoding="utf-8")


def settings(folder, encoder, seed=0):
    told = {"task": "SST-2", "seed": seed, "tokens": 16}
    return told | {"glue": str(folder), "folder": str(encoder)}


def test_the_stated_share_of_labels_is_flipped(encoder, tmp_path):
    write_table(tmp_path, "train", 70)
    clean = glue.draw(settings(tmp_path, encoder), "train", 40, 0.0)
    noisy = glue.draw(settings(tmp_path, encoder), "train", 40, 0.2)
    labels = [torch.cat([b["labels"] for b in side.batches]).numpy() for side in (clean, noisy)]
    assert noisy.flipped.sum() == 8
    assert not clean.flipped.any()
    np.testing.assert_array_equal(labels[0] != labels[1], noisy.flipped)
    assert [len(batch["labels"]) for batch in noisy.batches] == [32, 8]


@pytest.mark.filterwarnings("ignore")  # LiSSA has not converged; peft's own
def test_a_small_run_writes_its_result_and_figures(encoder, tmp_path):
    write_table(tmp_path, "train", 50)
    write_table(tmp_path, "dev", 20)
    arguments = ["--glue", tmp_path, "--model", encoder, "--layers", "all", "--tasks", "SST-2"]
    arguments += ["--small", "--out", tmp_path / "out"]
    result = CliRunner().invoke(correlation.main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "correlation.json").read_text())
    assert [run["rank"] for run in report["runs"]] == [1, 4]
    assert report["options"]["train"] == 40
    assert str(tmp_path) not in json.dumps(report)
    first, second = report["runs"]
    assert set(first["correlation"]) == set(first["auc"]) - {"exact", "training loss"}
    assert all(-1 <= r <= 1 for run in report["runs"] for [r, _] in run["correlation"].values())
    assert set(second["auc"]) - set(first["auc"]) >= {"exact, self", "datainf, suspicion"}
    figures = import_module("figures")
    made = CliRunner().invoke(figures.main, [str(tmp_path / "out")])
    assert made.exit_code == 0, made.output
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == {"correlation.png", "flips.png"}
