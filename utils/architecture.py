"""How many parameters a transformer has and how many bytes they take, computed from its shape.

Knows the layer plan of the families in the catalog (which norms, biases and matrices a layer holds). Knows no checkpoint and
imports no heavy library. The counts are tested against models built by transformers. Gigabytes are 10^9 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "nf4")

# NF4 (QLoRA, Dettmers et al. 2023): 4 bits per weight, one 8-bit scale per 64 weights, one 32-bit scale per 256 of those.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


class ParameterGroups(NamedTuple):
    """Parameter counts: `linear` weights are what bitsandbytes quantizes, `other` stays (embeddings, head, norms, biases)."""

    linear: int
    other: int


@dataclass(frozen=True)
class Plan:
    """What one family puts into a layer and around the layers."""

    gated_mlp: bool = True
    norms: int = 2  # per layer
    norm_bias: bool = False
    qkv_bias: bool = False
    bias: bool = False  # output projection and MLP
    qk_norm: bool = False
    positions: bool = False  # learned position embeddings
    final_norm: bool = True
    embedding_norm: bool = False
    token_types: int = 0
    position_offset: int = 0  # extra rows of the position table
    relative_buckets: int = 0


_LLAMA = Plan()
_BERT = Plan(
    gated_mlp=False, norm_bias=True, qkv_bias=True, bias=True, positions=True, final_norm=False, embedding_norm=True, token_types=2
)  # fmt: skip
PLANS = {
    "gpt2": Plan(gated_mlp=False, norm_bias=True, qkv_bias=True, bias=True, positions=True),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": Plan(norms=4),
    "gemma3_text": Plan(norms=4, qk_norm=True),
    "falcon": Plan(gated_mlp=False, norms=1, norm_bias=True),
    "qwen": Plan(qkv_bias=True),
    "qwen2": Plan(qkv_bias=True),
    "qwen3": Plan(qk_norm=True),
    "bert": _BERT,
    "dpr": _BERT,
    "xlm-roberta": replace(_BERT, token_types=1, position_offset=2),
    "mpnet": replace(_BERT, token_types=0, position_offset=2, relative_buckets=32),
    "bart": replace(_BERT, token_types=0, position_offset=2),
}
TIED = {"gpt2", "gemma", "gemma2", "gemma3_text", "falcon", "bert", "bart"}  # the head shares the embedding matrix by default


@dataclass(frozen=True)
class Architecture:
    """The shape of a transformer. `head` is what sits on top: lm, pooler, score (a reranker's) or none."""

    family: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    positions: int
    tied: bool = True
    head: str = "lm"

    def parameter_groups(self) -> ParameterGroups:
        """Parameter counts, split into what quantization shrinks and what it leaves.

        Raises:
            KeyError: for a family without a plan.
        """
        if self.family == "bart":
            return _bart(self)
        plan, hidden = PLANS[self.family], self.hidden_size
        linear, other = _layer(self, plan)
        linear, other = linear * self.layers, other * self.layers
        other += _embeddings(self, plan) + plan.final_norm * _norm(hidden, plan)
        head_linear, head_other = _head(self)
        return ParameterGroups(linear + head_linear, other + head_other)

    def kv_cache_bytes(self, tokens: int, batch: int = 1, bytes_per_value: int = 2) -> int:
        """Bytes of the keys and values of `tokens` tokens in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * tokens * batch * bytes_per_value


def weight_bytes(groups: ParameterGroups, precision: str, hidden_size: int = 4096, other_bytes: int = 2) -> float:
    """Bytes of the weights at `precision`; `other_bytes` per parameter that int8 and NF4 leave alone (2 in bf16, 4 in fp32).

    Raises:
        ValueError: for an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"Unknown precision {precision!r}. Use one of: {', '.join(PRECISIONS)}.")
    total = sum(groups)
    if precision == "fp32":
        return 4.0 * total
    if precision in ("bf16", "fp16"):
        return 2.0 * total
    per_weight = NF4_BYTES if precision == "nf4" else 1 + 4 / hidden_size  # int8: one 32-bit scale per matrix row
    return groups.linear * per_weight + groups.other * other_bytes


