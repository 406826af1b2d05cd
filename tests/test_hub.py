"""Real models from the Hugging Face Hub: the smallest of each kind still load by their key and do their work.

Each test starts a fresh process, as a reader would, in the profile `hub-cpu` and without the guard that keeps other tests on this
machine. They run where COURSE_HUB_TESTS=1 is set (the weekly workflow); elsewhere they are skipped.
"""

import os
import subprocess
import sys

import pytest

from tools.registry import ROOT
from utils import catalog

PROGRAMS = {
    "llm": """
from utils.models import load_llm
model, tokenizer, report = load_llm()
from utils import catalog
card = catalog.get(report.key)
assert report.parameters == card.parameters, (report.parameters, card.parameters)
messages = [{"role": "user", "content": "What is the capital of France? One word."}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)
assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:]), tokenizer.decode(answer[0])
""",
    "embedder": """
from utils.models import load_embedder
embedder = load_embedder("bge-small-en-v1.5")
from utils import catalog
assert embedder.dimension == catalog.get("bge-small-en-v1.5").hidden_size
cat, kitten, tax = embedder.embed_documents(["A cat sleeps.", "A kitten naps.", "The tax was raised."])
product = lambda a, b: sum(x * y for x, y in zip(a, b))
assert product(cat, kitten) > product(cat, tax) + 0.1
""",
    "reranker": """
from utils.models import load_reranker
right, wrong = load_reranker("ms-marco-minilm").predict([
    ("Who wrote Hamlet?", "Hamlet is a tragedy by William Shakespeare."), ("Who wrote Hamlet?", "Copper melts at 1,085 degrees.")])
assert right > wrong + 5, (right, wrong)
""",
    "digest": """
import hashlib
from huggingface_hub import hf_hub_download
from utils import catalog
card = catalog.get("minilm")
path = hf_hub_download(card.hub_id, "model.safetensors", revision=card.revision)
assert hashlib.sha256(open(path, "rb").read()).hexdigest() == card.digest
""",
    "gated": """
from utils.checkpoints import ModelUnavailableError
from utils.models import load_llm
try:
    load_llm("llama-3.2-1b-instruct")
except ModelUnavailableError as error:
    assert "llama-3.2-1b-instruct is gated. " in str(error).lower(), error
else:
    raise SystemExit("a gated model loaded without a token")
""",
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_program_is_python_and_names_models_of_the_catalog(kind):
    compile(PROGRAMS[kind], kind, "exec")
    keys = [word for word in PROGRAMS[kind].split('"') if word in catalog.MODELS]
    assert all(not catalog.get(key).own_code for key in keys)
    assert keys or kind == "llm"


@pytest.mark.hub
@pytest.mark.slow
@pytest.mark.parametrize("kind", PROGRAMS)
def test_small_model_of_the_hub_works(kind):
    unset = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "COURSE_OFFLINE_LOG", "HF_TOKEN", "PYTHONPATH"}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | {"COURSE_PROFILE": "hub-cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAMS[kind]], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
