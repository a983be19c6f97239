"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const find = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const make = (tag, properties = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value; else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
};
const percent = (share) =>
  share > 0 && share < 0.005 ? "<1%" : share < 1 && share >= 0.995 ? ">99%" : Math.round(100 * share) + "%";
/** No confidence is certain, whatever rounding says. */
const sureness = (share) => (share >= 0.995 ? ">99%" : share < 0.005 ? "<1%" : percent(share));
const number = (value) => value.toLocaleString("en");

// ---------------------------------------------------------------- pictures

const COLUMNS = data.columns;
const [HIGH, WIDE] = data.side;
const sheet = find("#sheet");

/** Draw a tile of the sheet over a whole canvas, its pixels sharp; `read` where they are read back. */
function drawTile(canvas, tile, width, read = false) {
  const scale = Math.max(1, Math.round((width / WIDE) * (window.devicePixelRatio || 1)));
  canvas.width = WIDE * scale;
  canvas.height = HIGH * scale;
  const context = canvas.getContext("2d", { willReadFrequently: read });
  context.imageSmoothingEnabled = false;
  if (tile >= 0) {
    const left = (tile % COLUMNS) * WIDE, top = Math.floor(tile / COLUMNS) * HIGH;
    context.drawImage(sheet, left, top, WIDE, HIGH, 0, 0, canvas.width, canvas.height);
  }
  return context;
}

// Ten colours of matplotlib's inferno (CC0), from nothing to the strongest evidence.
const HEAT = [[0, 0, 4], [27, 12, 65], [74, 12, 107], [120, 28, 109], [165, 44, 96], [207, 68, 70],
  [237, 105, 37], [251, 155, 6], [247, 209, 61], [252, 255, 164]];
function heatColour(strength) {
  const place = Math.min(Math.max(strength, 0), 1) * (HEAT.length - 1);
  const low = Math.floor(place), high = Math.min(low + 1, HEAT.length - 1);
  return HEAT[low].map((part, i) => part + (place - low) * (HEAT[high][i] - part));
}

const heat = data.heat && {
  ...data.heat,
  values: Uint8Array.from(atob(data.heat.bytes), (letter) => letter.charCodeAt(0)),
};
/** The map of item `place`: 0 for the predicted class, 1 for the true one; null where there is none. */
function heatMap(place, which) {
  if (!heat || place >= heat.count) return null;
  const size = heat.grid[0] * heat.grid[1];
  return heat.values.subarray((2 * place + which) * size, (2 * place + which + 1) * size);
}
/** Lay a map over what a canvas shows: smooth as between the middles of its cells, or cell by cell. */
function drawHeat(context, map, opacity, smooth) {
  const [rows, columns] = heat.grid;
  const { width, height } = context.canvas;
  const picture = context.getImageData(0, 0, width, height);
  const at = (row, column) =>
    map[Math.min(Math.max(row, 0), rows - 1) * columns + Math.min(Math.max(column, 0), columns - 1)] / 255;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      let strength;
      if (smooth) {
        const v = ((y + 0.5) / height) * rows - 0.5, u = ((x + 0.5) / width) * columns - 0.5;
        const row = Math.floor(v), column = Math.floor(u), down = v - row, right = u - column;
        strength = (at(row, column) * (1 - right) + at(row, column + 1) * right) * (1 - down)
          + (at(row + 1, column) * (1 - right) + at(row + 1, column + 1) * right) * down;
      } else {
        strength = at(Math.floor((y / height) * rows), Math.floor((x / width) * columns));
      }
      const colour = heatColour(strength), i = 4 * (y * width + x);
      const grey = 0.299 * picture.data[i] + 0.587 * picture.data[i + 1] + 0.114 * picture.data[i + 2];
      for (let part = 0; part < 3; part++) {
        const below = picture.data[i + part] * (1 - opacity) + grey * opacity;
        const share = opacity * (0.25 + 0.75 * strength);
        picture.data[i + part] = below * (1 - share) + colour[part] * share;
      }
    }
  }
  context.putImageData(picture, 0, 0);
}

// ---------------------------------------------------------------- the gallery

const items = data.items;
const STEP = matchMedia("(max-width: 44rem)").matches ? 48 : 120;
const gallery = find("#gallery");
const state = { show: "wrong", truth: "", said: "", text: "", sort: "loss", limit: STEP };
let listed = [];

