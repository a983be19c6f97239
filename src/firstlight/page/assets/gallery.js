"use strict";
// The matrix, the gallery, and one image enlarged with the evidence for two classes.
if (data.items) {
  const { classes, items } = data, [HEIGHT, WIDTH] = data.size;
  const sheet = find("#sheet"), gallery = find("#gallery"), controls = find("#controls"), dialog = find("#enlarged");
  const title = (i) => items.name[i] || "#" + items.index[i];
  const isWrong = (i) => items.true[i] !== items.predicted[i];
  /** No confidence is certain, whatever rounding says. */
  const sureness = (share) => (share >= 0.995 ? ">99%" : share < 0.005 ? "<1%" : percent(share));

  /** The picture in the shape of its file, where the network saw a part of it. */
  const whole = (i) => (data.whole && data.whole[i] ? "data:image/jpeg;base64," + data.whole[i] : "");

  /** Draw a tile of the sheet over a whole canvas, its pixels sharp. */
  function drawTile(canvas, tile, width) {
    const scale = Math.max(1, Math.round((width / WIDTH) * (window.devicePixelRatio || 1)));
    canvas.width = WIDTH * scale;
    canvas.height = HEIGHT * scale;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    const left = (tile % data.columns) * WIDTH, top = Math.floor(tile / data.columns) * HEIGHT;
    if (tile >= 0) context.drawImage(sheet, left, top, WIDTH, HEIGHT, 0, 0, canvas.width, canvas.height);
    return context;
  }

  // ---------------------------------------------------------------- Grad-CAM

  const heat = data.heat && Uint8Array.from(atob(data.heat.bytes), (letter) => letter.charCodeAt(0));
  /** Return the map of item `i`: 0 for the predicted class, 1 for the true one; null where there is none. */
  function heatMap(i, which) {
    if (!heat || i >= data.heat.count) return null;
    const cells = data.heat.grid[0] * data.heat.grid[1], start = (2 * i + which) * cells;
    return heat.subarray(start, start + cells);
  }
  /** Lay a map over the image on a canvas, which turns grey: smooth between the middles of its cells, or not. */
  function drawHeat(context, map, opacity, smooth) {
    const [rows, columns] = data.heat.grid, { width, height } = context.canvas;
    const cells = new ImageData(columns, rows);
    map.forEach((value, i) => cells.data.set([value, value, value, 255], 4 * i));
    const small = make("canvas", { width: columns, height: rows });
    small.getContext("2d").putImageData(cells, 0, 0);
    const veil = make("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
    veil.imageSmoothingEnabled = smooth;
    veil.drawImage(small, 0, 0, width, height);
    const pixels = veil.getImageData(0, 0, width, height);
    for (let i = 0; i < pixels.data.length; i += 4) {
      const strength = pixels.data[i];
      pixels.data.set(data.colours[strength], i);
      pixels.data[i + 3] = 64 + 0.75 * strength;
    }
    veil.putImageData(pixels, 0, 0);
    context.globalAlpha = opacity;
    context.globalCompositeOperation = "saturation";
    context.fillStyle = "grey";
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "source-over";
    context.drawImage(veil.canvas, 0, 0);
  }

  // ---------------------------------------------------------------- the gallery

  const STEP = matchMedia("(max-width: 44rem)").matches ? 48 : 120;
  const rank = new Map(data.suspects.map((i, position) => [i, position]));
  let state, listed = [];

  function fits(i) {
    const { show, truth, predicted, text } = state;
    if (!{ wrong: isWrong(i), right: !isWrong(i), suspects: rank.has(i) }[show]) return false;
    if (truth !== "" && items.true[i] !== +truth) return false;
    if (predicted !== "" && items.predicted[i] !== +predicted) return false;
    const words = [title(i), "#" + items.index[i], classes[items.true[i]], classes[items.predicted[i]]];
    return words.some((word) => word.toLowerCase().includes(text.trim().toLowerCase()));
  }
  const ORDERS = {
    loss: (i, j) => items.loss[j] - items.loss[i],
    sure: (i, j) => items.confidence[j][0] - items.confidence[i][0],
    unsure: (i, j) => items.confidence[i][0] - items.confidence[j][0],
    suspects: (i, j) => (rank.get(i) ?? Infinity) - (rank.get(j) ?? Infinity),
    index: (i, j) => items.index[i] - items.index[j],
  };

  function card(i) {
    const predicted = `${classes[items.predicted[i]]} ${sureness(items.confidence[i][0])}`;
    const words = `${title(i)}: predicted ${predicted}, true ${classes[items.true[i]]}`;
    const button = make("button", { type: "button", className: "card", title: words, "aria-label": words });
    button.dataset.index = items.index[i];
    const canvas = make("canvas");
    if (items.tile[i] >= 0) drawTile(canvas, items.tile[i], 96);
    if (whole(i)) button.append(make("img", { src: whole(i), alt: "" }));
    else button.append(items.tile[i] < 0 ? make("span", { className: "nothing", textContent: "no image kept" }) : canvas);
    if (isWrong(i)) button.append(make("span", { className: "predicted", textContent: predicted }));
    button.append(make("span", { className: "true", textContent: classes[items.true[i]] }));
    button.addEventListener("click", () => enlarge(i));
    return make("li", {}, button);
  }

  function refresh() {
    const order = ORDERS[state.sort], { truth, predicted } = state;
    listed = items.index.map((_, i) => i).filter(fits).sort((i, j) => order(i, j) || i - j);
    const shown = listed.slice(0, state.limit);
    gallery.replaceChildren(...shown.map(card));
    const kind = { wrong: "mistakes", right: "right answers with an image", suspects: "label errors" }[state.show];
    const name = (k) => (k === "" ? "any class" : classes[k]);
    let words = listed.length ? `${number(listed.length)} ${kind}` : `No ${kind}`;
    if (truth + predicted) words += `: ${name(truth)}, predicted as ${name(predicted)}`;
    if (shown.length < listed.length) words += `; the first ${number(shown.length)} are shown`;
    find("#extent").textContent = words + ".";
    find("#more").hidden = shown.length === listed.length;
    for (const cell of all("[data-true]")) {
      const isChosen = cell.dataset.true === truth && cell.dataset.predicted === predicted;
      cell.setAttribute("aria-pressed", isChosen);
    }
  }
  function read() {
    state = { ...Object.fromEntries(new FormData(controls)), limit: STEP };
    refresh();
  }
  function choose(values) {
    const usual = { show: "wrong", truth: "", predicted: "", text: "", sort: "loss" };
    for (const [name, value] of Object.entries({ ...usual, ...values })) controls.elements[name].value = value;
    read();
  }
  controls.addEventListener("input", read);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("reset", (event) => {
    event.preventDefault();
    choose({});
  });
  find("#more").addEventListener("click", () => {
    const before = gallery.children.length;
    state.limit += STEP;
    refresh();
    find("button", gallery.children[before])?.focus({ preventScroll: true });
  });
  // Sheets of thousands of tiles take a moment to decode; the rest of the page does not wait.
  (sheet ? sheet.decode().catch(() => {}) : Promise.resolve()).then(read);
  for (const cell of all("[data-true]")) {
    cell.addEventListener("click", () => {
      const { true: truth, predicted } = cell.dataset;
      choose({ show: truth === predicted ? "right" : "wrong", truth, predicted, sort: controls.elements.sort.value });
      const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
      find("#mistakes").scrollIntoView({ behavior: isStill ? "auto" : "smooth" });
      find("#extent").focus({ preventScroll: true });
    });
  }
  for (const link of all("[data-show]")) link.addEventListener("click", () => choose({ ...link.dataset }));

  // ---------------------------------------------------------------- one image, enlarged

  let current = -1;

  function enlarge(i) {
    current = i;
    const predicted = `${classes[items.predicted[i]]} (${sureness(items.confidence[i][0])})`;
    const truth = `${classes[items.true[i]]} (${sureness(items.trueProbability[i])})`;
    find("#enlarged-title").textContent = title(i);
    find("#enlarged-facts").textContent = (items.name[i] ? `#${items.index[i]} of the test set. ` : "")
      + `Predicted: ${predicted}, ${isWrong(i) ? `true: ${truth}` : "which is right"}. Loss ${items.loss[i]}.`;
    find("#enlarged-bars").replaceChildren(...items.top[i].map((k, rank) => {
      const value = items.confidence[i][rank];
      const meter = make("meter", { min: 0, max: 1, value, "aria-label": classes[k] });
      const [name, share] = [classes[k], sureness(value)].map((textContent) => make("span", { textContent }));
      return make("li", {}, name, meter, share);
    }));
    paint();
    const position = listed.indexOf(i);
    find("#previous").disabled = position <= 0;
    find("#next").disabled = position < 0 || position === listed.length - 1;
    if (!dialog.open) dialog.showModal();
  }

  function paint() {
    if (current < 0) return;
    const opacity = find("#opacity").value / 100, smooth = find("#smooth").checked, tile = items.tile[current];
    const hasHeat = isWrong(current) && heatMap(current, 0) !== null;
    find("#heat-controls").hidden = !hasHeat;
    if (data.whole) {
      find("#view-whole").hidden = !whole(current);
      find("img", find("#view-whole")).src = whole(current);
    }
    for (const kind of ["image", "predicted", "true"]) {
      const figure = find("#view-" + kind), canvas = find("canvas", figure), note = find(".note", figure);
      figure.hidden = kind !== "image" && !hasHeat;
      const context = drawTile(canvas, tile, 192);
      note.textContent = tile < 0 ? "no image kept" : "";
      if (kind === "image" || !hasHeat) continue;
      const map = heatMap(current, kind === "true" ? 1 : 0), name = classes[items[kind][current]];
      find("b", figure).textContent = name;
      if (map.some((value) => value > 0)) drawHeat(context, map, opacity, smooth);
      else note.textContent = "no positive evidence";
      canvas.setAttribute("aria-label", `Evidence for ${name}${note.textContent && ": " + note.textContent}`);
    }
  }

  function step(by) {
    const position = listed.indexOf(current) + by;
    if (position in listed) enlarge(listed[position]);
  }
  find("#close").addEventListener("click", () => dialog.close());
  find("#previous").addEventListener("click", () => step(-1));
  find("#next").addEventListener("click", () => step(1));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && event.target.type !== "range") step(by);
  });
  dialog.addEventListener("close", () => find(`[data-index="${items.index[current]}"]`, gallery)?.focus());
  for (const id of ["#opacity", "#smooth"]) find(id).addEventListener("input", paint);

  const scale = new ImageData(256, 1), bar = find("#colours");
  data.colours.forEach((colour, x) => scale.data.set([...colour, 255], 4 * x));
  bar.width = 256;
  bar.height = 1;
  bar.getContext("2d").putImageData(scale, 0, 0);
}
