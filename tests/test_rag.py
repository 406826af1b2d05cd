"""The chain from question to cited answer: scripted replies where the reply is the point, a real tiny model where generation is."""

import asyncio
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.runnables import RunnableLambda

from utils.citations import cited_numbers
from utils.rag import ABSTENTION, RagAnswer, build_rag_chain, parse_answer, rag_messages, read_reply
from utils.retrieval import BM25Retriever

TEXTS = {
    "nf4": "NF4 stores each weight in four bits. Its sixteen levels\nare quantiles of a normal distribution.",
    "cache": "The KV cache keeps keys and values. Memory grows with every token.",
    "bm25": "BM25 weighs rare words more than frequent words.",
}
QUESTION = "What does NF4 store, and how does the KV cache grow with frequent words?"


def passages() -> list[Document]:
    pages = {"cache": {"page": 7}}
    return [
        Document(page_content=text, metadata={"id": key, "source": f"{key}.md", "title": key.upper()} | pages.get(key, {}))
        for key, text in TEXTS.items()
    ]


class Scripted(FakeListChatModel):
    """Replies from a list, and keeps the prompts it was given."""

    prompts: list = []
    batches: list = []

    def batch(self, inputs, config=None, **kwargs):
        self.batches.append(len(inputs))
        return super().batch(inputs, config, **kwargs)

    def _call(self, messages, *args, **kwargs):
        self.prompts.append(messages)
        return super()._call(messages, *args, **kwargs)


def chain_of(*replies: str, **options):
    model = Scripted(responses=list(replies), prompts=[], batches=[])
    return build_rag_chain(BM25Retriever(passages=passages()), model, **options), model


def one_passage(**metadata):
    return RunnableLambda(lambda question: [Document(page_content="NF4 stores four bits.", metadata=metadata)])


def test_prompt_is_the_one_the_embedded_model_was_trained_on():
    prompt = (
        "Answer the question from the passages. If they do not say, answer: The documents do not say.\n\n"
        "Question: What is NF4?\n\n[1] First {x}.\n\n[2] Second.\n\nQuestion: What is NF4?"
    )
    expected = [{"role": "user", "content": prompt}]
    assert rag_messages("What is NF4? ", [Document(page_content="First {x}.\n"), Document(page_content="Second.")]) == expected
    assert rag_messages("What is NF4?", ["First {x}.", "Second."]) == expected


def test_marker_of_the_model_becomes_a_citation():
    chain, model = chain_of("Four bits. [1]")
    result = chain.invoke("What does NF4 store?")
    assert result.answer == "Four bits." and result.citation_method == "model" and not result.abstained
    citation = result.citations[0]
    assert (citation.number, citation.source, citation.title, citation.page, citation.passage_id) == (1, "nf4.md", "NF4", None, "nf4")
    assert citation.quote == "NF4 stores each weight in four bits."
    assert model.prompts[0][0].content == rag_messages("What does NF4 store?", result.passages)[0]["content"]


def test_quote_leaves_headings_out_and_stays_verbatim():
    text = "# NF4\n\n## What NF4 stores\nNF4 stores four bits. It has 16 levels."
    passage = Document(page_content=text, metadata={"id": "nf4"})
    assert read_reply("What does NF4 store?", [passage], "What NF4 stores is four bits [1].").citations[0].quote == "NF4 stores four bits."
    assert read_reply("q", [Document(page_content="# NF4", metadata={})], "NF4 [1]").citations[0].quote == "# NF4"
    assert read_reply("q", [Document(page_content="", metadata={})], "NF4 [1]").citations[0].quote == ""


def test_page_and_several_citations_are_kept():
    result = read_reply("q", passages(), "Keys and values [2], and rare words [3][2].")
    assert result.answer == "Keys and values, and rare words."
    assert [(c.number, c.page) for c in result.citations] == [(2, 7), (3, None)]
    assert "(cache.md, page 7): “The KV cache keeps keys and values.”" in str(result)


def test_answer_without_marker_is_attributed_by_overlap():
    result = read_reply("What does it grow with?", passages(), "It grows with every token.")
    assert result.citation_method == "overlap"
    assert [(c.passage_id, c.quote) for c in result.citations] == [("cache", "Memory grows with every token.")]


@pytest.mark.parametrize(
    ("reply", "cited", "method"),
    [
        ("69 films [1]", "two", "overlap"),  # the second holds every word, the first none
        ("Winter Ferry [1]", "one", "model"),
        ("Winter films [1]", "one", "model"),  # no passage holds every word: the marker stands
        ("yes [1]", "one", "model"),
        ("the festival [1]", "one", "model"),  # both hold it
        ("69 films [1, 2]", "one", "model"),  # one of those cited holds it
    ],
)
def test_a_marker_beside_the_passage_that_was_copied_from_is_put_right(reply, cited, method):
    texts = {"one": "The prize of the festival went to Winter Ferry.", "two": "In the end the festival showed 69 films."}
    found = [Document(page_content=text, metadata={"id": name}) for name, text in texts.items()]
    result = read_reply("How many films did the festival show?", found, reply)
    assert (result.citations[0].passage_id, result.citation_method) == (cited, method)


