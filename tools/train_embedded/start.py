"""The language model before training: MiniLM's layers, made causal, under a cased byte-level vocabulary.

Knows how a new vocabulary inherits the old one's meaning; does not train.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModel, AutoTokenizer, BertConfig, BertLMHeadModel, PreTrainedTokenizerFast

from tools.train_embedded.sequences import SPECIAL

CHAT_TEMPLATE = (  # a reply starts with a space, as a word inside a passage does: copying keeps its tokens
    "{% for m in messages %}{{ '<|' + m['role'] + '|> ' + m['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONTEXT = 1024


def train_tokenizer(texts: Iterable[str], vocab_size: int = 16_384) -> PreTrainedTokenizerFast:
    """A cased byte-level BPE tokenizer with single digits and the chat template; decoding gives back the text byte for byte."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=SPECIAL[2:],
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def inherited_embeddings(tokenizer: Any, source: Path, generator: torch.Generator) -> torch.Tensor:
    """(vocabulary, 384): for each token the mean of MiniLM's embeddings of its lower-case text, plus what marks its form.

    Two random directions of a fixed length, one per letter case and one for a leading space, tell "The" from " the"; the tied
    output layer needs that difference, and the model can copy it along with the word.
    """
    old = AutoTokenizer.from_pretrained(source)
    vectors = AutoModel.from_pretrained(source).embeddings.word_embeddings.weight.detach()
    scale = vectors.norm(dim=1).mean()
    forms = torch.randn(8, vectors.shape[1], generator=generator)
    forms = 0.5 * scale * forms / forms.norm(dim=1, keepdim=True)
    result = torch.empty(len(tokenizer), vectors.shape[1])
    for index in range(len(tokenizer)):
        text = tokenizer.decode([index])
        word = text.strip()
        pieces = old(word, add_special_tokens=False).input_ids if word and index >= len(SPECIAL) else []
        if pieces and not text.startswith(" ") and (inner := old.convert_tokens_to_ids("##" + word.lower())) != old.unk_token_id:
            pieces = [inner] if word.isalpha() else pieces
        base = vectors[pieces].mean(0) if pieces else scale * torch.randn(vectors.shape[1], generator=generator) / vectors.shape[1] ** 0.5
        case = 0 if word == word.lower() else 1 if word.istitle() else 2 if word == word.upper() else 3
        result[index] = base + forms[case] + (forms[4] if text.startswith(" ") else 0)
    noise = torch.randn(result.shape, generator=generator)
    return result + 0.15 * scale * noise / result.shape[1] ** 0.5


def warm_start(tokenizer: Any, source: Path, seed: int = 0) -> BertLMHeadModel:
    """A causal decoder for `tokenizer` from MiniLM: layers copied, positions tiled to 1,024 (as Longformer did, arXiv:2004.05150)."""
    generator = torch.Generator().manual_seed(seed)
    config = BertConfig.from_pretrained(source)
    config.is_decoder, config.tie_word_embeddings = True, True
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    old = BertLMHeadModel.from_pretrained(source, config=config)
    config = BertConfig(**{**config.to_dict(), "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT})
    config.pad_token_id, config.eos_token_id, config.bos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id, None
    model = BertLMHeadModel(config)
    with torch.no_grad():
        model.bert.encoder.load_state_dict(old.bert.encoder.state_dict())
        model.bert.embeddings.LayerNorm.load_state_dict(old.bert.embeddings.LayerNorm.state_dict())
        model.bert.embeddings.token_type_embeddings.weight.copy_(old.bert.embeddings.token_type_embeddings.weight)
        positions = old.bert.embeddings.position_embeddings.weight
        model.bert.embeddings.position_embeddings.weight.copy_(torch.cat([positions, positions])[:CONTEXT])
        model.bert.embeddings.word_embeddings.weight.copy_(inherited_embeddings(tokenizer, source, generator))
        transform = model.cls.predictions.transform.dense  # the head starts near the identity
        torch.nn.init.eye_(transform.weight)
        transform.weight.add_(0.02 * torch.randn(transform.weight.shape, generator=generator))
        transform.bias.zero_()
    model.tie_weights()
    return model
