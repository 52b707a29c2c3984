"""The page's modules without the page: called in the browser that they are written for."""

from __future__ import annotations

import ast
import json
import shlex
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from adapterhub.server.routes import page as page_routes
from tests.server.page.conftest import serving, watched_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    app = FastAPI()
    app.include_router(page_routes.router)

    @app.get("/blank", response_class=HTMLResponse)
    async def blank() -> str:
        return '<link rel="icon" href="data:,">'  # else the browser asks for /favicon.ico

    with serving(app) as address:
        yield address


@pytest.fixture(scope="module")
def call(address: str, browser: Browser) -> Iterator[Callable[..., Any]]:
    """Calls a function with a module in reach: `call("differing", "(m, text) => m.differing(text, 'b')", "a")`."""
    with watched_page(browser, f"{address}blank") as page:

        def call_in_page(module: str, function: str, *arguments: Any) -> Any:
            return page.evaluate(
                f"async (given) => ({function})(await import('/page/{module}.js'), ...given)", list(arguments)
            )

        yield call_in_page


DIFFERING = "(m, text, reference) => m.differing(text, reference).map(({text, differs}) => [text, differs])"


@pytest.mark.parametrize(
    ("text", "reference", "runs"),
    [
        ("the red car", "the red car", [["the red car", False]]),
        ("the red car", "the blue car", [["the ", False], ["red", True], [" car", False]]),
        ("a new car", "a car", [["a ", False], ["new", True], [" car", False]]),
        ("a car", "a new car", [["a car", False]]),
        ("b a", "a b", [["b", True], [" a", False]]),
        ('{"x": 1}', "x 1", [['{"', True], ["x", False], ['":', True], [" 1", False], ["}", True]]),
        ("цена 5", "цена 7", [["цена ", False], ["5", True]]),
        ("", "a", []),
        ("a", "", [["a", True]]),
    ],
)
def test_words_that_the_other_text_has_not_are_marked(
    call: Callable[..., Any], text: str, reference: str, runs: list[list[Any]]
):
    assert call("differing", DIFFERING, text, reference) == runs


def test_texts_too_long_to_compare_are_not_marked(call: Callable[..., Any]):
    long = "word " * 5_000
    assert call("differing", DIFFERING, long, "other " * 5_000) == [[long, False]]


STREAM = """
async (m, bytes, cut) => {
  const stream = new ReadableStream({
    start(controller) {
      for (let at = 0; at < bytes.length; at += cut) controller.enqueue(new Uint8Array(bytes.slice(at, at + cut)));
      controller.close();
    },
  });
  const events = [];
  for await (const event of m.serverSentEvents(stream)) events.push(event);
  return events;
}
"""


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_events_are_read_however_the_network_cuts_them(call: Callable[..., Any], cut: int, newline: str):
    lines = [
        ": ping",
        "",
        'data: {"text": "Цена 5 €"}',
        "",
        "event: x",
        'data: {"a":',
        "data: 1}",
        "",
        ": ping",
        "",
    ]
    stream = newline.join([*lines, "data: [DONE]", "", 'data: {"after": true}', "", ""])
    assert call("server_sent_events", STREAM, list(stream.encode()), cut) == [{"text": "Цена 5 €"}, {"a": 1}]


REQUEST = {
    "model": "json:0.7+support:0.3",
    "messages": [{"role": "user", "content": 'it\'s "5 €"\n$HOME `ls` \\ 😀'}],
    "max_tokens": 256,
    "temperature": 0.5,
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "f",
                "strict": True,
                "parameters": {"type": "object", "properties": {"city": {"type": "string", "default": None}}},
            },
        }
    ],
    "stream": True,
    "stream_options": {"include_usage": True},
}
ORIGIN = "http://127.0.0.1:8000"


def test_the_curl_command_sends_the_request(call: Callable[..., Any]):
    command = shlex.split(call("snippets", "(m, ...given) => m.asCurl(...given)", ORIGIN, REQUEST, True))
    assert command[:3] == ["curl", "-N", f"{ORIGIN}/v1/chat/completions"]
    assert command[command.index("-d") + 1 :] == [
        json.dumps(REQUEST, ensure_ascii=False, separators=(",", ":"))
    ]
    assert "Authorization: Bearer $OPENAI_API_KEY" in command


