"""Attention in blocks: the same numbers as PyTorch's kernel, and PyTorch's kernel wherever its conditions do not hold."""

import pytest
import torch
from langchain_core.documents import Document
from tiny_models import make_llm
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from utils import attention, models
from utils.attention import attention_in_blocks, attention_in_training, best_attention
from utils.indexes import build_index


class Layer(torch.nn.Module):
    """What transformers' attention functions read of a layer."""

    num_key_value_groups = 3
    is_causal = True


def tensors(batch, queries, keys, dtype=torch.bfloat16):
    """Queries as models hand them over, of nine heads, and keys and values of three."""
    torch.manual_seed(0)
    query = torch.randn(batch, queries, 9, 16, dtype=dtype).transpose(1, 2)
    return query, torch.randn(batch, 3, keys, 16, dtype=dtype), torch.randn(batch, 3, keys, 16, dtype=dtype)


def padded_causal(texts, queries, keys):
    """A causal mask whose first text has seven padded positions on its left."""
    mask = torch.ones(texts, 1, queries, keys, dtype=torch.bool).tril_(keys - queries)
    mask[0, ..., :7] = False
    mask[0, :, :7, 0] = True  # a padded query sees something, as transformers sees to
    return mask


def kernels(monkeypatch):
    """A list that gets the dtype of every call that goes on to PyTorch's kernel."""
    calls = []

    def counted(*given, **options):
        calls.append(given[1].dtype)
        return sdpa_attention_forward(*given, **options)

    monkeypatch.setattr(attention, "sdpa_attention_forward", counted)
    return calls


SIZES = [(1, 300, 300), (3, 40, 40), (5, 1, 300), (1, 129, 129), (2, 8, 200)]
CASES = [(*size, kind) for size in SIZES for kind in ("none", "bool", "added", "shared")]


@pytest.mark.parametrize(("texts", "queries", "keys", "kind"), CASES[:-4] + CASES[-3:])  # for some queries of many there is always a mask
@torch.no_grad()
def test_blocks_give_what_the_kernel_gives_in_fp32(texts, queries, keys, kind, monkeypatch):
    monkeypatch.setattr(attention, "SCORES", 9 * 40 * 40 * 2)  # so that there are several blocks of texts
    calls = kernels(monkeypatch)
    mask = None if kind == "none" else padded_causal(texts, queries, keys)
    if kind == "added":
        mask = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill_(~mask, -1e9)
    if kind == "shared":
        mask = mask[-1:]
    given = tensors(texts, queries, keys)
    ours, _ = attention_in_blocks(Layer(), *given, mask)
    exact = mask.float() if kind == "added" else mask
    expected, _ = sdpa_attention_forward(Layer(), *(one.float() for one in given), exact)
    assert not calls and ours.shape == expected.shape == (texts, queries, 9, 16)
    real = slice(7, None) if queries > 7 else slice(None)
    assert (ours.float() - expected)[:, real].abs().max() < 0.03 and ours.float().std() > 0.05


@torch.no_grad()
def test_scaling_and_causality_are_the_callers(monkeypatch):
    given = tensors(2, 64, 64)
    for options in ({"scaling": 0.5}, {"is_causal": False}):
        ours, _ = attention_in_blocks(Layer(), *given, None, **options)
        expected, _ = sdpa_attention_forward(Layer(), *(one.float() for one in given), None, **options)
        usual, _ = attention_in_blocks(Layer(), *given, None)
        assert (ours.float() - expected).abs().max() < 0.04 < (ours - usual).abs().max()


@pytest.mark.parametrize("kind", ["none", "bool", "added"])
def test_gradients_are_those_of_the_kernel_in_fp32(kind, monkeypatch):
    calls = kernels(monkeypatch)
    mask = None if kind == "none" else padded_causal(3, 40, 40)
    if kind == "added":
        mask = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill_(~mask, -1e9)
    real = slice(7, None)  # the first seven queries of a text are padding, which no loss counts
    gradients = {}
    for dtype in (torch.bfloat16, torch.float32):
        given = [one.to(dtype).requires_grad_() for one in tensors(3, 40, 40)]
        attend = attention_in_blocks if dtype == torch.bfloat16 else sdpa_attention_forward
        found, _ = attend(Layer(), *given, mask.to(dtype) if kind == "added" else mask)
        found[:, real].float().square().sum().backward()
        gradients[dtype] = [one.grad.float() for one in given]
    assert not calls
    for ours, exact in zip(gradients[torch.bfloat16], gradients[torch.float32], strict=True):
        assert (ours - exact).norm() < 0.02 * exact.norm()


