"""The models of the course by key: Hub id, family, licence, gated or not, parameters and memory per precision.

Knows the table in `catalog.toml` and the embedded models in `data/models`. Loads no weights: `models` does. Parameters and memory
are computed from the shape by `architecture`; gigabytes are 10^9 bytes.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.architecture import Architecture, ParameterGroups, from_config, weight_bytes
from utils.runtime import DATA

KINDS = ("llm", "embedder", "dpr", "reranker", "rag")
_HEADS = {"llm": "lm", "embedder": "pooler", "dpr": "none", "reranker": "score", "rag": "lm"}
DEFAULTS = {
    "llm": {"embedded": "course-lm", "hub-cpu": "qwen2.5-0.5b-instruct", "colab-gpu": "qwen3-4b-instruct-2507"},
    "embedder": {"embedded": "minilm", "hub-cpu": "minilm", "colab-gpu": "minilm"},
    "reranker": {"embedded": "course-reranker", "hub-cpu": "ms-marco-minilm", "colab-gpu": "ms-marco-minilm"},
    "rag": {"embedded": "course-rag-generator", "hub-cpu": "rag-sequence", "colab-gpu": "rag-sequence"},
}


class UnknownModelError(KeyError):
    """A key that is not in the catalog; the message names the closest ones."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class ModelCard:
    """One model. `architecture` is None for an embedded model that is not in `data/models` yet; its counts are then 0."""

    key: str
    kind: str
    hub_id: str
    license: str
    revision: str | None = None
    gated: bool = False
    context_length: int = 0
    architecture: Architecture | None = None
    question_encoder: Architecture | None = None
    folder: str | None = None
    package: str | None = None
    gguf: str | None = None
    base: str | None = None
    digest: str | None = None
    own_code: bool = False
    replaced_by: str | None = None
    note: str = ""

    @property
    def family(self) -> str:
        """The architecture's name in transformers, such as "llama" or "qwen2"."""
        return self.architecture.family if self.architecture else "not built yet"

    @property
    def layers(self) -> int:
        """Transformer layers."""
        return self.architecture.layers if self.architecture else 0

    @property
    def hidden_size(self) -> int:
        """Width of a hidden state; for an embedder the dimension of its vectors."""
        return self.architecture.hidden_size if self.architecture else 0

    @property
    def parameter_groups(self) -> ParameterGroups:
        """Parameters that quantization shrinks, and the others."""
        parts = [part.parameter_groups() for part in (self.architecture, self.question_encoder) if part]
        return ParameterGroups(sum(part.linear for part in parts), sum(part.other for part in parts))

    @property
    def parameters(self) -> int:
        """Number of weights, tied ones counted once."""
        return sum(self.parameter_groups)

    @property
    def path(self) -> Path | None:
        """The folder of an embedded model, or in an installed model package; None when it has to come from the Hub."""
        if self.folder:
            return DATA / "models" / self.folder
        if self.package and (spec := importlib.util.find_spec(self.package)) and spec.origin:
            return Path(spec.origin).parent / ("" if self.gguf else "model")
        return None

    def memory_gb(self, precision: str = "bf16", other_bytes: int = 2) -> float:
        """GB of the weights in fp32, bf16, fp16, int8 or nf4; `other_bytes` per weight that int8 and nf4 do not touch."""
        return weight_bytes(self.parameter_groups, precision, self.hidden_size or 1, other_bytes) / 1e9

    def kv_cache_gb(self, tokens: int | None = None, batch: int = 1, bytes_per_value: int = 2) -> float:
        """GB of the KV cache for `tokens` tokens (the whole context when None) of `batch` sequences."""
        shape = self.architecture
        return shape.kv_cache_bytes(tokens or self.context_length, batch, bytes_per_value) / 1e9 if shape else 0.0


