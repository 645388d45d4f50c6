"use strict";
const $ = (id) => document.getElementById(id);
const { facts, symbols } = JSON.parse($("model").textContent);
const MEAN = "mean";
let data = JSON.parse($("decoding").textContent);
const live = data === null;

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function button(text, clicked) {
  const made = element("button", text, { type: "button" });
  made.addEventListener("click", clicked);
  return made;
}

function row(cells, attributes = {}) {
  const tr = element("tr", undefined, attributes);
  tr.append(...cells);
  return tr;
}

function fill(table, head, body) {
  const thead = element("thead"), tbody = element("tbody");
  thead.append(row(head));
  tbody.append(...body);
  table.replaceChildren(thead, tbody);
}

/* The step: controls, its token and its numbers. */

let now = 0, last = 0;

function show(step) {
  now = Math.min(Math.max(step, 0), last);
  $("step").value = now;
  $("step").setAttribute("aria-valuetext", `step ${now}: ${data.steps[now].symbol}`);
  $("where").textContent = `step ${now} (0 to ${last})`;
  $("previous").disabled = now === 0;
  $("next").disabled = now === last;
  showTarget();
  showNumbers();
  showInside();
  showCandidates();
  showTree();
  if (live) remember("step", now === last ? null : now);
}

function showTarget() {
  const start = element("li", data.start, { class: "start" });
  const tokens = data.steps.slice(0, now + 1).map((step, i) =>
    element("li", step.symbol, i === now ? { "aria-current": "step" } : {}));
  $("target").replaceChildren(start, ...tokens);
  $("target").scrollLeft = $("target").scrollWidth; // the newest token
}

function showNumbers() {
  const step = data.steps[now], taken = step.by_hand ? ", chosen by hand" : "";
  const isCut = now === last && !step.finished;
  $("said").textContent = `Step ${now} reads ${tokenRead(now)} and writes ${step.symbol}${taken}.`
    + (isCut ? ` Here the output is cut off: ${last + 1} tokens are its limit, and none of them ends it.` : "");
  $("log-prob").textContent = `${step.log_prob.toFixed(3)} nats`;
  $("prob").textContent = Math.exp(step.log_prob).toPrecision(3);
  $("sum").textContent = `${step.sum.toFixed(3)} nats`;
  $("margin").textContent = step.margin === null ? "no other token was left" : step.margin.toFixed(3);
}

function tokenRead(step) {
  return step === 0 ? data.start : data.steps[step - 1].symbol;
}

function showCandidates() {
  const { candidates, stages, token, by_hand } = data.steps[now];
  const hadFocus = $("candidates").contains(document.activeElement);
  const head = [element("th", "token", { scope: "col" })];
  for (const { label, kept } of stages)
    head.push(element("th", `${label} (${kept} left)`, { scope: "col" }));
  const body = candidates.map((candidate, i) => {
    const chosen = candidate.token === token;
    const cells = [candidateName(candidate, chosen ? (by_hand ? " ✓ by hand" : " ✓") : "")];
    for (const { probs } of stages) {
      const cell = element("td", undefined, { style: `--p: ${probs[i]}` });
      cell.append(element("i"), element("span", probs[i] > 0 ? probs[i].toFixed(4) : "–"));
      cells.push(cell);
    }
    return row(cells, chosen ? { "aria-current": "true" } : {});
  });
  fill($("candidates"), head, body);
  if (hadFocus) $("candidates").querySelector("[aria-current] button")?.focus();
}

function candidateName({ token, symbol }, mark) {
  if (!live || data.tree) return element("th", symbol + mark, { scope: "row" });
  const th = element("th", undefined, { scope: "row" });
  th.append(button(symbol + mark, () => takeByHand(token)));
  th.firstChild.disabled = document.body.classList.contains("stale");
  return th;
}

/* Play: one step after the other, to the end. */

let playing = null;

