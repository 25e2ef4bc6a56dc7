"""How each library scores the two jobs, each in its own way of calling.

An attempt takes a job and an empty folder, and gives scores, test by training samples.
"""

import copy
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"  # progress bars of dattri; read when tqdm is imported

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from jobs import MOVED, Job

BATCH = 100
LISSA_STEPS = 100
AT_ONCE = {"perceptron": 25, "lora": None}
"""Test samples with which dattri's DataInf was fastest; None is all."""

SKETCH = 256
"""Numbers that are kept of a layer's gradient where they are projected."""


def in_batches(pair: tuple[Tensor, Tensor], size: int = BATCH) -> DataLoader:
    return DataLoader(TensorDataset(*pair), size)


# This package


def ours(job: Job, _: Path, *, method: str, **settings: Any) -> Tensor:
    from pydvl_datainf.influence.by_name import METHODS

    model, objective, train, test = our_inputs(job)
    influence = METHODS[method](model, objective, job.damping, **settings)
    influence.fit(train)
    return influence.training_influences(*(test if isinstance(test, tuple) else (test,)))


def ours_in_store(job: Job, folder: Path, *, method: str, **settings: Any) -> np.ndarray:
    from pydvl_datainf import run_influences
    from pydvl_datainf.influence.by_name import METHODS

    model, objective, train, test = our_inputs(job)
    influence = METHODS[method](model, objective, job.damping)
    store = folder / "influences.zarr"
    return run_influences(influence, [test], train, store, progress=False, **settings).scores[:]


def our_inputs(job: Job) -> tuple[nn.Module, Any, list[Any], Any]:
    """Model, loss, training batches and a test batch."""
    from pydvl_datainf import CausalLM

    if job.name == "perceptron":
        return job.model, F.cross_entropy, list(in_batches(job.train)), job.test
    train, test = (
        [{"input_ids": x, "labels": y} for x, y in in_batches(pair, size)]
        for pair, size in ((job.train, BATCH), (job.test, len(job.test[0])))
    )
    return job.model.inner, CausalLM(reduction="sum"), train, test[0]


# pyDVL


def pydvl_harmonic(job: Job, _: Path, *, as_one: bool = False) -> Tensor:
    """`as_one`: all samples in one batch, and its values times the number of test samples."""
    from pydvl.influence.torch import InverseHarmonicMeanInfluence

    blocks = OrderedDict(job.blocks)
    influence = InverseHarmonicMeanInfluence(job.model, job.loss, job.damping, blocks)
    if as_one:
        return len(job.test[0]) * pydvl_scores(influence, job, len(job.train[0]))
    return pydvl_scores(influence, job)


def pydvl_direct(job: Job, _: Path) -> Tensor:
    from pydvl.influence.torch import DirectInfluence
    from pydvl.influence.torch.util import SecondOrderMode

    settings = job.damping, OrderedDict(job.blocks), SecondOrderMode.GAUSS_NEWTON
    return pydvl_scores(DirectInfluence(job.model, job.loss, *settings), job)


def pydvl_ekfac(job: Job, _: Path) -> Tensor:
    from pydvl.influence.torch import EkfacInfluence

    settings = {"update_diagonal": True, "hessian_regularization": job.damping}
    return pydvl_scores(EkfacInfluence(job.model, **settings), job)


def pydvl_scores(influence: Any, job: Job, batch: int = BATCH) -> Tensor:
    loader = in_batches(job.train, batch)
    influence = influence.fit(loader)
    factors = influence.influence_factors(*job.test)
    scores = [influence.influences_from_factors(factors, *batch) for batch in loader]
    return torch.cat(scores, 1)


# dattri


def dattri(
    job: Job, _: Path, *, method: str, at_once: int | None = None, **settings: Any
) -> Tensor:
    """All training samples are one batch, as its documentation recommends; `at_once` test ones."""
    import dattri.algorithm
    from dattri.task import AttributionTask

    def loss(parameters: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        outputs = torch.func.functional_call(job.model, parameters, (x,))
        return job.loss(outputs, y.long())  # LiSSA makes floats of labels

    task = AttributionTask(loss_func=loss, model=job.model, checkpoints=job.model.state_dict())
    attributor = getattr(dattri.algorithm, method)(task=task, **settings)
    return dattri_scores(attributor, job, at_once)


def dattri_with(job: Job, folder: Path, **settings: Any) -> Tensor:
    return dattri(job, folder, regularization=job.damping, **settings)


def dattri_ekfac(job: Job, folder: Path) -> Tensor:
    settings = {"module_name": list(job.blocks), "damping": job.damping}
    return dattri(job, folder, method="IFAttributorEKFAC", **settings)


def dattri_lissa(job: Job, folder: Path, *, scaling: float = 50.0) -> Tensor:
    """Its damping times its scaling is λ. With its default, batches of one, it diverges here."""
    settings = {"batch_size": BATCH, "recursion_depth": LISSA_STEPS, "scaling": scaling}
    settings["damping"] = job.damping / scaling
    return dattri(job, folder, method="IFAttributorLiSSA", **settings)


def dattri_logra(job: Job, folder: Path) -> Tensor:
    """Its damping is a multiple of the mean eigenvalue: 0.1 is the rule of our automatic λ.

    Its test loss is the cross entropy, whatever the task's. Gradients on the disk
    (`offload="disk"`) want pinned memory, which there is with an accelerator alone.
    """
    from dattri.algorithm import LoGraAttributor
    from dattri.task import AttributionTask

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor], _: str) -> Tensor:
        return job.loss(model(batch[0]), batch[1])

    task = AttributionTask(loss_func=loss, model=job.model, checkpoints=job.model.state_dict())
    settings = {"damping": 0.1, "proj_dim": SKETCH, "offload": "cpu", "cache_dir": str(folder)}
    return dattri_scores(LoGraAttributor(task=task, **settings), job, needs_graph=True)


