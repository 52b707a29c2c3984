"""A Ray on this machine, and an application of two replicas over engines without a model."""

from __future__ import annotations

import warnings
from contextlib import suppress

with warnings.catch_warnings(), suppress(ImportError):
    warnings.simplefilter("ignore")  # Ray 2.60 uses what pydantic has deprecated
    import ray.serve  # noqa: F401
