"""RagSequence and RagToken over our own index: the right passages, the paper's likelihoods, training, and no pickle anywhere."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hash_embedder import HashEmbedder
from langchain_core.documents import Document

from utils import catalog, checkpoints, models
from utils.checkpoints import ModelUnavailableError
from utils.indexes import build_index
from utils.indexes.folder import IndexRefused
from utils.rag_scores import as_written, score_answers
from utils.rag_sequence import load_rag_sequence

TEXTS = {
    "NF4": "NF4 stores four bits per weight in sixteen levels.",
    "Retrieval": "A retriever finds the passages that a question needs.",
    "BM25": "BM25 counts the words that query and passage share.",
    "LoRA": "LoRA trains two matrices of low rank beside a frozen one.",
    "Attention": "The cost of attention grows with the square of the length.",
    "Evaluation": "Recall at k is the share of questions whose passage is found.",
}
QUESTIONS = ["how many bits does nf4 store?", "what does lora train?", "recall"]
ANSWERS = ["four", "two matrices of low rank", "the share of questions"]
HIDDEN = {"attention_heads": 4, "ffn_dim": 64}
REVISION = "0" * 40


def passages() -> list[Document]:
    return [Document(page_content=text, metadata={"title": title}) for title, text in TEXTS.items()]


def bart(vocabulary: int, **special: int | None):
    """A tiny BART with weights large enough that documents and tokens differ."""
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in HIDDEN.items()}
    sizes = {"vocab_size": vocabulary, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "max_position_embeddings": 320}
    return BartForConditionalGeneration(BartConfig(**sizes, **sides, **special, init_std=0.3, dropout=0.0))


def make_generator(folder: Path, **changes: int | None) -> Path:
    """`folder`, filled as the embedded generator's is: a BART with a lower-casing WordPiece tokenizer."""
    from transformers import PreTrainedTokenizerFast

    words = catalog.get("minilm").path / "tokenizer.json"
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(tokenizer_file=str(words), **special).save_pretrained(folder)
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 102, "decoder_start_token_id": 101, "forced_eos_token_id": 102}
    bart(30522, **{**ids, **changes}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def embedder():
    return models.load_embedder("minilm", device="cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, embedder):
    """An index made by MiniLM and a tiny generator."""
    root = tmp_path_factory.mktemp("rag")
    store = build_index(passages(), embedder, root / "index")
    return SimpleNamespace(root=root, index=root / "index", generator=make_generator(root / "generator"), store=store)


@pytest.fixture(scope="module")
def rag(folders):
    return load_rag_sequence(folders.index, folders.generator, top_k=3, device="cpu")


@pytest.fixture(scope="module")
def rag_token(folders):
    return load_rag_sequence(folders.index, folders.generator, top_k=3, token=True, device="cpu")


def ask(loaded, questions=QUESTIONS):
    return loaded.tokenizer(questions, padding=True, return_tensors="pt")


def labels_of(loaded, answers=ANSWERS) -> torch.Tensor:
    return loaded.tokenizer.generator(answers, padding=True, return_tensors="pt")["input_ids"]


# --- from scratch: one document at a time, nothing padded, nothing of the RAG classes -------------------------------------------


def token_log_probabilities(loaded, title: str, text: str, question: str, label: list[int]) -> torch.Tensor:
    """log p(y_i | x, z, y_1 … y_{i-1}) over the vocabulary for every position of one answer, given one document."""
    prefix = getattr(loaded.model.generator.config, "prefix", None) or ""
    source = f"{prefix}{title} / {text} // {question}".replace("  ", " ")
    inputs = loaded.tokenizer.generator(source, return_tensors="pt")
    with torch.inference_mode():
        known = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        return loaded.model.generator(**known, decoder_input_ids=torch.tensor([label])).logits[0, :-1].double().log_softmax(-1)


def from_scratch(loaded, question_vector: np.ndarray, vectors: np.ndarray, question: str, label: list[int], top_k: int = 3) -> tuple:
    """(log p(y|x) of RagSequence, of RagToken) by the paper's two formulas."""
    scores = vectors @ question_vector
    nearest = np.argsort(-scores)[:top_k]
    prior = torch.tensor(scores[nearest]).double().softmax(0)
    documents = [list(TEXTS.items())[row] for row in nearest]
    each = torch.stack([token_log_probabilities(loaded, *document, question, label) for document in documents])
    of_label = each[:, range(len(label) - 1), label[1:]].exp()  # (documents, tokens)
    return (prior @ of_label.prod(dim=1)).log(), (prior @ of_label).log().sum()


def unpadded(labels: torch.Tensor, pad: int = 0) -> list[list[int]]:
    return [[token for token in row if token != pad] for row in labels.tolist()]


def test_losses_are_the_papers_marginal_likelihoods(rag, rag_token, folders, embedder):
    labels = labels_of(rag)
    with torch.inference_mode():
        of_sequence = -rag.model(**ask(rag), labels=labels).loss
        of_token = -rag_token.model(**ask(rag_token), labels=labels).loss
    for row, (question, label) in enumerate(zip(QUESTIONS, unpadded(labels), strict=True)):
        expected = from_scratch(rag, embedder.encode([question])[0], folders.store.vectors, question, label)
        assert of_sequence[row].item() == pytest.approx(expected[0].item(), abs=1e-4, rel=5e-6)  # about 60 nats, in fp32
        assert of_token[row].item() == pytest.approx(expected[1].item(), abs=1e-4, rel=5e-6)
        assert abs(expected[0] - expected[1]) > 1e-3  # the two models differ, so the test can tell them apart


# --- retrieval -------------------------------------------------------------------------------------------------------------------


def test_question_vectors_are_the_embedders_with_or_without_a_mask(rag, embedder):
    inputs = ask(rag)
    with torch.inference_mode():
        masked = rag.model.question_encoder(**inputs)[0]
        unmasked = rag.model.question_encoder(inputs["input_ids"], attention_mask=None)[0]
    assert np.abs(masked.numpy() - embedder.encode(QUESTIONS)).max() < 1e-5
    assert torch.equal(masked, unmasked)


def test_retrieved_passages_and_scores_are_the_indexs_own(rag, folders):
    with torch.inference_mode():
        out = rag.model(**ask(rag), labels=labels_of(rag), output_retrieved=True)
    for row, question in enumerate(QUESTIONS):
        hits = folders.store.similarity_search_with_score(question, k=3)
        found = rag.retriever.index.dataset[out.retrieved_doc_ids[row].tolist()]
        assert found["id"] == [document.id for document, _ in hits]
        assert out.doc_scores[row].tolist() == pytest.approx([score for _, score in hits], abs=1e-5)


def test_passages_reach_the_generator_in_rags_format(rag):
    hidden = rag.model.question_encoder(**ask(rag, QUESTIONS[:1]))[0].detach().numpy()
    ids = rag.retriever(ask(rag, QUESTIONS[:1])["input_ids"], hidden)["context_input_ids"][0]
    assert len(ids) == 256
    expected = f"NF4 / {TEXTS['NF4']} // {QUESTIONS[0]}"
    assert unpadded(torch.tensor([ids]))[0] == rag.tokenizer.generator(expected)["input_ids"]


def test_a_passage_too_long_never_costs_the_question(folders, embedder, tmp_path):
    build_index([Document(page_content="bits " * 400, metadata={"title": "Long"})], embedder, tmp_path / "index")
    loaded = load_rag_sequence(tmp_path / "index", folders.generator, device="cpu")
    inputs = ask(loaded, QUESTIONS[:1])
    found = loaded.retriever(inputs["input_ids"], loaded.model.question_encoder(**inputs)[0].detach().numpy())
    text = loaded.tokenizer.generator.decode(found["context_input_ids"][0], skip_special_tokens=True)
    assert text.endswith("how many bits does nf4 store?")
    assert loaded.report.top_k == loaded.report.passages == 1


def test_score_scale_sharpens_the_documents_and_keeps_their_order(rag, folders):
    sharp = load_rag_sequence(folders.index, folders.generator, top_k=3, score_scale=20.0, device="cpu")
    flat, steep = (score_answers(loaded, QUESTIONS[0], ["four"]) for loaded in (rag, sharp))
    assert steep.doc_scores.tolist() == pytest.approx((20 * flat.doc_scores).tolist(), abs=1e-4)
    assert [passage["id"] for passage in steep.passages] == [passage["id"] for passage in flat.passages]
    assert steep.log_prior.max() > flat.log_prior.max()


# --- answers ---------------------------------------------------------------------------------------------------------------------


def test_scored_answers_are_the_models_likelihoods(rag):
    labels = labels_of(rag)
    scored = score_answers(rag, QUESTIONS[0], ANSWERS)
    with torch.inference_mode():
        repeated = ask(rag, QUESTIONS[:1])["input_ids"].repeat(len(ANSWERS), 1)
        loss = rag.model(input_ids=repeated, labels=labels).loss
    assert scored.log_marginal.tolist() == pytest.approx((-loss).tolist(), abs=1e-4)
    assert scored.log_likelihood.shape == (3, len(ANSWERS))
    assert scored.log_prior.exp().sum().item() == pytest.approx(1, abs=1e-6)
    assert scored.answers == ANSWERS


def test_reading_under_autocast_leaves_the_documents_scores_in_fp32(rag):
    exact = score_answers(rag, QUESTIONS[0], ANSWERS)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = score_answers(rag, QUESTIONS[0], ANSWERS)
    assert torch.equal(rounded.doc_scores, exact.doc_scores) and rounded.log_likelihood.dtype == torch.float32
    assert not torch.equal(rounded.log_likelihood, exact.log_likelihood)  # the reading was rounded
    assert (rounded.log_likelihood - exact.log_likelihood).abs().max() < 0.05 * exact.log_likelihood.abs().max()


def test_own_answers_are_what_the_generator_says_to_each_passage_and_the_best_is_what_generate_returns(rag):
    for question in QUESTIONS:
        scored = score_answers(rag, question, max_new_tokens=8)
        for passage, column in zip(scored.passages, scored.own, strict=True):
            source = f"{passage['title']} / {passage['text']} // {question}"
            inputs = rag.tokenizer.generator(source, return_tensors="pt", return_token_type_ids=False)
            alone = rag.model.generator.generate(**inputs, num_beams=1, max_new_tokens=8)
            assert rag.tokenizer.generator.decode(alone[0], skip_special_tokens=True) == scored.answers[column]
        written = rag.model.generate(**ask(rag, [question]), num_beams=1, max_new_tokens=8)
        assert rag.tokenizer.batch_decode(written, skip_special_tokens=True) == [scored.best]


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_answers_a_padded_batch_as_single_questions(rag, rag_token, beams):
    for loaded in (rag, rag_token):
        together = loaded.model.generate(**ask(loaded), num_beams=beams, max_new_tokens=8)
        assert together.shape[0] == len(QUESTIONS)
        assert together.shape[1] <= 9
        for row, question in enumerate(QUESTIONS):
            alone = loaded.model.generate(ask(loaded, [question])["input_ids"], num_beams=beams, max_new_tokens=8)
            assert unpadded(alone) == unpadded(together[row : row + 1])


def test_rag_token_chooses_each_token_from_the_mixture(rag_token, folders, embedder):
    question, label = QUESTIONS[0], [101]
    hits = folders.store.similarity_search_with_score(question, k=3)
    prior = torch.tensor([score for _, score in hits]).double().log_softmax(0)
    for _ in range(6):
        each = [token_log_probabilities(rag_token, d.metadata["title"], d.page_content, question, [*label, 0])[-1] for d, _ in hits]
        label.append(int((prior.unsqueeze(1) + torch.stack(each)).logsumexp(0).argmax()))
    written = rag_token.model.generate(**ask(rag_token, [question]), num_beams=1, max_new_tokens=7)[0].tolist()
    assert written[: len(label)] == label


@pytest.fixture
def silent(folders, embedder):
    """A generator whose likeliest answer to any passage is none at all."""
    loaded = load_rag_sequence(folders.index, folders.generator, top_k=3, device="cpu")
    loaded.model.generator.final_logits_bias[0, 102] = 60.0
    return loaded


def test_an_empty_answer_is_weighted_with_its_documents_like_any_other(silent, embedder, folders):
    from transformers import RagSequenceForGeneration

    silent.model.generator.final_logits_bias[0, 102] = 1.0
    labels = labels_of(silent, [*ANSWERS[:2], ""])
    assert labels[2].tolist().count(0) == labels.shape[1] - 2
    with torch.inference_mode():
        losses = silent.model(**ask(silent), labels=labels).loss
        total = silent.model(**ask(silent), labels=labels, reduce_loss=True).loss
    assert total.item() == pytest.approx(losses.sum().item(), rel=1e-5)
    for row, (question, label) in enumerate(zip(QUESTIONS, unpadded(labels), strict=True)):
        expected = from_scratch(silent, embedder.encode([question])[0], folders.store.vectors, question, label)[0]
        assert losses[row].item() == pytest.approx(-expected.item(), abs=1e-3)
    parts = {name: getattr(silent.model, name) for name in ("config", "question_encoder", "generator", "retriever")}
    with torch.inference_mode():
        plain = RagSequenceForGeneration(**parts).eval()(**ask(silent), labels=labels).loss
    assert plain[:2].tolist() == pytest.approx(losses[:2].tolist(), rel=1e-5)
    assert plain[2] < losses[2] - 0.5  # what RagSequence mends; when this fails, transformers has mended it


def test_min_new_tokens_makes_every_passage_propose_something(silent):
    assert score_answers(silent, QUESTIONS[0], max_new_tokens=4).answers == [""]
    scored = score_answers(silent, QUESTIONS[0], max_new_tokens=4, min_new_tokens=1)
    assert "" not in scored.answers
    empty = score_answers(silent, QUESTIONS[0], [""])
    assert scored.log_marginal.max() < empty.log_marginal.item()
    assert scored.log_nothing.tolist() == pytest.approx(empty.log_likelihood[:, 0].tolist(), abs=1e-4)
    written = silent.model.generate(**ask(silent, QUESTIONS[:1]), num_beams=1, max_new_tokens=4, min_new_tokens=1)
    assert silent.tokenizer.batch_decode(written, skip_special_tokens=True) == [scored.best]


def test_an_answer_gets_back_the_spelling_of_the_passage():
    texts = ["About 1.5 GB, China says.", "It needs 1.2 GB in\nall."]
    assert as_written("1. 2 gb in all", texts) == "1.2 GB in all"
    assert as_written("about 1. 5 gb", texts) == "About 1.5 GB"
    assert as_written("in a", texts) == "in a"  # not the "ina" of China
    assert as_written("", texts) == ""


# --- training --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [False, True])
def test_training_lowers_the_loss_and_moves_the_question_encoder(folders, token):
    loaded = load_rag_sequence(folders.index, folders.generator, top_k=3, token=token, device="cpu")
    inputs, labels = ask(loaded), labels_of(loaded)
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=1e-3)
    encoder = loaded.model.question_encoder
    before = {name: weight.detach().clone() for name, weight in encoder.named_parameters()}
    losses, scores = [], []
    for _ in range(3):
        out = loaded.model(**inputs, labels=labels, reduce_loss=True)
        losses.append(out.loss.item())
        scores.append(out.doc_scores.detach())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert not torch.allclose(scores[0], scores[-1], atol=1e-3)
    assert all(weight.grad is not None for weight in encoder.parameters())
    assert any(not torch.equal(before[name], weight) for name, weight in encoder.named_parameters())


def test_weights_are_those_of_the_files(rag, folders, embedder):
    from transformers import AutoModelForSeq2SeqLM

    saved = AutoModelForSeq2SeqLM.from_pretrained(folders.generator).state_dict()
    assert all(torch.equal(weight, saved[name]) for name, weight in rag.model.generator.state_dict().items())
    original = embedder.model.state_dict()
    assert all(torch.equal(weight, original[name].float()) for name, weight in rag.model.question_encoder.state_dict().items())
    assert rag.report.parameters == sum(weight.numel() for weight in rag.model.parameters())
    assert not rag.model.training


# --- the passages' folder --------------------------------------------------------------------------------------------------------


def test_passages_are_written_once_and_again_when_the_index_changes(folders, embedder, tmp_path):
    build_index(passages()[:2], embedder, tmp_path / "index")
    first = load_rag_sequence(tmp_path / "index", folders.generator, device="cpu").report
    assert load_rag_sequence(tmp_path / "index", folders.generator, device="cpu").report == first
    build_index(passages()[:3], embedder, tmp_path / "index")
    second = load_rag_sequence(tmp_path / "index", folders.generator, device="cpu").report
    assert (first.passages, second.passages) == (2, 3)
    assert not Path(first.passages_path).exists()


@pytest.mark.parametrize("damage", ["index.faiss", "data-00000-of-00001.arrow", "../manifest.json"])
def test_damaged_passages_are_written_again(folders, embedder, tmp_path, damage):
    build_index(passages()[:2], embedder, tmp_path / "index")
    first = load_rag_sequence(tmp_path / "index", folders.generator, device="cpu").report
    file = Path(first.passages_path, damage)
    file.write_bytes(file.read_bytes()[:-9])
    loaded = load_rag_sequence(tmp_path / "index", folders.generator, device="cpu")
    assert loaded.report.passages_path != first.passages_path
    assert score_answers(loaded, QUESTIONS[0], ["four"]).passages[0]["title"] == "NF4"


def test_an_index_in_the_passages_place_is_left_alone(folders, embedder, tmp_path):
    build_index(passages()[:2], embedder, tmp_path / "index")
    build_index(passages()[:1], embedder, tmp_path / "index-rag-minilm")
    with pytest.raises(IndexRefused, match="holds an index: move that index"):
        load_rag_sequence(tmp_path / "index", folders.generator)


def test_an_unfitting_index_is_refused_with_the_remedy(folders, embedder, tmp_path):
    build_index(passages(), HashEmbedder(), tmp_path / "hash")
    with pytest.raises(IndexRefused, match=r"hash-words.*load_embedder\('minilm'\)"):
        load_rag_sequence(tmp_path / "hash", folders.generator)
    build_index([], embedder, tmp_path / "empty")
    with pytest.raises(IndexRefused, match="holds no passage"):
        load_rag_sequence(tmp_path / "empty", folders.generator)
    with pytest.raises(IndexRefused, match="no complete index"):
        load_rag_sequence(tmp_path / "nowhere", folders.generator)
    with pytest.raises(ValueError, match="top_k is 0"):
        load_rag_sequence(folders.index, folders.generator, top_k=0)


def test_nothing_is_pickled_or_unpickled(folders, embedder, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a pickle")

    build_index(passages(), embedder, tmp_path / "index")
    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "dump"), (torch, "load"), (torch, "save")):
        monkeypatch.setattr(owner, name, refuse)
    loaded = load_rag_sequence(tmp_path / "index", folders.generator, device="cpu")
    loaded.retriever.save_pretrained(tmp_path / "saved")
    score_answers(loaded, QUESTIONS[0], ["four"])
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path.name for path in written if path.read_bytes()[:1] == b"\x80" or path.suffix in (".pkl", ".pickle", ".bin", ".pt")]


