"""RagSequence and RagToken (Lewis et al., 2020, arXiv:2005.11401) over one of our own indexes, with transformers' classes.

    rag = load_rag_sequence("build/indexes/handbook")               # also utils.models.load_rag_sequence
    question = rag.tokenizer("What does NF4 store?", return_tensors="pt")
    answer = rag.model.generate(**question, num_beams=1, max_new_tokens=32)
    rag.tokenizer.batch_decode(answer, skip_special_tokens=True)
    loss = rag.model(**question, labels=rag.tokenizer.generator(["four bits"], return_tensors="pt")["input_ids"]).loss

Knows checkpoints and index folders; computes nothing of the model's own (`rag_scores` takes one answer apart). Weights are safetensors,
and of the retrievers that transformers offers only the custom one is used: the published index of 21 million passages is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils import catalog, checkpoints
from utils.indexes.passages import Passage
from utils.memory import check_memory, memory_bytes
from utils.rag_passages import SavedPassages, quiet, save_passages, title
from utils.report import Report
from utils.runtime import detect, is_offline

if TYPE_CHECKING:
    import numpy as np
    from transformers import RagRetriever, RagSequenceForGeneration, RagTokenForGeneration, RagTokenizer

EMBEDDED = "course-rag-generator"
QUESTION_ENCODER = "minilm"
CONTEXT_ENCODER = "dpr-context"  # of the family that facebook/rag-sequence-nq's question encoder comes from (its model card)
MAX_COMBINED_LENGTH = 256  # title, passage and question together, in the generator's tokens
# DPR's inner products are about 70, where 16 bits leave steps of 0.06 (fp16) to 0.5 (bf16): too coarse for a softmax over documents.
DTYPE_REASON = "document scores enter a softmax, for which 16 bits are too coarse; and the model is fine-tuned"


@dataclass(frozen=True)
class RagReport(Report):
    """What `load_rag_sequence` chose. Fields also read like a dict: report["passages"]."""

    key: str
    path: str
    model: str
    question_encoder: str
    passage_encoder: str
    score_scale: float
    passages: int
    top_k: int
    passages_path: str
    device: str
    dtype: str
    dtype_reason: str
    parameters: int
    memory_mb: float


class LoadedRag(NamedTuple):
    """`tokenizer(question)` makes the model's input, `tokenizer.generator(answer)` its labels; the model is in eval mode."""

    tokenizer: RagTokenizer
    retriever: RagRetriever
    model: RagSequenceForGeneration | RagTokenForGeneration
    report: RagReport


def load_rag_sequence(
    index_folder: str | Path,
    generator: str | Path | None = "embedded",
    *,
    top_k: int = 5,
    token: bool | None = None,
    score_scale: float = 1.0,
    device: str | None = None,
) -> LoadedRag:
    """RagSequence, or RagToken with `token=True`, reading the `top_k` nearest passages of the index in `index_folder`.

    `generator`: "embedded" (MiniLM encodes questions, the course's generator answers), a catalog key ("rag-sequence", "rag-token": our
    passages are then encoded once by DPR's context encoder), a Hub id or a folder (a RAG or a sequence-to-sequence model); None takes the
    profile's default. `token` None: as the RAG checkpoint was trained, otherwise RagSequence. `top_k` beyond the index takes all there is.
    `score_scale` multiplies MiniLM's scores, cosines, whose softmax over passages is nearly flat (MiniLM was trained with 20).

    Raises:
        ValueError: for `top_k` below 1, and IndexRefused for an index that is missing, damaged, empty, or made by another embedder.
        ModelUnavailableError, NotEnoughMemoryError, catalog.UnknownModelError: with the next step.
    """
    from utils.attention import use_best_attention

    device = device or detect().device
    name, folder = _find(EMBEDDED if generator == "embedded" else generator, "rag", device)
    published, as_trained = _kind(folder)
    _check_options(name, published, top_k, score_scale)
    token = as_trained if token is None else token
    with quiet():
        load = _load_published if published else _load_parts
        tokenizer, retriever, model, saved = load(folder, Path(index_folder), top_k, token, device)
    use_best_attention(model.generator)  # serves under autocast; products in fp32 stay with PyTorch's kernel
    model.question_encoder.score_scale = score_scale
    return LoadedRag(tokenizer, retriever, model, _report(name, folder, published, model, saved, score_scale))


