"""Fine-tuning: trains an adapter and registers it with its card."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from pydantic import JsonValue

from adapterhub import __version__
from adapterhub._files import sha256_file, temporary_folder
from adapterhub.base.locating import locate_base
from adapterhub.dataset.stages import Progress
from adapterhub.errors import AdapterHubError, TrainingError
from adapterhub.peft_format.checks import inspect_adapter
from adapterhub.peft_format.config import WEIGHTS_FILE
from adapterhub.registry.cards import CARD_FILE, AdapterCard, CardFields, Evaluation, Lineage, PromptProfile
from adapterhub.registry.prompt_files import prompt_profile_of
from adapterhub.training.config import FinetuneConfig
from adapterhub.training.losses import TrainingStep
from adapterhub.training.output_folder import (
    FinetuneResult,
    output_folder,
    save_artifacts,
    save_result,
)
from adapterhub.training.preparing import shortened, with_composed_data
from adapterhub.training.trainer import RunStart, train_adapter, train_in_output_folder
from adapterhub.training.training_result import TrainingResult

if TYPE_CHECKING:
    from adapterhub.registry.store import AdapterRegistry

_LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets")
_NOT_OF_THE_WEIGHTS = {"resume", "save_every", "save_total_limit", "logging_steps"}


def finetune(
    config: FinetuneConfig,
    registry: AdapterRegistry,
    *,
    progress: Callable[[TrainingStep], None] | None = None,
    composing: Progress | None = None,
    prepared: Callable[[FinetuneConfig], None] | None = None,
    started: Callable[[RunStart], None] | None = None,
) -> AdapterCard:
    """Trains an adapter and registers it; after an error nothing is registered.

    What registering needs is checked before the first step: the names of the layers, the card's fields, the registry
    and the room in it. If something fails all the same once the adapter is trained, its files are kept, and the error
    says where. With `output_dir` the adapter goes there too, with the tokenizer, the configuration and the result.

    Args:
        config: The run.
        registry: Stores the adapter; an existing name gets its next version.
        progress: Called after every step.
        composing: Called while `data.compose` is composed, as `compose_dataset` does, and while records are held out.
        prepared: Called with the run, its dataset composed, before anything is loaded for it.
        started: Called before the first step.

    Returns:
        The adapter's card, with base, datasets and losses.

    Raises:
        ConfigError: The base cannot be loaded; or `output_dir` cannot be written, or another run is writing there.
        DatasetError: The data cannot be used.
        TrainingError: The loss became NaN or infinite, a lora_B did not change, or memory ran out; or the adapter was
            trained but could not be stored.
        AdapterInvalidError: The initial adapter's files are damaged.
        AdapterIncompatibleError: The initial adapter is of a kind that cannot be trained, or the new one would not fit
            the base.
        InvalidRequestError: A field of the card is not valid.
        RegistryError: The adapter cannot be stored there.
    """
    with output_folder(config.output_dir, resume=config.train.resume):
        with (
            with_composed_data(_with_initial_profile(config), composing) as ready,
            _kept_if_trained(config) as run,
        ):

            def check(untrained: Path, stop: tuple[str, ...]) -> None:
                run.fields = _fields_of_run(config, ready, stop)
                run.card = _register(ready, registry, untrained, run.fields, dry_run=True)

            if prepared:
                prepared(ready)
            result = train_in_output_folder(
                ready, run.folder, check=check, progress=progress, composing=composing, started=started
            )
            run.fields = {**run.fields, **_fields_of_result(ready, result)}
            if config.output_dir:
                save_artifacts(config, config.output_dir, run.folder, result)
            card = _register(ready, registry, run.folder, run.fields)
        if config.output_dir:
            save_result(config.output_dir, _result(config.output_dir, card, result))
    return card


def smoke_test(
    config: FinetuneConfig,
    registry: AdapterRegistry,
    *,
    progress: Callable[[TrainingStep], None] | None = None,
    composing: Progress | None = None,
    started: Callable[[RunStart], None] | None = None,
) -> TrainingResult:
    """Tries a run with a few records and steps; nothing is registered or kept.

    Args:
        config: The run.
        registry: Where it would be registered, which is checked.
        progress: As for `finetune`.
        composing: As for `finetune`.
        started: As for `finetune`.

    Raises:
        AdapterHubError: As `finetune`.
    """
    config = _with_initial_profile(shortened(config))
    with with_composed_data(config, composing) as ready, temporary_folder() as folder:

        def check(untrained: Path, stop: tuple[str, ...]) -> None:
            _register(ready, registry, untrained, _fields_of_run(config, ready, stop), dry_run=True)

        return train_adapter(
            ready, folder, check=check, progress=progress, composing=composing, started=started
        )


def _register(
    config: FinetuneConfig,
    registry: AdapterRegistry,
    folder: Path,
    fields: CardFields,
    *,
    dry_run: bool = False,
) -> AdapterCard:
    return registry.register(
        config.name,
        folder,
        base=config.base,
        quantization=config.quantization,
        dry_run=dry_run,
        **fields,
    )


@dataclass
class _Run:
    """A run's folder for the adapter, the fields of its card, and the card of the dry run."""

    folder: Path
    fields: CardFields = field(default_factory=CardFields)
    card: AdapterCard | None = None

    def write_card(self) -> bool:
        """Writes the card beside the trained files, so that they can be registered with all that it says."""
        if self.card is None:
            return False
        try:
            digest = inspect_adapter(self.folder).digest
            card = self.card.changed(self.fields).model_copy(update={"digest": digest})
            (self.folder / CARD_FILE).write_bytes(card.to_json())
        except (AdapterHubError, OSError):  # such as a full disk; the adapter's files are there all the same
            (self.folder / CARD_FILE).unlink(missing_ok=True)
            return False
        return True


