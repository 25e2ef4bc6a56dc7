"""What a job may say: fields, their types and their defaults."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

Text = Annotated[str, Field(min_length=1)]

OUTSIDE = frozenset({"out", "scheduler", "jobs"})
"""Fields that say where a run is done and kept, and do not change its result."""

COLUMNS = {
    "causal-lm": ("prompt", "answer", "text", "messages"),
    "sequence-classification": ("text", "text_pair", "label"),
    "token-classification": ("words", "tags"),
}
"""The columns that each task reads, beside `id` and `show`."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Columns(_Part):
    """What the columns of the data are called.

    Attributes:
        prompt: what the model is asked ("prompt" if nothing else is named); does not count.
        answer: what it is to say ("answer" if nothing else is named).
        text: of a classification ("text" if nothing else is named), or, of a language model, a text
            that counts as a whole.
        messages: a conversation, a list of messages with role and content.
        text_pair: the second text of a pair.
        label: of a classification ("label" if nothing else is named).
        words: of a token classification ("words" if nothing else is named).
        tags: their labels ("tags" if nothing else is named).
        id: names the samples in the result; positions otherwise.
        show: further columns that are stored with the result.
    """

    prompt: Text | None = None
    answer: Text | None = None
    text: Text | None = None
    messages: Text | None = None
    text_pair: Text | None = None
    label: Text | None = None
    words: Text | None = None
    tags: Text | None = None
    id: Text | None = None
    show: tuple[Text, ...] = ()


class Job(_Part):
    """A run: a tuned model, training and test data, and what is to be computed.

    Attributes:
        task: what the model does.
        model: its folder or its name on the hub.
        adapter: folder of a peft adapter, or its name on the hub.
        train: file of the training data.
        test: file of the test data.
        out: where the result goes.
        columns: what the columns of the data are called.
        labels: the names of the model's outputs, in their order.
        chat: whether prompt and answer are put into the tokenizer's chat template.
        max_length: tokens at which a sample is cut.
        parameters: which take part: the adapter's matrices, these and the heads that were trained
            with them, all, or those that fit one of some patterns.
        reduction: of the losses of a sample's tokens.
        damping: λ of all blocks, of some by name, or chosen automatically.
        blocks: what is a block.
        rows: where gradients of training samples are kept.
        memory: for our arrays, in bytes or as text.
        batch_size: samples that are read, and sorted by length, together.
        max_tokens: tokens in one gradient computation, padding included.
        top_k: how many scores are kept at either end for each test sample; all otherwise.
        by_block: whether scores of each block are kept.
        self_influence: whether self-influences are computed.
        device: where gradients are computed.
        dtype: of the weights.
        attention: its implementation in transformers.
        trust_remote_code: whether code that comes with the model may run.
        scheduler: address of a Dask scheduler whose workers do the work.
        jobs: processes on this machine.
    """

    task: Literal["causal-lm", "sequence-classification", "token-classification"]
    model: Text
    adapter: Text | None = None
    train: Text
    test: Text
    out: Text
    columns: Columns = Columns()
    labels: tuple[Text, ...] | None = None
    chat: bool = False
    max_length: PositiveInt = 512
    parameters: Literal["adapters", "adapters+heads", "all"] | tuple[Text, ...] = "adapters"
    reduction: Literal["mean", "sum"] = "mean"
    damping: Literal["auto"] | PositiveFloat | dict[str, PositiveFloat] = "auto"
    blocks: Literal["module", "parameter_wise", "layer_wise", "full"] = "module"
    rows: Literal["auto", "memory", "zarr", "recompute"] = "auto"
    memory: PositiveInt | Text = "2GiB"
    batch_size: PositiveInt = 64
    max_tokens: PositiveInt = 2048
    top_k: PositiveInt | None = None
    by_block: bool = False
    self_influence: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "auto"
    attention: Text | None = None
    trust_remote_code: bool = False
    scheduler: Text | None = None
    jobs: PositiveInt | None = None

    def as_told(self) -> dict[str, object]:
        """The job as it is kept in the result: all that its numbers depend on, as JSON holds it."""
        return self.model_dump(mode="json", exclude=set(OUTSIDE), exclude_none=True)
