// How busy the server is, in one line.

import { html } from "./vendor/htm-preact-3.1.1.js";

/** Figures of the engine; none before the first have come, or where the key may not see them. */
export function Load({ stats, rate }) {
  if (!stats) return null;
  const figures = [
    ["running", stats.running],
    ["waiting", stats.waiting],
    ["slots", `${stats.resident} / ${stats.max_loras}`],
    ["KV cache", `${Math.round(100 * stats.kv_cache_usage)} %`],
    ["tokens/s", rate.toFixed(0)],
  ];
  return html`
    <dl class="load" aria-label="Load">
      ${figures.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}
    </dl>
  `;
}
