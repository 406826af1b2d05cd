"""Models by key: language models, chat models, embedders and rerankers, loaded with device and dtype chosen and explained.

Knows the catalog, this machine and the libraries that load (transformers, bitsandbytes, sentence-transformers, langchain-openai).
Knows nothing about documents or prompts. Weights are safetensors; no code from a model repository is ever run.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils import checkpoints
from utils.checkpoints import ModelUnavailableError
from utils.memory import NotEnoughMemoryError, check_memory, memory_bytes, precision_name
from utils.packaged import quiet
from utils.report import Report
from utils.runtime import choose_dtype, choose_profile, detect, free_memory_gb

if TYPE_CHECKING:
    import torch
    from langchain_core.language_models import BaseChatModel
    from sentence_transformers import CrossEncoder
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from utils.embedder import SentenceEmbedder
    from utils.rag_sequence import LoadedRag

__all__ = ["LoadedModel", "LoadReport", "ModelUnavailableError", "NotEnoughMemoryError"]
__all__ += ["load_llm", "load_chat_model", "load_embedder", "load_reranker", "load_rag_sequence"]

QUANTIZATIONS = (None, "int8", "nf4")


@dataclass(frozen=True)
class LoadReport(Report):
    """What `load_llm` chose and why. Fields also read like a dict: report["dtype"]."""

    key: str
    path: str
    device: str
    dtype: str
    dtype_reason: str
    quantization: str
    parameters: int
    memory_mb: float


class LoadedModel(NamedTuple):
    """A causal language model in eval mode, its tokenizer (padding left) and the report."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    report: LoadReport


