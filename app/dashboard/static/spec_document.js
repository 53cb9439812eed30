// A job spec as a document: reading and writing it by JSON pointers. Whatever else stands in it is left alone.

const ORDER = ["name", "task", "dataset", "teachers", "combine", "stages", "student", "method", "objectives", "phases", "schedule", "control", "evaluation", "export", "promote", "resources", "priority", "max_seconds", "seed", "webhook"];
// Objects that say nothing when they are empty.
const EMPTY_IS_NOTHING = new Set(["schedule", "evaluation", "export", "gate", "resources"]);

export function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function parts(pointer) {
  return pointer === "" ? [] : pointer.slice(1).split("/").map((part) => part.replaceAll("~1", "/").replaceAll("~0", "~"));
}

// "hinton" is short for {"preset": "hinton"}.
export function long(name, value) {
  return name === "method" && typeof value === "string" ? { preset: value } : value;
}

export function get(document, pointer) {
  let here = document;
  let above = "";
  for (const part of parts(pointer)) {
    here = long(above, here);
    if (typeof here !== "object" || here === null || !Object.hasOwn(here, part)) return undefined;
    here = here[part];
    above = part;
  }
  return here;
}

// A copy of the document with `value` at the pointer; undefined takes it away.
export function put(document, pointer, value) {
  const copy = structuredClone(document);
  const steps = parts(pointer);
  const last = steps.pop();
  const passed = [];
  let here = copy;
  for (const [at, step] of steps.entries()) {
    passed.push([here, step]);
    const inside = long(step, here[step]);
    if (typeof inside === "object" && inside !== null) here[step] = inside;
    else if (value === undefined) return copy;
    else here[step] = /^\d+$/.test(steps[at + 1] ?? last) ? [] : {};
    here = here[step];
  }
  if (value !== undefined) here[last] = value;
  else if (Array.isArray(here)) here.splice(Number(last), 1);
  else delete here[last];
  for (const [parent, step] of passed.reverse()) tidy(parent, step);
  return ordered(copy);
}

function tidy(parent, step) {
  const value = parent[step];
  if (!isObject(value)) return;
  const names = Object.keys(value);
  if (names.length === 0 && EMPTY_IS_NOTHING.has(step)) delete parent[step];
  else if (step === "method" && names.length === 1 && names[0] === "preset") parent[step] = value.preset;
}

function ordered(document) {
  const known = ORDER.filter((name) => Object.hasOwn(document, name));
  const others = Object.keys(document).filter((name) => !ORDER.includes(name));
  return Object.fromEntries([...known, ...others].map((name) => [name, document[name]]));
}

// The short form of one stage as a list of stages with one.
export function asStages(document) {
  const { student, method, objectives, phases, schedule, ...rest } = document;
  const stage = { student: student ?? { kind: "from_teacher" }, method, objectives, phases, schedule };
  return ordered({ ...rest, stages: [JSON.parse(JSON.stringify(stage))] });
}

// With the phases that the method stands for, written out.
export function asPhases(document, phases) {
  const { method, objectives, schedule, ...rest } = document;
  return ordered({ ...rest, phases });
}

// A value without what is the default anyway, as `schema` has it.
export function withoutDefaults(value, schema, follow) {
  if (Array.isArray(value)) return value.map((item) => withoutDefaults(item, follow(schema.items ?? {}, item), follow));
  if (!isObject(value) || !schema.properties) return value;
  const kept = {};
  for (const [name, item] of Object.entries(value)) {
    const part = schema.properties[name] ?? {};
    if ("default" in part && JSON.stringify(part.default) === JSON.stringify(item)) continue;
    const inner = withoutDefaults(item, follow(part, item), follow);
    if (!(EMPTY_IS_NOTHING.has(name) && isObject(inner) && Object.keys(inner).length === 0)) kept[name] = inner;
  }
  return kept;
}
