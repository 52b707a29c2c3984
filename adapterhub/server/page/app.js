// The page: one prompt, the base's answer and up to three others, and what the server knows about its adapters.

import { html, render, useEffect, useMemo, useReducer, useRef, useState } from "./vendor/htm-preact-3.1.1.js";
import { Adapters, Fingerprint } from "./adapters.js";
import { Answer, ask } from "./answer.js";
import { Api } from "./api.js";
import { Choices, MOST_CHOICES, modelOf } from "./choices.js";
import { Columns } from "./columns.js";
import { Composer, EMPTY, requestFor } from "./composer.js";
import { Load } from "./load.js";
import { Decision, useDecision } from "./routing.js";
import { useServerState } from "./server_state.js";

function App() {
  const [key, setKey] = useState({ value: "" }); // typed again, it is another object, so that it is tried again
  const api = useMemo(() => new Api(key.value), [key]);
  const server = useServerState(api);
  const [settings, setSettings] = useState(EMPTY);
  const [choices, setChoices] = useState([{ model: "auto" }]);
  const decision = useDecision(api, settings.prompt);
  const { answers, asking, start, stop } = useAnswers(api);

  const askAll = () => {
    const models = ["base", ...choices.map(modelOf)];
    start(models.map((model) => new Answer(model, requestFor(model, settings))));
  };
  const compare = (name) => {
    setChoices((choices) => [...choices.slice(0, MOST_CHOICES - 1), { model: name }]);
    document.getElementById("prompt").focus();
  };

  // A thousand of them need not be looked through at each key and each frame.
  const list = useMemo(
    () => html`<${Adapters} api=${api} adapters=${server.adapters} compare=${compare} />`,
    [api, server.adapters],
  );

  return html`
    <a class="skip" href="#prompt">Skip to the prompt</a>
    <header class="bar">
      <h1>adapterhub</h1>
      <span class="base">${server.base} <${Fingerprint} digest=${server.stats?.base_digest} /></span>
      <${Load} stats=${server.stats} rate=${server.rate} />
      <${Key} value=${key.value} change=${(value) => setKey({ value })} refused=${server.error?.status === 401} />
    </header>
    ${server.error && html`<p class="banner" role="alert">${server.error.message}</p>`}
    <div class="page">
      <main>
        <div class="question">
          <${Composer} settings=${settings} change=${setSettings} asking=${asking} ask=${askAll} stop=${stop}>
            <${Choices} adapters=${server.adapters} choices=${choices} change=${setChoices} />
          <//>
          <section class="decision" aria-label="Router">
            <h2>Router</h2>
            <${Decision} decision=${decision} />
          </section>
        </div>
        <p class="visually-hidden" role="status">${summary(answers)}</p>
        <${Columns} answers=${answers} hasKey=${key.value !== ""} />
      </main>
      <aside>${list}</aside>
    </div>
  `;
}

/** The key, typed once and kept in memory. */
function Key({ value, change, refused }) {
  const field = useRef();
  useEffect(() => refused && field.current.focus(), [refused]);
  const submit = (event) => {
    event.preventDefault();
    change(field.current.value.trim());
  };
  return html`
    <form class="key" onSubmit=${submit}>
      <label>
        <span>API key</span>${" "}
        <input ref=${field} type="password" autocomplete="off" placeholder="none" aria-invalid=${refused} />
      </label>
      <button type="submit" class="quiet">${value ? "Change" : "Use"}</button>
    </form>
  `;
}

/** The answers of the last prompt, shown again once in each frame in which something has come. */
function useAnswers(api) {
  const [answers, setAnswers] = useState([]);
  const [, showAgain] = useReducer((count) => count + 1, 0);
  const controller = useRef(null);
  const frame = useRef(0);
  const changed = () => {
    frame.current ||= requestAnimationFrame(() => {
      frame.current = 0;
      showAgain();
    });
  };
  const stop = () => controller.current?.abort();
  const start = (answers) => {
    stop();
    controller.current = new AbortController();
    setAnswers(answers);
    for (const answer of answers) ask(api, answer, controller.current.signal, changed);
  };
  useEffect(() => {
    const onKey = ({ key }) => key === "Escape" && stop();
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, []);
  return { answers, asking: answers.some((answer) => !answer.ended), start, stop };
}

function summary(answers) {
  const ended = answers.filter((answer) => answer.ended).length;
  return answers.length ? `${ended} of ${answers.length} answers have ended.` : "";
}

render(html`<${App} />`, document.body);
