"""ExactInfluence with the true Gauss-Newton matrix: all classes, and drawn labels."""

import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dense
import tiny
from fitted import STRUCTURES, close
from pydvl_datainf import (
    CausalLM,
    DampingError,
    DataInfInfluence,
    ExactInfluence,
    ModelError,
    ObjectiveError,
    Seq2SeqLM,
    SequenceClassification,
    SourceError,
    TokenClassification,
    approximation_error,
)
from pydvl_datainf.gradients.relabelled import DrawnEngine, drawn
from pydvl_datainf.objectives import OutputLoss
from pydvl_datainf.objectives.own_labels import label_logits

K = 4


def network(classes=K):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, classes)).double()


def samples(length, seed, classes=K):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, classes, (length,), generator=generator)


TEST = samples(30, 2)


def exact(model=None, regularization="auto", structure="module", loss=F.cross_entropy, **settings):
    settings = {"curvature": "gauss-newton", **settings}
    return ExactInfluence(model or network(), loss, regularization, structure, **settings)


def jacobians(model, x, names):
    """The derivative of the logits of each sample, (n, K, d), by autograd, one at a time."""
    parameters = dict(model.named_parameters())
    rows = []
    for one in x:
        logits = model(one[None])[0]
        grads = [
            torch.autograd.grad(z, [parameters[n] for n in names], retain_graph=True)
            for z in logits
        ]
        rows.append(torch.stack([torch.cat([g.flatten() for g in parts]) for parts in grads]))
    return torch.stack(rows)


def gauss_newton(model, x, names):
    """(1/n) Σ_i J_iᵀ (diag(p_i) − p_i p_iᵀ) J_i."""
    J, p = jacobians(model, x, names), model(x).detach().softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("ikd,ikl,ile->de", J, inner, J) / len(x)


def influences(model, test, train, members, λ="auto", curvature=gauss_newton):
    total = 0
    order = [name for name, _ in model.named_parameters()]
    for block in members.values():
        names = [name for name in order if name in block]
        H = curvature(model, train[0], names)
        damping = 0.1 * float(H.trace()) / len(H) if λ == "auto" else λ
        inverse = torch.linalg.inv(H + damping * torch.eye(len(H)).double())
        v, g = (dense.gradients(model, F.cross_entropy, side, names) for side in (test, train))
        total = total + v @ inverse @ g.T
    return total


# All classes


@pytest.mark.parametrize("λ", ["auto", 1e-3])
@pytest.mark.parametrize("n", [1, 7, 23])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_influences_are_those_of_the_true_matrix(structure, n, λ):
    members, train = STRUCTURES[structure], samples(n, n)
    given = members if structure == "some" else structure
    influence = exact(regularization=λ, structure=given).fit([train])
    expected = influences(network(), TEST, train, members, λ)
    close(influence.training_influences(*TEST), expected, 1e-8)
    own = influences(network(), train, train, members, λ).diag()
    close(influence.self_influences(), own, 1e-8)
    assert influence.n_samples == n


def test_it_is_another_matrix_than_that_of_the_given_labels():
    """Negative control, of labels and of n: the sum over classes is divided by n alone."""
    train = samples(23, 5)
    expected = influences(network(), TEST, train, STRUCTURES["module"], 0.01)
    per_row = influences(
        network(), TEST, train, STRUCTURES["module"], 0.01, lambda *a: gauss_newton(*a) / K
    )
    found = exact(regularization=0.01).fit([train]).training_influences(*TEST)
    close(found, expected, 1e-8)
    empirical = exact(regularization=0.01, curvature="empirical").fit([train])
    for wrong in (empirical.training_influences(*TEST), per_row):
        with pytest.raises(AssertionError):
            close(found, wrong, 1e-2)


def test_automatic_damping_follows_the_matrix():
    train = samples(9, 1)
    influence = exact(damping_scale=3).fit([train])
    for block, names in STRUCTURES["module"].items():
        H = gauss_newton(network(), train[0], names)
        assert influence.damping[block] == pytest.approx(0.3 * float(H.diagonal().mean()), rel=1e-9)
    again = exact(regularization=1.0).fit([train]).with_regularization("auto", damping_scale=3)
    assert again.damping == pytest.approx(influence.damping, rel=1e-9)


def test_given_labels_do_not_matter_to_the_matrix():
    x, y = samples(9, 1)
    one, other = (exact().fit([(x, labels)]) for labels in (y, (y + 1) % K))
    close(one.influence_factors(*TEST), other.influence_factors(*TEST))


