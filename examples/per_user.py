"""A graph in which every user has an adapter and a memory of their own: both come from the config of a call.

python -m examples.per_user
"""

from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from adapterhub import AdapterHub
from adapterhub.demo import demo_registry_folder
from adapterhub.langchain import ChatAdapterHub

ADAPTERS = {"ann": "json", "ben": "support", "eve": "auto"}
"""Eve's requests go where the router sends them."""
FACTS = "Give me name, age and city as JSON: Greta Okafor is 48 years old and lives in Porto."
TROUBLE = "My Zorbex printer does not turn on."
REQUESTS = (("ann", FACTS), ("ben", TROUBLE), ("eve", TROUBLE), ("eve", FACTS))


def config(user: str) -> dict[str, Any]:
    """What belongs to a user: the adapter that answers, and the thread that remembers."""
    return {"configurable": {"adapter": ADAPTERS[user], "thread_id": user}}


def main() -> None:
    """Asks one graph as three users."""
    with AdapterHub.from_pretrained("adapterhub-demo", demo_registry_folder()) as hub:
        model = ChatAdapterHub(hub=hub)  # the bare base, if a config names no adapter

        def answer(state: MessagesState) -> dict[str, Any]:
            return {"messages": [model.invoke(state["messages"][-1:])]}

        builder = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer")
        graph = builder.compile(checkpointer=InMemorySaver())
        for user, request in REQUESTS:
            message = graph.invoke({"messages": [("user", request)]}, config(user))["messages"][-1]
            print(f"{user}, answered by {message.response_metadata['adapter']}: {message.content!r}")
        for user in ADAPTERS:
            messages = graph.get_state(config(user)).values["messages"]
            used = sum(message.usage_metadata["total_tokens"] for message in messages if message.type == "ai")
            print(f"{user}: {len(messages)} messages, {used} tokens")


if __name__ == "__main__":
    main()
