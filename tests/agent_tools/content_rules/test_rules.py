"""Each rule: a text that keeps to it, one that does not, the reason and the place."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from adapterhub.agent_tools.content_rules import Rule, validate_text

RULE = TypeAdapter(Rule)
TABLE = "| Имя | Age |\n| --- | ---: |\n| Anna \\| Bo | 3 |\n"
PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer"}},
    "required": ["age"],
    "additionalProperties": False,
}


def check(text: str, **rule):
    (result,) = validate_text(text, [RULE.validate_python(rule)], max_seconds=1).results
    return result


PASSING = [
    ("да", {"rule": "not_empty"}),
    ("!", {"rule": "not_empty"}),
    ("one two", {"rule": "length", "unit": "words", "minimum": 2, "maximum": 2}),
    ("a\nb\n", {"rule": "length", "unit": "lines", "maximum": 2}),
    ("Это русский текст про API.", {"rule": "language", "language": "ru"}),
    ("This is English, да.", {"rule": "language", "language": "en"}),
    ("# Заголовок\ntext", {"rule": "has_headings"}),
    ("# A\n## B\n", {"rule": "has_headings", "level": 2}),
    ("# Steps #\n## ИТОГ", {"rule": "required_sections", "sections": ["steps", "Итог"], "in_order": True}),
    (TABLE, {"rule": "markdown_table", "columns": ["Имя", "Age"]}),
    ("a|b\n-|-\n1|2", {"rule": "markdown_table"}),
    ("Метод и тодо-лист", {"rule": "no_placeholders"}),
    ("My password is not here; пароль я забыл.", {"rule": "no_secrets"}),
    ("password: ${PASSWORD}", {"rule": "no_secrets"}),
    ("write to anna@example.com.", {"rule": "email"}),
    ("анна@пример.рф", {"rule": "email", "where": "whole"}),
    ("see https://example.com/a?b=c.", {"rule": "url"}),
    ("http://[::1]:8080/x", {"rule": "url", "where": "whole"}),
    (' {"a": [1, 2.5, null]} ', {"rule": "json"}),
    ('{"age": 3}', {"rule": "json_schema", "json_schema": PERSON}),
    ("заказ 12-345", {"rule": "regex", "pattern": r"\b\d{2}-\d{3}\b"}),
    ("слово", {"rule": "regex", "pattern": r"\w+", "match": "whole"}),
    ("abc", {"rule": "regex", "pattern": "x", "match": "nowhere"}),
]
PASSING += [
    ("# C#", {"rule": "required_sections", "sections": ["C#"]}),
    ("# F# and C# ##", {"rule": "required_sections", "sections": ["F# and C#"]}),
    ("# Cafe\u0301", {"rule": "required_sections", "sections": ["Café"]}),
    ("# **Summary**", {"rule": "required_sections", "sections": ["Summary"]}),
    ("Summary\n=======", {"rule": "has_headings", "level": 1}),
    ("\ufeff# Title", {"rule": "has_headings"}),
    ("\ufeff| Cafe\u0301 |\n|---|\n| `1` |", {"rule": "markdown_table", "columns": ["**Café**"]}),
    ("| a | b |\n|---|---|\n| 1 | `x\\|y` |", {"rule": "markdown_table"}),
    ("https://en.wikipedia.org/wiki/Schrödinger's_cat", {"rule": "url", "where": "whole"}),
    ("['http://a.com','http://b.com']", {"rule": "url"}),
    ("http://127.0.0.1:80", {"rule": "url", "where": "whole"}),
    ("http://4chan.org/1.2", {"rule": "url", "where": "whole"}),
    ("anna.o'neil+x@sub.example.co.uk", {"rule": "email", "where": "whole"}),
    ("19.99", {"rule": "json_schema", "json_schema": {"multipleOf": 0.01}}),
    ("1e300", {"rule": "json_schema", "json_schema": {"multipleOf": 1e-300}}),
    ("7.0", {"rule": "json_schema", "json_schema": {"multipleOf": 3.5}}),
]
PASSING += [
    (text, {"rule": "no_placeholders"})
    for text in (
        "My todo list",
        "[Website] and [Name]\n\n[website]: https://a.b\n[Name]: <./file>",
        "`dict[Name]`",
        "Todo el mundo",
        "[Name](https://example.com), ![Title](a.png), [the site][Name]\n\n[Name]: https://example.com",
        "- [x] done\n- [ ] open [1] [^2] [Applause] [sic] [Project Gutenberg] [see name below]",
        "a[Index] and list[str], [[Name]]",
    )
]
FORMATS = {
    "email": ("a@b.com", "nope"),
    "date": ("2024-02-29", "2023-02-29"),
    "time": ("23:59:60Z", "25:00:00Z"),
    "date-time": ("2024-01-02T03:04:05.678+01:00", "2024-01-02 03:04"),
    "uri": ("urn:isbn:123", "no uri"),
    "uuid": ("123E4567-e89b-12d3-a456-426614174000", "123"),
    "ipv4": ("127.0.0.1", "127.0.0.256"),
    "ipv6": ("::1", "::g"),
    "hostname": ("a-b.example", "-a"),
    "colour": ("any", None),
}
FAILING = [
    ("logo@2x.png", {"rule": "email"}, "no e-mail address", None, None),
    ("logo@2x.png", {"rule": "email", "where": "whole"}, "the name of a file", None, None),
    ("price 5@10.50", {"rule": "email"}, "no e-mail address", None, None),
    ("npm i left@1.2.3", {"rule": "email"}, "no e-mail address", None, None),
    ("a@127.0.0.1", {"rule": "email", "where": "whole"}, "no e-mail address", None, None),
    ("a@example.123", {"rule": "email", "where": "whole"}, "no e-mail address", None, None),
    ("http://256.256.256.256", {"rule": "url", "where": "whole"}, "no URL", None, None),
    ("http://a.1", {"rule": "url"}, "no URL", None, None),
    ("http://a'b.com", {"rule": "url", "where": "whole"}, "no URL", None, None),
    ("20", {"rule": "json_schema", "json_schema": {"multipleOf": 0.03}}, "violates multipleOf", None, None),
    ("# C", {"rule": "required_sections", "sections": ["C#"]}, "missing sections: C#", None, None),
    ("Dear [Name],", {"rule": "no_placeholders"}, "[Name] is left", 1, 6),
    ("Regards, [Company Name]", {"rule": "no_placeholders"}, "[Company Name] is left", 1, 10),
    ("[City, State, ZIP]: x", {"rule": "no_placeholders"}, "[City, State, ZIP] is left", 1, 1),
    ("[Recipient's E-mail Address]", {"rule": "no_placeholders"}, "is left", 1, 1),
    ("[COMPANY_NAME] [Date]", {"rule": "no_placeholders"}, "[COMPANY_NAME] is left", 1, 1),
    ("[Name of the Company]", {"rule": "no_placeholders"}, "is left", 1, 1),
    ("[Name] [Website]\n\n[website]: https://a.b", {"rule": "no_placeholders"}, "[Name] is left", 1, 1),
    ("[Название компании]", {"rule": "no_placeholders"}, "is left", 1, 1),
    ("Price: tbd", {"rule": "no_placeholders"}, "tbd is left", 1, 8),
    ("-----BEGIN PGP PRIVATE KEY BLOCK-----", {"rule": "no_secrets"}, "a private key", 1, 1),
    (" \n\u200b\x00", {"rule": "not_empty"}, "empty", None, None),
    ("one", {"rule": "length", "unit": "words", "minimum": 2}, "1 words, fewer than 2", None, None),
    ("three", {"rule": "length", "maximum": 2}, "5 characters, more than 2", None, None),
    ("This is English.", {"rule": "language", "language": "ru"}, "0% of the letters", None, None),
    ("日本語のテキスト", {"rule": "language", "language": "en"}, "0% of the letters", None, None),
    ("123", {"rule": "language", "language": "en"}, "no letters", None, None),
    ("```\n# comment\n```", {"rule": "has_headings"}, "0 headings", None, None),
    ("#hashtag", {"rule": "has_headings"}, "0 headings", None, None),
    ("# A", {"rule": "required_sections", "sections": ["A", "Итог"]}, "missing sections: Итог", None, None),
    (
        "# B\n# A",
        {"rule": "required_sections", "sections": ["A", "B"], "in_order": True},
        "another order",
        None,
        None,
    ),
    ("no table | here", {"rule": "markdown_table"}, "no Markdown table", None, None),
    (TABLE + "| 1 | 2 | 3 |", {"rule": "markdown_table"}, "3 cells, its header 2", 4, 1),
    (TABLE, {"rule": "markdown_table", "columns": ["A"]}, "the columns Имя, Age", 1, 1),
    (TABLE, {"rule": "markdown_table", "minimum_rows": 2}, "1 rows, fewer than 2", 1, 1),
    ("Dear\n [Your name],", {"rule": "no_placeholders"}, "[Your name] is left", 2, 2),
    ("Дата: <укажите дату>", {"rule": "no_placeholders"}, "<укажите дату>", 1, 7),
    ("Hi {{name}}", {"rule": "no_placeholders"}, "{{name}}", 1, 4),
    ("key\nAKIAABCDEFGHIJKLMNOP", {"rule": "no_secrets"}, "an AWS access key", 2, 1),
    ("пароль: qwerty123", {"rule": "no_secrets"}, "a password", 1, 1),
    ("postgres://me:hunter2@db/x", {"rule": "no_secrets"}, "a password in a URL", 1, 1),
    ("x@printer.local", {"rule": "email"}, "no e-mail address", None, None),
    ("a..b@c.com", {"rule": "email", "where": "whole"}, "two periods", None, None),
    ("a@" + "b" * 1000 + ".com", {"rule": "email", "where": "whole"}, "too long", None, None),
    ("a@b", {"rule": "email"}, "no e-mail address", None, None),
    ("see a@b.com", {"rule": "email", "where": "whole"}, "no e-mail address", None, None),
    (".a@b.com", {"rule": "email", "where": "whole"}, "no e-mail address", None, None),
    ("http://", {"rule": "url"}, "no URL", None, None),
    ("http://a:99999/", {"rule": "url"}, "no URL", None, None),
    ("ftp://a.b", {"rule": "url", "where": "whole"}, "no URL", None, None),
    ('{"a":\n 1,}', {"rule": "json"}, "not JSON", 2, 4),
    ("NaN", {"rule": "json"}, "NaN is no JSON value", None, None),
    (
        '{"age": "3"}',
        {"rule": "json_schema", "json_schema": PERSON},
        "at $.age: 3 violates type: integer",
        None,
        None,
    ),
    (
        '{"age": 3, "x": 1}',
        {"rule": "json_schema", "json_schema": PERSON},
        "the property x is not allowed",
        None,
        None,
    ),
    ("{}", {"rule": "json_schema", "json_schema": PERSON}, "'age' is a required property", None, None),
    ("1", {"rule": "json_schema", "json_schema": {"type": "no type"}}, "the schema is not valid", None, None),
    ("[1, 1.0]", {"rule": "json_schema", "json_schema": {"uniqueItems": True}}, "twice", None, None),
    (
        '[{"a": [1, true], "b": null}, {"b": null, "a": [1.0, true]}]',
        {"rule": "json_schema", "json_schema": {"uniqueItems": True}},
        "twice",
        None,
        None,
    ),
    ("abc", {"rule": "regex", "pattern": "b", "match": "nowhere"}, "b matches", 1, 2),
    ("abc", {"rule": "regex", "pattern": "b", "match": "whole"}, "b does not match", None, None),
    ("abc", {"rule": "regex", "pattern": "(b"}, "no regular expression", None, None),
]


@pytest.mark.parametrize("name", FORMATS)
def test_formats_in_a_schema(name: str):
    valid, invalid = FORMATS[name]
    rule = {"rule": "json_schema", "json_schema": {"properties": {"x": {"format": name}}}}
    assert check(json.dumps({"x": valid}), **rule).passed
    assert check(json.dumps({"x": 1}), **rule).passed
    if invalid:
        reason = check(json.dumps({"x": invalid}), **rule).reason
        assert reason == f"not valid under the schema at $.x: {invalid} violates format: {name}"


@given(st.integers(-(10**6), 10**6), st.integers(0, 6), st.integers(1, 10**4), st.integers(0, 6))
def test_multiples_are_those_of_decimal_arithmetic(a: int, a_scale: int, b: int, b_scale: int):
    value, divisor = Decimal(a).scaleb(-a_scale), Decimal(b).scaleb(-b_scale)
    result = check(f"{value:f}", rule="json_schema", json_schema={"multipleOf": float(divisor)})
    assert result.passed == (value % divisor == 0)


@pytest.mark.parametrize(("text", "rule"), PASSING)
def test_a_text_that_passes(text: str, rule: dict):
    result = check(text, **rule)
    assert (result.passed, result.reason, result.line) == (True, "", None)


@pytest.mark.parametrize(("text", "rule", "reason", "line", "column"), FAILING)
def test_a_text_that_does_not(text: str, rule: dict, reason: str, line: int | None, column: int | None):
    result = check(text, **rule)
    assert not result.passed
    assert reason in result.reason
    assert (result.line, result.column) == (line, column)


def test_lists_of_equal_looking_items_are_unique():
    assert check(
        '[1, true, "1", [1], {"a": 1}, {"a": true}]', rule="json_schema", json_schema={"uniqueItems": True}
    ).passed


def test_pattern_properties_and_additional_ones():
    schema = {"patternProperties": {"^x-": {"type": "string"}}, "additionalProperties": {"type": "integer"}}
    assert check('{"x-a": "b", "n": 1}', rule="json_schema", json_schema=schema).passed
    assert "$.x-a" in check('{"x-a": 1}', rule="json_schema", json_schema=schema).reason
    assert "$.n" in check('{"n": "b"}', rule="json_schema", json_schema=schema).reason


def test_references_within_the_schema_are_followed():
    tree = {"$ref": "#/$defs/node", "$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}
    assert check("[[], [[]]]", rule="json_schema", json_schema=tree).passed
    assert "$[0]" in check("[1]", rule="json_schema", json_schema=tree).reason


def test_a_report_in_words_and_as_data():
    rules = [RULE.validate_python({"rule": "not_empty"}), RULE.validate_python({"rule": "json"})]
    report = validate_text("{", rules)
    assert str(report).startswith("failed 1 of 2 rules\n- json: not JSON: Expecting property name")
    assert report.to_dict()["results"][0] == {
        "rule": "not_empty",
        "passed": True,
        "reason": "",
        "line": None,
        "column": None,
    }
    assert str(validate_text("1", rules)) == "passed: not_empty, json"


@pytest.mark.parametrize(
    "rule", [{"rule": "none"}, {"rule": "json", "x": 1}, {"rule": "regex"}, {"rule": "length", "minimum": -1}]
)
def test_invalid_rules(rule: dict):
    with pytest.raises(ValidationError):
        RULE.validate_python(rule)


def made(*parts: tuple[str, int]) -> str:
    """A token of the given characters, put together here so that no scanner takes it for a real one."""
    return "".join((text * length)[:length] for text, length in parts)


SECRETS = {
    "an AWS access key": made(("ABIA", 4), ("ABCD2", 16)),
    "an AWS secret key": "aws_secret_access_key = " + made(("aB3/", 40)),
    "an Artifactory token": made(("AKC", 3), ("a1B2", 20)),
    "an Azure storage key": "AccountKey=" + made(("aB3+", 86), ("=", 2)),
    "a Discord token": made(("M", 1), ("a1B", 23), (".", 1), ("a_1", 6), (".", 1), ("b-2", 27)),
    "a GitHub token": made(("github_pat_", 11), ("a1B2", 60)),
    "a GitLab token": made(("glrt-", 5), ("a1B2", 20)),
    "a Hugging Face token": made(("hf_", 3), ("a1B2", 34)),
    "an IBM Cloud key": "ibm_cloud_api_key: " + made(("a1B2", 44)),
    "a Mailchimp key": made(("0a1b", 32), ("-us12", 5)),
    "an npm token": made(("npm_", 4), ("a1B2", 36)),
    "an API key": made(("sk-proj-", 8), ("a1B2", 40)),
    "a private key": "PuTTY-User-Key-File-2: ssh-rsa",
    "a PyPI token": made(("pypi-AgEIcHlwaS5vcmc", 20), ("a1B2", 70)),
    "a SendGrid key": made(("SG.", 3), ("a1B", 22), (".", 1), ("b2C", 43)),
    "a Slack token": "https://hooks.slack.com/services/T0AB/B0CD/xyz",
    "a Square token": made(("sq0csp-", 7), ("a1B2", 43)),
    "a Stripe key": made(("rk_live_", 8), ("a1B2", 24)),
    "a Telegram token": made(("1234567890", 10), (":", 1), ("a1_B", 35)),
    "a Twilio key": made(("SK", 2), ("0a1b", 32)),
    "a Google API key": made(("AIza", 4), ("a1_B", 35)),
}


@pytest.mark.parametrize("kind", SECRETS)
def test_each_kind_of_secret(kind: str):
    result = check(f"The value is\n{SECRETS[kind]}\nfor now.", rule="no_secrets")
    assert (result.reason, result.line) == (f"{kind} is in the text", 2)


@pytest.mark.parametrize(
    "text",
    [
        "Версия 1.2.3 вышла 2024-01-02 в 12:30:45, сборка 1234567890.",
        "commit 0123456789abcdef0123456789abcdef01234567",
        "IBM Cloud: a price list. AKCENT APARTMENT SG.1 sk-1 npm_config_registry",
        "https://example.com/a:b@c and see key: value",
    ],
)
def test_texts_without_secrets(text: str):
    assert check(text, rule="no_secrets").passed