def dattri_scores(
    attributor: Any, job: Job, at_once: int | None = None, *, needs_graph: bool = False
) -> Tensor:
    train = in_batches(job.train, len(job.train[0]))
    test = in_batches(job.test, at_once or len(job.test[0]))
    attributor.cache(train)
    with torch.set_grad_enabled(needs_graph):  # its examples compute scores without
        return attributor.attribute(train, test).T  # it returns training by test samples


# kronfluence


def kronfluence(job: Job, folder: Path) -> Tensor:
    """EK-FAC at the given labels."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments

    task = kronfluence_task(job)
    model = prepare_model(job.model, task)
    analyzer = Analyzer("job", model, task, cpu=True, disable_tqdm=True, output_dir=str(folder))
    train, test = (TensorDataset(*pair) for pair in (job.train, job.test))
    factors = FactorArguments(use_empirical_fisher=True)
    analyzer.fit_all_factors("factors", train, per_device_batch_size=BATCH, factor_args=factors)
    analyzer.compute_pairwise_scores(
        "scores",
        "factors",
        test,
        train,
        per_device_query_batch_size=len(test),
        per_device_train_batch_size=BATCH,
        score_args=ScoreArguments(damping_factor=job.damping),
    )
    return analyzer.load_pairwise_scores("scores")["all_modules"]


def kronfluence_task(job: Job) -> Any:
    from kronfluence.task import Task

    layers = list(job.blocks)  # before the model is frozen

    class Sums(Task):
        """The sum of the losses of a batch, at the given labels."""

        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            x, y = batch
            return job.loss(model(x), y) * len(y)

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return layers

        def get_attention_mask(self, batch: Any) -> Tensor | None:
            """The last token of a text predicts nothing."""
            if job.name == "perceptron":
                return None
            mask = torch.ones_like(batch[0])
            mask[:, -1] = 0
            return mask

    return Sums()


# bergson


def bergson_exact(job: Job, folder: Path) -> np.ndarray:
    """The second moment of each module's gradients, which it calls autocorrelation."""
    from bergson.build import build_query
    from bergson.config.config import (
        DataConfig,
        HessianConfig,
        PreprocessConfig,
        QuerySetConfig,
        ScoreConfig,
    )
    from bergson.hessians.hessian_approximations import approximate_hessians
    from bergson.score.score import score_dataset

    data, test = (DataConfig(str(folder / side)) for side in ("train", "test"))
    query = QuerySetConfig.from_data(test)
    build_query(index_config(folder / "query", data), query, PreprocessConfig())
    hessian = index_config(folder / "hessian", data)
    approximate_hessians(hessian, HessianConfig("autocorrelation", use_dataset_labels=True))
    preprocess = PreprocessConfig(hessian_path=str(folder / "hessian"))
    preprocess.inversion_cfg = inversion_config(job)
    score = ScoreConfig(query_path=str(folder / "query"))
    score_dataset(index_config(folder / "scores", data), score, preprocess)
    return bergson_scores(folder / "scores")


def bergson_ekfac(job: Job, folder: Path) -> np.ndarray:
    from bergson.config.config import (
        DataConfig,
        HessianConfig,
        HessianPipelineConfig,
        PreprocessConfig,
        QuerySetConfig,
        ScoreConfig,
    )
    from bergson.hessians.pipeline import hessian_pipeline

    data, test = (DataConfig(str(folder / side)) for side in ("train", "test"))
    settings = {"query": QuerySetConfig.from_data(test), "inversion_cfg": inversion_config(job)}
    hessian_pipeline(
        index_config(folder / "run", data),
        HessianConfig("kfac", ev_correction=True, use_dataset_labels=True),
        ScoreConfig(),
        PreprocessConfig(),
        HessianPipelineConfig(**settings),
    )
    return bergson_scores(folder / "run" / "scores")


