"""A stand-in of Pinecone's HTTP API 2026-07 (indexes, and documents of a document index) that checks each request against its reference.

Sources: Pinecone API reference 2026-07 (create and describe index; upsert, search, list and delete documents) and Operation limits.
"""

import math
import re
from typing import Any
from urllib.parse import unquote

import numpy as np

from tests.index_servers import Refused, StandIn

KEY = "canary-pinecone-key-7f3a"
VERSION = "2026-07"
MOST_DOCUMENTS, MOST_BYTES, MOST_METADATA, PAGE = 1000, 2_000_000, 40_960, 100


def refuse(status: int, message: str) -> Refused:
    return Refused(status, {"error": {"code": "INVALID_ARGUMENT", "message": message}, "status": status})


class PineconeStandIn(StandIn):
    """Keeps indexes and, per namespace, documents; `batches` are the numbers of documents of the upserts it took."""

    def __init__(self) -> None:
        self.indexes: dict[str, Any] = {}
        self.namespaces: dict[str, dict[str, dict[str, Any]]] = {}
        self.batches: list[int] = []
        super().__init__()

    def fault_now(self, method: str, path: str) -> bool:
        return bool(self.faults) and path.endswith("/upsert")

    def answer(self, method: str, path: str, body: Any, headers: Any, size: int) -> Any:
        if headers.get("Api-Key") != KEY:
            raise refuse(401, "Invalid API key")
        if headers.get("X-Pinecone-Api-Version") != VERSION:
            raise refuse(400, f"X-Pinecone-Api-Version is {headers.get('X-Pinecone-Api-Version')}")
        if method == "POST" and headers.get("Content-Type") != "application/json":
            raise refuse(415, "Content-Type must be application/json")
        if method == "POST" and path == "/indexes":
            return self.create(body)
        if method == "GET" and (found := re.fullmatch(r"/indexes/([^/]+)", path)):
            if found[1] not in self.indexes:
                raise Refused(404, {"error": {"code": "NOT_FOUND", "message": f"Resource {found[1]} not found"}, "status": 404})
            return self.indexes[found[1]]
        if method == "POST" and (found := re.fullmatch(r"/namespaces/([^/]+)/documents/(upsert|search|list|delete)", path)):
            return getattr(self, found[2])(unquote(found[1]), body, size)
        raise refuse(404, f"no such endpoint: {method} {path}")

    def create(self, body: Any) -> Any:
        usual = {"deployment_type": "managed", "cloud": "aws", "region": "us-east-1"}  # what the API takes when it is left out
        name, fields, place = body["name"], body["schema"]["fields"], body.get("deployment", usual)
        if not re.fullmatch(r"[a-z0-9-]{1,45}", name) or set(body) - {"name", "schema", "deployment"}:
            raise refuse(400, "wrong name or fields of the request")
        if place != usual:
            raise refuse(400, f"wrong deployment {place}")
        if [(f["type"], f["metric"]) for f in fields.values()] != [("dense_vector", "cosine")] or any(f[:1] in "_$" for f in fields):
            raise refuse(400, f"wrong schema {fields}")
        self.indexes[name] = {
            "name": name,
            "schema": {"fields": fields},
            "deployment": place,
            "host": self.url,
            "status": {"ready": True, "state": "Ready"},
            "deletion_protection": "disabled",
            "read_capacity": {"mode": "OnDemand", "status": {"state": "Ready"}},
        }
        return self.indexes[name]

    def field(self) -> tuple[str, int]:
        """The vector field of the one index, and its dimension."""
        (index,) = self.indexes.values()
        ((name, field),) = index["schema"]["fields"].items()
        return name, field["dimension"]

    def upsert(self, namespace: str, body: Any, size: int) -> Any:
        documents = body["documents"]
        if not 1 <= len(documents) <= MOST_DOCUMENTS or size > MOST_BYTES:
            raise refuse(413 if size > MOST_BYTES else 400, f"{len(documents)} documents of {size} bytes")
        for document in documents:
            self.check_document(document)
        self.namespaces.setdefault(namespace, {}).update({document["_id"]: document for document in documents})
        self.batches.append(len(documents))
        return {"upserted_count": len(documents)}

    def check_document(self, document: dict[str, Any]) -> None:
        name, dimension = self.field()
        others = {key: value for key, value in document.items() if key not in ("_id", name)}
        if not re.fullmatch(r"[\x01-\x7f]{1,512}", document.get("_id", "")):
            raise refuse(400, "wrong _id")
        if not all(math.isfinite(value) for value in document[name]) or len(document[name]) != dimension:
            raise refuse(400, f"vector of {len(document[name])} dimensions, the index has {dimension}")
        if any(key[:1] in ("_", "$") for key in others):
            raise refuse(400, f"reserved field name among {sorted(others)}")
        if not all(isinstance(value, str | int | float) for value in others.values()):
            raise refuse(400, f"metadata of a type that is not supported in {others}")
        if sum(len(str(key)) + len(str(value)) for key, value in others.items()) > MOST_METADATA:
            raise refuse(400, "metadata over 40 KB")

    def search(self, namespace: str, body: Any, size: int) -> Any:
        name, dimension = self.field()
        (clause,) = body["score_by"]
        if clause["type"] != "dense_vector" or (clause.get("field") or clause["fields"][0]) != name or len(clause["values"]) != dimension:
            raise refuse(400, f"wrong score_by for {name}, {dimension}")
        if not 1 <= body["top_k"] <= 10_000:
            raise refuse(400, "top_k out of range")
        query = np.array(clause["values"])
        scored = [
            (float(query @ np.array(document[name]) / np.linalg.norm(query) / np.linalg.norm(document[name])), key)
            for key, document in self.namespaces.get(namespace, {}).items()
        ]
        best = sorted(scored, reverse=True)[: body["top_k"]]
        there, wanted = self.namespaces.get(namespace, {}), body.get("include_fields", [])
        shown = [{"_id": key, "_score": score, **{f: there[key][f] for f in wanted if f in there[key]}} for score, key in best]
        return {"matches": shown, "namespace": namespace, "usage": {"read_units": 1}}

    def list(self, namespace: str, body: Any, size: int) -> Any:
        if namespace not in self.namespaces:
            raise Refused(404, {"error": {"code": "NOT_FOUND", "message": "Namespace not found"}, "status": 404})
        limit = body.get("limit", PAGE)
        if not 1 <= limit <= PAGE:
            raise refuse(400, "limit out of range")
        keys = sorted(key for key in self.namespaces[namespace] if key > body.get("pagination_token", ""))
        following = {"pagination": {"next": keys[limit - 1]}} if len(keys) > limit else {}
        return {"documents": [{"_id": key} for key in keys[:limit]], "namespace": namespace, "usage": {"read_units": 1}, **following}

    def delete(self, namespace: str, body: Any, size: int) -> Any:
        if set(body) != {"ids"} or not 1 <= len(body["ids"]) <= 1000:
            raise refuse(400, f"delete takes 1 to 1,000 ids here, got {sorted(body)}")
        for key in body["ids"]:
            self.namespaces[namespace].pop(key, None)
        return {}
