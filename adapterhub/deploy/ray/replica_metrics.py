"""`/metrics` of all replicas as one: each series has a label that says which replica it is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.types import Message

_LABEL = "replica"
_CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


def merged(answers: Mapping[str, Sequence[Message]]) -> list[Message]:
    """The answer to a request for metrics.

    Args:
        answers: Name of each replica -> the ASGI messages of its answer. One that is no 200 is the answer of all.

    Raises:
        TimeoutError: No replica has answered.
    """
    if not answers:
        raise TimeoutError
    for messages in answers.values():
        if messages[0]["status"] != 200:
            return list(messages)
    texts = {name: b"".join(one.get("body", b"") for one in messages) for name, messages in answers.items()}
    registry = CollectorRegistry()
    registry.register(_Merged({name: text.decode() for name, text in texts.items()}))
    return [
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", _CONTENT_TYPE)]},
        {"type": "http.response.body", "body": generate_latest(registry)},
    ]


class _Merged(Collector):
    """The series of several expositions.

    Args:
        texts: Name of each replica -> its metrics in Prometheus' text format.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                target = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    target.add_sample(sample.name, {**sample.labels, _LABEL: replica}, sample.value)
        yield from families.values()
