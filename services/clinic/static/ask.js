// The form and the list of recent cases.

import { Problem, STATUS_WORDS, answerWords, call, el, freshKey, moment, percent } from "./dom.js";

const PREVIEW_PX = 320;
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const byId = (id) => document.getElementById(id);

const RENDERING = ["frame", "axis", "index", "window_center", "window_width"];

let clinic = null;
/** The key of the question in the form: sent again unchanged, it is the same question. */
let key = freshKey();

function addChoice(text = "") {
  const list = byId("choices");
  const input = el("input", { type: "text", name: "choices", maxlength: clinic?.max_choice_chars });
  input.value = text;
  const remove = el("button", { type: "button", class: "quiet remove" }, "Remove");
  const row = el("li", {}, input, remove);
  remove.addEventListener("click", () => {
    row.remove();
    key = freshKey();
    letterChoices();
    byId("add-choice").focus();
  });
  list.append(row);
  letterChoices();
  return input;
}

function letterChoices() {
  const rows = [...byId("choices").children];
  rows.forEach((row, index) => {
    row.querySelector("input").setAttribute("aria-label", `Choice ${LETTERS[index]}`);
    row.querySelector("button").setAttribute("aria-label", `Remove choice ${LETTERS[index]}`);
  });
  byId("add-choice").hidden = rows.length >= (clinic?.max_choices ?? LETTERS.length);
}

async function preview(file) {
  const canvas = byId("preview");
  canvas.hidden = true;
  if (!file) return;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    return; // DICOM and TIFF: the browser cannot show them, zoom can
  }
  const scale = Math.min(1, PREVIEW_PX / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  canvas.hidden = false;
}

/** The first thing wrong with the form, as [element, sentence]; null if nothing is. */
function mistake() {
  const file = byId("image").files[0];
  if (!file) return [byId("image"), "Choose an image first."];
  if (clinic && file.size > clinic.max_upload_bytes) {
    const mib = (bytes) => (bytes / 2 ** 20).toFixed(1);
    return [byId("image"), `The file has ${mib(file.size)} MiB; at most ${mib(clinic.max_upload_bytes)} MiB are accepted.`];
  }
  if (!byId("question").value.trim()) return [byId("question"), "Write a question."];
  const choices = choiceTexts();
  if (choices.length === 1) return [byId("choices").querySelector("input"), "Give two choices or more, or none."];
  const k = byId("k").valueAsNumber;
  const most = clinic?.max_trajectories ?? 16;
  if (!(k >= 1 && k <= most && Number.isInteger(k))) return [byId("k"), `Trajectories must be a whole number from 1 to ${most}.`];
  const given = ["window_center", "window_width"].map((id) => byId(id).value !== "");
  if (hasOwnWindow() && !(given[0] && given[1])) {
    return [byId(given[0] ? "window_width" : "window_center"), "Give the window's centre and its width."];
  }
  const number = [...document.querySelectorAll("#rendering input")].find((input) => !input.validity.valid);
  if (number) return [number, `${number.labels[0].textContent}: ${number.validationMessage}`];
  return null;
}

const hasOwnWindow = () => byId("window").value === "own";

/** What the form asks, as the API takes it; what was left empty is not sent. */
function asked() {
  const form = new FormData();
  form.append("image", byId("image").files[0], "image");
  form.append("question", byId("question").value);
  for (const choice of choiceTexts()) form.append("choices", choice);
  form.append("k", byId("k").value);
  if (byId("seed").value) form.append("seed", byId("seed").value);
  for (const name of RENDERING) {
    const isHidden = name.startsWith("window_") && !hasOwnWindow();
    if (byId(name).value !== "" && !isHidden) form.append(name, byId(name).value);
  }
  if (byId("window").value && !hasOwnWindow()) form.append("window", byId("window").value);
  if (byId("verify").checked) form.append("verify", "true");
  return form;
}

function choiceTexts() {
  return [...byId("choices").querySelectorAll("input")].map((i) => i.value.trim()).filter(Boolean);
}

function showError(sentence, element = null) {
  const box = byId("error");
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  box.hidden = !sentence;
  box.textContent = sentence ?? "";
  if (!sentence) return;
  if (element) element.setAttribute("aria-invalid", "true");
  (element ?? box).focus();
}

async function submit(event) {
  event.preventDefault();
  const wrong = mistake();
  if (wrong) return showError(wrong[1], wrong[0]);
  showError(null);
  byId("progress").textContent = "Sending the image…";
  byId("submit").disabled = true;
  try {
    const headers = { "Idempotency-Key": `"${key}"`, Prefer: "wait=0" };
    const made = await call("/v1/cases", { method: "POST", body: asked(), headers });
    key = freshKey(); // who comes back asks anew
    location.assign(`/cases/${made.case_id}`);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    showError(error.message);
  } finally {
    byId("progress").textContent = "";
    byId("submit").disabled = false;
  }
}

function caseLine(line) {
  const outcome =
    line.answer === null ? "" : answerWords(line.answer, line.option_text);
  const agreement = line.status !== "answered" ? "" : `${percent(line.agreement)} agree`;
  return el("li", {},
    el("a", { href: `/cases/${line.case_id}` },
      el("span", { class: "question" }, line.question),
      el("span", { class: "outcome" },
        el("span", { class: `badge ${line.status}` }, STATUS_WORDS[line.status]), " ",
        el("strong", {}, outcome), " ", el("span", {}, agreement)),
      el("time", { datetime: line.created_at }, moment(line.created_at))));
}

async function loadCases(url) {
  const page = await call(url);
  byId("recent").append(...page.cases.map(caseLine));
  byId("no-cases").hidden = byId("recent").children.length > 0;
  const more = byId("more");
  more.hidden = page.next_url === null;
  more.onclick = () => loadCases(page.next_url);
}

async function start() {
  byId("form").addEventListener("submit", submit);
  byId("form").addEventListener("input", () => { key = freshKey(); });
  byId("add-choice").addEventListener("click", () => addChoice().focus());
  byId("window").addEventListener("change", () => { byId("own-window").hidden = !hasOwnWindow(); });
  byId("image").addEventListener("change", (event) => preview(event.target.files[0]));
  clinic = await call("/v1/clinic");
  byId("k").value = clinic.default_trajectories;
  byId("k").max = clinic.max_trajectories;
  byId("question").maxLength = clinic.max_question_chars;
  byId("window").append(...clinic.windows.map((name) =>
    el("option", { value: name }, name === "ct_rgb" ? "CT, three windows as colours" : name.replaceAll("_", " "))));
  await loadCases("/v1/cases?limit=10");
}

start().catch((error) => showError(error.message));
