"""The exercises of chapter 04, RAG-Sequence: whose answer was it, the other model's formula, and decoding in a hurry.

The checks run on made-up log-likelihoods, as PyTorch tensors like those of `rag_scores.PassageAnswers`; they know no model.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from utils.exercises import Exercise

Verdict = tuple[bool, str]

PRIOR = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
OF_ANSWER = torch.tensor([0.02, 0.4, 0.001], dtype=torch.float64).log()
OF_TOKENS = torch.tensor([[0.9, 0.1, 0.8], [0.2, 0.7, 0.9], [0.5, 0.5, 0.1]], dtype=torch.float64).log()


def numbers(found: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the answer as an array, or None where it has another shape or is no number."""
    if found is None:
        return None
    values = np.asarray(found.detach() if isinstance(found, torch.Tensor) else found, dtype=float)
    return values if values.shape == shape else None


def check_posterior(answer: Callable[[Any, Any], Any]) -> Verdict:
    """A right answer returns p(z|x,y): the joint probabilities over their sum, also where they are too small for a float."""
    found = numbers(answer(PRIOR.clone(), OF_ANSWER.clone()), (3,))
    if found is None:
        return False, "the function has to return one probability for each of the 3 passages. Stuck? hint('04-easy')"
    joint = (PRIOR + OF_ANSWER).exp().numpy()
    if not np.allclose(found, joint / joint.sum(), atol=1e-6):
        return False, explain_posterior(found, joint)
    tiny = numbers(answer(PRIOR.clone(), OF_ANSWER - 2000), (3,))
    if tiny is None or not np.allclose(tiny, joint / joint.sum(), atol=1e-6):
        return False, "right for short answers, but a long one has log-likelihoods near -2000, and exp(-2000) is 0: stay in logarithms."
    return True, "prior times likelihood, divided by their sum, and safe for long answers."


def explain_posterior(found: np.ndarray, joint: np.ndarray) -> str:
    """Return what is wrong with a posterior, the most telling fault first."""
    if np.allclose(found, joint, atol=1e-9):
        return f"these are the joint probabilities; they sum to {joint.sum():.3f}, not to 1. Divide by their sum."
    if np.allclose(found, np.log(joint / joint.sum()), atol=1e-6):
        return "these are logarithms of the right probabilities; take exp."
    if np.allclose(found, OF_ANSWER.softmax(0).numpy(), atol=1e-6):
        return "this weighs only by the likelihood; how well the passage fits the question, log_prior, has its say, too."
    if np.allclose(found, PRIOR.exp().numpy(), atol=1e-6):
        return "this is the prior alone: what the passages were worth before the answer was looked at."
    return f"for passage by passage expected {(joint / joint.sum()).round(3).tolist()}, yours is {found.round(3).tolist()}."


def check_rag_token(answer: Callable[[Any, Any], Any]) -> Verdict:
    """A right answer returns log p(y|x) of RAG-Token, here and where the probabilities are too small for a float."""
    found = numbers(answer(PRIOR.clone(), OF_TOKENS.clone()), ())
    if found is None:
        return False, "the function has to return one number, log p(y|x). Stuck? hint('04-medium')"
    expected = (PRIOR.unsqueeze(1) + OF_TOKENS).logsumexp(0).sum().item()
    if not np.isclose(found, expected, atol=1e-6):
        return False, explain_rag_token(float(found), expected)
    tiny = numbers(answer(PRIOR.clone(), OF_TOKENS - 900), ())
    if tiny is None or not np.isclose(tiny, expected - 900 * OF_TOKENS.shape[1], rtol=1e-6):
        return False, "right, but unlikely tokens have log-likelihoods near -900, and exp(-900) is 0: use logsumexp."
    return True, "at every token a sum over passages, and the product over tokens outside."


def explain_rag_token(found: float, expected: float) -> str:
    """Return what is wrong with RAG-Token's log-likelihood, the most telling fault first."""
    sequence = (PRIOR + OF_TOKENS.sum(1)).logsumexp(0).item()
    if np.isclose(found, sequence, atol=1e-6):
        return "this is RAG-Sequence: the product over tokens stands inside the sum over passages. Turn the two round."
    if np.isclose(found, np.exp(expected), atol=1e-6):
        return "this is p(y|x); wanted is its logarithm."
    if np.isclose(found, OF_TOKENS.exp().mean(0).log().sum().item(), atol=1e-6):
        return "this counts all passages alike; weigh each by its prior."
    return f"expected {expected:.4f}, yours is {found:.4f}. The prior belongs into the sum at every token."


