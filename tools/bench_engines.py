"""Other engines for the course's small models beside torch in bf16: `python -m tools.bench_engines` writes data/logs/bench/engines.csv.

The course depends on none of them. To measure them again, install what you want to compare beside the course's packages:
`openvino nncf openvino-genai` for OpenVINO, `onnx onnxruntime` for ONNX Runtime, `ctranslate2`; what is missing is left out and
named. The encoders are here, the LLM in `bench_engines_llm`. Torch and the other engine take turns, so that both meet the same machine.

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
from utils import checkpoints
from utils.runtime import DATA

LOG = DATA / "logs" / "bench" / "engines.csv"
BATCH, ROUNDS = 16, 3
INPUTS = ("input_ids", "attention_mask")
Feed = dict[str, np.ndarray]
Run = Callable[[Feed], np.ndarray]
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


def main() -> int:
    """Returns the exit code; prints each row as it is measured, then writes the log."""
    from tools.bench_engines_llm import llm_rows

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