def _kind(folder: Path) -> tuple[bool, bool]:
    """Whether the folder holds a whole RAG model, and whether that is a RagToken."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config.get("model_type") == "rag", "RagTokenForGeneration" in (config.get("architectures") or [])


def _check_options(name: str, published: bool, top_k: int, score_scale: float) -> None:
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; ask for at least 1 passage.")
    if published and score_scale != 1:
        raise ValueError(f"{name} was trained with its own scores. Leave score_scale at 1; it is for MiniLM's cosines.")


def _report(name: str, folder: Path, published: bool, model: Any, saved: SavedPassages, score_scale: float) -> RagReport:
    return RagReport(
        key=name,
        path=str(folder),
        model=type(model).__name__,
        question_encoder="its own" if published else QUESTION_ENCODER,
        passage_encoder=CONTEXT_ENCODER if published else QUESTION_ENCODER,
        score_scale=score_scale,
        passages=saved.size,
        top_k=model.config.n_docs,
        passages_path=saved.passages_path,
        device=str(model.device),
        dtype="fp32",
        dtype_reason=DTYPE_REASON,
        parameters=model.num_parameters(),
        memory_mb=memory_bytes(model) / 1e6,
    )


def _load_parts(folder: Path, index_folder: Path, top_k: int, token: bool, device: str) -> tuple[Any, Any, Any, SavedPassages]:
    """MiniLM and a sequence-to-sequence model put together; the index's own vectors serve."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, RagConfig, RagTokenizer

    from utils.rag_models import MeanPoolingEncoder, RagSequence, RagToken

    encoder_folder = checkpoints.fetch(source := checkpoints.find(QUESTION_ENCODER, "embedder"))
    digest = checkpoints.digest(encoder_folder)
    checkpoints.check_digest(source, digest)
    saved = save_passages(index_folder, QUESTION_ENCODER, digest)
    encoder: Any = MeanPoolingEncoder.from_pretrained(encoder_folder, dtype=torch.float32, use_safetensors=True)
    generator = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True)
    words = AutoTokenizer.from_pretrained(encoder_folder, model_max_length=catalog.get(QUESTION_ENCODER).context_length)
    tokenizer = RagTokenizer(words, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    _check_special_tokens(folder, generator.config, tokenizer.generator)
    special = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_eos_token_id", "vocab_size")
    config = RagConfig.from_question_encoder_generator_configs(
        encoder.config,
        generator.config,
        max_combined_length=min(MAX_COMBINED_LENGTH, generator.config.max_position_embeddings),
        **{name: getattr(generator.config, name, None) for name in special},
        **_retrieval(saved, top_k),
    )
    retriever = _retriever(config, tokenizer)
    model: Any = (RagToken if token else RagSequence)(config=config, question_encoder=encoder, generator=generator, retriever=retriever)
    return tokenizer, retriever, model.to(device).eval(), saved


def _load_published(folder: Path, index_folder: Path, top_k: int, token: bool, device: str) -> tuple[Any, Any, Any, SavedPassages]:
    """A whole RAG checkpoint, such as facebook/rag-sequence-nq, over our passages as DPR's context encoder sees them."""
    import torch
    from transformers import RagConfig, RagTokenizer

    from utils.rag_models import RagSequence, RagToken, encode_contexts

    encoder_folder = _find(CONTEXT_ENCODER, "dpr", device)[1]

    def encode(passages: Sequence[Passage]) -> np.ndarray:
        return encode_contexts(encoder_folder, [title(passage) for passage in passages], [passage.text for passage in passages], device)

    saved = save_passages(index_folder, CONTEXT_ENCODER, checkpoints.digest(encoder_folder), encode)
    config = RagConfig.from_pretrained(folder, **_retrieval(saved, top_k))  # its own says "legacy": an index that is pickled
    tokenizer = RagTokenizer.from_pretrained(folder, config=config)
    retriever = _retriever(config, tokenizer)
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
    model: Any = (RagToken if token else RagSequence).from_pretrained(folder, config=config, retriever=retriever, **options)
    return tokenizer, retriever, model.to(device).eval(), saved


def _retrieval(saved: SavedPassages, top_k: int) -> dict[str, Any]:
    """RagConfig's values for a custom index; RagRetriever fails on more documents than there are, so `top_k` ends there."""
    paths = {"passages_path": saved.passages_path, "index_path": saved.index_path}
    return {"index_name": "custom", **paths, "retrieval_vector_size": saved.dimension, "n_docs": min(top_k, saved.size)}


def _retriever(config: Any, tokenizer: RagTokenizer) -> RagRetriever:
    """The retriever, after two settings without which the tokenizers do not serve transformers' own RAG classes."""
    from transformers import RagRetriever

    tokenizer.generator.truncation_side = "left"  # the question comes last: cut on the right, a long passage would cost the question
    tokenizer.question_encoder.model_input_names = ["input_ids", "attention_mask"]  # generate(**inputs) refuses BERT's token_type_ids
    return RagRetriever(config, tokenizer.question_encoder, tokenizer.generator)


def _check_special_tokens(folder: Path, config: Any, tokenizer: Any) -> None:
    """Raises ModelUnavailableError when model and tokenizer disagree; BART's own defaults (1, 0, 2) would otherwise pass unnoticed."""
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id}
    wrong = [] if config.pad_token_id == tokenizer.pad_token_id else ["pad_token_id"]
    wrong += [name for name in ("eos_token_id", "forced_eos_token_id") if getattr(config, name, None) not in {None, *ends}]
    if wrong:
        raise checkpoints.ModelUnavailableError(
            f"{folder}: {', '.join(wrong)} in config.json {'is' if len(wrong) == 1 else 'are'} not the tokenizer's "
            f"({tokenizer.pad_token} is {tokenizer.pad_token_id}, the end is {sorted(filter(None, ends))}). Save the model with those ids."
        )