def test_many_scores_in_training_fp32_few_scores_and_extras_go_to_the_kernel(monkeypatch):
    calls = kernels(monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(attention, "KEPT", 9 * 64 * 64 - 1)
        attention_in_blocks(Layer(), *tensors(1, 64, 64), None)  # gradients are on: so many scores would have to be kept
    with torch.no_grad():
        attention_in_blocks(Layer(), *tensors(1, 64, 64, torch.float32), None)
        attention_in_blocks(Layer(), *tensors(4, 1, 200), torch.ones(4, 1, 1, 200, dtype=torch.bool))
        attention_in_blocks(Layer(), *(one.to("meta") for one in tensors(1, 64, 64)), None)  # a model that was moved to another device
        assert calls == [torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16]
        attention_in_blocks(Layer(), *tensors(1, 64, 64), None, position_bias=torch.zeros(1, 9, 64, 64, dtype=torch.bfloat16))
        attention_in_blocks(Layer(), *tensors(1, 64, 64), None)
        attention_in_blocks(Layer(), *tensors(1, 64, 64), None, dropout=0.1)
        assert len(calls) == 6


def test_with_amx_blocks_serve_training_alone(monkeypatch):
    calls = kernels(monkeypatch)
    attention_in_training(Layer(), *tensors(1, 64, 64), None, scaling=0.25)
    assert not calls
    with torch.no_grad():
        attention_in_training(Layer(), *tensors(1, 64, 64), None, scaling=0.25)
    assert calls == [torch.bfloat16]


@torch.no_grad()
def test_one_query_without_a_mask_is_computed_in_fp32(monkeypatch):
    calls = kernels(monkeypatch)
    given = tensors(1, 1, 500)
    ours, _ = attention_in_blocks(Layer(), *given, None)
    expected, _ = sdpa_attention_forward(Layer(), *(one.float() for one in given), None)
    assert calls == [torch.float32] and torch.equal(ours, expected.to(torch.bfloat16))


def test_a_batch_of_prompts_is_answered_as_by_the_kernel(tmp_path, monkeypatch):
    model = models.load_llm(make_llm(tmp_path / "llama", "llama")).model.to(torch.bfloat16)
    tokens = torch.randint(5, 60, (3, 150), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[0, :40] = 0
    logits = {}
    for name in ("sdpa", attention.NAME):
        model.set_attn_implementation(name)
        calls = kernels(monkeypatch)
        with torch.no_grad():
            logits[name] = model(input_ids=tokens, attention_mask=mask).logits.float()[mask.bool()]
        assert not calls
    gap = (logits["sdpa"] - logits[attention.NAME]).abs().mean()
    assert 0 < gap < 0.02 * logits["sdpa"].std()  # equal to the last bit, they would have been computed by the same kernel


@pytest.mark.parametrize(("flags", "dtype", "name"), [
    ({"avx512_bf16"}, torch.bfloat16, "blocks"),
    ({"avx512_bf16", "amx_bf16"}, torch.bfloat16, "blocks_in_training"),
    (set(), torch.float32, "sdpa"),
])  # fmt: skip
def test_the_choice_depends_on_cpu_and_dtype(flags, dtype, name, tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "cpu_flags", lambda: flags)
    monkeypatch.setattr(models, "choose_dtype", lambda device: (dtype, "a test says so"))
    loaded = models.load_llm(make_llm(tmp_path / "llama", "llama"))
    assert best_attention(loaded.model) == loaded.model.config._attn_implementation == name
    loaded.model.save_pretrained(tmp_path / "saved")
    assert "blocks" not in (tmp_path / "saved" / "config.json").read_text()  # so that others, and older courses, can load it


def test_embedder_reranker_and_rag_generator_have_it_too(monkeypatch, tmp_path):
    monkeypatch.setattr(attention, "cpu_flags", lambda: {"avx512_bf16"})
    embedder = models.load_embedder(device="cpu")
    reranker = models.load_reranker(device="cpu")
    folder = build_index([Document(id="a", page_content="NF4 stores weights in four bits.", metadata={})], embedder, tmp_path / "i").folder
    rag = models.load_rag_sequence(folder, device="cpu")
    for model in (embedder.model, reranker.model, rag.model.generator):
        assert model.config._attn_implementation == "blocks"


def test_a_model_with_attention_of_its_own_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "cpu_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(models, "choose_dtype", lambda device: (torch.bfloat16, "a test says so"))
    assert models.load_llm(make_llm(tmp_path / "falcon", "falcon")).model.config._attn_implementation == "sdpa"
