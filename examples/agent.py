"""An agent with the three tools, on the shipped `tools` adapter: the model chooses the tool and copies its arguments.

    python -m examples.agent
    python -m examples.agent --real    # on SmolLM2-135M-Instruct without an adapter; see `make demo-real`

The shipped base reads 1,024 tokens and copies names better than prose, so here the tools have few arguments, and what
they write goes straight to the user. A larger model takes `AdapterToolkit(hub=hub).get_tools()` as it is.
SmolLM2 was not trained to call tools: it gets an example of each in its system prompt, must call one, and says nothing.
"""

import argparse
from collections.abc import Callable
from typing import Annotated, Any

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call
from langchain_core.messages import BaseMessage
from langchain_core.tools import tool
from pydantic import Field

from adapterhub import AdapterHub
from adapterhub.demo import demo_registry_folder
from adapterhub.langchain import ChatAdapterHub, tools

REQUESTS = (
    "Please call text_formatter with text Greta Okafor Porto and width 14.",
    "Use the template_generator tool for Paula.",
    "Use the content_validator tool for Greta Okafor.",
    "Use the content_validator tool for Luma.",
)
EXAMPLES = """Call the tool that the user names.

Examples:
Use the content_validator tool for Anna Weber. -> <tool_call>
{"name": "content_validator", "arguments": {"text": "Anna Weber"}}
</tool_call>
Use the template_generator tool for Tom. -> <tool_call>
{"name": "template_generator", "arguments": {"recipient": "Tom"}}
</tool_call>
Please call text_formatter with text Tom Anna and width 20. -> <tool_call>
{"name": "text_formatter", "arguments": {"text": "Tom Anna", "width": 20}}
</tool_call>"""
FULL_NAME = {"rule": "regex", "match": "whole", "pattern": r"\p{Lu}\p{Ll}+( \p{Lu}\p{Ll}+)+"}


@tool(return_direct=True)
def text_formatter(text: str, width: Annotated[int, Field(ge=10, le=500)]) -> str:
    """Applies the width to a text."""
    return str(tools.text_formatter.invoke({"text": text, "width": width}))


@tool(return_direct=True)
def template_generator(recipient: str) -> str:
    """Gets the letter for a recipient."""
    fields = {"recipient": recipient, "subject": "Welcome", "body": "Good to have you.", "sender": "The team"}
    return str(tools.template_generator.invoke({"template_type": "email", "fields": fields}))


@tool
def content_validator(text: str) -> str:
    """Gets the verdict of a text."""
    call = {"type": "tool_call", "id": "1", "name": "content_validator"}
    report = tools.content_validator.invoke({**call, "args": {"text": text, "rules": [FULL_NAME]}})
    return "valid" if report.artifact["passed"] else "invalid"


def describe(message: BaseMessage) -> str:
    """A message and its tool calls as text."""
    calls: list[Any] = getattr(message, "tool_calls", [])
    return "\n".join([str(message.content), *(f"{call['name']}({call['args']})" for call in calls)]).strip()


@wrap_model_call
def must_call(request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]) -> ModelResponse:
    """Makes the model call exactly one tool."""
    return handler(request.override(tool_choice="any", model_settings={"parallel_tool_calls": False}))


def main() -> None:
    """Asks the agent and shows every step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", action="store_true", help="on SmolLM2-135M-Instruct, without an adapter")
    real = parser.parse_args().real
    base = "adapterhub-demo-real" if real else "adapterhub-demo"
    offered = [text_formatter, template_generator, content_validator]
    with AdapterHub.from_pretrained(base, demo_registry_folder(real=real)) as hub:
        if real:
            model = ChatAdapterHub(hub=hub, temperature=0, max_tokens=80)
            direct = [each.model_copy(update={"return_direct": True}) for each in offered]
            agent = create_agent(model, direct, system_prompt=EXAMPLES, middleware=[must_call])
        else:
            agent = create_agent(ChatAdapterHub(hub=hub, model="tools"), offered)
        for request in REQUESTS:
            for message in agent.invoke({"messages": [("user", request)]})["messages"]:
                print(f"[{message.type}] {describe(message)}")
            print()


if __name__ == "__main__":
    main()
