"""A stand-in of Weaviate: the REST endpoints for schema and health, and the gRPC service for objects, from the client's own protocol files.

It shows that what the store sends is well-formed and that its answers are understood; a real server's behaviour it cannot show.
"""

import re
import struct
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from weaviate.proto.v1 import batch_delete_pb2, batch_pb2, search_get_pb2, weaviate_pb2_grpc

from tests.index_servers import Refused, StandIn

KEY = "canary-weaviate-key-c2b9"
VERSION = "1.32.0"
# What the server adds to the schema that it is sent, and tells of it when asked.
HNSW = {
    "cleanupIntervalSeconds": 300,
    "dynamicEfMin": 100,
    "dynamicEfMax": 500,
    "dynamicEfFactor": 8,
    "ef": -1,
    "efConstruction": 128,
    "filterStrategy": "sweeping",
    "flatSearchCutoff": 40000,
    "maxConnections": 32,
    "skip": False,
    "vectorCacheMaxObjects": 10**12,
}
PROPERTY = {"indexFilterable": True, "indexSearchable": True, "tokenization": "word"}
CLASS = {
    "invertedIndexConfig": {
        "bm25": {"b": 0.75, "k1": 1.2},
        "cleanupIntervalSeconds": 60,
        "stopwords": {"preset": "en", "additions": None, "removals": None},
    },
    "replicationConfig": {"factor": 1, "asyncEnabled": False, "deletionStrategy": "NoAutomatedResolution"},
    "shardingConfig": {
        "virtualPerPhysical": 128,
        "desiredCount": 1,
        "actualCount": 1,
        "desiredVirtualCount": 128,
        "actualVirtualCount": 128,
        "key": "_id",
        "strategy": "hash",
        "function": "murmur3",
    },
}


class Objects(weaviate_pb2_grpc.WeaviateServicer):
    """The gRPC service; objects by collection and id, with the order of ids that `after` relies on."""

    def __init__(self, standin: "WeaviateStandIn") -> None:
        self.standin = standin

    def refuse_strangers(self, context: Any) -> None:
        sent = dict(context.invocation_metadata()).get("authorization")
        if self.standin.key and sent != f"Bearer {self.standin.key}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "anonymous access not enabled")

    def BatchObjects(self, request: Any, context: Any) -> Any:
        self.refuse_strangers(context)
        if self.standin.faults:
            context.abort(getattr(grpc.StatusCode, self.standin.faults.pop(0)[0]), "try later")
        for entry in request.objects:
            schema = self.standin.schema[entry.collection]
            vectors = [v.vector_bytes for v in entry.vectors if v.name == "default"] or [entry.vector_bytes]
            vector = np.frombuffer(vectors[0], dtype="<f4")
            names = {field["name"] for field in schema["properties"]}
            assert str(uuid.UUID(entry.uuid)) == entry.uuid and len(vector) and set(entry.properties.non_ref_properties.keys()) <= names
            self.standin.objects[entry.collection][entry.uuid] = vector
        self.standin.batches.append(len(request.objects))
        return batch_pb2.BatchObjectsReply(took=0.0)

    def BatchDelete(self, request: Any, context: Any) -> Any:
        self.refuse_strangers(context)
        assert request.filters.target.property == "_id"
        there = self.standin.objects[request.collection]
        gone = [there.pop(key, None) is not None for key in request.filters.value_text_array.values]
        return batch_delete_pb2.BatchDeleteReply(matches=sum(gone), successful=sum(gone))

    def Search(self, request: Any, context: Any) -> Any:
        self.refuse_strangers(context)
        there = self.standin.objects[request.collection]
        if request.HasField("near_vector"):
            return search_get_pb2.SearchReply(results=self.nearest(request, there))
        following = sorted(key for key in there if key > request.after)[: request.limit]
        return search_get_pb2.SearchReply(results=[result(key) for key in following])

    def nearest(self, request: Any, there: dict[str, np.ndarray]) -> list[Any]:
        near = request.near_vector
        raw = near.vectors[0].vector_bytes if near.vectors else near.vector_bytes
        query = np.array(struct.unpack(f"<{len(raw) // 4}f", raw))
        assert request.metadata.distance and request.limit >= 1
        distances = {key: 1 - float(query @ v / np.linalg.norm(query) / np.linalg.norm(v)) for key, v in there.items()}
        return [result(key, distances[key]) for key in sorted(there, key=distances.__getitem__)[: request.limit]]


def result(key: str, distance: float | None = None) -> Any:
    metadata = search_get_pb2.MetadataResult(id=key, id_as_bytes=uuid.UUID(key).bytes)
    if distance is not None:
        metadata.distance, metadata.distance_present = distance, True
    return search_get_pb2.SearchResult(metadata=metadata)


class WeaviateStandIn(StandIn):
    """`faults` hold names of gRPC codes here, for the next upserts."""

    def __init__(self, key: str | None = None) -> None:
        self.key, self.schema, self.objects, self.batches = key, {}, {}, []
        super().__init__()
        self.grpc = grpc.server(ThreadPoolExecutor(4))
        weaviate_pb2_grpc.add_WeaviateServicer_to_server(Objects(self), self.grpc)
        self.grpc_port = self.grpc.add_insecure_port("127.0.0.1:0")
        self.grpc.start()

    def close(self) -> None:
        self.grpc.stop(0)
        super().close()

    def fault_now(self, method: str, path: str) -> bool:
        return False

    def answer(self, method: str, path: str, body: Any, headers: Any, size: int) -> Any:
        if path == "/v1/.well-known/openid-configuration":
            raise Refused(404, {})
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            raise Refused(401, {"error": [{"message": "anonymous access not enabled"}]})
        if path == "/v1/meta":
            return {"version": VERSION, "hostname": self.url, "modules": {}}
        if path == "/v1/.well-known/ready":
            return {}
        if (method, path) == ("POST", "/v1/schema"):
            return self.create(body)
        found = re.fullmatch(r"/v1/schema/([A-Z][_0-9A-Za-z]*)", path)
        if method == "GET" and found:
            if found[1] not in self.schema:
                raise Refused(404, {"error": [{"message": "not found"}]})
            return self.schema[found[1]]
        raise Refused(404, {"error": [{"message": f"no such endpoint: {method} {path}"}]})

    def create(self, body: Any) -> Any:
        vectors = body["vectorConfig"]["default"]
        assert vectors["vectorIndexType"] == "hnsw" and vectors["vectorizer"] == {"none": {}}
        assert all(field["dataType"] == ["text"] for field in body["properties"])
        whole = {**vectors, "vectorIndexConfig": {**HNSW, **vectors["vectorIndexConfig"]}}
        properties = [{**PROPERTY, "name": field["name"], "dataType": field["dataType"]} for field in body["properties"]]
        self.schema[body["class"]] = {**CLASS, **body, "properties": properties, "vectorConfig": {"default": whole}}
        self.objects.setdefault(body["class"], {})
        return self.schema[body["class"]]