def test_question_decides_between_sentences_that_hold_the_answer():
    found = [Document(page_content="Int8 needs 8 bits. A float needs 32 bits. NF4 needs 4 bits.", metadata={"id": "x"})]
    assert read_reply("How many bits does a float need?", found, "bits [1]").citations[0].quote == "A float needs 32 bits."


def test_quote_is_verbatim_across_a_wrapped_line():
    quote = read_reply("q", passages(), "quantiles of a normal distribution [1]").citations[0].quote
    assert quote in TEXTS["nf4"] and quote.startswith("Its sixteen") and quote.endswith("distribution.")


def test_answer_that_shares_no_word_cites_nothing():
    result = read_reply("q", passages(), "Zebras!")
    assert result.citations == [] and result.citation_method == "none" and not result.abstained


@pytest.mark.parametrize("reply", [ABSTENTION, "the documents do not say", "The documents do not say. [2]"])
def test_model_abstains(reply):
    result = read_reply("q", passages(), reply)
    assert result.abstained and result.citations == [] and result.citation_method == "none"


@pytest.mark.parametrize(
    ("reply", "answer", "numbers"),
    [
        ("Four bits [9].", "Four bits.", []),
        ("Both [1, 3].", "Both.", [1, 3]),
        ("In [0, 1] always [2]", "In [0, 1] always", [2]),
        ("Write x[1] here", "Write x[1] here", []),
        ("Cut off [1", "Cut off", []),
        ("[2] Four bits", "Four bits", [2]),
        ("", "", []),
    ],
)
def test_markers_are_told_from_text(reply, answer, numbers):
    assert parse_answer(reply, 3) == answer and cited_numbers(reply, 3) == numbers


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.sampled_from(["a", " ", "[", "]", "1", "3", "9", ",", ".", "\n", " [2]"]), max_size=14).map("".join))
def test_parse_answer_of_a_beginning_is_never_taken_back(reply):
    seen = [parse_answer(reply[:i], 3) for i in range(len(reply) + 1)]
    assert all(later.startswith(earlier) for earlier, later in zip(seen, seen[1:], strict=False))


def test_stream_gives_the_text_and_then_the_answer():
    chain, _ = chain_of("Each weight in four bits [1].")
    *pieces, result = chain.stream("What does NF4 store?")
    assert len(pieces) > 5 and "".join(pieces) == result.answer == "Each weight in four bits."
    assert isinstance(result, RagAnswer) and result.citations[0].passage_id == "nf4"
    assert pieces[0] + result is result


def test_streaming_async_and_batch_agree_with_invoke():
    async def streamed(chain):
        return [piece async for piece in chain.astream(QUESTION)]

    expected = chain_of("Four bits [1].")[0].invoke(QUESTION)
    assert asyncio.run(chain_of("Four bits [1].")[0].ainvoke(QUESTION)) == expected
    *pieces, last = asyncio.run(streamed(chain_of("Four bits [1].")[0]))
    assert last == expected and "".join(pieces) == expected.answer
    assert chain_of("Four bits [1].")[0].batch([QUESTION] * 3) == [expected] * 3
    assert asyncio.run(chain_of("Four bits [1].")[0].abatch([QUESTION] * 2)) == [expected] * 2


def test_a_batch_reaches_the_model_as_one_batch():
    chain, model = chain_of("Four bits [1].", "Keys [1].")
    results = chain.batch(["What does NF4 store?", "zebra", "What does the cache keep?"])
    assert model.batches == [2]
    assert [result.answer for result in results] == ["Four bits.", ABSTENTION, "Keys."]
    assert [result.citations[0].passage_id for result in results if result.citations] == ["nf4", "cache"]


def test_an_error_in_a_batch_stays_in_its_place():
    chain, _ = chain_of("Four bits [1].", max_prompt_tokens=90)
    fine, failed = chain.batch(["What does NF4 store?", "What does NF4 store? " * 20], return_exceptions=True)
    assert fine.answer == "Four bits." and isinstance(failed, ValueError)


def test_nothing_found_abstains_without_asking_the_model():
    chain, model = chain_of("never")
    result = chain.invoke("zebra")
    assert result.abstained and result.answer == ABSTENTION and result.passages == [] and model.prompts == []
    *pieces, streamed = chain.stream("zebra")
    assert "".join(pieces) == ABSTENTION and streamed == result


def test_low_score_abstains_without_asking_the_model():
    chain, model = chain_of("never", min_score=1000.0)
    result = chain.invoke(QUESTION)
    assert result.abstained and len(result.passages) == 3 and model.prompts == []
    assert not chain_of("Four bits", min_score=0.1)[0].invoke(QUESTION).abstained


def test_min_score_needs_scores():
    chain = build_rag_chain(one_passage(), Scripted(responses=["x"]), min_score=0.5)
    with pytest.raises(ValueError, match="DenseRetriever"):
        chain.invoke("q")


