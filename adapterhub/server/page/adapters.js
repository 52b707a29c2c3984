// The registered adapters: what their cards say, where their weights are, and who waits for them.

import { html, useEffect, useState } from "./vendor/htm-preact-3.1.1.js";

const PLACES = {
  slot: "in a LoRA slot: answers at once",
  host: "in host memory: a copy away",
  disk: "on disk: read at the next request",
};

/** The list, with a field that narrows it. */
export function Adapters({ api, adapters, compare }) {
  const [wanted, setWanted] = useState("");
  const shown = adapters.filter((adapter) => matches(adapter, wanted.toLowerCase()));
  return html`
    <section class="adapters" aria-label="Adapters">
      <header>
        <h2>Adapters <span class="count">${adapters.length}</span></h2>
        ${adapters.length > 5 &&
        html`<input
          type="search"
          aria-label="Find adapters"
          placeholder="find"
          value=${wanted}
          onInput=${({ target }) => setWanted(target.value)}
        />`}
      </header>
      ${adapters.length === 0 && html`<p class="muted">None yet: <code>adapterhub register</code> adds one.</p>`}
      <ul>
        ${shown.map(
          (adapter) => html`<${Adapter} key=${adapter.name} api=${api} adapter=${adapter} compare=${compare} />`,
        )}
      </ul>
    </section>
  `;
}

const matches = ({ name, description, tags }, wanted) =>
  [name, description, ...tags].join(" ").toLowerCase().includes(wanted);

function Adapter({ api, adapter, compare }) {
  const { name, description, status, place, pinned, running, waiting } = adapter;
  const [open, setOpen] = useState(false);
  return html`
    <li>
      <details onToggle=${({ currentTarget }) => setOpen(currentTarget.open)}>
        <summary>
          <span class="name">${name}</span>
          ${running > 0 && html`<span class="chip busy">${running} running</span>`}
          ${waiting > 0 && html`<span class="chip">${waiting} waiting</span>`}
          ${pinned && html`<span class="chip" title="never evicted">pinned</span>`}
          ${status === "disabled" && html`<span class="chip">disabled</span>`}
          ${place && html`<span class=${`chip ${place}`} title=${PLACES[place]}>${place}</span>`}
          <span class="description">${description}</span>
        </summary>
        ${open &&
        html`
          <${Card} adapter=${adapter} />
          <${Versions} api=${api} name=${name} compare=${compare} />
        `}
      </details>
    </li>
  `;
}

function Card({ adapter }) {
  const facts = [
    ["rank", adapter.rank],
    ["size", adapter.size_bytes && bytes(adapter.size_bytes)],
    ["base", adapter.base],
    ["base's fingerprint", adapter.base_digest && html`<${Fingerprint} digest=${adapter.base_digest} />`],
    ["made by", adapter.method],
    ["made from", adapter.parents.join(", ")],
    ["task", adapter.task],
    ["languages", adapter.language.join(", ")],
    ["tags", adapter.tags.join(", ")],
    ["licence", adapter.license],
    ["registered", new Date(adapter.created * 1000).toLocaleDateString()],
    ["digest", adapter.digest.slice(0, 19)],
    ["tokens", adapter.tokens?.toLocaleString()],
  ].filter(([, value]) => value);
  return html`
    <dl class="facts">${facts.map(([term, value]) => html`<div><dt>${term}</dt><dd>${value}</dd></div>`)}</dl>
    ${adapter.evaluation.length > 0 && html`<${Evaluation} results=${adapter.evaluation} />`}
  `;
}

/** The beginning of a base's fingerprint, which tells two bases of one name apart; the whole of it where one points. */
export function Fingerprint({ digest }) {
  return digest && html`<span title=${`fingerprint of the base: ${digest}`}>${digest.replace("sha256:", "").slice(0, 12)}</span>`;
}

/** The versions of a name and their aliases, asked for when they are looked at. */
function Versions({ api, name, compare }) {
  const [versions, setVersions] = useState([]);
  useEffect(() => {
    const controller = new AbortController();
    const path = `v1/adapterhub/adapters/${encodeURIComponent(name)}/versions`;
    api.get(path, controller.signal).then(({ data }) => setVersions(data), () => {}); // the list is told the reason
    return () => controller.abort();
  }, [api, name]);
  const references = versions.flatMap(({ id, aliases }) => [id, ...aliases.map((alias) => `${name}@${alias}`)]);
  return html`
    <p class="versions">
      <span>Compare</span>
      ${[name, ...references].map(
        (reference) => html`
          <button type="button" aria-label=${`Compare ${reference}`} onClick=${() => compare(reference)}>
            ${reference}
          </button>
        `,
      )}
    </p>
  `;
}

function Evaluation({ results }) {
  return html`
    <table>
      <caption>Evaluation</caption>
      <tbody>
        ${results.map(
          (result) => html`
            <tr title=${result.dataset_name}>
              <th scope="row">${result.metric_name ?? result.metric_type}</th>
              <td>${String(result.metric_value)}</td>
            </tr>
          `,
        )}
      </tbody>
    </table>
  `;
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB"];
  const unit = Math.min(Math.floor(Math.log10(count) / 3), units.length - 1);
  return `${(count / 1000 ** unit).toPrecision(3)} ${units[unit]}`;
}