function play() {
  if (now === last) show(0);
  playing = setInterval(() => (now === last ? pause() : show(now + 1)), 900);
  showPlaying("❚❚", "Pause");
}

function pause() {
  clearInterval(playing);
  playing = null;
  showPlaying("▶", "Play");
}

function showPlaying(sign, name) {
  $("play").textContent = sign;
  $("play").setAttribute("aria-label", name);
}

function move(step) {
  pause();
  show(step);
}

/* The arrays: [shape, scale, elements in base64]. */

function decoded([shape, scale, text]) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const size = shape.reduce((product, n) => product * n, 1);
  if (scale) return Array.from(new Int8Array(bytes), (code) => (code === -128 ? -Infinity : code * scale));
  return Array.from(bytes.byteLength === 8 * size ? new Float64Array(bytes) : new Float32Array(bytes));
}

/* The axes of a quantity that its array has, such as ["batch", "n_heads", "n_target", "d_k"]. */
function axesOf(name, rank) {
  return facts[name].shape.match(/\(([^)]*)\)/)[1].match(/\w+/g).slice(-rank);
}

/* Rows of one head, or of the mean of the heads, of one array. */
function matrix(name, array, head) {
  const [shape] = array, axes = axesOf(name, shape.length), values = decoded(array);
  const columns = shape.at(-1), rows = axes.at(-2)?.match(/^n_(source|target)/) ? shape.at(-2) : 1;
  const nHeads = values.length / (rows * columns);
  const value = (h, r, c) => values[(h * rows + r) * columns + c];
  const mean = (r, c) => {
    let sum = 0;
    for (let h = 0; h < nHeads; h++) sum += value(h, r, c);
    return sum / nHeads;
  };
  const at = head === MEAN ? mean : (r, c) => value(head, r, c);
  return Array.from({ length: rows }, (_, r) => Array.from({ length: columns }, (_, c) => at(r, c)));
}

/* Names of n tokens of which the last are given; those before are learned. */
function named(n, names) {
  const learned = Math.max(n - names.length, 0);
  return [...Array.from({ length: learned }, (_, i) => `·${i + 1}`), ...names].slice(0, n);
}

/* Inside: the open quantity, its layer and its head. */

const open = { name: "decoder.layers.*.cross_attention.weights", layer: Infinity, head: MEAN };
const order = Object.keys(facts);
const path = (name, layer) => name.replace("*", layer);

function openQuantity(name, layer = open.layer) {
  Object.assign(open, { name, layer });
  showInside();
}

/* Whether each step has rows of its own, for the tokens that it reads. */
function perStep() {
  const [shape] = ofTheStep()[0];
  return axesOf(open.name, shape.length).at(-2) === "n_target";
}

function ofTheStep() {
  const steps = data.arrays[open.name];
  return steps[Math.min(now, steps.length - 1)];
}

function showInside() {
  const layers = ofTheStep();
  const layered = open.name.includes("*");
  const layer = layered ? Math.min(open.layer, layers.length - 1) : 0;
  const array = layers[layer], axes = axesOf(open.name, array[0].length);
  const headAxis = axes.findIndex((axis) => /heads$/.test(axis));
  const nHeads = headAxis < 0 ? 0 : array[0][headAxis];
  const isWeights = open.name.endsWith("weights");
  const head = nHeads === 0 ? 0 : open.head === MEAN ? (isWeights ? MEAN : 0) : Math.min(open.head, nHeads - 1);
  offer($("layer"), layered ? layers.map((_, i) => i) : [], layer);
  offer($("head"), [...(isWeights ? [MEAN] : []), ...Array(nHeads).keys()], head);
  $("inside-title").textContent = path(open.name, layer);
  $("meaning").textContent = facts[open.name].meaning;
  showFacts(layer, array);
  showHeat(layer, head, axes);
  mark();
}

function offer(select, values, value) {
  select.replaceChildren(...values.map((v) => element("option", String(v), { value: v })));
  select.value = String(value);
  select.parentElement.hidden = values.length === 0;
}

