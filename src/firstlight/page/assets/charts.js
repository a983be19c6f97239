"use strict";
// Learning curves, the learning-rate finder, and the reliability diagram.
{
  const draw = (tag, attributes, parent) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    parent.append(node);
    return node;
  };
  const short = (value) => String(+value.toPrecision(3));
  const range = (first, last) => Array.from({ length: Math.max(last - first + 1, 0) }, (_, k) => first + k);
  const powers = (low, high) =>
    range(Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)).map((power) => 10 ** power);
  function ticks(low, high, count) {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const size = [1, 2, 2.5, 5, 10].map((k) => k * power).find((k) => k >= rough * 0.999);
    return range(Math.ceil(low / size - 1e-9), Math.floor(high / size + 1e-9)).map((k) => k * size);
  }

  /** Draw lines over a shared x; a pointer or the arrow keys read their values off.
   *
   * lines: {name, y, kind}, null where not measured. marks: {x, text}. log: of x. from, to, low, high: limits of x
   * and y. say, sayX: a value in words. fill: below the line. last: name the last values while none is pointed at.
   */
  function chart(id, options) {
    const { x, marks = [], log, from = x[0], to = x.at(-1), low, high, fill, last = true } = options;
    const { say, sayX, sayTick = short } = options;
    const holder = find(id), lines = options.lines.filter(({ y }) => y.some((value) => value !== null));
    if (!lines.length) return;
    // As wide as it is shown, where that is narrow: its words are then not shrunk.
    const W = Math.min(Math.max(holder.clientWidth || 640, 300), 640), H = +holder.dataset.height;
    const [left, right, top, bottom] = [52, W - 16, marks.length ? 22 : 10, H - 28];
    const svg = draw("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", tabindex: 0 }, holder);
    svg.setAttribute("aria-label", holder.dataset.alt);
    const values = lines.flatMap((line) => line.y).filter((value) => value !== null);
    const least = low ?? Math.min(...values), most = high ?? Math.max(...values), room = 0.06 * (most - least || 1);
    const y0 = low ?? least - room, y1 = most + room;
    const along = log ? Math.log10 : (value) => value, [x0, x1] = [along(from), along(to)];
    const px = (value) => left + ((along(value) - x0) / (x1 - x0 || 1)) * (right - left);
    const py = (value) => bottom - ((value - y0) / (y1 - y0)) * (bottom - top);
    const write = (type, at, text) => { draw("text", { class: type, ...at }, svg).textContent = text; };
    for (const value of ticks(y0, y1, H < 160 ? 3 : 5)) {
      draw("line", { class: "grid", x1: left, x2: right, y1: py(value), y2: py(value) }, svg);
      write("end", { x: left - 8, y: py(value) + 4 }, say(value, true));
    }
    for (const value of log ? powers(from, to) : ticks(x0, x1, W < 480 ? 5 : 8)) {
      write("middle", { x: px(value), y: H - 8 }, sayTick(value));
    }
    for (const [rank, mark] of marks.entries()) {
      draw("line", { class: "mark", x1: px(mark.x), x2: px(mark.x), y1: top, y2: bottom }, svg);
      const isBefore = px(mark.x) > (rank ? right - 80 : left + 80);  // the two names point away from each other
      write(isBefore ? "mark end" : "mark", { x: px(mark.x) + (isBefore ? 4 : -4), y: top - 8 }, mark.text);
    }
    for (const { y, kind } of lines) {
      const points = y.map((value, i) => [x[i], value]).filter(([, value]) => value !== null);
      const path = points.map(([at, value]) => `${px(at).toFixed(1)} ${py(value).toFixed(1)}`).join("L");
      if (fill) draw("path", { class: "fill", d: `M${path}L${px(to)} ${py(y0)}L${px(x[0])} ${py(y0)}Z` }, svg);
      draw("path", { class: `line ${kind}`, d: "M" + path }, svg);
      // Where not every place was measured, those that were are marked.
      if (points.length < Math.max(3, x.length)) for (const [at, value] of points) {
        draw("circle", { class: `dot ${kind}`, cx: px(at), cy: py(value), r: 3 }, svg);
      }
    }
    const ruler = draw("line", { class: "ruler", y1: top, y2: bottom, visibility: "hidden" }, svg);
    const dots = lines.map(({ kind }) => draw("circle", { class: `dot ${kind}`, r: 4, visibility: "hidden" }, svg));
    const reading = holder.appendChild(make("p", { className: "reading", "aria-live": "polite" }));
    let current = x.length - 1;
    /** Show the values at place `i`; null shows the last ones and no ruler. */
    const point = (i) => {
      current = Math.min(Math.max(i ?? x.length - 1, 0), x.length - 1);
      const show = (node, isShown, at) => {
        for (const [name, value] of Object.entries(isShown ? at : {})) node.setAttribute(name, value);
        node.setAttribute("visibility", isShown ? "visible" : "hidden");
      };
      show(ruler, i !== null, { x1: px(x[current]), x2: px(x[current]) });
      reading.replaceChildren(i === null ? "" : make("span", { textContent: sayX(x[current]) }));
      lines.forEach(({ name, y, kind }, rank) => {
        const value = i === null ? y.findLast((each) => each !== null) : y[current];
        show(dots[rank], i !== null && value !== null, { cx: px(x[current]), cy: py(value) });
        const words = i === null && !last ? name : `${name} ${value === null ? "–" : say(value)}`;
        reading.append(make("span", { className: `key ${kind}`, textContent: words }));
      });
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), wanted = ((event.clientX - box.left) / box.width) * W;
      const distance = (i) => Math.abs(px(x[i]) - wanted);
      point(x.reduce((nearest, _, i) => (distance(i) < distance(nearest) ? i : nearest), 0));
    });
    for (const leave of ["pointerleave", "blur"]) svg.addEventListener(leave, () => point(null));
    svg.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      point(current + by);
    });
    point(null);
  }

  if (data.curves) {
    const { epochs, series, rates } = data.curves;
    const of = (quantity) => series.map((part) => ({ name: part.name, y: part[quantity], kind: part.name }));
    const shared = { x: epochs, sayX: (epoch) => `epoch ${epoch}`, from: Math.min(1, epochs[0]) };
    const asPercent = (value, isTick) => (100 * value).toFixed(isTick ? 0 : 2) + "%";
    chart("#accuracy", { ...shared, lines: of("accuracy"), say: asPercent });
    const asLoss = (value, isTick) => (isTick ? short(value) : value.toFixed(3));
    chart("#loss", { ...shared, lines: of("loss"), say: asLoss });
    chart("#rate", {
      x: rates.x, lines: [{ name: "learning rate", y: rates.y, kind: "rate" }], low: 0, fill: true,
      say: short, sayX: (epoch) => `epoch ${short(epoch)}`, from: 0,
    });
  }
  if (data.finder) {
    const { rates, losses, smoothed, min, peak, raced } = data.finder;
    chart("#finder", {
      x: rates, log: true, say: short, sayX: (rate) => `rate ${short(rate)}`,
      from: Math.min(min, rates[0]), to: Math.max(peak, rates.at(-1)),
      lines: [
        { name: raced ? "held-out loss" : "loss", y: losses, kind: "train" },
        { name: raced ? "parabola" : "smoothed", y: smoothed, kind: "test" },
      ],
      marks: [{ x: min, text: `LRMIN ${short(min)}` }, { x: peak, text: `LRMAX ${short(peak)}` }],
    });
  }
  if (data.calibration) {
    const bins = data.calibration.filter((bin) => bin.count), confidence = bins.map((bin) => bin.confidence);
    chart("#calibration", {
      x: confidence, low: 0, high: 1, from: 0, to: 1, last: false, say: percent, sayTick: percent,
      lines: [
        { name: "accuracy", y: bins.map((bin) => bin.accuracy), kind: "test" },
        { name: "confidence", y: confidence, kind: "train" },
      ],
      sayX: (share) => {
        const bin = bins.find((each) => each.confidence === share);
        return `${number(bin.count)} images at ${percent(bin.low)} to ${percent(bin.high)}`;
      },
    });
  }
}
