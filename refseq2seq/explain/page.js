"use strict";
const data = JSON.parse(document.getElementById("decoding").textContent);
const $ = (id) => document.getElementById(id);
const MEAN = "mean";

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
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

/* The slider, and the description of its step. */

const last = data.steps.length - 1;
let now = 0;

function show(step) {
  now = Math.min(Math.max(step, 0), last);
  $("step").value = now;
  $("step").setAttribute("aria-valuetext", `step ${now}: ${data.steps[now].symbol}`);
  $("where").textContent = `step ${now} of ${last}`;
  $("previous").disabled = now === 0;
  $("next").disabled = now === last;
  showTarget();
  showCandidates();
  showCross();
  showSelf();
  showTree();
}

function showTarget() {
  const start = element("li", data.start, { class: "start" });
  const tokens = data.steps.slice(0, now + 1).map((step, i) =>
    element("li", step.symbol, i === now ? { "aria-current": "step" } : {}));
  $("target").replaceChildren(start, ...tokens);
  const step = data.steps[now];
  const margin = step.margin === null ? "no other token was left" : `margin ${step.margin.toFixed(3)}`;
  $("said").textContent =
    `Step ${now} writes ${step.symbol}: log-probability ${step.log_prob.toFixed(3)}, ` +
    `sum so far ${step.sum.toFixed(3)} nats, ${margin}.`;
}

function showCandidates() {
  const { candidates, stages, token } = data.steps[now];
  const head = [element("th", "token", { scope: "col" })];
  for (const { label, kept } of stages)
    head.push(element("th", `${label} (${kept} left)`, { scope: "col" }));
  const body = candidates.map((candidate, i) => {
    const chosen = candidate.token === token;
    const cells = [element("th", candidate.symbol + (chosen ? " ✓" : ""), { scope: "row" })];
    for (const { probs } of stages) {
      const cell = element("td", undefined, { style: `--p: ${probs[i]}` });
      cell.append(element("i"), element("span", probs[i] > 0 ? probs[i].toFixed(4) : "–"));
      cells.push(cell);
    }
    return row(cells, chosen ? { "aria-current": "true" } : {});
  });
  fill($("candidates"), head, body);
}

/* Attention: one table for the selected layer and head. */

function pickers(place, layers, changed) {
  const choice = { layer: layers.length - 1, head: MEAN };
  const add = (label, key, values, value) => {
    const select = element("select");
    for (const v of values) select.append(element("option", String(v), { value: v }));
    select.value = String(value);
    select.addEventListener("change", () => {
      choice[key] = select.value === MEAN ? MEAN : Number(select.value);
      changed();
    });
    const wrapped = element("label", `${label} `);
    wrapped.append(select);
    place.append(wrapped);
  };
  add("layer", "layer", layers.map((_, i) => i), choice.layer);
  add("head", "head", [MEAN, ...layers[0].map((_, i) => i)], choice.head);
  return choice;
}

function weightsOf(layers, { layer, head }) {
  if (head !== MEAN) return layers[layer][head];
  const heads = layers[layer];
  return heads[0].map((_, k) => heads.reduce((sum, h) => sum + h[k], 0) / heads.length);
}

function heat(table, corner, keys, learned, rows) {
  const head = [element("td", corner)];
  keys.forEach((key, i) =>
    head.push(element("th", key, { scope: "col", ...(i < learned ? { class: "learned" } : {}) })));
  const body = rows.map(({ name, weights, current }) => {
    const cells = [element("th", name, { scope: "row" })];
    for (const w of weights)
      cells.push(element("td", w.toFixed(2), { style: `--w: ${w}` }));
    return row(cells, current ? { "aria-current": "true" } : {});
  });
  fill(table, head, body);
  table.querySelector("thead td").style.background = "none";
}

const crossChoice = pickers($("cross-pick"), data.cross_attention[0], showCross);
const selfChoice = pickers($("self-pick"), data.self_attention[0], showSelf);
const encoderChoice = pickers($("encoder-pick"), data.encoder_attention, showEncoder);

function stepRows(attention, choice) {
  return data.steps.slice(0, now + 1).map((step, t) => ({
    name: step.symbol,
    weights: weightsOf(attention[t], choice),
    current: t === now,
  }));
}

function showCross() {
  const learned = data.cross_keys.length - data.source.length;
  heat($("cross"), "", data.cross_keys, learned, stepRows(data.cross_attention, crossChoice));
}

function showSelf() {
  const written = [data.start, ...data.steps.slice(0, now).map((step) => step.symbol)];
  const keys = [...data.self_learned, ...written];
  heat($("self"), "", keys, data.self_learned.length, stepRows(data.self_attention, selfChoice));
}

function showEncoder() {
  const { layer, head } = encoderChoice;
  const heads = data.encoder_attention[layer];
  const rows = data.encoder_queries.map((name, q) => ({
    name,
    weights: weightsOf([heads.map((h) => h[q])], { layer: 0, head }),
    current: false,
  }));
  heat($("encoder"), "", data.encoder_keys, data.encoder_keys.length - data.source.length, rows);
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
  $("tree-section").hidden = false;
  const at = placed(nodes), root = { x: LEFT - 14, y: TOP }, best = new Set(path);
  const width = Math.max(...at.map((p) => p.x)) + COLUMN, height = Math.max(...at.map((p) => p.y)) + ROW;
  const svg = $("tree");
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
    hypotheses.map(({ text, score }) => row([element("th", text, { scope: "row" }), element("td", score.toFixed(3))])));
}

function showTree() {
  for (const part of $("tree").querySelectorAll("[data-step]"))
    part.classList.toggle("later", Number(part.dataset.step) > now);
}

/* Start. */

$("text").textContent = data.text;
$("output").textContent = data.output;
$("step").max = last;
$("step").addEventListener("input", () => show(Number($("step").value)));
$("previous").addEventListener("click", () => show(now - 1));
$("next").addEventListener("click", () => show(now + 1));
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, .scroll") || event.altKey || event.ctrlKey || event.metaKey) return;
  const moves = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last };
  if (event.key in moves) {
    event.preventDefault();
    show(moves[event.key]);
  }
});
if (data.tree) drawTree(data.tree);
showEncoder();
show(0);