function showFacts(layer, [shape, scale]) {
  const { equation, shape: axes, source, code, chapter } = facts[open.name];
  const rows = {
    equation: [element("code", `${open.name.split(".").at(-1)} = ${equation}`)],
    shape: [element("code", `${axes} = (${shape.join(", ")}${shape.length === 1 ? "," : ""})`),
      perStep() ? " in this step; above is a row for each step so far" : ""],
    "computed from": inputButtons(layer),
    code: [element("code", code), element("br"), `refseq2seq/${source}`],
    explained: [`course, chapter ${chapter}`],
  };
  $("facts").replaceChildren(...Object.entries(rows).flatMap(([term, described]) => {
    const dd = element("dd");
    dd.append(...described);
    return [element("dt", term), dd];
  }));
  $("precision").textContent = scale === 0 ? "Point at a number, or tap on it, to read its digits."
    : `To keep the page small, these numbers are rounded: each is within ${roundedUp(scale / 2)} of the model's.`;
}

/* Two digits, not less than x. */
function roundedUp(x) {
  const unit = 10 ** (Math.floor(Math.log10(x)) - 1);
  return (Math.ceil(x / unit) * unit).toPrecision(2);
}

/* Buttons for the inputs; one that is computed later is that of the layer before. */
function inputButtons(layer) {
  const isBefore = (name) => order.indexOf(name) > order.indexOf(open.name);
  const { inputs } = facts[open.name], layered = open.name.includes("*");
  const crosses = inputs.some(isBefore);
  const wanted = inputs.filter((name) => !crosses || (isBefore(name) ? layer > 0 : layer === 0 || name.includes("*")));
  const made = wanted.map((name) => {
    const at = isBefore(name) ? layer - 1 : layered ? layer : Infinity;
    return button(path(name, at === Infinity ? data.arrays[name][0].length - 1 : at), () => openQuantity(name, at));
  });
  return made.length ? made : ["the tokens and the parameters"];
}

/* The heat map: rows of every step so far, or of the source. */

let cells = [], cursor = -1;

function showHeat(layer, head, axes) {
  const kind = axes.at(-1), hasRows = perStep();
  const shown = hasRows ? data.arrays[open.name].slice(0, now + 1) : [ofTheStep()];
  const rows = shown.flatMap((layers, t) => {
    const values = matrix(open.name, layers[layer], head);
    const names = hasRows ? named(values.length, [`${tokenRead(t)} → ${data.steps[t].symbol}`])
      : axes.at(-2) === "n_source" ? named(values.length, data.source) : values.map(() => "");
    return values.map((numbers, r) => ({ name: names[r], numbers, current: hasRows && t === now }));
  });
  [cells, cursor] = [[], -1];
  const draw = kind === "vocab_size" || kind === "batch" ? tiles : /^n_so/.test(kind) ? heatTable : vectors;
  $("heat").replaceChildren(...draw(kind === "vocab_size" ? rows.slice(-1) : rows, kind));
  $("readout").textContent = "";
  if (hasRows) $("heat").scrollTop = $("heat").scrollHeight; // the newest row
}

function columnNames(kind, n) {
  if (kind === "n_source") return named(n, data.source);
  const read = [data.start, ...data.steps.map((step) => step.symbol)];
  return named(n, read.slice(0, now + 1));
}

function cell(tag, value, largest, says, text) {
  const made = element(tag, text, { class: value < 0 ? "cell minus" : "cell" });
  made.style.setProperty("--w", Number.isFinite(value) ? Math.abs(value) / largest : 0);
  cells.push({ made, says: `${says} = ${exactly(value)}` });
  return made;
}

function exactly(value) {
  if (!Number.isFinite(value)) return "−∞: removed";
  return String(Number(value.toPrecision(7)));
}

function short(value) {
  if (!Number.isFinite(value)) return "−∞";
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2);
}

