"""Checks an adapter: puts it on its base, asks one question, and reports the outcome as JSON with an exit code.

python -m examples.quest_5_3 '{"modelName": "distilgpt2", "adapterPath": "results/checkpoint-250"}'
python -m examples.quest_5_3 examples/quest_5_3.json
"""

import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from adapterhub import AdapterHub, AdapterHubError, AdapterNotFoundError, ConfigError
from adapterhub.errors import describe_validation

log = logging.getLogger("quest_5_3")

EXAM_PROMPT = "Instruction: Which genre is the hobbit?\nResponse:"


class Contract(BaseModel):
    """Fields in camelCase or snake_case; no other fields."""

    model_config = ConfigDict(
        extra="forbid", alias_generator=to_camel, populate_by_name=True, protected_namespaces=()
    )


class Quantization(Contract):
    """How the base is stored."""

    load_in_4bit: bool = Field(validation_alias=AliasChoices("loadIn4Bit", "load_in_4bit"))
    compute_dtype: str = Field(
        "torch.float16",
        pattern=r"^(torch\.)?(float16|bfloat16|float32)$",
        validation_alias=AliasChoices("bnb4BitComputeDtype", "bnb_4bit_compute_dtype"),
    )


class InputData(Contract):
    """What to check."""

    model_name: str = Field(min_length=1)
    adapter_path: Path
    prompt: str = Field(EXAM_PROMPT, min_length=1)
    max_new_tokens: int = Field(20, gt=0)
    device: str = "auto"
    quantization: Quantization | None = None

    @property
    def hub_settings(self) -> dict[str, str | None]:
        """The settings of a hub for this base; without `quantization` it is not quantised."""
        if not self.quantization or not self.quantization.load_in_4bit:
            return {"device": self.device, "quantization": None}
        dtype = self.quantization.compute_dtype.removeprefix("torch.")
        return {"device": self.device, "quantization": "nf4", "compute_dtype": dtype}


class OutputResult(Contract):
    """What came of it."""

    status: Literal["success", "failure"]
    exit_code: int
    message: str | None = None
    result: str | None = None


def read_input(argument: str) -> InputData:
    """The input from an argument: JSON, or the name of a file that holds it."""
    try:
        text = argument if argument.lstrip().startswith("{") else Path(argument).read_text(encoding="utf-8")
        return InputData.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"The input is not valid: {describe_validation(error, limit=None)}.") from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The input cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}."
        ) from error


def check_adapter(given: InputData) -> str:
    """The prompt and its continuation by the base with the adapter, greedily."""
    if not given.adapter_path.is_dir():
        raise AdapterNotFoundError(
            f"There is no adapter folder {str(given.adapter_path)!r}.", hint="Correct adapterPath."
        )
    log.info("The adapter folder was found; loading the base.")
    with (
        tempfile.TemporaryDirectory() as registry,
        AdapterHub.from_pretrained(given.model_name, registry, **given.hub_settings) as hub,
    ):
        hub.load_adapter(given.adapter_path, "checked")
        log.info("The adapter is on the base; asking.")
        answer = hub.generate(given.prompt, "checked", raw=True, max_tokens=given.max_new_tokens)
    return given.prompt + answer.text


def main() -> int:
    """Prints the result on stdout, and status lines without texts of requests on stderr."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s: %(message)s")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    log.info("The adapter check starts.")
    try:
        if len(sys.argv) != 2:
            raise ConfigError("Give one argument: the input as JSON, or a file that holds it.")
        result = check_adapter(read_input(sys.argv[1]))
        outcome = OutputResult(status="success", exit_code=0, message="ran without chaos", result=result)
    except AdapterHubError as error:
        log.error("%s", error)
        outcome = OutputResult(status="failure", exit_code=1, message=error.message)
    except Exception as error:  # noqa: BLE001  # a caller gets a result whatever happens
        log.error("%s: %s", type(error).__name__, error)
        outcome = OutputResult(status="failure", exit_code=1, message=f"{type(error).__name__}: {error}")
    print(outcome.model_dump_json(by_alias=True, exclude_none=True))
    log.info("The adapter check ends: %s.", outcome.status)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
