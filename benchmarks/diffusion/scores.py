"""Scores of n training pictures for m queries, (m, n), by each method; large = helpful."""

from collections.abc import Sequence

import torch
from borrowed import methods
from denoiser import ANY
from pictures import Batch, Pictures
from torch import Tensor, nn
from tqdm.auto import tqdm

from pydvl_datainf import DataInfInfluence, Denoising
from pydvl_datainf.evaluation import relative_influence

Scores = methods.Scores


def by_gradients(
    model: nn.Module, objective: Denoising, train: list[Batch], queries: dict[str, list[Batch]]
) -> dict[str, dict[str, Scores]]:
    """For each set of queries the scores of DataInf and of all that needs the same gradients."""
    influence = DataInfInfluence(model, objective, rows="memory", progress=True).fit(train)
    own = influence.self_influences().double().numpy()
    G, found = _rows(influence, train), {}
    for name, batches in queries.items():
        V = _rows(influence, batches)
        parts = [influence.training_influences(b) for b in tqdm(batches, "DataInf", unit="batch")]
        scores = torch.cat(parts).double().numpy()
        found[name] = {"DataInf": scores, "Relative DataInf": relative_influence(scores, own)}
        found[name] |= methods.hessian_free(V, G, influence.damping)
        found[name]["Exact inverse"] = methods.exact(V, G, influence.damping)
    return found


def _rows(influence: DataInfInfluence, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """For each block the gradients of all samples' losses as rows."""
    parts = [influence.loss_gradients_by_block(b) for b in tqdm(batches, "Rows", unit="batch")]
    return {block: torch.cat([part[block] for part in parts]) for block in parts[0]}


def by_similarity(model: nn.Module, train: Pictures, query: Pictures) -> dict[str, Scores]:
    """Cosines of the model's middle block, and of the pixels (0 = black)."""
    states = [middle_states(model, pictures) for pictures in (query, train)]
    pixels = [(pictures.pixels + 1).flatten(1) for pictures in (query, train)]
    return {
        "RepSim, middle block": methods.state_similarity(*states),
        "Pixel cosine": methods.state_similarity(*pixels),
    }


@torch.no_grad()
def middle_states(model: nn.Module, pictures: Pictures) -> Tensor:
    """The middle block's output for pictures without noise, averaged over positions, (n, 64)."""
    kept = []
    block = model.get_submodule("base_model.model.mid_block")
    handle = block.register_forward_hook(lambda _block, _args, out: kept.append(out.mean((2, 3))))
    n = len(pictures)
    try:
        model(pictures.patches, torch.zeros(n), class_labels=torch.full((n,), ANY))
    finally:
        handle.remove()
    return kept[0]
