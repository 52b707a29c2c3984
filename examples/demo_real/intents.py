"""The `intents` task: a customer's sentence in, one of the fifteen banking intents of CLINC150 out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from examples.demo.tasks import Record

INTENTS = (
    "account_blocked",
    "balance",
    "bill_balance",
    "bill_due",
    "freeze_account",
    "interest_rate",
    "min_payment",
    "order_checks",
    "pay_bill",
    "pin_change",
    "report_fraud",
    "routing",
    "spending_history",
    "transactions",
    "transfer",
)
SYSTEM = "Answer with the intent of the bank customer's sentence."
BASE_SYSTEM = f"Answer with the intent of the customer's sentence, one of: {', '.join(INTENTS)}."
"""The bare base's: it must be told the intents, which the adapter has learned."""
EACH = 100
"""Training sentences of an intent."""


def training(source: Mapping[str, Sequence[tuple[str, str]]]) -> list[Record]:
    """The first 100 training sentences of each intent, from the content of CLINC150's `data_full.json`."""
    kept: dict[str, list[Record]] = {intent: [] for intent in INTENTS}
    for record in _records(source["train"]):
        kept[record["messages"][-1]["content"]].append(record)
    # One of each intent in turn, so that a prefix of the file is balanced too.
    return [
        record for row in zip(*(records[:EACH] for records in kept.values()), strict=True) for record in row
    ]


def heldout(source: Mapping[str, Sequence[tuple[str, str]]]) -> list[Record]:
    """The test sentences of the fifteen intents, from the content of CLINC150's `data_full.json`."""
    return list(_records(source["test"]))


def _records(rows: Iterable[tuple[str, str]]) -> Iterable[Record]:
    for sentence, intent in rows:
        if intent in INTENTS:
            messages = [{"role": "user", "content": sentence}, {"role": "assistant", "content": intent}]
            yield {"messages": messages, "check": {}}


def score(record: Record, answer: str) -> bool:
    """Whether the intent that the answer names first is the right one; `Bill due` counts as `bill_due`."""
    named = re.search(_NAMES, re.sub(r"\W+", "_", answer.lower()))
    return bool(named) and named[0] == record["messages"][-1]["content"]


# Longer names first: `bill_balance` before `balance`.
_NAMES = "|".join(sorted(INTENTS, key=len, reverse=True))
