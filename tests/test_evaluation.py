"""Metrics against the definitions, written out slowly here, and against values worked out by hand."""

import json
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document

from utils import evaluation as ev
from utils.answer_metrics import common_subsequence, rouge_words
from utils.retrieval import tokenize
from utils.runtime import DATA

IDS = [f"p{i}" for i in range(12)]
QUESTION = st.tuples(st.lists(st.sampled_from(IDS), max_size=12, unique=True), st.sets(st.sampled_from(IDS), min_size=1))
GRADED = st.tuples(
    st.lists(st.sampled_from(IDS), max_size=12, unique=True),
    st.dictionaries(st.sampled_from(IDS), st.integers(1, 4).map(float), min_size=1),
)


def split(questions):
    return [list(part) for part in zip(*questions, strict=True)]


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(QUESTION, min_size=1, max_size=6), st.integers(1, 15))
def test_binary_ranking_metrics_equal_their_definitions(questions, k):
    rankings, relevant = split(questions)
    for i, (ranking, wanted) in enumerate(questions):
        hits = [place for place, key in enumerate(ranking[:k], start=1) if key in wanted]
        assert ev.recall_at_k(rankings, relevant, k)[i] == pytest.approx(len(hits) / len(wanted))
        assert ev.precision_at_k(rankings, relevant, k)[i] == pytest.approx(len(hits) / k)
        assert ev.mrr_at_k(rankings, relevant, k)[i] == pytest.approx(1 / hits[0] if hits else 0)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(GRADED, min_size=1, max_size=6), st.integers(1, 15))
def test_graded_ndcg_equals_its_definition(questions, k):
    rankings, relevant = split(questions)
    found = ev.ndcg_at_k(rankings, relevant, k)
    for i, (ranking, gains) in enumerate(questions):
        dcg = sum(gains.get(key, 0) / math.log2(place + 1) for place, key in enumerate(ranking[:k], start=1))
        ideal = sum(g / math.log2(place + 1) for place, g in enumerate(sorted(gains.values(), reverse=True)[:k], start=1))
        assert found[i] == pytest.approx(dcg / ideal)


def test_ranking_metrics_equal_those_of_ir_measures_on_random_cases():
    measures = pytest.importorskip("ir_measures")
    generator = np.random.default_rng(3)
    keys = [f"d{number}" for number in range(40)]
    graded = [dict(zip(generator.choice(keys, size=8, replace=False), generator.integers(0, 4, size=8).astype(float))) for _ in range(200)]
    graded = [{**one, "d0": 1.0} for one in graded]
    rankings = [generator.choice(keys, size=size, replace=False).tolist() for size in generator.integers(1, 30, size=200)]
    qrels = [measures.Qrel(str(row), key, int(gain)) for row, one in enumerate(graded) for key, gain in one.items()]
    run = [measures.ScoredDoc(str(row), key, -float(place)) for row, one in enumerate(rankings) for place, key in enumerate(one)]
    ours = {measures.R: ev.recall_at_k, measures.P: ev.precision_at_k, measures.RR: ev.mrr_at_k, measures.nDCG: ev.ndcg_at_k}
    for measure, function in ours.items():
        for k in (1, 3, 10):
            expected = {int(one.query_id): one.value for one in measures.iter_calc([measure @ k], qrels, run)}
            found = function(rankings, graded, k)
            assert found == pytest.approx(np.array([expected[row] for row in range(200)]), abs=1e-9), (measure, k)


def test_a_passage_listed_twice_counts_once():
    assert ev.recall_at_k([["a", "a", "b"]], [{"a", "b"}], 2).tolist() == [1.0]
    assert ev.precision_at_k([["a", "a"]], [{"a"}], 2).tolist() == [0.5]


def test_question_without_relevant_passage_is_named():
    with pytest.raises(ValueError, match="Question 1 .*abstention_scores"):
        ev.recall_at_k([["a"], ["b"]], [{"a"}, set()], 3)


def test_uneven_lists_and_bad_k_are_refused():
    with pytest.raises(ValueError, match="2 rankings, 1 sets"):
        ev.mrr_at_k([["a"], ["b"]], [{"a"}], 3)
    with pytest.raises(ValueError, match="k ≥ 1"):
        ev.mrr_at_k([["a"]], [{"a"}], 0)


def test_hundred_thousand_rankings_take_seconds():
    keys = [str(i) for i in range(1000)]
    rankings = [keys[i % 900 : i % 900 + 10] for i in range(100_000)]
    relevant = [{keys[(i * 7) % 1000]} for i in range(100_000)]
    start = time.process_time()
    assert ev.ndcg_at_k(rankings, relevant, 10).shape == (100_000,)
    assert time.process_time() - start < 10


