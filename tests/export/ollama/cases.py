"""Go templates, what they are given, and what Go 1.27 prints for them."""

from typing import Any

DATA: dict[str, Any] = {
    "Empty": "",
    "Name": 'a<b> & "c"',
    "Yes": True,
    "No": False,
    "Items": ["x", "y", "z"],
    "None": [],
    "Map": {"b": "2", "a": "1", "c": {"d": "3"}},
    "Nested": [{"Role": "user", "Parts": ["p", "q"]}, {"Role": "assistant", "Parts": []}],
    "Wide": "é\u200d🙂\u2028",
    "Values": {"s": '<&>\u00a0\u0001\b\f\n\t\\"/', "l": [1, 2.5, 1e21, 1e-7, -3, True, None], "m": {}},
}
CASES: list[tuple[str, str]] = [
    ("{{ .Name }}", 'a<b> & "c"'),
    ("a {{- .Name -}} b", 'aa<b> & "c"b'),
    ("a\n\n{{- /* note */ -}}\n\n b", "ab"),
    ("a {{/* note }} */}} b", "a  b"),
    ('{{ 3 }}{{ -1 }}{{ true }}{{ "q\\"\\n" }}{{ `r\\n` }}', '3-1trueq"\nr\\n'),
    ("{{ if .Empty }}a{{ else }}b{{ end }}{{ if .None }}c{{ end }}{{ if .Missing }}d{{ end }}", "b"),
    ("{{ if .Empty }}a{{ else if .Yes }}b{{ else }}c{{ end }}", "b"),
    ("{{ if and .Yes .Items }}a{{ end }}{{ if or .No .Empty }}b{{ end }}{{ if not .No }}c{{ end }}", "ac"),
    ("{{ and .Yes .Name }}|{{ or .Empty .Name }}|{{ and .Empty .Name }}", 'a<b> & "c"|a<b> & "c"|'),
    ("{{ range .Items }}[{{ . }}]{{ end }}", "[x][y][z]"),
    ("{{ range $i, $v := .Items }}{{ if $i }}, {{ end }}{{ $i }}{{ $v }}{{ end }}", "0x, 1y, 2z"),
    ("{{ range $v := .Items }}{{ $v }}{{ end }}{{ range .None }}a{{ else }}none{{ end }}", "xyznone"),
    ("{{ range $k, $v := .Map }}{{ $k }};{{ end }}", "a;b;c;"),
    ('{{ range .Items }}{{ if eq . "y" }}{{ continue }}{{ end }}{{ . }}{{ end }}', "xz"),
    ('{{ range .Items }}{{ if eq . "y" }}{{ break }}{{ end }}{{ . }}{{ end }}', "x"),
    ("{{ range len .Items }}{{ . }}{{ end }}{{ range $i := 2 }}{{ $i }}{{ end }}", "01201"),
    ('{{ $last := "" }}{{ range .Items }}{{ $last = . }}{{ end }}{{ $last }}', "z"),
    ("{{ $x := 1 }}{{ if .Yes }}{{ $x := 2 }}{{ $x }}{{ end }}{{ $x }}", "21"),
    ("{{ $x := 1 }}{{ if .Yes }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
    (
        "{{ with .Map }}{{ .a }}{{ $.Name }}{{ else }}b{{ end }}{{ with .Empty }}a{{ else }}b{{ end }}",
        '1a<b> & "c"b',
    ),
    ("{{ range .Nested }}{{ .Role }}{{ range .Parts }}-{{ . }}{{ end }} {{ end }}", "user-p-q assistant "),
    ('{{ (index .Nested 0).Role }}{{ index .Items 1 }}{{ index .Map "b" }}{{ .Map.c.d }}', "usery23"),
    ("{{ len .Items }}{{ len .Name }}{{ len (slice .Items 1) }}{{ slice .Name 1 4 }}", "3102<b>"),
    ("{{ range $i, $_ := .Items }}{{ eq (len (slice $.Items $i)) 1 }} {{ end }}", "false false true "),
    (
        '{{ eq .Name "x" "a<b> & \\"c\\"" }}{{ ne 1 2 }}{{ lt 1 2 }}{{ le 2 2 }}{{ gt 1 2 }}{{ ge 2 2 }}',
        "truetruetruetruefalsetrue",
    ),
    ('{{ gt 1 -1 }}{{ lt "a" "b" }}{{ eq .Yes true }}', "truetruetrue"),
    ("{{ .Name | len }}{{ .Items | len | eq 3 }}", "10true"),
    ('{{ print "a" "b" }}{{ print "a" 1 2 "b" }}{{ print 1 2 }}', "aba1 2b1 2"),
    (
        "{{ json .Name }}{{ json .Items }}{{ json .Map }}{{ json .Missing }}",
        '"a\\u003cb\\u003e \\u0026 \\"c\\""["x","y","z"]{"a":"1","b":"2","c":{"d":"3"}}null',
    ),
    ("{{ json .Wide }}", '"é\u200d🙂\\u2028"'),
    (
        "{{ json .Values }}",
        '{"l":[1,2.5,1e+21,1e-7,-3,true,null],"m":{},"s":"\\u003c\\u0026\\u003e\u00a0\\u0001\\b\\f\\n\\t\\\\\\"/"}',
    ),
    (
        '{{ template "t" .Items }}{{ define "t" }}{{ range . }}{{ template "u" . }}{{ end }}{{ end }}'
        '{{ define "u" }}<{{ . }}>{{ end }}',
        "<x><y><z>",
    ),
    ('{{ "{{" }} }} {{ "}}" }}{{ `}}` }}', "{{ }} }}}}"),
]
