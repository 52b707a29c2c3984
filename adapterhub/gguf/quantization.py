"""The types of a GGUF file, and which of its weights have which.

The names are those of llama.cpp's `llama-quantize`, in small letters. Some types are computed by the `gguf` package;
K-quants, which llama.cpp alone computes, are made by llama-cpp-python of a 16-bit file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapterhub.errors import ConfigError, ExportError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Name -> llama.cpp's `LlamaFileType`.
FILE_TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q6_k": "MOSTLY_Q6_K",
    "q5_k_m": "MOSTLY_Q5_K_M",
    "q5_k_s": "MOSTLY_Q5_K_S",
    "q5_1": "MOSTLY_Q5_1",
    "q5_0": "MOSTLY_Q5_0",
    "q4_k_m": "MOSTLY_Q4_K_M",
    "q4_k_s": "MOSTLY_Q4_K_S",
    "q4_1": "MOSTLY_Q4_1",
    "q4_0": "MOSTLY_Q4_0",
    "q3_k_l": "MOSTLY_Q3_K_L",
    "q3_k_m": "MOSTLY_Q3_K_M",
    "q3_k_s": "MOSTLY_Q3_K_S",
    "q2_k": "MOSTLY_Q2_K",
}
UNQUANTIZED = ("f32", "f16", "bf16")
"""Types whose weights are numbers of 16 or 32 bits."""
WITHOUT_LLAMA_CPP = (*UNQUANTIZED, "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""Types that are written without llama-cpp-python."""

# What the first and the last layer of a quantised file have at least, where llama.cpp would take 6 bits.
_OUTER = ("token_embd.weight", "output.weight")
_KEPT_F32 = ("position_embd.weight", "rope_")


def check_quantization(names: tuple[str, ...] | list[str], *, llama_cpp: bool) -> None:
    """Refuses a type that is not known, or that cannot be written here.

    Args:
        names: Such as `"q8_0"`.
        llama_cpp: Whether llama-cpp-python is installed.

    Raises:
        ConfigError: There is no such type.
        ExportError: It takes llama-cpp-python.
    """
    for name in names:
        if name not in FILE_TYPES:
            raise ConfigError(
                f"There is no GGUF type {name[:50]!r}.", hint=f"Known are {', '.join(FILE_TYPES)}."
            )
        if not llama_cpp and name not in WITHOUT_LLAMA_CPP:
            raise ExportError(
                f"The type {name!r} is computed by llama.cpp, and llama-cpp-python is not installed.",
                hint="Run `pip install 'adapterhub[llama]'`, which builds it for ten minutes, or take one of "
                f"{', '.join(WITHOUT_LLAMA_CPP)}.",
            )


def tensor_type(name: str, shape: tuple[int, ...], file_type: str) -> Any:
    """The type of one weight, a `gguf.GGMLQuantizationType`.

    Args:
        name: llama.cpp's name of the weight.
        shape: Its shape.
        file_type: The type of the file, one of `WITHOUT_LLAMA_CPP`.

    Returns:
        32 bits for norms, biases and positions; 8 bits for the embedding and the output of a quantised file; 16 where
        a row is no whole number of blocks.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) == 1 or name.startswith(_KEPT_F32):
        return GGMLQuantizationType.F32
    wanted = GGMLQuantizationType[file_type.upper()]
    if file_type not in UNQUANTIZED and name in _OUTER:
        wanted = GGMLQuantizationType.Q8_0
    block, _ = GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else GGMLQuantizationType.F16


def to_bytes(block: npt.NDArray[np.float32], kind: Any, name: str) -> npt.NDArray[np.uint8]:
    """Some rows of a weight as a file holds them.

    Raises:
        ExportError: A value does not fit into the type.
    """
    import numpy as np
    from gguf import GGMLQuantizationType, quantize

    with np.errstate(over="ignore"):
        stored = block.astype(np.float16) if kind == GGMLQuantizationType.F16 else quantize(block, kind)
    if stored.dtype in (np.float16, np.float32) and not np.isfinite(stored).all():
        raise ExportError(
            f"The weight {name!r} does not fit into {kind.name.lower()}, or is not finite.",
            hint="Take bf16 or f32; weights that are not finite come from a run that diverged.",
        )
    return stored.view(np.uint8)
