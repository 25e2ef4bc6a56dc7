"""Scores of n training samples for m test samples, (m, n), by each method; large = helpful."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from encoding import Batch, Tokens
from generators import Sample
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor, nn
from tqdm.auto import tqdm

from pydvl_datainf import CausalLM, DataInfInfluence
from pydvl_datainf.evaluation import relative_influence

Scores = npt.NDArray[np.float64]
Rows = Mapping[str, Tensor]


def datainf(
    model: nn.Module, train: list[Batch], test: list[Batch]
) -> tuple[dict[str, Scores], dict[str, float]]:
    """DataInf with automatic damping, the same over the root of self-influence; that damping."""
    influence = DataInfInfluence(model, CausalLM(), rows="memory", progress=True).fit(train)
    parts = [influence.training_influences(batch) for batch in tqdm(test, desc="DataInf")]
    scores = _numpy(torch.cat(parts))
    relative = relative_influence(scores, _numpy(influence.self_influences()))
    return {"DataInf": scores, "Relative DataInf": relative}, influence.damping


def gradient_rows(model: nn.Module, batches: Iterable[Batch]) -> Rows:
    """For each block the gradients of all samples' losses as rows."""
    influence = DataInfInfluence(model, CausalLM())
    parts = [influence.loss_gradients_by_block(b) for b in tqdm(batches, desc="Gradients")]
    return {block: torch.cat([part[block] for part in parts]) for block in parts[0]}


def hessian_free(V: Rows, G: Rows, damping: Mapping[str, float]) -> dict[str, Scores]:
    """Σ_l v·g, the same divided by λ_l, and the cosine of whole gradients."""
    products = {block: _numpy(V[block] @ G[block].T) for block in G}
    plain = np.stack(list(products.values())).sum(0)
    v, g = (np.sqrt(sum(_numpy(x.square().sum(1)) for x in rows.values())) for rows in (V, G))
    return {
        "Hessian-free": plain,
        "Scaled Hessian-free": sum((A / damping[b] for b, A in products.items()), 0 * plain),
        "Gradient cosine": plain / np.outer(v, g),
    }


def exact(V: Rows, G: Rows, damping: Mapping[str, float]) -> Scores:
    """Σ_l (A − A (nλI + K)⁻¹ K) / λ with K = GGᵀ and A = VGᵀ, which is v (H + λI)⁻¹ g."""
    total = 0.0
    for block in tqdm(G, desc="Exact"):
        n, lam = len(G[block]), damping[block]
        K = (G[block] @ G[block].T).double()
        A = (V[block] @ G[block].T).double()
        damped = K + n * lam * torch.eye(n, dtype=K.dtype, device=K.device)
        total = total + (A - A @ torch.linalg.solve(damped, K)) / lam
    return _numpy(total)


@torch.no_grad()
def hidden_states(
    model: nn.Module, batches: Sequence[Batch], encoded: Sequence[Tokens]
) -> tuple[Tensor, Tensor]:
    """The last layer's state at the last token of each prompt, and its mean over all tokens."""
    last, means, lengths = [], [], iter(len(prompt) for prompt, _ in encoded)
    for batch in tqdm(batches, desc="Hidden states"):
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        states = model(**inputs, output_hidden_states=True, logits_to_keep=1).hidden_states[-1]
        mask = inputs["attention_mask"][..., None]
        means.append(((states * mask).sum(1) / mask.sum(1)).float())
        last.append(torch.stack([state[next(lengths) - 1] for state in states]).float())
    return torch.cat(last), torch.cat(means)


def state_similarity(test: Tensor, train: Tensor) -> Scores:
    return cosine_similarity(test.cpu().numpy(), train.cpu().numpy()).astype(np.float64)


def words_similarity(test: Sequence[Sample], train: Sequence[Sample]) -> dict[str, Scores]:
    """Cosines of bags of words: of prompts alone, and of prompts with their answers."""
    prompts = [[s.prompt for s in samples] for samples in (train, test)]
    both = [[f"{s.prompt} {s.answer}" for s in samples] for samples in (train, test)]
    return {
        "Bag of words, prompt": _bag_cosine(CountVectorizer(), *prompts),
        "Bag of words (tf-idf), prompt": _bag_cosine(TfidfVectorizer(), *prompts),
        # A token here is any run of characters between spaces: answers hold signs and capitals.
        "Bag of words, prompt and answer": _bag_cosine(
            CountVectorizer(token_pattern=r"\S+", lowercase=False), *both
        ),
    }


def _bag_cosine(vectorizer: CountVectorizer, train: Sequence[str], test: Sequence[str]) -> Scores:
    fitted = vectorizer.fit_transform(train)
    return cosine_similarity(vectorizer.transform(test), fitted)


def _numpy(tensor: Tensor) -> Scores:
    return tensor.double().cpu().numpy()
