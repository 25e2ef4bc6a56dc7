"""`quantization` and `device: spread` in jobs."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch

import dense
import tiny
from commands import done, failed
from jobs import changed
from pydvl_datainf import CausalLM, InfluenceRun
from pydvl_datainf.huggingface import AnswerEncoder, ModelFiles, TokenSamples, extra, read_records
from tuned import tokenizer

pytestmark = pytest.mark.slow


def run(folder, *options):
    done("run", folder / "job.yaml", "--no-progress", *options)
    return InfluenceRun(folder / "out.zarr")


def rows_of(model, folder, side):
    """One backward pass for each sample of the model as it was loaded."""
    encoder = AnswerEncoder(tokenizer(), 512)
    samples = [encoder.encode(r) for r in read_records(folder / f"{side}.jsonl")]
    (batch,) = TokenSamples(samples, 0).to_loader(50)
    blocks = {name: [name] for name in tiny.names_of(model)}
    rows = dense.gradients_by_block(model, CausalLM().losses, batch, blocks)
    return {name: g.double() for name, g in rows.items()}


def assert_right(stored, model, folder, bound):
    V, G = (rows_of(model, folder, side) for side in ("test", "train"))
    blocks = stored.attrs["fingerprint"]["blocks"]
    assert sorted(name for names in blocks.values() for name in names) == sorted(G)
    damping = {name: stored.damping[b] for b, names in blocks.items() for name in names}
    exact = dense.influences(V, G, G, damping)
    scores = torch.from_numpy(stored.scores[...]).double()
    torch.testing.assert_close(scores, exact, rtol=0, atol=bound * float(exact.abs().max()))


@pytest.fixture
def files(tuned):
    return ModelFiles("causal-lm", str(tuned.causal), str(tuned.causal_adapter), device="cpu")


def test_a_base_of_4_bits_and_then_of_8(folder, files):
    pytest.importorskip("bitsandbytes", reason="needs the extra [quantized]")
    changed(folder, quantization="4bit")
    model = replace(files, quantization="4bit").load()
    assert sum(p.dtype == torch.uint8 for p in model.parameters()) == 14
    assert_right(run(folder), model, folder, 2e-4)
    with pytest.raises(AssertionError, match="not close"):  # the negative control
        assert_right(InfluenceRun(folder / "out.zarr"), files.load(), folder, 2e-4)
    changed(folder, quantization="8bit")
    assert "quantization" in failed(1, "run", folder / "job.yaml", "--no-progress")


def test_a_model_that_is_spread_over_what_there_is(folder, files):
    changed(folder, device="spread")
    assert_right(run(folder), files.load(), folder, 2e-4)


def test_quantization_needs_a_package(folder, monkeypatch):
    def absent(name):
        if name == "bitsandbytes":
            raise ModuleNotFoundError(name=name)
        return import_module(name)

    monkeypatch.setattr(extra, "import_module", absent)
    changed(folder, quantization="4bit", train="absent.jsonl")  # before data is read
    message = failed(2, "run", folder / "job.yaml")
    assert "pip install 'pydvl-datainf[quantized]'" in message
    assert not (folder / "out.zarr").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantization": "4bit", "parameters": "all"}, "'parameters: all' would leave out"),
        ({"quantization": "2bit"}, "'quantization' must be '4bit', '4bit-double' or '8bit'"),
    ],
)
def test_what_does_not_go_with_quantization(folder, fields, message):
    changed(folder, **fields)
    assert message in failed(2, "run", folder / "job.yaml")