# --- finding the generator -------------------------------------------------------------------------------------------------------


def test_missing_embedded_generator_says_how_to_get_it(folders, monkeypatch):
    card = dataclasses.replace(catalog.get("course-rag-generator"), folder="not-there")
    monkeypatch.setitem(catalog.MODELS, "course-rag-generator", card)
    with pytest.raises(ModelUnavailableError, match="git checkout"):
        load_rag_sequence(folders.index)


def test_embedded_generator_answers_when_it_is_there(folders):
    if not (catalog.get("course-rag-generator").path / "model.safetensors").is_file():
        pytest.skip("data/models/rag-generator is not built yet")
    loaded = models.load_rag_sequence(folders.index, top_k=3)
    assert loaded.report.key == "course-rag-generator"
    scored = score_answers(loaded, QUESTIONS[0], min_new_tokens=1)  # its word for "this passage does not say" is no word at all
    assert scored.best
    assert torch.isfinite(scored.log_marginal).all()


def test_ids_that_are_not_the_tokenizers_are_refused(folders, tmp_path):
    wrong = make_generator(tmp_path / "wrong", forced_eos_token_id=2)
    with pytest.raises(ModelUnavailableError, match="forced_eos_token_id in config.json is not the tokenizer's"):
        load_rag_sequence(folders.index, wrong)


