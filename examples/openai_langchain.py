"""LangChain's ChatOpenAI talks to the server: a chain, structured output and tools, each on an adapter.

python -m examples.openai_langchain        # starts a server on the shipped base for itself
python -m examples.openai_langchain http://127.0.0.1:8000 sk-my-key
"""

import sys

from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from examples.openai_client import PERSON, running_server


class Person(BaseModel):
    """A person."""

    name: str
    age: int
    city: str


@tool
def get_weather(city: str) -> str:
    """Tells the weather in a city."""
    return f"Sunny in {city}."


def talk(url: str, key: str = "none") -> None:
    """Shows what LangChain does over HTTP."""

    def model(name: str) -> ChatOpenAI:
        return ChatOpenAI(model=name, base_url=f"{url}/v1", api_key=key, max_tokens=80)

    support = ChatPromptTemplate.from_template("My {device} does not turn on.") | model("support")
    answer = support.invoke({"device": "Zorbex printer"})
    print(f"{answer.response_metadata['model_name']}: {answer.content.splitlines()[0]}")
    person = model("json").with_structured_output(Person, method="json_schema").invoke(PERSON)
    print(f"parsed: {person!r}")
    called = model("tools").bind_tools([get_weather]).invoke("What is the weather in Porto?")
    print("calls:", [(call["name"], call["args"]) for call in called.tool_calls])


def main() -> None:
    """Talks to the server that is named, or to one of its own."""
    if len(sys.argv) > 1:
        talk(*sys.argv[1:])
        return
    with running_server() as url:
        talk(url)


if __name__ == "__main__":
    main()