def inversion_config(job: Job) -> Any:
    from bergson.config.config import InversionConfig

    return InversionConfig("absolute_damped_inverse", job.damping)


def index_config(run: Path, data: Any) -> Any:
    from bergson.config.config import IndexConfig

    model = str(run.parent / "model")
    return IndexConfig(str(run), model=model, data=data, loss_reduction="sum")


def write_for_bergson(job: Job, folder: Path) -> None:
    """It reads model, tokenizer and texts from the disk."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model = job.model.inner
    copy.deepcopy(model).unload().save_pretrained(folder / "base")
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "model")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})))
    tokenizer.save_pretrained(folder / "model")
    for name, (x, y) in (("train", job.train), ("test", job.test)):
        columns = {"input_ids": x.tolist(), "labels": y.tolist()}
        Dataset.from_dict(columns).save_to_disk(str(folder / name))


def bergson_scores(folder: Path) -> np.ndarray:
    from bergson.data import load_scores

    return np.array(load_scores(folder)[:]).T


# The list


def nothing(_: Job, __: Path) -> None:
    """Nothing to write."""


@dataclass(frozen=True)
class Attempt:
    """One way to get scores.

    Args:
        job: the name of the job.
        library: whose.
        what: the method.
        scores: computes them.
        formula: which one they claim to follow, as in `jobs.truth`; None = none of those.
        modules: imported before anything is measured.
        write: puts inputs into the folder, before anything is measured.
    """

    job: str
    library: str
    what: str
    scores: Callable[[Job, Path], Any]
    formula: str | None
    modules: tuple[str, ...]
    write: Callable[[Job, Path], None] = nothing


OURS = ("pydvl_datainf.influence.by_name", "pydvl_datainf")
PYDVL = ("pydvl.influence.torch",)
DATTRI = ("dattri.algorithm", "dattri.task")
KRONFLUENCE = ("kronfluence.analyzer", "kronfluence.task")
BERGSON = ("bergson", "bergson.hessians.pipeline", "bergson.score.score")
COMPRESSED = {"rows": "compressed", "rank": SKETCH}


def for_both(job: str) -> list[Attempt]:
    """What can do both jobs."""
    return [
        Attempt(job, "ours", "DataInf", partial(ours, method="datainf"), "DataInf", OURS),
        Attempt(job, "ours", "exact", partial(ours, method="exact"), "exact", OURS),
        Attempt(
            job,
            "ours",
            "exact, compressed rows",
            partial(ours, method="exact", **COMPRESSED),
            "exact",
            OURS,
        ),
        Attempt(
            job,
            "ours",
            "the same, a run into a store",
            partial(ours_in_store, method="exact", **COMPRESSED),
            "exact",
            OURS,
        ),
        Attempt(job, "ours", "EK-FAC", partial(ours, method="ekfac"), MOVED, OURS),
        Attempt(job, "pyDVL", "DataInf", pydvl_harmonic, "DataInf", PYDVL),
        Attempt(
            job,
            "pyDVL",
            "DataInf, one batch, times m",
            partial(pydvl_harmonic, as_one=True),
            "DataInf",
            PYDVL,
        ),
        Attempt(
            job,
            "dattri",
            "DataInf",
            partial(dattri_with, method="IFAttributorDataInf", at_once=AT_ONCE[job]),
            "DataInf",
            DATTRI,
        ),
        Attempt(
            job,
            "dattri",
            "EK-FAC",
            dattri_ekfac,
            "EK-FAC",
            DATTRI,
        ),
        Attempt(job, "kronfluence", "EK-FAC", kronfluence, "EK-FAC", KRONFLUENCE),
    ]


def of_hessian(what: str, scores: Callable[[Job, Path], Any]) -> Attempt:
    return Attempt("perceptron", "dattri", what, scores, "Hessian", DATTRI)


ATTEMPTS = [
    *for_both("perceptron"),
    Attempt("perceptron", "pyDVL", "exact (Direct)", pydvl_direct, "exact", PYDVL),
    Attempt("perceptron", "pyDVL", "EK-FAC", pydvl_ekfac, None, PYDVL),
    of_hessian("explicit Hessian", partial(dattri_with, method="IFAttributorExplicit")),
    of_hessian("CG, 10 steps", partial(dattri_with, method="IFAttributorCG")),
    of_hessian(f"LiSSA, {LISSA_STEPS} steps", dattri_lissa),
    of_hessian("Arnoldi, 100 steps", partial(dattri_with, method="IFAttributorArnoldi")),
    Attempt("perceptron", "dattri", "LoGra", dattri_logra, None, DATTRI),
    *for_both("lora"),
    Attempt("lora", "bergson", "exact", bergson_exact, "exact", BERGSON, write_for_bergson),
    Attempt("lora", "bergson", "EK-FAC", bergson_ekfac, "EK-FAC", BERGSON, write_for_bergson),
]
