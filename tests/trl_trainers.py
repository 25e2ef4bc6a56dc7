"""Tiny models that trl's trainers tuned; without trl, the tests that import this are skipped."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from tuned import tokenizer

trl = pytest.importorskip("trl", reason="needs the extra [trl]")

TOKENIZER = tokenizer()
MARKED = (
    "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}</s>{% endgeneration %}"
    "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SIZES = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}


def asked(i):
    return f"What is {i} plus {i * i}?" * (1 + i % 3)


def turns(i):
    answer = {"role": "assistant", "content": f"It is {i}."}
    return [{"role": "user", "content": asked(i)}, answer]


FORMS = {
    "text": ({}, lambda i: {"text": asked(i)}),
    "prompt and completion": ({}, lambda i: {"prompt": asked(i), "completion": f" It is {i}."}),
    "the prompt counts too": (
        {"completion_only_loss": False},
        lambda i: {"prompt": asked(i), "completion": f" It is {i}."},
    ),
    "messages": ({}, lambda i: {"messages": turns(i)}),
    "only what the assistant says": (
        {"assistant_only_loss": True},
        lambda i: {"messages": turns(i) + turns(i + 1)},
    ),
    "conversational prompt": (
        {},
        lambda i: {"prompt": turns(i)[:1], "completion": turns(i)[1:]},
    ),
    "cut": (
        {"max_length": 16},
        lambda i: {"prompt": asked(i), "completion": f" It is {i}."},
    ),
}


def pair(i):
    return {"prompt": asked(i), "chosen": f" It is {i}.", "rejected": f" No {i * i} at all."}


def causal():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def lora(task="CAUSAL_LM"):
    return LoraConfig(task_type=task, r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"])


def trained(name, folder, form, model=None, count=7, evaluation=3, template=None, **settings):
    """A trainer that has taken two steps on samples made by a function of their number."""
    keywords = {key: settings.pop(key) for key in ("peft_config", "ref_model") if key in settings}
    words = tokenizer()
    words.chat_template = template or words.chat_template
    arguments = getattr(trl, f"{name}Config")(
        output_dir=str(folder),
        max_steps=2,
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        **{"bf16": False, **settings},
    )
    trainer = getattr(trl, f"{name}Trainer")(
        model=model or causal(),
        args=arguments,
        train_dataset=Dataset.from_list([form(i) for i in range(count)]),
        eval_dataset=Dataset.from_list([form(i) for i in range(20, 20 + evaluation)]),
        processing_class=words,
        **keywords,
    )
    trainer.train()
    trainer.model.eval()
    return trainer


def tuned_before():
    """A model with an adapter that is not zero, so that its reference is not its base."""
    model = get_peft_model(causal(), lora())
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    return model


def reward_model():
    torch.manual_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=1))
