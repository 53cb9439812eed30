// The list of jobs: what is chosen to be compared stays chosen while the list lives.

const form = document.querySelector("[data-chooser]");
const said = form.querySelector("[data-chosen]");
const chosen = new Set();

function show() {
  for (const box of form.querySelectorAll("input[name='ids']")) box.checked = chosen.has(box.value);
  if (!said) return;
  if (chosen.size === 0) said.textContent = "Choose two or more to see them side by side.";
  else said.textContent = chosen.size === 1 ? "One chosen; choose another." : `${chosen.size} chosen.`;
}

form.addEventListener("change", (event) => {
  if (event.target.name !== "ids") return;
  if (event.target.checked) chosen.add(event.target.value);
  else chosen.delete(event.target.value);
  show();
});

// What the browser has kept of the page before (back and forth) counts as chosen.
for (const box of form.querySelectorAll("input[name='ids']:checked")) chosen.add(box.value);
document.addEventListener("refreshed", show);
show();