function largestOf(rows) {
  let largest = open.name.endsWith("weights") ? 1 : 1e-30;
  for (const { numbers } of rows)
    for (const x of numbers) if (Number.isFinite(x)) largest = Math.max(largest, Math.abs(x));
  return largest;
}

function heatTable(rows, kind) {
  const longest = Math.max(...rows.map(({ numbers }) => numbers.length));
  const keys = columnNames(kind, longest), largest = largestOf(rows);
  const table = element("table", undefined, { class: "heat" });
  const head = keys.map((key) => element("th", key, { scope: "col", ...(key[0] === "·" ? { class: "learned" } : {}) }));
  fill(table, [element("td"), ...head], rows.map(({ name, numbers, current }) => row(
    [element("th", name, { scope: "row" }),
     ...numbers.map((x, k) => cell("td", x, largest, `${name || "all"}, ${keys[k]}`, short(x)))],
    current ? { "aria-current": "true" } : {})));
  return [table];
}

function vectors(rows) {
  const largest = largestOf(rows);
  return rows.map(({ name, numbers, current }) => {
    const made = element("div", undefined, { class: "vector", ...(current ? { "aria-current": "true" } : {}) });
    const grid = element("div");
    grid.style.gridTemplateColumns = `repeat(${perLine(numbers.length)}, 1fr)`;
    grid.append(...numbers.map((x, i) => cell("i", x, largest, `${name} [${i}]`)));
    made.append(element("b", name), grid);
    return made;
  });
}

/* As many cells as fit into a line, if possible so that all lines are full. */
function perLine(n) {
  const room = Math.floor((Math.max($("heat").clientWidth, 300) - (innerWidth > 960 ? 120 : 10)) / 11);
  for (let k = Math.min(n, room); k > room / 2; k--) if (n % k === 0) return k;
  return Math.min(n, room);
}

const TILES = 120;

function tiles([{ numbers }], kind) {
  if (kind === "batch") return [tile(short(numbers[0]), open.name === "chosen" ? data.steps[now].symbol : "", numbers[0], 1)];
  const best = numbers.map((x, i) => [x, i]).sort(([x], [y]) => (x > y ? -1 : x < y ? 1 : 0)).slice(0, TILES);
  const largest = largestOf([{ numbers }]);
  const made = element("div", undefined, { class: "tiles" });
  made.append(...best.map(([x, i]) => tile(short(x), symbols[i] ?? `<${i}>`, x, largest)));
  const left = numbers.length - best.length;
  return left ? [made, element("p", `The best ${TILES} of ${numbers.length}.`)] : [made];
}

function tile(text, name, value, largest) {
  const made = cell("div", value, Math.max(largest, Math.abs(value)), name || open.name);
  made.classList.add("tile");
  made.append(element("b", name), element("span", text));
  return made;
}

function read(index) {
  if (!cells[index]) return;
  cells[cursor]?.made.classList.remove("at");
  cursor = index;
  cells[index].made.classList.add("at");
  $("readout").textContent = cells[index].says;
}

/* The picture: its quantities are buttons. */

const places = [...document.querySelectorAll("aside .quantity")];

function prepare(place) {
  const { name } = place.dataset;
  place.setAttribute("role", "button");
  place.setAttribute("aria-label", name.replaceAll(".", " ").replaceAll("_", " ").replace(" *", ""));
  place.addEventListener("click", () => openFromPicture(name));
  place.addEventListener("keydown", (event) => {
    const to = places.indexOf(place) + ({ ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key] ?? 0);
    if (event.key === "Enter" || event.key === " ") openFromPicture(name);
    else if (to === places.indexOf(place)) return;
    else places.at(to % places.length).focus();
    event.preventDefault();
  });
}

function openFromPicture(name) {
  if (!data) return;
  openQuantity(name);
  const { top, bottom } = $("inside").getBoundingClientRect();
  if (top > innerHeight * 0.7 || bottom < innerHeight * 0.3) $("inside").scrollIntoView();
}

