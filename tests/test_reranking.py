"""Rerankers: MaxSim against its definition, windows, blending, replies of all kinds, the public LangChain suite, and the edges."""

import asyncio
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.runnables import RunnableLambda
from langchain_tests.integration_tests import RetrieversIntegrationTests
from tiny_models import make_encoder

from utils.corpus import load_documents, split_documents
from utils.evaluation import ndcg_at_k, support_passages
from utils.reranking import CrossEncoderReranker, LateInteractionReranker, LLMReranker, blend, max_sim, parse_order
from utils.retrieval import BM25Retriever, Judgement, RerankingRetriever, tokenize
from utils.runtime import DATA

TEXTS = [
    "NF4 stores each weight in four bits.",
    "The KV cache keeps keys and values, so each token is computed once.",
    "BM25 weighs rare words more than frequent words.",
    "HNSW walks a graph of neighbours, layer by layer, and each weight is a word.",
    "量化把权重存成四位。",
    "Токенизатор делит слова на части.",
]
QUERY = "How does the KV cache keep each weight and the words?"


class WordVectors:
    """A real, tiny embedder of tokens: every word of `TEXTS` has an axis of its own. Counts what it embeds."""

    axis = {word: place for place, word in enumerate(sorted({word for text in TEXTS for word in tokenize(text)}))}

    def __init__(self):
        self.embedded = []

    def token_embeddings(self, texts):
        self.embedded += texts
        known = [[self.axis[word] for word in tokenize(text) if word in self.axis] for text in texts]
        return [np.eye(len(self.axis), dtype=np.float32)[places] for places in known]


def found(*texts, scores=None):
    """Passages as a first stage returns them, best first."""
    scores = scores or [float(len(texts) - place) for place in range(len(texts))]
    return [Document(page_content=text, metadata={"id": f"p{i}", "score": score}) for i, (text, score) in enumerate(zip(texts, scores))]


def first_stage(top_k: int = 4) -> BM25Retriever:
    return BM25Retriever(passages=[Document(page_content=text, metadata={"id": f"p{i}"}) for i, text in enumerate(TEXTS)], top_k=top_k)


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(make_encoder(tmp_path_factory.mktemp("reranker"), reranker=True)), device="cpu")


@pytest.fixture(params=["cross-encoder", "late interaction", "llm", "function"])
def reranker(request, cross_encoder):
    if request.param == "cross-encoder":
        return CrossEncoderReranker(cross_encoder)
    if request.param == "late interaction":
        return LateInteractionReranker(WordVectors())
    if request.param == "llm":
        return LLMReranker(FakeListChatModel(responses=["[2] > [1]"]))
    return lambda query, passages: [float(len(passage.page_content)) for passage in passages]


class TestPublicSuite(RetrieversIntegrationTests):
    """LangChain's own suite, for each reranker."""

    @pytest.fixture(autouse=True)
    def each_reranker(self, reranker):
        self.reranker = reranker

    @pytest.fixture
    def retriever(self, each_reranker):
        return RerankingRetriever(**self.retriever_constructor_params)

    @property
    def retriever_constructor(self):
        return RerankingRetriever

    @property
    def retriever_constructor_params(self):
        return {"retriever": first_stage(), "reranker": self.reranker}

    @property
    def retriever_query_example(self):
        return QUERY

    @property
    def num_results_arg_name(self):
        return "top_k"


# --- the retriever ---------------------------------------------------------------------------------------------------------------


def test_passages_come_best_first_with_both_verdicts(reranker):
    passages = RerankingRetriever(retriever=first_stage(), reranker=reranker).invoke(QUERY)
    scores = [p.metadata["score"] for p in passages]
    assert [p.metadata["rank"] for p in passages] == [1, 2, 3, 4] and scores == sorted(scores, reverse=True)
    first = {p.metadata["id"]: (p.metadata["score"], p.metadata["rank"]) for p in first_stage().invoke(QUERY, top_k=20)}
    assert {p.metadata["id"]: (p.metadata["first_score"], p.metadata["first_rank"]) for p in passages} == first


def test_awaited_and_batched_calls_equal_plain_ones(reranker):
    retriever = RerankingRetriever(retriever=first_stage(), reranker=reranker)
    plain = [p.metadata["id"] for p in retriever.invoke(QUERY, top_k=3)]
    assert [p.metadata["id"] for p in asyncio.run(retriever.ainvoke(QUERY, top_k=3))] == plain
    assert [[p.metadata["id"] for p in one] for one in retriever.batch([QUERY, QUERY], top_k=3)] == [plain, plain]


@pytest.mark.parametrize(("query", "expected"), [("权重四位", "p4"), ("токенизатор", "p5")])
def test_other_scripts_are_found(reranker, query, expected):
    assert RerankingRetriever(retriever=first_stage(), reranker=reranker).invoke(query)[0].metadata["id"] == expected


