"""Chapter 04's checks: any right answer is accepted, in PyTorch or NumPy, and a wrong one is told why."""

import numpy as np
import pytest
import torch

from utils.exercises import verdict


def posterior(log_prior, log_likelihood):
    return (log_prior + log_likelihood).softmax(dim=0)


def posterior_in_numpy(log_prior, log_likelihood):
    joint = np.asarray(log_prior) + np.asarray(log_likelihood)
    joint = np.exp(joint - joint.max())
    return list(joint / joint.sum())


def rag_token(log_prior, token_log_likelihood):
    return (log_prior.unsqueeze(1) + token_log_likelihood).logsumexp(dim=0).sum()


def rag_token_in_a_loop(log_prior, token_log_likelihood):
    total = 0.0
    for token in range(token_log_likelihood.shape[1]):
        terms = [float(log_prior[z]) + float(token_log_likelihood[z, token]) for z in range(len(log_prior))]
        total += max(terms) + np.log(sum(np.exp(term - max(terms)) for term in terms))
    return total


def fast_decoding(log_prior, log_likelihood, own):
    proposed = torch.zeros_like(log_likelihood, dtype=torch.bool)
    proposed[range(len(own)), own] = True
    return (log_prior.unsqueeze(1) + log_likelihood).masked_fill(~proposed, -torch.inf).logsumexp(dim=0).argmax()


def fast_decoding_in_a_loop(log_prior, log_likelihood, own):
    total = [0.0] * log_likelihood.shape[1]
    for passage, column in enumerate(own):
        total[column] += float((log_prior[passage] + log_likelihood[passage, column]).exp())
    return total.index(max(total))


RIGHT = [
    ("04-easy", posterior),
    ("04-easy", posterior_in_numpy),
    ("04-medium", rag_token),
    ("04-medium", rag_token_in_a_loop),
    ("04-hard", fast_decoding),
    ("04-hard", fast_decoding_in_a_loop),
]


@pytest.mark.parametrize(("exercise", "answer"), RIGHT)
def test_right_answer_is_accepted(exercise, answer):
    right, why = verdict(exercise, answer)
    assert right, why


def naive_posterior(log_prior, log_likelihood):
    joint = (log_prior + log_likelihood).exp()
    return joint / joint.sum()


def naive_rag_token(log_prior, token_log_likelihood):
    return (log_prior.exp() @ token_log_likelihood.exp()).log().sum()


def thorough(log_prior, log_likelihood, own):
    return (log_prior.unsqueeze(1) + log_likelihood).logsumexp(dim=0).argmax()


def largest_term(log_prior, log_likelihood, own):
    joint = [float(log_prior[z] + log_likelihood[z, column]) for z, column in enumerate(own)]
    return own[int(np.argmax(joint))]


def without_prior(log_prior, log_likelihood, own):
    return fast_decoding(torch.zeros_like(log_prior), log_likelihood, own)


def votes(log_prior, log_likelihood, own):
    return max(set(own), key=own.count)


WRONG = [
    ("04-easy", lambda log_prior, log_likelihood: None, "one probability"),
    ("04-easy", lambda log_prior, log_likelihood: (log_prior + log_likelihood).logsumexp(0), "one probability"),
    ("04-easy", lambda log_prior, log_likelihood: (log_prior + log_likelihood).exp(), "not to 1"),
    ("04-easy", lambda log_prior, log_likelihood: (log_prior + log_likelihood).log_softmax(0), "take exp"),
    ("04-easy", lambda log_prior, log_likelihood: log_likelihood.softmax(0), "log_prior"),
    ("04-easy", lambda log_prior, log_likelihood: log_prior.exp(), "prior alone"),
    ("04-easy", lambda log_prior, log_likelihood: torch.full((3,), 1 / 3), "yours is"),
    ("04-easy", naive_posterior, "exp(-2000)"),
    ("04-medium", lambda log_prior, token_log_likelihood: None, "one number"),
    ("04-medium", lambda log_prior, token_log_likelihood: (log_prior + token_log_likelihood.sum(1)).logsumexp(0), "RAG-Sequence"),
    ("04-medium", lambda log_prior, token_log_likelihood: rag_token(log_prior, token_log_likelihood).exp(), "its logarithm"),
    ("04-medium", lambda log_prior, token_log_likelihood: token_log_likelihood.exp().mean(0).log().sum(), "alike"),
    ("04-medium", lambda log_prior, token_log_likelihood: token_log_likelihood.logsumexp(0).sum(), "expected"),
    ("04-medium", naive_rag_token, "exp(-900)"),
    ("04-hard", lambda log_prior, log_likelihood, own: None, "a column of an answer"),
    ("04-hard", lambda log_prior, log_likelihood, own: 7, "a column of an answer"),
    ("04-hard", lambda log_prior, log_likelihood, own: log_prior, "a column of an answer"),
    ("04-hard", thorough, "thorough decoding"),
    ("04-hard", largest_term, "add up"),
    ("04-hard", without_prior, "prior"),
    ("04-hard", votes, "count of passages"),
]


@pytest.mark.parametrize(("exercise", "answer", "said"), WRONG)
def test_wrong_answer_is_explained(exercise, answer, said):
    right, why = verdict(exercise, answer)
    assert not right and said in why
