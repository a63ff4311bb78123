"use strict";
// One request brings everything: parts of a kind ("J": JSON, "P": source and JPEG), a length, and so many bytes. The
// server keeps only the newest of what this page hasn't read yet, so a slow connection sees fewer pictures, not old ones.

const WINDOW_S = 60, STEP_S = 0.25, COLOURS = 12, EVENTS = 50, STALE_S = 3;
const $ = (id) => document.getElementById(id);
const cameras = new Map(); // by the source's name
const colours = new Map(); // of labels, in the order in which they were first seen
let held = false, alone = null, palette = null;

const text = (tag, content, name = "") => {
  const node = document.createElement(tag);
  node.textContent = content;
  if (name) node.className = name;
  return node;
};
const percent = (value) => value == null ? "" : `${(100 * value).toFixed(value > 0.995 || value < 0.0995 ? 1 : 0)} %`;
const number = (value, digits = 0) => value == null ? "–" : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const span = (seconds) => {
  const [d, h, m, s] = [seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60].map(Math.floor);
  return d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : m ? `${m} min ${s} s` : `${s} s`;
};
const colour = (label) => {
  if (!colours.has(label)) colours.set(label, colours.size % COLOURS);
  palette ??= Array.from({ length: COLOURS }, (_, index) => getComputedStyle(document.documentElement).getPropertyValue(`--s${index}`));
  return palette[colours.get(label)];
};

// --- one camera

class Camera {
  constructor(name) {
    this.name = name;
    this.root = $("camera").content.firstElementChild.cloneNode(true);
    this.part = (query) => this.root.querySelector(query);
    this.points = []; // [monotonic seconds, label, {label: probability}, whether time is broken before it]
    this.part(".title").textContent = name;
    this.part(".number").textContent = cameras.size + 1;
    this.root.setAttribute("aria-label", `Camera ${name}`);
    this.root.addEventListener("dblclick", () => focus(alone === this ? null : this));
    this.root.addEventListener("keydown", (event) => { if (event.key === "Enter") focus(alone === this ? null : this); });
    $("cameras").append(this.root);
    this.rows = [];
  }

  frame(frame) {
    const last = this.points.at(-1);
    this.latest = frame;
    if (!last || frame.at - last[0] >= STEP_S || frame.at < last[0]) this.points.push([frame.at, frame.label, frame.scores, false]);
    while (this.points.length && this.points[0][0] < frame.at - WINDOW_S - 1) this.points.shift();
    this.arrived = performance.now();
    this.changed = true;
  }

  async picture(bytes) {
    if (held || this.drawing || document.hidden) return;
    this.drawing = true;
    try {
      const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
      const canvas = this.part(".view");
      if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
      bitmap.close();
      this.part(".none").style.display = "none";
      canvas.dataset.pictures = Number(canvas.dataset.pictures || 0) + 1;
    } finally { this.drawing = false; }
  }

  status(source) {
    this.source = source;
    const silent = source.silent_s == null || source.silent_s > STALE_S;
    this.root.classList.toggle("stale", source.state !== "connected" && source.state !== "ended" || source.live && silent);
    const state = this.part(".state");
    const words = { connected: source.live ? "live" : "playing", waiting: "reconnecting" };
    state.textContent = words[source.state] || source.state;
    state.className = `pill state ${source.state}`;
    this.part(".reason").hidden = !source.reason || source.state === "connected";
    this.part(".reason").textContent = source.reason
      ? source.reason + (source.retry_s == null ? "" : ` – next attempt in ${number(source.retry_s, 1)} s`) : "";
    const { age, books: counts } = source;
    const facts = [
      ["frames / s", number(source.classified_hz, 1), source.captured_hz - source.classified_hz > 0.5 ? `of ${number(source.captured_hz, 1)}` : ""],
      ["age p50", number(age?.p50_ms, age?.p50_ms < 10 ? 1 : 0), "ms"],
      ["age p95", number(age?.p95_ms, age?.p95_ms < 10 ? 1 : 0), "ms"],
      ["age p99", number(age?.p99_ms, age?.p99_ms < 10 ? 1 : 0), "ms"],
      ["classified", number(counts.classified), ""],
      ["dropped", number(counts.dropped), counts.captured ? percent(counts.dropped / counts.captured) : ""],
      ["skipped", number(counts.skipped), ""],
      ["corrupt", number(counts.corrupt), "", counts.corrupt > 0],
      ["reconnects", number(Math.max(0, source.connections - 1)), "", source.connections > 1],
      ["gaps", number(source.gaps), "", source.gaps > 0],
      ["picture", source.width ? `${source.width}×${source.height}` : "–", ""],
      ["codec", source.codec || "–", ""],
    ];
    fill(this.part(".facts"), facts);
    this.changed = true;
  }

  draw() {
    if (!this.changed) return;
    this.changed = false;
    const { label, probability, scores } = this.latest || { label: null, probability: null, scores: {} };
    const fresh = this.source?.label !== undefined && this.root.classList.contains("stale") ? null : label;
    const word = this.part(".label");
    word.textContent = fresh ?? (this.latest ? "unknown" : "waiting for a frame");
    word.classList.toggle("unknown", fresh == null);
    this.part(".probability").textContent = fresh == null ? "" : percent(probability);
    this.bars(Object.entries(scores));
    this.chart();
  }

