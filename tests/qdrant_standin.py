"""A stand-in of Qdrant's REST API: requests are checked by the models that Qdrant generates from its OpenAPI file, and answered by
qdrant-client's in-process engine. What it cannot show is a real server's own behaviour: its graph, its files, its limits.
"""

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, ValidationError
from qdrant_client import QdrantClient, models

from tests.index_servers import Refused, StandIn

KEY = "canary-qdrant-key-5d1e"


def checked(model: type[BaseModel], body: Any) -> Any:
    """The body as the API's model, which forbids unknown fields; a 400 where the real server would answer so."""
    try:
        return model.model_validate(body, strict=False)
    except ValidationError as error:
        raise Refused(400, {"status": {"error": str(error)}, "time": 0.0}) from error


class QdrantStandIn(StandIn):
    def __init__(self, key: str | None = None) -> None:
        self.key, self.engine = key, QdrantClient(":memory:", force_disable_check_same_thread=True)
        self.batches: list[int] = []
        super().__init__()

    def fault_now(self, method: str, path: str) -> bool:
        return bool(self.faults) and method == "PUT" and "/points" in path

    def answer(self, method: str, path: str, body: Any, headers: Any, size: int) -> Any:
        if self.key and headers.get("api-key") != self.key:
            raise Refused(401, {"status": {"error": "Must provide an API key"}, "time": 0.0})
        parts = urlsplit(path)
        if (method, parts.path) == ("GET", "/collections"):
            return {"result": {"collections": []}, "status": "ok", "time": 0.0}
        found = re.fullmatch(r"/collections/([^/]+)(/.*)?", parts.path)
        if not found:
            raise Refused(404, {"status": {"error": f"no such endpoint: {method} {path}"}, "time": 0.0})
        name, rest = found[1], found[2] or ""
        result = self.act(method + rest, name, body, parse_qs(parts.query))
        return {"result": result, "status": "ok", "time": 0.0}

    def act(self, action: str, name: str, body: Any, options: dict[str, list[str]]) -> Any:
        if action == "GET/exists":
            return {"exists": self.engine.collection_exists(name)}
        if action == "PUT":
            asked = checked(models.CreateCollection, body)
            return self.engine.create_collection(name, asked.vectors)
        if not self.engine.collection_exists(name):
            raise Refused(404, {"status": {"error": f"Not found: Collection `{name}` doesn't exist!"}, "time": 0.0})
        if action == "GET":
            return self.engine.get_collection(name).model_dump(mode="json")
        if action == "PUT/points":
            return self.upsert(name, checked(models.PointsList, body), options)
        if action == "POST/points/delete":
            self.check_waits(options)
            self.engine.delete(name, checked(models.PointIdsList, body))
            return {"operation_id": 1, "status": "completed"}
        if action == "POST/points/scroll":
            asked = checked(models.ScrollRequest, body)
            points, following = self.engine.scroll(name, limit=asked.limit, offset=asked.offset, with_payload=False, with_vectors=False)
            return {"points": [{"id": point.id} for point in points], "next_page_offset": following}
        if action == "POST/points/query":
            asked = checked(models.QueryRequest, body)
            answer = self.engine.query_points(name, asked.query, limit=asked.limit, with_payload=False)
            return {"points": [{"id": point.id, "version": 0, "score": point.score} for point in answer.points]}
        raise Refused(404, {"status": {"error": f"no such endpoint: {action}"}, "time": 0.0})

    def upsert(self, name: str, asked: Any, options: dict[str, list[str]]) -> Any:
        self.check_waits(options)
        size = self.engine.get_collection(name).config.params.vectors.size
        if any(len(point.vector) != size for point in asked.points):
            raise Refused(400, {"status": {"error": f"Wrong input: Vector dimension error: expected dim: {size}"}, "time": 0.0})
        self.engine.upsert(name, asked.points)
        self.batches.append(len(asked.points))
        return {"operation_id": 0, "status": "completed"}

    def check_waits(self, options: dict[str, list[str]]) -> None:
        """A change counts as stored only with `wait=true`: without it Qdrant answers before it has written."""
        if options.get("wait") != ["true"]:
            raise Refused(400, {"status": {"error": "the store must wait for the write"}, "time": 0.0})
