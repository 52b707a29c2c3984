import subprocess
import sys

import adapterhub

EXPORTED = [
    "AdapterCard",
    "AdapterDisabledError",
    "AdapterExistsError",
    "AdapterHub",
    "AdapterHubError",
    "AdapterIncompatibleError",
    "AdapterInvalidError",
    "AdapterNotFoundError",
    "AdapterRegistry",
    "AdapterRouter",
    "AsyncGenerationStream",
    "BatchGenerationOptions",
    "BatchingEngine",
    "CapacityError",
    "Completion",
    "CompletionChunk",
    "ConfigError",
    "DatasetError",
    "DeadlineError",
    "EchoEngine",
    "Engine",
    "EngineClosedError",
    "EngineError",
    "EngineLimits",
    "EngineStats",
    "ExportError",
    "Generation",
    "GenerationError",
    "GenerationOptions",
    "GenerationStream",
    "HubConfig",
    "InvalidRequestError",
    "OutputFormat",
    "Policy",
    "RegistryError",
    "RegistryLockedError",
    "RegistryUnavailableError",
    "RequestTooLongError",
    "RouteDecision",
    "RouteFilter",
    "RoutingError",
    "SamplingParams",
    "ToolError",
    "TrainingError",
    "Usage",
    "__version__",
    "load_base",
]


def test_the_exported_names_are_these():
    assert sorted(adapterhub.__all__) == EXPORTED
    assert dir(adapterhub) == EXPORTED


def test_every_exported_name_is_there_and_has_a_docstring():
    for name in set(EXPORTED) - {"__version__"}:
        assert getattr(adapterhub, name).__doc__, name


def test_star_import_gives_the_exported_names():
    names: dict[str, object] = {}
    exec("from adapterhub import *", names)
    assert set(EXPORTED) <= names.keys()


def test_an_unknown_name_is_an_attribute_error():
    code = "import adapterhub\ntry: adapterhub.nothing\nexcept AttributeError: print('refused')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "refused"
