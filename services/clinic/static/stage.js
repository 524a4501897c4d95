// The image with what is drawn on it. All shapes are given in original-image pixels; the overlay's
// viewBox is the original's size, so the browser scales image and shapes alike.

import { el, svg } from "./dom.js";

const HEAT_RGB = [0, 213, 255];
const words = (box) => `x ${box.x1} to ${box.x2}, y ${box.y1} to ${box.y2}`;

/** Draws a case into `stage`; returns its layers as {key, label, isOn, show(isOn)}. */
export function drawStage(stage, found) {
  const { width_px: width, height_px: height } = found.image;
  stage.style.setProperty("--ratio", width / height);
  const image = el("img", {
    src: found.image.url, width, height,
    alt: "The original image of this case; the places the policy looked at are listed step by step.",
  });
  const overlay = svg("svg", {
    viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img",
    "aria-label": spoken(found),
  });
  stage.replaceChildren(image, overlay);
  const layers = [];
  if (found.consensus?.heatmap_url) layers.push(heatLayer(stage, overlay, found.consensus.heatmap_url));
  if (found.consensus?.rectangles.length) layers.push(consensusLayer(overlay, found.consensus));
  layers.push(...attemptLayers(overlay, found));
  const zooms = zoomsOf(found);
  if (zooms.length) layers.push(evidenceLayer(stage, overlay, zooms));
  for (const layer of layers) layer.show(layer.isOn);
  return layers.reverse();
}

/** What has a place of its own: `set_window` shows the whole image again. */
const zoomsOf = (found) => found.evidence.filter((shown) => shown.tool === "zoom_in");

function spoken(found) {
  const zooms = zoomsOf(found);
  if (!zooms.length) return "No zoom is shown on the image.";
  return zooms.map((zoom) => `Zoom ${zoom.index + 1}: ${words(zoom.box)}.`).join(" ");
}

function rectangle(box, attributes) {
  return svg("rect", {
    x: box.x1, y: box.y1, width: box.x2 - box.x1, height: box.y2 - box.y1,
    "vector-effect": "non-scaling-stroke", ...attributes,
  });
}

/** A rectangle with a dark rim, to be seen on bright and dark tissue alike. */
function framed(box, attributes) {
  return [rectangle(box, { class: "rim" }), rectangle(box, attributes)];
}

function groupLayer(overlay, key, label, isOn, shapes, extra = []) {
  const group = svg("g", { class: `layer ${key}`, "data-layer": key }, ...shapes);
  overlay.append(group);
  const show = (visible) => {
    group.toggleAttribute("hidden", !visible);
    for (const node of extra) node.hidden = !visible;
  };
  return { key, label, isOn, show };
}

function evidenceLayer(stage, overlay, zooms) {
  const shapes = zooms.flatMap((zoom) => framed(zoom.box, { class: "zoom", "data-zoom": zoom.index }));
  const markers = zooms.map((zoom) => marker(zoom));
  stage.append(...markers);
  return groupLayer(overlay, "evidence", "Zooms of the trajectory shown", true, shapes, markers);
}

function marker(zoom) {
  const [x1, y1] = zoom.box_normalised;
  const node = el("a", {
    href: `#zoom-${zoom.index + 1}`, class: "marker", "data-zoom": zoom.index,
    "aria-label": `Zoom ${zoom.index + 1}, ${words(zoom.box)}: go to its step`,
  }, String(zoom.index + 1));
  node.style.left = `${x1 * 100}%`;
  node.style.top = `${y1 * 100}%`;
  return node;
}

function consensusLayer(overlay, consensus) {
  const shapes = consensus.rectangles.map((box) => rectangle(box, { class: "agreed" }));
  return groupLayer(overlay, "consensus", "Consensus region", true, shapes);
}

