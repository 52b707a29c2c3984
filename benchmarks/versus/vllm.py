"""vLLM's CPU build, in an environment of its own. It computes in the process itself, as the other contenders do."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Mapping, Sequence

from benchmarks.versus.worker import Prompts, Task


def make(task: Task) -> Vllm:
    """A vLLM engine; it is compiled where there is a C++ compiler, as it is by default."""
    os.environ |= {
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": str(task.threads),
    }
    return Vllm(task)


class Vllm:
    """`vllm.LLM`, with LoRA only where it is asked for adapters; it costs time without them too."""

    def __init__(self, task: Task) -> None:
        import torch
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        torch.set_num_threads(task.threads)
        lora = (
            {"enable_lora": True, "max_loras": len(task.adapters), "max_lora_rank": task.rank}
            if "adapters" in task.kinds
            else {}
        )
        dtype, eager = task.compute_dtype or "bfloat16", shutil.which("c++") is None
        self._engine = LLM(
            task.folder,
            dtype=dtype,
            max_num_seqs=task.rows,
            max_model_len=task.tokens,
            enable_prefix_caching=False,
            enforce_eager=eager,
            **lora,
        )
        self._adapters = {
            name: LoRARequest(name, number, folder)
            for number, (name, folder) in enumerate(task.adapters.items(), 1)
        }
        self.about: Mapping[str, str] = {
            "weights": dtype,
            "computes": dtype,
            "vllm": importlib.metadata.version("vllm"),
            "torch": torch.__version__,
        }

    def answer(
        self, prompts: Prompts, adapters: Sequence[str | None], tokens: int
    ) -> Sequence[Sequence[int]]:
        """See `Contender.answer`."""
        from vllm import SamplingParams

        outputs = self._engine.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True),
            use_tqdm=False,
            lora_request=[self._adapters[name] if name else None for name in adapters],
        )
        return [output.outputs[0].token_ids for output in outputs]
