"""A vLLM server without a model, for tests: the codes of vLLM 0.32 and answers that say which adapter gave them."""

from tests.fake_vllm.app import FakeVllm
from tests.fake_vllm.serving import FakeProcess, FakeServer, serving

__all__ = ["FakeProcess", "FakeServer", "FakeVllm", "serving"]