def test_models_offers_the_same_loader(folders):
    loaded = models.load_rag_sequence(folders.index, folders.generator, top_k=2, token=True, device="cpu")
    assert (loaded.report["model"], loaded.report["top_k"]) == ("RagToken", 2)
    assert "top_k" in str(loaded.report)


# --- the Hub's models, tiny, as a download leaves them in the cache ----------------------------------------------------------------


def dpr_config():
    from transformers import DPRConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 128}
    return DPRConfig(vocab_size=30522, **sizes, initializer_range=0.3, hidden_dropout_prob=0.0)


def bert_words(folder: Path) -> None:
    """The tokenizer files that DPR's repositories of 2020 have."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(catalog.get("minilm").path / "vocab.txt", folder)
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 512}')


def bart_words(folder: Path) -> None:
    """BART's vocab.json and merges.txt, tiny."""
    from tokenizers import ByteLevelBPETokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words.train_from_iterator(list(TEXTS.values()) + ANSWERS, vocab_size=400, special_tokens=special, show_progress=False)
    words.save_model(str(folder))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1024}')


def make_published(folder: Path, token: bool) -> None:
    """What facebook/rag-sequence-nq holds, its config.json as old as that: index "legacy", generation settings inside."""
    from transformers import DPRQuestionEncoder, RagConfig, RagSequenceForGeneration, RagTokenForGeneration

    generator = bart(400)
    encoder = DPRQuestionEncoder(dpr_config())
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = RagConfig.from_question_encoder_generator_configs(encoder.config, generator.config, **ids)
    kind = RagTokenForGeneration if token else RagSequenceForGeneration
    kind(config=config, question_encoder=encoder, generator=generator).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    values = json.loads((folder / "config.json").read_text())
    values |= {"index_name": "legacy", "dataset": "wiki_dpr", "index_path": None, "passages_path": None}
    old = {"prefix": " ", "num_beams": 1, "do_sample": False, "force_bos_token_to_be_generated": False, "max_length": 20}
    values["generator"] |= old | {"task_specific_params": {"summarization": {"num_beams": 4}}, "extra_pos_embeddings": 2}
    (folder / "config.json").write_text(json.dumps(values))
    bert_words(folder / "question_encoder_tokenizer")
    bart_words(folder / "generator_tokenizer")


