// Building pages from text: every string from a case goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes (or `on…` listeners) and children (nodes or text). */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== undefined && child !== null));
  return node;
}

/** What went wrong, as the API's problem document says it. */
export class Problem extends Error {
  constructor(status, title, detail) {
    super(detail ? `${title}: ${detail}` : title);
    this.status = status;
  }
}

/** JSON from the API; throws a `Problem` otherwise. */
export async function call(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch {
    throw new Problem(0, "The clinic does not answer", "check that it is running, then try again");
  }
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  throw new Problem(response.status, body?.title ?? `HTTP ${response.status}`, body?.detail ?? "");
}

/** A key for a request that may have to be sent again. */
export function freshKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID needs https
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const percent = (share) => `${Math.round(share * 100)} %`;
/** A calibrated probability: what was fitted on some hundred problems is never certain. */
export const probability = (share) => (share > 0.99 ? "over 99 %" : share < 0.01 ? "under 1 %" : percent(share));
export const nats = (value) => value.toFixed(2);
export const signed = (value) => (value >= 0 ? "+" : "−") + Math.abs(value).toFixed(2);
export const seconds = (value) => (value < 0.1 ? `${(value * 1000).toFixed(0)} ms` : `${value.toFixed(1)} s`);
export const moment = (iso) =>
  new Date(iso).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

export const STATUS_WORDS = {
  running: "Working",
  answered: "Answered",
  abstained: "Abstained",
  failed: "Failed",
  cancelled: "Cancelled",
};

/** The answer of a case in words: `B. cross`. */
export function answerWords(answer, optionText) {
  return optionText === null ? answer : `${answer}. ${optionText}`;
}
