"""Metrics against the definitions, written out slowly here, and against values worked out by hand."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document

from utils import evaluation as ev

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
