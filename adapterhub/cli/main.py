"""The `adapterhub` command."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

import click

from adapterhub import __version__
from adapterhub.cli import output
from adapterhub.cli.alias import alias
from adapterhub.cli.blend import blend
from adapterhub.cli.chat import chat
from adapterhub.cli.check import check
from adapterhub.cli.compare import compare
from adapterhub.cli.compose import compose_dataset
from adapterhub.cli.configs import cp_config, ls_configs
from adapterhub.cli.convert_gguf import convert_gguf
from adapterhub.cli.demo import demo
from adapterhub.cli.doctor import doctor
from adapterhub.cli.export import export
from adapterhub.cli.export_vllm import export_vllm
from adapterhub.cli.finetune import finetune
from adapterhub.cli.merge import merge
from adapterhub.cli.options import SuggestingGroup
from adapterhub.cli.push import push
from adapterhub.cli.recipes import run_recipe
from adapterhub.cli.registry import add, list_adapters, rm, show, verify
from adapterhub.cli.route import route
from adapterhub.cli.router import router
from adapterhub.cli.run import run
from adapterhub.cli.serve import serve
from adapterhub.cli.streams import discard_output, open_streams
from adapterhub.cli.sync import sync
from adapterhub.errors import AdapterHubError

_UNEXPECTED = "This is a fault of adapterhub, not yours. Run `adapterhub --debug ...` again and report it."

# In detail they log headers and signed addresses of stores, which hold keys.
_LIBRARIES_WITH_KEYS = (
    "botocore",
    "aiobotocore",
    "s3fs",
    "gcsfs",
    "google",
    "fsspec",
    "urllib3",
    "httpx",
    "httpcore",
)


@click.group(cls=SuggestingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="adapterhub")
@click.option(
    "--debug", is_flag=True, envvar="ADAPTERHUB_DEBUG", help="Show log lines, and tracebacks of errors."
)
def cli(debug: bool) -> None:
    """One 4-bit base model, many named LoRA adapters.

    \b
    Examples:
      adapterhub demo                          see it work, offline, in under a minute
      adapterhub add sql ./my-lora             register an adapter
      adapterhub run sql "Who ordered most?"   ask it
      adapterhub run auto "Who ordered most?"  let the router choose
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if debug else logging.ERROR,
        format="%(levelname)s:%(name)s: %(message)s" if debug else "%(levelname)s: %(message)s",
    )
    logging.getLogger("adapterhub").setLevel(logging.DEBUG if debug else logging.WARNING)
    for library in _LIBRARIES_WITH_KEYS:
        logging.getLogger(library).setLevel(logging.WARNING)
    if not debug:
        # transformers and bitsandbytes log about kernels and show progress bars.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        if not sys.stderr.isatty():  # on a terminal, a GGUF file's conversion has no other sign of life
            os.environ.setdefault("TQDM_DISABLE", "1")


for command in (
    demo,
    list_adapters,
    show,
    add,
    rm,
    alias,
    verify,
    sync,
    check,
    doctor,
    run,
    chat,
    serve,
    route,
    router,
    compose_dataset,
    run_recipe,
    finetune,
    compare,
    ls_configs,
    cp_config,
    blend,
    merge,
    export,
    export_vllm,
    push,
    convert_gguf,
):
    cli.add_command(command)


def main() -> None:
    """Runs the command line; exit code 0 is success, 1 an error, 2 wrong usage."""
    _end_on_signals()
    value = os.environ.get("ADAPTERHUB_DEBUG", "").lower()
    debug = "--debug" in sys.argv or value not in ("", "0", "false", "f", "no", "n", "off")
    open_streams(output.warn)
    try:
        cli(standalone_mode=False)
    except click.Abort:
        output.note("Stopped.")
        sys.exit(130)
    except _Terminated as signal_received:
        output.note("Stopped.")
        sys.exit(signal_received.code)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:  # such as a file that cannot be opened
        error.show()
        sys.exit(error.exit_code)
    except AdapterHubError as error:
        if debug:
            raise
        output.fail(error.message, error.hint)
        sys.exit(1)
    except BrokenPipeError:
        discard_output()  # the reader has ended (`| head`)
        sys.exit(1)
    except OSError as error:
        if debug:
            raise
        discard_output()
        output.fail(f"{error}.", "Check permissions and free space.")
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        output.fail(f"{type(error).__name__}: {error}", _UNEXPECTED)
        sys.exit(1)


class _Terminated(SystemExit):
    """A signal asked the process to end; its code is that of a shell, 128 and the signal's number."""


def _end_on_signals() -> None:
    """Makes SIGTERM, and SIGHUP unless it is ignored (`nohup`), clean up as Ctrl-C does."""

    def end(number: int, _: object) -> None:
        raise _Terminated(128 + number)

    if threading.current_thread() is not threading.main_thread():
        return  # Python allows handlers in the main thread only
    for name in ("SIGTERM", "SIGHUP"):
        known = getattr(signal, name, None)  # Windows has no SIGHUP
        if known is not None and signal.getsignal(known) is signal.SIG_DFL:
            signal.signal(known, end)


if __name__ == "__main__":
    main()