const title = (i) => items.name[i] || "#" + items.index[i];
const isWrong = (i) => items.true[i] !== items.said[i];
const doubtful = new Map((data.suspects || []).map((place, rank) => [place, rank]));

function fits(i) {
  const { show, truth, said, text } = state;
  if (show === "wrong" && !isWrong(i)) return false;
  if (show === "right" && isWrong(i)) return false;
  if (show === "doubtful" && !doubtful.has(i)) return false;
  if (truth !== "" && items.true[i] !== +truth) return false;
  if (said !== "" && items.said[i] !== +said) return false;
  if (!text) return true;
  const words = [title(i), "#" + items.index[i], data.classes[items.true[i]], data.classes[items.said[i]]];
  return words.some((word) => word.toLowerCase().includes(text));
}

const ORDERS = {
  loss: (i, j) => items.loss[j] - items.loss[i],
  sure: (i, j) => items.sure[j][0] - items.sure[i][0],
  unsure: (i, j) => items.sure[i][0] - items.sure[j][0],
  doubt: (i, j) => (doubtful.get(i) ?? Infinity) - (doubtful.get(j) ?? Infinity),
  index: (i, j) => items.index[i] - items.index[j],
};

function card(i) {
  const canvas = make("canvas", { className: "tile" });
  const said = `${data.classes[items.said[i]]} ${sureness(items.sure[i][0])}`;
  const words = `${title(i)}: predicted ${said}, true ${data.classes[items.true[i]]}`;
  const button = make("button", { type: "button", className: "card", title: words, "aria-label": words });
  button.dataset.index = items.index[i];
  if (items.tile[i] < 0) button.append(make("span", { className: "nothing", textContent: "no picture kept" }));
  else {
    drawTile(canvas, items.tile[i], 96);
    button.append(canvas);
  }
  if (isWrong(i)) button.append(make("span", { className: "said", textContent: said }));
  button.append(make("span", { className: "truth", textContent: data.classes[items.true[i]] }));
  button.addEventListener("click", () => enlarge(i));
  return make("li", {}, button);
}

function refresh() {
  listed = items.index.map((_, i) => i).filter(fits).sort((i, j) => ORDERS[state.sort](i, j) || i - j);
  const shown = listed.slice(0, state.limit);
  gallery.replaceChildren(...shown.map(card));
  const what = { wrong: "mistakes", right: "right answers with a picture", doubtful: "doubtful labels" }[state.show];
  let said = listed.length ? `${number(listed.length)} ${what}` : `No ${what}`;
  if (state.truth !== "" || state.said !== "") {
    const named = (k) => (k === "" ? "any class" : data.classes[k]);
    said += `: ${named(state.truth)}, predicted as ${named(state.said)}`;
  }
  if (shown.length < listed.length) said += `; the first ${number(shown.length)} are shown`;
  find("#found").textContent = said + ".";
  find("#more").hidden = shown.length === listed.length;
  for (const cell of all("[data-truth]")) {
    const chosen = cell.dataset.truth === state.truth && cell.dataset.said === state.said;
    cell.setAttribute("aria-pressed", chosen);
  }
}

const controls = find("#controls");
function read() {
  for (const name of ["show", "truth", "said", "sort"]) state[name] = controls.elements[name].value;
  state.text = controls.elements.text.value.trim().toLowerCase();
  state.limit = STEP;
  refresh();
}
function set(values) {
  for (const [name, value] of Object.entries(values)) controls.elements[name].value = value;
  read();
}

if (controls) {
  controls.addEventListener("input", read);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("reset", (event) => {
    event.preventDefault();
    set({ show: "wrong", truth: "", said: "", text: "", sort: "loss" });
  });
  find("#more").addEventListener("click", () => {
    const before = gallery.children.length;
    state.limit += STEP;
    refresh();
    find("button", gallery.children[before])?.focus({ preventScroll: true });
  });
  // Sheets of thousands of tiles take a moment to decode; the rest of the page does not wait.
  (sheet ? sheet.decode().catch(() => {}) : Promise.resolve()).then(read);
}