def load_llm(key: str | Path | None = None, quantization: str | None = None, device: str | None = None) -> LoadedModel:
    """A language model by catalog key, Hub id or folder; None takes the profile's default (in NF4 in profile colab-gpu).

    Raises:
        ValueError: for an unknown quantization.
        NotEnoughMemoryError: before anything is downloaded or loaded; says what would fit.
        ModelUnavailableError, catalog.UnknownModelError: with the next step.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"Unknown quantization {quantization!r}. Use one of: None, 'int8', 'nf4'.")
    if key is None and quantization is None and choose_profile()[0] == "colab-gpu":
        quantization = "nf4"
    device = device or detect().device
    dtype, reason = choose_dtype(device)
    source = checkpoints.find(key, "llm")
    if source.folder is None and source.card:
        check_memory(source.name, source.card.parameter_groups, quantization, dtype, device, source.card.hidden_size)
    folder = checkpoints.fetch(source)
    _refuse_own_code(folder)
    check_memory(source.name, checkpoints.stored_parameters(folder), quantization, dtype, device)
    model, tokenizer = _load_causal(folder, quantization, dtype, device)
    report = LoadReport(
        key=source.name,
        path=str(folder),
        device=device,
        dtype=precision_name(dtype),
        dtype_reason=reason,
        quantization=quantization or "none",
        parameters=model.num_parameters(),
        memory_mb=memory_bytes(model) / 1e6,
    )
    return LoadedModel(model, tokenizer, report)


def load_chat_model(
    key: str | Path | None = None,
    *,
    base_url: str | None = None,
    model: str | None = None,
    api_key_env: str = "OPENAI_API_KEY",
    max_new_tokens: int = 96,
    temperature: float = 0.0,
    quantization: str | None = None,
    **options: Any,
) -> BaseChatModel:
    """A LangChain chat model: a local LLM (`key`), or with `base_url` and `model` any OpenAI-compatible server.

    On a CPU with room for it, the matrices keep int8 copies for the steps of decoding (`utils.decoding`): a byte more per parameter.
    `options` go to `LocalChatModel` (top_p, top_k, repetition_penalty, batch_size, prompt_lookup) or to langchain-openai's class.

    Raises:
        ValueError: when `base_url` comes without `model` or carries a key, or when its server is elsewhere and `api_key_env` is empty.
    """
    if base_url is not None:
        return _remote_chat_model(base_url, model, api_key_env, max_tokens=max_new_tokens, temperature=temperature, **options)
    from utils.chat import LocalChatModel
    from utils.decoding import keep_int8_copies

    loaded = load_llm(key, quantization)
    if loaded.report.device == "cpu" and loaded.report.parameters < free_memory_gb() * 1e9 / 2:  # a byte each, with room to spare
        keep_int8_copies(loaded.model)
    return LocalChatModel(
        llm=loaded.model,
        tokenizer=loaded.tokenizer,
        model_name=loaded.report.key,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        **options,
    )


def _remote_chat_model(base_url: str, model: str | None, api_key_env: str, **options: Any) -> BaseChatModel:
    from urllib.parse import urlparse

    # BaseChatOpenAI sends max_tokens, which every compatible server reads; ChatOpenAI sends OpenAI's own newer name.
    from langchain_openai.chat_models.base import BaseChatOpenAI
    from pydantic import SecretStr

    from utils.indexes.upsert import checked_url

    checked_url(base_url)
    if not model:
        raise ValueError(f"Say which model {base_url} should run: load_chat_model(base_url=..., model='name').")
    key = os.environ.get(api_key_env, "")
    if not key and urlparse(base_url).hostname not in ("localhost", "127.0.0.1", "::1"):
        raise ValueError(f"{base_url} is not on this machine and {api_key_env} is empty. Set it, or name another with api_key_env=.")
    return BaseChatOpenAI(base_url=base_url, model=model, api_key=SecretStr(key or "not-needed"), **{"max_retries": 1, **options})


def load_embedder(key: str | Path | None = None, device: str | None = None) -> SentenceEmbedder:
    """A sentence embedder as LangChain `Embeddings`, with `id`, `digest` and `dimension`; vectors are normalised float32.

    Raises:
        ModelUnavailableError: also when the weights do not have the digest the catalog knows.
    """
    from utils.embedder import SentenceEmbedder

    device = device or detect().device
    source = checkpoints.find(key, "embedder")
    folder = checkpoints.fetch(source)
    digest = checkpoints.digest(folder)
    checkpoints.check_digest(source, digest)
    with quiet():
        return SentenceEmbedder(folder, id=source.name, digest=digest, device=device, dtype=choose_dtype(device)[0])


def load_reranker(key: str | Path | None = None, device: str | None = None) -> CrossEncoder:
    """A cross-encoder: `.predict([(query, passage), ...])` returns one relevance score per pair."""
    from sentence_transformers import CrossEncoder

    from utils.attention import use_best_attention

    device = device or detect().device
    folder = checkpoints.fetch(checkpoints.find(key, "reranker"))
    with quiet():
        reranker = CrossEncoder(str(folder), device=device, model_kwargs={"dtype": choose_dtype(device)[0]})
    use_best_attention(reranker.model)
    return reranker


def load_rag_sequence(index_folder: str | Path, generator: str | Path | None = "embedded", **options: Any) -> LoadedRag:
    """RagSequence or RagToken over one of our indexes; `utils.rag_sequence.load_rag_sequence`, which has the options."""
    from utils import rag_sequence

    return rag_sequence.load_rag_sequence(index_folder, generator, **options)


def _load_causal(folder: Path, quantization: str | None, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from utils.attention import use_best_attention

    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False, "use_safetensors": True}
    if quantization:
        options |= {"quantization_config": _quantization_config(quantization, dtype), "device_map": {"": device}}
    with quiet(), _falcon_with_plain_linear() if quantization else nullcontext():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):  # a layout for inference only: rounded once more, and without a backward pass
            layer.support_avx512bf16_for_cpu = False
    if not quantization:
        model = model.to(device)
    elif not any(type(weight).__name__ in ("Int8Params", "Params4bit") for weight in model.parameters()):
        raise ModelUnavailableError(f"bitsandbytes found nothing to quantize in {folder}. Load it with quantization=None.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    use_best_attention(model)
    return model.eval(), tokenizer


def _quantization_config(quantization: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        # bitsandbytes says at every matrix product that it casts to 16 bits: known, and nothing a reader can act on.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )  # fmt: skip


def _refuse_own_code(folder: Path) -> None:
    from transformers import CONFIG_MAPPING

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") not in CONFIG_MAPPING:
        raise ModelUnavailableError(
            f"{folder} has the architecture {config.get('model_type')!r}, which this transformers does not contain; code from a model "
            "repository is never run here. Update transformers, or choose a key from utils.catalog.table('llm')."
        )


@contextmanager
def _falcon_with_plain_linear() -> Iterator[None]:
    """Falcon's linear layer is a subclass of nn.Linear that computes the same, and that transformers' quantizer passes over."""
    from torch import nn
    from transformers.models.falcon import modeling_falcon

    module: Any = modeling_falcon
    own, module.FalconLinear = module.FalconLinear, nn.Linear
    try:
        yield
    finally:
        module.FalconLinear = own
