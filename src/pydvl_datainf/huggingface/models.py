"""Loading a model folder and a peft adapter."""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from pydvl_datainf.errors import DataInfError, ModelError
from pydvl_datainf.huggingface.extra import imported

Task: TypeAlias = Literal[
    "causal-lm", "preference", "seq2seq-lm", "sequence-classification", "token-classification"
]

AUTO_CLASSES: Mapping[Task, str] = {
    "causal-lm": "AutoModelForCausalLM",
    "preference": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
HEADS = ".modules_to_save."
"""In the names of what peft trains beside the adapter, heads above all."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a tuned model is, and how it is loaded.

    Args:
        task: what it does.
        model: folder, or name on the hub.
        adapter: folder of a peft adapter, or its name on the hub; None = the model itself is tuned.
        labels: names of the model's outputs, in their order; None = those of its configuration.
        dtype: of the weights: "auto" (as stored), "float32", "bfloat16", "float16" or "float64".
        attention: "sdpa", "eager" or another that transformers knows; None = its choice.
        trust_remote_code: whether code that comes with the model may run.
    """

    task: Task
    model: str
    adapter: str | None = None
    labels: tuple[str, ...] | None = None
    dtype: str = "auto"
    attention: str | None = None
    trust_remote_code: bool = False

    def tokenizer(self) -> Any:
        """Loads the tokenizer, from the adapter where it has one of its own.

        Returns:
            The tokenizer.

        Raises:
            ModelError: if there is none.
        """
        own = self.adapter is not None and Path(self.adapter, "tokenizer_config.json").exists()
        source = self.adapter if own else self.model
        with loading(f"the tokenizer of {source}"):
            return imported("transformers").AutoTokenizer.from_pretrained(
                source, trust_remote_code=self.trust_remote_code
            )

    def config(self) -> Any:
        """Loads the model's configuration, with the labels if they were given.

        Returns:
            The configuration.

        Raises:
            ModelError: if there is none, or it is an adapter's.
        """
        folder = _existing(self.model)
        if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
            raise ModelError(
                f"{self.model} is an adapter. Name it as adapter, and the model that it was tuned "
                "on as model."
            )
        with loading(f"the configuration of {self.model}"):
            config = imported("transformers").AutoConfig.from_pretrained(
                self.model, trust_remote_code=self.trust_remote_code
            )
        if self.labels is not None:
            own = [config.id2label[i] for i in sorted(config.id2label)]
            named = any(label != f"LABEL_{i}" for i, label in enumerate(own))
            if named and tuple(own) != self.labels:
                raise ModelError(
                    f"{self.model} calls its outputs {', '.join(own)}, in this order, and labels "
                    f"are {', '.join(self.labels)}. Leave labels out."
                )
            config.id2label = dict(enumerate(self.labels))
            config.label2id = {label: i for i, label in enumerate(self.labels)}
        return config

    def adapter_heads(self) -> tuple[str, ...]:
        """The modules that the adapter's training changed whole, by the names that it was given."""
        if self.adapter is None:
            return ()
        _existing(self.adapter)
        with loading(f"the configuration of {self.adapter}"):
            config = imported("peft").PeftConfig.from_pretrained(self.adapter)
        biases = getattr(config, "bias", "none")
        return (
            *(getattr(config, "modules_to_save", None) or ()),
            *(() if biases == "none" else (f"biases ({biases})",)),
        )

    def load(self) -> nn.Module:
        """Loads model and adapter.

        Returns:
            The model in evaluation mode; parameters that the adapter brought require gradients.

        Raises:
            ModelError: if files are missing, do not fit together, or need code of their own that
                is not trusted.
        """
        kind = getattr(imported("transformers"), AUTO_CLASSES[self.task])
        wanted = {} if self.attention is None else {"attn_implementation": self.attention}
        with loading(f"the model {self.model}"), quiet_transformers(), _seeded():
            model, loaded = kind.from_pretrained(
                self.model,
                config=self.config(),
                dtype=self.dtype,
                trust_remote_code=self.trust_remote_code,
                output_loading_info=True,
                **wanted,
            )
        self._set_padding(model)
        if self.adapter is not None:
            model = self._adapted(model)
        new = [name for name in sorted(loaded["missing_keys"]) if not _is_replaced(model, name)]
        if new:
            raise ModelError(
                f"{self.model} has no weights for {', '.join(new[:5])}, which {self.task} needs: "
                "they would be random. Name the folder of the tuned model, or the adapter that "
                "holds its head."
            )
        loaded_model: nn.Module = model.eval()
        return loaded_model

    def padding(self) -> int:
        """The token that fills batches: behind the mask any will do, but for some classifiers.

        Those of decoders look for the last token that is not the padding of their configuration.

        Returns:
            Its number.
        """
        config, tokenizer = self.config(), self.tokenizer()
        told = getattr(config, "pad_token_id", None)
        count = getattr(config, "vocab_size", None) or math.inf
        known = (told, tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        return int(next(token for token in known if token is not None and 0 <= token < count))

    def _set_padding(self, model: Any) -> None:
        if self.task == "sequence-classification" and model.config.pad_token_id is None:
            model.config.pad_token_id = self.padding()

    def _adapted(self, model: nn.Module) -> Any:
        peft = imported("peft")
        _existing(str(self.adapter))
        with loading(f"the adapter {self.adapter}"), warnings.catch_warnings():
            # peft asks the model by a name that transformers 5 announces to drop.
            warnings.filterwarnings(
                "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
            )
            warnings.filterwarnings("error", message=".*missing adapter keys")
            try:
                return peft.PeftModel.from_pretrained(model, self.adapter, is_trainable=True)
            except UserWarning as missing:
                raise ModelError(
                    f"The adapter {self.adapter} does not fit {self.model}, or is not whole, so "
                    f"that some of it would be random. {missing}"
                ) from missing
            except RuntimeError as error:
                if "size mismatch" not in str(error):
                    raise
                raise ModelError(
                    f"The adapter {self.adapter} was trained on a model of other sizes than "
                    f"{self.model}. If its head has another number of outputs, give the labels "
                    "by name; if tokens were added, name a model that was saved with them. "
                    f"{error}"
                ) from error


def _existing(name: str) -> Path:
    """The path of a model, which must be there unless it may be a name on the hub."""
    path = Path(name)
    if name.startswith((".", "/")) and not path.exists():
        raise ModelError(f"There is no folder {name}.")
    return path


def _is_replaced(model: nn.Module, name: str) -> bool:
    """Whether a parameter of the base model is there for show: the adapter brought its own."""
    owner = name.rpartition(".")[0]
    return any(f".{owner}{HEADS}" in own for own, _ in model.named_parameters())


@contextmanager
def _seeded() -> Iterator[None]:
    """Gives every process the same random weights: a head that an adapter replaces stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers from reporting and drawing bars while it loads a model."""
    logging: Any = imported("transformers").utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turns what goes wrong into a `ModelError`.

    Args:
        what: is loaded.

    Raises:
        ModelError: if anything is raised inside that is not ours.
        DataInfError: as it was.
    """
    try:
        yield
    except DataInfError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ModelError(f"Could not load {what}: {error}") from error
