"""One RagSequence answer taken apart: each passage's score, its own answer, and p(y|x) = Σ_z p(z|x) p(y|x,z) term by term.

The same numbers as `RagSequenceForGeneration`, with every passage read once instead of once per candidate answer. Imports torch only
when called. Source: Lewis et al., 2020, arXiv:2005.11401, section 2 ("thorough decoding" in 2.5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    from utils.rag_sequence import LoadedRag


class PassageAnswers(NamedTuple):
    """Passages z (rows, best first) and answers y (columns) of one question x; all logarithms are natural."""

    passages: list[dict[str, str]]  # id, title, text
    doc_scores: torch.Tensor  # (passages,): inner products of the question's and the passages' vectors
    own: list[int]  # for each passage the column of its own answer; empty when the answers were given
    answers: list[str]
    log_likelihood: torch.Tensor  # (passages, answers): log p(y|x,z), summed over the answer's tokens and its end
    log_nothing: torch.Tensor  # (passages,): the same for no answer at all, the end token alone

    @property
    def log_prior(self) -> torch.Tensor:
        """log p(z|x), shape (passages,): the softmax over the retrieved documents' scores."""
        return self.doc_scores.log_softmax(dim=0)

    @property
    def log_joint(self) -> torch.Tensor:
        """log p(z|x) p(y|x,z), shape (passages, answers): what each passage contributes to each answer."""
        return self.log_prior.unsqueeze(1) + self.log_likelihood

    @property
    def log_marginal(self) -> torch.Tensor:
        """log p(y|x), shape (answers,)."""
        return self.log_joint.logsumexp(dim=0)

    @property
    def best(self) -> str:
        """The answer of highest marginal likelihood: what RagSequence's `generate` returns for the same candidates."""
        return self.answers[int(self.log_marginal.argmax())]


def score_answers(
    rag: LoadedRag, question: str, answers: Sequence[str] | None = None, max_new_tokens: int = 32, min_new_tokens: int = 0
) -> PassageAnswers:
    """Every passage's likelihood of every answer: of the given `answers`, or of the one that each passage gives by itself (greedily).

    The course's generator answers nothing at all where a passage does not say; with `min_new_tokens=1` each passage has to propose
    something, and its likelihood, which stays as it is, tells how little it means it.
    """
    import torch

    with torch.inference_mode():
        passages, doc_scores, hidden, mask = _read_passages(rag, question)
        if answers is None:
            labels, own = _own_answers(rag, hidden, mask, max_new_tokens, min_new_tokens)
        else:
            labels, own = _labels(rag, answers), []
        log_likelihood, log_nothing = _log_likelihoods(rag, hidden, mask, labels)
    texts = rag.tokenizer.generator.batch_decode(labels, skip_special_tokens=True)
    return PassageAnswers(passages, doc_scores.cpu(), own, [text.strip() for text in texts], log_likelihood.cpu(), log_nothing.cpu())


def as_written(answer: str, texts: Iterable[str]) -> str:
    """`answer` as the first text that contains it spells it, capitals and spaces included; itself where none does.

    A generator with a lower-casing tokenizer writes "1. 2 gb" for "1.2 GB".
    """
    words = r"\s*".join(map(re.escape, answer.split()))
    pattern = re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)
    found = (pattern.search(text) for text in texts) if words else ()
    return next((" ".join(match[0].split()) for match in found if match), answer)


def _read_passages(rag: LoadedRag, question: str) -> tuple[list[dict[str, str]], torch.Tensor, torch.Tensor, torch.Tensor]:
    """The retrieved passages, their scores, and the generator's reading of each: hidden states and mask, without common padding."""
    import torch

    model: Any = rag.model
    inputs = rag.tokenizer(question, truncation=True, return_tensors="pt").to(model.device)
    with torch.autocast(model.device.type, enabled=False):  # documents' scores stay in fp32, whatever a caller chose for the reading
        vector = model.question_encoder(**inputs)[0]
        found = rag.retriever(inputs["input_ids"], vector.detach().cpu().numpy(), n_docs=model.config.n_docs, return_tensors="pt").to(
            model.device
        )
        doc_scores = torch.einsum("qd,qzd->z", vector, found["retrieved_doc_embeds"].to(vector))
    mask = found["context_attention_mask"]
    width = int(mask.sum(dim=1).max())
    ids, mask = found["context_input_ids"][:, :width], mask[:, :width]
    hidden = model.generator.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    rows = rag.retriever.index.dataset[found["doc_ids"][0].tolist()]
    passages = [dict(zip(("id", "title", "text"), row)) for row in zip(rows["id"], rows["title"], rows["text"])]
    return passages, doc_scores, hidden, mask


def _own_answers(rag: LoadedRag, hidden: torch.Tensor, mask: torch.Tensor, longest: int, shortest: int) -> tuple[torch.Tensor, list[int]]:
    """The distinct answers as token ids (answers, tokens), and for each passage which of them is its own."""
    from transformers.modeling_outputs import BaseModelOutput

    generator: Any = rag.model.generator
    read = BaseModelOutput(last_hidden_state=hidden)
    options = {"max_new_tokens": longest, "min_new_tokens": shortest, "num_beams": 1, "do_sample": False}
    written = generator.generate(encoder_outputs=read, attention_mask=mask, **options)
    distinct = {tuple(ids): row for row, ids in reversed(list(enumerate(written.tolist())))}
    rows = sorted(distinct.values())
    return written[rows], [rows.index(distinct[tuple(ids)]) for ids in written.tolist()]


def _labels(rag: LoadedRag, answers: Sequence[str]) -> torch.Tensor:
    """Token ids (answers, tokens) from the decoder's start token to the end, padded."""
    import torch

    model: Any = rag.model
    ids = rag.tokenizer.generator(list(answers), padding=True, padding_side="right", return_tensors="pt")["input_ids"].to(model.device)
    start = model.generator.config.decoder_start_token_id
    return ids if (ids[:, 0] == start).all() else torch.nn.functional.pad(ids, (1, 0), value=start)


def _log_likelihoods(rag: LoadedRag, hidden: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(y|x,z) of the answers, shape (passages, answers), and of none at all, shape (passages,).

    A beginning-of-sequence token that BART writes first is not scored, as in `generate`.
    """
    generator: Any = rag.model.generator
    targets, pad, bos = labels[:, 1:], generator.config.pad_token_id, generator.config.bos_token_id
    scored = targets != pad
    skipped = int(bos is not None and (targets[:, 0] == bos).all())
    scored[:, :skipped] = False
    counts = len(hidden), len(labels)
    logits = generator(
        encoder_outputs=(hidden.repeat_interleave(counts[1], dim=0),),
        attention_mask=mask.repeat_interleave(counts[1], dim=0),
        decoder_input_ids=labels.repeat(counts[0], 1),
    ).logits[:, :-1]
    log_probabilities = logits.float().log_softmax(dim=-1)
    of_token = log_probabilities.gather(-1, targets.repeat(counts[0], 1).unsqueeze(-1)).squeeze(-1)
    nothing = log_probabilities[:: counts[1], skipped, generator.config.eos_token_id]  # what comes first is the same for all answers
    return (of_token * scored.repeat(counts[0], 1)).sum(dim=1).view(counts), nothing
