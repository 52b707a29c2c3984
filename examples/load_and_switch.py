"""Loads one base with its adapters, and asks it as different adapters, one after another and concurrently.

python -m examples.load_and_switch
"""

import time

from adapterhub import AdapterHub
from adapterhub.demo import demo_registry_folder

REQUESTS = {
    "json": "Give me name, age and city as JSON: Greta Okafor is 48 years old and lives in Porto.",
    "code": "Write a function add_five(value) that adds 5 to value.",
    "support": "My Zorbex printer does not turn on.",
}


def main() -> None:
    """Loads, switches, and asks one batch of all."""
    with AdapterHub.from_pretrained("adapterhub-demo", demo_registry_folder()) as hub:
        print(f"{hub.engine.base_name}, 4 bits, with {', '.join(card.name for card in hub.registry.list())}")

        print("\nOne request, whoever is active answers:")
        for adapter in (None, "json", "support"):
            started = time.perf_counter()
            hub.set_adapter(adapter)
            switched = time.perf_counter() - started
            answer = hub.generate(REQUESTS["json"], max_tokens=40)
            print(f"- {answer.adapter or 'base'}, switched in {switched * 1e6:.0f} µs: {answer.text}")

        with hub.using("code"):
            print(f"\nFor one block:\n{hub.generate(REQUESTS['code']).text}")
        print(f"and after it {hub.active_adapter} is active again")

        before = hub.stats().steps
        answers = hub.generate_batch(list(REQUESTS.values()), list(REQUESTS))
        tokens = [answer.usage.completion_tokens for answer in answers]
        print(
            f"\nThree adapters in one batch: {tokens} tokens in {hub.stats().steps - before} forward passes"
        )
        for answer in answers:
            print(f"- {answer.adapter}@{answer.version}: {answer.text!r}")


if __name__ == "__main__":
    main()