  bars(scores) {
    const list = this.part(".scores");
    while (this.rows.length < scores.length) {
      const row = document.createElement("li");
      const cells = { dot: text("span", "", "dot"), who: text("span", "", "who"), bar: text("span", "", "bar"), value: text("span", "", "value") };
      cells.fill = cells.bar.appendChild(document.createElement("i"));
      row.append(cells.dot, cells.who, cells.bar, cells.value);
      list.append(row);
      this.rows.push({ row, ...cells });
    }
    this.rows.forEach((cells, index) => {
      cells.row.hidden = index >= scores.length;
      if (cells.row.hidden) return;
      const [label, probability] = scores[index];
      cells.who.textContent = cells.who.title = label;
      cells.value.textContent = percent(probability);
      cells.dot.style.background = cells.fill.style.background = colour(label);
      cells.fill.style.width = `${100 * probability}%`;
    });
  }

  chart() {
    const canvas = this.part(".history"), style = getComputedStyle(document.documentElement);
    const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width) return;
    if (canvas.width !== Math.round(width * ratio)) [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const band = 10, low = height - band - 6, high = 6, left = 0, right = width - 40;
    const end = this.points.length ? this.points.at(-1)[0] + (performance.now() - (this.arrived ?? performance.now())) / 1000 : 0;
    const x = (at) => right - (end - at) / WINDOW_S * (right - left), y = (p) => low - p * (low - high);
    pen.strokeStyle = style.getPropertyValue("--grid");
    pen.fillStyle = style.getPropertyValue("--quiet");
    pen.font = `11px ${style.getPropertyValue("--sans")}`;
    pen.textBaseline = "middle";
    pen.lineWidth = 1;
    for (const p of [0, 0.5, 1]) {
      pen.beginPath(); pen.moveTo(left, Math.round(y(p)) + 0.5); pen.lineTo(right, Math.round(y(p)) + 0.5); pen.stroke();
      pen.fillText(`${100 * p} %`, right + 5, y(p));
    }
    const sums = new Map();
    for (const [, , scores] of this.points) for (const [label, p] of Object.entries(scores)) sums.set(label, (sums.get(label) || 0) + p);
    const shown = [...sums].sort((a, b) => b[1] - a[1]).slice(0, 5).map(([label]) => label);
    pen.save();
    pen.beginPath(); pen.rect(left, 0, right - left, height); pen.clip();
    pen.lineJoin = "round";
    for (const label of shown.reverse()) {
      pen.strokeStyle = colour(label);
      pen.lineWidth = label === this.latest?.label ? 2.2 : 1.4;
      pen.beginPath();
      let before = null;
      for (const [at, , scores, broken] of this.points) {
        const p = scores[label];
        if (p === undefined) { before = null; continue; }
        if (before === null || broken || at - before > 4 * STEP_S) pen.moveTo(x(at), y(p)); else pen.lineTo(x(at), y(p));
        before = at;
      }
      pen.stroke();
    }
    this.points.forEach(([at, label], index) => { // the label that held, as a band
      if (label == null) return;
      const until = Math.min(this.points[index + 1]?.[0] ?? end, at + 4 * STEP_S);
      pen.fillStyle = colour(label);
      pen.fillRect(x(at), height - band, Math.max(0.6, x(until) - x(at) + 0.4), band - 2);
    });
    pen.restore();
  }
}

const fill = (list, rows) => {
  while (list.children.length > rows.length) list.lastElementChild.remove();
  rows.forEach(([name, value, unit, bad], index) => {
    let pair = list.children[index];
    if (!pair) {
      pair = document.createElement("div");
      pair.append(text("dt", ""), text("dd", ""));
      list.append(pair);
    }
    pair.children[0].textContent = name;
    pair.children[1].replaceChildren(value, ...(unit ? [" ", text("small", unit)] : []));
    pair.children[1].classList.toggle("bad", Boolean(bad));
  });
};

const camera = (name) => {
  if (!cameras.has(name)) cameras.set(name, new Camera(name));
  return cameras.get(name);
};

const focus = (one) => {
  alone = one;
  for (const other of cameras.values()) { other.root.hidden = one !== null && other !== one; other.root.style.display = other.root.hidden ? "none" : ""; other.changed = true; }
  $("cameras").classList.toggle("one", one !== null || cameras.size === 1);
  one?.root.focus();
};

// --- everything

const say = (state, words) => { $("connection").className = `pill ${state}`; $("connection").textContent = words; };

