"""Second moments of layers, for EK-FAC: over spans of training tiles, then over the spans."""

from math import ceil

import torch
from torch import Tensor

from pydvl_datainf.inverse.ekfac import Ekfac, check_moments
from pydvl_datainf.inverse.method import Method
from pydvl_datainf.results.arrays import MOMENTS, WORK
from pydvl_datainf.results.layout import moments_name
from pydvl_datainf.results.plan import Plan, Tiling
from pydvl_datainf.runner.batched_data import cut_batches
from pydvl_datainf.runner.tasks.context import Context, device_of
from pydvl_datainf.runner.tasks.rows import Chunks
from pydvl_datainf.runner.worker_inputs import Inputs

SPANS = 8
"""Spans at most: each leaves all moments on the disk, and a stop loses those of one."""


def moment_spans(plan: Plan) -> Tiling:
    """The training tiles, cut into spans."""
    return Tiling(len(plan.train), ceil(len(plan.train) / SPANS))


def moment_sums_name(block: int) -> str:
    """The array of the moments of the spans, by the number of the block."""
    return f"{WORK}/{MOMENTS}/{block}"


def write_moments(span: int, context: Context, inputs: Inputs) -> None:
    """The moments of all layers over a span of training tiles."""
    spec, tiles = context.spec, moment_spans(context.spec.plan)[span]
    assert inputs.train is not None  # a query has those of its rows
    assert spec.train is not None
    train, index = inputs.train, spec.train
    wanted = slice(spec.plan.train[tiles.start].start, spec.plan.train[tiles.stop - 1].stop)
    context.check_model(inputs)
    cuts = cut_batches(index.lengths, wanted, spec.plan.step)
    batches = (context.read_batch(inputs, train, index, cut) for cut in cuts)
    sums = inputs.influence_of_layers.layer_moments(batches)
    for b, block in enumerate(spec.widths):
        if block in spec.layers:
            o, i, _ = spec.layers[block]
            A, S = sums.get(block, (torch.zeros(i, i), torch.zeros(o, o)))
            check_moments(A, S)
            flat = torch.cat([A.flatten(), S.flatten()]).double().cpu().numpy()
            context.store.write(moment_sums_name(b), slice(span, span + 1), flat[None])


def write_moment_sums(b: int, context: Context, inputs: Inputs) -> None:
    """The moments of the layer of a block, as the sum over the spans, in their order."""
    first, *others = (slice(s, s + 1) for s in range(len(moment_spans(context.spec.plan))))
    total = context.store.read(moment_sums_name(b), first)[0]
    for span in others:
        total += context.store.read(moment_sums_name(b), span)[0]
    check_moments(torch.from_numpy(total))
    context.store.write(moments_name(b), ..., total)


def method_of(block: str, context: Context, inputs: Inputs | None) -> Method:
    """The method in a block: that of the run, with the block's eigenbasis where it has one."""
    spec = context.spec
    if block not in spec.layers:
        return spec.method
    o, i, has_bias = spec.layers[block]
    flat = context.read_rows(moments_name(list(spec.widths).index(block)), ...)
    moments: Tensor = torch.tensor(flat, device=device_of(inputs))  # copied: see `read_matrix`
    A, S = moments[: i * i].reshape(i, i), moments[i * i :].reshape(o, o)
    return Ekfac.of(A, S, has_bias=has_bias)


def ready_method(block: str, chunks: Chunks, context: Context, inputs: Inputs | None) -> Method:
    """The same, with what it takes from the rows computed once for all vectors."""
    method = method_of(block, context, inputs)
    return method.knowing(chunks()) if isinstance(method, Ekfac) else method
