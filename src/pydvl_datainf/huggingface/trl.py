"""Trainers of trl: which objective each has, and its pairs of answers as objectives take them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from pydvl_datainf.errors import ObjectiveError, SourceError
from pydvl_datainf.huggingface.tokens import Encoded, TokenSamples
from pydvl_datainf.objectives import (
    CausalLM,
    Objective,
    Preference,
    Reward,
    reference_log_probabilities,
)
from pydvl_datainf.objectives.preference import SIDES
from pydvl_datainf.objectives.tokens import IGNORED

LOSSES: Mapping[str, Callable[[Any], Objective]] = {
    "SFTTrainer": lambda args: CausalLM(),
    "DPOTrainer": lambda args: Preference(args.beta),
    "RewardTrainer": lambda args: Reward(),
}
"""For each trainer the objective that is its loss, where its settings are plain."""

OFF = (None, False, 0)
PLAIN: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "SFTTrainer": {"loss_type": ("nll",), "label_smoothing_factor": OFF},
    "DPOTrainer": {
        "loss_type": ("sigmoid", ["sigmoid"]),
        "loss_weights": (None, [1.0]),
        "f_divergence_type": ("reverse_kl",),
        **dict.fromkeys(("label_smoothing", "use_weighting", "ld_alpha", "sync_ref_model"), OFF),
        **dict.fromkeys(("rpo_alpha", "reference_free", "use_liger_loss"), OFF),  # of older trl
    },
    "RewardTrainer": {"center_rewards_coefficient": OFF},
}
"""For each trainer the settings that make its loss another, with the values that do not."""

REFERENCE = tuple(f"ref_{side}_logps" for side in SIDES)
NUMBERS = (*REFERENCE, "margin")
KNOWN = {"input_ids", "attention_mask", "completion_mask", *NUMBERS}
"""What trl's collators of texts make of pairs."""


