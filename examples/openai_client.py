"""OpenAI's client talks to the server: an adapter by name, the router, a stream, a blend, an unknown name.

python -m examples.openai_client           # starts a server on the shipped base for itself
python -m examples.openai_client http://127.0.0.1:8000 sk-my-key
"""

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import openai
import uvicorn

from adapterhub import AdapterHub
from adapterhub.demo import demo_registry_folder
from adapterhub.server import create_app

PERSON = "Give me name, age and city as JSON: Greta Okafor is 48 years old and lives in Porto."
PRINTER = "My Zorbex printer does not turn on."


@contextmanager
def running_server() -> Iterator[str]:
    """Serves the shipped base and adapters on a free port of this machine, for as long as the block runs.

    In production `adapterhub serve` does it, with keys, limits and a drain.
    """
    with (
        AdapterHub.from_pretrained("adapterhub-demo", demo_registry_folder()) as hub,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        server = uvicorn.Server(uvicorn.Config(create_app(hub), log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def ask(client: openai.OpenAI, model: str, text: str) -> None:
    """Prints an answer, and who gave it."""
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], max_tokens=60
    )
    print(f"{model} -> {answer.model}: {answer.choices[0].message.content}")


def talk(url: str, key: str = "none") -> None:
    """Shows what a client does."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key) as client:
        print("models:", ", ".join(sorted(model.id for model in client.models.list())))
        ask(client, "json", PERSON)
        ask(client, "auto", PRINTER)
        ask(client, "json:0.9+support:0.1", PERSON)
        print("streamed: ", end="")
        messages = [{"role": "user", "content": PERSON}]
        for chunk in client.chat.completions.create(model="json", messages=messages, stream=True):
            print(chunk.choices[0].delta.content or "", end="|")
        print()
        try:
            ask(client, "jsn", PERSON)
        except openai.NotFoundError as error:
            print("refused:", error.body["message"])


def main() -> None:
    """Talks to the server that is named, or to one of its own."""
    if len(sys.argv) > 1:
        talk(*sys.argv[1:])
        return
    with running_server() as url:
        talk(url)


if __name__ == "__main__":
    main()