const still = matchMedia("(prefers-reduced-motion: reduce)");
for (const cell of all("[data-truth]")) {
  cell.addEventListener("click", () => {
    const { truth, said } = cell.dataset;
    set({ show: truth === said ? "right" : "wrong", truth, said, text: "" });
    find("#mistakes").scrollIntoView({ behavior: still.matches ? "auto" : "smooth" });
    find("#found").focus({ preventScroll: true });
  });
}
for (const link of all("[data-show]")) {
  link.addEventListener("click", () => {
    const { show, sort } = link.dataset;
    set({ show, sort, truth: "", said: "", text: "" });
  });
}

// ---------------------------------------------------------------- one image, enlarged

const dialog = find("#large");
let current = -1;

function enlarge(i) {
  current = i;
  const wrong = isWrong(i), truth = data.classes[items.true[i]];
  find("#large-title").textContent = title(i);
  const place = items.name[i] ? `#${items.index[i]} of the test set. ` : "";
  const missed = wrong ? `, true: ${truth} (${sureness(items.truth[i])})` : ", which is right";
  find("#large-facts").textContent =
    `${place}Predicted: ${data.classes[items.said[i]]} (${sureness(items.sure[i][0])})${missed}. Loss ${items.loss[i]}.`;
  const bars = items.top[i].map((k, rank) => {
    const meter = make("meter", { min: 0, max: 1, value: items.sure[i][rank], "aria-label": data.classes[k] });
    return make("li", {}, make("span", { textContent: data.classes[k] }), meter,
      make("span", { textContent: sureness(items.sure[i][rank]) }));
  });
  find("#large-bars").replaceChildren(...bars);
  paint();
  const at = listed.indexOf(i);
  find("#previous").disabled = at <= 0;
  find("#next").disabled = at < 0 || at === listed.length - 1;
  if (!dialog.open) dialog.showModal();
}

function paint() {
  if (current < 0) return;
  const opacity = find("#opacity").value / 100, smooth = find("#smooth").checked;
  const views = [["view-image", null], ["view-said", 0], ["view-truth", 1]];
  const shown = isWrong(current) && heatMap(current, 0) !== null;
  for (const [id, which] of views) {
    const figure = find("#" + id), canvas = find("canvas", figure), note = find(".note", figure);
    figure.hidden = which !== null && !shown;
    const context = drawTile(canvas, items.tile[current], 192, true);
    note.textContent = items.tile[current] < 0 ? "no picture kept" : "";
    if (which === null || !shown) continue;
    const map = heatMap(current, which), k = which ? items.true[current] : items.said[current];
    find("b", figure).textContent = data.classes[k];
    if (map.some((value) => value > 0)) drawHeat(context, map, opacity, smooth);
    else note.textContent = "no positive evidence";
    canvas.setAttribute("aria-label", `What spoke for ${data.classes[k]}${note.textContent && ": " + note.textContent}`);
  }
  find("#heat-controls").hidden = !shown;
}

function step(by) {
  const at = listed.indexOf(current) + by;
  if (at >= 0 && at < listed.length) enlarge(listed[at]);
}

if (dialog) {
  find("#close").addEventListener("click", () => dialog.close());
  find("#previous").addEventListener("click", () => step(-1));
  find("#next").addEventListener("click", () => step(1));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.target.type === "range") return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("close", () => find(`[data-index="${items.index[current]}"]`, gallery)?.focus());
  for (const id of ["#opacity", "#smooth"]) find(id).addEventListener("input", paint);
  const bar = find("#colours");
  if (bar) {
    bar.width = 256;
    bar.height = 1;
    const context = bar.getContext("2d");
    for (let x = 0; x < 256; x++) {
      context.fillStyle = `rgb(${heatColour(x / 255).map(Math.round)})`;
      context.fillRect(x, 0, 1, 1);
    }
  }
}

// ---------------------------------------------------------------- tables that sort

for (const button of all("table.sorts th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const column = [...head.parentNode.children].indexOf(head);
    const rising = head.getAttribute("aria-sort") !== "ascending";
    const value = (row) => row.children[column].dataset.value ?? row.children[column].textContent;
    const order = (one, other) => {
      const a = value(one), b = value(other);
      const compared = a !== "" && b !== "" && !isNaN(a) && !isNaN(b) ? a - b : a.localeCompare(b);
      return rising ? compared : -compared;
    };
    body.append(...[...body.rows].sort(order));
    for (const other of all("th", table)) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  });
}

