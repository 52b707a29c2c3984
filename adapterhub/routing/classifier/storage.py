"""A router as one file: arrays and one JSON text in skops' format, which needs no trusted types and runs no code.

Stored are the routes and what was fitted, weights as int8; features, columns and nearest neighbours are computed from
the examples when the file is loaded. A digest detects damage; sizes are checked before anything is unpacked.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from adapterhub._files import os_errors_as, write_atomic
from adapterhub.errors import RoutingError
from adapterhub.routing.classifier.calibration import Calibration, HeldOut, Policy
from adapterhub.routing.classifier.encoding import Encoder, EncoderHead
from adapterhub.routing.classifier.features import BUCKETS, TfidfWeighting
from adapterhub.routing.classifier.fitting import TrainingSet, samples_of
from adapterhub.routing.classifier.linear_head import LinearHead
from adapterhub.routing.classifier.model import RouterModel
from adapterhub.routing.classifier.scorer import FittedHead, Scorer
from adapterhub.routing.routes import Route

FORMAT = 3
"""Raised whenever an older file would be misread: 2 orders columns by frequency, 3 has steps for others."""
MAX_UNPACKED_BYTES = 512 * 2**20
_MAX_ENTRIES = 64


class _Meta(BaseModel):
    """The JSON part: everything but arrays."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    routes: tuple[Route, ...]
    negatives: tuple[str, ...]
    general: tuple[str, ...]
    policy: Policy
    calibration: Calibration
    held_out: tuple[HeldOut, ...]
    encoder: Mapping[str, float] | None


def save_model(model: RouterModel, path: Path) -> None:
    """Writes a model without changes since its full fit."""
    from skops import io

    encoder, (head,) = model.scorer.encoder, model.scorer.heads
    meta = _Meta(
        format=FORMAT,
        routes=model.routes,
        negatives=model.negatives,
        general=model.general,
        policy=model.policy,
        calibration=model.calibration,
        held_out=model.held_out,
        encoder=encoder.weights if encoder else None,
    ).model_dump_json()
    arrays = head.linear._asdict() | {"idf": model.training.weighting.idf}
    if encoder:
        arrays |= {"vectors": encoder.vectors, "coefficients": encoder.coefficients}
    content = {"meta": meta, "digest": _digest(meta, arrays), **arrays}
    with os_errors_as(RoutingError, "The router could not be saved"):
        write_atomic(path, io.dumps(content, compression=zipfile.ZIP_DEFLATED, compresslevel=6))


def load_model(path: Path, encoder: Encoder | None) -> RouterModel:
    """Reads a file that `save_model` wrote; errors as for `AdapterRouter.load`."""
    content = _unpacked(path)
    try:
        text, digest = content.pop("meta"), content.pop("digest")
        if not isinstance(text, str) or digest != _digest(text, content):
            raise RoutingError(f"The router in {path} is damaged.", hint="Fit it anew.")
        found = json.loads(text).get("format")
        if found != FORMAT:
            raise RoutingError(
                f"The router in {path} has format {found}; this version reads {FORMAT}.", hint="Fit it anew."
            )
        return _model(_Meta.model_validate_json(text), content, encoder)
    except (KeyError, ValueError, TypeError, AttributeError, ValidationError) as error:
        raise RoutingError(f"The file {path} holds no router.", hint="Fit it anew.") from error


def _unpacked(path: Path) -> dict[str, Any]:
    from skops import io

    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
        size = sum(entry.file_size for entry in entries)
        if size > MAX_UNPACKED_BYTES or len(entries) > _MAX_ENTRIES:
            raise RoutingError(
                f"The router in {path} would take {size} bytes; {MAX_UNPACKED_BYTES} are allowed."
            )
        content = io.load(path, trusted=[])
    except FileNotFoundError as error:
        raise RoutingError(
            f"There is no router in {path}.", hint="`adapterhub router fit` makes one."
        ) from error
    except RoutingError:
        raise
    except Exception as error:  # skops raises various errors on files of another format
        raise RoutingError(f"The file {path} holds no router.", hint="Fit it anew.") from error
    if not isinstance(content, dict):
        raise RoutingError(f"The file {path} holds no router.", hint="Fit it anew.")
    return content


def _model(meta: _Meta, arrays: Mapping[str, Any], encoder: Encoder | None) -> RouterModel:
    if arrays["idf"].shape != (2 * BUCKETS,):
        raise ValueError("idf")
    own = samples_of(meta.routes, meta.negatives)
    training = TrainingSet.make(own, meta.general, TfidfWeighting(arrays["idf"]))
    linear = LinearHead(arrays["steps"], arrays["scales"], arrays["biases"])
    _check_like(linear, LinearHead.zeros(training.samples.features.shape[1], len(meta.routes) + 1))
    neighbours = training.neighbours([route.name for route in meta.routes])
    scorer = Scorer.of(training.weighting, FittedHead(training.columns, linear, neighbours))
    if meta.encoder is not None:
        if encoder is None:
            raise RoutingError(
                "This router was trained with an encoder.", hint="Give it: load(path, encoder=...)."
            )
        head = EncoderHead(encoder, arrays["vectors"], arrays["coefficients"], meta.encoder)
        scorer = replace(scorer, encoder=head)
    return RouterModel(
        meta.routes,
        meta.negatives,
        meta.general,
        meta.policy,
        training,
        scorer,
        meta.calibration,
        meta.held_out,
    )


def _check_like(head: LinearHead, expected_head: LinearHead) -> None:
    for name, found, expected in zip(LinearHead._fields, head, expected_head, strict=True):
        if (found.shape, found.dtype) != (expected.shape, expected.dtype):
            raise ValueError(name)


def _digest(meta: str, arrays: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(meta.encode("utf-8", "surrogatepass"))
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"\n{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