def check_fast_decoding(answer: Callable[[Any, Any, Any], Any]) -> Verdict:
    """A right answer returns the column with the largest sum over the passages that proposed it, on every one of 40 draws."""
    generator, chosen, rules = torch.Generator().manual_seed(4), [], []
    for _ in range(40):
        own = [0, 1, 1, 2]
        prior = (3 * torch.rand(4, generator=generator, dtype=torch.float64)).log_softmax(0)
        likelihood = -6 * torch.rand(4, 3, generator=generator, dtype=torch.float64)
        found = answer(prior.clone(), likelihood.clone(), list(own))
        if numbers(found, ()) is None or int(found) != float(found) or not 0 <= int(found) < 3:
            return False, f"the function returned {found!r}; it has to return a column of an answer. Stuck? hint('04-hard')"
        chosen.append(int(found))
        rules.append(decoding_rules(prior, likelihood, own))
    if chosen != [columns["fast"] for columns in rules]:
        return False, explain_decoding(chosen, rules)
    return True, "on 40 draws of 4 passages only those that proposed an answer vote for it, each with prior times likelihood."


def decoding_rules(prior: torch.Tensor, likelihood: torch.Tensor, own: list[int]) -> dict[str, int]:
    """Return the column that fast decoding chooses, and those of four rules that a reader may take for it."""
    proposed = torch.zeros_like(likelihood, dtype=torch.bool)
    proposed[range(len(own)), own] = True
    joint = prior.unsqueeze(1) + likelihood
    kept = joint.masked_fill(~proposed, -torch.inf)
    rules = {
        "fast": kept.logsumexp(0),
        "thorough": joint.logsumexp(0),
        "maximum": kept.amax(0),
        "without the prior": likelihood.masked_fill(~proposed, -torch.inf).logsumexp(0),
        "votes": proposed.double().sum(0),
    }
    return {name: int(value.argmax()) for name, value in rules.items()}


def explain_decoding(chosen: list[int], rules: list[dict[str, int]]) -> str:
    """Return which other rule the choices of all draws look like, and on how many they are wrong."""
    advice = {
        "thorough": "they look like thorough decoding, where every passage votes on every answer; leave out those that did not propose it",
        "maximum": "they look like the largest single term; passages that propose the same answer add up",
        "without the prior": "they look like likelihoods alone; weigh each by its passage's prior",
        "votes": "they look like a count of passages; weigh each vote by prior times likelihood",
    }
    alike = (advice[name] for name in advice if chosen == [columns[name] for columns in rules])
    wrong = sum(one != columns["fast"] for one, columns in zip(chosen, rules, strict=True))
    return f"on {wrong} of {len(rules)} draws the choice is another one: " + next(alike, "they follow no rule that this check knows") + "."


EXERCISES = [
    Exercise(
        "04-easy",
        "easy",
        [
            "It is Bayes' rule: prior times likelihood, divided by the sum of these products over the passages.",
            "In logarithms a product is a sum: `joint = log_prior + log_likelihood`.",
            "exp, then divide by the sum: that is what `joint.softmax(dim=0)` does, without ever leaving the range of a float.",
        ],
        check_posterior,
    ),
    Exercise(
        "04-medium",
        "medium",
        [
            "Look at the two formulas of section 6: sum and product change places.",
            "`log_prior.unsqueeze(1) + token_log_likelihood` has shape (passages, tokens): the logarithm of each term of the sum.",
            "`.logsumexp(dim=0)` sums over passages for every token; what remains is a sum over tokens.",
        ],
        check_rag_token,
    ),
    Exercise(
        "04-hard",
        "hard",
        [
            "`own[z]` is the column that passage z proposed. The other terms of its row count as probability 0, logarithm −∞.",
            "First a mask: `proposed = torch.zeros_like(log_likelihood, dtype=torch.bool)`, then `proposed[z, own[z]] = True`.",
            "`(log_prior.unsqueeze(1) + log_likelihood).masked_fill(~proposed, -torch.inf).logsumexp(dim=0).argmax()`",
        ],
        check_fast_decoding,
    ),
]