def test_bootstrap_of_hundred_thousand_questions_takes_seconds():
    values = np.random.default_rng(0).uniform(size=100_000)
    start = time.process_time()
    assert ev.paired_bootstrap(values + 0.1, values).low == pytest.approx(0.1)
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    ("text", "normal"),
    [("The  NF4, an 'ideal' type!", "nf4 ideal type"), ("A/B", "ab"), ("theory", "theory"), ("", ""), ("the", "")],
)
def test_answers_are_normalised_as_in_squad(text, normal):
    assert ev.normalize_answer(text) == normal


def test_exact_match_takes_any_of_the_answers():
    assert ev.exact_match("The four bits.", ["4 bits", "four bits"]) == 1.0
    assert ev.exact_match("four", "four bits") == 0.0


def test_token_f1_is_the_best_over_the_answers():
    assert ev.token_f1("in four bits", ["eight bits", "four bits"]) == pytest.approx(0.8)
    assert ev.token_f1("nothing shared", "four bits") == 0.0
    assert ev.token_f1("bits bits bits", "bits") == pytest.approx(0.5)
    assert ev.token_f1("the", "a") == 1.0  # both empty once normalised


def test_no_answer_to_compare_with_is_refused():
    with pytest.raises(ValueError, match="abstention_scores"):
        ev.exact_match("x", [])


@settings(deadline=None)  # a busy machine is no failure
@given(st.text(), st.text())
def test_token_f1_is_symmetric_and_one_for_equal_texts(a, b):
    assert ev.token_f1(a, b) == ev.token_f1(b, a)
    assert ev.token_f1(a, a) == ev.exact_match(a, a) == 1.0


WORDS = st.lists(st.sampled_from(["four", "bits", "NF4", "the", "a-b", "naïve", "量化", "x.y", "12", "."]), max_size=14).map(" ".join)


@settings(deadline=None)  # a busy machine is no failure
@given(st.one_of(WORDS, st.text()), st.lists(st.one_of(WORDS, st.text()), min_size=1, max_size=3))
def test_rouge_l_equals_the_package_rouge_score(prediction, answers):
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    expected = max(scorer.score(answer, prediction)["rougeL"].fmeasure for answer in answers)
    assert ev.rouge_l(prediction, answers) == pytest.approx(expected, abs=1e-9)


def test_rouge_l_by_hand_and_with_words_of_other_scripts():
    assert ev.rouge_l("police killed the gunman", "police kill the gunman") == pytest.approx(3 / 4)
    assert rouge_words("NF4's 4-bit") == ["nf4", "s", "4", "bit"]
    assert ev.rouge_l("四位", "四位") == 0.0 and ev.rouge_l("四位", "四位", words=tokenize) == 1.0


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.sampled_from("abcd"), max_size=40), st.lists(st.sampled_from("abcd"), max_size=40))
def test_common_subsequence_equals_the_textbook_table(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a, start=1):
        for j, y in enumerate(b, start=1):
            table[i][j] = table[i - 1][j - 1] + 1 if x == y else max(table[i - 1][j], table[i][j - 1])
    assert common_subsequence(a, b) == common_subsequence(b, a) == table[-1][-1]


PASSAGES = ["NF4 stores each weight in four bits. Its block size is 64.", "The KV cache keeps keys and values of every token."]


def test_answer_from_its_passages_is_faithful():
    found = ev.faithfulness("NF4 stores weights in four bits, with a block size of 64.\nThe cache keeps keys and values.", PASSAGES)
    assert found == (1.0, 1.0, [])


def test_claims_without_support_are_named():
    invented = "It was published by a team in Zurich."
    found = ev.faithfulness(f"NF4 stores each weight in four bits. {invented}", PASSAGES)
    assert found.claims == 0.5 and found.unsupported == [invented] and 0.5 < found.tokens < 1


def test_one_wrong_number_breaks_a_claim():
    assert ev.faithfulness("NF4 stores each weight in four bits at block size 128.", PASSAGES).claims == 0.0


def test_a_claim_needs_one_passage_that_holds_all_of_it():
    mixed = "Each weight of the KV cache stores keys in a block of bits"
    assert ev.faithfulness(mixed, PASSAGES) == (1.0, 0.0, [mixed])


