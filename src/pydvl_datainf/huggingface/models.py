"""Loading a model folder and a peft adapter."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from pydvl_datainf.errors import DataInfError, ModelError
from pydvl_datainf.huggingface.extra import imported
from pydvl_datainf.huggingface.folders import AGAIN, FROM_HUB, PICKLE, absence, check_folder
from pydvl_datainf.huggingface.placement import Quantization, placement
from pydvl_datainf.quantised import forbid_packing

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
CLASSIFIERS = ("sequence-classification", "token-classification")

ADAPTER_WEIGHTS = "adapter_model.safetensors"
HEADS = ".modules_to_save."
"""In the names of what peft trains beside the adapter, heads above all."""

INIT = "init_lora_weights"
CONVERT = (
    "Where the adapter was tuned, save it as plain LoRA: save_pretrained(folder, "
    "path_initial_model_for_weight_conversion=initial), initial being where it was saved before "
    "its tuning. Or save the base weights as they are under the adapter, and name them as model "
    f"beside an adapter_config.json that says {INIT}: true."
)


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
        trust_pickle: whether weights may be pickles, where there are no safetensors.
        device: where weights are loaded that cannot be moved afterwards: quantised ones, or, by
            "spread", those of a model that is spread over all cards.
        quantization: "4bit", "4bit-double" or "8bit", by bitsandbytes; None = weights as they are
            stored.
    """

    task: Task
    model: str
    adapter: str | None = None
    labels: tuple[str, ...] | None = None
    dtype: str = "auto"
    attention: str | None = None
    trust_remote_code: bool = False
    trust_pickle: bool = False
    device: str = "auto"
    quantization: Quantization | None = None

    @property
    def tuned(self) -> str:
        """Where what was tuned is: the adapter, or the model."""
        return self.model if self.adapter is None else self.adapter

    def check(self) -> None:
        """Looks through the folders of model and adapter; names on the hub are left to loading.

        Raises:
            ModuleNotFoundError: if weights are to be quantised, and bitsandbytes is not there.
            ModelError: if a folder or file is missing, damaged, or a pickle that is not trusted.
        """
        if self.quantization is not None:
            imported("bitsandbytes")
        if (folder := _existing(self.model)).exists():
            self._check_is_no_adapter(folder)
            # Beside an adapter's configuration transformers takes the base that it names.
            is_tuned = (folder / "adapter_config.json").exists()
            check_folder(folder, "adapter_model" if is_tuned else "model", self.trust_pickle)
        if self.adapter is not None and (folder := _existing(self.adapter)).exists():
            check_folder(folder, "adapter_model", self.trust_pickle)

    def tokenizer(self) -> Any:
        """Loads the tokenizer, from the adapter where it has one of its own.

        Returns:
            The tokenizer.

        Raises:
            ModelError: if there is none.
        """
        source = self.model
        if self.adapter is not None and Path(self.adapter, "tokenizer_config.json").exists():
            source = self.adapter
        with loading("the tokenizer of", source, "tokenizer.json", "tokenizer_config.json"):
            tokenizer = imported("transformers").AutoTokenizer.from_pretrained(
                source, trust_remote_code=self.trust_remote_code
            )
            tokenizer("", truncation=True)  # some damage shows only here
        return tokenizer

    def config(self) -> Any:
        """Loads the model's configuration, with the labels if they were given.

        Returns:
            The configuration.

        Raises:
            ModelError: if there is none, it is an adapter's, or it names weights that are pickles.
        """
        self._check_is_no_adapter(_existing(self.model))
        with loading("the configuration of", self.model, "config.json"):
            config = imported("transformers").AutoConfig.from_pretrained(
                self.model, trust_remote_code=self.trust_remote_code
            )
        weights = str(getattr(config, "transformers_weights", ""))
        if weights.endswith(".bin") and not self.trust_pickle:
            raise ModelError(f"config.json of {self.model} names the weights {weights}, {PICKLE}")
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
        with loading("the configuration of", self.adapter, "adapter_config.json"):
            config = imported("peft").PeftConfig.from_pretrained(self.adapter)
            biases = getattr(config, "bias", "none")
            heads = _held_of(_saved_in(config), Path(self.adapter, ADAPTER_WEIGHTS))
            return *heads, *(() if biases == "none" else (f"biases ({biases})",))

    def load(self) -> nn.Module:
        """Loads model and adapter.

        Returns:
            The model in evaluation mode; parameters that the adapter brought require gradients.

        Raises:
            ModelError: if files are missing, do not fit together, or need code of their own that
                is not trusted.
        """
        self.check()
        with _seeded():
            model, missing = self.pretrained(self.model)
        if self.adapter is not None:
            model = self._adapted(model)
        new = [name for name in sorted(missing) if not _is_replaced(model, name)]
        if new:
            raise ModelError(
                f"{self.model} has no weights for {', '.join(new[:5])}, which {self.task} needs: "
                "they would be random. Name the folder of the tuned model, or the adapter that "
                "holds its head."
            )
        loaded_model: nn.Module = model.eval()
        return loaded_model

    def pretrained(self, source: str) -> tuple[Any, Sequence[str]]:
        """Loads weights, without the adapter, into a model of this configuration.

        Args:
            source: folder of the weights, or their name on the hub.

        Returns:
            The model, and the names of weights that are not there: these are drawn from torch's
            global generator.
        """
        kind = getattr(imported("transformers"), AUTO_CLASSES[self.task])
        wanted = {} if self.attention is None else {"attn_implementation": self.attention}
        placed = placement(self.device, self.quantization, self._whole_heads())
        with loading("the model", source, "config.json"), quiet_transformers():
            model, loaded = kind.from_pretrained(
                source,
                config=self.config(),
                dtype=self.dtype,
                trust_remote_code=self.trust_remote_code,
                use_safetensors=None if self.trust_pickle else True,
                output_loading_info=True,
                **wanted,
                **placed,
            )
        forbid_packing(model)  # which generating an answer would do
        self._set_padding(model)
        return model, loaded["missing_keys"]

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

    def _whole_heads(self) -> tuple[str, ...]:
        """Heads of a classifier that are not quantised; others are known to transformers."""
        # bitsandbytes would be given what the base does not have.
        if self.quantization is None or self.adapter is None or self.task not in CLASSIFIERS:
            return ()
        with loading("the configuration of", self.adapter, "adapter_config.json"):
            return _saved_in(imported("peft").PeftConfig.from_pretrained(self.adapter))

    def _check_is_no_adapter(self, folder: Path) -> None:
        if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
            raise ModelError(
                f"{self.model} is an adapter. Name it as adapter, and the model that it was tuned "
                "on as model."
            )

    def _set_padding(self, model: Any) -> None:
        if self.task == "sequence-classification" and model.config.pad_token_id is None:
            model.config.pad_token_id = self.padding()

    def _adapted(self, model: nn.Module) -> Any:
        peft = imported("peft")
        source = str(self.adapter)
        _check_on_hub(source, self.trust_pickle)
        check_initialisation(source)
        with loading("the adapter", source, "adapter_config.json"), warnings.catch_warnings():
            # peft asks the model by a name that transformers 5 announces to drop.
            warnings.filterwarnings(
                "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
            )
            warnings.filterwarnings("error", message=".*missing adapter keys")
            # Tuned prompts are loaded as what they became, and not to be trained further.
            prompts = peft.PeftConfig.from_pretrained(self.adapter).is_prompt_learning
            try:
                return peft.PeftModel.from_pretrained(model, self.adapter, is_trainable=not prompts)
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