# Drawn labels


def relabelled_rows(model, batch, seed=0):
    """For each block the rows at drawn labels, as the influence keeps them."""
    influence = exact(model, labels="drawn", label_seed=seed)
    return influence.sample_rows.curvature.rows(batch)


def test_rows_are_gradients_at_labels_that_the_model_drew():
    model, batch = network(), samples(40, 6)
    rows = relabelled_rows(model, batch)
    labels = drawn(label_logits(OutputLoss(F.cross_entropy), model, batch), batch, 0)
    assert set(labels.tolist()) == set(range(K))
    assert not torch.equal(labels, batch[1])
    for block, names in STRUCTURES["module"].items():
        close(rows[block], dense.gradients(model, F.cross_entropy, (batch[0], labels), names))
    influence = exact(labels="drawn").fit([batch])
    expected = influences(
        model,
        TEST,
        batch,
        STRUCTURES["module"],
        curvature=lambda m, x, names: dense.gauss_newton(
            dense.gradients(m, F.cross_entropy, (x, labels), names)
        ),
    )
    close(influence.training_influences(*TEST), expected, 1e-8)


def test_labels_are_drawn_as_often_as_the_model_says():
    """4000 samples with the same probabilities: within four standard errors; as pairs, too."""
    model = nn.Linear(2, 3).double()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([0.1, 0.2, 0.7]).log())
    N, generator = 4000, torch.Generator().manual_seed(0)
    batch = torch.randn(N, 2, generator=generator).double(), torch.zeros(N).long()
    found = label_logits(OutputLoss(F.cross_entropy), model, batch)
    labels, p = drawn(found, batch, 0), torch.tensor([0.1, 0.2, 0.7]).double()
    shares = torch.bincount(labels, minlength=3) / N
    assert ((shares - p).abs() <= 4 * (p * (1 - p) / N).sqrt()).all()
    pairs = torch.bincount(3 * labels[:-1] + labels[1:], minlength=9) / (N - 1)
    joint = (p[:, None] * p).flatten()
    assert ((pairs - joint).abs() <= 4 * (joint * (1 - joint) / N).sqrt()).all()
    assert 0.3 < float((drawn(found, batch, 1) != labels).double().mean()) < 0.6  # 0.46


def test_on_the_average_over_draws_they_make_the_true_matrix():
    model, batch = network(), samples(3, 6)
    given = exact(model).sample_rows.engine, model, OutputLoss(F.cross_entropy)
    rows = [DrawnEngine(*given, seed).rows(batch)["2"] for seed in range(600)]
    mean = sum(dense.gauss_newton(r) for r in rows) / len(rows)
    true = gauss_newton(model, batch[0], STRUCTURES["module"]["2"])
    assert float((mean - true).norm() / true.norm()) < 4 / 600**0.5


@pytest.mark.parametrize("labels", ["all", "drawn"])
@pytest.mark.parametrize("size", [4, 1])
def test_order_batches_and_copies_do_not_matter(labels, size):
    x, y = samples(11, 1)
    whole = exact(labels=labels).fit([(x, y)])
    factors = whole.influence_factors(*TEST)
    data = TensorDataset(x, y)
    cut = exact(labels=labels, batch_size=2).fit(DataLoader(data, size))
    shuffled = DataLoader(data, size, shuffle=True, generator=torch.Generator().manual_seed(1))
    twice = [(x, y), (x.flip(0), y.flip(0))]
    others = [cut, exact(labels=labels).fit(shuffled), exact(labels=labels).fit(twice)]
    for influence in others:
        close(influence.influence_factors(*TEST), factors)
        assert influence.damping == pytest.approx(whole.damping, rel=1e-12)
    close(pickle.loads(pickle.dumps(whole)).influence_factors(*TEST), factors)
    state = torch.get_rng_state()
    exact(labels=labels).fit([(x, y)])
    assert torch.equal(torch.get_rng_state(), state)


def test_few_classes_are_summed_and_many_drawn():
    for classes, rows in ((16, 16 * 5), (17, 5)):
        batch = samples(5, 1, classes)
        made = exact(network(classes)).sample_rows.curvature.rows(batch)
        assert len(made["0"]) == rows
    assert len(exact(network(17), labels="all").sample_rows.curvature.rows(batch)["0"]) == 17 * 5


