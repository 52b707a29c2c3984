"""The page in a browser, against a server on the echo engine: every answer is known beforehand."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.engine import Request, TokenOutput
from adapterhub.engine.echo import EchoStream
from adapterhub.server import ServerConfig, create_app
from tests.server.page.conftest import serving, watched_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser
ADAPTERS = Path(__file__).parents[3] / "adapters"
PROMPT = "Extract the city and the age as JSON: Anna is 31 and lives in Oslo."
FIRST = "Reads the wanted keys out of a sentence"
"""How the description of `json` begins."""


class PacedStream(EchoStream):
    """Says two characters, and more only when its engine lets it."""

    def __init__(self, engine: PacedEngine, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._engine, self._said, self._ended = engine, 0, False

    async def __anext__(self) -> TokenOutput:
        while self._engine.paced and self._said >= 2:
            await asyncio.sleep(0.01)
        self._said += 1
        output = await super().__anext__()
        self._ended = output.finish_reason is not None
        return output

    async def aclose(self) -> None:
        """Ends it, and counts that once if there was more to say."""
        self._engine.aborted += not self._ended
        self._ended = True
        await super().aclose()


class PacedEngine(EchoEngine):
    """The echo engine, whose streams pause while it is `paced`, and which counts those that were `aborted`."""

    def __init__(self) -> None:
        super().__init__()
        self.paced = False
        self.aborted = 0

    def astream(self, request: Request) -> EchoStream:
        """As `EchoEngine`."""
        return PacedStream(self, partial(self.stream, request), 1, 0.0)


@pytest.fixture(scope="module")
def engine() -> PacedEngine:
    return PacedEngine()


@pytest.fixture(scope="module")
def hub(engine: PacedEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterHub]:
    registry = shutil.copytree(ADAPTERS, tmp_path_factory.mktemp("page") / "registry")
    with AdapterHub(engine, AdapterRegistry(registry)) as hub:
        yield hub


@pytest.fixture(scope="module")
def address(hub: AdapterHub) -> Iterator[str]:
    with serving(create_app(hub)) as address:
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with watched_page(browser, address) as page:
        page.get_by_text(FIRST).wait_for()
        yield page


def said(who: str, prompt: str = PROMPT) -> str:
    """What the echo engine answers: who it is, and the prompt in the format of a base without a chat template."""
    return f"[{who}] ### Instruction:\n{prompt}\n\n### Response:\n"


def column(page: Page, choice: str) -> Locator:
    return page.get_by_role("article", name=f"Answer of {choice}", exact=True)


def ask(page: Page, prompt: str = PROMPT) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Ask").click()


def figures(answer: Locator) -> dict[str, str]:
    return dict(
        zip(answer.locator("dt").all_inner_texts(), answer.locator("dd").all_inner_texts(), strict=True)
    )


def wait_for_ends(page: Page, count: int) -> None:
    page.get_by_role("status").filter(has_text=f"{count} of {count} answers have ended.").wait_for(
        state="attached"
    )


def test_one_prompt_is_answered_by_the_base_and_the_routers_choice(page: Page):
    ask(page)
    wait_for_ends(page, 2)
    base, auto = column(page, "base"), column(page, "auto")
    assert base.locator(".text").text_content() == said("base")
    assert auto.locator(".text").text_content() == said("json@1")
    assert auto.get_by_text("answered by json@1").is_visible()
    assert re.search(r"routed: \w+, confidence [01]\.\d\d", auto.inner_text())
    shown = figures(auto)
    assert (shown["tokens"], shown["finish"]) == (str(len(said("json@1"))), "stop")
    assert re.fullmatch(r"\d+ ms|\d+\.\d\d s", shown["first token"])
    assert re.fullmatch(
        r"–|\d+\.\d", shown["tokens/s"]
    )  # none if all came together; its value: test_page_modules


def test_words_that_the_base_did_not_say_are_marked(page: Page):
    ask(page)
    wait_for_ends(page, 2)
    assert column(page, "auto").locator("mark").all_inner_texts() == ["json@1"]
    assert column(page, "base").locator("mark").count() == 0


def test_markup_of_a_model_is_shown_as_text(page: Page):
    markup = '<img src="x" onerror="document.title = 1"><b>bold</b>'
    ask(page, markup)
    wait_for_ends(page, 2)
    assert column(page, "base").locator(".text").text_content() == said("base", markup)
    assert page.locator(".text img, .text b").count() == 0
    assert page.title() == "adapterhub"


def test_a_choice_may_be_an_adapter_or_a_blend_of_two(page: Page):
    page.get_by_role("button", name="Add").click()
    page.get_by_label("Choice 2", exact=True).select_option("support")
    page.get_by_role("button", name="Add").click()
    page.get_by_label("Choice 3", exact=True).select_option("blend")
    assert page.get_by_role("button", name="Add").count() == 0  # three are the most
    page.get_by_label("Adapter 2 of the blend").select_option("support")
    page.get_by_label("Weight of code").fill("0.75")
    page.get_by_role("button", name="Blend in").click()
    page.get_by_role("button", name="Remove json from the blend").click()
    ask(page)
    wait_for_ends(page, 4)
    assert column(page, "support").locator(".text").text_content() == said("support@1")
    blend = column(page, "code:0.75+support:0.5").locator(".text").text_content()
    assert re.match(r"\[.*code.*support.*\] ### Instruction:", blend or "")


def test_an_adapter_of_the_list_joins_the_choices(page: Page):
    page.get_by_role("listitem").filter(has_text="Sorts a user's trouble").locator("summary").click()
    page.get_by_role("button", name="Compare support@1").click()
    assert page.get_by_label("Choice 2", exact=True).input_value() == "support@1"
    assert page.get_by_label("Prompt", exact=True).evaluate("field => field === document.activeElement")


def test_the_list_shows_what_is_on_the_card(page: Page):
    item = page.get_by_role("listitem").filter(has_text=FIRST)
    item.locator("summary").click()
    item.get_by_text("right answers", exact=True).wait_for()
    facts = figures(item)
    assert facts["base"] == "adapterhub-demo"
    assert facts["base's fingerprint"] == "715748145f91"
    assert facts["made by"] == "finetune"
    assert facts["rank"] == "16"
    assert facts["size"] == "1.59 MB"
    assert facts["languages"] == "en, ru"
    assert item.locator(".chip").all_inner_texts() == ["disk"]


def test_an_adapter_that_is_registered_meanwhile_appears(page: Page, hub: AdapterHub):
    hub.registry.register("late", ADAPTERS / "json" / "1", description="Came later.")
    try:
        page.get_by_text("Came later.").wait_for()
    finally:
        hub.registry.remove("late")


def test_the_routers_decision_is_shown_while_one_types(page: Page, hub: AdapterHub):
    asked = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/route") else None)
    text = hub.registry.get("support").routing.examples[0].splitlines()[0]
    page.get_by_label("Prompt", exact=True).press_sequentially(text, delay=5)
    router = page.get_by_role("region", name="Router")
    router.locator(".verdict").get_by_text("support").wait_for()
    decision = hub.route(text)
    assert (
        f"confidence {decision.confidence:.0%}, needs {decision.threshold:.0%}".replace("%", " %")
        in router.inner_text()
    )
    assert router.locator(".matched").inner_text() == f"nearest example {decision.matched}"
    assert router.get_by_role("listitem").locator("span").all_inner_texts() == [
        name for name, _ in decision.ranked()
    ]
    assert len(asked) < len(text) / 2


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stop_aborts_every_answer(page: Page, engine: PacedEngine, how: str):
    engine.paced, before = True, engine.aborted
    try:
        ask(page)
        for choice in ("base", "auto"):
            column(page, choice).locator(".text").wait_for()
        if how == "button":
            page.get_by_role("button", name="Stop").click()
        else:
            page.keyboard.press("Escape")
        wait_for_ends(page, 2)
        assert column(page, "base").locator(".state").inner_text() == "stopped"
        for _ in range(500):
            if engine.aborted == before + 2:
                break
            page.wait_for_timeout(10)
        assert engine.aborted == before + 2
    finally:
        engine.paced = False
    ask(page)
    wait_for_ends(page, 2)
    assert column(page, "base").locator(".text").text_content() == said("base")


def test_an_error_stays_in_its_column(browser: Browser, address: str, hub: AdapterHub):
    with watched_page(browser, address, expected="status of 404") as page:
        page.get_by_text(FIRST).wait_for()
        page.get_by_label("Choice 1", exact=True).select_option("code")
        hub.registry.update("code", status="disabled")
        try:
            ask(page)
            wait_for_ends(page, 2)
        finally:
            hub.registry.update("code", status="ready")
        assert column(page, "base").locator(".text").text_content() == said("base")
        refused = column(page, "code")
        assert "disabled" in refused.get_by_role("alert").inner_text()
        assert refused.locator(".state").inner_text() == "failed"
        assert refused.locator(".text").count() == 0


def chunks(*deltas: dict[str, Any]) -> str:
    """The body of a stream of tool calls."""
    bodies = [
        *(
            {"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
            for delta in deltas
        ),
        {"model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
    ]
    return "".join(f"data: {json.dumps(body)}\n\n" for body in bodies) + "data: [DONE]\n\n"


def call(index: int, **function: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": function}]}


def test_tool_calls_are_cards(page: Page):
    body = chunks(
        call(0, name="get_weather", arguments='{"city": '),
        call(0, arguments='"Oslo"}'),
        call(1, name="get_time", arguments='{"city'),
    )
    sent = []

    def answer(route: Any) -> None:
        sent.append(route.request.post_data_json)
        route.fulfill(body=body, content_type="text/event-stream")

    page.route("**/v1/chat/completions", answer)
    page.locator("summary", has_text="System prompt and tools").click()
    page.get_by_role("button", name="Insert an example tool").click()
    ask(page)
    wait_for_ends(page, 2)
    assert sent[0]["tools"][0]["function"]["name"] == "get_weather"
    cards = column(page, "base").get_by_role("region")
    assert cards.locator("h3").all_inner_texts() == ["get_weather", "get_time"]
    assert cards.nth(0).locator("pre").inner_text() == '{"city": "Oslo"}'
    assert "✓ valid JSON" in cards.nth(0).inner_text()
    assert "✗ not JSON" in cards.nth(1).inner_text()


def test_tools_that_are_not_json_are_not_sent(page: Page):
    page.locator("summary", has_text="System prompt and tools").click()
    page.get_by_label("Tools, a JSON array").fill("[{")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    assert page.get_by_role("button", name="Ask").is_disabled()
    page.get_by_label("Tools, a JSON array").fill("[]")
    assert page.get_by_role("button", name="Ask").is_enabled()


def test_a_stream_that_ends_too_early_is_an_error(page: Page):
    cut = 'data: {"model": "m", "choices": [{"index": 0, "delta": {"content": "half"}}]}\n\n'
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(body=cut, content_type="text/event-stream")
    )
    ask(page)
    wait_for_ends(page, 2)
    assert column(page, "base").locator(".text").inner_text() == "half"
    assert "ended before the answer did" in column(page, "base").get_by_role("alert").inner_text()


@pytest.mark.parametrize("clipboard", [True, False])
def test_the_request_is_copied_as_curl_and_python(browser: Browser, address: str, clipboard: bool):
    with watched_page(browser, address, permissions=["clipboard-read", "clipboard-write"]) as page:
        if not clipboard:  # as over plain http from another machine
            page.evaluate("() => Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        ask(page)
        wait_for_ends(page, 2)
        for label, begins in (
            ("curl", f"curl -N {address}v1/chat/completions"),
            ("Python", "from openai import"),
        ):
            column(page, "auto").get_by_role("button", name=f"Copy as {label}").click()
            if clipboard:
                column(page, "auto").get_by_text("✓ copied").wait_for()
                copied = page.evaluate("() => navigator.clipboard.readText()")
            else:
                copied = column(page, "auto").locator(".snippet").last.inner_text()
            assert copied.startswith(begins)
            assert PROMPT in copied
            page.get_by_label("Prompt", exact=True).focus()


def test_a_key_is_asked_for_and_kept_in_memory_only(browser: Browser, hub: AdapterHub, tmp_path: Path):
    key = "page-test-key-of-the-team"
    keys = tmp_path / "keys.json"
    listed = json.dumps([{"name": "team", "key": key, "adapters": ["json"]}])
    keys.write_text(listed.replace(key, "another-" + key))
    keys.chmod(0o600)
    app = create_app(hub, ServerConfig(api_key_file=keys))
    with serving(app) as address, watched_page(browser, address, expected="status of 401") as page:
        refused = page.get_by_role("alert")
        refused.wait_for()
        assert page.get_by_label("API key").evaluate("field => field === document.activeElement")
        page.keyboard.type(key)
        page.keyboard.press("Enter")
        with page.expect_response("**/v1/adapterhub/stats") as again:  # the file does not have it yet
            page.keyboard.press("Enter")
        assert again.value.status == 401
        keys.write_text(listed)
        page.wait_for_timeout(1100)  # a changed file is read by the first request after a second
        assert httpx.get(f"{address}v1/models", headers={"api-key": key}).status_code == 200
        page.keyboard.press("Enter")
        page.get_by_text(FIRST).wait_for()
        assert refused.count() == 0
        assert page.locator(".adapters .name").all_inner_texts() == ["json"]  # the others are not this key's
        ask(page)
        wait_for_ends(page, 2)
        assert column(page, "auto").locator(".text").text_content() == said("json@1")
        page.evaluate("() => Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        column(page, "auto").get_by_role("button", name="Copy as curl").click()
        command = column(page, "auto").locator(".snippet").inner_text()
        assert "Bearer $OPENAI_API_KEY" in command
        assert key not in command + page.url
        assert page.evaluate("() => [localStorage.length, sessionStorage.length, document.cookie]") == [
            0,
            0,
            "",
        ]
        page.reload()
        refused.wait_for()


def test_all_of_it_works_by_keyboard_alone(page: Page):
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the prompt"
    page.keyboard.press("Enter")
    page.keyboard.type(PROMPT)
    tab_to(page, "+ Add")
    page.keyboard.press("Enter")
    tab_to(page, "Choice 2", back=True)
    page.keyboard.type("support")
    page.keyboard.press("Control+Enter")
    wait_for_ends(page, 3)
    assert column(page, "support").locator(".text").text_content() == said("support@1")
    tab_to(page, "code disk Writes a small Python function from its description.")
    page.keyboard.press("Enter")
    tab_to(page, "Compare code")
    page.keyboard.press("Enter")
    assert page.get_by_label("Choice 3", exact=True).input_value() == "code"


def focused(page: Page) -> str:
    """What has the focus: its label or its text."""
    return page.evaluate(
        "() => (document.activeElement.ariaLabel ?? document.activeElement.innerText).trim().replace(/\\s+/g, ' ')"
    )


def tab_to(page: Page, name: str, *, back: bool = False) -> None:
    for _ in range(60):
        if focused(page) == name:
            return
        page.keyboard.press("Shift+Tab" if back else "Tab")
    pytest.fail(f"Tab does not reach {name!r}")


def test_every_control_has_a_name(page: Page):
    page.get_by_role("button", name="Add").click()
    page.get_by_label("Choice 2", exact=True).select_option("blend")
    ask(page)
    wait_for_ends(page, 3)
    roles = r"button|textbox|combobox|slider|checkbox|spinbutton|searchbox|article|region|meter"
    lines = page.locator("body").aria_snapshot().splitlines()
    controls = [line for line in lines if re.match(rf"\s*- ({roles})\b", line)]
    assert len(controls) > 12
    assert [line for line in controls if not re.match(rf"\s*- ({roles}) \"", line)] == []


CONTRAST = """
() => {
  const luminance = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return /, 0\\)$/.test(color) ? background(element.parentElement) : color;
  };
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const shown = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility());
  const texts = shown.filter((element) => !element.disabled && hasText(element));
  return texts.map((element) => {
    const [one, other] = [getComputedStyle(element).color, background(element)].map(luminance);
    return [(Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), element.className || element.tagName];
  });
}
"""


def test_every_text_has_a_contrast_of_4_5(page: Page):
    page.get_by_text(FIRST).click()
    ask(page)
    wait_for_ends(page, 2)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        shown = page.evaluate(CONTRAST)
        assert len(shown) > 40
        assert [(scheme, ratio, name) for ratio, name in shown if ratio < 4.5] == []
        paper = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert (int(re.findall(r"\d+", paper)[0]) < 128) == (scheme == "dark")


def test_nothing_is_wider_than_the_screen(page: Page):
    page.get_by_role("button", name="Add").click()
    page.get_by_label("Choice 2", exact=True).select_option("blend")
    page.get_by_text(FIRST).click()
    page.locator("summary", has_text="System prompt and tools").click()
    ask(page, "x" * 300)
    wait_for_ends(page, 3)
    for width in (360, 768, 1440):
        page.set_viewport_size({"width": width, "height": 700})
        assert page.evaluate("() => document.documentElement.scrollWidth") == width


def test_nothing_moves_for_who_wants_no_motion(browser: Browser, address: str, engine: PacedEngine):
    with watched_page(browser, address, reduced_motion="reduce") as page:
        engine.paced = True
        try:
            ask(page)
            text = column(page, "base").locator(".text")
            text.wait_for()
            assert text.evaluate("element => getComputedStyle(element, '::after').animationName") == "none"
        finally:
            engine.paced = False
        wait_for_ends(page, 2)
