"""Paths of OpenAI's API that this server has not: an answer that says so, and not that a path is misspelt."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)

NOT_IMPLEMENTED = {
    "assistants": "Assistants",
    "audio": "Speech and transcription",
    "batches": "Batches",
    "containers": "Containers",
    "conversations": "Stored conversations",
    "embeddings": "Embeddings",
    "evals": "Evaluations",
    "files": "Files",
    "fine_tuning": "Fine-tuning jobs",
    "images": "Images",
    "moderations": "Moderation",
    "pooling": "Pooling",
    "realtime": "Realtime sessions",
    "rerank": "Reranking",
    "score": "Scoring",
    "threads": "Threads",
    "uploads": "Uploads",
    "vector_stores": "Vector stores",
    "videos": "Videos",
}


async def _refuse(part: str) -> None:
    message = f"{part}: not a part of this server. GET /openapi.json lists what is."
    # OpenAI's clients send what failed on the server's side again.
    raise HTTPException(501, message, headers={"x-should-retry": "false"})


for _path, _part in NOT_IMPLEMENTED.items():
    for _route in (f"/v1/{_path}", f"/v1/{_path}/{{rest:path}}"):
        router.add_api_route(_route, partial(_refuse, _part), methods=["GET", "POST", "DELETE"], name=_path)
