"""The catalog's facts against the models that transformers builds from the same shapes (on the meta device: no memory, no download)."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, LAYERS, config_values
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BartForConditionalGeneration,
    DPRConfig,
    DPRQuestionEncoder,
    RagConfig,
    RagSequenceForGeneration,
)

from utils import catalog
from utils.architecture import NF4_BYTES, Architecture, ParameterGroups, from_config, weight_bytes

WITH_CLASS = [card for card in catalog.MODELS.values() if card.architecture and card.family in CONFIG_MAPPING and not card.folder]
AUTO = {"llm": AutoModelForCausalLM, "embedder": AutoModel, "reranker": AutoModelForSequenceClassification}


def config_of(shape: Architecture):
    values = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.positions,
        "tie_word_embeddings": shape.tied,
        "num_labels": 1,
    }
    if shape.family == "gpt2":
        names = {"n_embd": shape.hidden_size, "n_layer": shape.layers, "n_head": shape.heads, "n_positions": shape.positions}
        return CONFIG_MAPPING["gpt2"](vocab_size=shape.vocab_size, **names)
    if shape.family == "falcon":
        values |= {"parallel_attn": True, "bias": False, "new_decoder_architecture": False, "multi_query": True}
    elif shape.family in ("mpnet", "xlm-roberta"):
        values |= {"max_position_embeddings": shape.positions + 2, "type_vocab_size": 1}
    elif shape.family != "bert":
        values |= {"head_dim": shape.head_dim, "num_key_value_heads": shape.kv_heads}
    return CONFIG_MAPPING[shape.family](**values)


def count(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def bart_config(shape: Architecture) -> BartConfig:
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", shape.layers), ("attention_heads", shape.heads), ("ffn_dim", shape.intermediate_size))
    }
    return BartConfig(vocab_size=shape.vocab_size, d_model=shape.hidden_size, max_position_embeddings=shape.positions, **sides)


@pytest.mark.parametrize("card", [card for card in WITH_CLASS if card.kind in AUTO], ids=lambda card: card.key)
def test_parameters_equal_the_real_model(card):
    with torch.device("meta"):
        model = AUTO[card.kind].from_config(config_of(card.architecture))
    assert card.parameters == count(model)


def test_parameters_of_dpr_bart_and_rag_equal_the_real_models():
    dpr, bart, rag = catalog.get("dpr-question"), catalog.get("bart-large"), catalog.get("rag-sequence")
    dpr_config, generator = DPRConfig(vocab_size=dpr.architecture.vocab_size), bart_config(bart.architecture)
    both = RagConfig.from_question_encoder_generator_configs(dpr_config, generator)
    with torch.device("meta"):
        assert dpr.parameters == count(DPRQuestionEncoder(dpr_config))
        assert bart.parameters == count(BartForConditionalGeneration(generator))
        question_encoder, model = DPRQuestionEncoder(dpr_config), BartForConditionalGeneration(generator)
        assert rag.parameters == count(RagSequenceForGeneration(config=both, question_encoder=question_encoder, generator=model))


@pytest.mark.parametrize(
    ("key", "published"),
    [
        ("gpt2", 124_439_808),
        ("llama-2-7b-chat", 6_738_415_616),
        ("llama-3.1-8b-instruct", 8_030_261_248),
        ("mistral-7b-instruct-v0.3", 7_248_023_552),
        ("gemma-7b", 8_537_680_896),
        ("qwen-1.8b", 1_836_828_672),
        ("qwen-7b", 7_721_324_544),
        ("qwen-14b", 14_167_290_880),
        ("qwen-72b", 72_287_920_128),
        ("qwen2.5-7b-instruct", 7_615_616_512),
        ("minilm", 22_713_216),
    ],
)
def test_parameters_equal_the_published_count(key, published):
    assert catalog.get(key).parameters == published


@pytest.mark.parametrize("family", FAMILIES)
def test_shape_is_read_back_from_a_config(family):
    config = CONFIG_MAPPING[family](**config_values(family))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = from_config({**config.to_dict(), "architectures": [type(model).__name__]})
    assert shape.layers == LAYERS
    assert sum(shape.parameter_groups()) == count(model)


def test_memory_of_a_precision_follows_from_the_groups():
    groups = ParameterGroups(linear=1_000_000, other=10_000)
    assert weight_bytes(groups, "fp32") == 4_040_000
    assert weight_bytes(groups, "bf16") == 2_020_000
    assert weight_bytes(groups, "int8", hidden_size=1000) == 1_004_000 + 20_000
    assert weight_bytes(groups, "nf4", other_bytes=4) == pytest.approx(1_000_000 * NF4_BYTES + 40_000)
    with pytest.raises(ValueError, match="fp32, bf16, fp16, int8, nf4"):
        weight_bytes(groups, "int4")


def test_a_7b_model_fits_a_t4_in_nf4_but_not_in_fp32():
    card = catalog.get("llama-2-7b-chat")
    assert card.memory_gb("nf4") < 4 < 15 < card.memory_gb("fp32")


def test_kv_cache_shrinks_with_grouped_queries():
    assert catalog.get("llama-2-7b-chat").kv_cache_gb(4096) == pytest.approx(2 * 32 * 4096 * 4096 * 2 / 1e9)
    assert catalog.get("llama-3.1-8b-instruct").kv_cache_gb(4096) == pytest.approx(catalog.get("llama-2-7b-chat").kv_cache_gb(4096) / 4)


def test_unknown_key_names_close_ones():
    with pytest.raises(KeyError, match="llama-2-7b-chat"):
        catalog.get("llama2-7b")
    with pytest.raises(catalog.UnknownModelError, match="table"):
        catalog.get("zzzzzz")


def test_hub_id_finds_its_card():
    assert catalog.get("openai-community/GPT2").key == "gpt2"


def test_families_of_the_course_are_all_there():
    ids = {card.hub_id for card in catalog.MODELS.values()}
    for size in ("1_8B", "7B", "14B", "72B"):
        assert {f"Qwen/Qwen-{size}", f"Qwen/Qwen-{size}-Chat"} <= ids
    assert {"openai-community/gpt2-medium", "tiiuae/falcon-7b", "tiiuae/falcon-7b-instruct", "google/gemma-7b"} <= ids
    assert {"meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-13b-chat-hf", "mistralai/Mistral-7B-Instruct-v0.3"} <= ids


def test_replacements_exist_and_need_no_own_code():
    for card in catalog.MODELS.values():
        if card.replaced_by:
            assert not catalog.get(card.replaced_by).own_code
            assert catalog.get(card.replaced_by).kind == card.kind or card.kind == "dpr"
        if card.own_code:
            assert card.replaced_by


@pytest.mark.parametrize("profile", ["embedded", "hub-cpu", "colab-gpu"])
def test_default_models_are_open(profile):
    for kind in catalog.DEFAULTS:
        card = catalog.get(catalog.default_key(kind, profile))
        assert card.kind == kind
        assert not card.gated
        if profile == "embedded":
            assert card.path is not None


def test_defaults_keep_their_promised_sizes():
    assert catalog.get(catalog.default_key("llm", "hub-cpu")).parameters <= 1e9
    assert catalog.get(catalog.default_key("llm", "colab-gpu")).parameters <= 8e9
    with pytest.raises(KeyError, match="llm"):
        catalog.default_key("vision", "embedded")
    with pytest.raises(KeyError, match="hub-cpu"):
        catalog.default_key("llm", "tpu")


def test_table_has_one_row_per_model():
    rows = catalog.table("llm")
    assert {row["kind"] for row in rows} == {"llm"}
    assert len(catalog.table()) == len(catalog.MODELS)
    row = next(row for row in rows if row["key"] == "gpt2")
    assert (row["license"], row["gated"], row["context_length"], row["fp32_gb"]) == ("mit", False, 1024, 0.498)


def test_revisions_are_whole_commits():
    assert all(len(card.revision) == 40 for card in catalog.MODELS.values() if card.revision)
