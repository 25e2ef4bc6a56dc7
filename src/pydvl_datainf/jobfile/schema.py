"""What a job may say: fields, their types and their defaults."""

from typing import Annotated, Any, Literal

from dask.utils import parse_bytes
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    Tag,
    model_validator,
)

from pydvl_datainf.inverse.names import Asked


def _no_truth(value: Any) -> Any:
    """YAML reads yes, no, on and off as truth values, which Python takes for numbers."""
    if isinstance(value, bool):
        raise ValueError("a number, not a truth value")
    return value


def _in_float32(value: float) -> float:
    """In which gradients are kept; with room for their squares."""
    if not 1e-30 <= value <= 1e30:
        raise ValueError("from 1e-30 to 1e30")
    return value


def _amount(value: str) -> str:
    try:
        is_amount = 0 < parse_bytes(value) <= MOST
    except (ValueError, OverflowError):
        is_amount = False
    if not is_amount:
        raise ValueError('an amount such as "2GiB"')
    return value


MOST = 2**53
"""Numbers that are larger count nothing that there is, and do not fit into arrays."""

Text = Annotated[str, Field(min_length=1, max_length=4096)]
Count = Annotated[int, Field(gt=0, le=MOST), BeforeValidator(_no_truth)]
Position = Annotated[int, Field(ge=0, le=MOST), BeforeValidator(_no_truth)]
Positive = Annotated[
    float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_no_truth), AfterValidator(_in_float32)
]
Amount = Annotated[str, AfterValidator(_amount)]
Share = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_no_truth)]
Part = Annotated[float, Field(gt=0, lt=1), BeforeValidator(_no_truth)]
Weight = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False), BeforeValidator(_no_truth)]
Truth = StrictBool

OUTSIDE = frozenset(
    {
        "out",
        "scheduler",
        "jobs",
        "device",
        "max_tokens",
        "exact_sample",
        "self_influence",
        "trust_pickle",
        "training",
        "on_unusable",
    }
)
"""Fields that say where and how a run is done, or what is computed beside its scores: these they
change by rounding at most. Where `on_unusable` changes the samples, one of its values is an error.
"""

COLUMNS = {
    "causal-lm": ("prompt", "answer", "text", "messages"),
    "preference": ("prompt", "chosen", "rejected"),
    "seq2seq-lm": ("source", "target"),
    "sequence-classification": ("text", "text_pair", "label"),
    "token-classification": ("words", "tags"),
    "denoising": ("image", "label", "prompt"),
}
"""The columns that each task reads, beside `id` and `show`."""


