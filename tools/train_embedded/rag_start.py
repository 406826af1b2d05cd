"""The RAG generator before training: MiniLM as the encoder of a BART that can already copy.

A BERT layer and a BART encoder layer compute the same thing, so the encoder is MiniLM exactly, over a part of its vocabulary.
The last decoder layer starts as a copier: its cross-attention values are the encoder's states, and its output maps them back to the
embeddings of the words they stand for (ridge regression). What is left to learn is where to look.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer, BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

KEPT_IDS = 104  # special and unused tokens keep their places: [PAD] 0, [CLS] 101, [SEP] 102
DECODER_LAYERS = 2
COPIED, CARRIED = 8.0, 0.1


def smaller_tokenizer(source: Path, texts: Iterable[str], size: int) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """MiniLM's tokenizer with the `size` most used tokens, single characters always among them, and their old ids."""
    old = AutoTokenizer.from_pretrained(source)
    counts = Counter(i for text in texts for i in old(text, add_special_tokens=False, truncation=False).input_ids)
    vocabulary = old.get_vocab()
    letters = {i for token, i in vocabulary.items() if len(token.removeprefix("##")) == 1 and counts[i]}
    ascii_letters = {i for token, i in vocabulary.items() if len(token.removeprefix("##")) == 1 and token.isascii()}
    keep = set(range(KEPT_IDS)) | letters | ascii_letters
    keep |= {i for i, _ in counts.most_common()[: max(size - len(keep), 0)]}
    ids = sorted(keep)
    state = json.loads(old.backend_tokenizer.to_str())
    names = {i: token for token, i in vocabulary.items()}
    state["model"]["vocab"] = {names[i]: new for new, i in enumerate(ids)}
    state["truncation"] = state["padding"] = None
    special = {name: getattr(old, name) for name in ("unk_token", "pad_token", "cls_token", "sep_token", "mask_token")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), model_max_length=512, **special)
    return tokenizer, ids


def warm_start(source: Path, tokenizer: Any, ids: list[int], texts: list[str], seed: int = 0) -> BartForConditionalGeneration:
    """A BART over `tokenizer`; `texts` show which encoder states stand for which words."""
    torch.manual_seed(seed)
    bert = AutoModel.from_pretrained(source).eval()
    config = BartConfig(
        vocab_size=len(ids), d_model=384, encoder_layers=6, decoder_layers=DECODER_LAYERS, encoder_attention_heads=12,
        decoder_attention_heads=12, encoder_ffn_dim=1536, decoder_ffn_dim=1536, max_position_embeddings=512, dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, pad_token_id=0, bos_token_id=101, eos_token_id=102,
        decoder_start_token_id=101, forced_eos_token_id=102,
    )  # fmt: skip
    config._attn_implementation = "eager"  # its gradient is several times as fast on a CPU as that of PyTorch's fused attention
    model = BartForConditionalGeneration(config).eval()
    with torch.no_grad():
        _embeddings(model, bert, ids)
        for new, old in zip(model.model.encoder.layers, bert.encoder.layer):
            _copy_layer(new, old)
        for new, old in zip(model.model.decoder.layers, [bert.encoder.layer[3], bert.encoder.layer[5]]):
            _copy_layer(new, old)
            _copy(new.encoder_attn, old.attention.self, old.attention.output.dense)
        _make_copier(model, tokenizer, texts)
    return model


def _embeddings(model: Any, bert: Any, ids: list[int]) -> None:
    """Words, and positions with the one token type MiniLM uses; BART's positions start at 2."""
    old = bert.embeddings
    model.model.shared.weight.copy_(old.word_embeddings.weight[ids])
    for side in (model.model.encoder, model.model.decoder):
        side.embed_positions.weight[2:514] = old.position_embeddings.weight + old.token_type_embeddings.weight[0]
        side.layernorm_embedding.load_state_dict(old.LayerNorm.state_dict())
    model.tie_weights()


def _copy(new: Any, old: Any, output: Any) -> None:
    for name, part in (("q_proj", old.query), ("k_proj", old.key), ("v_proj", old.value), ("out_proj", output)):
        getattr(new, name).load_state_dict(part.state_dict())


def _copy_layer(new: Any, old: Any) -> None:
    _copy(new.self_attn, old.attention.self, old.attention.output.dense)
    new.self_attn_layer_norm.load_state_dict(old.attention.output.LayerNorm.state_dict())
    new.fc1.load_state_dict(old.intermediate.dense.state_dict())
    new.fc2.load_state_dict(old.output.dense.state_dict())
    new.final_layer_norm.load_state_dict(old.output.LayerNorm.state_dict())


def _make_copier(model: Any, tokenizer: Any, texts: list[str]) -> None:
    """The last layer's cross-attention gives back the embedding of the word it looks at; its feed-forward part starts small."""
    states, words = [], []
    for start in range(0, len(texts), 16):
        batch = tokenizer(texts[start : start + 16], return_tensors="pt", padding=True, truncation=True, max_length=256)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        real = batch.attention_mask.bool()
        states.append(model.model.encoder(**inputs).last_hidden_state[real])
        words.append(model.model.shared(batch.input_ids)[real])
    x, y = torch.cat(states), torch.cat(words)
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    solved = torch.linalg.solve(x.T @ x + 1e-5 * len(x) * torch.eye(x.shape[1]), x.T @ y)
    layer = model.model.decoder.layers[-1]
    torch.nn.init.eye_(layer.encoder_attn.v_proj.weight)
    layer.encoder_attn.v_proj.bias.zero_()
    layer.encoder_attn.out_proj.weight.copy_(COPIED * solved[:-1].T)
    layer.encoder_attn.out_proj.bias.copy_(COPIED * solved[-1])
    layer.self_attn_layer_norm.weight.mul_(CARRIED)  # the copied word must outweigh what the residual stream brings along;
    layer.self_attn_layer_norm.bias.mul_(CARRIED)
    layer.encoder_attn.q_proj.weight.div_(CARRIED)  # the queries stay as they were
    layer.fc2.weight.mul_(0.1)
    layer.fc2.bias.mul_(0.1)
    for norm in (layer.encoder_attn_layer_norm, layer.final_layer_norm):
        torch.nn.init.ones_(norm.weight)
        torch.nn.init.zeros_(norm.bias)
