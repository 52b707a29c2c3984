// The request of a column as a command or a program, to go on with elsewhere. The key is never part of it.

const KEY = "OPENAI_API_KEY"; // where openai's client looks for it

/** A curl command for a POSIX shell. */
export function asCurl(origin, request, hasKey) {
  const lines = [
    `curl -N ${origin}/v1/chat/completions`,
    "-H 'Content-Type: application/json'",
    ...(hasKey ? [`-H "Authorization: Bearer $${KEY}"`] : []),
    `-d '${JSON.stringify(request).replaceAll("'", `'\\''`)}'`,
  ];
  return lines.join(" \\\n  ");
}

/** A program for openai's Python client. */
export function asPython(origin, request, hasKey) {
  const { stream, stream_options: _, ...fields } = request;
  const key = hasKey ? "" : ', api_key="none"';
  const given = Object.entries(fields).map(([name, value]) => `    ${name}=${literal(value, "    ")},\n`);
  return `from openai import OpenAI

client = OpenAI(base_url="${origin}/v1"${key})
completion = client.chat.completions.create(
${given.join("")})
print(completion.choices[0].message)
`;
}

function literal(value, indent) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value); // numbers and strings are spelled as in JSON
  const deeper = `${indent}    `;
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const items = Array.isArray(value)
    ? value.map((item) => literal(item, deeper))
    : Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${literal(item, deeper)}`);
  const line = open + items.join(", ") + close;
  if (line.length < 80 && !line.includes("\n")) return line;
  return `${open}\n${items.map((item) => `${deeper}${item},\n`).join("")}${indent}${close}`;
}
