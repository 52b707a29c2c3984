"""Counters by label, from the engine's counts by reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping

from adapterhub.server.metrics.adapter_labels import AdapterLabels


class AdapterTotals:
    """Adds up what each reference gained since the scrape before, under the label that it has now.

    So a counter of a label only grows: whether the engine forgets a reference and starts again from 0, or an adapter
    gets a label of its own after it was counted as `other`. Not thread-safe.

    Args:
        labels: Which label a reference has.
    """

    def __init__(self, labels: AdapterLabels) -> None:
        self._labels = labels
        self._before: Mapping[tuple[str, Hashable], int] = {}
        self._totals: defaultdict[tuple[str, Hashable], int] = defaultdict(int)

    def update(
        self, counts: Mapping[tuple[str, Hashable], int], labels: Collection[str]
    ) -> Mapping[tuple[str, Hashable], int]:
        """Adds up.

        Args:
            counts: (reference, what is counted) -> count since the engine's start.
            labels: The labels that there are; the figures of others are dropped.

        Returns:
            (label, what is counted) -> total.
        """
        for (reference, what), count in counts.items():
            label, before = self._labels.label(reference), self._before.get((reference, what), 0)
            if label is not None:
                self._totals[label, what] += count - before if count >= before else count
        self._before = dict(counts)
        for key in [key for key in self._totals if key[0] not in labels]:
            del self._totals[key]
        return self._totals