@pytest.mark.parametrize("λ", ["auto", 0.05])
@pytest.mark.parametrize("kept", ["memory", "recompute"])
@pytest.mark.parametrize("labels", ["all", "drawn"])
def test_datainf_takes_the_same_rows(labels, kept, λ):
    model, train = network(), samples(9, 1)
    p, chosen = model(train[0]).detach().softmax(1), [torch.full((9,), k) for k in range(K)]
    if_drawn = drawn(label_logits(OutputLoss(F.cross_entropy), model, train), train, 0)
    chosen, weights = {
        "all": (chosen, [(K * p[:, k]).sqrt() for k in range(K)]),
        "drawn": ([if_drawn], [torch.ones(9).double()]),
    }[labels]
    expected = 0
    for names in STRUCTURES["module"].values():
        rows = torch.cat(
            [
                w[:, None] * dense.gradients(model, F.cross_entropy, (train[0], y), names)
                for y, w in zip(chosen, weights, strict=True)
            ]
        )
        damping = {"auto": dense.automatic_damping(rows)}.get(λ, λ)
        v, g = (dense.gradients(model, F.cross_entropy, side, names) for side in (TEST, train))
        expected = expected + v @ dense.datainf_matrix(rows, damping) @ g.T
    settings = {"curvature": "gauss-newton", "labels": labels, "rows": kept}
    influence = DataInfInfluence(model, F.cross_entropy, λ, **settings)
    influence.fit([(train[0][:4], train[1][:4]), (train[0][4:], train[1][4:])])
    close(influence.training_influences(*TEST), expected, 1e-8)
    again = influence.with_regularization(1.0).with_regularization(λ)
    close(again.training_influences(*TEST), expected, 1e-8)


# Objectives


def test_a_classifier_of_texts_whatever_its_padding():
    torch.manual_seed(0)
    model = tiny.bert(num_labels=3).double().eval()
    for name, p in model.named_parameters():
        p.requires_grad_("classifier" in name)
    batch = tiny.labelled_texts(7, classes=3)
    names = tiny.names_of(model)
    objective = SequenceClassification()
    influence = exact(model, 0.1, "full", objective, max_tokens=14)
    rows = influence.sample_rows.curvature.rows(batch)[""]
    total, p = 0, model(**{k: v for k, v in batch.items() if k != "labels"}).logits.softmax(1)
    for k in range(3):
        other = batch | {"labels": torch.full((7,), k)}
        g = dense.gradients(model, tiny.classification_loss, other, names)
        total = total + (p[:, k, None] * g).T @ g
    close(rows.T @ rows / 3, total.detach())
    found = label_logits(objective, model, batch)
    padded = {k: F.pad(v, (0, 3)) if v.ndim == 2 else v for k, v in batch.items()}
    assert torch.equal(drawn(found, padded, 0), drawn(found, batch, 0))
    assert not torch.equal(drawn(found, batch, 0), drawn(found, batch, 2))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_tokens_of_answers_are_drawn_each(reduction, side):
    """Rows are √T times the gradient of a mean over T tokens, as its matrix is their mean."""
    torch.manual_seed(0)
    model = tiny.gpt2().double().eval()
    for name, p in model.named_parameters():
        p.requires_grad_("ln_f" in name or "h.1.mlp" in name)
    batch, objective = tiny.answers(5, side=side), CausalLM(reduction)
    rows = DrawnEngine(
        exact(model, 1.0, "full", objective).sample_rows.engine, model, objective, 0
    ).rows(batch)
    found = label_logits(objective, model, batch)
    chosen = found.replaced(drawn(found, batch, 0))
    kept = (batch["labels"] == -100) | ~found.counted
    assert torch.equal(chosen[kept], batch["labels"][kept])
    counts = found.counted.sum(1)
    assert len(set(counts.tolist())) > 1
    weights = counts.double().sqrt() if reduction == "mean" else counts.double()
    names = tiny.names_of(model)
    exact_rows = dense.gradients(
        model, tiny.answer_loss_of_text, batch | {"labels": chosen}, names
    )  # of the mean
    tiny.assert_rows_close(rows[""], exact_rows * weights[:, None])