@contextmanager
def _kept_if_trained(config: FinetuneConfig) -> Iterator[_Run]:
    """A run in a temporary folder, whose trained files are kept after an error."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(temporary_folder()) / "adapter"
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise TrainingError(
                f"No temporary folder could be made: {error.strerror or error}.",
                hint="Free some space, or set TMPDIR to a folder that can be written.",
            ) from error
        run = _Run(folder)
        try:
            yield run
        except Exception as error:
            if not (folder / WEIGHTS_FILE).is_file():
                raise
            raise _not_registered(config, run, error) from error


def _not_registered(config: FinetuneConfig, run: _Run, error: Exception) -> TrainingError:
    """Moves the trained files out of the temporary folder; the error says where they are."""
    reason = error.message if isinstance(error, AdapterHubError) else str(error)
    trust = ["--trust-card"] if run.write_card() else []
    # No name of an adapter makes it look like a temporary folder, which the next process would remove.
    kept = Path(tempfile.gettempdir(), f"adapterhub-trained-{config.name}-{uuid4().hex[:8]}")
    run.folder.rename(kept)
    command = ["adapterhub", "add", config.name, str(kept), "--base", config.base]
    return TrainingError(
        f"The adapter was trained, but not registered: {reason.removesuffix('.')}. "
        f"Its files are in {str(kept)!r}.",
        hint=f"Register them: {shlex.join([*command, *trust])}",
    )


def _with_initial_profile(config: FinetuneConfig) -> FinetuneConfig:
    """The run with the prompt profile of the adapter that it continues, unless it sets one itself."""
    if config.initial_adapter is None or "prompt" in config.card.model_fields_set:
        return config
    profile = prompt_profile_of(config.initial_adapter, locate_base(config.base, revision=config.revision))
    card = config.card.model_copy(update={"prompt": profile})  # counts as set from then on
    return config.model_copy(update={"card": card})


def _fields_of_run(given: FinetuneConfig, ready: FinetuneConfig, stop: tuple[str, ...]) -> CardFields:
    """What the card says of the run before its first step; the datasets may change or go away during it."""
    fields: CardFields = {**ready.card.fields(), "datasets": _datasets(given, ready)}
    if stop:
        fields["prompt"] = _with_stop(ready.card.prompt, stop)
    return fields


def _fields_of_result(config: FinetuneConfig, result: TrainingResult) -> CardFields:
    return {
        "evaluation": [_evaluation(config, result.eval_loss)] if result.eval_loss is not None else [],
        "lineage": Lineage(method="finetune", settings=_settings(config, result)),
    }


def _with_stop(profile: PromptProfile, stop: tuple[str, ...]) -> PromptProfile:
    new = (token for token in stop if token not in profile.stop)
    return profile.model_copy(update={"stop": (*profile.stop, *new)})


def _settings(config: FinetuneConfig, result: TrainingResult) -> dict[str, JsonValue]:
    return {
        **config.train.model_dump(mode="json", exclude_none=True, exclude=_NOT_OF_THE_WEIGHTS),
        **({"initial_adapter": result.initial_adapter} if result.initial_adapter else {}),
        "lora_dropout": config.lora.dropout,
        "compute_dtype": str(result.base.compute_dtype).removeprefix("torch."),
        "prompt": str(result.style),
        **_template_digest(result.style.template),
        "libraries": {"adapterhub": __version__, **{name: version(name) for name in _LIBRARIES}},
        "loss_tokens": config.data.loss,
        "records": len(result.train.examples),
        "records_truncated": result.train.truncated,
        "records_dropped": result.train.dropped,
        "steps": result.steps,
        **({"best_step": result.chosen_step} if config.train.load_best else {}),
        "loss": round(result.loss, 4),
    }


def _template_digest(template: str | None) -> dict[str, JsonValue]:
    return {"chat_template": f"sha256:{sha256(template.encode()).hexdigest()}"} if template else {}


def _result(folder: Path, card: AdapterCard, result: TrainingResult) -> FinetuneResult:
    metrics = {
        "train_loss": result.loss,
        "eval_loss": result.eval_loss,
        "train_samples": len(result.train.examples),
        "train_steps_per_second": result.steps_per_second,
    }
    return FinetuneResult(
        artifacts_dir=str(folder),
        status="success",
        last_train_step=result.steps,
        final_model_name=card.ref,
        metrics={name: value for name, value in metrics.items() if value is not None},
    )


def _evaluation(config: FinetuneConfig, loss: float) -> Evaluation:
    path = config.data.validation or config.data.train
    tokens = "the answers' tokens" if config.data.loss == "assistant" else "all tokens"
    return Evaluation(
        task_type="text-generation",
        dataset_name=path.name if path else "",
        dataset_split="validation",
        metric_type="loss",
        metric_name=f"cross entropy of {tokens}, nats, mean over tokens",
        metric_value=round(loss, 4),
    )


def _datasets(given: FinetuneConfig, ready: FinetuneConfig) -> list[str]:
    """The sources of a dataset that was composed, and the digests of what was trained and evaluated on."""
    sources = [source.label for source in given.data.compose.sources] if given.data.compose else []
    paths = (ready.data.train, ready.data.validation)
    return [*sources, *(f"{path.name} sha256:{sha256_file(path)}" for path in paths if path)]
