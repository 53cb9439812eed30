// Fields for any part of a job spec, made from its JSON Schema. A field knows its place by `data-at`, a JSON pointer.
import { make } from "./actions.js";
import { isObject, long } from "./spec_document.js";

const COLUMNS = new Set(["text", "text_pair", "label", "target", "tokens", "tags", "question", "context", "answers", "split", "logits", "probabilities"]);
const FORMS = { SplitByShare: "by share: drawn from one dataset", SplitByColumn: "by a column that says train, validation or test", SplitByDataset: "three datasets" };
const NAMES = { ema: "EMA", url: "URL", gpus: "GPUs", id: "Dataset" };

// --- what a field holds -----------------------------------------------------------------------------------------------

// undefined: it is not said, and the default holds.
export function read(input) {
  const type = input.dataset.type ?? "string";
  if (type === "boolean") return String(input.checked) === input.dataset.default ? undefined : input.checked;
  const text = type === "string" ? input.value : input.value.trim();
  if (text === "") return "required" in input.dataset ? "" : undefined;
  if (type === "string") return text;
  if (type === "json") {
    try { return JSON.parse(text); } catch { return text; }
  }
  const number = Number(text);
  if (!Number.isFinite(number)) return text;
  return type === "percent" ? Number((number / 100).toPrecision(12)) : number;
}

export function show(input, value) {
  const type = input.dataset.type ?? "string";
  if (type === "boolean") {
    input.checked = value === undefined || value === null ? input.dataset.default === "true" : value === true;
    return;
  }
  let text = value === undefined || value === null ? "" : typeof value === "string" ? value : JSON.stringify(value);
  if (type === "percent" && typeof value === "number") text = String(Number((value * 100).toPrecision(12)));
  if (input.tagName === "SELECT" && ![...input.options].some((option) => option.value === text)) {
    input.append(make("option", { value: text }, text === "" ? "choose…" : text));
  }
  // While somebody types, 0.50 is not made into 0.5.
  if (document.activeElement !== input || read(input) !== value) input.value = text;
}

// --- schemas ----------------------------------------------------------------------------------------------------------

// The schema itself: references followed, null left out. Of a union the member that `value` is of.
export function follow(root, schema, value) {
  let here = schema;
  for (;;) {
    if (here.$ref) here = root.$defs[here.$ref.split("/").pop()];
    else if (here.anyOf?.filter((one) => one.type !== "null").length === 1) here = here.anyOf.find((one) => one.type !== "null");
    else if (here.discriminator && isObject(value)) {
      const target = here.discriminator.mapping[value[here.discriminator.propertyName]];
      if (!target) return here;
      here = { $ref: target };
    } else return here;
  }
}

function isNullable(schema) {
  return schema.anyOf?.some((one) => one.type === "null") ?? false;
}

// The least that can be said of it.
export function least(root, schema) {
  const here = follow(root, schema);
  if ("const" in here) return here.const;
  if (here.oneOf) return least(root, here.oneOf[0]);
  if (here.type === "array") return here.minItems ? [least(root, here.items)] : [];
  if (here.properties) return Object.fromEntries((here.required ?? []).map((name) => [name, least(root, here.properties[name])]));
  return "";
}

function formOf(root, schema, value) {
  const forms = schema.oneOf.map((one) => follow(root, one)).sort((one, other) => other.required.length - one.required.length);
  return forms.find((form) => form.required.every((name) => Object.hasOwn(value ?? {}, name))) ?? forms.at(-1);
}

// --- fields -----------------------------------------------------------------------------------------------------------

function label(name) {
  return NAMES[name] ?? (name.charAt(0).toUpperCase() + name.slice(1)).replaceAll("_", " ");
}

function help(schema) {
  const text = (schema.description ?? "").replaceAll("`", "").replaceAll("\n", " ").replaceAll(/\bnull\b/gi, "empty");
  return text ? make("small", {}, text) : null;
}

// `form` is {root, get, restructure}. The nodes for the value at `pointer`; `outer` is its place in the schema.
export function fields(form, outer, pointer, name, required = false) {
  const value = long(name, form.get(pointer));
  const schema = follow(form.root, outer, value);
  if ("const" in schema) return [];
  const whole = { ...schema, description: outer.description ?? schema.description };
  if (schema.type === "array" && isObject(follow(form.root, schema.items ?? {})) && hasFields(form.root, schema.items)) return [list(form, outer, schema, pointer, name, required)];
  if (schema.properties || schema.discriminator || (schema.oneOf && !schema.anyOf)) return [group(form, outer, whole, pointer, name, required)];
  return [field(form, outer, whole, pointer, name, required)];
}

function hasFields(root, schema) {
  const here = follow(root, schema);
  return Boolean(here.properties || here.discriminator);
}