const showStatus = (status) => {
  $("artifact").textContent = status.artifact;
  document.title = `${status.sources.map((source) => source.label ?? "–").join(" · ")} – ${status.artifact}`;
  $("about").textContent = [status.precision, status.runtime, status.device].filter(Boolean).join(" · ");
  const total = (key) => status.sources.reduce((sum, source) => sum + source[key], 0);
  const rows = [
    ["frames / s", number(total("classified_hz"), 1), ""],
    ["inference p50", number(status.inference?.p50_ms, 1), "ms"],
    ["inference p99", number(status.inference?.p99_ms, 1), "ms"],
    ["running for", span(status.uptime_s), ""],
  ];
  if (status.temperature_c != null) rows.push(["temperature", number(status.temperature_c, 0), "°C", status.temperature_c >= 85]);
  if (status.power_w != null) rows.push(["power", number(status.power_w, 1), "W"]);
  if (status.clock_mhz != null) rows.push(["clock", number(status.clock_mhz), "MHz"]);
  if (status.throttled != null) rows.push(["throttled", status.throttled ? "yes" : "no", "", status.throttled]);
  fill($("device"), rows);
  for (const source of status.sources) camera(source.name).status(source);
  $("sinks").replaceChildren(...status.sinks.map((sink) => {
    const row = document.createElement("tr");
    row.append(text("td", sink.name), text("td", number(sink.written), "n"), text("td", number(sink.dropped), "n"), text("td", sink.error ?? "–"));
    return row;
  }));
  if (cameras.size === 1 && alone === null) $("cameras").classList.add("one");
};

const WORDS = {
  enter: (event) => `${event.label} ${percent(event.probability)}`,
  exit: (event) => `no longer ${event.label}, after ${number(event.duration_s, 1)} s`,
  connected: (event) => `connected${event.text ? `, ${event.text}` : ""}`,
  lost: (event) => `lost: ${event.text}`,
  size: (event) => `the picture is ${event.text} now`,
  gap: (event) => `gap: ${event.text}`,
  failed: (event) => `failed: ${event.text}`,
  ended: () => "ended",
};

const showEvent = (event) => {
  const line = document.createElement("li"), time = text("time", new Date(event.time).toLocaleTimeString());
  time.dateTime = event.time;
  line.append(time, text("span", (cameras.size > 1 ? `${event.source}: ` : "") + (WORDS[event.kind]?.(event) ?? event.kind)));
  $("events").prepend(line);
  while ($("events").children.length > EVENTS) $("events").lastElementChild.remove();
};

const take = {
  welcome(data) {
    if (data.status) showStatus(data.status);
    for (const [name, points] of Object.entries(data.history)) camera(name).points = points;
    $("events").replaceChildren();
    data.events.forEach(showEvent);
    Object.values(data.latest).forEach((frame) => camera(frame.source).frame(frame));
  },
  status: showStatus,
  event: showEvent,
  frame: (frame) => camera(frame.source).frame(frame),
};

const decoder = new TextDecoder();
const handle = (kind, bytes) => {
  if (kind === 74) { // J
    const data = JSON.parse(decoder.decode(bytes));
    take[data.type]?.(data);
  } else {
    const length = bytes[0] << 8 | bytes[1];
    camera(decoder.decode(bytes.subarray(2, 2 + length))).picture(bytes.slice(2 + length));
  }
};

const read = async () => {
  const answer = await fetch("/stream", { cache: "no-store" });
  if (answer.status === 401) { location.reload(); return; }
  if (!answer.ok) throw new Error(await answer.text());
  say(held ? "held" : "live", held ? "held" : "live");
  const reader = answer.body.getReader();
  let waiting = new Uint8Array(0);
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const joined = new Uint8Array(waiting.length + value.length);
    joined.set(waiting); joined.set(value, waiting.length);
    let at = 0;
    for (;;) {
      if (joined.length - at < 5) break;
      const size = new DataView(joined.buffer, at + 1, 4).getUint32(0);
      if (joined.length - at - 5 < size) break;
      handle(joined[at], joined.subarray(at + 5, at + 5 + size));
      at += 5 + size;
    }
    waiting = joined.slice(at);
  }
};

const run = async () => {
  for (let pause = 500; ; pause = Math.min(10000, 2 * pause)) {
    const began = performance.now();
    try { await read(); } catch { /* said below */ }
    if (performance.now() - began > 5000) pause = 500;
    say("lost", "the stream doesn't answer");
    for (const one of cameras.values()) { one.root.classList.add("stale"); one.changed = true; }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("summary, input")) return;
  const all = [...cameras.values()], digit = "123456789".indexOf(event.key);
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (event.key === "Escape" || event.key === "0") focus(null);
  else if (digit >= 0 && digit < all.length) focus(all[digit]);
  else if (step && all.length > 1) focus(all[((alone ? all.indexOf(alone) : step > 0 ? -1 : 0) + step + all.length) % all.length]);
  else if (event.key === " ") { held = !held; say(held ? "held" : "live", held ? "held" : "live"); }
  else return;
  event.preventDefault();
});
const repaint = () => { palette = null; for (const one of cameras.values()) one.changed = true; };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
addEventListener("resize", repaint);
const paint = () => { for (const one of cameras.values()) if (one !== alone && alone !== null) continue; else one.draw(); };
setInterval(() => { if (!document.hidden) requestAnimationFrame(paint); }, 100);
run();
