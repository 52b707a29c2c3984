// The prompt and its settings. Ctrl-Enter asks, Escape stops.

import { html } from "./vendor/htm-preact-3.1.1.js";

export const EMPTY = { prompt: "", system: "", tools: "", json: false, max_tokens: 256, temperature: 0 };

const EXAMPLE_TOOL = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather in a city.",
      parameters: {
        type: "object",
        properties: { city: { type: "string" } },
        required: ["city"],
      },
    },
  },
];

/** The body of a request to one model. */
export function requestFor(model, settings) {
  const { prompt, system, tools, json, max_tokens, temperature } = settings;
  const messages = [{ role: "user", content: prompt }];
  if (system.trim()) messages.unshift({ role: "system", content: system });
  return {
    model,
    messages,
    max_tokens,
    temperature,
    ...(tools.trim() && { tools: JSON.parse(tools) }),
    ...(json && { response_format: { type: "json_object" } }),
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  };
}

/** What is wrong with the tools' JSON; null if nothing is. */
export function toolsProblem(tools) {
  try {
    return !tools.trim() || Array.isArray(JSON.parse(tools)) ? null : "Tools are a JSON array.";
  } catch (error) {
    return error.message;
  }
}

/** The form; its children are the choices of who answers. */
export function Composer({ settings, change, asking, ask, stop, children }) {
  const set = (field) => change({ ...settings, ...field });
  const ready = settings.prompt.trim() !== "" && !toolsProblem(settings.tools);
  const submit = (event) => {
    event.preventDefault();
    if (ready && !asking) ask();
  };
  const onKeyDown = (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && submit(event);
  return html`
    <form class="composer" onSubmit=${submit} onKeyDown=${onKeyDown}>
      <label class="prompt">
        <span>Prompt</span>
        <textarea
          id="prompt"
          rows="3"
          placeholder="Ask the base and your adapters the same thing"
          value=${settings.prompt}
          onInput=${({ target }) => set({ prompt: target.value })}
        ></textarea>
      </label>
      ${children}
      <${SystemAndTools} settings=${settings} set=${set} />
      <div class="settings">
        <${NumberField} label="max tokens" name="max_tokens" min="1" step="1" ...${{ settings, set }} />
        <${NumberField} label="temperature" name="temperature" min="0" max="2" step="0.1" ...${{ settings, set }} />
        <label>
          <input type="checkbox" checked=${settings.json} onChange=${({ target }) => set({ json: target.checked })} />
          ${" "}JSON object
        </label>
        <span class="actions">
          <kbd aria-hidden="true">${asking ? "Esc" : "Ctrl ⏎"}</kbd>
          <button type="button" disabled=${!asking} onClick=${stop} aria-keyshortcuts="Escape">Stop</button>
          <button class="primary" disabled=${!ready || asking} aria-keyshortcuts="Control+Enter">Ask</button>
        </span>
      </div>
    </form>
  `;
}

function SystemAndTools({ settings, set }) {
  const problem = toolsProblem(settings.tools);
  return html`
    <details>
      <summary>System prompt and tools</summary>
      <label>
        System prompt
        <textarea rows="2" value=${settings.system} onInput=${({ target }) => set({ system: target.value })}></textarea>
      </label>
      <label>
        Tools, a JSON array
        <textarea
          class="code"
          rows="5"
          spellcheck="false"
          aria-invalid=${problem !== null}
          value=${settings.tools}
          onInput=${({ target }) => set({ tools: target.value })}
        ></textarea>
      </label>
      ${problem && html`<p class="problem">${problem}</p>`}
      <button type="button" class="quiet" onClick=${() => set({ tools: JSON.stringify(EXAMPLE_TOOL, null, 2) })}>
        Insert an example tool
      </button>
    </details>
  `;
}

function NumberField({ label, name, settings, set, ...limits }) {
  const onInput = ({ target }) => target.value && set({ [name]: Number(target.value) });
  return html`<label>${label} <input type="number" ...${limits} value=${settings[name]} onInput=${onInput} /></label>`;
}
