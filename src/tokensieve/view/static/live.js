// The page of answers, live: stops of the slider are asked for as they are needed.
const root = element.querySelector(".ts");
const QUIET = 400, OUTLINE = 1000;  // milliseconds; no stop
let view = null, asking = -1, id = "";

function make(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function request(stop) {
  if (asking >= 0) return;  // one at a time: the answer asks on
  asking = stop;
  trigger("select", { stop, id });
}

// The stop that the slider stands at is asked at once, when it rests there; the others ahead, where
// the model is quick, while nobody moves it.
let resting = 0, ahead = 0, moved = 0;
function want() { clearTimeout(resting); resting = setTimeout(next, 30); }
root.addEventListener("input", () => { moved = performance.now(); });

function next() {
  clearTimeout(ahead);
  if (!view || asking >= 0) return;
  if (view.lacks()) { request(view.at()); return; }
  const stop = view.data.ahead ? view.missing() : -1, quiet = performance.now() - moved;
  if (stop < 0) return;
  if (quiet < QUIET) ahead = setTimeout(next, QUIET - quiet);
  else request(stop);
}

function save(kind, text) {
  const button = make("button", "", text);
  button.type = "button";
  button.dataset.kind = kind;
  button.addEventListener("click", () => { button.disabled = true; trigger("download", { kind, stop: view.at(), id }); });
  return button;
}

function keepFile(file) {
  const bytes = Uint8Array.from(atob(file.data), (c) => c.charCodeAt(0));
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: file.type }));
  link.download = file.name;
  document.body.append(link); link.click(); link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function failed(text) {
  const line = make("p", "error", text);
  line.setAttribute("role", "alert");
  root.prepend(line);
}

function fresh() {
  if (!root.isConnected) element.querySelector(".ts").replaceWith(root);
  root.querySelectorAll(":scope > .error").forEach((one) => one.remove());
}

watch("value", () => {  // a question's page, or why there is none
  const told = props.value || {};
  fresh();
  if (told.error) failed(told.error);
  if (!told.page) return;
  id = told.id; asking = -1; view = null; moved = performance.now();
  const inner = make("div");
  root.replaceChildren(inner);
  view = globalThis.tokensieveView(inner, told.page, want);
  const saves = make("div", "saves");
  saves.append(save("sheet", "Save the sheet (PNG)"), save("page", "Save the page (HTML)"));
  root.append(saves);
  asking = OUTLINE;
  trigger("load", { id });
});
watch("outline", () => {  // what is kept at every stop, before its answers
  const told = props.outline || {};
  if (told.id !== id || !view) return;
  asking = -1;
  if (told.methods) view.outline(told.methods);
  setTimeout(next, 0);
});
watch("more", () => {  // another stop of its slider
  const told = props.more || {};
  fresh();
  if (told.id !== id || !view) return;  // of a question before this one
  asking = -1;
  if (told.error) { failed(told.error); return; }
  view.merge(told.stop, told.steps);
  if (told.stop === view.at()) moved = performance.now();  // who has read it may move on at once
  setTimeout(next, 0);
});
watch("saved", () => {
  const told = props.saved || {};
  fresh();
  for (const button of root.querySelectorAll(".saves button")) button.disabled = false;
  if (told.id !== id) return;
  if (told.error) failed(told.error); else keepFile(told);
});