// ---------------------------------------------------------------- charts

const SVG = "http://www.w3.org/2000/svg";
const draw = (tag, attributes, parent) => {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  parent.append(node);
  return node;
};

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 2.5, 5, 10].map((k) => k * power).find((k) => k >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / size - 1e-9); k * size <= high + size * 1e-9; k++) found.push(k * size);
  return found;
}
const powers = (low, high) => {
  const found = [];
  for (let p = Math.ceil(Math.log10(low) - 1e-9); p <= Math.log10(high) + 1e-9; p++) found.push(10 ** p);
  return found;
};
const short = (value) => String(+value.toPrecision(3));

/** Draw lines over a shared x; a pointer or the arrow keys read their values off. */
function chart(holder, { x, lines, marks = [], log = false, from, to, say, sayX, fill = false, low, high, last = true }) {
  // As wide as it is shown, where that is narrow: its words are then not shrunk.
  const W = Math.min(Math.max(holder.clientWidth || 640, 300), 640), H = +holder.dataset.height || 240, L = 52, R = 16, T = 10, B = 28;
  const svg = draw("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", tabindex: 0, "aria-label": holder.dataset.alt }, holder);
  const values = lines.flatMap((line) => line.y).filter((value) => value !== null);
  const bottom = low ?? Math.min(...values), top = high ?? Math.max(...values);
  const room = low === undefined ? 0.06 * (top - bottom || 1) : 0;
  const y0 = bottom - room, y1 = top + 0.06 * (top - bottom || 1);
  const along = log ? Math.log10 : (value) => value;
  const [x0, x1] = [along(from ?? x[0]), along(to ?? x[x.length - 1])];
  const px = (value) => L + ((along(value) - x0) / (x1 - x0 || 1)) * (W - L - R);
  const py = (value) => H - B - ((value - y0) / (y1 - y0)) * (H - T - B);
  for (const value of ticks(y0, y1, H < 160 ? 3 : 5)) {
    draw("line", { class: "grid", x1: L, x2: W - R, y1: py(value), y2: py(value) }, svg);
    draw("text", { class: "label end", x: L - 8, y: py(value) + 4 }, svg).textContent = say(value, true);
  }
  const places = log ? powers(10 ** x0, 10 ** x1) : ticks(x0, x1, W < 480 ? 5 : 8);
  for (const value of places) {
    draw("text", { class: "label middle", x: px(value), y: H - 8 }, svg).textContent = short(value);
  }
  for (const mark of marks) {
    draw("line", { class: "mark-line", x1: px(mark.x), x2: px(mark.x), y1: T, y2: H - B }, svg);
    draw("text", { class: "mark-text", x: px(mark.x) + 5, y: T + 12 }, svg).textContent = mark.text;
  }
  for (const [rank, line] of lines.entries()) {
    const points = line.y.map((value, i) => [x[i], value]).filter(([, value]) => value !== null);
    const path = points.map(([at, value], i) => `${i ? "L" : "M"}${px(at).toFixed(1)} ${py(value).toFixed(1)}`).join("");
    if (fill) draw("path", { class: "fill", d: `${path}L${px(x[x.length - 1])} ${py(y0)}L${px(x[0])} ${py(y0)}Z` }, svg);
    draw("path", { class: `line ${line.kind || "s" + rank}`, d: path }, svg);
    // Where not every place was measured, those that were are marked.
    if (points.length < Math.max(3, x.length)) for (const [at, value] of points) {
      draw("circle", { class: `dot ${line.kind || "s" + rank}`, cx: px(at), cy: py(value), r: 3 }, svg);
    }
  }
  const ruler = draw("line", { class: "ruler", y1: T, y2: H - B, visibility: "hidden" }, svg);
  const dots = lines.map((line, rank) =>
    draw("circle", { class: `dot ${line.kind || "s" + rank}`, r: 4, visibility: "hidden" }, svg));
  const reading = make("p", { className: "reading" });
  reading.setAttribute("aria-live", "polite");
  const legend = (i) => {
    reading.replaceChildren();
    if (i !== null) reading.append(make("span", { textContent: sayX(x[i]) }));
    lines.forEach((line, rank) => {
      const value = i === null ? line.y.findLast((each) => each !== null) : line.y[i];
      const words = line.name + (i === null && !last ? "" : value === null || value === undefined ? " –" : " " + say(value));
      reading.append(make("span", { className: `key ${line.kind || "s" + rank}`, textContent: words }));
    });
  };
  holder.append(reading);
  let at = x.length - 1;
  const point = (i) => {
    at = Math.min(Math.max(i, 0), x.length - 1);
    ruler.setAttribute("x1", px(x[at]));
    ruler.setAttribute("x2", px(x[at]));
    ruler.setAttribute("visibility", "visible");
    lines.forEach((line, rank) => {
      const value = line.y[at];
      dots[rank].setAttribute("visibility", value === null ? "hidden" : "visible");
      if (value === null) return;
      dots[rank].setAttribute("cx", px(x[at]));
      dots[rank].setAttribute("cy", py(value));
    });
    legend(at);
  };
  const leave = () => {
    for (const node of [ruler, ...dots]) node.setAttribute("visibility", "hidden");
    at = x.length - 1;
    legend(null);
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), wanted = ((event.clientX - box.left) / box.width) * W;
    let nearest = 0;
    x.forEach((value, i) => { if (Math.abs(px(value) - wanted) < Math.abs(px(x[nearest]) - wanted)) nearest = i; });
    point(nearest);
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    point(at + by);
  });
  legend(null);
}