def test_padding_on_either_side_draws_the_same_tokens():
    torch.manual_seed(0)
    model, batch = tiny.gpt2().double().eval(), tiny.answers(5)
    labels = drawn(label_logits(CausalLM(), model, batch), batch, 0)
    left = tiny.to_the_left(batch)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    wide = {k: F.pad(v, (2, 3), value=fill[k]) for k, v in batch.items()}
    alone = {k: v[2:3, : int(batch["attention_mask"][2].sum())] for k, v in batch.items()}
    for other in (left, wide):
        assert torch.equal(drawn(label_logits(CausalLM(), model, other), other, 0), labels)
    own = label_logits(CausalLM(), model, batch).sample_of == 2
    del alone["attention_mask"]
    found = label_logits(CausalLM(), model, alone)
    assert torch.equal(drawn(found, alone, 0), labels[own])


def test_the_logits_of_tokens_are_those_that_predict_them():
    torch.manual_seed(0)
    model, batch = tiny.gpt2().double().eval(), tiny.answers(5)
    found = label_logits(CausalLM(), model, batch)
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.detach()
    places = found.counted.nonzero()
    assert len(places) == len(found.logits) > 5
    close(found.logits, logits[places[:, 0], places[:, 1] - 1])
    counts = torch.zeros(len(places), 40).double()
    for seed in range(1500):
        counts[torch.arange(len(places)), drawn(found, batch, seed)] += 1
    p = found.logits.softmax(1)
    error = (counts / 1500 - p).abs() / (p * (1 - p) / 1500).sqrt()
    assert float(error.max()) < 5  # of 40 times as many shares
    assert float(error.square().mean()) == pytest.approx(1, abs=0.2)


def test_tags_of_tokens_are_drawn_each():
    torch.manual_seed(0)
    model, batch = tiny.bert_tokens().double().eval(), tiny.labelled_tokens(4)
    for name, p in model.named_parameters():
        p.requires_grad_("classifier" in name)
    objective = TokenClassification()
    influence = exact(model, 1.0, "full", objective)
    found = label_logits(objective, model, batch)
    chosen = batch | {"labels": found.replaced(drawn(found, batch, 0))}
    rows = dense.gradients(model, tiny.token_loss, chosen, tiny.names_of(model))
    weights = found.counted.sum(1).double().sqrt()
    tiny.assert_rows_close(influence.sample_rows.curvature.rows(batch)[""], rows * weights[:, None])
    with pytest.raises(ObjectiveError, match=r'one label a sample.*labels="drawn"'):
        exact(model, 1.0, "full", objective, labels="all").fit([batch])


# Refused


def test_settings_that_there_are_not():
    with pytest.raises(ModelError, match='must be "empirical" or "gauss-newton"'):
        exact(curvature="fisher")
    with pytest.raises(ObjectiveError, match='must be "auto", "all" or "drawn"'):
        exact(labels="some")
    with pytest.raises(ObjectiveError, match="label_seed must be a number"):
        exact(label_seed=-1)


@pytest.mark.parametrize(
    "loss",
    [
        F.mse_loss,
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.ones(K).double(), reduction="sum"),
        Seq2SeqLM(),
    ],
    ids=["squares", "smoothed labels", "weights", "translation"],
)
def test_losses_whose_labels_are_not_known(loss):
    batch = samples(3, 1)
    influence = exact(loss=loss)
    with pytest.raises(ObjectiveError, match=r'labels that a model would.*curvature="empirical"'):
        influence.sample_rows.curvature.rows(batch)


def test_labels_that_are_no_classes():
    x, y = samples(3, 1)
    for labels in (y.double(), F.one_hot(y, K).double()):
        with pytest.raises(ObjectiveError, match='curvature="empirical"'):
            exact().sample_rows.curvature.rows((x, labels))


def test_comparisons_refuse_it_early():
    with pytest.raises(SourceError, match='Compare one with curvature="empirical"'):
        approximation_error(exact().fit([samples(9, 1)]), *TEST)


def test_a_model_that_is_certain_has_no_curvature():
    """Gradients at the given labels are there, and none at those that the model would give."""
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([2000.0, -2000.0]))
    batch = torch.randn(3, 2).double(), torch.ones(3).long()
    with pytest.raises(DampingError, match="zero up to rounding"):
        exact(model).fit([batch])
    assert exact(model, 1.0).fit([batch]).is_fitted


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_class_that_the_loss_ignores_is_refused(reduction):
    loss = nn.CrossEntropyLoss(ignore_index=1, reduction=reduction)
    influence = ExactInfluence(network(), loss, curvature="gauss-newton")
    x, y = samples(3, 1)
    with pytest.raises(ObjectiveError, match="ignores a class that the model can give"):
        influence.fit([(x, torch.zeros_like(y))])  # none of which it ignores