def test_the_prompt_carries_how_much_the_evidence_speaks_against_abstaining():
    model = Scripted(responses=["four"], prompts=[], batches=[])
    sure = one_passage(score=9.0, reranker_score=0.8)  # a blended score compares the passages of one question only
    build_rag_chain(sure, model, min_score=0.5, evidence_weight=20).invoke("q")
    assert model.prompts[0][-1].additional_kwargs["opening_bias"][ABSTENTION] == pytest.approx(-6)
    build_rag_chain(sure, model, min_score=0.5).invoke("q")
    assert not model.prompts[1][-1].additional_kwargs
    assert build_rag_chain(one_passage(score=9.0, reranker_score=0.4), model, min_score=0.5).invoke("q").abstained


def test_a_name_that_no_passage_mentions_speaks_for_abstaining_whatever_was_found():
    model = Scripted(responses=["four"], prompts=[], batches=[])
    chain = build_rag_chain(one_passage(score=0.9), model, min_score=0.5, evidence_weight=20)
    for question in ("How many bits has an INT-Nine weight?", "How many bits has a weight?"):
        chain.invoke(question)
    strange, plain = (prompt[-1].additional_kwargs for prompt in model.prompts)
    assert strange["opening_bias"][ABSTENTION] == pytest.approx(1) and plain["opening_bias"][ABSTENTION] == pytest.approx(-8)


def test_evidence_weight_needs_what_it_counts_from():
    with pytest.raises(ValueError, match="give both"):
        chain_of("x", evidence_weight=20)


def test_any_retriever_will_do():
    result = build_rag_chain(one_passage(source="a.md"), Scripted(responses=["four"])).invoke("q")
    assert result.citations[0].source == result.citations[0].title == "a.md"


@pytest.mark.parametrize("top_k", [1, 2])
def test_top_k_limits_the_passages(top_k):
    result = chain_of("x", top_k=top_k)[0].invoke(QUESTION)
    assert len(result.passages) == top_k and not result.truncated


def words_of(text: str) -> list[int]:
    return list(range(len(re.findall(r"\S+", text))))


def test_prompt_is_cut_between_passages_and_says_so():
    chain, model = chain_of("x", max_prompt_tokens=76)
    model.custom_get_token_ids = words_of
    chain = build_rag_chain(BM25Retriever(passages=passages()), model, max_prompt_tokens=76)
    result = chain.invoke(QUESTION)
    assert result.truncated and len(result.passages) == 2
    prompt = model.prompts[0][0].content
    assert prompt.endswith(f"Question: {QUESTION}") and all(p.page_content in prompt for p in result.passages)


def test_prompt_is_counted_without_a_tokenizer_too():
    result = chain_of("x", max_prompt_tokens=125)[0].invoke(QUESTION)
    assert result.truncated and 0 < len(result.passages) < 3


def test_question_that_leaves_no_room_is_refused():
    with pytest.raises(ValueError, match="prompt may have 30.*max_prompt_tokens"):
        chain_of("x", max_prompt_tokens=30)[0].invoke(QUESTION)


@pytest.fixture(scope="module")
def tiny_model():
    """A Llama of two small layers with a byte-level tokenizer, untrained: its replies are real, if senseless."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from utils.chat import LocalChatModel

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, "<|end|>"])}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", pad_token="<|end|>", padding_side="left")
    tokenizer.chat_template = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}<|assistant|>\n"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=486
    )
    return LocalChatModel(llm=LlamaForCausalLM(config).eval(), tokenizer=tokenizer, model_name="tiny", max_new_tokens=8)


def test_a_real_model_generates_through_the_chain(tiny_model):
    chain = build_rag_chain(BM25Retriever(passages=passages()), tiny_model)
    result = chain.invoke(QUESTION)
    assert result.answer and result.passages
    *pieces, streamed = chain.stream(QUESTION)
    assert "".join(pieces) == streamed.answer and streamed == result
    assert [one.passages for one in chain.batch([QUESTION, QUESTION])] == [result.passages] * 2
    assert asyncio.run(chain.abatch([QUESTION]))[0] == result


def test_strong_evidence_keeps_a_real_model_from_abstaining(tiny_model, monkeypatch):
    token = tiny_model.get_token_ids(ABSTENTION)[0]
    first = tiny_model.tokenizer.decode([token])
    monkeypatch.setattr(tiny_model.llm.generation_config, "sequence_bias", [[[token], 0.0]])
    asked = QUESTION.lower()  # its names would turn the evidence round: the prompt has room for one passage only
    for weight, starts in ((1e4, False), (-1e4, True)):  # a negative weight turns the evidence round
        chain = build_rag_chain(BM25Retriever(passages=passages()), tiny_model, min_score=0.0, evidence_weight=weight)
        assert chain.invoke(asked).answer.startswith(first) is starts
        assert chain.batch([asked, asked])[1].answer.startswith(first) is starts


def test_prompt_stays_within_the_context_of_a_local_model(tiny_model):
    result = build_rag_chain(BM25Retriever(passages=passages()), tiny_model).invoke(QUESTION)
    assert result.truncated and len(result.passages) == 2  # all three need more than the 478 bytes beside the answer
