
"use strict";
// Draws the data of `page_data`. All text goes in as text: nothing of it is ever read as HTML.
// want: called where the slider stands at a stop of which there is nothing yet, for `merge` to bring.
function tokensieveView(root, data, want) {
  const state = { step: data.start, view: 0, heat: false, at: null };
  const cards = [];

  function make(tag, name, text) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function bits(text, length) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const row = Math.ceil(length / 8), fate = new Uint8Array(length);
    for (let i = 0; i < length; i++) {
      const on = (from) => bytes[from + (i >> 3)] >> (i & 7) & 1;
      fate[i] = on(0) ? 2 : bytes.length > row && on(row) ? 1 : 0;
    }
    return fate;
  }

  const first = [];  // of each picture, the number of its first crop among all
  let crops = 0;
  for (const picture of data.pictures) { first.push(crops); crops += picture.crops.length; }
  const tokens = (crop) => crop.grid[0] * crop.grid[1];

  const stepOf = (method) => method.steps[Math.min(state.step, method.steps.length - 1)];
  const asked = (i) => data.methods.every((method) => {
    const step = method.steps[Math.min(i, method.steps.length - 1)];
    return step && !step.pending;
  });

  function unpack(step) {
    if (!step || !step.fate || step.read) return;
    step.read = [];
    data.pictures.forEach((picture, p) => picture.crops.forEach((crop, c) =>
      step.read.push(bits(step.fate[first[p] + c] || "", tokens(crop)))));
  }

  for (const method of data.methods) {
    method.steps.forEach(unpack);
    if (!method.scores) continue;
    // ranks within a picture: 1 is the highest score
    method.ranks = data.pictures.map((picture, p) => {
      const all = [];
      picture.crops.forEach((_, c) => (method.scores[first[p] + c] || []).forEach((s) => {
        if (s !== null) all.push(s);
      }));
      return all.sort((a, b) => b - a);
    });
  }

  function rank(sorted, score) {
    let low = 0, high = sorted.length;
    while (low < high) { const mid = low + high >> 1; if (sorted[mid] > score) low = mid + 1; else high = mid; }
    return low + 1;
  }

  // -- one picture under one method

  function draw(card, p) {
    const picture = data.pictures[p], canvas = card.canvases[p];
    if (!canvas) return;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, width, height);
    const step = stepOf(card.method) || {};
    const x = (value) => Math.round(value / picture.size[0] * width);
    const y = (value) => Math.round(value / picture.size[1] * height);
    const view = picture.views[Math.min(state.view, picture.views.length - 1)];
    hatch(pen, width, height, view.crops.map((c) => picture.crops[c].box), x, y);
    for (const c of view.crops) {
      const { box, grid } = picture.crops[c], fate = step.read && step.read[first[p] + c];
      const scores = card.method.scores && card.method.scores[first[p] + c];
      const wide = (box[2] - box[0]) / grid[1], tall = (box[3] - box[1]) / grid[0];
      for (let r = 0; r < grid[0]; r++) for (let k = 0; k < grid[1]; k++) {
        const i = r * grid[1] + k;
        const left = x(box[0] + k * wide), top = y(box[1] + r * tall);
        const right = x(box[0] + (k + 1) * wide), bottom = y(box[1] + (r + 1) * tall);
        if (state.heat && scores && scores[i] !== null) {
          pen.fillStyle = heat(1 - (rank(card.method.ranks[p], scores[i]) - 1) / card.method.ranks[p].length);
          pen.fillRect(left, top, right - left, bottom - top);
        } else if (fate && fate[i] < 2) {
          pen.fillStyle = fate[i] ? "rgba(8,10,14,.45)" : "rgba(8,10,14,.8)";
          pen.fillRect(left, top, right - left, bottom - top);
        }
      }
      const at = state.at;
      if (at && at.p === p && at.c === c) {  // the token pointed at, above all others
        const left = x(box[0] + at.k * wide), top = y(box[1] + at.r * tall);
        const right = x(box[0] + (at.k + 1) * wide), bottom = y(box[1] + (at.r + 1) * tall);
        for (const [colour, line] of [["#fff", 3], ["#00796b", 1.5]]) {
          pen.lineWidth = line * ratio; pen.strokeStyle = colour;
          pen.strokeRect(left, top, right - left, bottom - top);
        }
      }
    }
  }

  function heat(share) {  // of tokens that score lower; blue to yellow, also told apart in grey
    const stops = [[38, 24, 84], [33, 104, 140], [53, 172, 128], [250, 224, 60]];
    const at = Math.max(0, Math.min(.9999, share)) * 3, low = Math.floor(at), part = at - low;
    const mix = stops[low].map((value, i) => Math.round(value + (stops[low + 1][i] - value) * part));
    return `rgba(${mix.join(",")},.72)`;
  }

  function hatch(pen, width, height, boxes, x, y) {  // what the model never saw
    const whole = boxes.some((b) => x(b[0]) <= 0 && y(b[1]) <= 0 && x(b[2]) >= width && y(b[3]) >= height);
    if (whole) return;
    pen.fillStyle = "rgba(70,74,92,.92)"; pen.fillRect(0, 0, width, height);
    pen.strokeStyle = "rgba(255,255,255,.16)"; pen.lineWidth = 3;
    for (let s = -height; s < width; s += 12) {
      pen.beginPath(); pen.moveTo(s, height); pen.lineTo(s + height, 0); pen.stroke();
    }
    for (const b of boxes) pen.clearRect(x(b[0]), y(b[1]), x(b[2]) - x(b[0]), y(b[3]) - y(b[1]));
  }

  // -- the token under the mouse, in all panels at once

  function find(p, event, canvas) {
    const picture = data.pictures[p], shape = canvas.getBoundingClientRect();
    const px = (event.clientX - shape.left) / shape.width * picture.size[0];
    const py = (event.clientY - shape.top) / shape.height * picture.size[1];
    for (const c of picture.views[Math.min(state.view, picture.views.length - 1)].crops) {
      const { box, grid } = picture.crops[c];
      const k = Math.floor((px - box[0]) / (box[2] - box[0]) * grid[1]);
      const r = Math.floor((py - box[1]) / (box[3] - box[1]) * grid[0]);
      if (k >= 0 && k < grid[1] && r >= 0 && r < grid[0]) return { p, c, i: r * grid[1] + k, r, k };
    }
    return null;
  }

  function point(found) {
    const was = state.at;
    if (was && found && was.p === found.p && was.c === found.c && was.i === found.i) return;
    state.at = found;
    for (const card of cards) {
      for (const p of new Set([was, found].filter(Boolean).map((at) => at.p))) draw(card, p);
      tell(card);
    }
  }

  function tell(card) {
    const line = card.read;
    if (!line) return;
    line.replaceChildren();
    const at = state.at, method = card.method;
    if (!at) { line.append("Point at the picture: what became of a token, and its score."); return; }
    const step = stepOf(method);
    if (!step || !step.read) return;
    const n = first[at.p] + at.c, fate = step.read[n][at.i];
    line.append(make("i", "", ["dropped", "merged into another", "kept"][fate]));
    line.append(` · row ${at.r + 1}, column ${at.k + 1}`);
    const score = method.scores && method.scores[n] && method.scores[n][at.i];
    if (score !== null && score !== undefined && score !== false) {
      const sorted = method.ranks[at.p];
      line.append(` · score ${score}, rank ${rank(sorted, score)} of ${sorted.length}`);
    }
    if (data.keeps.length > 1 && !method.baseline) {
      let from = -1;
      for (let s = method.steps.length - 1; s >= 0; s--) {
        if (!method.steps[s]) continue;  // not asked yet
        const there = method.steps[s].read;
        if (!there || there[n][at.i] < 2) break;
        from = s;
      }
      line.append(from < 0 ? " · dropped at every keep" : ` · stays from ${data.keeps[from]} on`);
    }
  }

  // -- answers and costs

  function fill(card) {
    const { body, tag, method } = card;
    const step = stepOf(method);
    card.box.classList.toggle("waits", !step);
    card.box.classList.toggle("thinks", Boolean(step && step.pending));
    if (!step || step.pending) return;  // what was there stays, pale, until the answer comes
    body.replaceChildren();
    tag.className = "tag"; tag.textContent = "";
    if (step.refused) { body.append(make("div", "note bad", step.refused)); tag.textContent = "refused"; return; }
    const all = data.methods.find((one) => one.name === "full");
    const whole = all && all !== method && stepOf(all);
    if (whole && !whole.refused && !whole.pending) {
      const same = whole.answer === step.answer;
      tag.textContent = same ? "as with all tokens" : "another answer";
      tag.classList.add(same ? "same" : "other");
    }
    const long = step.answer.length > 60 ? " long" : "";
    body.append(make("div", step.answer ? `answer${long}` : "answer nothing", step.answer || "(nothing)"));
    if (step.unsure) body.append(make("div", "note",
      `Not sure: a token of its answer has a probability of ${step.sure.toFixed(2)}.`));
    const share = make("div", "share"), part = make("span");
    part.style.width = `${step.of ? 100 * step.kept / step.of : 0}%`;
    share.append(part); body.append(share);
    const list = make("dl");
    list.append(make("dt", "", "visual tokens"), make("dd", "", `${step.kept} of ${step.of}`));
    for (const [name, value] of Object.entries(step.costs)) list.append(make("dt", "", name), make("dd", "", value));
    body.append(list);
    if (method.paper) body.append(make("div", "paper", method.paper));
  }

  function show() {
    if (want && !asked(state.step)) want();
    for (const card of cards) { fill(card); tell(card); if (stepOf(card.method)) data.pictures.forEach((_, p) => draw(card, p)); }
  }

  function merge(stop, steps) {  // the answers of another stop
    steps.forEach((step, m) => { if (step) { data.methods[m].steps[stop] = step; unpack(step); } });
    if (stop === state.step) show();
  }

  function outline(methods) {  // by method and stop, what is kept; answers come later
    methods.forEach((stops, m) => (stops || []).forEach((fate, i) => {
      if (!fate || data.methods[m].steps[i]) return;
      const step = data.methods[m].steps[i] = { pending: true, fate };
      unpack(step);
    }));
    show();
  }

  function missing() {  // the stop nearest to the slider of which there is nothing, or -1
    const all = data.keeps.map((_, i) => i).filter((i) => !asked(i));
    return all.sort((a, b) => Math.abs(a - state.step) - Math.abs(b - state.step))[0] ?? -1;
  }

  function segments(names, chosen, pick) {
    const group = make("div", "seg"), buttons = [];
    group.setAttribute("role", "group");
    names.forEach((name, i) => {
      const button = make("button", "", name);
      button.type = "button";
      button.setAttribute("aria-pressed", String(i === chosen));
      button.addEventListener("click", () => {
        buttons.forEach((one, j) => one.setAttribute("aria-pressed", String(i === j)));
        pick(i); show();
      });
      buttons.push(button); group.append(button);
    });
    return group;
  }

  root.replaceChildren();
  root.append(make("h1", "", data.question));
  root.append(make("p", "sub", `${data.model}${data.keeps.length > 1 ? "" : `, keep ${data.keeps[0]}`}`));
  const bar = make("div", "bar");
  if (data.keeps.length > 1) {
    const slide = make("label", "slide"), range = make("input"), out = make("output", "", data.keeps[state.step]);
    Object.assign(range, { type: "range", min: 0, max: data.keeps.length - 1, step: 1 });
    range.value = state.step;
    range.setAttribute("aria-label", "keep");
    range.setAttribute("aria-valuetext", data.keeps[state.step]);
    range.addEventListener("input", () => {
      state.step = Number(range.value);
      out.textContent = data.keeps[state.step];
      range.setAttribute("aria-valuetext", data.keeps[state.step]);
      show();
    });
    slide.append(make("span", "", "keep"), range, out);
    bar.append(slide);
  }
  const views = Math.max(...data.pictures.map((picture) => picture.views.length));
  const most = data.pictures.find((picture) => picture.views.length === views);
  if (views > 1) bar.append(segments(most.views.map((view) => view.name), 0, (i) => { state.view = i; }));
  if (data.methods.some((method) => method.scores))
    bar.append(segments(["kept", "scores"], 0, (i) => { state.heat = i === 1; }));
  if (bar.childElementCount) root.append(bar);
  if (data.noOverlay) root.append(make("p", "note", data.noOverlay));

  const grid = make("div", data.methods.length > 1 ? "grid many" : "grid");
  root.append(grid);
  for (const method of data.methods) {
    const card = { method, canvases: [], tag: make("span", "tag"), body: make("div", "body") };
    const box = card.box = make("section", "card"), head = make("div", "head");
    head.append(make("b", "", method.title), card.tag);
    box.append(head);
    const shots = make("div", data.pictures.length > 3 ? "shots film" : "shots");
    box.append(shots);
    data.pictures.forEach((picture, p) => {
      const shot = make("div", "shot"), img = make("img", Math.max(...picture.size) < 512 ? "crisp" : "");
      img.src = picture.src;
      img.alt = picture.name ? `frame at ${picture.name}` : `picture ${p + 1}`;
      img.width = picture.size[0]; img.height = picture.size[1];
      img.style.height = "auto";
      shot.append(img);
      if (picture.crops.length) {
        const canvas = make("canvas");
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", `what ${method.title} kept of picture ${p + 1}`);
        for (const kind of ["pointermove", "pointerdown"])
          canvas.addEventListener(kind, (event) => point(find(p, event, canvas)));
        canvas.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") point(null); });
        card.canvases[p] = canvas;
        shot.append(canvas);
      }
      if (picture.name) shot.append(make("span", "time", picture.name));
      shots.append(shot);
    });
    if (card.canvases.length) { card.read = make("div", "read"); box.append(card.read); }
    box.append(card.body);
    grid.append(box);
    cards.push(card);
  }
  root.append(make("p", "foot", "Dark: dropped, the LLM never reads it. Half dark: merged into a kept token. " +
    "FLOPs are of the LLM and a trained selector; times are of the machine that answered, one run each."));
  if (window.ResizeObserver) new ResizeObserver(show).observe(grid);
  show();
  return { data, merge, outline, missing, lacks: () => !asked(state.step), at: () => state.step };
}
