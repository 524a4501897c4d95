// One case: its verdict, the image, the steps, and how the answer came about.

import { card, table } from "./cards.js";
import { conversationLinks, feedbackCard, followUpCard } from "./dialogue.js";
import { Problem, STATUS_WORDS, answerWords, call, el, moment, percent, seconds } from "./dom.js";
import { drawStage, layerSwitches } from "./stage.js";
import { attemptSteps, endedWords, stepsOf } from "./steps.js";
import { confidenceLine, imageCard, provenanceCard, supportLine, verificationCard, withheldNote } from "./trust.js";

const RETRY_MS = 1000;
const FOLLOWING = "Working; this page follows the case until it ends.";
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const WITHHELD = ["low_confidence", "unsupported"];
const byId = (id) => document.getElementById(id);

function verdict(found) {
  const badge = el("span", { class: `badge ${found.status}` }, STATUS_WORDS[found.status]);
  if (found.status === "answered") {
    return [badge, el("p", { class: "answer" }, answerWords(found.answer, found.option_text)),
      agreementLine(found), confidenceLine(found), supportLine(found)].filter(Boolean);
  }
  if (found.status === "abstained") {
    if (WITHHELD.includes(found.abstention)) return [badge, ...withheldNote(found, reveal), supportLine(found)].filter(Boolean);
    return [badge, el("p", { class: "answer none" }, "No answer is given."), el("p", {}, abstention(found))];
  }
  if (found.status === "failed") {
    return [badge, el("p", { class: "answer none" }, "This case could not be answered."),
      el("p", { class: "alert", role: "alert" }, `${found.failure.service}: ${found.failure.reason}`)];
  }
  if (found.status === "cancelled") {
    return [badge, el("p", { class: "answer none" }, "The question was taken back before it was answered.")];
  }
  return [badge, el("p", { class: "answer none" }, "The policy is looking at the image…")];
}

/** A withheld answer, on request. */
function reveal() {
  load("?show=withheld").catch(fail);
}

function agreementLine(found) {
  const votes = Math.round(found.agreement * found.settings.num_trajectories);
  const total = found.settings.num_trajectories;
  const meter = el("meter", { min: 0, max: 1, value: found.agreement, "aria-label": "Agreement" });
  const sentence = total === 1
    ? "A single trajectory: there is no agreement to judge it by."
    : `${votes} of ${total} independent trajectories agree (${percent(found.agreement)}).`;
  return el("p", { class: "agreement" }, total === 1 ? null : meter, sentence);
}

function abstention(found) {
  if (found.abstention === "unanswered") return "None of the trajectories gave an answer.";
  if (found.abstention === "uncommitted") return "The most frequent answer commits to none of the options.";
  const most = Math.max(...Object.values(found.votes));
  const tied = Object.keys(found.votes).filter((answer) => found.votes[answer] === most).sort();
  return `The trajectories do not agree: ${tied.map((answer) => named(answer, found.choices)).join(" and ")} have ${most} ${most === 1 ? "vote" : "votes"} each.`;
}

function options(found) {
  byId("options").hidden = !found.choices.length;
  byId("options").replaceChildren(...found.choices.map((text, index) => {
    const isChosen = found.status === "answered" && found.answer === LETTERS[index];
    const share = found.option_probabilities[LETTERS[index]];
    return el("li", { class: isChosen ? "chosen" : null, "aria-current": isChosen ? "true" : null }, text,
      share === undefined ? null : el("span", { class: "share" }, ` ${percent(share)}`));
  }));
}

function caption(image) {
  const window = image.window_width === null ? "" : ` · window ${image.window_center} / ${image.window_width}`;
  return `${image.width_px} × ${image.height_px} px · ${image.source_format.toUpperCase()}${window}`;
}

/** `B` as `B. cross`, where that is a choice. */
function named(answer, choices) {
  const text = answer.length === 1 ? choices[LETTERS.indexOf(answer.toUpperCase())] : undefined;
  return text === undefined ? answer : answerWords(answer.toUpperCase(), text);
}

function votesCard(found) {
  const rows = Object.entries(found.votes).sort((a, b) => b[1] - a[1]);
  const silent = found.settings.num_trajectories - rows.reduce((sum, row) => sum + row[1], 0);
  const all = silent ? [...rows, [found.is_withheld ? "(withheld)" : "(no answer)", silent]] : rows;
  return card("Votes", "Normalised answers of the independent trajectories.",
    table(all.map(([answer, count]) => [named(answer, found.choices), count]), ["Answer", "Votes"]));
}

function consensusCard(consensus) {
  const seen = consensus.rectangles.length
    ? table([
        ["Agreeing trajectories", consensus.num_agreeing],
        ["Area", `${consensus.area_px.toLocaleString()} px (${(consensus.area_share * 100).toFixed(1)} % of the image)`],
        ["Rectangles", consensus.rectangles.map((b) => `[${b.x1}, ${b.y1}, ${b.x2}, ${b.y2}]`).join(" ")],
      ])
    : el("p", {}, "There is no place that more than half of them looked at.");
  return card("Consensus region", "Where more than half of the agreeing trajectories looked.", seen);
}

function attemptsCard(found) {
  const rows = found.attempts.map((one, i) => [
    one.trajectory_id === found.shown_trajectory_id ? `${i + 1} (shown)` : i + 1,
    one.answer ?? "—", one.boxes.length, one.num_turns, endedWords(one.stop_reason),
  ]);
  return card("Trajectories", null, el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Trajectories" },
    table(rows, ["No.", "Answer", "Zooms", "Turns", "Ended"])));
}

