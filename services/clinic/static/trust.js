// How far an answer can be relied on: its confidence, whether it rests on its evidence, what is
// withheld; and what made it: the image and the versions of everything.

import { answerWords, el, percent, probability } from "./dom.js";
import { card, table } from "./cards.js";

const UNKNOWN = {
  not_calibrated: "this clinic has no calibration",
  not_answered: "the trajectories agree on no answer",
  other_weights: "the calibration was made with other weights",
  other_num_trajectories: "the calibration was made with another number of trajectories",
  other_prompt: "the calibration was made with another wording of the prompt",
};
const UNASKED = {
  no_evidence: "the policy looked at no place closer",
  not_blankable: "the place is too large to be blanked out",
  no_place: "the image has no room for a second region of this shape",
};
const BURNED_IN = {
  suspected: "Text may be burned into the pixels, which nobody has removed",
  declared: "The header says that text is burned into the pixels, which nobody has removed",
};

/** The confidence as a line, or why there is none; null for a case without an answer to judge. */
export function confidenceLine(found) {
  if (found.confidence === null) {
    if (found.status !== "answered" || !found.confidence_unknown) return null;
    return el("p", { class: "hint" }, `How probably it is right is not known: ${UNKNOWN[found.confidence_unknown]}.`);
  }
  const { problem_set: set, num_problems: size, fitted_on: day } = found.calibration;
  return el("p", { class: "agreement confidence" },
    el("meter", { min: 0, max: 1, value: found.confidence, "aria-label": "Confidence" }),
    `Confidence ${probability(found.confidence)}: so often were such answers right on ${set} (${size} problems, ${day}).`);
}

/** What verification found, in one sentence; null if it was not asked for. */
export function supportLine(found) {
  const checked = found.verification;
  if (!checked) return null;
  if (checked.supported === null) {
    return el("p", { class: "hint" }, `The evidence could not be checked: ${UNASKED[checked.evidence_unasked]}.`);
  }
  if (!checked.supported) {
    return el("p", { class: "alert soft", role: "note" }, `Not supported by the evidence shown: ${checked.evidence_unasked
      ? UNASKED[checked.evidence_unasked] : "with the evidence blanked out, the answer is the same"}.`);
  }
  const isFragile = checked.elsewhere_blanked?.changed;
  return el("p", { class: isFragile ? "alert soft" : "supported", role: "note" }, isFragile
    ? "The answer changes with the evidence blanked out, but also with another region blanked out: it is fragile."
    : "Supported: with the evidence blanked out, the answer changes.");
}

/** What is said where an answer is withheld, with the way to see it. */
export function withheldNote(found, reveal) {
  const why = found.abstention === "unsupported"
    ? "it is not supported by the evidence shown"
    : `its confidence, ${probability(found.confidence)}, is below this clinic's threshold of ${percent(found.settings.abstain_below)}`;
  if (!found.is_withheld) {
    return [el("p", { class: "alert soft" }, `Shown on request. It was withheld because ${why}.`),
      el("p", { class: "answer withheld" }, answerWords(found.answer, found.option_text))];
  }
  const button = el("button", { type: "button", class: "quiet" }, "Show it all the same");
  button.addEventListener("click", reveal);
  return [el("p", {}, `There is an answer, and it is withheld: ${why}.`), button];
}

/** The pictures that were asked about again, and what was said of each. */
export function verificationCard(found) {
  const checked = found.verification;
  const row = (title, asked, unasked) => el("div", { class: "blanked" },
    asked && el("a", { href: asked.image_url, "aria-label": `Open the image with ${title}` },
      el("img", { src: asked.image_url, alt: `The image with ${title}` })),
    el("div", {}, el("h4", {}, title[0].toUpperCase() + title.slice(1)), el("p", {}, asked ? said(asked, found) : `Not asked: ${UNASKED[unasked]}.`)));
  return card("Is the evidence really why?", "The question asked again, with the same seeds, of images without a region.",
    row("the evidence blanked out", checked.evidence_blanked, checked.evidence_unasked),
    row("as much blanked out elsewhere", checked.elsewhere_blanked, checked.elsewhere_unasked));
}

function said(asked, found) {
  const verdict = asked.changed ? "The answer changed" : "The answer stayed";
  if (found.is_withheld) return `${verdict}.`;
  const answer = asked.answer === null ? "no majority" : answerWords(asked.answer, asked.option_text);
  return `${verdict}: ${answer} (${percent(asked.agreement)} agree).`;
}

/** The image, as the file and what was done to it tell; no identity is in it. */
export function imageCard(found) {
  const { image, subject } = found;
  const { header, deidentification: parted, rendering } = image;
  const warning = BURNED_IN[parted?.burned_in_text];
  const rows = [
    ["Size", `${image.width_px} × ${image.height_px} px`],
    ["Format", image.source_format.toUpperCase()],
    ["Modality", header?.modality],
    ["Body part", [header?.body_part, header?.laterality, header?.view_position].filter(Boolean).join(" ")],
    ["Pixel spacing", header?.pixel_spacing_mm && `${header.pixel_spacing_mm.join(" × ")} mm`],
    ["Frame", rendering?.num_frames > 1 && `${rendering.frame} of ${rendering.num_frames}`],
    ["Slice", rendering?.axis && `${rendering.axis} ${rendering.index} of ${rendering.num_slices}`],
    ["Windows", rendering?.windows.map((w) => `${w.center} / ${w.width}${w.preset ? ` (${w.preset})` : ""}`).join(", ")],
    ["Patient", subject.patient],
    ["Study", subject.study],
    ["De-identified", parted?.profile && `${parted.profile}, ${parted.edition}`],
    ["Removed from the question", subject.num_removed || null],
  ];
  return card("Image", null, warning && el("p", { class: "alert soft" }, `${warning} (${parted.burned_in_reasons.join("; ")}).`),
    table(rows.filter((row) => row[1])));
}

/** Everything that made the answer. */
export function provenanceCard(found) {
  const made = found.provenance;
  const short = (digest) => (digest ? `${digest.slice(0, 12)}…` : "—");
  return card("Provenance", null, table([
    ["Model", made.model],
    ["Version", made.run === "base" ? "the checkpoint it was started with" : `${made.versions.join(", ")} (run ${made.run})`],
    ["Weights", short(made.weights_sha256)],
    ["Engine", made.engine],
    ["Prompt", short(made.prompt_sha256)],
    ["Tools", Object.keys(made.tools).join(", ")],
    ["Preprocessing", made.preprocessing_version ?? "—"],
    ["Code", made.code_version],
    ["Trajectories", made.num_trajectories],
    ["Temperature", made.temperature],
    ["Seed", made.seed],
    ["Most tokens a turn", made.max_turn_tokens],
    ["Most turns", made.max_turns],
    ["Calibration", made.calibration_id ? short(made.calibration_id) : "none"],
  ]), el("p", { class: "hint" }, "Digests in full are in the case as JSON."));
}
