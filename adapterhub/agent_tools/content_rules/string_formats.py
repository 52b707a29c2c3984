"""Formats of strings: e-mail addresses, hosts, URLs, and those that JSON Schema names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, datetime
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import urlsplit

import regex
from email_validator import validate_email

MAX_EMAIL = 1000
LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
_HOST = regex.compile(rf"(?:{LABEL}(?:\.{LABEL})*)\.?", regex.IGNORECASE)
_NUMERIC_HOST = regex.compile(r"(?:.*\.)?[0-9]+\.?", regex.DOTALL)
# `logo@2x.png`: files are named so, and none of these is a top-level domain.
_FILE = regex.compile(
    r".*\.(?:png|jpe?g|gif|webp|avif|svg|ico|bmp|tiff?|heic|pdf|css|scss|js|jsx|ts|tsx|mjs|json|ya?ml|toml|html?"
    r"|xml|txt|csv|docx?|xlsx?|pptx?|mp[34]|wav|exe|dll|tgz|gz|tar|whl|jar)",
    regex.IGNORECASE,
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d{1,20})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_DATE = regex.compile(r"\d{4}-\d{2}-\d{2}", regex.ASCII)
_TIME_ONLY = regex.compile(_TIME, regex.ASCII | regex.IGNORECASE)
_DATE_TIME = regex.compile(rf"(\d{{4}}-\d{{2}}-\d{{2}})[T ]{_TIME}", regex.ASCII | regex.IGNORECASE)
_URI = regex.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:[!#-;=?-Z\[\]_a-z~]*")
_UUID = regex.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", regex.IGNORECASE)
_HOST_NAME = regex.compile(
    r"(?=.{1,253}$)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
    r"(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*",
    regex.IGNORECASE,
)


def email_error(address: str) -> str | None:
    """Why an address is not valid by RFC 5321, 5322 and 6531; None if it is. Its domain is not looked up."""
    if len(address) > MAX_EMAIL:
        return "it is too long"
    try:
        domain = validate_email(address, check_deliverability=False).ascii_domain
    except ValueError as error:
        return str(error).rstrip(".")
    return "it is the name of a file" if domain and _FILE.fullmatch(domain) else None


def has_valid_host(url: str) -> bool:
    """Whether a URL has a host name, an address and, if any, a port that can exist."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        return (parts.port or 1) > 0 and (_is_address(host) or _is_name(host))
    except ValueError:  # the port or the IPv6 address is not valid
        return False


def _is_address(host: str) -> bool:
    return _conforms(IPv6Address if ":" in host else IPv4Address, host)


def _is_name(host: str) -> bool:
    # What ends in a number is an IPv4 address, as in the URL standard.
    return _HOST.fullmatch(host) is not None and _NUMERIC_HOST.fullmatch(host) is None


def _conforms(parse: Callable[[str], object], text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


def _is_date(text: str) -> bool:
    return _DATE.fullmatch(text) is not None and _conforms(date.fromisoformat, text)


def _is_date_time(text: str) -> bool:
    match = _DATE_TIME.fullmatch(text)
    return match is not None and _conforms(datetime.fromisoformat, match[1])


STRING_FORMATS: Mapping[str, Callable[[str], bool]] = {
    "date": _is_date,
    "time": lambda text: _TIME_ONLY.fullmatch(text) is not None,
    "date-time": _is_date_time,
    "email": lambda text: email_error(text) is None,
    "idn-email": lambda text: email_error(text) is None,
    "hostname": lambda text: _HOST_NAME.fullmatch(text) is not None,
    "ipv4": lambda text: _conforms(IPv4Address, text),
    "ipv6": lambda text: _conforms(IPv6Address, text),
    "uri": lambda text: _URI.fullmatch(text) is not None,
    "uuid": lambda text: _UUID.fullmatch(text) is not None,
}
"""Checks by the name of JSON Schema's `format`; other formats are annotations."""
