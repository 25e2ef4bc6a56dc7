"""EK-FAC of this package beside that of kronfluence, on a small MLP in float64.

python benchmarks/peers/kronfluence_ekfac.py

Both take the given labels (kronfluence's use_empirical_fisher), or the same labels drawn from the
model, and λ = 0.1 times the mean of Λ, or one small λ for all layers. What is printed is the
largest difference of a score, relative to the largest score.
"""

from importlib.metadata import version
from itertools import pairwise
from tempfile import TemporaryDirectory

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from pydvl_datainf import EkfacInfluence, ExactInfluence
from pydvl_datainf.gradients.relabelled import DrawnLabels
from pydvl_datainf.objectives import OutputLoss

TRAIN, TEST, SIZES = 60, 7, (6, 10, 8, 3)
FLOAT64 = {"per_sample_gradient_dtype": torch.float64}


class Classification(Task):  # type: ignore[misc]
    """The cross entropy, of training and of test samples."""

    def compute_train_loss(
        self, batch: list[Tensor], model: nn.Module, sample: bool = False
    ) -> Tensor:
        """The sum over a batch, at the given labels, or at those that this package draws."""
        x, y = batch
        if sample:
            (x, y), _ = DrawnLabels(network(), OutputLoss(F.cross_entropy), 0)((x, y))
        return F.cross_entropy(model(x), y, reduction="sum")

    def compute_measurement(self, batch: list[Tensor], model: nn.Module) -> Tensor:
        """What is asked of test samples."""
        return self.compute_train_loss(batch, model)


def network() -> nn.Module:
    """An MLP with biases, in float64."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i, o in pairwise(SIZES):
        layers += [nn.Linear(i, o), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


def samples(length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels that follow from them in part."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, SIZES[0], generator=generator, dtype=torch.float64)
    return x, (x[:, :3] + torch.randn(length, 3, generator=generator).double()).argmax(1)


def theirs(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], λ: float | None, *, is_drawn: bool
) -> Tensor:
    """Scores (test, train) by kronfluence; λ = None is its heuristic, 0.1 times the mean of Λ."""
    task = Classification()
    dtypes = dict.fromkeys(
        ("activation_covariance_dtype", "gradient_covariance_dtype", "lambda_dtype"), torch.float64
    )
    factors = FactorArguments(use_empirical_fisher=not is_drawn, **dtypes, **FLOAT64)
    precise = {"precondition_dtype": torch.float64, "score_dtype": torch.float64}
    scores = ScoreArguments(damping_factor=λ, **precise, **FLOAT64)
    with TemporaryDirectory() as folder:
        model = prepare_model(network(), task)
        analyzer = Analyzer("mlp", model, task, cpu=True, disable_tqdm=True, output_dir=folder)
        data = TensorDataset(*train)
        analyzer.fit_all_factors("factors", data, per_device_batch_size=16, factor_args=factors)
        analyzer.compute_pairwise_scores(
            "scores",
            "factors",
            TensorDataset(*test),
            data,
            per_device_query_batch_size=len(test[0]),
            per_device_train_batch_size=16,
            score_args=scores,
        )
        found: Tensor = analyzer.load_pairwise_scores("scores")["all_modules"]
    return found.double()


def main() -> None:
    """Prints the differences."""
    train, test = samples(TRAIN, 1), samples(TEST, 2)
    print(f"kronfluence {version('kronfluence')}, torch {version('torch')}, {TRAIN} x {TEST}")
    for λ in (None, 1e-3):
        given, drawn = (theirs(train, test, λ, is_drawn=is_drawn) for is_drawn in (False, True))
        rule = "auto" if λ is None else λ
        ours = {
            "EK-FAC, given labels": (EkfacInfluence(network(), F.cross_entropy, rule), given),
            "EK-FAC, drawn labels": (
                EkfacInfluence(network(), F.cross_entropy, rule, labels="drawn"),
                drawn,
            ),
            "control: given for drawn": (EkfacInfluence(network(), F.cross_entropy, rule), drawn),
            "control: exact": (ExactInfluence(network(), F.cross_entropy, rule), given),
        }
        for name, (influence, right) in ours.items():
            found = influence.fit([train]).training_influences(*test)
            error = float((found - right).abs().max() / right.abs().max())
            print(f"λ {rule}, {name}: {error:.1e}")


if __name__ == "__main__":
    main()
