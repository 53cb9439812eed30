// The same job in four languages. All are made from the one document.

export function asJson(spec) {
  return JSON.stringify(spec, null, 2);
}

export function asCurl(spec, base) {
  const body = asJson(spec).replaceAll("'", "'\\''");
  return `curl ${base}/jobs \\\n  -H "Authorization: Bearer $LIMBECK_API_KEY" \\\n  -H 'Content-Type: application/json' \\\n  -d '${body}'`;
}

export function asPython(spec, base) {
  return `from limbeck import Client\n\nspec = ${literal(spec, "")}\n\nwith Client(${JSON.stringify(base)}, "lk_…") as client:\n    job = client.jobs.wait(client.jobs.submit(spec))\n    print(job.status, job.student_id)`;
}

function literal(value, indent) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const deeper = `${indent}    `;
  const items = Array.isArray(value) ? value.map((item) => literal(item, deeper)) : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item, deeper)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const short = `${open}${items.join(", ")}${close}`;
  if (indent && short.length <= 88 - indent.length && !short.includes("\n")) return short;
  return items.length ? `${open}\n${items.map((item) => `${deeper}${item},\n`).join("")}${indent}${close}` : short;
}

export function asYaml(spec) {
  return `# limbeck run job.yaml\n${block(spec, "").join("\n")}`;
}

function block(value, indent) {
  if (Array.isArray(value)) {
    return value.flatMap((item) => {
      if (scalar(item)) return [`${indent}- ${flow(item)}`];
      const [first, ...rest] = block(item, `${indent}  `);
      return [`${indent}- ${first.trimStart()}`, ...rest];
    });
  }
  return Object.entries(value).flatMap(([name, item]) =>
    scalar(item) ? [`${indent}${flow(name)}: ${flow(item)}`] : [`${indent}${flow(name)}:`, ...block(item, `${indent}  `)]);
}

// What stands on one line: also lists of numbers, and what is empty.
function scalar(value) {
  if (typeof value !== "object" || value === null) return true;
  if (Object.keys(value).length === 0) return true;
  return Array.isArray(value) && value.every((item) => typeof item !== "object" || item === null || (Array.isArray(item) && scalar(item)));
}

function flow(value) {
  if (Array.isArray(value)) return `[${value.map(flow).join(", ")}]`;
  // YAML 1.1 reads 1e-7 as a text and 1.0e-7 as a number.
  if (typeof value === "number") return String(value).replace(/^(-?\d+)e/, "$1.0e");
  if (typeof value !== "string") return JSON.stringify(value);
  const words = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
  const plain = /^[A-Za-z_]([\w./@:-]*[\w/])?$/.test(value) && !words.includes(value.toLowerCase());
  return plain ? value : JSON.stringify(value);
}