def test_blank_query_and_empty_result_find_nothing_without_asking_the_reranker():
    def refuse(query, passages):
        raise AssertionError("asked for nothing")

    retriever = RerankingRetriever(retriever=first_stage(), reranker=refuse)
    assert retriever.invoke("") == retriever.invoke(" \n") == retriever.invoke("zebra") == []
    assert RerankingRetriever(retriever=BM25Retriever(passages=[]), reranker=refuse).invoke(QUERY) == []


def test_top_k_beyond_depth_asks_the_first_stage_for_more(reranker):
    retriever = RerankingRetriever(retriever=first_stage(), reranker=reranker, depth=2)
    assert len(retriever.invoke(QUERY)) == len(retriever.invoke(QUERY, top_k=1000)) == 4
    assert {p.metadata["first_rank"] for p in retriever.invoke(QUERY, top_k=2)} == {1, 2}


def test_equal_scores_keep_the_first_order():
    retriever = RerankingRetriever(retriever=first_stage(), reranker=lambda query, passages: [0] * len(passages))
    assert [p.metadata["first_rank"] for p in retriever.invoke(QUERY)] == [1, 2, 3, 4]


@pytest.mark.parametrize("scores", [[1.0], [1.0, float("nan"), 1.0, 1.0]])
def test_reranker_that_does_not_score_each_passage_is_refused(scores):
    with pytest.raises(ValueError, match="one finite number per passage"):
        RerankingRetriever(retriever=first_stage(), reranker=lambda query, passages: scores).invoke(QUERY)


def test_any_langchain_retriever_can_be_the_first_stage():
    from langchain_core.retrievers import BaseRetriever

    class Plain(BaseRetriever):
        def _get_relevant_documents(self, query, *, run_manager):
            return [Document(page_content=text) for text in TEXTS]

    retriever = RerankingRetriever(retriever=Plain(), reranker=LateInteractionReranker(WordVectors(), weight=0.1), depth=3, top_k=9)
    passages = retriever.invoke("frequent words")
    assert passages[0].page_content == TEXTS[2] and len(passages) == 6
    assert passages[0].metadata["first_score"] is None and passages[0].metadata["first_rank"] == 3


def test_reranked_passages_feed_a_chain():
    chain = RerankingRetriever(retriever=first_stage(), reranker=LateInteractionReranker(WordVectors())) | RunnableLambda(len)
    assert chain.invoke(QUERY) == 4


# --- blending --------------------------------------------------------------------------------------------------------------------


def test_blend_adds_standardised_scores():
    passages = found("a", "b", "c", scores=[30.0, 20.0, 10.0])
    judged = blend([1.0, 1.0, 4.0], passages, 0.5)
    own, first = np.array([-1, -1, 2]) / np.sqrt(2), np.array([1, 0, -1]) / np.sqrt(2 / 3)
    assert [one.score for one in judged] == pytest.approx((own + 0.5 * first).tolist())
    assert [one.notes["reranker_score"] for one in judged] == [1.0, 1.0, 4.0]


def test_blend_of_weight_zero_leaves_scores_and_equal_scores_do_not_divide_by_zero():
    passages = found("a", "b", scores=[7.0, 7.0])
    assert blend([3.0, 1.0], passages, 0) == [Judgement(3.0), Judgement(1.0)]
    assert [one.score for one in blend([5.0, 5.0], passages, 1.0)] == [0.0, 0.0]


def test_blend_uses_ranks_where_the_first_stage_has_no_scores():
    passages = [Document(page_content=text) for text in "abc"]
    scores = [one.score for one in blend([0.0, 0.0, 0.0], passages, 1.0)]
    assert scores[0] > scores[1] > scores[2]


# --- late interaction ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(0, 2**16))
def test_max_sim_equals_its_definition(query_tokens, lengths, seed):
    generator = np.random.default_rng(seed)
    query, passages = generator.normal(size=(query_tokens, 8)), [generator.normal(size=(length, 8)) for length in lengths]
    expected = [np.mean([max(q @ p for p in passage) for q in query]) if len(passage) else -1.0 for passage in passages]
    assert max_sim(query, passages) == pytest.approx(np.array(expected), abs=1e-5)


def test_max_sim_of_a_query_without_tokens_prefers_nothing():
    assert max_sim(np.empty((0, 4)), [np.eye(4), np.eye(4)]).tolist() == [-1.0, -1.0]
    assert max_sim(np.eye(4), []).shape == (0,)


def test_late_interaction_ranks_by_covered_query_words():
    reranker = LateInteractionReranker(WordVectors(), weight=0.0)
    scores = [one.score for one in reranker("frequent words", found(*TEXTS[:3]))]
    assert scores == [0.0, 0.0, 1.0]


