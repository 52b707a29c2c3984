"""The rule against secrets in a text."""

from __future__ import annotations

from typing import Literal

import regex

from adapterhub._deadline import Deadline
from adapterhub._patterns import first_match
from adapterhub.agent_tools.content_rules.base_rule import BaseRule
from adapterhub.agent_tools.content_rules.report import Violation

_KEYWORD = (
    r"(?:password|passwd|passphrase|secret|api[_-]?key|access[_-]?token|auth[_-]?token|пароль|секретный ключ)"
)
# The formats are those that the issuers document. Each pattern begins with fixed text or a short class, and its
# repetitions are bounded, so that a search is one pass. detect-secrets names the same kinds of tokens; it is not used
# because its patterns have no time limit and its settings are global.
_SECRETS = {
    "a private key": r"-----BEGIN (?:[A-Z0-9]{2,10} ){0,2}PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-[23]",
    "an AWS access key": r"\b(?:AKIA|ASIA|ABIA|ACCA|A3T[0-9A-Z])[0-9A-Z]{16}",
    "an AWS secret key": r"(?i:\baws[\w -]{0,30}[\"']?\s{0,3}[:=]\s{0,3}[\"']?)[0-9a-zA-Z/+]{40}(?![0-9a-zA-Z/+])",
    "an Artifactory token": r"(?<![^\s=:\"])(?:AKC[a-zA-Z0-9]{10}|AP[0-9A-F][a-zA-Z0-9]{8})"
    r"[a-zA-Z0-9]{0,200}(?![^\s\"])",
    "an Azure storage key": r"\bAccountKey=[a-zA-Z0-9+/=]{88}",
    "a Discord token": r"\b[MNO][a-zA-Z0-9_-]{23,25}\.[a-zA-Z0-9_-]{6}\.[a-zA-Z0-9_-]{27}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9_]{36}|github_pat_[A-Za-z0-9_]{50})",
    "a GitLab token": r"\b(?:gl(?:pat|dt|ft|soat|rt|ptt|agent|cbt|imt|ffct)-|GR1348941)[\w-]{20}",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30}",
    "an IBM Cloud key": r"(?i:\b(?:ibm|cloud[_-]?iam|cos|softlayer|cloudant)[\w-]{0,30}[\"']?"
    r"\s{0,3}(?:=>?|:)\s{0,3}[\"']?)"
    r"(?:[a-zA-Z0-9_-]{44}|[a-z0-9]{64}|[a-f0-9]{48})\b",
    "a Mailchimp key": r"\b[0-9a-z]{32}-us[0-9]{1,2}\b",
    "an npm token": r"\bnpm_[A-Za-z0-9]{36}|:_authToken=\s{0,3}(?:npm_\w|[A-Fa-f0-9-]{36})",
    "an API key": r"\bsk-(?:[a-z]{2,10}-)?[\w-]{20}",
    "a PyPI token": r"\bpypi-AgE[A-Za-z0-9_-]{70}",
    "a SendGrid key": r"\bSG\.[\w-]{22}\.[\w-]{43}",
    "a Slack token": r"\bxox[abeoprs]-[\w-]{10}|(?i:\bhooks\.slack\.com/services/T\w{1,20}/B\w{1,20}/\w)",
    "a Square token": r"\bsq0(?:csp|atp|idp)-[0-9A-Za-z\\_-]{22}",
    "a Stripe key": r"\b[rs]k_(?:live|test)_[0-9a-zA-Z]{24}",
    "a Telegram token": r"(?<!\d)\d{8,10}:[0-9A-Za-z_-]{35}(?![\w-])",
    "a Twilio key": r"\b(?:AC|SK)[a-f0-9]{32}\b",
    "a Google API key": r"\bAIza[\w-]{35}",
    "a JSON web token": r"\beyJ[\w-]{8,512}\.eyJ[\w-]{8,2048}\.[\w-]{8}",
    "a password in a URL": r"\b[a-z]{2,10}://[^\s/:@]{1,64}:[^\s/:@]{3,64}@",
    "a password": rf"(?i:\b{_KEYWORD}\b[\"']?\s{{0,3}}[:=]\s{{0,3}}[\"']?)(?![<*{{\[$])[^\s\"']{{6}}",
}
_COMPILED = {kind: regex.compile(pattern) for kind, pattern in _SECRETS.items()}


class NoSecrets(BaseRule):
    """No key, token or password in a common format."""

    rule: Literal["no_secrets"] = "no_secrets"

    def check(self, text: str, deadline: Deadline) -> Violation | None:
        for kind, pattern in _COMPILED.items():
            if match := first_match(pattern, text, deadline):
                return Violation(f"{kind} is in the text", match.start())
        return None
