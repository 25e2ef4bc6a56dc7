"""The way in from existing training code: a transformers `Trainer` that has finished."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from warnings import warn

from torch import nn
from torch.utils.data import DataLoader

from pydvl_datainf.errors import ModelError, ObjectiveError, SourceError
from pydvl_datainf.huggingface.extra import imported
from pydvl_datainf.huggingface.shown import ShownLoader, shown_of
from pydvl_datainf.huggingface.trl import TrlTrainer
from pydvl_datainf.influence import METHODS, BlockwiseInfluence, Method, check_method
from pydvl_datainf.objectives import (
    CausalLM,
    ImageLayout,
    Objective,
    Seq2SeqLM,
    SequenceClassification,
    TokenClassification,
)

OBJECTIVES: Mapping[str, Callable[[], Objective]] = {
    "ForCausalLM": CausalLM,
    "LMHeadModel": CausalLM,
    "ForSequenceClassification": SequenceClassification,
    "ForImageClassification": SequenceClassification,
    "ForTokenClassification": TokenClassification,
}
"""How the names of transformers classes end, and the objective that follows from it."""


class TrainerInfluence(NamedTuple):
    """What `run_influences` takes first.

    Attributes:
        influence: of the trainer's model, not fitted.
        test: batches of the evaluation data, in its order.
        train: batches of the training data, in its order.
    """

    influence: BlockwiseInfluence
    test: DataLoader[Any]
    train: DataLoader[Any]


def influence_from_trainer(
    trainer: Any,
    objective: Objective | None = None,
    *,
    test: Any = None,
    batch_size: int | None = None,
    method: Method = "datainf",
    **settings: Any,
) -> TrainerInfluence:
    """Takes model, data and collator from a transformers `Trainer`.

        trainer.train()
        trainer.model.eval()
        run = run_influences(*influence_from_trainer(trainer), "influences.zarr")

    Trainers of trl are known too: `SFTTrainer`, `DPOTrainer` and `RewardTrainer`. The run stores
    columns of the data sets that are texts, numbers or truth values, and takes `id` as ids.

    A trainer that trained in mixed precision leaves it in its model, which is told by a warning.
    Another one tells that questions count: trl trains on all turns of a conversation
    (`assistant_only_loss=False`), so that influences on one are also those on what the user says.

    Args:
        trainer: its model must be in evaluation mode; it is not changed.
        objective: gives one loss for each sample; None = that of the model's class, where the
            trainer's loss is the model's own.
        test: test data in place of the trainer's evaluation data.
        batch_size: samples in a batch; None = as the trainer evaluates.
        method: what takes the place of each block's inverse: DataInf, the exact one, LiSSA, or
            nothing (products of gradients, plain or scaled by 1/λ).
        **settings: further arguments of `DataInfInfluence`.

    Returns:
        An influence model, and loaders of test and training data.

    Raises:
        ModelError: if the model is in training mode, or there is no such method.
        ObjectiveError: if the loss is not known from the model's class alone.
        SourceError: if there is no training or test data, its collator is random, or several
            samples share a row.
    """
    model: nn.Module = trainer.model
    _check_not_packed(trainer, with_evaluation=test is None)  # for which it is trained again
    if model.training:
        raise ModelError("The trainer's model is in training mode. Call trainer.model.eval().")
    if hasattr(model, "_original_forward"):
        warn(
            "The trainer's mixed precision is still at work in the model, so gradients are as "
            "coarse as its half precision. For more call "
            "trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False) first.",
            stacklevel=2,
        )
    check_method(method)
    objective = objective or _objective_of(trainer)
    held_out = trainer.eval_dataset if test is None else test
    if isinstance(held_out, dict):
        raise SourceError(
            f"The trainer has several evaluation datasets ({', '.join(held_out)}). Pass one of "
            "them as test."
        )
    made = TrainerInfluence(
        METHODS[method](model, objective, **settings),
        _loader(trainer, held_out, batch_size, "evaluation data; pass test"),
        _loader(trainer, trainer.train_dataset, batch_size, "training data"),
    )
    of_trl = TrlTrainer.of(trainer)
    if of_trl is not None and of_trl.counts_questions:
        warn(
            "The trainer's loss counts all turns of a conversation, so influences on a test "
            "conversation are in part about what its user asks. To score answers alone, train "
            "with assistant_only_loss=True, or ask with a ChatEncoder (pydvl_datainf.asking).",
            stacklevel=2,
        )
    return made


def _check_not_packed(trainer: Any, *, with_evaluation: bool) -> None:
    """Refuses what trl and transformers join in one row; trl does so when a trainer is built."""
    args, collator = trainer.args, getattr(trainer, "data_collator", None)
    names = ["packing", "padding_free", *(["eval_packing"] if with_evaluation else [])]
    told = ", ".join(f"{name}=True" for name in names if getattr(args, name, None))
    if told:
        strategy = getattr(args, "packing_strategy", None)
        told += f" (packing_strategy={strategy!r})" if "packing" in told and strategy else ""
        raise SourceError(
            f"The trainer joins samples in one row: {told}. There they have no losses of their "
            "own. Build the trainer again with packing=False, eval_packing=False and "
            "padding_free=False, around the model that was trained."
        )
    kind = type(collator).__name__
    if getattr(collator, "padding_free", False) or kind == "DataCollatorWithFlattening":
        raise SourceError(
            f"{kind} joins samples in one row, where they have no losses of their own. Set "
            "trainer.data_collator to one that pads, such as DataCollatorForSeq2Seq, or in trl "
            "padding_free=False."
        )


def _objective_of(trainer: Any) -> Objective:
    model = trainer.model
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    of_trl = TrlTrainer.of(trainer)
    if of_trl is not None:
        return _of_known_forward(inner, of_trl.objective())
    function = getattr(trainer.compute_loss, "__func__", None)
    theirs = function is not imported("transformers").Trainer.compute_loss
    smoothed = getattr(trainer.args, "label_smoothing_factor", 0.0) != 0
    replaced = hasattr(inner, "_loss_function")  # what setting `loss_function` leaves
    given = getattr(trainer, "compute_loss_func", None) is not None
    if theirs or smoothed or given or replaced:
        raise ObjectiveError(
            "The trainer's loss is not the model's own (compute_loss, compute_loss_func, "
            "label_smoothing_factor, or the model's loss_function). Pass an objective: one of ours "
            "if it is meant, or a class with losses(model, batch)."
        )
    name = type(inner).__name__
    if hasattr(inner, "prepare_decoder_input_ids_from_labels"):
        fitting: list[Callable[[], Objective]] = [Seq2SeqLM]
    elif ImageLayout.of(inner).tokens and name.endswith("ForConditionalGeneration"):
        fitting = [CausalLM]
    else:
        fitting = [made for ending, made in OBJECTIVES.items() if name.endswith(ending)]
    if not fitting:
        raise ObjectiveError(
            f"The task of a {name} is not known. Pass an objective: a class with "
            "losses(model, batch)."
        )
    return _of_known_forward(inner, fitting[0]())


def _of_known_forward(model: nn.Module, objective: Objective) -> Objective:
    if not type(model).forward.__module__.startswith("transformers"):
        raise ObjectiveError(
            f"{type(model).__name__} has a forward of its own, whose loss may be any. Pass an "
            f"objective: {type(objective).__name__}() if it is the usual one, or a class with "
            "losses(model, batch)."
        )
    return objective


def _loader(trainer: Any, data: Any, batch_size: int | None, what: str) -> ShownLoader:
    """The trainer's batches of `data`, unshuffled and without what the model does not take."""
    if data is None:
        raise SourceError(f"The trainer has no {what}.")
    if getattr(trainer.data_collator, "mlm", False):
        raise SourceError(
            f"{type(trainer.data_collator).__name__} masks tokens at random, so a sample has no "
            "loss of its own. Mask the data once, and use a collator that only pads."
        )
    size = batch_size or trainer.args.per_device_eval_batch_size
    of_trl = TrlTrainer.of(trainer)
    data = data if of_trl is None else of_trl.prepared(data)
    columns, ids = shown_of(data, getattr(trainer, "processing_class", None))
    if of_trl is not None and of_trl.has_pairs:
        pairs = of_trl.pairs(data, size)
        return ShownLoader(pairs, size, pairs.collate, columns, ids)
    prepared = trainer.accelerator._dataloaders  # which grows with each loader that it hands out
    count = len(prepared)
    loader = trainer.get_test_dataloader(data)
    del prepared[count:]
    return ShownLoader(loader.dataset, size, loader.collate_fn, columns, ids)
