// Making keys, webhooks and secrets. What is shown once is shown here, with a button that copies it.
import { call, complaint, make, place, Problem } from "./actions.js";
import { refresh } from "./page.js";

function handle(selector, send) {
  const form = document.querySelector(selector);
  form?.addEventListener("submit", async (event) => {
    event.preventDefault();
    for (const old of form.querySelectorAll(".problem")) old.remove();
    form.querySelector("[data-problems]").replaceChildren();
    const button = form.querySelector("button.primary");
    button.disabled = true;
    try {
      const shown = await send(form);
      form.querySelector("[data-made]")?.replaceChildren(...(shown ? [once(shown)] : []));
      form.reset();
      await refresh();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      complain(form, problem);
    } finally {
      button.disabled = false;
    }
  });
}

function once({ what, secret }) {
  return make("div", { class: "callout good" },
    make("p", {}, `${what} Copy it now: it is not shown again.`),
    make("div", { class: "row" }, make("code", {}, secret), make("button", { type: "button", class: "small", "data-copy": secret }, "Copy")));
}

function complain(form, problem) {
  const rest = place(form, problem);
  if (!problem.errors.length || rest.length) form.querySelector("[data-problems]").replaceChildren(complaint(problem, rest));
}

function chosen(form, name) {
  return [...form.querySelectorAll(`[name="${name}"]:checked`)].map((box) => box.value);
}

handle("[data-new-key]", async (form) => {
  const { name, owner, expires_at: expires } = form.elements;
  const body = { name: name.value, scopes: chosen(form, "scopes") };
  if (owner.value) body.owner = owner.value;
  if (expires.value) body.expires_at = new Date(expires.value).toISOString();
  const made = await call("POST", "/keys", body);
  return { what: `The key ${made.name || made.public_id}.`, secret: made.key };
});

handle("[data-new-webhook]", async (form) => {
  const made = await call("POST", "/webhooks", { url: form.elements.url.value, events: chosen(form, "events") });
  return made.signing_secret ? { what: "The secret that signs its messages.", secret: made.signing_secret } : null;
});

handle("[data-new-secret]", async (form) => {
  await call("PUT", `/secrets/${encodeURIComponent(form.elements.name.value)}`, { value: form.elements.value.value });
  return null;
});
