"""Attention over a sheet: the shared tokens are causal, each branch sees these and, causally, itself.

Its gradient is written out, because a compiler makes slow loops of the two-part softmax on a CPU: three times faster so.
Knows tensors; knows nothing of questions.
"""

from typing import Any

import torch
from torch import Tensor


@torch.compiler.disable
def sheet_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float, shared: int, branches: int) -> Tensor:
    """(1, heads, tokens, size) of mixed values. The tokens are `shared` ones, then `branches` branches of equal length; key and value
    may have fewer heads (grouped-query attention)."""
    return _SheetAttention.apply(query, key, value, scaling, shared, branches)


class _SheetAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, shared: int, branches: int) -> Tensor:
        ctx.layout = scaling, shared, branches
        (lead_q, tail_q), (lead_k, tail_k), (lead_v, tail_v) = (_parts(x, key.shape[1], shared, branches) for x in (query, key, value))
        lead_shares = _softmax_causal((lead_q @ lead_k.mT).mul_(scaling), lead_k.shape[1])
        to_lead = _flat(tail_q) @ lead_k.mT
        to_own = _hide_ahead(tail_q @ tail_k.mT)
        tail_shares = torch.cat([to_lead, to_own.view(*to_lead.shape[:2], -1)], -1).mul_(scaling).softmax(-1)
        own = tail_shares[..., shared:].reshape(to_own.shape)
        tails = (tail_shares[..., :shared] @ lead_v).view_as(tail_q) + own @ tail_v
        ctx.save_for_backward(query, key, value, lead_shares, tail_shares)
        return _joined(lead_shares @ lead_v, tails, query)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, lead_shares, tail_shares = ctx.saved_tensors
        scaling, shared, branches = ctx.layout
        parts = [_parts(x, key.shape[1], shared, branches) for x in (query, key, value, gradients[0].to(query.dtype))]
        (lead_q, tail_q), (lead_k, tail_k), (lead_v, tail_v), (lead_g, tail_g) = parts
        lead_s = _softmax_gradient(lead_shares, lead_g @ lead_v.mT, scaling)
        tail_g_flat = _flat(tail_g)
        own_shape = (*tail_q.shape[:-1], tail_q.shape[-2])
        to_shares = torch.cat([tail_g_flat @ lead_v.mT, (tail_g @ tail_v.mT).view(*tail_g_flat.shape[:2], -1)], -1)
        tail_s = _softmax_gradient(tail_shares, to_shares, scaling)
        seen, own_s = tail_s[..., :shared], tail_s[..., shared:].reshape(own_shape)
        own = tail_shares[..., shared:].reshape(own_shape)
        to_query = _joined(lead_s @ lead_k, (seen @ lead_k).view_as(tail_q) + own_s @ tail_k, query)
        lead_to_key = lead_s.mT @ lead_q + seen.mT @ _flat(tail_q)
        to_key = _joined(lead_to_key, (own_s.mT @ tail_q).sum(1, keepdim=True), key)
        lead_to_value = lead_shares.mT @ lead_g + tail_shares[..., :shared].mT @ tail_g_flat
        to_value = _joined(lead_to_value, (own.mT @ tail_g).sum(1, keepdim=True), value)
        return to_query, to_key, to_value, None, None, None


def _parts(x: Tensor, groups: int, shared: int, branches: int) -> tuple[Tensor, Tensor]:
    """Of (1, heads, tokens, size): (groups, heads of a group x shared, size) and (groups, heads of a group, branches, length, size)."""
    lead, tails = x[0, :, :shared], x[0, :, shared:]
    return lead.reshape(groups, -1, x.shape[-1]), tails.reshape(groups, x.shape[1] // groups, branches, -1, x.shape[-1])


def _flat(tails: Tensor) -> Tensor:
    return tails.reshape(tails.shape[0], -1, tails.shape[-1])


def _joined(lead: Tensor, tails: Tensor, like: Tensor) -> Tensor:
    """Both parts as one tensor in the shape of `like`."""
    _, heads, _, size = like.shape
    return torch.cat([lead.reshape(heads, -1, size), tails.reshape(heads, -1, size)], 1)[None]


def _hide_ahead(scores: Tensor) -> Tensor:
    """(…, length, length) scores, those of later tokens -inf, in place."""
    ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill_(ahead, float("-inf"))


def _softmax_causal(scores: Tensor, length: int) -> Tensor:
    """Shares of (groups, heads of a group x length, length) scores."""
    return _hide_ahead(scores.view(scores.shape[0], -1, length, length)).softmax(-1).view_as(scores)


def _softmax_gradient(shares: Tensor, to_shares: Tensor, scaling: float) -> Tensor:
    """The gradient with respect to the products of queries and keys."""
    return torch._softmax_backward_data(to_shares, shares, -1, shares.dtype).mul_(scaling)
