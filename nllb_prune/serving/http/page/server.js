/** Requests to the translation server, and what goes wrong with them. */

import { serverEvents } from "./events.js";

const TRIED_AGAIN = [429, 503];
const BROKEN_OFF = "The answer broke off before it was finished. Try again.";

/** A request that was not answered as it should be, with words for the reader. */
export class RequestError extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, wait?: number | null}} [details] `wait`: seconds after which it may work
   */
  constructor(message, { status = 0, wait = null } = {}) {
    super(message);
    this.status = status;
    this.wait = wait;
  }
}

export class Server {
  /** @param {() => string} key returns the API key, if there is one */
  constructor(key) {
    this.key = key;
  }

  /** @param {string} path */
  async get(path) {
    const response = await this.#answered(path, {});
    return response.json();
  }

  /**
   * Translate, part by part.
   * @param {object} asked body of the request
   * @param {{signal: AbortSignal, part: (text: string) => void, waiting: (seconds: number, why: string) => void}} on
   * @returns {Promise<object>} the whole answer
   */
  async stream(asked, on) {
    const body = JSON.stringify(asked);
    const options = { method: "POST", body, signal: on.signal, headers: { "Content-Type": "application/json" } };
    const response = await this.#answeredInTime("v1/stream", options, on.waiting);
    try {
      for await (const { name, data } of serverEvents(response.body)) {
        if (name === "part") on.part(data.text);
        else if (name === "done") return data;
        else if (name === "error") throw new RequestError(data.error);
      }
    } catch (error) {
      throw error instanceof RequestError || on.signal.aborted ? error : new RequestError(BROKEN_OFF);
    }
    throw new RequestError(BROKEN_OFF);
  }

  /** Ask; once more after the time that a busy server says. */
  async #answeredInTime(path, options, waiting) {
    try {
      return await this.#answered(path, options);
    } catch (error) {
      if (!(error instanceof RequestError) || error.wait === null || !TRIED_AGAIN.includes(error.status)) throw error;
      waiting(error.wait, error.message);
      await pause(error.wait, options.signal);
      return this.#answered(path, options);
    }
  }

  async #answered(path, options) {
    const key = this.key();
    const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      throw options.signal?.aborted ? error : new RequestError(unreachable());
    }
    if (!response.ok) throw await refusal(response);
    return response;
  }
}

function unreachable() {
  return navigator.onLine
    ? "The server cannot be reached. Is it running?"
    : "You are offline. The text is translated when the connection is back.";
}

async function refusal(response) {
  const found = await response.json().catch(() => null);
  const message = found?.error ?? `The server answered with status ${response.status}.`;
  return new RequestError(message, { status: response.status, wait: seconds(response.headers.get("Retry-After")) });
}

/** Return the seconds of a `Retry-After`, which is a number or a date. */
function seconds(text) {
  if (text === null) return null;
  const found = /^\d+$/.test(text.trim()) ? Number(text) : (Date.parse(text) - Date.now()) / 1000;
  return Number.isNaN(found) ? null : Math.max(0, Math.ceil(found));
}

function pause(time, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * time);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
