// What a reader says back to a case: a follow-up question, or feedback on its answer.

import { call, el, freshKey, moment } from "./dom.js";
import { markBox } from "./stage.js";

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const CORNERS = ["x1", "y1", "x2", "y2"];
const ROLES = ["radiologist", "clinician", "researcher", "student", "other"];
const VERDICTS = [["agree", "I agree with the answer"], ["disagree", "I disagree"], ["corrected", "I correct it"]];
const post = (url, key, body) => call(url, {
  method: "POST",
  headers: { "Content-Type": "application/json", "Idempotency-Key": `"${key}"`, Prefer: "wait=0" },
  body: JSON.stringify(body),
});

function field(id, label, input, hint = null) {
  input.id = id;
  if (hint) input.setAttribute("aria-describedby", `${id}-hint`);
  return el("div", { class: "field" }, el("label", { for: id }, label), input,
    hint && el("p", { class: "hint", id: `${id}-hint` }, hint));
}

/** A form that is sent once: what is sent again unchanged, carries the same key. */
function formOf(button, send, ...fields) {
  let key = freshKey();
  const alert = el("p", { class: "alert", role: "alert", hidden: true });
  const submit = el("button", { type: "submit" }, button);
  const form = el("form", { novalidate: true }, ...fields, alert, submit);
  form.addEventListener("input", () => { key = freshKey(); });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    alert.hidden = true;
    submit.disabled = true;
    try {
      await send(key);
      key = freshKey();
    } catch (error) {
      alert.textContent = error.message;
      alert.hidden = false;
    } finally {
      submit.disabled = false;
    }
  });
  return form;
}

/** The form for a further question about the same image; leads to the new case. */
export function followUpCard(found) {
  const question = el("textarea", { rows: 2, placeholder: "Is it on the left?" });
  const choices = el("textarea", { rows: 2 });
  const send = async (key) => {
    const made = await post(`/v1/cases/${found.case_id}/follow-ups`, key, {
      question: question.value,
      choices: choices.value.split("\n").map((line) => line.trim()).filter(Boolean),
      k: found.settings.num_trajectories,
    });
    location.assign(`/cases/${made.case_id}`);
  };
  return el("section", { class: "card" }, el("h3", {}, "Ask further"),
    el("p", { class: "hint" }, "The policy is shown this conversation and the crops it looked at, as far as they fit."),
    formOf("Ask further", send,
      field("further-question", "Further question", question),
      field("further-choices", "Its choices", choices, "One a line, or none.")));
}

/** Links to the cases before and after this one in its conversation. */
export function conversationLinks(found) {
  const link = (caseId, words) => el("a", { href: `/cases/${caseId}` }, words);
  return [
    found.follows && link(found.follows, "← The question before"),
    ...found.follow_ups.map((caseId, index) => link(caseId, `Follow-up ${index + 1} →`)),
  ].filter(Boolean);
}

function versionLine(given, found) {
  const answer = given.corrected_answer ?? null;
  const index = found.choices.length ? LETTERS.indexOf(answer) : -1;
  const words = index >= 0 ? `${answer}. ${found.choices[index]}` : answer;
  const box = given.corrected_box;
  return el("li", {}, `${given.version}. ${given.role}: ${given.verdict}`,
    answer && ` to ${words}`, box && `, at x ${box.x1}–${box.x2}, y ${box.y1}–${box.y2} px`,
    given.note && `: ${given.note}`, " ",
    el("time", { class: "hint", datetime: given.given_at }, moment(given.given_at)));
}

/** Agree, disagree or correct; every sending is a new version. */
export function feedbackCard(found, stage) {
  const versions = el("ol", { class: "versions" });
  let newest = 0;
  const reload = async () => {
    const history = await call(`/v1/cases/${found.case_id}/feedback`);
    newest = history.versions.at(-1)?.version ?? 0;
    versions.replaceChildren(...history.versions.map((given) => versionLine(given, found)));
  };
  const possible = VERDICTS.filter(([value]) => found.status === "answered" || value !== "agree");
  const verdicts = possible.map(([value, words]) => el("label", { class: "tick" },
    el("input", { type: "radio", name: "verdict", value }), words));
  const answer = found.choices.length
    ? el("select", {}, el("option", { value: "" }, "—"),
        ...found.choices.map((text, i) => el("option", { value: LETTERS[i] }, `${LETTERS[i]}. ${text}`)))
    : el("input", { type: "text" });
  const role = el("select", {}, ...ROLES.map((name) => el("option", { value: name }, name)));
  const note = el("textarea", { rows: 2 });
  const corners = Object.fromEntries(CORNERS.map((name) =>
    [name, el("input", { type: "number", min: 0, "aria-label": `Place: ${name}`, placeholder: name })]));
  const mark = el("button", { type: "button", class: "quiet" }, "Draw it on the image");
  mark.addEventListener("click", () => markBox(stage, found.image, (box) => {
    for (const name of CORNERS) corners[name].value = box[name];
    corners.x1.dispatchEvent(new Event("input", { bubbles: true }));
    mark.focus();
  }));
  const correction = el("div", { class: "correction", hidden: true },
    field("corrected-answer", "Right answer", answer),
    el("fieldset", { class: "field" }, el("legend", {}, "Right place ", el("span", { class: "optional" }, "optional, in pixels of the original")),
      el("div", { class: "corners" }, ...Object.values(corners)), mark));
  const chosen = () => verdicts.map((label) => label.firstChild).find((radio) => radio.checked)?.value;
  for (const label of verdicts) {
    label.addEventListener("change", () => { correction.hidden = chosen() !== "corrected"; });
  }
  const send = async (key) => {
    if (!chosen()) throw new Error("Choose a verdict first.");
    const isCorrected = chosen() === "corrected";
    const box = CORNERS.map((name) => corners[name].value);
    const hasBox = isCorrected && box.some((value) => value !== "");
    await post(`/v1/cases/${found.case_id}/feedback`, key, {
      replaces: newest, verdict: chosen(), role: role.value, note: note.value.trim() || null,
      corrected_answer: isCorrected && answer.value ? answer.value : null,
      corrected_box: hasBox ? Object.fromEntries(CORNERS.map((name, i) => [name, Number(box[i])])) : null,
    });
    note.value = "";
    await reload();
  };
  reload().catch((error) => versions.replaceChildren(el("li", {}, error.message)));
  return el("section", { class: "card" }, el("h3", {}, "Your judgement"),
    el("p", { class: "hint" }, "Kept in versions. Answers can become problems for the next round of training; places and notes never do."),
    versions,
    formOf("Send", send,
      el("fieldset", { class: "field" }, el("legend", {}, "Verdict"), ...verdicts),
      correction, field("role", "I am", role), field("note", "Note", note, "Name no patient: only words of the file's header are removed from it.")));
}