def test_passages_are_embedded_once_and_the_cache_has_a_limit():
    embedder = WordVectors()
    reranker = LateInteractionReranker(embedder)
    reranker.vectors(TEXTS)
    reranker(QUERY, found(*TEXTS, TEXTS[0]))
    assert embedder.embedded == [*TEXTS, QUERY]
    small = LateInteractionReranker(WordVectors(), cache_tokens=20)
    small.vectors(TEXTS)
    assert 0 < sum(map(len, small._kept.values())) == small._tokens <= 20 and list(small._kept)[-1] == TEXTS[-1]
    assert len(small(QUERY, found(*TEXTS))) == len(TEXTS)


@pytest.fixture(scope="module")
def minilm():
    from utils.models import load_embedder

    return load_embedder("minilm")


def test_token_embeddings_are_the_last_hidden_vectors_without_special_tokens(minilm):
    import torch

    texts = ["NF4 stores four bits.", "", "A longer text: the KV cache keeps keys and values of all tokens. 量化"]
    vectors = minilm.token_embeddings(texts)
    for text, found_vectors in zip(texts, vectors):
        encoded = minilm.tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            hidden = minilm.model(**encoded).last_hidden_state[0, 1:-1].float()
        assert found_vectors.shape == (encoded["input_ids"].shape[1] - 2, 384) and found_vectors.dtype == np.float32
        assert found_vectors == pytest.approx(torch.nn.functional.normalize(hidden, dim=-1).numpy(), abs=1e-4)
    assert minilm.token_embeddings([]) == [] and minilm.token_embeddings(["word " * 900])[0].shape == (254, 384)


def test_minilm_compares_tokens_by_meaning(minilm):
    passages = found("The cat sat on a warm mat all day.", "Four bits per weight make a model smaller.")
    scores = [one.score for one in LateInteractionReranker(minilm, weight=0.0)("How does one shrink a network's memory?", passages)]
    assert scores[1] > scores[0]


# --- cross-encoder ---------------------------------------------------------------------------------------------------------------

SENTENCES = [f"Sentence number {n} of this text says nothing of note to any reader at all." for n in range(40)]
LONG = " ".join([*SENTENCES[:25], "The zebra grazes at dawn.", *SENTENCES[25:]])


def test_long_passages_are_read_at_their_best_window(cross_encoder):
    reranker = CrossEncoderReranker(cross_encoder, window_tokens=128)
    short, window, beginning = reranker.best_windows("Where does the zebra graze?", ["The zebra.", LONG, " ".join(SENTENCES)])
    assert short == "The zebra." and "zebra grazes at dawn" in window and window in LONG
    assert len(cross_encoder.tokenizer(window, add_special_tokens=False)["input_ids"]) <= 128
    assert beginning.startswith(SENTENCES[0])


def test_cross_encoder_scores_equal_those_of_the_model_on_the_windows(cross_encoder):
    passages = found(*TEXTS)
    expected = cross_encoder.predict([(QUERY, text) for text in TEXTS])
    assert [one.score for one in CrossEncoderReranker(cross_encoder)(QUERY, passages)] == pytest.approx(expected.tolist(), abs=1e-5)
    blended = CrossEncoderReranker(cross_encoder, weight=1e6)(QUERY, passages)
    assert np.argsort([-one.score for one in blended]).tolist() == list(range(len(TEXTS)))


def test_cross_encoder_with_several_labels_is_refused():
    class Classifier:
        tokenizer = None

        def predict(self, pairs, **options):
            return np.zeros((len(pairs), 3))

    reranker = CrossEncoderReranker(Classifier())
    reranker.best_windows = lambda query, texts: texts
    with pytest.raises(ValueError, match="one label"):
        reranker(QUERY, found(*TEXTS))


@pytest.fixture(scope="module")
def course_reranker():
    from utils.models import load_reranker

    return load_reranker()


def test_course_reranker_is_the_default_and_an_ordinary_cross_encoder(course_reranker):
    from sentence_transformers import CrossEncoder

    assert type(course_reranker) is CrossEncoder and type(course_reranker.model).__name__ == "BertForSequenceClassification"
    answer, topic, other = course_reranker.predict(
        [
            ("How many bits does NF4 use per weight?", "The NF4 data type stores each weight of the model in four bits."),
            ("How many bits does NF4 use per weight?", "Data types for weights have been studied for many years by many groups."),
            ("How many bits does NF4 use per weight?", "The bakery opens at seven and sells bread until noon."),
        ]
    )
    assert answer > topic > other and answer - other > 2, "logits, not squeezed into 0 to 1"


