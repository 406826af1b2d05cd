"""The models inside RagSequence: the question encoder, DPR's passage encoder, and transformers' two RAG classes with `generate` mended.

Finds no files: `rag_sequence` does. Imports torch, so import it inside the function that needs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, BertModel, DPRContextEncoder, RagSequenceForGeneration, RagTokenForGeneration
from transformers.models.dpr.modeling_dpr import DPRQuestionEncoderOutput


class MeanPoolingEncoder(BertModel):
    """A BERT whose first output is the mean of its token vectors, scaled to length 1: what `load_embedder` computes.

    RagSequence takes the first output for the question's vector. Its `generate` scores answers without an attention mask, so a missing
    mask is read off the padding, as DPR's encoder does. The weights carry BERT's own names: `save_pretrained` writes a BERT again.
    """

    _keys_to_ignore_on_load_unexpected = [r"pooler", r"position_ids"]
    score_scale = 1.0  # length of a question's vector: the documents' scores are cosines times this, and the ranking stays

    def __init__(self, config: Any) -> None:
        super().__init__(config, add_pooling_layer=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> DPRQuestionEncoderOutput:
        """Vectors of shape (questions, hidden size) as the first output; other arguments of the RAG classes change nothing."""
        if attention_mask is None:
            attention_mask = torch.ne(input_ids, self.config.pad_token_id or 0).long()
        hidden = super().forward(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.to(hidden.dtype).unsqueeze(-1)
        mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return DPRQuestionEncoderOutput(pooler_output=self.score_scale * torch.nn.functional.normalize(mean, dim=-1))


class RagSequence(RagSequenceForGeneration):
    """RagSequenceForGeneration whose `generate` does not read padding, and which knows what an empty answer is worth.

    It hands the generator passages padded to `max_combined_length` and no mask. transformers 5 no longer infers one from the padding of
    an encoder-decoder's input, so the plain class writes answers to passages followed by a hundred padding tokens (seen in 5.15 and 5.23).
    """

    def generate(self, *inputs: Any, **options: Any) -> Any:
        """Token ids (questions, tokens): every passage's own answer is a candidate, the highest marginal likelihood wins."""
        with _masking_padding(self.generator):
            return super().generate(*inputs, **options)

    def get_nll(self, seq_logits: torch.Tensor, doc_scores: torch.Tensor, target: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        """-log p(y|x), shape (questions,), or their sum with `reduce_loss`.

        The plain class adds log p(z|x) at the answer's second token. An answer that is its end token alone has none, and so loses it.
        """
        names = ("reduce_loss", "epsilon", "exclude_bos_score", "n_docs")
        options |= dict(zip(names, rest))
        reduced = options.pop("reduce_loss", False)
        losses = super().get_nll(seq_logits, doc_scores, target, **options)
        generator: Any = self.config.generator
        empty = target.ne(generator.pad_token_id).sum(dim=1) == 2  # the start and the end
        if empty.any():
            first = seq_logits.view(*doc_scores.shape, *seq_logits.shape[1:])[:, :, 0].log_softmax(dim=-1)
            ends = first.gather(-1, target[:, None, 1:2].expand(-1, doc_scores.shape[1], -1)).squeeze(-1)
            losses = torch.where(empty, -(doc_scores.log_softmax(dim=1) + ends).logsumexp(dim=1), losses)
        return losses.sum() if reduced else losses


@contextmanager
def _masking_padding(generator: Any) -> Iterator[None]:
    plain = generator.generate

    def generate(inputs: torch.Tensor, attention_mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        mask = torch.ne(inputs, generator.config.pad_token_id).long() if attention_mask is None else attention_mask
        return plain(inputs, attention_mask=mask, **options)

    generator.generate = generate
    try:
        yield
    finally:
        generator.generate = plain


class RagToken(RagTokenForGeneration):
    """RagTokenForGeneration whose `generate` heeds `max_new_tokens`, which the plain class accepts and ignores (5.15 and 5.23)."""

    def generate(self, *inputs: Any, **options: Any) -> Any:
        """Token ids (questions, tokens), each token chosen from the passages' mixture."""
        if (max_new_tokens := options.pop("max_new_tokens", None)) is not None:
            options["max_length"] = max_new_tokens + 1  # the start token counts
        return super().generate(*inputs, **options)


@torch.inference_mode()
def encode_contexts(folder: Path, titles: Sequence[str], texts: Sequence[str], device: str, batch_size: int = 16) -> np.ndarray:
    """Vectors of titles and texts by the DPR context encoder in `folder`, shape (texts, dimension), float32, not normalised.

    Title and text go in as a pair, as DPR was trained (Karpukhin et al., 2020, arXiv:2004.04906); the longest first, to pad little.
    """
    from tqdm import tqdm

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model: Any = DPRContextEncoder.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    encoder = model.to(device).eval()
    limit = encoder.config.max_position_embeddings
    vectors = np.empty((len(texts), encoder.config.projection_dim or encoder.config.hidden_size), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    for first in tqdm(range(0, len(order), batch_size), desc="encoding (DPR)", unit="batch", delay=2, leave=False):
        rows = order[first : first + batch_size]
        pairs = [titles[row] for row in rows], [texts[row] for row in rows]
        inputs = tokenizer(*pairs, truncation=True, max_length=limit, padding=True, return_tensors="pt").to(device)
        vectors[rows] = encoder(**inputs).pooler_output.cpu().numpy()
    return vectors
