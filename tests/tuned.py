"""Tuned models on disk, tiny and random, with a tokenizer, as transformers and peft save them."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class Tuned:
    """Folders of a base model, its adapter, and a classifier that was tuned whole."""

    causal: Path
    causal_adapter: Path
    encoder: Path
    classes_adapter: Path
    classifier: Path
    tagger: Path


def tokenizer():
    """Bytes and some pairs of them, with an end of text and a chat template."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    texts = [f"What is {a} plus {b}? It is {a + b}." for a in range(9) for b in range(9)]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", pad_token="<pad>", chat_template=CHAT
    )


def save_tuned(folder):
    """Saves all models of `Tuned` below a folder."""
    paths = Tuned(
        **{name: folder / name for name in ("causal", "causal_adapter", "encoder")},
        **{name: folder / name for name in ("classes_adapter", "classifier", "tagger")},
    )
    torch.manual_seed(0)
    words = tokenizer()
    sizes = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    llama = LlamaForCausalLM(LlamaConfig(**sizes, pad_token_id=0, eos_token_id=1, bos_token_id=1))
    bert = BertConfig(**sizes, max_position_embeddings=64)
    named = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    classifier = BertConfig(**sizes, max_position_embeddings=64, **named)
    saved = {
        paths.causal: llama,
        paths.encoder: BertModel(bert),
        paths.classifier: BertForSequenceClassification(classifier),
        paths.tagger: BertForTokenClassification(bert),
    }
    for path, model in saved.items():
        model.save_pretrained(path)
        words.save_pretrained(path)
    _save_adapter(llama, "CAUSAL_LM", ["q_proj", "v_proj"], paths.causal_adapter)
    bare = BertForSequenceClassification(bert)
    bare.bert.load_state_dict(saved[paths.encoder].state_dict())
    _save_adapter(bare, "SEQ_CLS", ["query", "value"], paths.classes_adapter)
    return paths


def _save_adapter(model, task, targets, path):
    config = LoraConfig(task_type=task, r=2, lora_alpha=4, target_modules=targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.3)
        adapted.save_pretrained(path)


def write_lines(path, records):
    """Saves records as JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def sums(count):
    """Questions of unequal length, and their answers."""
    return [
        {"id": f"sum {i}", "prompt": f"What is {i} plus {i * i}?", "answer": f" It is {i + i * i}."}
        for i in range(count)
    ]


def changed(path, **values):
    """Changes some values of a file of JSON."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def pairs(count):
    """Answers to sums, of which one is preferred."""
    return [
        {
            "prompt": f"What is {i} plus {i}?",
            "chosen": f" It is {2 * i}.",
            "rejected": f" It is {3 * i}, I think.",
        }
        for i in range(count)
    ]


def log_probability(model, prompt, answer):
    """Of an answer after a prompt, token by token."""
    words = tokenizer()
    ids = torch.tensor([words(prompt + answer)["input_ids"] + [words.eos_token_id]])
    start = len(words(prompt)["input_ids"])
    logits = model(ids).logits[0].double().log_softmax(-1)
    return sum(logits[t - 1, ids[0, t]] for t in range(start, ids.shape[1]))
