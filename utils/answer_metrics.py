"""Answer metrics: is the answer right, do its passages support it, are its citations good, and is it silent when it should be?

Imported through `utils.evaluation`. Right or wrong is judged against reference answers (exact match, token F1, ROUGE-L); faithful or
not against the passages that were shown. Shares go from 0 to 1; NaN marks what does not apply. Counts words, understands nothing:
each docstring says what that cannot see.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_STOP_WORDS = frozenset(
    "a about also an and any are as at be because been but by can could do does each for from had has have he her his how if in into is it "
    "its may more most of on one only or other our out over she should so some such than that the their them then there these they "
    "this those to too up was we were what when where which while who why will with would you your".split()
)
_CLAIM_BORDER = re.compile(r"(?<=[.!?;])\s+(?![a-z\d])|(?<=[。！？；])|\n+")  # "et al. 2023" stays in one piece
_ENDING = re.compile(r"(?<=\w{3})(?:ing|ed|es|s|e)$")


def normalize_answer(text: str) -> str:
    """Return `text` in lower case, without punctuation, articles and extra spaces (SQuAD's normalisation)."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, answers: str | Sequence[str]) -> float:
    """Return 1.0 if the prediction equals one of the answers after normalisation, else 0.0."""
    return float(normalize_answer(prediction) in {normalize_answer(answer) for answer in _several(answers)})


def token_f1(prediction: str, answers: str | Sequence[str]) -> float:
    """Return the highest F1 of shared words between the prediction and one of the answers, from 0.0 to 1.0."""
    return max(_word_f1(prediction, answer) for answer in _several(answers))


def _word_f1(prediction: str, answer: str) -> float:
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not predicted or not expected:
        return float(predicted == expected)
    shared = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * shared / (len(predicted) + len(expected))


def _several(answers: str | Sequence[str]) -> Sequence[str]:
    answers = [answers] if isinstance(answers, str) else answers
    if not answers:
        raise ValueError("No answer to compare with. Judge questions that have none with abstention_scores.")
    return answers


def rouge_words(text: str) -> list[str]:
    """Return the words that ROUGE counts: runs of a–z and 0–9 in lower case, without stemming, as in the package rouge-score."""
    return re.findall(r"[a-z0-9]+", text.lower())


def rouge_l(prediction: str, answers: str | Sequence[str], words: Callable[[str], list[str]] = rouge_words) -> float:
    """Return the highest ROUGE-L F-measure between the prediction and one of the answers: words shared in the same order.

    Other scripts than Latin have no words here; `words=utils.retrieval.tokenize` gives them some. A right answer in other words
    scores low. Source: Lin, ROUGE, 2004; numbers equal those of the package rouge-score.
    """
    predicted, expected = words(prediction), [words(answer) for answer in _several(answers)]
    return max(2 * common_subsequence(predicted, one) / (len(predicted) + len(one)) if predicted and one else 0.0 for one in expected)


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence: words that occur in both in the same order, gaps allowed.

    One bit per word of `a` in one large integer, one addition per word of `b`: 1,000 × 1,000 words take about a millisecond.
    Source: Hyyrö, "Bit-Parallel LCS-length Computation Revisited", 2004.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    everywhere = open_places = (1 << len(a)) - 1
    for word in b:
        matched = open_places & places.get(word, 0)
        open_places = (open_places + matched | open_places - matched) & everywhere
    return len(a) - open_places.bit_count()


class Faithfulness(NamedTuple):
    """How much of an answer its passages support, whether or not it is right."""

    tokens: float
    """Share of the answer's content words that occur in any of the passages; NaN if it has none."""
    claims: float
    """Share of its claims that one single passage supports; NaN if it makes none."""
    unsupported: list[str]
    """The claims that no passage supports, verbatim."""


def faithfulness(answer: str, passages: Sequence[str], threshold: float = 0.75) -> Faithfulness:
    """Return how much of `answer` the texts of its passages support, by words.

    A claim is a sentence, clause after a semicolon, or line. A passage supports it if it holds at least `threshold` of the claim's
    content words (endings like -s and -ed aside) and every number of it. Passages cited by the answer only, in place of all shown,
    make `claims` the citation recall of ALCE (Gao et al., 2023).
    Limits: words are compared, not meanings. In a long claim one "not" more or less goes unseen, and so does a swap of who did what;
    a paraphrase, and a claim that needs two passages together, count as unsupported. Leave out abstentions: they claim nothing.
    Measured on the handbook's dev questions: of the claims in reviewed answers, 98 % are supported by the passages they come from,
    12 % by the three other passages nearest by BM25. RAGAS (Es et al., 2023) asks an LLM instead, at a call per claim, and it errs too.
    """
    evidence = [set(_content(passage)) for passage in passages]
    anywhere = set().union(*evidence)
    words = _content(answer)
    claims = [claim.strip() for claim in _CLAIM_BORDER.split(answer) if _content(claim)]
    unsupported = [claim for claim in claims if not any(_supports(one, _content(claim), threshold) for one in evidence)]
    return Faithfulness(
        tokens=_share(sum(word in anywhere for word in words), len(words)),
        claims=_share(len(claims) - len(unsupported), len(claims)),
        unsupported=unsupported,
    )


def _content(text: str) -> list[str]:
    """Return the words of `text` that carry content, without their common English endings, once per occurrence."""
    from utils.retrieval import tokenize  # brings LangChain's retrievers, which scores of answers do without

    return [_ENDING.sub("", word) for word in tokenize(text) if word not in _STOP_WORDS]


def _supports(evidence: set[str], claim: list[str], threshold: float) -> bool:
    numbers = {word for word in claim if word[0].isdigit()}
    return numbers <= evidence and sum(word in evidence for word in claim) >= threshold * len(claim)


def citation_precision(cited: Sequence[Collection[str]], relevant: Sequence[Collection[str]]) -> Floats:
    """Return, per answer, the share of its citations that point at a relevant passage; NaN where nothing is cited."""
    return np.array([len(set(c) & set(r)) / len(set(c)) if c else np.nan for c, r in zip(cited, relevant, strict=True)])


def citation_recall(cited: Sequence[Collection[str]], needed: Sequence[Collection[str | Collection[str]]]) -> Floats:
    """Return, per answer, the share of what it needs to cite that it cites; NaN where there is nothing to cite.

    What an answer needs: ids, or groups of ids of which any one will do. One group `[support_passages(support, passages)]` for a
    fact that stands in several passages; `[support_passages([one], passages) for one in support]` where every support is needed.
    """
    recalls = []
    for ids, wanted in zip(cited, needed, strict=True):
        groups = [{one} if isinstance(one, str) else set(one) for one in wanted]
        recalls.append(_share(sum(not group.isdisjoint(ids) for group in groups), len(groups)))
    return np.array(recalls)


class AbstentionScores(NamedTuple):
    """How well a system knows when to be silent; all shares from 0 to 1, NaN where undefined."""

    precision: float
    """Of the questions it left unanswered, the share that has no answer."""
    recall: float
    """Of the questions without an answer, the share it left unanswered."""
    f1: float
    false_rate: float
    """Of the questions with an answer, the share it left unanswered."""


def abstention_scores(abstained: Sequence[bool], answerable: Sequence[bool]) -> AbstentionScores:
    """Return precision, recall, F1 and false rate of abstaining, over questions with and without an answer."""
    silent, has_answer = np.asarray(abstained, dtype=bool), np.asarray(answerable, dtype=bool)
    if silent.shape != has_answer.shape:
        raise ValueError(f"{silent.size} abstentions for {has_answer.size} questions: give one of each per question.")
    right = float((silent & ~has_answer).sum())
    return AbstentionScores(
        precision=_share(right, silent.sum()),
        recall=_share(right, (~has_answer).sum()),
        f1=_share(2 * right, silent.sum() + (~has_answer).sum()),
        false_rate=_share((silent & has_answer).sum(), has_answer.sum()),
    )


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