def _find(key: str | Path | None, kind: str, device: str) -> tuple[str, Path]:
    """Name and folder of a model whose weights, in fp32, fit into memory; downloaded if need be."""
    import torch

    try:
        source = checkpoints.find(key, kind)
        if source.folder is None and source.card:
            check_memory(source.name, source.card.parameter_groups, None, torch.float32, device)
        name, folder = source.name, checkpoints.fetch(source)
    except checkpoints.ModelUnavailableError:
        card = catalog.MODELS.get(str(key))
        found = _conversion(card.hub_id) if card and card.path is None else None
        if found is None:
            raise
        name, folder = str(key), found
    check_memory(name, checkpoints.stored_parameters(folder), None, torch.float32, device)
    return name, folder


def _conversion(hub_id: str) -> Path | None:
    """The safetensors that the Hub's own bot offers in a pull request, where the main branch, already here, holds pickles only.

    Facebook's checkpoints of 2020 are of that kind; transformers looks in the same place (its `safetensors_conversion`).
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        main = Path(snapshot_download(hub_id, local_files_only=True))
        if is_offline():
            revisions = [path.relative_to(main.parents[1] / "refs").as_posix() for path in main.parents[1].glob("refs/refs/pr/*")]
        else:
            requests = HfApi().get_repo_discussions(hub_id, author="SFconvertbot", discussion_type="pull_request")
            revisions = [str(request.git_reference) for request in requests]
        wanted: dict[str, Any] = {"allow_patterns": checkpoints.WANTED_FILES, "local_files_only": is_offline()}
        folders = [Path(snapshot_download(hub_id, revision=revision, **wanted)) for revision in revisions[:1]]
    except LocalEntryNotFoundError:
        return None
    return checkpoints.whole(folders[0]) if folders else None
