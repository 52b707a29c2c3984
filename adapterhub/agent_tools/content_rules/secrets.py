"""The rule that nothing secret is in a text."""

from __future__ import annotations

from typing import Literal

import regex

from adapterhub.agent_tools.content_rules.clock import Clock
from adapterhub.agent_tools.content_rules.report import Fault
from adapterhub.agent_tools.content_rules.rule import BaseRule
from adapterhub.agent_tools.content_rules.safe_patterns import first_match

# The forms are those that their makers document; each begins with fixed letters, so searching is one quick pass.
_SECRETS = {
    "a private key": r"-----BEGIN (?:[A-Z]{2,10} ){0,2}PRIVATE KEY-----",
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{50})",
    "a GitLab token": r"\bglpat-[\w-]{20}",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30}",
    "an API key": r"\bsk-(?:[a-z]{2,10}-)?[\w-]{20}",
    "a Slack token": r"\bxox[abeprs]-[\w-]{10}",
    "a Google API key": r"\bAIza[\w-]{35}",
    "a JSON web token": r"\beyJ[\w-]{8,512}\.eyJ[\w-]{8,2048}\.[\w-]{8}",
    "a password in an address": r"\b[a-z]{2,10}://[^\s/:@]{1,64}:[^\s/:@]{3,64}@",
    "a password": r"(?i:\b(?:password|passwd|secret|api[_-]?key|access[_-]?token|пароль|секретный ключ)\b"
    r"[\"']?\s{0,3}[:=]\s{0,3}[\"']?)(?![<*{\[$])[^\s\"']{6}",
}
_COMPILED = {kind: regex.compile(pattern) for kind, pattern in _SECRETS.items()}


class NoSecrets(BaseRule):
    """No key, token or password is in the text, as far as their common forms tell; the reason never shows it."""

    rule: Literal["no_secrets"] = "no_secrets"

    def check(self, text: str, clock: Clock) -> Fault | None:
        for kind, pattern in _COMPILED.items():
            if found := first_match(pattern, text, clock):
                return Fault(f"{kind} is in the text", found.start())
        return None
