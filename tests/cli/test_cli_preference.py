"""`pydvl-datainf run` on pairs of preferences, against the formula."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import dense
from jobs import done, run
from pydvl_datainf import InfluenceRun
from pydvl_datainf.jobfile import reference
from tuned import log_probability, pairs, write_lines

pytestmark = pytest.mark.slow


@pytest.fixture
def preference(tuned, tmp_path):
    write_lines(tmp_path / "train.jsonl", pairs(8))
    write_lines(tmp_path / "test.jsonl", pairs(3))
    return {
        "task": "preference",
        "model": str(tuned.causal),
        "adapter": str(tuned.causal_adapter),
        "train": "train.jsonl",
        "test": "test.jsonl",
        "out": "out.zarr",
        "device": "cpu",
        "beta": 0.3,
        "max_tokens": 100,
    }


def test_preferences(preference, tuned, tmp_path):
    done(tmp_path, preference)
    stored = InfluenceRun(tmp_path / "out.zarr")
    base = AutoModelForCausalLM.from_pretrained(tuned.causal).double()
    model = PeftModel.from_pretrained(base, tuned.causal_adapter, is_trainable=True).eval()
    columns = stored.metadata("train")
    with torch.no_grad(), model.disable_adapter():
        exact = [log_probability(model, p["prompt"], p["chosen"]).item() for p in pairs(8)]
    np.testing.assert_allclose(columns["ref_chosen_logps"], exact, rtol=1e-5)
    names = [name for name, p in model.named_parameters() if p.requires_grad]

    def rows(side, data):
        found = []
        for i, pair in enumerate(data):
            ratios = [
                log_probability(model, pair["prompt"], pair[kind])
                - float(stored.metadata(side)[f"ref_{kind}_logps"][i])
                for kind in ("chosen", "rejected")
            ]
            loss = torch.nn.functional.softplus(-0.3 * (ratios[0] - ratios[1]))
            grads = torch.autograd.grad(loss, [model.get_parameter(name) for name in names])
            found.append(dict(zip(names, (g.flatten() for g in grads), strict=True)))
        return {name: torch.stack([row[name] for row in found]).double() for name in names}

    g, v = rows("train", pairs(8)), rows("test", pairs(3))
    total = sum(
        v[name] @ dense.datainf_matrix(g[name], stored.damping[block]) @ g[name].T
        for block, (name,) in stored.attrs["fingerprint"]["blocks"].items()
    )
    scores = torch.from_numpy(stored.scores[...]).double()
    torch.testing.assert_close(scores, total, rtol=0, atol=2e-5 * float(total.abs().max()))


def test_what_the_reference_says_is_computed_once(preference, tmp_path, monkeypatch):
    done(tmp_path, preference)
    before = InfluenceRun(tmp_path / "out.zarr").attrs

    def never(*arguments):
        raise AssertionError("computed again")

    monkeypatch.setattr(reference, "reference_log_probabilities", never)
    done(tmp_path, preference)
    assert InfluenceRun(tmp_path / "out.zarr").attrs == before
    result = run(tmp_path, preference, "--overwrite")  # perhaps of another model
    assert str(result.exception) == "computed again"


def test_what_the_reference_said_of_other_data_is_not_used(preference, tmp_path):
    done(tmp_path, preference)
    write_lines(tmp_path / "train.jsonl", pairs(9))
    result = run(tmp_path, preference)
    assert result.exit_code == 1
    assert "holds another run" in result.stderr
    done(tmp_path, preference, "--overwrite")
    columns = InfluenceRun(tmp_path / "out.zarr").metadata("train")
    assert len(columns["ref_chosen_logps"]) == 9


def test_preferences_that_are_conversations(preference, tmp_path):
    def turns(pair, kind):
        said = {"role": "user", "content": pair["prompt"]}
        return [said, {"role": "assistant", "content": pair[kind]}]

    for name, count in (("train", 8), ("test", 3)):
        records = [
            {kind: turns(pair, kind) for kind in ("chosen", "rejected")} for pair in pairs(count)
        ]
        write_lines(tmp_path / f"{name}.jsonl", records)
    shown = done(tmp_path, preference, "--dry-run")
    assert "Training samples 8" in shown
    done(tmp_path, preference)
    texts = InfluenceRun(tmp_path / "out.zarr").metadata("test")
    assert texts["chosen"][1] == "user: What is 1 plus 1?\nassistant:  It is 2."