def test_course_reranker_finds_the_answer_of_handbook_questions_among_look_alikes(course_reranker):
    """nDCG@10 over BM25's first ten of 40 dev questions: 0.86 when it was trained; 0.4 to 0.5 for an order by chance."""
    passages = split_documents(load_documents(DATA / "handbook").documents)
    rows = map(json.loads, (DATA / "questions/handbook.jsonl").read_text(encoding="utf-8").splitlines())
    asked = [row for row in rows if row["answers"] and row["split"] == "dev"][:40]
    right = [support_passages(row["support"], passages) for row in asked]
    reranked = RerankingRetriever(
        retriever=BM25Retriever(passages=passages), reranker=CrossEncoderReranker(course_reranker), depth=10, top_k=10
    )
    found_ids = [[passage.metadata["id"] for passage in reranked.invoke(row["question"])] for row in asked]
    assert ndcg_at_k(found_ids, right, 10).mean() > 0.75


# --- LLM -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "order"),
    [
        ("[2] > [1] > [3]", [2, 1, 3]),
        ("[3, 1]", [3, 1]),
        ('```json\n{"order": [2, 3, 1]}\n```', [2, 3, 1]),
        ("3 > 1 > 2", [3, 1, 2]),
        ("Of the 3 passages, best first: 2, 3, 1.", [2, 3, 1]),
        ("The top 3 are [2] and [1].", [2, 1]),
        ("Passage 2", [2]),
        ("1. [3]\n2. [1]", [3, 1]),
        ("<think>[1] > [2]? No.</think>\n[2] > [1]", [2, 1]),
        ("[2] > [2] > [9] > [0] > [1]", [2, 1]),
        ("I cannot say.", []),
        ("", []),
        ("9" * 5000, []),
    ],
)
def test_orders_are_read_from_any_reply(reply, order):
    assert parse_order(reply, 3) == order


@settings(deadline=None)
@given(st.text(), st.integers(1, 12))
def test_no_reply_breaks_the_order(reply, count):
    numbers = parse_order(reply, count)
    assert len(set(numbers)) == len(numbers) and set(numbers) <= set(range(1, count + 1))


def test_missing_numbers_follow_in_the_first_order_and_say_so():
    retriever = RerankingRetriever(retriever=first_stage(), reranker=LLMReranker(FakeListChatModel(responses=["[3] > [7]"])))
    passages = retriever.invoke(QUERY)
    assert [p.metadata["first_rank"] for p in passages] == [3, 1, 2, 4]
    assert [p.metadata["ranked_by"] for p in passages] == ["model", "first stage", "first stage", "first stage"]
    assert [p.metadata["score"] for p in passages] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])


def test_prompt_holds_the_question_and_numbered_passages_cut_to_length():
    seen = []

    class Listening(FakeListChatModel):
        def _call(self, messages, *args, **kwargs):
            seen.append(str(messages[0].content))
            return "[1]"

    LLMReranker(Listening(responses=[""]), max_characters=19)("What is\n{this}?", found("A {brace} stays.", "word " * 99))
    assert "[1] A {brace} stays.\n\n[2] word word word word\n\n" in seen[0] and "Question: What is {this}?" in seen[0]


class Best(FakeListChatModel):
    """Names the passage that says "best" first, if it sees it."""

    calls: int = 0

    def _call(self, messages, *args, **kwargs):
        self.calls += 1
        lines = [line for line in str(messages[0].content).splitlines() if line.startswith("[") and "best" in line]
        return lines[0].split("]")[0] + "]" if lines else "?"


@pytest.mark.parametrize("count", [1, 4, 5, 9, 23])
def test_windows_carry_the_best_passage_to_the_front(count):
    model = Best(responses=[""])
    judged = LLMReranker(model, window=4, step=2)("which?", found(*["other"] * (count - 1), "the best"))
    scores = [one.score for one in judged]
    assert scores[-1] == 1.0 and judged[-1].notes == {"ranked_by": "model"} and scores[:-1] == sorted(scores[:-1], reverse=True)
    assert model.calls == max(0, -(-(count - 4) // 2)) + 1


def test_step_beyond_the_window_is_refused():
    with pytest.raises(ValueError, match="step"):
        LLMReranker(FakeListChatModel(responses=[""]), window=4, step=5)


def test_local_chat_model_reranks(tmp_path):
    from tiny_models import make_llm

    from utils.models import load_chat_model

    chat_model = load_chat_model(make_llm(tmp_path / "llm", max_position_embeddings=2048), max_new_tokens=8)
    passages = RerankingRetriever(retriever=first_stage(), reranker=LLMReranker(chat_model)).invoke(QUERY)
    assert len(passages) == 4 and {p.metadata["ranked_by"] for p in passages} <= {"model", "first stage"}
