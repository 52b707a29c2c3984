// What the server holds and does, asked for again and again while the page is seen.

import { useEffect, useState } from "./vendor/htm-preact-3.1.1.js";

const INTERVAL = 2000; // milliseconds
const PAUSE = 20; // times as long as an answer took: a thousand adapters are asked for less often
const NOTHING = { adapters: [], base: null, stats: null, rate: 0, error: null };

/** The adapters, the base's name, the engine's figures; and the error if the server refused or is not there. */
export function useServerState(api) {
  const [state, setState] = useState(NOTHING);
  useEffect(() => {
    const controller = new AbortController();
    let timer;
    const refresh = async () => {
      const started = performance.now();
      const next = document.hidden ? null : await fetchState(api, controller.signal);
      if (controller.signal.aborted) return;
      if (next) setState((state) => ({ ...state, ...next, rate: rateSince(state.stats, next.stats) }));
      if (next?.error?.status === 401) return; // another key is needed first
      timer = setTimeout(refresh, Math.max(INTERVAL, PAUSE * (performance.now() - started)));
    };
    refresh();
    return () => {
      controller.abort();
      clearTimeout(timer);
    };
  }, [api]);
  return state;
}

async function fetchState(api, signal) {
  try {
    const [adapters, stats] = await Promise.all([
      api.get("v1/adapterhub/adapters", signal),
      api.get("v1/adapterhub/stats", signal),
    ]);
    return { adapters: adapters.data, base: stats.base, stats: { ...stats, at: performance.now() }, error: null };
  } catch (error) {
    return { error };
  }
}

/** Tokens a second between two answers: the engine's own figure is that of its last steps, however long ago. */
function rateSince(before, stats) {
  const tokens = stats && before ? stats.tokens - before.tokens : 0;
  return tokens > 0 ? (1000 * tokens) / (stats.at - before.at) : 0;
}
