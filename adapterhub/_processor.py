"""What tells one kind of processor from another, for what is kept in a folder that several machines may share."""

from __future__ import annotations

import hashlib
import platform
import re
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


@cache
def processor() -> str:
    """Its architecture and model, and a digest of what it can do, such as "x86_64, AMD EPYC 9R14, 3f0c9a1b"."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"{platform.machine()}, {platform.processor()}"
    models = set(re.findall(r"^(?:model name|CPU part)\s*:\s*(.*)$", text, re.MULTILINE))
    # A virtual machine may give its processor a name that several have.
    features = set(re.findall(r"^(?:flags|Features)\s*:.*$", text, re.MULTILINE))
    digest = hashlib.sha256("\n".join(sorted(features)).encode()).hexdigest()[:8]
    return ", ".join([platform.machine(), *sorted(models), digest])
