// The router's decision about the prompt, while one types.

import { html, useEffect, useState } from "./vendor/htm-preact-3.1.1.js";

const PAUSE = 250; // milliseconds without a key before the server is asked
const MOST_ROUTES = 5;
const MOST_NGRAMS = 6;

const REASONS = {
  matched: "reaches its threshold",
  rule: "a rule of its card matches",
  forced: "named by the caller",
  below_threshold: "no adapter reaches its threshold",
  none_of_these: "looks like none of the adapters' requests",
  ambiguous: "two adapters are too close",
  filtered: "no adapter may be chosen",
  empty: "there is no text",
  no_routes: "no adapter has anything to route by",
  shadow: "the router only watches",
};

/** What the router says about a prompt; null without a prompt, or where it cannot be asked. */
export function useDecision(api, prompt) {
  const [decision, setDecision] = useState(null);
  useEffect(() => {
    if (!prompt.trim()) return setDecision(null);
    const controller = new AbortController();
    const timer = setTimeout(async () => {
      try {
        setDecision(await api.post("v1/adapterhub/route", { prompt }, controller.signal));
      } catch (error) {
        if (error.name !== "AbortError") setDecision({ error });
      }
    }, PAUSE);
    return () => {
      clearTimeout(timer);
      controller.abort();
    };
  }, [api, prompt]);
  return decision;
}

/** The decision: who would answer and why, and the scores of the first routes. */
export function Decision({ decision }) {
  if (!decision) return html`<p class="muted">The router's decision appears here as you type.</p>`;
  if (decision.error) return html`<p class="muted">${decision.error.message}</p>`;
  const { adapter, confidence, threshold, reason, matched, scores, evidence } = decision;
  return html`
    <p class="verdict">
      <strong>${adapter ?? "base"}</strong> <span>${REASONS[reason] ?? reason}</span>
    </p>
    <label class="confidence">
      <span>confidence ${percent(confidence)}, needs ${percent(threshold)}</span>
      <meter min="0" max="1" low=${threshold} high=${threshold} optimum="1" value=${confidence}></meter>
    </label>
    <${Scores} scores=${scores} />
    ${matched && html`<p class="matched"><span>${reason === "rule" ? "rule" : "nearest example"}</span> ${matched}</p>`}
    ${evidence.length > 0 && html`<${Evidence} evidence=${evidence} routes=${scores.slice(0, 2)} />`}
  `;
}

const percent = (share) => `${Math.round(share * 100)} %`;

/** Bars between the lowest and the highest score: only the order of scores has a meaning. */
function Scores({ scores }) {
  if (!scores.length) return null;
  const lowest = scores.at(-1).score;
  const span = scores[0].score - lowest || 1;
  return html`
    <ol class="scores" aria-label="Scores of the routes">
      ${scores.slice(0, MOST_ROUTES).map(
        ({ adapter, score }) => html`
          <li>
            <span>${adapter}</span>
            <progress max="1" value=${(score - lowest) / span} aria-hidden="true"></progress>
            <output>${score.toFixed(2)}</output>
          </li>
        `,
      )}
    </ol>
  `;
}

/** What parts of words add to the scores of the first two routes. */
function Evidence({ evidence, routes }) {
  return html`
    <details class="evidence">
      <summary>What decided</summary>
      <table>
        <thead>
          <tr><th scope="col">letters</th>${routes.map(({ adapter }) => html`<th scope="col">${adapter}</th>`)}</tr>
        </thead>
        <tbody>
          ${evidence.slice(0, MOST_NGRAMS).map(
            ({ ngram, best, second }) => html`
              <tr>
                <th scope="row"><code>${ngram.replaceAll(" ", "␣")}</code></th>
                ${[best, second].slice(0, routes.length).map((adds) => html`<td>${signed(adds)}</td>`)}
              </tr>
            `,
          )}
        </tbody>
      </table>
    </details>
  `;
}

const signed = (number) => (number > 0 ? "+" : "") + number.toFixed(3);
