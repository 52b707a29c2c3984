"""Lets the router choose the adapter of each request, shows why, and leaves out-of-scope requests to the base.

python -m examples.router
"""

from adapterhub import AdapterHub
from adapterhub.demo import demo_registry_folder

REQUESTS = (
    "Give me name, age and city as JSON: Greta Okafor is 48 years old and lives in Porto.",
    "Write a function add_five(value) that adds 5 to value.",
    "My Zorbex printer does not turn on.",
    "Добрый вечер, мой Luma 28 не включается.",
    "Hello! Who are you?",
)


def main() -> None:
    """Routes without a model's help, then answers."""
    with AdapterHub.from_pretrained("adapterhub-demo", demo_registry_folder()) as hub:
        print("Decisions of the router (no model is asked):")
        for request in REQUESTS:
            decision = hub.route(request)
            print(
                f"- {decision.adapter or 'base':8} {decision.confidence:.2f} {decision.reason:14} {request}"
            )

        why = hub.router.explain(REQUESTS[2])
        print(f"\nWhy {why.decision.adapter}: {', '.join(repr(one.ngram) for one in why.evidence[:5])}")

        print('\nThe same requests as one batch with adapter="auto":')
        for answer in hub.generate_batch(list(REQUESTS), "auto", max_tokens=60):
            print(f"- {answer.adapter or 'base'}: {answer.text!r}")


if __name__ == "__main__":
    main()