def from_config(config: dict[str, Any]) -> Architecture:
    """The shape written in a checkpoint's config.json; names of GPT-2, Falcon and BART included."""
    config = {**config, **config.get("text_config", {})}
    family = config["model_type"]
    hidden = _first(config, "hidden_size", "n_embd", "d_model")
    heads = _first(config, "num_attention_heads", "n_head", "encoder_attention_heads")
    kv_heads = config.get("num_key_value_heads") or heads
    if family == "falcon" and not config.get("new_decoder_architecture"):
        kv_heads = 1 if config.get("multi_query", True) else heads
    classes = " ".join(config.get("architectures") or [])
    head = "lm" if "LMHead" in classes or "CausalLM" in classes or family not in PLANS or PLANS[family].final_norm else "pooler"
    return Architecture(
        family=family,
        layers=_first(config, "num_hidden_layers", "n_layer", "encoder_layers"),
        hidden_size=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=config.get("head_dim") or hidden // heads,
        intermediate_size=config.get("intermediate_size") or config.get("ffn_hidden_size") or config.get("n_inner") or config.get(
            "encoder_ffn_dim") or 4 * hidden,  # fmt: skip
        vocab_size=config["vocab_size"],
        positions=_first(config, "max_position_embeddings", "n_positions", "n_ctx", "seq_length") if family != "falcon" else 2048,
        tied=config.get("tie_word_embeddings", family in TIED),
        head="score" if "SequenceClassification" in classes else head,
    )


def _first(config: dict[str, Any], *names: str) -> int:
    return next(int(config[name]) for name in names if config.get(name) is not None)


def _norm(size: int, plan: Plan) -> int:
    return size * (1 + plan.norm_bias)


def _layer(shape: Architecture, plan: Plan) -> tuple[int, int]:
    """(linear weights, other parameters) of one layer."""
    hidden, ffn = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    linear = hidden * (queries + 2 * keys) + queries * hidden + (3 if plan.gated_mlp else 2) * hidden * ffn
    biases = plan.qkv_bias * (queries + 2 * keys) + plan.bias * (hidden + ffn + hidden)
    return linear, biases + plan.norms * _norm(hidden, plan) + plan.qk_norm * 2 * shape.head_dim


def _embeddings(shape: Architecture, plan: Plan) -> int:
    rows = shape.vocab_size + plan.token_types + plan.positions * (shape.positions + plan.position_offset)
    return rows * shape.hidden_size + plan.embedding_norm * _norm(shape.hidden_size, plan) + plan.relative_buckets * shape.heads


def _head(shape: Architecture) -> tuple[int, int]:
    """(linear weights, other parameters) of what sits on the layers."""
    hidden, vocab = shape.hidden_size, shape.vocab_size
    if shape.head == "none":
        return 0, 0
    if shape.head == "lm" and shape.family != "bert":
        return 0, 0 if shape.tied else hidden * vocab
    dense = hidden * hidden
    if shape.head == "lm":  # BERT's: dense, norm, then the (tied) embedding matrix with a bias per token
        return dense, hidden + 2 * hidden + vocab + (0 if shape.tied else hidden * vocab)
    return dense, hidden + (hidden + 1 if shape.head == "score" else 0)


def _bart(shape: Architecture) -> ParameterGroups:
    """An encoder and a decoder with cross-attention, sharing one token embedding."""
    plan, hidden = PLANS["bart"], shape.hidden_size
    linear, other = _layer(shape, plan)
    cross_linear, cross_other = 4 * hidden * hidden, 4 * hidden + _norm(hidden, plan)
    towers = 2 * ((shape.positions + plan.position_offset) * hidden + _norm(hidden, plan))
    return ParameterGroups(
        shape.layers * (2 * linear + cross_linear),
        shape.layers * (2 * other + cross_other) + shape.vocab_size * hidden + towers,
    )
