"""Fine-tunes a base on a dataset with QLoRA, as a JSON configuration says, and reports the outcome as JSON.

python -m examples.quest_5_2 examples/quest_5_2.json
python -m examples.quest_5_2 '{"modelName": "distilgpt2", "dataset": {"name": "databricks/databricks-dolly-15k"}}'

The result is in `outputDir`, and on stdout. A token for the Hub comes from the environment, HF_TOKEN.
"""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from adapterhub import AdapterHubError, AdapterRegistry, ConfigError, HubConfig
from adapterhub.training import FinetuneConfig, FinetuneResult, RunStart, TrainingStep, finetune

log = logging.getLogger("quest_5_2")


def read_input(argument: str) -> dict[str, Any]:
    """The input from an argument: JSON, or the name of a file that holds it."""
    try:
        text = argument if argument.lstrip().startswith("{") else Path(argument).read_text(encoding="utf-8")
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"The input is not JSON: line {error.lineno}, column {error.colno}: {error.msg}."
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The input cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}."
        ) from error
    if not isinstance(content, dict):
        raise ConfigError("The input is not a JSON object.")
    return content


def read_config(content: dict[str, Any]) -> FinetuneConfig:
    """The run; paths are relative to the current folder, and without `outputDir` it is `results`."""
    config = FinetuneConfig.parse(content, folder=Path(), origin="the input")
    return config if config.output_dir else config.model_copy(update={"output_dir": Path("results")})


def train(config: FinetuneConfig) -> FinetuneResult:
    """Trains and registers the adapter; its files are in the output folder."""

    def started(run: RunStart) -> None:
        log.info("%d examples; computing in %s on %s.", run.records, run.compute_dtype, run.device)

    def progress(step: TrainingStep) -> None:
        if step.step % (config.train.logging_steps or 1) == 0:
            log.info("Step %d of %d: loss %.4f", step.step, step.steps, step.loss)

    registry = AdapterRegistry(HubConfig.load().registry or Path("adapters"))
    finetune(config, registry, started=started, progress=progress)
    return FinetuneResult.load(config.output_dir)


def main() -> int:
    """Prints the result on stdout, and status lines without texts of records on stderr."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    folder = ""
    log.info("The fine-tune starts.")
    try:
        if len(sys.argv) != 2:
            raise ConfigError("Give one argument: the configuration as JSON, or a file that holds it.")
        config = read_config(read_input(sys.argv[1]))
        folder = str(config.output_dir)
        result = train(config)
    except AdapterHubError as error:
        log.error("%s", error)
        result = FinetuneResult(artifacts_dir=folder, status="failure")
    except Exception as error:  # noqa: BLE001  # a caller gets a result whatever happens
        log.error("%s: %s", type(error).__name__, error)
        result = FinetuneResult(artifacts_dir=folder, status="failure")
    print(result.to_json(), end="")
    log.info("The fine-tune ends: %s.", result.status)
    return 0 if result.status == "success" else 1


if __name__ == "__main__":
    sys.exit(main())