function field(form, outer, schema, pointer, name, required) {
  const common = { "data-at": pointer, "data-required": required };
  const missing = schema.default ?? outer.default;
  if (schema.type === "boolean") {
    const input = make("input", { ...common, type: "checkbox", "data-type": "boolean", "data-default": String(missing ?? false) });
    show(input, form.get(pointer));
    return make("label", { class: "choice" }, input, make("span", {}, label(name), help(schema)));
  }
  let input;
  if (schema.enum) {
    input = make("select", { ...common });
    if (!required) input.append(make("option", { value: "" }, missing ? `${missing} (default)` : "not said"));
    for (const one of schema.enum) if (required || one !== missing) input.append(make("option", { value: one }, one));
  } else {
    const types = [schema.type, ...(schema.anyOf ?? []).map((one) => one.type)].filter(Boolean);
    const isNumber = types.every((type) => type === "number" || type === "integer") && types.length > 0;
    const isText = types.length === 1 && types[0] === "string";
    const lists = name === "model" ? "references" : name === "deployment" ? "deployments" : COLUMNS.has(name) ? "columns" : null;
    input = make("input", { ...common, "data-type": isNumber ? "number" : isText ? "string" : "json", inputmode: isNumber ? "decimal" : null, placeholder: missing === undefined || missing === null || missing === "" ? null : JSON.stringify(missing), list: lists, autocomplete: "off", spellcheck: "false" });
  }
  show(input, form.get(pointer));
  return make("label", { class: "field" }, make("span", {}, label(name)), input, help(schema));
}

function group(form, outer, schema, pointer, name, required) {
  const value = long(name, form.get(pointer));
  const nothing = isNullable(outer) && name !== "schedule";
  if (value === undefined && nothing) return absent(form, outer, schema, pointer, name);
  const box = make("fieldset", { "data-group": pointer }, make("legend", {}, label(name)));
  if (nothing && !required) box.append(make("div", { class: "row" }, button(`Remove ${name.replaceAll("_", " ")}`, () => form.restructure(pointer, undefined))));
  const whole = follow(form.root, outer);
  let inner = schema;
  if (whole.discriminator) box.append(kinds(form, whole, pointer, value));
  else if (whole.oneOf) {
    inner = formOf(form.root, whole, value);
    box.append(forms(form, whole, inner, pointer, value));
  }
  if (inner.description) box.append(make("p", { class: "dim" }, inner.description.replaceAll("`", "").split("\n\n")[0]));
  const grid = make("div", { class: "grid" });
  const below = [];
  for (const [part, its] of Object.entries(inner.properties ?? {})) {
    for (const node of fields(form, its, `${pointer}/${part}`, part, (inner.required ?? []).includes(part))) {
      if (node.tagName === "LABEL") grid.append(node);
      else below.push(node);
    }
  }
  box.append(grid, ...below);
  return box;
}

function absent(form, outer, schema, pointer, name) {
  const add = button(`Add ${name.replaceAll("_", " ")}`, () => form.restructure(pointer, least(form.root, outer)));
  return make("div", { class: "absent row", "data-group": pointer }, add, help(schema));
}

// Of what kind it is. What the new kind has too is kept.
function kinds(form, schema, pointer, value) {
  const tag = schema.discriminator.propertyName;
  const select = make("select", { "data-kind": pointer });
  for (const one of schema.oneOf.map((its) => follow(form.root, its).properties[tag].const)) select.append(make("option", { value: one }, one));
  show(select, value?.[tag]);
  select.addEventListener("change", () => {
    const target = follow(form.root, { $ref: schema.discriminator.mapping[select.value] });
    form.restructure(pointer, { ...least(form.root, target), ...common(value, target), [tag]: select.value });
  });
  return make("label", { class: "field" }, make("span", {}, label(tag)), select);
}

function forms(form, schema, chosen, pointer, value) {
  const select = make("select", { "data-kind": pointer });
  const all = schema.oneOf.map((one) => follow(form.root, one));
  for (const one of all) select.append(make("option", { value: one.title }, FORMS[one.title] ?? one.title));
  select.value = chosen.title;
  select.addEventListener("change", () => {
    const target = all.find((one) => one.title === select.value);
    const texts = Object.fromEntries(Object.entries(common(value, target)).filter(([name, item]) => !(target.required.includes(name) && typeof item !== "string")));
    const renamed = target.required.includes("train") ? { train: value?.id } : { id: value?.id ?? value?.train };
    form.restructure(pointer, { ...least(form.root, target), ...texts, ...renamed });
  });
  return make("label", { class: "field" }, make("span", {}, "How"), select);
}

function common(value, schema) {
  return Object.fromEntries(Object.entries(isObject(value) ? value : {}).filter(([name]) => name in schema.properties));
}

function list(form, outer, schema, pointer, name, required) {
  const value = form.get(pointer);
  if (value === undefined && isNullable(outer)) return absent(form, outer, schema, pointer, name);
  const one = name.endsWith("s") ? name.slice(0, -1) : name;
  const items = Array.isArray(value) ? value : [];
  const box = make("fieldset", { "data-group": pointer }, make("legend", {}, label(name)));
  for (const [at] of items.entries()) {
    const inside = fields(form, schema.items, `${pointer}/${at}`, `${one} ${at + 1}`, true);
    const remove = button(`Remove ${one} ${at + 1}`, () => form.restructure(items.length > 1 || required ? `${pointer}/${at}` : pointer, undefined));
    box.append(...inside, make("div", { class: "row" }, remove));
  }
  box.append(make("div", { class: "row" }, button(`Add ${/^[aeiou]/.test(one) ? "an" : "a"} ${one}`, () => form.restructure(`${pointer}/${items.length}`, least(form.root, schema.items)))));
  return box;
}

function button(text, act) {
  const element = make("button", { type: "button", class: "small" }, text);
  element.addEventListener("click", act);
  return element;
}