def get(key: str) -> ModelCard:
    """The card of `key`, which may also be a Hub id of the catalog.

    Raises:
        UnknownModelError: lists the closest keys.
    """
    if key in MODELS:
        return MODELS[key]
    card = next((card for card in MODELS.values() if card.hub_id.lower() == key.lower()), None)
    if card:
        return card
    names = {name.lower(): name for name in MODELS} | {card.hub_id.lower(): card.key for card in MODELS.values()}
    close = dict.fromkeys(names[match] for match in difflib.get_close_matches(key.lower(), names, n=5, cutoff=0.4))
    hint = f"Did you mean: {', '.join(close)}?" if close else "utils.catalog.table() lists all keys."
    raise UnknownModelError(f"No model {key!r} in the catalog. {hint}")


def default_key(kind: str, profile: str) -> str:
    """The key the course uses for `kind` in `profile`.

    Raises:
        KeyError: for a kind or profile without a default; the message lists those that have one.
    """
    if kind not in DEFAULTS:
        raise KeyError(f"No default model of kind {kind!r}. Kinds with one: {', '.join(DEFAULTS)}.")
    if profile not in DEFAULTS[kind]:
        raise KeyError(f"Unknown profile {profile!r}. Use one of: {', '.join(DEFAULTS[kind])}.")
    return DEFAULTS[kind][profile]


def table(kind: str | None = None) -> list[dict[str, Any]]:
    """One row per model, ready for `pandas.DataFrame`; only `kind` when given."""
    return [_row(card) for card in MODELS.values() if kind in (None, card.kind)]


def _row(card: ModelCard) -> dict[str, Any]:
    return {
        "key": card.key,
        "kind": card.kind,
        "hub_id": card.hub_id,
        "family": card.family,
        "parameters": card.parameters,
        "license": card.license,
        "gated": card.gated,
        "context_length": card.context_length,
        **{f"{precision}_gb": round(card.memory_gb(precision), 3) for precision in ("fp32", "bf16", "int8", "nf4")},
        "replaced_by": card.replaced_by or "",
        "note": card.note,
    }


def _read() -> dict[str, ModelCard]:
    table = tomllib.loads(Path(__file__).with_name("catalog.toml").read_text(encoding="utf-8"))
    cards = {key: _card(key, kind, entry) for kind, entries in table.items() for key, entry in entries.items()}
    for key, entry in table["rag"].items():
        if entry.get("question_encoder"):
            cards[key] = replace(cards[key], question_encoder=cards[entry["question_encoder"]].architecture)
    return cards


def _card(key: str, kind: str, entry: dict[str, Any]) -> ModelCard:
    shape, context = _architecture(kind, entry), entry.get("context", 0)
    return ModelCard(
        key=key,
        kind=kind,
        hub_id=entry.get("hub_id", f"data/models/{entry.get('folder')}"),
        license=entry["license"],
        revision=entry.get("revision"),
        gated=entry.get("gated", False),
        context_length=context or (shape.positions if shape else 0),
        architecture=shape,
        folder=entry.get("folder"),
        package=entry.get("package"),
        gguf=entry.get("gguf"),
        base=entry.get("base"),
        digest=entry.get("digest"),
        own_code=entry.get("own_code", False),
        replaced_by=entry.get("replaced_by"),
        note=entry.get("note", ""),
    )


def _architecture(kind: str, entry: dict[str, Any]) -> Architecture | None:
    """From the table, or from the embedded model's own config.json, so that a retrained model needs no change here."""
    if "shape" in entry:
        positions = entry.get("positions", entry["context"])
        tied, head = entry.get("tied", True), entry.get("head", _HEADS[kind])
        layers, hidden, heads, kv_heads, head_dim, ffn, vocab = entry["shape"]
        return Architecture(entry["family"], layers, hidden, heads, kv_heads, head_dim, ffn, vocab, positions, tied, head)
    config = DATA / "models" / entry["folder"] / "config.json"
    return from_config(json.loads(config.read_text(encoding="utf-8"))) if config.is_file() else None


MODELS: dict[str, ModelCard] = _read()
