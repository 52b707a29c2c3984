// Renders templates with Go's text/template and Ollama's `json`: cases from the standard input, texts to the output.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

func main() {
	var cases []struct {
		Template string
		Data     any
	}
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	marshal := func(value any) (string, error) {
		text, err := json.Marshal(value)
		return string(text), err
	}
	texts := []string{}
	for _, each := range cases {
		parsed := template.New("").Option("missingkey=zero").Funcs(template.FuncMap{"json": marshal})
		var text strings.Builder
		if err := template.Must(parsed.Parse(each.Template)).Execute(&text, each.Data); err != nil {
			panic(err)
		}
		texts = append(texts, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
