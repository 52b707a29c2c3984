// What answers beside the base: an adapter or one of its versions, the router's choice, or a blend.

import { html, useMemo } from "./vendor/htm-preact-3.1.1.js";

export const MOST_CHOICES = 3;
const MOST_PARTS = 4; // of a blend
const BLEND = "blend";

/** The name of a choice in `model`, as the API takes it. */
export function modelOf(choice) {
  return choice.parts
    ? choice.parts.map(({ name, weight }) => `${name}:${weight}`).join("+")
    : choice.model;
}

/** The choices with their add button. */
export function Choices({ adapters, choices, change }) {
  const replace = (index, ...others) => change(choices.toSpliced(index, 1, ...others));
  const next = adapters.find(({ name }) => !choices.some((choice) => choice.model === name));
  return html`
    <fieldset class="choices">
      <legend>Answer with</legend>
      <span class="choice fixed">base</span>
      ${choices.map(
        (choice, index) => html`
          <${Choice}
            adapters=${adapters}
            choice=${choice}
            label=${`Choice ${index + 1}`}
            change=${(changed) => replace(index, changed)}
            remove=${() => replace(index)}
          />
        `,
      )}
      ${choices.length < MOST_CHOICES &&
      html`<button type="button" class="quiet" onClick=${() => change([...choices, { model: next?.name ?? "auto" }])}>
        + Add
      </button>`}
    </fieldset>
  `;
}

function Choice({ adapters, choice, label, change, remove }) {
  const choose = ({ target }) =>
    change(target.value === BLEND ? { parts: evenParts(adapters) } : { model: target.value });
  const names = useMemo(() => adapters.map(({ name }) => html`<option value=${name}>${name}</option>`), [adapters]);
  const isListed = choice.parts || choice.model === "auto" || adapters.some(({ name }) => name === choice.model);
  return html`
    <div class="choice">
      <div class="pick">
        <select aria-label=${label} value=${choice.parts ? BLEND : choice.model} onChange=${choose}>
          <option value="auto">auto (router)</option>
          ${adapters.length > 1 && html`<option value=${BLEND}>a blend …</option>`}
          ${!isListed && html`<option value=${choice.model}>${choice.model}</option>`}
          ${names}
        </select>
        <button type="button" class="quiet" aria-label=${`Remove ${label.toLowerCase()}`} onClick=${remove}>✕</button>
      </div>
      ${choice.parts &&
      html`<${Blend} adapters=${adapters} parts=${choice.parts} change=${(parts) => change({ parts })} />`}
    </div>
  `;
}

const evenParts = (adapters) => adapters.slice(0, 2).map(({ name }) => ({ name, weight: 0.5 }));

function Blend({ adapters, parts, change }) {
  const set = (index, field) => change(parts.with(index, { ...parts[index], ...field }));
  const free = adapters.filter(({ name }) => !parts.some((part) => part.name === name));
  return html`
    <div class="blend">
      ${parts.map(
        (part, index) => html`
          <${Part}
            part=${part}
            label=${`Adapter ${index + 1} of the blend`}
            names=${[part, ...free].map(({ name }) => name)}
            set=${(field) => set(index, field)}
            remove=${parts.length > 2 && (() => change(parts.toSpliced(index, 1)))}
          />
        `,
      )}
      ${parts.length < MOST_PARTS &&
      free.length > 0 &&
      html`<button type="button" class="quiet" onClick=${() => change([...parts, { name: free[0].name, weight: 0.5 }])}>
        + Blend in
      </button>`}
    </div>
  `;
}

function Part({ part: { name, weight }, label, names, set, remove }) {
  return html`
    <div class="part">
      <select aria-label=${label} value=${name} onChange=${({ target }) => set({ name: target.value })}>
        ${names.map((name) => html`<option value=${name}>${name}</option>`)}
      </select>
      <output>${weight.toFixed(2)}</output>
      <input
        type="range"
        min="0.05"
        max="1.5"
        step="0.05"
        aria-label=${`Weight of ${name}`}
        value=${weight}
        onInput=${({ target }) => set({ weight: Number(target.value) })}
      />
      ${remove &&
      html`<button type="button" class="quiet" aria-label=${`Remove ${name} from the blend`} onClick=${remove}>✕</button>`}
    </div>
  `;
}
