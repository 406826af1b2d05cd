"""Tiny checkpoints of real architectures, with random weights and a byte-level tokenizer, written as a Hub download looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HIDDEN, LAYERS, VOCAB, POSITIONS = 64, 2, 300, 256
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
FAMILIES = ("gpt2", "llama", "falcon", "mistral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "bert")


def config_values(family: str) -> dict[str, Any]:
    """Values of the family's configuration class for a tiny model."""
    values = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 1,
        "initializer_range": 0.3,
    }
    if family in ("llama", "mistral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"):
        values |= {"num_key_value_heads": 2, "head_dim": 16}
    if family == "gpt2":
        values["n_inner"] = values.pop("intermediate_size")
    if family == "falcon":
        values |= {"parallel_attn": True, "bias": False, "new_decoder_architecture": False, "multi_query": True, "ffn_hidden_size": 128}
    if family == "bert":
        values |= {"is_decoder": True, "type_vocab_size": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return values


def tokenizer() -> Any:
    """A byte-level BPE tokenizer of at most VOCAB tokens with the course's chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )  # fmt: skip
    fast.train_from_iterator(["Which number format stores four bits? NF4 stores four bits per weight."] * 4, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<|pad|>", eos_token="<|end|>", padding_side="left")
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def make_llm(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """`folder`, filled with a tiny causal language model and its tokenizer."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{**config_values(family), **changes})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def make_encoder(folder: Path, reranker: bool = False) -> Path:
    """`folder`, filled with a tiny BERT: an embedder, or a cross-encoder with one score."""
    import torch
    from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig

    torch.manual_seed(0)
    config = BertConfig(**{**config_values("bert"), "is_decoder": False, "num_labels": 1})
    kind = AutoModelForSequenceClassification if reranker else AutoModel
    kind.from_config(config).save_pretrained(folder)
    words = tokenizer()
    words.padding_side, words.model_max_length = "right", POSITIONS
    words.save_pretrained(folder)
    return folder
