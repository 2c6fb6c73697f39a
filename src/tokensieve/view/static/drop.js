// Pictures go to the server as bytes in the event; no file is kept there. Text goes in as text.
const root = element.querySelector(".ts");
const most = props.most;
let chosen = "";

function make(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

const box = make("div", "drop"), label = make("label", "", "Choose pictures");
const line = make("div", "", "Drop pictures here, paste one, or ");
const file = make("input");
Object.assign(file, { type: "file", multiple: true, accept: most.accept });
label.append(file);
line.append(label);
const error = make("div", "error"), mine = make("div", "row mine"), gallery = make("div", "row");
error.setAttribute("role", "alert");
box.append(line, error, mine, gallery);
root.replaceChildren(box);

async function send(files) {
  error.textContent = "";
  const list = [...files].slice(0, most.pictures + 1);
  if (!list.length) return;
  const size = list.reduce((sum, one) => sum + one.size, 0);
  if (size > most.bytes) { error.textContent = `Expected at most ${most.bytes >> 20} MB. Got ${size >> 20} MB.`; return; }
  const told = [];
  for (const one of list) {
    const url = await new Promise((done, failed) => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result);
      reader.onerror = failed;
      reader.readAsDataURL(one);
    });
    told.push({ name: one.name, data: url.slice(url.indexOf(",") + 1) });
  }
  chosen = "";
  mark();
  trigger("upload", { files: told });
}

function mark() {
  for (const button of gallery.children) button.setAttribute("aria-pressed", String(button.title === chosen));
}

for (const one of props.gallery) {
  const button = make("button"), img = make("img");
  img.src = one.src; img.alt = "";
  button.type = "button"; button.title = one.name;
  button.append(img, document.createTextNode(one.name));
  // marked when the server has it: a question asked before that is about the one before
  button.addEventListener("click", () => { error.textContent = ""; trigger("select", { example: one.name }); });
  gallery.append(button);
}
file.addEventListener("change", () => { send(file.files); file.value = ""; });
box.addEventListener("dragover", (event) => { event.preventDefault(); box.classList.add("over"); });
box.addEventListener("dragleave", () => box.classList.remove("over"));
box.addEventListener("drop", (event) => { event.preventDefault(); box.classList.remove("over"); send(event.dataTransfer.files); });
document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) send(event.clipboardData.files); });

function shown() {
  const told = props.value || {};
  error.textContent = told.error || "";
  chosen = told.example || "";
  mark();
  mine.replaceChildren(...(told.mine || []).map((one) => {
    const img = make("img"); img.src = one.src; img.alt = "your picture"; return img;
  }));
  if (!root.isConnected) element.querySelector(".ts").replaceWith(root);
}
watch("value", shown);
shown();
