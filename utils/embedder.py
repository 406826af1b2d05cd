"""Sentence embeddings with plain transformers, as LangChain `Embeddings`.

Knows the sentence-transformers folder layout (pooling, maximum length, prompts). Does not find or check files: `checkpoints` does.
Texts are sorted by token count and batched by a token budget, so almost no padding is computed; equal texts are embedded once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.embeddings import Embeddings

if TYPE_CHECKING:
    import numpy as np
    import torch

POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
# Tokens per forward pass, padding included. Measured with MiniLM in fp32 on one core: 512 to 4,096 differ by at most 5 %.
TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 65536}


class SentenceEmbedder(Embeddings):
    """Embeds texts as L2-normalised float32 vectors of length `dimension`. `id` and `digest` say which model made them."""

    shows_progress = True  # an index hands over all texts at once: one bar, and sorting by length works across all of them

    def __init__(self, folder: Path, *, id: str, digest: str, device: str, dtype: torch.dtype) -> None:
        from transformers import AutoModel, AutoTokenizer

        from utils.attention import use_best_attention

        self.id, self.digest, self.device = id, digest, device
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.model = AutoModel.from_pretrained(folder, dtype=dtype, trust_remote_code=False, use_safetensors=True).to(device).eval()
        use_best_attention(self.model)
        self.dimension = int(self.model.config.hidden_size)
        self.max_length = _max_length(folder, self.model.config, self.tokenizer)
        self.pooling = _pooling(folder)
        self.prompts: dict[str, str] = _read(folder / "config_sentence_transformers.json").get("prompts") or {}

    def __repr__(self) -> str:
        return f"SentenceEmbedder(id={self.id!r}, dimension={self.dimension}, max_length={self.max_length}, pooling={self.pooling!r})"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per text, in order."""
        return self.encode([self.prompts.get("document", "") + text for text in texts]).tolist()

    def embed_query(self, text: str) -> list[float]:
        """The vector of one query."""
        return self.encode([self.prompts.get("query", "") + text])[0].tolist()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of shape (len(texts), dimension), float32, without a model's prompts. Longer texts are cut at `max_length` tokens."""
        import numpy as np
        from tqdm.auto import tqdm

        unique = list(dict.fromkeys(texts))
        token_ids = self._tokenize(unique)
        vectors = np.empty((len(unique), self.dimension), dtype=np.float32)
        with tqdm(total=len(unique), desc=f"Embedding ({self.id})", unit="text", delay=2, leave=False) as bar:
            for rows in self._batches(token_ids):
                vectors[rows] = self._embed([token_ids[row] for row in rows])
                bar.update(len(rows))
        if len(unique) == len(texts):
            return vectors
        position = {text: row for row, text in enumerate(unique)}
        return vectors[[position[text] for text in texts]]

    def token_embeddings(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One array of shape (tokens, dimension) per text: the normalised last hidden vector of each token, float32, for late interaction.

        Start, end and separator tokens are left out, so an empty text gives shape (0, dimension). Without a model's prompts; longer
        texts are cut at `max_length` tokens. A passage of 128 tokens takes 200 KB with MiniLM.
        """
        token_ids = self._tokenize(list(texts))
        names = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id")
        special = {getattr(self.tokenizer, name, None) for name in names}
        found: dict[int, np.ndarray] = {}
        for rows in self._batches(token_ids):
            hidden, _ = self._forward([token_ids[row] for row in rows])
            for row, vectors in zip(rows, hidden, strict=True):
                kept = [place for place, token in enumerate(token_ids[row]) if token not in special]
                found[row] = _normalized(vectors[kept])
        return [found[row] for row in range(len(token_ids))]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        texts = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]  # tokenizers reject half characters
        return self.tokenizer(texts, truncation=True, max_length=self.max_length, padding=False)["input_ids"]

    def _batches(self, token_ids: list[list[int]]) -> Iterator[list[int]]:
        """Rows of similar length, longest first, so that a batch that does not fit in memory fails at the start.

        A batch ends when the next row would exceed the budget, or waste more than a tenth of an already well-filled batch.
        """
        budget = TOKENS_PER_BATCH.get(self.device.split(":")[0], TOKENS_PER_BATCH["cpu"])
        batch: list[int] = []
        used = 0
        for row in sorted(range(len(token_ids)), key=lambda row: len(token_ids[row]), reverse=True):
            padded = (len(batch) + 1) * len(token_ids[batch[0]]) if batch else 0
            if padded > budget or (padded > budget / 4 and used + len(token_ids[row]) < 0.9 * padded):
                yield batch
                batch, used = [], 0
            batch.append(row)
            used += len(token_ids[row])
        if batch:
            yield batch

    def _embed(self, batch: list[list[int]]) -> np.ndarray:
        hidden, mask = self._forward(batch)
        return _normalized(_pool(hidden, mask, self.pooling))

    def _forward(self, batch: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Last hidden vectors (batch, tokens, dimension) as float32, and the attention mask (batch, tokens)."""
        import torch

        width = max(len(ids) for ids in batch)
        ids = torch.full((len(batch), width), self.tokenizer.pad_token_id or 0, dtype=torch.long)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        with torch.inference_mode():
            return self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float(), mask


def _normalized(vectors: torch.Tensor) -> np.ndarray:
    """The rows of `vectors`, scaled to length 1, as a float32 array."""
    import torch

    return torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy()


def _pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector per text from `hidden` (batch, tokens, dimension); padding, on the right, does not count."""
    import torch

    if pooling == "cls":
        return hidden[:, 0]
    lengths = mask.sum(dim=1)
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    weights = mask.to(hidden.dtype).unsqueeze(1)
    return torch.bmm(weights, hidden).squeeze(1) / lengths.clamp(min=1).unsqueeze(1)


def _pooling(folder: Path) -> str:
    """How the model pools: mean, cls or last. Mean where the folder does not say, as sentence-transformers does."""
    settings = _read(folder / "1_Pooling" / "config.json")
    if settings.get("pooling_mode") in POOLINGS.values():
        return settings["pooling_mode"]
    chosen = [name for setting, name in POOLINGS.items() if settings.get(setting)]
    others = [name for name, on in settings.items() if name.startswith("pooling_mode_") and on is True and name not in POOLINGS]
    if others or len(chosen) > 1:
        raise ValueError(f"{folder} pools with {others + chosen}; this embedder knows mean, cls or last. Use sentence-transformers for it.")
    return chosen[0] if chosen else "mean"


def _max_length(folder: Path, config: Any, tokenizer: Any) -> int:
    """Most tokens of one text: what the folder says, within the model's positions."""
    positions = getattr(config, "max_position_embeddings", 512)
    limits = [_read(folder / "sentence_bert_config.json").get("max_seq_length"), tokenizer.model_max_length, positions]
    return int(min(limit for limit in limits if limit))


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
