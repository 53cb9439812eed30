// Sending the files of a checkpoint, with progress.
import { complaint, make, Problem, toast } from "./actions.js";
import { refresh } from "./page.js";

const form = document.querySelector("[data-checkpoint]");

form?.addEventListener("submit", (event) => {
  event.preventDefault();
  const progress = form.querySelector("progress");
  const button = form.querySelector("button.primary");
  const problems = form.querySelector("[data-problems]");
  const data = new FormData(form);
  if (!data.get("name")) data.delete("name");
  const request = new XMLHttpRequest();
  request.open("POST", "/teachers");
  request.setRequestHeader("Accept", "application/json");
  request.upload.addEventListener("progress", (sent) => { if (sent.lengthComputable) progress.value = sent.loaded / sent.total; });
  request.addEventListener("loadend", () => { button.disabled = false; progress.hidden = true; });
  request.addEventListener("error", () => problems.replaceChildren(make("p", { class: "callout bad" }, "The connection broke. Is the service running?")));
  request.addEventListener("load", async () => {
    let document = {};
    try { document = JSON.parse(request.responseText); } catch { /* a proxy's page */ }
    if (request.status === 201) {
      toast(`${document.name} is there: ${document.reference}`);
      form.reset();
      await refresh();
      return;
    }
    problems.replaceChildren(complaint(new Problem(document, request.status)));
  });
  problems.replaceChildren();
  progress.hidden = false;
  progress.value = 0;
  button.disabled = true;
  request.send(data);
});
