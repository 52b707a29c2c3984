#!/bin/sh
# The server by curl. Start one first: `adapterhub serve --base adapterhub-demo --registry adapters`.
#
#   sh examples/curl.sh                                     # http://127.0.0.1:8000, without a key
#   ADAPTERHUB_API_KEY=... sh examples/curl.sh https://models.example.org
set -eu
url="${1:-http://127.0.0.1:8000}"

# The key goes to curl by a file descriptor: arguments can be read by every user of a machine.
ask() {
    path="$1"
    shift
    printf 'header = "Authorization: Bearer %s"\n' "${ADAPTERHUB_API_KEY:-none}" |
        curl --silent --show-error --fail-with-body --no-buffer --config - \
            --header "Content-Type: application/json" "$@" "$url$path"
    echo
}

echo "# What can be asked for"
ask /v1/models

echo "# An adapter by name"
ask /v1/chat/completions --data '{"model": "json", "max_tokens": 60,
    "messages": [{"role": "user", "content": "Give me name, age and city as JSON: Greta Okafor is 48 years old and lives in Porto."}]}'

echo "# The router chooses, the headers say why; the answer is streamed"
ask /v1/chat/completions --include --data '{"model": "auto", "max_tokens": 60, "stream": true,
    "messages": [{"role": "user", "content": "My Zorbex printer does not turn on."}]}'

echo "# An answer that a JSON Schema holds"
ask /v1/chat/completions --data '{"model": "json", "max_tokens": 60,
    "messages": [{"role": "user", "content": "Keys: name, city. Ann Lee from Oslo."}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": {"type": "object",
        "properties": {"name": {"type": "string"}, "city": {"type": "string"}}, "required": ["name", "city"]}}}}'