def _saved_in(config: Any) -> tuple[str, ...]:
    """Modules that are saved whole with an adapter, by its configuration."""
    return tuple(getattr(config, "modules_to_save", None) or ())


def _held_of(heads: Sequence[str], weights: Path) -> tuple[str, ...]:
    """Those that are in an adapter's weights, where these are here: peft lists usual names too."""
    if not weights.is_file():
        return tuple(heads)
    with imported("safetensors").safe_open(weights, "pt") as file:
        names = [f".{name}" for name in file.keys()]  # noqa: SIM118 - it is no mapping
    return tuple(head for head in heads if any(f".{head}." in name for name in names))


def check_initialisation(adapter: str) -> None:
    """Warns of adapters that peft loads as another model than the one that was tuned.

    Some initialisations take their matrices out of the base weights. peft does that again when it
    loads them, which leaves what was tuned only if the second time gives the same.

    Args:
        adapter: folder, or name on the hub.

    Raises:
        ModelError: if peft cannot load the adapter at all, or its configuration is damaged.
    """
    with loading("the configuration of", adapter, "adapter_config.json"):
        made = str(getattr(imported("peft").PeftConfig.from_pretrained(adapter), INIT, True))
    if made == "corda":
        raise ModelError(
            f"The adapter {adapter} was made with {INIT}=corda, from data that peft needs again to "
            f"load it. {CONVERT}"
        )
    if made.startswith("pissa_niter_") or made == "lora_ga":
        warnings.warn(
            f"The adapter {adapter} was made with {INIT}={made}, which changes the base weights "
            "in a way that peft does not repeat when it loads them: the model that is loaded is "
            f"not the one that was tuned, and its influences are others. {CONVERT}",
            stacklevel=2,
        )