def test_nothing_claimed_has_no_faithfulness_and_no_passage_supports_nothing():
    empty = ev.faithfulness("", PASSAGES)
    assert math.isnan(empty.tokens) and math.isnan(empty.claims) and empty.unsupported == []
    assert ev.faithfulness("NF4 stores bits.", []) == (0.0, 0.0, ["NF4 stores bits."])


def test_faithfulness_knows_other_scripts():
    assert ev.faithfulness("权重存成四位。", ["量化把权重存成四位。"]).claims == 1.0
    assert ev.faithfulness("Токенизатор делит слова.", ["Токенизатор делит слова на части."]).claims == 1.0


def test_reviewed_answers_are_faithful_to_their_own_support_and_not_to_another():
    lines = (DATA / "questions" / "handbook.jsonl").read_text(encoding="utf-8").splitlines()
    gold = [q for q in map(json.loads, lines) if q["answers"] and q["split"] == "dev"]
    supports = [[one["text"] for one in q["support"]] for q in gold]
    own = [ev.faithfulness(q["answers"][0], texts).claims for q, texts in zip(gold, supports)]
    other = [ev.faithfulness(q["answers"][0], texts).claims for q, texts in zip(gold, supports[1:] + supports[:1])]
    assert np.nanmean(own) > 0.9 and np.nanmean(other) < 0.1


def test_citation_recall_by_hand():
    cited = [["a", "b"], [], ["c", "x"], ["d"], []]
    needed = [{"a", "b", "z"}, ["a"], [{"c", "d"}], [("a", "d"), {"e"}], []]
    found = ev.citation_recall(cited, needed)
    assert found[:4].tolist() == pytest.approx([2 / 3, 0.0, 1.0, 0.5]) and np.isnan(found[4])


def test_citation_precision_ignores_answers_that_cite_nothing():
    values = ev.citation_precision([["a", "b"], [], ["c"]], [{"a"}, {"b"}, {"c"}])
    assert values[0] == 0.5 and np.isnan(values[1]) and values[2] == 1.0


def test_abstention_scores_by_hand():
    scores = ev.abstention_scores([True, True, False, False, True], [False, True, False, True, False])
    assert scores.precision == pytest.approx(2 / 3) and scores.recall == pytest.approx(2 / 3)
    assert scores.f1 == pytest.approx(2 / 3) and scores.false_rate == 0.5
    never = ev.abstention_scores([False], [True])
    assert math.isnan(never.precision) and math.isnan(never.recall) and never.false_rate == 0.0


def test_supporting_passage_is_found_however_the_splitter_cut():
    support = [{"article": "nf4", "text": "NF4 has sixteen levels. They are quantiles of\na normal distribution."}]
    texts = ["Intro.", "NF4 has sixteen levels. They are", "quantiles of a normal", "normal distribution. The block size is 64."]
    cut = [Document(page_content=text, metadata={"id": str(i), "article": "nf4"}) for i, text in enumerate(texts)]
    other = Document(page_content="NF4 has sixteen levels.", metadata={"id": "x", "article": "other"})
    assert ev.support_passages(support, [*cut, other]) == {"1", "2"}


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    intervals = [ev.bootstrap_interval(generator.normal(size=60), n=300, seed=i) for i in range(200)]
    assert 0.88 <= np.mean([i.low <= 0 <= i.high for i in intervals]) <= 0.99


def test_interval_is_repeatable_and_skips_nan():
    assert ev.bootstrap_interval([0, 1, np.nan, 1]) == ev.bootstrap_interval([0, 1, 1])
    assert str(ev.bootstrap_interval([1.0, 1.0])) == "1.000 [1.000, 1.000]"


def test_interval_of_many_values_is_drawn_in_parts():
    interval = ev.bootstrap_interval(np.tile([0.0, 1.0], 50_000), n=100)
    assert interval.low < interval.mean == 0.5 < interval.high


def test_nothing_to_average_is_refused():
    with pytest.raises(ValueError, match="Nothing to average"):
        ev.bootstrap_interval([np.nan])


def test_pairing_sees_a_difference_that_two_intervals_hide():
    hardness = np.random.default_rng(0).uniform(size=100)
    better, worse = hardness + 0.05, hardness
    assert ev.bootstrap_interval(better).low < ev.bootstrap_interval(worse).high
    difference = ev.paired_bootstrap(better, worse)
    assert difference.low > 0 and difference.p_value < 0.01
    assert difference.mean == pytest.approx(0.05)


def test_equal_systems_do_not_differ():
    assert ev.paired_bootstrap([0, 1, 1], [0, 1, 1]).p_value == 1.0
    with pytest.raises(ValueError, match="same questions"):
        ev.paired_bootstrap([1], [1, 2])
