"""A chain: the `support` adapter writes steps, a template turns them into a letter, which is wrapped and validated.

python -m examples.chain
"""

from typing import Any

from langchain_core.messages import ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.tools import BaseTool

from adapterhub import AdapterHub
from adapterhub.demo import demo_registry_folder
from adapterhub.langchain import ChatAdapterHub
from adapterhub.langchain.tools import content_validator, template_generator, text_formatter

RULES = (
    {"rule": "no_placeholders"},
    {"rule": "language", "language": "en"},
    {"rule": "length", "unit": "lines", "maximum": 16},
    {"rule": "regex", "pattern": r"(?m)^1\. .+\n2\. "},
)
TICKETS = (
    {"recipient": "Greta", "device": "Zorbex printer", "trouble": "does not turn on"},
    {"device": "Luma 28", "trouble": "is not charging"},  # no recipient: the letter shows the missing field
)


def call(tool: BaseTool, **arguments: Any) -> ToolMessage:
    """A tool's result with its artifact, as an agent receives it."""
    return tool.invoke({"type": "tool_call", "id": "1", "name": tool.name, "args": arguments})


def letter(ticket: dict[str, str]) -> str:
    """The letter of a ticket."""
    fields = {"subject": ticket["device"], "body": ticket["steps"], "sender": "Your support"}
    fields |= {name: ticket[name] for name in ("recipient",) if name in ticket}
    return call(template_generator, template_type="email", fields=fields).artifact["text"]


def checked(text: str) -> dict[str, Any]:
    """A text and its validation report."""
    report = call(content_validator, text=text, rules=list(RULES))
    return {"text": text, "passed": report.artifact["passed"], "report": report.content}


def chain(hub: AdapterHub) -> Runnable[dict[str, str], dict[str, Any]]:
    """Generates, renders, formats, validates."""
    ask = ChatPromptTemplate.from_template("My {device} {trouble}.")
    steps = ask | ChatAdapterHub(hub=hub, model="support") | StrOutputParser()
    wrap = RunnableLambda(lambda text: call(text_formatter, text=text, width=60).content)
    return RunnablePassthrough.assign(steps=steps) | letter | wrap | checked


def main() -> None:
    """Runs the chain on a batch of two tickets."""
    with AdapterHub.from_pretrained("adapterhub-demo", demo_registry_folder()) as hub:
        for result in chain(hub).batch(list(TICKETS)):
            print(f"{result['text']}\n\n=> {result['report']}\n")


if __name__ == "__main__":
    main()