function attemptLayers(overlay, found) {
  const others = found.attempts.filter((one) => one.trajectory_id !== found.shown_trajectory_id);
  const shapes = others.flatMap((one) => one.boxes.flatMap((box) => framed(box, { class: "other" })));
  if (!shapes.length) return [];
  const label = found.shown_trajectory_id ? "Zooms of the others" : "Zooms of all trajectories";
  return [groupLayer(overlay, "attempts", label, found.status === "abstained", shapes)];
}

/** The grey heatmap as colour over the image: the more of them looked there, the stronger. */
function heatLayer(stage, overlay, url) {
  const canvas = el("canvas", { class: "heat", role: "img", "data-layer": "heatmap",
    "aria-label": "Heatmap of how many agreeing trajectories looked at each place" });
  stage.insertBefore(canvas, overlay);
  const source = new Image();
  source.addEventListener("load", () => {
    canvas.width = source.naturalWidth;
    canvas.height = source.naturalHeight;
    const context = canvas.getContext("2d");
    context.drawImage(source, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < pixels.data.length; i += 4) {
      const level = pixels.data[i];
      pixels.data.set([...HEAT_RGB, Math.round(level * 0.65)], i);
    }
    context.putImageData(pixels, 0, 0);
    canvas.dataset.drawn = "true";
  });
  source.src = url;
  return { key: "heatmap", label: "Heatmap", isOn: false, show: (visible) => { canvas.hidden = !visible; } };
}

/** A checkbox per layer. */
export function layerSwitches(layers) {
  return layers.map((layer) => {
    const box = el("input", { type: "checkbox", id: `layer-${layer.key}`, checked: layer.isOn,
      onchange: (event) => layer.show(event.target.checked) });
    return el("label", { class: `switch ${layer.key}`, for: box.id }, box,
      el("span", { class: "swatch", "aria-hidden": "true" }), layer.label);
  });
}

/** Emphasises one zoom's box and marker, or none. */
export function emphasise(stage, index) {
  for (const node of stage.querySelectorAll("[data-zoom]")) {
    node.classList.toggle("strong", index !== null && node.dataset.zoom === String(index));
  }
}

/** Lets a reader draw one box on the image; `onBox` is told its original pixels, half-open. */
export function markBox(stage, image, onBox) {
  const overlay = stage.querySelector("svg");
  overlay.querySelector(".mark")?.remove();
  stage.classList.add("marking");
  stage.scrollIntoView({ block: "center" });
  const at = (event) => {
    const frame = overlay.getBoundingClientRect();
    const inside = (value, most) => Math.min(Math.max(value, 0), most);
    return [
      inside(((event.clientX - frame.left) / frame.width) * image.width_px, image.width_px),
      inside(((event.clientY - frame.top) / frame.height) * image.height_px, image.height_px),
    ];
  };
  const boxOf = ([ax, ay], [bx, by]) => ({
    x1: Math.floor(Math.min(ax, bx)), y1: Math.floor(Math.min(ay, by)),
    x2: Math.ceil(Math.max(ax, bx)), y2: Math.ceil(Math.max(ay, by)),
  });
  const drawing = new AbortController();
  const { signal } = drawing;
  let from = null;
  let drawn = null;
  stage.addEventListener("pointerdown", (event) => {
    event.preventDefault(); // a drag on an image would move the image
    stage.setPointerCapture(event.pointerId);
    from = at(event);
  }, { signal });
  stage.addEventListener("pointermove", (event) => {
    if (!from) return;
    drawn?.remove();
    drawn = rectangle(boxOf(from, at(event)), { class: "mark" });
    overlay.append(drawn);
  }, { signal });
  const end = () => {
    drawing.abort();
    stage.classList.remove("marking");
  };
  stage.addEventListener("pointerup", (event) => {
    if (!from) return;
    const box = boxOf(from, at(event));
    end();
    if (box.x2 > box.x1 && box.y2 > box.y1) onBox(box);
  }, { signal });
  stage.addEventListener("pointercancel", end, { signal });
}