def _check_on_hub(adapter: str, trust_pickle: bool) -> None:
    """Checks that an adapter on the hub has safetensors: peft takes a pickle where it has none."""
    if not trust_pickle and not Path(adapter).exists():
        with loading("safetensors of the adapter", adapter):
            imported("huggingface_hub").hf_hub_download(adapter, ADAPTER_WEIGHTS)


def _existing(name: str) -> Path:
    """The path of a model, which must be there unless it may be a name on the hub."""
    path = Path(name)
    if name.startswith((".", "/")) and not path.exists():
        raise ModelError(absence(path))
    return path


def _is_replaced(model: nn.Module, name: str) -> bool:
    """Whether a parameter of the base model is there for show: the adapter brought its own."""
    owner = name.rpartition(".")[0]
    return any(f".{owner}{HEADS}" in own for own, _ in model.named_parameters())


@contextmanager
def _seeded() -> Iterator[None]:
    """Gives every process the same random weights: a head that an adapter replaces stays."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # the others' states would not be restored
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
def loading(what: str, source: str, *files: str) -> Iterator[None]:
    """Turns what goes wrong into a `ModelError`.

    Args:
        what: is loaded.
        source: its folder, or its name on the hub.
        files: in the folder, that it is loaded from.

    Yields:
        Nothing.

    Raises:
        ModelError: if anything is raised inside that is not ours.
        DataInfError: as it was.
        OutOfMemoryError: as it was.
    """
    try:
        yield
    except (DataInfError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # loaders of other packages raise anything about damaged files
        named = isinstance(error, OSError | ValueError | RuntimeError | ImportError)
        cause = str(error) if named else f"{type(error).__name__}: {error}"
        if isinstance(error, UnpicklingError | EOFError):  # torch's advice is to run it
            cause = "its pickled weights are damaged, or more than weights, which is never run"
        remedy = f" Check {' and '.join(files)} there. {AGAIN}" if Path(source).is_dir() else ""
        line = " ".join(cause.split()).rstrip(".")
        told = f"Could not load {what} {source}: {line}.{remedy}"
        if not Path(source).exists():  # what was taken for a name on the hub
            told = f"{absence(Path(source).absolute())}{FROM_HUB}{told}"
        raise ModelError(told) from error
