"""Padding on either side: what the objectives take out, and what models let through."""

import pickle
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

import dense
import tiny
from pydvl_datainf import (
    CausalLM,
    DataInfInfluence,
    Preference,
    Seq2SeqLM,
    SequenceClassification,
    TokenClassification,
)
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine, gradient_engine

pytestmark = pytest.mark.filterwarnings("ignore:One backward pass per sample")

PAD = 1
WIDE = {"pad_token_id": PAD, "is_decoder": True}
ROTARY = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}


def decoder(name, config=None, **kwargs):
    """A causal language model of transformers in float64, moved far from its start."""
    head = getattr(transformers, name)
    model = head(getattr(transformers, config or name.replace("ForCausalLM", "Config"))(**kwargs))
    return far(model)


def far(model):
    """Parameters so large that positions and neighbours matter."""
    for parameter in model.parameters():
        parameter.data += 0.15 * torch.randn_like(parameter)
    return model.double().eval()


class WithPictures(nn.Module):
    """Takes the patches of each sample as (B, patches, ...), and gives them on all in a row."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, **kwargs):
        return self.model(pixel_values=pixel_values.flatten(0, 1), **kwargs)


def qwen2_vl():
    """Which counts positions in three dimensions around a picture."""
    text = {**tiny.DECODER, "pad_token_id": PAD, "rope_parameters": ROTARY}
    text |= {"bos_token_id": 0, "eos_token_id": 2}
    sizes = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4}
    sizes |= {"spatial_merge_size": 1, "temporal_patch_size": 1, "mlp_ratio": 2}
    tokens = {"image": 35, "video": 36, "vision_start": 37, "vision_end": 38}
    config = transformers.Qwen2VLConfig(
        text_config=text,
        vision_config=sizes,
        **{f"{name}_token_id": token for name, token in tokens.items()},
    )
    return WithPictures(far(transformers.Qwen2VLForConditionalGeneration(config)))


SMALL = {"vocab_size": 40, "hidden_size": 16, "pad_token_id": PAD}
DECODERS = {
    "roberta": lambda: decoder("RobertaForCausalLM", **tiny.ENCODER, **WIDE),
    "camembert": lambda: decoder("CamembertForCausalLM", **tiny.ENCODER, **WIDE),
    "data2vec": lambda: decoder("Data2VecTextForCausalLM", **tiny.ENCODER, **WIDE),
    "bert": lambda: decoder("BertLMHeadModel", "BertConfig", **tiny.ENCODER, **WIDE),
    "bloom": lambda: decoder("BloomForCausalLM", **SMALL, n_layer=2, n_head=2),
    "mamba": lambda: decoder("MambaForCausalLM", **SMALL, num_hidden_layers=2, state_size=4),
    "opt": lambda: far(tiny.opt()),
    "gpt2": lambda: far(tiny.gpt2()),
    "llama": lambda: far(tiny.llama()),
    "qwen2-vl": qwen2_vl,
}
SIDES = {
    "all on the left": ([9, 8, 10], 12, 0),
    "some on the left": ([10, 8, 10], 10, 0),
    "on both sides": ([9, 8, 10], 13, 2),
    "none": ([9, 9, 9], 9, 0),
    "on the right": ([9, 8, 10], 10, 10),
}


def padded(lengths, columns, right=0, pad=PAD):
    """Texts of given lengths, each with a picture of four patches, with padding on the left.

    Args:
        lengths: B numbers of tokens.
        columns: T.
        right: at most so many columns of padding are on the right.
        pad: the token that fills up.
    """
    batch = {"input_ids": torch.full((len(lengths), columns), pad)}
    batch["attention_mask"] = torch.zeros_like(batch["input_ids"])
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    for i, length in enumerate(lengths):
        end = columns - min(right, columns - length)
        text = torch.randint(4, 34, (length,))
        text[1:7] = torch.tensor([37, 35, 35, 35, 35, 38])
        batch["input_ids"][i, end - length : end] = text
        batch["attention_mask"][i, end - length : end] = 1
        batch["labels"][i, end - length + 7 : end] = text[7:]
    return batch


def pictures_for(batch):
    ids = batch["input_ids"]
    return {
        **batch,
        "pixel_values": torch.randn(len(ids), 4, 48, dtype=torch.float64),
        "image_grid_thw": torch.tensor([[1, 2, 2]]).repeat(len(ids), 1),
        "mm_token_type_ids": (ids == 35).int(),
    }


def answer_loss_of_text(model, batch):
    """From the tokens of a text alone, whatever the model is given beside them."""
    seen = batch["attention_mask"][0].bool()
    by_token = ("input_ids", "labels", "mm_token_type_ids")
    bare = {k: v[:, seen] if k in by_token else v for k, v in batch.items()}
    return tiny.answer_loss(model, {k: v for k, v in bare.items() if k != "attention_mask"})


def rows_of(model, batch, objective=None):
    blocks = Blocks.from_model(model, "module")
    return blocks.flatten(CaptureEngine(model, objective or CausalLM(), blocks).rows(batch))


# What objectives take out


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", DECODERS)
def test_rows_of_answers_are_those_of_each_text_alone(name, side):
    torch.manual_seed(0)
    model = DECODERS[name]()
    batch = padded(*SIDES[side], pad=0 if name in ("opt", "llama") else PAD)
    batch = pictures_for(batch) if name == "qwen2-vl" else batch
    exact = dense.gradients(model, answer_loss_of_text, batch, tiny.names_of(model))
    bound = 1e-6 if name == "mamba" else 1e-9  # it computes its states in float32
    tiny.assert_rows_close(rows_of(model, batch), exact, bound)


@pytest.mark.parametrize("name", ["roberta", "gpt2", "mamba"])
def test_padding_on_the_left_that_stays_there_would_change_losses(name):
    """The control of the test above."""
    torch.manual_seed(0)
    model, batch = DECODERS[name](), padded([9, 8, 10], 12)
    exact = torch.stack(dense.sample_losses(model, answer_loss_of_text, batch))
    ids, labels = batch["input_ids"], batch["labels"]
    counted = torch.arange(12).expand(3, 12)
    given = {} if name == "mamba" else {"position_ids": counted}
    logits = model(input_ids=ids, **given).logits[:, :-1]
    losses = F.cross_entropy(logits.mT, labels[:, 1:], reduction="none").sum(1)
    assert ((losses / (labels != -100).sum(1) - exact).abs() > 1e-6).all()


def test_preferences_between_answers_with_padding_on_the_left():
    torch.manual_seed(0)
    model = DECODERS["roberta"]()
    sides = {"chosen": padded([9, 8, 10], 12), "rejected": padded([10, 9, 8], 10)}
    batch = {f"{side}_{k}": v for side, texts in sides.items() for k, v in texts.items()}
    batch |= {f"ref_{side}_logps": torch.full((3,), -5.0).double() for side in sides}

    def loss(model, pair):
        ratios = []
        for side in sides:
            text = {k: pair[f"{side}_{k}"] for k in sides[side]}
            count = (text["labels"] != -100).sum()
            ratios.append(-count * answer_loss_of_text(model, text) - pair[f"ref_{side}_logps"])
        return -F.logsigmoid(0.1 * (ratios[0] - ratios[1]))

    exact = dense.gradients(model, loss, batch, tiny.names_of(model))
    tiny.assert_rows_close(rows_of(model, batch, Preference()), exact)


def test_tags_of_texts_with_padding_on_the_left():
    torch.manual_seed(0)
    model, batch = far(tiny.bert_tokens()), tiny.labelled_tokens()
    exact = dense.gradients(model, tiny.token_loss, batch, tiny.names_of(model))
    left = tiny.to_the_left(batch)
    assert (left["attention_mask"][:, 0] == 0).any()
    tiny.assert_rows_close(rows_of(model, left, TokenClassification()), exact)


def test_translations_with_padding_on_the_left_of_both_texts():
    torch.manual_seed(0)
    model, batch = far(tiny.bart(pad_token_id=0)), tiny.translations()
    exact = dense.gradients(model, tiny.translation_loss, batch, tiny.names_of(model))
    source = {k: batch[k] for k in ("input_ids", "attention_mask")}
    target = {"attention_mask": batch["decoder_attention_mask"]} | {
        k: batch[k] for k in ("decoder_input_ids", "labels")
    }
    target = tiny.to_the_left(target)
    left = tiny.to_the_left(source) | {
        "decoder_attention_mask": target.pop("attention_mask"),
        **target,
    }
    assert (left["attention_mask"][:, 0] == 0).any()
    assert (left["decoder_attention_mask"][:, 0] == 0).any()
    tiny.assert_rows_close(rows_of(model, left, Seq2SeqLM()), exact)


# What models let through


def classifier(name, **kwargs):
    head = getattr(transformers, f"{name}ForSequenceClassification")
    return far(head(getattr(transformers, f"{name}Config")(**kwargs)))


def convbert():
    """Whose convolutions reach into padding."""
    sizes = {"embedding_size": 16, "conv_kernel_size": 3, "head_ratio": 1}
    return classifier("ConvBert", **tiny.ENCODER, **sizes, pad_token_id=PAD)


def fnet():
    """Which takes no mask."""
    sizes = {k: v for k, v in tiny.ENCODER.items() if k != "num_attention_heads"}
    return classifier("FNet", **sizes, pad_token_id=3, bos_token_id=1, eos_token_id=2)


def gpt2_classifier():
    """Which counts positions from padding."""
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return classifier("GPT2", **sizes, pad_token_id=PAD)


def classes(lengths, columns, right=0, pad=PAD):
    return {**padded(lengths, columns, right, pad), "labels": torch.tensor([0, 1, 1])}


def without_masks(batch):
    return {k: v for k, v in batch.items() if k != "attention_mask"}


def influence_of(model, objective=None, **kwargs):
    objective = objective or SequenceClassification()
    return DataInfInfluence(model, objective, regularization=1e-3, **kwargs)


@pytest.mark.parametrize(
    ("build", "batch", "remedy"),
    [
        (convbert, lambda: classes([9, 8, 10], 10, 10), "Give batches of samples of one length"),
        (fnet, lambda: without_masks(classes([9, 8, 10], 10, 10, 3)), "Give batches of samples"),
        (gpt2_classifier, lambda: classes([9, 8, 10], 10), r"Pad on the right\. If that warns"),
        (tiny.bert, lambda: classes([9, 8, 10], 10), r"Pad on the right\. If that warns"),
    ],
    ids=["convbert", "fnet", "gpt2", "bert"],
)
def test_a_model_that_does_not_ignore_padding_is_named(build, batch, remedy):
    torch.manual_seed(0)
    model, texts = build().eval(), batch()
    influence = influence_of(model)
    named = rf"{type(model).__name__} does not ignore padding: .*sample 1 of a batch .*{remedy}"
    with pytest.warns(UserWarning, match=named):
        influence.loss_gradients(texts)
    influence.loss_gradients(texts)  # once is enough


@pytest.mark.parametrize(
    ("build", "batch"),
    [
        (convbert, lambda: classes([9, 9, 9], 9)),
        (fnet, lambda: without_masks(classes([9, 9, 9], 9))),
        (gpt2_classifier, lambda: classes([9, 8, 10], 12, 12)),
        (tiny.bert, lambda: classes([9, 8, 10], 12, 12)),
        (tiny.llama_classifier, lambda: classes([9, 8, 10], 12, 2, 0)),
    ],
    ids=["convbert", "fnet", "gpt2", "bert", "llama"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_ignores_its_padding_or_has_none_is_not(build, batch, dtype):
    torch.manual_seed(0)
    model = build().to(torch.float32 if build is fnet else dtype).eval()
    rows = influence_of(model).loss_gradients(batch())
    assert rows.isfinite().all()


def test_lengths_that_a_model_counts_are_noticed_among_texts_of_an_answer():
    """The scale of its positions changes where the longest text of a batch is long."""
    torch.manual_seed(0)
    scaled = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    sizes = tiny.DECODER | {"max_position_embeddings": 9}
    model = decoder("LlamaForCausalLM", **sizes, rope_parameters=scaled)
    with pytest.warns(UserWarning, match="LlamaForCausalLM does not ignore padding"):
        influence_of(model, CausalLM()).loss_gradients(padded([10, 8, 12], 12, pad=0))


def test_without_padding_there_is_neither_a_warning_nor_a_difference():
    torch.manual_seed(0)
    model, batch = convbert(), classes([9, 8, 10], 10, 10)
    rows = influence_of(model, max_tokens=1).loss_gradients(batch)
    alone = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    def loss(model, one):
        length = int(one["attention_mask"].sum())
        logits = model(input_ids=one["input_ids"][:, :length]).logits
        return F.cross_entropy(logits, one["labels"])

    exact = dense.gradients(model, loss, alone | {"labels": batch["labels"]}, tiny.names_of(model))
    tiny.assert_rows_close(rows, exact)
    with pytest.warns(UserWarning, match="does not ignore padding"):
        whole = influence_of(model).loss_gradients(batch)
    assert ((whole - exact).norm(dim=1) > 1e-3 * exact.norm(dim=1)).tolist() == [True, True, False]


@pytest.mark.parametrize("kind", ["auto", "capture"])
def test_the_comparison_leaves_rows_model_and_random_state_as_they_were(kind):
    torch.manual_seed(0)
    model, batch = far(tiny.bert()), classes([9, 8, 10], 10, 10)
    blocks = Blocks.from_model(model, "module")
    engine = gradient_engine(kind, model, SequenceClassification(), blocks)
    state = torch.get_rng_state()
    rows = blocks.flatten(engine.rows(batch))
    assert torch.get_rng_state().equal(state)
    assert all(p.grad is None and not p._backward_hooks for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    exact = dense.gradients(model, tiny.classification_loss, batch, tiny.names_of(model))
    tiny.assert_rows_close(rows, exact)
    again = pickle.loads(pickle.dumps(engine)).rows(batch)
    torch.testing.assert_close(blocks.flatten(again), rows, rtol=1e-12, atol=0)


class FixedLength:
    """An objective that can do nothing with a shorter text."""

    def losses(self, model, batch):
        if batch["input_ids"].shape[1] != 10:
            raise ValueError("ten tokens, please")
        return SequenceClassification().losses(model, batch)


def test_what_takes_no_shorter_text_is_left_in_peace():
    torch.manual_seed(0)
    model, batch = convbert(), classes([9, 8, 10], 10, 10)
    rows = influence_of(model, FixedLength()).loss_gradients(batch)
    exact = dense.gradients(model, tiny.classification_loss, batch, tiny.names_of(model))
    tiny.assert_rows_close(rows, exact)


class Captioner(torch.nn.Module):
    """Sees a picture of five patches before it reads."""

    def __init__(self):
        super().__init__()
        self.words, self.see = torch.nn.Embedding(9, 4), torch.nn.Linear(6, 4)
        self.head = torch.nn.Linear(4, 9)
        self.register_buffer("place", torch.randn(5, 4))

    def forward(self, input_ids, attention_mask, patches):
        read = (self.words(input_ids) * attention_mask[..., None]).cumsum(1)
        seen = (self.see(patches) * self.place).sum(1, keepdim=True)
        return SimpleNamespace(logits=self.head((seen + read).tanh()))


@pytest.mark.parametrize("columns", [5, 6, 7])
def test_as_many_patches_of_a_picture_as_tokens_stay_where_they_are(columns):
    torch.manual_seed(0)
    model, lengths = Captioner().double(), (5, 3, 4, 5)
    words, patches = torch.randint(1, 9, (4, 5)), torch.randn(4, 5, 6).double()

    def batch_of(side, columns):
        ids = torch.zeros(4, columns).long()
        for i, n in enumerate(lengths):
            ids[i, slice(columns - n, None) if side == "left" else slice(n)] = words[i, :n]
        mask = (ids > 0).long()
        labels = ids.masked_fill(mask == 0, -100)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "patches": patches}

    exact = rows_of(model, batch_of("right", 8))
    tiny.assert_rows_close(rows_of(model, batch_of("left", columns)), exact)
    tiny.assert_rows_close(rows_of(model, batch_of("right", columns)), exact)
