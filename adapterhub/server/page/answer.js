// One answer as it streams: what has come so far, when, and from whom.

import { ApiError } from "./api.js";
import { serverSentEvents } from "./server_sent_events.js";

const SHORTEST_TIME = 20; // milliseconds; outputs that came together tell no rate

export class Answer {
  constructor(choice, request) {
    this.choice = choice; // what was asked for: "base", an adapter, a blend, "auto"
    this.request = request; // the body that was sent
    this.state = "waiting"; // then "streaming", and "done", "stopped" or "failed"
    this.text = "";
    this.toolCalls = []; // {name, arguments}, by the index of their deltas
    this.answeredBy = null;
    this.route = null; // {reason, confidence}, where the router chose
    this.finishReason = null;
    this.completionTokens = null;
    this.firstTokens = 1; // of the first output
    this.error = null;
    this.sent = this.first = this.last = null; // in milliseconds
  }

  get ended() {
    return ["done", "stopped", "failed"].includes(this.state);
  }

  /** Milliseconds from sending to the first output. */
  get timeToFirstToken() {
    return this.first === null ? null : this.first - this.sent;
  }

  /** Of decoding: what the first output had, which waited for the prompt or for a whole call, does not count. */
  get tokensPerSecond() {
    const time = this.last - this.first;
    const tokens = this.completionTokens - this.firstTokens;
    return tokens > 0 && time >= SHORTEST_TIME ? (1000 * tokens) / time : null;
  }

  /** Takes the headers, which say who answers and why. */
  takeHeaders(headers) {
    const version = headers.get("x-adapterhub-version");
    const reason = headers.get("x-adapterhub-route");
    this.answeredBy = headers.get("x-adapterhub-adapter") + (version ? `@${version}` : "");
    this.route = reason && { reason, confidence: Number(headers.get("x-adapterhub-confidence")) };
  }

  /** Takes one `chat.completion.chunk`. */
  take(chunk, now) {
    if (chunk.error) throw new ApiError(chunk.error.message, chunk.error);
    this.completionTokens = chunk.usage?.completion_tokens ?? this.completionTokens;
    const [choice] = chunk.choices;
    if (!choice) return; // the chunk of the usage has none
    const { content, tool_calls: calls = [] } = choice.delta;
    if (content || calls.length) {
      this.state = "streaming";
      if (this.first === null) this.firstTokens = this.completionTokens ?? 1;
      this.first ??= now;
      this.last = now;
    }
    this.text += content ?? "";
    for (const delta of calls) this.#takeCall(delta);
    this.finishReason = choice.finish_reason ?? this.finishReason;
  }

  #takeCall({ index, function: { name, arguments: piece } = {} }) {
    const call = (this.toolCalls[index] ??= { name: "", arguments: "" });
    call.name += name ?? "";
    call.arguments += piece ?? "";
  }
}

/** Asks for one answer; `changed` is called whenever something has come. Errors end up in the answer. */
export async function ask(api, answer, signal, changed, now = () => performance.now()) {
  answer.sent = now();
  try {
    const response = await api.send("v1/chat/completions", answer.request, signal);
    answer.takeHeaders(response.headers);
    for await (const chunk of serverSentEvents(response.body)) {
      answer.take(chunk, now());
      changed();
    }
    if (!answer.finishReason) throw new ApiError("The connection ended before the answer did.");
    answer.state = "done";
  } catch (error) {
    answer.state = error.name === "AbortError" ? "stopped" : "failed";
    answer.error = answer.state === "failed" ? error : null;
  }
  changed();
}