def repository(cache: Path, key: str, ref: str = "main") -> Path:
    """The folder where the Hub's cache keeps a model."""
    root = cache / f"models--{catalog.get(key).hub_id.replace('/', '--')}"
    (root / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
    revision = REVISION if ref == "main" else REVISION.replace("0", "1")
    (root / "refs" / ref).write_text(revision)
    return root / "snapshots" / revision


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory):
    from transformers import DPRContextEncoder

    cache = tmp_path_factory.mktemp("hub")
    for key, token in (("rag-sequence", False), ("rag-token", True)):
        make_published(repository(cache, key), token)
    torch.manual_seed(1)
    DPRContextEncoder(dpr_config()).save_pretrained(repository(cache, "dpr-context"))
    bert_words(repository(cache, "dpr-context"))
    return cache


@pytest.fixture
def hub(hub_cache, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub_cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return hub_cache


def dpr_vectors(folder: Path, kind: str, *texts: str) -> np.ndarray:
    """One DPR vector of a text, or of a pair, alone and unpadded."""
    import transformers

    encoder = getattr(transformers, kind).from_pretrained(folder).eval()
    words = transformers.BertTokenizerFast(str(catalog.get("minilm").path / "vocab.txt"))
    with torch.inference_mode():
        return encoder(**words(*texts, return_tensors="pt")).pooler_output[0].numpy()


@pytest.mark.parametrize("key", ["rag-sequence", "rag-token"])
def test_published_model_reads_our_passages_with_the_papers_likelihood(hub, folders, key):
    loaded = load_rag_sequence(folders.index, key, top_k=3, device="cpu")
    assert loaded.report.model == {"rag-sequence": "RagSequence", "rag-token": "RagToken"}[key]
    assert (loaded.report.passage_encoder, loaded.model.config.index_name) == ("dpr-context", "custom")
    context_folder = repository(hub, "dpr-context")
    vectors = np.stack([dpr_vectors(context_folder, "DPRContextEncoder", title, text) for title, text in TEXTS.items()])
    labels = labels_of(loaded)
    inputs = ask(loaded)
    with torch.inference_mode():
        out = loaded.model(**inputs, labels=labels)
        question_vectors = loaded.model.question_encoder(**inputs)[0].numpy()
    for row, (question, label) in enumerate(zip(QUESTIONS, unpadded(labels, pad=1), strict=True)):
        assert out.doc_scores[row].tolist() == pytest.approx(sorted(vectors @ question_vectors[row])[:-4:-1], abs=1e-4)
        expected = from_scratch(loaded, question_vectors[row], vectors, question, label)
        assert -out.loss[row].item() == pytest.approx(expected[key == "rag-token"].item(), abs=1e-4)


@pytest.mark.parametrize("key", ["rag-sequence", "rag-token"])
def test_published_model_generates_and_scores(hub, folders, key):
    loaded = load_rag_sequence(folders.index, key, top_k=3, device="cpu")
    written = loaded.model.generate(**ask(loaded), num_beams=2, max_new_tokens=6)
    assert written.shape[0] == len(QUESTIONS)
    scored = score_answers(loaded, QUESTIONS[0], max_new_tokens=6)
    assert torch.isfinite(scored.log_marginal).all()
    if key == "rag-sequence":
        best = loaded.model.generate(**ask(loaded, QUESTIONS[:1]), num_beams=1, max_new_tokens=6)
        assert loaded.tokenizer.batch_decode(best, skip_special_tokens=True)[0].strip() == scored.best


def test_passages_are_encoded_by_dpr_once(hub, folders, monkeypatch):
    import utils.rag_models

    first = load_rag_sequence(folders.index, "rag-sequence", device="cpu").report.passages_path
    monkeypatch.setattr(utils.rag_models, "encode_contexts", None)
    assert load_rag_sequence(folders.index, "rag-token", device="cpu").report.passages_path == first


def test_score_scale_is_not_for_a_published_model(hub, folders):
    with pytest.raises(ValueError, match="trained with its own scores"):
        load_rag_sequence(folders.index, "rag-sequence", score_scale=20.0)


def test_published_model_that_is_not_here_says_so(folders, tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("utils.rag_sequence.check_memory", lambda *arguments: None)
    with pytest.raises(ModelUnavailableError, match="facebook/rag-sequence-nq is not on this machine.*HF_HUB_OFFLINE"):
        load_rag_sequence(folders.index, "rag-sequence")


@pytest.mark.parametrize("offline", [True, False])
def test_weights_come_from_the_bots_conversion_where_main_has_only_pickles(hub, folders, tmp_path, monkeypatch, offline):
    import huggingface_hub
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    shutil.copytree(hub, cache)
    main = repository(cache, "rag-sequence")
    shutil.copytree(main, repository(cache, "rag-sequence", "refs/pr/3"))
    (main / "model.safetensors").rename(main / "pytorch_model.bin")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("utils.rag_sequence.is_offline", lambda: offline)
    if not offline:
        fetch = huggingface_hub.snapshot_download
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **o: fetch(*a, **{**o, "local_files_only": True}))
        requests = [SimpleNamespace(git_reference="refs/pr/3")]
        monkeypatch.setattr(huggingface_hub.HfApi, "get_repo_discussions", lambda *arguments, **options: requests)
    report = load_rag_sequence(folders.index, "rag-sequence", device="cpu").report
    assert report.key == "rag-sequence"
    assert report.path.endswith(REVISION.replace("0", "1"))
    assert checkpoints.whole(Path(report.path))
