// Calls to the server that this page came from. The key lives in this object only, and is gone when the page is.

/** What the server or the network answered instead of a result. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, param = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }
}

export class Api {
  constructor(key = "") {
    this.key = key;
  }

  /** The JSON answer to a GET. */
  async get(path, signal) {
    return (await this.#fetch(path, { signal })).json();
  }

  /** The JSON answer to a POST. */
  async post(path, body, signal) {
    return (await this.send(path, body, signal)).json();
  }

  /** The response to a POST, whose body may still stream. */
  send(path, body, signal) {
    const headers = { "Content-Type": "application/json" };
    return this.#fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  }

  async #fetch(path, options) {
    const authorization = this.key ? { Authorization: `Bearer ${this.key}` } : {};
    const headers = { ...options.headers, ...authorization };
    let response;
    try {
      response = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server cannot be reached.");
    }
    if (!response.ok) throw await refused(response);
    return response;
  }
}

async function refused(response) {
  const error = errorOf(await response.text());
  return new ApiError(error.message || `The server answered ${response.status}.`, {
    status: response.status,
    code: error.code,
    param: error.param,
    retryAfter: response.headers.get("Retry-After"),
  });
}

function errorOf(text) {
  try {
    const { error } = JSON.parse(text);
    return typeof error === "string" ? { message: error } : (error ?? {});
  } catch {
    return {};
  }
}
