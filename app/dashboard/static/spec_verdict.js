// What the service says of a spec, beside the fields that it is about.
import { make } from "./actions.js";

// The problems of a refusal, each beside its field. What has no field that is seen stands in the list at the top.
export function showProblems(form, refusal) {
  for (const old of form.querySelectorAll(".problem")) old.remove();
  for (const field of form.querySelectorAll("[aria-invalid][data-at], [aria-invalid][data-kind]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-describedby");
  }
  const top = form.querySelector("[data-top]");
  const lines = [];
  const errors = refusal && !refusal.errors.length ? [{ pointer: "", message: refusal.message }] : refusal?.errors ?? [];
  for (const [number, error] of errors.entries()) {
    const places = placesOf(form, error.pointer);
    const seen = places.filter((place) => place.checkVisibility());
    for (const place of places) beside(place, error, `problem-${number}-${places.indexOf(place)}`);
    if (!seen.length) lines.push(make("li", {}, error.pointer ? make("code", {}, error.pointer) : "", ` ${error.message} `, places.length ? opener(places[0]) : ""));
  }
  top.hidden = !lines.length;
  top.replaceChildren(...(lines.length ? [make("ul", {}, ...lines)] : []));
}

// The fields of a pointer, else those of the nearest part above it.
function placesOf(form, pointer) {
  for (let at = pointer; at; at = at.slice(0, at.lastIndexOf("/"))) {
    const name = CSS.escape(at);
    const fields = [...form.querySelectorAll(`[data-at="${name}"]`)];
    const groups = at === pointer || !fields.length ? [...form.querySelectorAll(`[data-kind="${name}"], [data-group="${name}"]`)] : [];
    if (fields.length) return fields;
    if (groups.length) return groups;
  }
  return [];
}

function beside(place, error, id) {
  const message = make("p", { class: "problem", id }, error.message);
  if ("at" in place.dataset || "kind" in place.dataset) {
    place.setAttribute("aria-invalid", "true");
    place.setAttribute("aria-describedby", id);
    place.closest("label").append(message);
  } else place.append(message);
}

function opener(place) {
  const button = make("button", { type: "button", class: "small" }, "Show it");
  button.addEventListener("click", () => {
    place.closest("details")?.setAttribute("open", "");
    place.scrollIntoView({ block: "center" });
    (place.matches("input, select") ? place : place.querySelector("input, select, button"))?.focus();
  });
  return button;
}

export function problemsShown(refusal) {
  const count = refusal.errors.length;
  if (!count) return refusal.hint ? `${refusal.message} ${refusal.hint}` : refusal.message;
  return count === 1 ? "One thing is still wrong. It stands beside its field." : `${count} things are still wrong. They stand beside their fields.`;
}

const million = (count) => `${(count / 1e6).toFixed(1)} M`;
const megabytes = (count) => (count < 1e9 ? `${Math.round(count / 1e6)} MB` : `${(count / 1e9).toFixed(1)} GB`);

// The weights of a network in training stand four times in memory: weights, gradients and Adam's two moments.
export function showEstimates(box, answer) {
  if (!answer) { box.replaceChildren(); return; }
  const sizes = answer.estimates?.parameters;
  if (!sizes) {
    box.replaceChildren(make("p", { class: "dim" }, answer.estimates_reason ? `No estimates: ${answer.estimates_reason}.` : "There are no estimates."));
    return;
  }
  const { layers } = answer.estimates;
  const stages = answer.resolved_spec.stages;
  const epochs = stages.flatMap((stage) => stage.phases).reduce((sum, phase) => sum + phase.schedule.epochs, 0);
  const arms = answer.resolved_spec.control ? "twice: with the teacher, and without it for the control" : "once: there is no control";
  const lines = [
    ["Parameters", `${million(sizes.teacher)} → ${million(sizes.student)}: ${sizes.ratio} times fewer`],
    ["Layers", layers ? `${layers.teacher} → ${layers.student}` : "–"],
    ["On disk", `about ${megabytes(sizes.student * 4)} in fp32, ${megabytes(sizes.student)} in int8`],
    ["In memory", `about ${megabytes(sizes.student * 16 + sizes.teacher * 4)} while it is trained, and the texts in hand`],
    ["Training", `${epochs} ${epochs === 1 ? "epoch" : "epochs"}, ${arms}`],
  ];
  box.replaceChildren(make("dl", { class: "estimates" }, ...lines.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)])));
}