function mark() {
  for (const place of places) {
    const isOpen = place.dataset.name === open.name;
    place.setAttribute("aria-pressed", isOpen);
    place.setAttribute("tabindex", isOpen ? 0 : -1); // one stop of the Tab key, arrow keys inside
  }
  for (const shortcut of $("shortcuts").children)
    shortcut.setAttribute("aria-pressed", shortcut.dataset.open === open.name);
  const place = places.find((p) => p.dataset.name === open.name), frame = place?.closest("aside");
  if (!frame) return;
  const { top, bottom } = place.getBoundingClientRect(), view = frame.getBoundingClientRect();
  if (top < view.top || bottom > view.bottom) frame.scrollTop += top - view.top - view.height / 2;
}

/* The tree of a beam search. */

const COLUMN = 112, ROW = 30, LEFT = 54, TOP = 22;

function svgElement(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function placed(nodes) {
  const inStep = {};
  return nodes.map((node) => {
    inStep[node.step] = (inStep[node.step] ?? -1) + 1;
    return { x: LEFT + (node.step + 0.55) * COLUMN, y: TOP + inStep[node.step] * ROW };
  });
}

function drawTree({ nodes, path, hypotheses, beams }) {
  const at = placed(nodes), root = { x: LEFT - 14, y: TOP }, best = new Set(path);
  const width = Math.max(...at.map((p) => p.x)) + COLUMN, height = Math.max(...at.map((p) => p.y)) + ROW;
  const svg = $("tree");
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("width", width);
  svg.setAttribute("height", height);
  svg.setAttribute("aria-label", `Beam search with ${beams} beams; the hypotheses are listed below.`);
  nodes.forEach((node, i) => {
    const from = node.parent < 0 ? root : at[node.parent], to = at[i];
    const gap = node.parent < 0 ? 16 : 58;
    const middle = (from.x + gap + to.x) / 2;
    svg.append(svgElement("path", {
      d: `M${from.x + gap},${from.y} C${middle},${from.y} ${middle},${to.y} ${to.x - 7},${to.y}`,
      class: best.has(i) ? "best" : node.fate, "data-step": node.step,
    }));
  });
  svg.append(svgElement("text", { x: 2, y: root.y + 4 }, data.start));
  nodes.forEach((node, i) => {
    const { x, y } = at[i];
    const group = svgElement("g", { class: node.fate, "data-step": node.step });
    group.append(svgElement("title", {},
      `${node.symbol}: log-probability ${node.log_prob.toFixed(3)}, sum ${node.score.toFixed(3)}, ${node.fate}`));
    group.append(node.fate === "ends"
      ? svgElement("rect", { x: x - 5, y: y - 5, width: 10, height: 10 })
      : svgElement("circle", { cx: x, cy: y, r: 5 }));
    group.append(svgElement("text", { x: x + 9, y: y + 1 }, node.symbol));
    group.append(svgElement("text", { x: x + 9, y: y + 12, class: "score" }, node.score.toFixed(2)));
    svg.append(group);
  });
  fill($("hypotheses"),
    [element("th", "hypothesis", { scope: "col" }), element("th", "normalised score", { scope: "col" })],
    hypotheses.map(({ text, finished, score }) => row(
      [element("th", finished ? text : `${text} …`, { scope: "row" }), element("td", score.toFixed(3))])));
}

/* At its end a hypothesis shows the whole search, which may go on for longer. */
function showTree() {
  for (const part of $("tree").querySelectorAll("[data-step]"))
    part.classList.toggle("later", now < last && Number(part.dataset.step) > now);
}

/* Live: the fragment of the address has the settings, the choices by hand and the step, and the
   server answers with a record. */

let waiting = null, delay = null;
const SAMPLING = ["temperature", "top-k", "top-p", "min-p", "top-a"];
const controls = [...$("ask").querySelectorAll("[name]")];

function fragment() {
  return new URLSearchParams(location.hash.slice(1));
}

function remember(name, value) {
  const settings = fragment();
  if (value === null) settings.delete(name);
  else settings.set(name, value);
  history.replaceState(null, "", `#${settings}`);
}

/* The choices by hand: step:token, ... */
function choices() {
  return (fragment().get("hand") ?? "").split(",").filter(Boolean);
}

/* The controls as the settings say. */
function fillForm(settings) {
  const samples = SAMPLING.some((name) => settings.has(name));
  $("method").value = settings.has("beams") ? "search" : samples ? "sample" : "default";
  for (const control of controls)
    control.value = settings.get(control.name) ?? (control.dataset.off || control.defaultValue);
  showMethod(settings);
}

function showMethod(settings) {
  for (const method of ["sample", "search"])
    for (const label of $("ask").querySelectorAll(`.of-${method}`)) label.hidden = $("method").value !== method;
  for (const { name, dataset, defaultValue, parentElement } of controls) {
    const output = parentElement.querySelector("output");
    if (output) output.textContent = settings.get(name) ?? (dataset.off ? "off" : defaultValue);
  }
  const shown = ["hand", "step", ...controls.map(({ name }) => name)];
  const others = [...settings].filter(([name]) => !shown.includes(name));
  $("others").replaceChildren(...others.map(([name, value]) => button(`${name} ${value} ✕`, () => without(name))));
  const isSearch = $("method").value === "search", newest = choices().at(-1);
  $("undo").hidden = !newest || isSearch;
  $("undo").textContent = `undo the choice in step ${newest?.split(":")[0]}`;
  $("by-hand").hidden = isSearch;
}

/* One setting as its control says. */
function write(settings, { name, value, dataset }) {
  if (value === dataset.off && name !== "text") settings.delete(name);
  else settings.set(name, value);
}

/* Only what has changed is written: a slider cannot hold every value that an address can. */
function formChanged({ target }) {
  const settings = fragment(), method = $("method").value;
  if (target === $("method")) {
    for (const name of [...SAMPLING, "seed", "beams"]) settings.delete(name);
    for (const control of controls) if (control.parentElement.matches(`.of-${method}`)) write(settings, control);
  } else write(settings, target);
  if (method === "sample" && !settings.has("temperature")) settings.set("temperature", "1");
  if (target.name === "text") for (const name of ["hand", "step"]) settings.delete(name);
  showMethod(settings);
  history.replaceState(null, "", `#${settings}`);
  waitFor(150);
}

function without(name) {
  remember(name, null);
  fillForm(fragment());
  $("method").focus(); // since the button goes
  ask();
}

function showUnused() {
  const unused = choices().filter((pair) => !data.steps[parseInt(pair)]?.by_hand);
  $("unused").hidden = unused.length === 0;
  $("unused").textContent = data.tree ? "A beam search does not use the choices by hand."
    : `The output ends before the choice in step ${parseInt(unused[0])}.`;
}

function takeByHand(token) {
  const earlier = choices().filter((pair) => parseInt(pair) < now);
  remember("hand", [...earlier, `${now}:${token}`].join(","));
  remember("step", now);
  ask();
}

function undo() {
  const left = choices().slice(0, -1);
  remember("hand", left.join(",") || null);
  remember("step", now);
  if (!left.length) $("step").focus(); // since the button goes
  ask();
}

function waitFor(milliseconds) {
  clearTimeout(delay);
  $("columns").setAttribute("aria-busy", "true");
  delay = setTimeout(ask, milliseconds);
}

/* Show what the fragment asks for. */
async function ask() {
  clearTimeout(delay);
  waiting?.abort();
  const mine = (waiting = new AbortController()), settings = fragment();
  showMethod(settings);
  $("columns").setAttribute("aria-busy", "true");
  const found = await answerTo(settings, mine.signal);
  if (mine.signal.aborted) return;
  $("columns").setAttribute("aria-busy", "false");
  document.body.classList.toggle("stale", Boolean(found.error && data));
  if (data) showCandidates();
  const old = data ? `Below is still the last result, of “${data.text}”.` : "";
  $("error").replaceChildren(found.error ?? "", element("br"), old);
  $("error").hidden = !found.error;
  if (found.error) return;
  start(found, settings.has("step") ? parseInt(settings.get("step")) || 0 : Infinity);
  showUnused();
}

/* A record, or an error. */
async function answerTo(settings, signal) {
  try {
    const asked = new URLSearchParams(settings);
    for (const name of settings.has("beams") ? ["step", "hand"] : ["step"]) asked.delete(name);
    const answer = await fetch(`/record?${asked}`, { signal });
    return answer.ok ? await answer.json() : { error: await answer.text() };
  } catch {
    return { error: "The server does not answer: has it ended?" };
  }
}

function fromFragment() {
  const settings = fragment();
  if (!settings.has("text")) remember("text", controls[0].defaultValue);
  fillForm(fragment());
  ask();
}

function goLive() {
  $("ask").hidden = false;
  $("ask").addEventListener("input", formChanged);
  $("ask").addEventListener("submit", (event) => event.preventDefault());
  $("undo").addEventListener("click", undo);
  window.addEventListener("hashchange", fromFragment);
  fromFragment();
}

/* The theme of the page around this one, if there is one. */

function followTheme() {
  let outer = null;
  try { outer = window.parent === window ? null : window.parent.document.documentElement; } catch { /* another origin */ }
  if (!outer) return;
  const follow = () => { document.documentElement.dataset.theme = outer.dataset.theme ?? ""; };
  new MutationObserver(follow).observe(outer, { attributeFilter: ["data-theme"] });
  follow();
}

/* Start. */

function start(found, step) {
  pause();
  data = found;
  last = data.steps.length - 1;
  $("text").textContent = data.text;
  $("arrow").hidden = false;
  $("output").textContent = data.steps[last].finished ? data.output : `${data.output} …`;
  $("omitted").textContent = data.omitted.length ? `(without ${data.omitted.join(", ")})` : "";
  $("step").max = last;
  $("tree-section").hidden = !data.tree;
  if (data.tree) drawTree(data.tree);
  $("columns").hidden = false;
  show(step);
}

function readByKey(event) {
  const jump = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10 }[event.key];
  if (!jump) return;
  event.preventDefault();
  read(Math.min(Math.max(cursor + jump, 0), cells.length - 1));
}