def test_the_python_program_sends_the_request(call: Callable[..., Any]):
    program = ast.parse(call("snippets", "(m, ...given) => m.asPython(...given)", ORIGIN, REQUEST, False))
    client, completion = (node for node in program.body if isinstance(node, ast.Assign))
    assert _keywords(client.value) == {"base_url": f"{ORIGIN}/v1", "api_key": "none"}
    expected = {name: value for name, value in REQUEST.items() if not name.startswith("stream")}
    assert ast.unparse(completion.value.func) == "client.chat.completions.create"
    assert _keywords(completion.value) == expected


def _keywords(called: Any) -> dict[str, Any]:
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in called.keywords}


def test_a_key_is_taken_from_the_environment(call: Callable[..., Any]):
    program = call("snippets", "(m, ...given) => m.asPython(...given)", ORIGIN, REQUEST, True)
    assert f'OpenAI(base_url="{ORIGIN}/v1")' in program  # which reads OPENAI_API_KEY


TAKE = """
(m, timed) => {
  const answer = new m.Answer("tools", {});
  answer.sent = 1000;
  return timed.map(([now, chunk]) => {
    answer.take(chunk, now);
    const { state, text, toolCalls, finishReason, timeToFirstToken, tokensPerSecond } = answer;
    return structuredClone({ state, text, toolCalls, finishReason, timeToFirstToken, tokensPerSecond });
  });
}
"""


def chunk(delta: dict[str, Any], finish: str | None = None, tokens: int | None = None) -> dict[str, Any]:
    usage = {"usage": {"completion_tokens": tokens}} if tokens else {}
    return {
        "model": "tools@2",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        **usage,
    }


def test_an_answer_measures_from_the_first_text_on(call: Callable[..., Any]):
    first, second, third, last, usage = call(
        "answer",
        TAKE,
        [
            [1100, chunk({"role": "assistant", "content": ""})],
            [1250, chunk({"content": "The"}, tokens=1)],
            [1450, chunk({"content": " price"}, tokens=3)],
            [1460, chunk({}, "stop")],
            [1470, {"model": "tools@2", "choices": [], "usage": {"completion_tokens": 5}}],
        ],
    )
    assert (first["state"], first["timeToFirstToken"]) == ("waiting", None)
    assert (second["text"], second["timeToFirstToken"], second["tokensPerSecond"]) == ("The", 250, None)
    assert (third["text"], third["tokensPerSecond"]) == ("The price", 10)  # two more tokens in 0.2 s
    assert last["finishReason"] == "stop"
    assert usage["tokensPerSecond"] == 20


HEADERS = """
(m, headers) => {
  const answer = new m.Answer("auto", {});
  answer.takeHeaders(new Headers(headers));
  return [answer.answeredBy, answer.route];
}
"""


def test_the_headers_say_who_answers_and_why(call: Callable[..., Any]):
    by = {"x-adapterhub-adapter": "json", "x-adapterhub-version": "3"}
    why = {"x-adapterhub-route": "matched", "x-adapterhub-confidence": "0.912"}
    assert call("answer", HEADERS, by | why) == ["json@3", {"reason": "matched", "confidence": 0.912}]
    assert call("answer", HEADERS, {"x-adapterhub-adapter": "base"}) == ["base", None]


def test_tokens_that_came_with_the_first_output_are_not_timed(call: Callable[..., Any]):
    steps = call(
        "answer",
        TAKE,
        [[1500, chunk({"content": "a whole call"}, tokens=20)], [1700, chunk({"content": "."}, tokens=22)]],
    )
    assert steps[1]["tokensPerSecond"] == 10
    burst = [[1500, chunk({"content": "a"}, tokens=1)], [1501, chunk({"content": "b"}, tokens=20)]]
    assert call("answer", TAKE, burst)[1]["tokensPerSecond"] is None


def test_tool_calls_grow_by_their_index(call: Callable[..., Any]):
    def delta(index: int, **function: str) -> dict[str, Any]:
        return chunk({"tool_calls": [{"index": index, "function": function}]})

    steps = call(
        "answer",
        TAKE,
        [
            [1100, delta(0, name="get_weather", arguments="")],
            [1200, delta(0, arguments='{"city": ')],
            [1300, delta(1, name="get_time", arguments="{")],
            [1400, delta(0, arguments='"Oslo"}')],
            [1500, delta(1, arguments="}")],
        ],
    )
    assert steps[1]["toolCalls"] == [{"name": "get_weather", "arguments": '{"city": '}]
    assert steps[4]["toolCalls"] == [
        {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
        {"name": "get_time", "arguments": "{}"},
    ]
    assert steps[4]["timeToFirstToken"] == 100
