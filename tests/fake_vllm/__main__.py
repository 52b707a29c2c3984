"""Serves a fake until it is killed: `python -m tests.fake_vllm PORT SECONDS_FOR_A_TOKEN`; prints its port."""

from __future__ import annotations

import socket
import sys

import uvicorn

from tests.fake_vllm.app import FakeVllm

with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listening:
    print(listening.getsockname()[1], flush=True)
    fake = FakeVllm(token_seconds=float(sys.argv[2]))
    uvicorn.Server(uvicorn.Config(fake, log_level="critical", lifespan="off")).run(sockets=[listening])
