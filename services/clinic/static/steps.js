// The reasoning of the trajectory that is shown, turn by turn, with what it was shown as evidence.

import { el, nats, signed, svg } from "./dom.js";
import { emphasise } from "./stage.js";

/** One list entry per turn. */
export function stepsOf(found, stage) {
  const scale = Math.max(0.01, ...found.evidence.flatMap((zoom) =>
    [zoom.tool_entropy_nats, zoom.baseline_entropy_nats]));
  return found.turns.map((turn) => stepOf(turn, found, stage, scale));
}

function stepOf(turn, found, stage, scale) {
  const parts = [el("p", { class: turn.thought ? "thought" : "thought none" },
    turn.thought || "No thought was written.")];
  if (turn.call) {
    const index = turn.call.evidence_index;
    parts.push(index === null ? badCall(turn.call) : shownOf(found.evidence[index], found, stage, scale));
  }
  if (turn.answer !== null) {
    parts.push(el("p", { class: "step-answer" }, "Answered ", el("strong", {}, turn.answer)));
  }
  if (!turn.call && turn.answer === null) {
    parts.push(el("p", { class: "alert soft" }, "The turn ended with neither a zoom nor an answer."));
  }
  parts.push(el("details", { class: "verbatim" },
    el("summary", {}, `As written: ${turn.num_tokens} tokens, mean entropy ${nats(turn.mean_entropy_nats)} nats`),
    el("pre", { tabindex: "0" }, turn.text)));
  return el("li", { class: "step" }, ...parts);
}

const windowWords = (window) => `centre ${window.center}, width ${window.width}`;

function badCall(call) {
  const box = call.bbox_2d ? ` [${call.bbox_2d.join(", ")}] in the view` : "";
  const what = call.tool === "set_window" ? `the window ${windowWords(call.window)}` : `a zoom${box}`;
  return el("p", { class: "alert soft" }, `Asked for ${call.tool === null ? "something" : what} and saw nothing: ${call.error}.`);
}

/** A picture the policy asked for: a region enlarged, or the whole image in another window. */
function shownOf(shown, found, stage, scale) {
  const isZoom = shown.tool === "zoom_in";
  const name = `${isZoom ? "Zoom" : "Window"} ${shown.index + 1}`;
  const focus = (on) => () => emphasise(stage, on && isZoom ? shown.index : null);
  return el("div", { class: "zoom-card", id: `zoom-${shown.index + 1}`, tabindex: "-1",
      onmouseenter: focus(true), onmouseleave: focus(false), onfocusin: focus(true), onfocusout: focus(false) },
    el("a", { class: "thumb", href: shown.crop_url, "aria-label": `Open the crop of ${name.toLowerCase()}` },
      el("img", { src: shown.crop_url, width: shown.crop_width_px, height: shown.crop_height_px,
        alt: `Crop of ${name.toLowerCase()}, as the policy saw it` })),
    el("div", { class: "zoom-facts" },
      el("h3", {}, el("span", { class: "number", "aria-hidden": "true" }, String(shown.index + 1)), name),
      isZoom ? el("p", { class: "coordinates" }, placeWords(shown.box, found.image)) : null,
      shown.window && el("p", { class: "coordinates" }, `In the window ${windowWords(shown.window)}`),
      entropies(shown, scale)));
}

function placeWords(box, image) {
  const share = ((box.x2 - box.x1) * (box.y2 - box.y1)) / (image.width_px * image.height_px);
  return `x ${box.x1}–${box.x2}, y ${box.y1}–${box.y2} px · ${box.x2 - box.x1} × ${box.y2 - box.y1} px · ${(share * 100).toFixed(1)}\u00a0% of the image`;
}

function entropies(zoom, scale) {
  const bar = (kind, value) => svg("svg", { class: `bar ${kind}`, viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "track", width: 100, height: 8 }),
    svg("rect", { class: "fill", width: Math.max(0, Math.min(100, (value / scale) * 100)), height: 8 }));
  const row = (symbol, text, value, kind) => [
    el("dt", {}, symbol, " ", el("span", {}, text)),
    el("dd", {}, bar(kind, value), `${nats(value)} nats`),
  ];
  const rise = zoom.entropy_increase_nats;
  return el("div", { class: "entropies" },
    el("dl", {},
      ...row(el("var", {}, "H", el("sub", {}, "base")), "before", zoom.baseline_entropy_nats, "base"),
      ...row(el("var", {}, "H", el("sub", {}, "tool")), zoom.tool === "zoom_in" ? "placing the box" : "choosing the window", zoom.tool_entropy_nats, "tool")),
    el("p", { class: "rise" }, el("strong", {}, `ΔH ${signed(rise)} nats`), ` ${meaning(rise)}`));
}

function meaning(rise) {
  if (rise > 0) return "— less sure of this than of its words before: others were possible.";
  return "— at least as sure of this as of its words before.";
}

const ENDED = { no_tool_no_answer: "neither zoom nor answer" };

/** Why a trajectory ended. */
export const endedWords = (reason) => ENDED[reason] ?? reason.replaceAll("_", " ");

/** One list entry per trajectory: what a reader is shown when none speaks for the others. */
export function attemptSteps(found, named) {
  return found.attempts.map((one) => el("li", { class: "step" },
    el("p", {}, one.answer === null
      ? `Gave no answer (${endedWords(one.stop_reason)}).`
      : "Answered ", one.answer === null ? null : el("strong", {}, named(one.answer))),
    el("p", { class: "coordinates" }, one.boxes.length
      ? `Looked at ${one.boxes.map((b) => `x ${b.x1}–${b.x2}, y ${b.y1}–${b.y2} px`).join("; ")}`
      : "Did not look closer.")));
}