@dataclass(frozen=True, slots=True)
class TrlTrainer:
    """A trainer of trl, or of a class made from one.

    Args:
        trainer: that has finished.
        kind: trl's own class.
    """

    trainer: Any
    kind: type

    @classmethod
    def of(cls, trainer: Any) -> "TrlTrainer | None":
        """Finds out whether a trainer is one; trl itself is not imported.

        Args:
            trainer: any.

        Returns:
            None where it is another, or one of trl whose loss is none of ours.
        """
        for kind in type(trainer).__mro__:
            if kind.__module__.startswith("trl.") and kind.__name__ in LOSSES:
                return cls(trainer, kind)
        return None

    @property
    def has_pairs(self) -> bool:
        """Whether a sample is a chosen and a rejected text."""
        return self.kind.__name__ != "SFTTrainer"

    @property
    def counts_questions(self) -> bool:
        """Whether the loss of a conversation is also that of what the user says in it."""
        names = getattr(self.trainer.train_dataset, "column_names", None) or ()
        only_answers = getattr(self.trainer.args, "assistant_only_loss", False)
        return not self.has_pairs and "messages" in names and not only_answers

    def objective(self) -> Objective:
        """The trainer's loss of one sample.

        Returns:
            An objective.

        Raises:
            ObjectiveError: if the loss is another; names what makes it so.
        """
        name, args = self.kind.__name__, self.trainer.args
        plain = {**PLAIN[name], "use_liger_kernel": OFF}
        told = [
            f"{setting}={value!r}"
            for setting, values in plain.items()
            if (value := getattr(args, setting, values[0])) not in values
        ]
        if getattr(self.trainer, "aux_loss_enabled", False):
            told.append("the router's auxiliary loss, which no sample has alone")
        if getattr(self.trainer, "compute_loss_func", None) is not None:
            told.append("compute_loss_func")
        told += [f"a {method} of its own" for method in self._replaced()]
        if told:
            raise ObjectiveError(
                f"The loss of this {type(self.trainer).__name__} is not the plain one of trl's "
                f"{name}: {', '.join(told)}. Pass an objective: one of ours if it is meant, or a "
                "class with losses(model, batch)."
            )
        return LOSSES[name](args)

    def _replaced(self) -> list[str]:
        """Which of the methods that compute trl's loss are not trl's."""
        own = [name for name in ("compute_loss", "_compute_loss") if hasattr(self.kind, name)]
        return [
            name
            for name in own
            if getattr(getattr(self.trainer, name), "__func__", None)
            is not getattr(self.kind, name)
        ]

    def prepared(self, data: Any) -> Any:
        """Data as the trainer takes it: texts are tokenised as its own were.

        Args:
            data: texts, or what is tokenised already.

        Returns:
            The data, tokenised.

        Raises:
            SourceError: if it is empty, or trl cannot prepare it.
        """
        names = getattr(data, "column_names", None)
        if isinstance(data, str | list | tuple) and not _are_tokens(data):
            raise SourceError(
                f"trl's trainers take a Dataset, got a {type(data).__name__}. Of a list of "
                "mappings Dataset.from_list makes one."
            )
        if not isinstance(names, list) or {"input_ids", "chosen_ids"} & set(names):
            return data
        if hasattr(data, "__len__") and not len(data):
            raise SourceError("The data set is empty.")
        trainer = self.trainer
        told = () if self.has_pairs else (False, trainer._formatting_func)  # no packing
        settings = (trainer.processing_class, trainer.args, *told, "test")
        try:
            return trainer._prepare_dataset(data, *settings)
        except (LookupError, TypeError, ValueError) as error:
            raise SourceError(
                f"trl cannot prepare data with the columns {', '.join(names)} for this trainer: "
                f"{error!r}. Call them as those of its training data are called."
            ) from error

    def pairs(self, data: Any, batch_size: int) -> TokenSamples:
        """The trainer's pairs, each as its collator cuts it, with what the reference says of them.

        Args:
            data: tokenised.
            batch_size: pairs that are shown to the reference together.

        Returns:
            Samples as `Preference` or `Reward` takes them.

        Raises:
            SourceError: if there is more than texts, the data is a stream, or the reference is
                gone.
        """
        if not hasattr(data, "__len__"):
            raise SourceError(
                f"The pairs are a stream ({type(data).__name__}), of which single ones cannot be "
                "read again. Give the trainer a Dataset."
            )
        collator = self.trainer.data_collator
        made = [_pair(collator([data[i]])) for i in range(len(data))]
        samples = TokenSamples(made, collator.pad_token_id)
        if self.kind.__name__ != "DPOTrainer" or (made and REFERENCE[0] in made[0]):
            return samples
        reference, adapter = self._reference()
        # Not by a DataLoader, which would draw from the caller's generator.
        starts = range(0, len(made), batch_size)
        batches = (samples.collate(made[start : start + batch_size]) for start in starts)
        found = reference_log_probabilities(reference, batches, adapter=adapter)
        numbers = {name: values.numpy() for name, values in found.items()}
        referenced = [
            {**sample, **{name: values[i] for name, values in numbers.items()}}
            for i, sample in enumerate(made)
        ]
        return replace(samples, samples=referenced)

    def _reference(self) -> tuple[Any, str | None]:
        """The reference, and the adapter of it that is active there."""
        model, apart = self.trainer.model, self.trainer.ref_model
        if apart is not None:
            return apart, None
        adapters = getattr(model, "peft_config", None)
        if adapters is None:
            raise SourceError(
                "The trainer's reference was computed before training and is gone, so nothing is "
                "known of other data. Give the test data to the trainer as its eval_dataset."
            )
        return model, "ref" if "ref" in adapters else None


def _are_tokens(data: Any) -> bool:
    """Whether samples that stand in no Dataset are tokenised."""
    return all(isinstance(row, Mapping) and {"input_ids", "chosen_ids"} & set(row) for row in data)


def _pair(batch: Mapping[str, Any]) -> Encoded:
    """A batch of one pair, chosen above rejected, as a sample without padding."""
    other = sorted(set(batch) - KNOWN)
    if other or len(batch["input_ids"]) != 2:
        raise SourceError(
            "Pairs are known as trl's collators make them of texts: a chosen and a rejected one. "
            f"This trainer's collator gave {len(batch['input_ids'])} texts for a pair, and beside "
            f"them {other}."
        )
    pair: dict[str, Any] = {}
    for i, side in enumerate(SIDES):
        kept = batch["attention_mask"][i].bool()
        ids = batch["input_ids"][i][kept]
        pair |= {f"{side}_input_ids": ids.tolist(), f"{side}_attention_mask": [1] * len(ids)}
        if "completion_mask" in batch:
            counts = batch["completion_mask"][i][kept].bool()
            pair[f"{side}_labels"] = torch.where(counts, ids, IGNORED).tolist()
    # As numbers of NumPy, which keep their precision in a batch.
    return pair | {name: batch[name][0].numpy()[()] for name in NUMBERS if name in batch}
