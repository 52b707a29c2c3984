// The answers side by side. What a model wrote is text here, never markup.

import { html, useMemo, useState } from "./vendor/htm-preact-3.1.1.js";
import { differing } from "./differing.js";
import { asCurl, asPython } from "./snippets.js";

const STATES = { waiting: "waiting", streaming: "answering", done: "", stopped: "stopped", failed: "failed" };

/** One column for each answer; the first is the one that the others are compared with. */
export function Columns({ answers, hasKey }) {
  const [base] = answers;
  return html`
    <div class="columns">
      ${answers.map(
        (answer, index) => html`
          <${Column} key=${index} answer=${answer} reference=${index ? base : null} hasKey=${hasKey} />
        `,
      )}
    </div>
  `;
}

function Column({ answer, reference, hasKey }) {
  return html`
    <article class=${`column ${answer.state}`} aria-label=${`Answer of ${answer.choice}`} aria-busy=${!answer.ended}>
      <header>
        <h2>${answer.choice}</h2>
        ${isNews(answer) && html`<span class="who">answered by ${answer.answeredBy}</span>`}
        <span class="state">${STATES[answer.state]}</span>
      </header>
      <${Figures} answer=${answer} />
      <${Why} route=${answer.route} />
      <${Text} answer=${answer} reference=${reference} />
      ${answer.toolCalls.map((call) => html`<${ToolCall} call=${call} ended=${answer.ended} />`)}
      ${answer.error && html`<${Failure} error=${answer.error} />`}
      <footer>
        <span>copy as</span>
        <${Copy} label="curl" text=${() => asCurl(server(), answer.request, hasKey)} />
        <${Copy} label="Python" text=${() => asPython(server(), answer.request, hasKey)} />
      </footer>
    </article>
  `;
}

const isNews = ({ answeredBy, choice }) => answeredBy !== null && answeredBy !== choice;
const server = () => new URL(".", document.baseURI).href.replace(/\/$/, "");

function Figures({ answer }) {
  const figures = [
    ["first token", milliseconds(answer.timeToFirstToken)],
    ["tokens/s", answer.tokensPerSecond?.toFixed(1)],
    ["tokens", answer.completionTokens],
    ["finish", answer.finishReason],
  ];
  return html`
    <dl class="figures">
      ${figures.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value ?? "–"}</dd></div>`)}
    </dl>
  `;
}

function milliseconds(time) {
  if (time === null) return null;
  return time < 1000 ? `${Math.round(time)} ms` : `${(time / 1000).toFixed(2)} s`;
}

function Why({ route }) {
  if (!route) return null;
  return html`<p class="why">routed: ${route.reason}, confidence ${route.confidence.toFixed(2)}</p>`;
}

function Text({ answer, reference }) {
  const marked = answer.ended && reference?.ended && reference.text !== "" && answer.text !== "";
  const runs = useMemo(
    () => (marked ? differing(answer.text, reference.text) : [{ text: answer.text, differs: false }]),
    [marked, answer.text, reference?.text],
  );
  if (!answer.text) return null;
  return html`
    <div class="text" tabindex="0" aria-label="Text">
      ${runs.map(({ text, differs }) => (differs ? html`<mark>${text}</mark>` : html`<span>${text}</span>`))}
    </div>
    ${answer.ended && html`<${Validity} text=${answer.text} />`}
  `;
}

function ToolCall({ call, ended }) {
  return html`
    <section class="tool-call" aria-label=${`Tool call ${call.name}`}>
      <h3>${call.name}</h3>
      <pre tabindex="0">${call.arguments}</pre>
      ${ended && html`<${Validity} text=${call.arguments || "{}"} />`}
    </section>
  `;
}

/** Whether a text that begins as JSON is JSON. */
function Validity({ text }) {
  const json = text.trim().replace(/^```(?:json)?\s*([^]*?)\s*```$/, "$1");
  if (!/^[[{]/.test(json)) return null;
  try {
    JSON.parse(json);
    return html`<p class="validity valid">✓ valid JSON</p>`;
  } catch (error) {
    return html`<p class="validity invalid">✗ not JSON: ${error.message}</p>`;
  }
}

function Failure({ error }) {
  return html`
    <div class="failure" role="alert">
      <p>${error.message}</p>
      ${error.code && html`<p class="code">${error.code}${error.param ? ` in ${error.param}` : ""}</p>`}
      ${error.retryAfter && html`<p>Try again in ${error.retryAfter} s.</p>`}
    </div>
  `;
}

function Copy({ label, text }) {
  const [shown, show] = useState(null);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text());
      show("copied");
    } catch {
      show("text"); // no clipboard, as on a page that came over plain http from another machine
    }
  };
  const forget = () => shown === "copied" && show(null);
  return html`
    <button type="button" class="quiet" aria-label=${`Copy as ${label}`} onClick=${copy} onBlur=${forget}>
      ${shown === "copied" ? "✓ copied" : label}
    </button>
    ${shown === "text" && html`<pre class="snippet" tabindex="0">${text()}</pre>`}
  `;
}