const curves = data.curves;
if (curves) {
  const of = (what) => curves.series.map((part) => ({ name: part.name, y: part[what], kind: part.name }));
  const epochs = { x: curves.epochs, sayX: (epoch) => `epoch ${epoch}`, from: Math.min(1, curves.epochs[0]) };
  const asPercent = (value, tick) => (100 * value).toFixed(tick ? 0 : 2) + "%";
  chart(find("#accuracy"), { ...epochs, lines: of("accuracy"), say: asPercent });
  chart(find("#loss"), { ...epochs, lines: of("loss"), say: (value, tick) => (tick ? short(value) : value.toFixed(3)) });
  chart(find("#rate"), {
    x: curves.rates.x, lines: [{ name: "learning rate", y: curves.rates.y, kind: "plain" }], low: 0, fill: true,
    say: short, sayX: (epoch) => `epoch ${short(epoch)}`, from: 0,
  });
}
if (data.finder) {
  const { rates, losses, smoothed, min, peak } = data.finder;
  chart(find("#finder"), {
    x: rates, log: true, say: short, sayX: (rate) => `rate ${short(rate)}`,
    lines: [{ name: "loss", y: losses, kind: "train" }, { name: "smoothed", y: smoothed, kind: "test" }],
    marks: [{ x: min, text: `LRMIN ${short(min)}` }, { x: peak, text: `LRMAX ${short(peak)}` }],
  });
}
if (data.calibration) {
  const bins = data.calibration.filter((bin) => bin.count);
  chart(find("#calibration"), {
    x: bins.map((bin) => bin.confidence), low: 0, high: 1, from: 0, to: 1, last: false,
    lines: [
      { name: "right", y: bins.map((bin) => bin.accuracy), kind: "test" },
      { name: "confidence", y: bins.map((bin) => bin.confidence), kind: "train" },
    ],
    say: percent, sayX: (share) => {
      const bin = bins.find((each) => each.confidence === share);
      return `${number(bin.count)} images at ${percent(bin.low)} to ${percent(bin.high)}`;
    },
  });
}

// ---------------------------------------------------------------- the filmstrip

for (const canvas of all("canvas[data-film]")) {
  const film = find("#film"), [rows, columns] = [+film.dataset.rows, +film.dataset.columns];
  film.decode().then(() => {
    const high = film.naturalHeight / rows, wide = film.naturalWidth / columns;
    const [row, column] = canvas.dataset.film.split(" ").map(Number);
    canvas.width = 3 * wide;
    canvas.height = 3 * high;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(film, column * wide, row * high, wide, high, 0, 0, canvas.width, canvas.height);
  });
}

for (const button of all("[data-copy]")) {
  button.addEventListener("click", () => {
    navigator.clipboard?.writeText(find(button.dataset.copy).textContent).then(
      () => { button.textContent = "Copied"; },
      () => { button.textContent = "Select it and copy"; },
    );
  });
}
document.documentElement.classList.add("ready");
})();
