"""Labels are shorter than paths, tell adapters' matrices apart, and never collide."""

import pytest

from pydvl_datainf.block_labels import block_labels

LAYER = "base_model.model.model.layers.{}.self_attn.{}.lora_{}.default"


def test_adapters_of_a_causal_language_model():
    names = [LAYER.format(i, p, m) for i in (3, 11) for p in ("q_proj", "v_proj") for m in "AB"]
    assert block_labels(names)[:3] == [
        "layers.3.self_attn.q_proj · lora_A",
        "layers.3.self_attn.q_proj · lora_B",
        "layers.3.self_attn.v_proj · lora_A",
    ]
    assert len(set(block_labels(names))) == len(names)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ([], []),
        ([""], [""]),
        (["weight"], ["weight"]),
        (["0", "2"], ["0", "2"]),
        (["encoder.layer.0.query", "encoder.layer.1.query"], ["layer.0.query", "layer.1.query"]),
        (["encoder.layer.0.query", "classifier"], ["encoder.layer.0.query", "classifier"]),
        (["layers.1.a", "layers.1.b"], ["layers.1.a", "layers.1.b"]),
        ([LAYER.format(3, "q_proj", "A")], ["layers.3.self_attn.q_proj · lora_A"]),
        (
            [
                "base_model.model.bert.layer.0.query.lora_A.first",
                "base_model.model.bert.layer.0.query.lora_A.second",
                "base_model.model.classifier.modules_to_save.default",
            ],
            [
                "bert.layer.0.query · lora_A (first)",
                "bert.layer.0.query · lora_A (second)",
                "classifier",
            ],
        ),
        (
            ["base_model.model.word_embeddings.lora_embedding_A", "base_model.model.out"],
            ["word_embeddings · lora_embedding_A", "out"],
        ),
    ],
)
def test_labels(names, labels):
    assert block_labels(names) == labels


def test_blocks_that_would_be_called_the_same_keep_their_paths():
    names = ["base_model.model.head", "head", "body.inner"]
    assert block_labels(names) == ["base_model.model.head", "head", "body.inner"]