$("step").addEventListener("input", () => move(Number($("step").value)));
$("previous").addEventListener("click", () => move(now - 1));
$("next").addEventListener("click", () => move(now + 1));
$("play").addEventListener("click", () => (playing ? pause() : play()));
$("layer").addEventListener("change", () => openQuantity(open.name, Number($("layer").value)));
$("head").addEventListener("change", () => {
  open.head = $("head").value === MEAN ? MEAN : Number($("head").value);
  showInside();
});
$("shortcuts").addEventListener("click", (event) => {
  if (event.target.dataset.open) openQuantity(event.target.dataset.open);
});
$("heat").addEventListener("keydown", readByKey);
$("heat").addEventListener("pointerover", (event) => {
  const made = event.target.closest(".cell");
  if (made) read(cells.findIndex((one) => one.made === made));
});
document.addEventListener("keydown", (event) => {
  if (!data || event.target.matches("input, select, .scroll, .quantity") || event.altKey || event.ctrlKey || event.metaKey) return;
  const moves = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last };
  if (event.key in moves) {
    event.preventDefault();
    move(moves[event.key]);
  }
});
window.addEventListener("resize", () => { if (data) showInside(); });
document.querySelector("aside svg").setAttribute("role", "group");
places.forEach(prepare);
followTheme();
if (live) $("columns").hidden = true;
if (live) goLive();
else start(data, Infinity);