TEXTS = tuple(task for task in COLUMNS if task != "denoising")
FIELDS = {
    "labels": ("sequence-classification", "token-classification", "denoising"),
    "chat": ("causal-lm", "preference"),
    "reduction": ("causal-lm", "seq2seq-lm", "token-classification"),
    "beta": ("preference",),
    "query": ("sequence-classification", "preference"),
    "timesteps": ("denoising",),
    "noise": ("denoising",),
    "curvature": ("causal-lm", "sequence-classification", "token-classification"),
    "preconditioner": TEXTS,
    "max_length": TEXTS,
    "max_tokens": TEXTS,
    "attention": TEXTS,
    "quantization": TEXTS,
    "trust_remote_code": TEXTS,
    "training": TEXTS,
    "quoting": TEXTS,
    "on_unusable": TEXTS,
}
"""The tasks to which a field belongs; other fields belong to all."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Columns(_Part):
    """What the columns of the data are called.

    Attributes:
        prompt: what the model is asked ("prompt" if nothing else is named), which does not count;
            or what an image shows.
        answer: what it is to say ("answer" if nothing else is named).
        text: of a classification ("text" if nothing else is named), or, of a language model, a text
            that counts as a whole.
        messages: a conversation, a list of messages with role and content.
        chosen: the answer that was preferred ("chosen" if nothing else is named), or a conversation
            that ends with it.
        rejected: the other answer ("rejected" if nothing else is named).
        source: what an encoder reads ("source" if nothing else is named).
        target: what a decoder is to write ("target" if nothing else is named).
        image: the path of an image, from the data's file on ("image" if nothing else is named).
        text_pair: the second text of a pair.
        label: of a classification ("label" if nothing else is named), or the class of an image.
        words: of a token classification ("words" if nothing else is named).
        tags: their labels ("tags" if nothing else is named).
        id: names the samples in the result; positions otherwise.
        show: further columns that are stored with the result.
        show_train: the same of the training data alone.
    """

    prompt: Text | None = None
    answer: Text | None = None
    text: Text | None = None
    messages: Text | None = None
    chosen: Text | None = None
    rejected: Text | None = None
    source: Text | None = None
    target: Text | None = None
    image: Text | None = None
    text_pair: Text | None = None
    label: Text | None = None
    words: Text | None = None
    tags: Text | None = None
    id: Text | None = None
    show: tuple[Text, ...] = ()
    show_train: tuple[Text, ...] = ()


class HubData(_Part):
    """Data that `datasets` loads.

    Attributes:
        dataset: its name on the hub, or a folder.
        config: which of several.
        split: such as "train", or a part of it, "train[:1000]".
    """

    dataset: Text
    config: Text | None = None
    split: Text


FILE, DATASET = "a file", "a data set"
"""What data may be; also how pydantic calls the two."""

Data = Annotated[
    Annotated[Text, Tag(FILE)] | Annotated[HubData, Tag(DATASET)],
    Discriminator(lambda given: DATASET if isinstance(given, dict | HubData) else FILE),
]


class Training(_Part):
    """How the model was tuned; the settings of an adapter are in its own configuration.

    Attributes:
        base: what the tuning of a model without an adapter began with: its folder or its name on
            the hub.
        trained: which parameters of such a model were trained: all, or those that fit one of some
            patterns.
        epochs: passes over the training data.
        batch_size: samples in a step of the optimizer.
        optimizer: of PyTorch, with its betas.
        learning_rate: the highest.
        weight_decay: of all that is trained.
        momentum: of sgd.
        clip: what the norm of the gradient is cut to in each step; it is not cut otherwise.
        schedule: how the learning rate falls.
        warmup: the share of the steps in which it first rises from 0.
        dropout: whether there was dropout where the configurations of model and adapter have some.
        seed: of the first retraining; others count on from it.
    """

    base: Text | None = None
    trained: Literal["all"] | Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    epochs: Count
    batch_size: Count
    optimizer: Literal["adamw", "adam", "sgd"]
    learning_rate: Positive
    weight_decay: Weight
    momentum: Share = 0.0
    clip: Positive | None = None
    schedule: Literal["constant", "linear", "cosine"]
    warmup: Share = 0.0
    dropout: Truth = True
    seed: Position = 0


class Job(_Part):
    """A run: a tuned model, training and test data, and what is to be computed.

    Attributes:
        task: what the model does.
        model: its folder or its name on the hub.
        adapter: folder of a peft adapter, or its name on the hub.
        checkpoints: adapters of the model, or, where no model is named, models that were tuned
            whole; the influences of all of them are added.
        weights: of the checkpoints in the sum, such as their learning rates; 1 otherwise.
        train: file of the training data, or a data set that `datasets` loads.
        test: file of the test data, or such a data set.
        out: where the result goes.
        columns: what the columns of the data are called.
        quoting: none where quotes in CSV and TSV files are characters as others.
        on_unusable: what becomes of a sample of which no token counts.
        labels: the names of the model's outputs, or of the classes of its images, in their order.
        chat: whether prompt and answer are put into the tokenizer's chat template.
        max_length: tokens at which a sample is cut.
        parameters: which take part: the adapter's matrices, these and the heads that were trained
            with them, all, or those that fit one of some patterns.
        beta: of the preference loss.
        timesteps: of diffusion whose losses are averaged: which, or how many.
        noise: whether all images get the same noise, or each its own.
        reduction: of the losses of a sample's tokens.
        query: what is asked of test samples in place of their loss: the margin of the right class
            over the best other one, or of the chosen answer's log-probability over the rejected
            one's.
        method: what takes the place of each block's inverse.
        iterations: of LiSSA, at most (100 if nothing else is said).
        tolerance: of LiSSA, the residual at which they end (0.01 if nothing else is said).
        damping: λ of all blocks, of some by name, or chosen automatically.
        damping_scale: what λ that are chosen automatically are multiplied by.
        curvature: what the inverse is made of in place of the gradients at the given labels.
        curvature_labels: all classes, or labels that the model draws, as EK-FAC does.
        label_seed: of the draws.
        preconditioner: the coordinates in which gradients are taken: those of the Adam whose state
            a transformers Trainer left beside the adapter, or the model that was tuned whole.
        blocks: what is a block.
        rows: where gradients of training samples are kept.
        rank: of compressed rows: numbers that are kept of a block (256 if nothing else is said), or
            as few as hold most of a sample's energy.
        basis_sample: training samples that their directions are learned from (2 · rank if nothing
            else is said; 512 where ranks are chosen).
        basis_seed: of the choice of these (0 if nothing else is said).
        sides: of compressed rows: the share of its outputs, and of its inputs, that is kept of each
            wide linear layer before its directions are learned; all if nothing else is said.
        memory: for our arrays, in bytes or as text.
        batch_size: samples that are read, and sorted by length, together; of images, those in one
            gradient computation.
        max_tokens: tokens in one gradient computation, padding included.
        top_k: how many scores are kept at either end for each test sample; all otherwise.
        by_block: whether scores of each block are kept.
        self_influence: whether self-influences are computed.
        normalize: unit divides the influences of a training sample by the norm of its gradient.
        exact_sample: training samples over which the inverse is compared with the exact one: as
            many as `memory` allows, up to 256, or a number; 0 = it is not.
        device: where gradients are computed; spread = over all cards, where the model is too large
            for one.
        dtype: of the weights.
        quantization: of the weights of linear layers, by bitsandbytes: 4bit (NF4), 4bit-double,
            which quantises its scales too, or 8bit.
        attention: its implementation in transformers.
        trust_remote_code: whether code that comes with the model may run.
        trust_pickle: whether weights may be pickles, where there are no safetensors.
        scheduler: address of a Dask scheduler whose workers do the work.
        jobs: processes on this machine.
        training: how the model was tuned, from which it is tuned again to validate scores.
    """

    task: Literal[
        "causal-lm",
        "preference",
        "seq2seq-lm",
        "sequence-classification",
        "token-classification",
        "denoising",
    ]
    model: Text
    adapter: Text | None = None
    checkpoints: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    weights: tuple[Weight, ...] | None = None
    train: Data
    test: Data
    out: Text
    columns: Columns = Columns()
    quoting: Literal["none"] | None = None
    on_unusable: Literal["error", "skip"] = "error"
    labels: tuple[Text, ...] | None = None
    chat: Truth = False
    max_length: Count = 512
    parameters: (
        Literal["adapters", "adapters+heads", "all"]
        | Annotated[tuple[Text, ...], Field(min_length=1)]
    ) = "adapters"
    beta: Positive = 0.1
    timesteps: Count | Annotated[tuple[Position, ...], Field(min_length=1)] = 8
    noise: Literal["common", "own"] = "common"
    reduction: Literal["mean", "sum"] = "mean"
    query: Literal["margin"] | None = None
    method: Asked = "datainf"
    iterations: Count | None = None
    tolerance: Positive | None = None
    damping: Literal["auto"] | Positive | dict[str, Positive] = "auto"
    damping_scale: Positive | None = None
    curvature: Literal["gauss-newton"] | None = None
    curvature_labels: Literal["auto", "all", "drawn"] | None = None
    label_seed: Position | None = None
    preconditioner: Literal["adam"] | None = None
    blocks: Literal["module", "parameter_wise", "layer_wise", "full"] = "module"
    rows: Literal["auto", "memory", "zarr", "compressed", "recompute"] = "auto"
    rank: Literal["auto"] | Count | None = None
    basis_sample: Count | None = None
    basis_seed: Position | None = None
    sides: Part | None = None
    memory: Count | Amount = "2GiB"
    batch_size: Count = 64
    max_tokens: Count = 2048
    top_k: Count | None = None
    by_block: Truth = False
    self_influence: Truth = False
    normalize: Literal["unit"] | None = None
    exact_sample: Literal["auto"] | Position = "auto"
    device: Literal["auto", "cpu", "cuda", "spread"] = "auto"
    dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "auto"
    quantization: Literal["4bit", "4bit-double", "8bit"] | None = None
    attention: Text | None = None
    trust_remote_code: Truth = False
    trust_pickle: Truth = False
    scheduler: Text | None = None
    jobs: Annotated[Count, Field(le=1024)] | None = None
    training: Training | None = None

    @model_validator(mode="before")
    @classmethod
    def _model_of_checkpoints(cls, given: Any) -> Any:
        """Checkpoints without a model are models themselves, and the first stands for them."""
        paths = given.get("checkpoints") if isinstance(given, dict) else None
        if isinstance(paths, list | tuple) and paths and "model" not in given:
            return given | {"model": paths[0]}
        return given

    @property
    def tunes_adapters(self) -> bool:
        """Whether an adapter is named, or the checkpoints are adapters."""
        of_base = self.checkpoints is not None and self.model != self.checkpoints[0]
        return self.adapter is not None or of_base

    @property
    def method_settings(self) -> dict[str, object]:
        """Further arguments of the class of the method."""
        named = self.model_dump(
            include={"iterations", "tolerance", "curvature", "label_seed"}, exclude_none=True
        )
        labels = {} if self.curvature_labels is None else {"labels": self.curvature_labels}
        if self.method == "ekfac" and named.pop("curvature", None):
            labels = {"labels": "drawn"}
        return named | labels

    def of_checkpoint(self, path: str) -> "Job":
        """The job on one of its checkpoints alone."""
        place = "adapter" if self.tunes_adapters else "model"
        return self.model_copy(update={"checkpoints": None, "weights": None, place: path})

    def as_told(self) -> dict[str, object]:
        """The job as it is kept in the result, as JSON holds it."""
        others = {name for name, tasks in FIELDS.items() if self.task not in tasks}
        return self.model_dump(mode="json", exclude={*OUTSIDE, *others}, exclude_none=True)