function recordCard(found) {
  const t = found.timings;
  return card("Record", null, table([
    ["Asked", moment(found.created_at)],
    ["Image taken in", seconds(t.ingest_s)],
    ["Waited", seconds(t.waiting_s)],
    ["View made", seconds(t.view_s)],
    ["Trajectories", seconds(t.trajectories_s)],
    ["Consensus", seconds(t.consensus_s)],
    ...(found.verification ? [["Evidence blanked", seconds(t.evidence_blanked_s)], ["Elsewhere blanked", seconds(t.elsewhere_blanked_s)]] : []),
    ["In all", seconds(t.total_s)],
  ]), el("p", { class: "record" }, el("a", { href: `/v1/cases/${found.case_id}` }, "This case as JSON"), " · ",
    el("span", { class: "mono", title: found.image.sha256 }, `image ${found.image.sha256.slice(0, 12)}…`)));
}

function show(found) {
  document.title = `${STATUS_WORDS[found.status]}: ${found.question} · MedVR clinic`;
  byId("question").textContent = found.question;
  options(found);
  byId("answer").replaceChildren(...verdict(found));
  byId("caption").textContent = caption(found.image);
  const stage = byId("stage");
  byId("layers").replaceChildren(...layerSwitches(drawStage(stage, found)));
  showSteps(found, stage);
  byId("details").replaceChildren(
    ...(found.consensus ? [votesCard(found), consensusCard(found.consensus), attemptsCard(found)] : []),
    ...(found.verification ? [verificationCard(found)] : []),
    imageCard(found),
    ...(found.provenance ? [provenanceCard(found)] : []),
    ...(found.status === "running" ? [] : [recordCard(found)]));
  byId("conversation").replaceChildren(...conversationLinks(found));
  const isFinal = found.status === "answered" || found.status === "abstained";
  byId("dialogue").hidden = !isFinal;
  byId("say").replaceChildren(
    ...(found.status === "answered" ? [followUpCard(found)] : []),
    ...(isFinal ? [feedbackCard(found, stage)] : []));
  byId("case").hidden = false;
}

function showSteps(found, stage) {
  const hasSteps = found.status === "answered" || (found.status === "abstained" && !found.is_withheld);
  byId("columns").classList.toggle("single", !hasSteps);
  byId("steps-section").hidden = !hasSteps;
  byId("look-title").textContent = hasSteps ? "Where it looked" : "The image";
  if (!hasSteps) return;
  const isAnswered = found.turns.length > 0;
  byId("steps-title").textContent = isAnswered ? "Step by step" : "What each trajectory said";
  byId("steps-hint").textContent = isAnswered ? answeredHint(found) : "None is shown in full, because none speaks for the others.";
  byId("steps").replaceChildren(...(isAnswered
    ? stepsOf(found, stage)
    : attemptSteps(found, (answer) => named(answer, found.choices))));
}

function answeredHint(found) {
  const which = found.settings.num_trajectories === 1
    ? "The trajectory as it went."
    : "Of the agreeing trajectories, the one whose zooms overlap the consensus region best.";
  return `${which} Entropy H says how undecided the policy was: 0 nats is certain, 0.69 nats is a coin toss.`;
}

async function load(query = "") {
  const caseId = location.pathname.split("/").pop();
  const found = await call(`/v1/cases/${encodeURIComponent(caseId)}${query}`);
  show(found);
  const isRunning = found.status === "running";
  byId("state").textContent = isRunning ? FOLLOWING : "";
  byId("state").hidden = !isRunning;
  byId("cancel").hidden = !isRunning;
  byId("main").setAttribute("aria-busy", String(isRunning));
  if (isRunning) follow(found);
}

/** Say how a running case goes, and show it once it ends; where it cannot be followed, ask again. */
function follow(found) {
  const total = found.settings.num_trajectories;
  const events = new EventSource(`/v1/cases/${found.case_id}/events`);
  let zooms = 0;
  let ended = 0;
  const tell = () => {
    byId("state").textContent =
      `${FOLLOWING} ${zooms} ${zooms === 1 ? "zoom" : "zooms"} so far; ${ended} of ${total} trajectories ended.`;
  };
  events.addEventListener("started", () => { zooms = 0; ended = 0; });
  events.addEventListener("zoom", () => { zooms += 1; tell(); });
  events.addEventListener("trajectory", () => { ended += 1; tell(); });
  events.addEventListener("verification", () => {
    byId("state").textContent = `${FOLLOWING} It answered; now the evidence is checked.`;
  });
  events.addEventListener("done", () => {
    events.close();
    load().catch(fail);
  });
  events.onerror = () => {
    if (events.readyState === EventSource.CLOSED) setTimeout(() => load().catch(fail), RETRY_MS);
  };
}

/** Take the question back; that the case ended meanwhile is seen by reading it again. */
async function cancel() {
  byId("cancel").disabled = true;
  const caseId = location.pathname.split("/").pop();
  try {
    await call(`/v1/cases/${encodeURIComponent(caseId)}/cancel`, { method: "POST" });
  } catch (error) {
    if (error.status !== 409) throw error;
  } finally {
    byId("cancel").disabled = false;
  }
}

function fail(error) {
  byId("main").setAttribute("aria-busy", "false");
  const known = error instanceof Problem;
  byId("state").hidden = false;
  byId("state").className = "alert";
  byId("state").setAttribute("role", "alert");
  byId("state").textContent = known ? error.message : "This page has an error of its own; the case is readable as JSON.";
  if (!known) throw error;
}

byId("cancel").addEventListener("click", () => cancel().catch(fail));
load().catch(fail);
