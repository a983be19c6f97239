"use strict";

const data = JSON.parse(document.querySelector("#data").textContent);
const find = (words, within = document) => within.querySelector(words);
const SHOWN = 5, SIMILAR = 6, AT_ONCE = 2;
const percent = (p) => (100 * p).toFixed(1) + "%";

// ---------------------------------------------------------------- pictures come in

const waiting = [];
let running = 0;

function take(files) {
  const pictures = [...files];
  const cards = pictures.map((file) => {
    const card = find("#answer").content.firstElementChild.cloneNode(true);
    find(".file", card).textContent = file.name || "pasted picture";
    find(".remove", card).setAttribute("aria-label", "Remove " + find(".file", card).textContent);
    find(".remove", card).addEventListener("click", () => { card.remove(); find("#choose").focus(); });
    return card;
  });
  find("#answers").prepend(...cards);
  pictures.forEach((file, i) => waiting.push([file, cards[i]]));
  next();
}

async function next() {
  while (running < AT_ONCE && waiting.length) {
    const [file, card] = waiting.shift();
    if (!card.isConnected) continue;
    running++;
    show(file, card).catch((error) => fail(card, error)).finally(() => { running--; next(); });
  }
}

async function ask(file, words) {
  if (file.size > data.most_bytes) throw new Error("This picture is too large.\nMake it smaller first.");
  const query = new URLSearchParams({ name: file.name || "the pasted picture", ...words });
  for (let attempt = 0; ; attempt++) {
    let response;
    try {
      response = await fetch("/predict?" + query, {
        method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" },
      });
    } catch {
      throw new Error("The server does not answer.\nIs `firstlight serve` still running?");
    }
    if ((response.status === 503 || response.status === 429) && attempt < 20) {
      const seconds = +response.headers.get("Retry-After") || 1;
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
      continue;
    }
    const answer = await response.json();
    if (!response.ok) throw new Error([answer.error, answer.hint].filter(Boolean).join("\n"));
    return answer;
  }
}

function fail(card, error) {
  const [message, hint = ""] = error.message.split("\n"), place = find(".missing", card);
  find(".waiting", card).hidden = true;
  place.hidden = false;
  place.replaceChildren(Object.assign(document.createElement("strong"), { textContent: message }),
    Object.assign(document.createElement("small"), { textContent: hint }));
  tell(message);
}

function tell(words) { find("#status").textContent = words; }

// ---------------------------------------------------------------- an answer

async function show(file, card) {
  const answer = await ask(file, { heat: "", similar: SIMILAR, preview: "1" });
  const picture = new Image();
  picture.src = answer.preview;
  await picture.decode();
  const heats = new Map([[answer.heat.class, answer.heat]]);
  const canvas = find(".picture", card), opacity = find(".opacity", card), list = find(".classes", card);
  const select = find("select", card);
  let current = answer.heat.class;

  function draw() {
    const heat = heats.get(current);
    drawAnswer(canvas, picture, answer.seen, heat, opacity.value / 100, data.colours);
    canvas.classList.toggle("small", Math.max(picture.naturalWidth, picture.naturalHeight) < 200);
    canvas.setAttribute("aria-label", `${find(".file", card).textContent}, with the evidence for ${current}`);
    const cut = answer.seen.width < 0.999 || answer.seen.height < 0.999;
    find(".about", card).textContent =
      (heat.strongest ? `Where the network found evidence for ${current} (Grad-CAM). ` : `No evidence for ${current}. `) +
      (cut ? "It saw only what is inside the frame." : "");
    for (const button of list.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.value === current));
    }
    select.value = current;
  }
  async function choose(name) {
    current = name;
    try {
      if (!heats.has(name)) heats.set(name, (await ask(file, { heat: name })).heat);
    } catch (error) { return fail(card, error); }
    if (current === name) draw();
  }

  const [best] = answer.probabilities;
  find(".verdict strong", card).textContent = best.class;
  find(".verdict span", card).textContent = percent(best.probability) + " sure";
  for (const { class: name, probability } of answer.probabilities.slice(0, SHOWN)) {
    list.append(row(name, probability, () => choose(name)));
  }
  select.append(...answer.probabilities.map((each) =>
    new Option(`${each.class} (${percent(each.probability)})`, each.class)));
  select.addEventListener("change", () => choose(select.value));
  find(".other", card).hidden = answer.probabilities.length <= SHOWN;
  opacity.addEventListener("input", draw);
  const scale = new ImageData(256, 1);
  data.colours.forEach((colour, x) => scale.data.set([...colour, 255], 4 * x));
  find(".colours", card).getContext("2d").putImageData(scale, 0, 0);
  find(".alike", card).hidden = !answer.similar.length;
  find(".alike ul", card).append(...answer.similar.map(alike));
  draw();
  card.answer = answer;
  find(".missing", card).hidden = find(".waiting", card).hidden = true;
  find(".both", card).hidden = false;
  tell(`${find(".file", card).textContent}: ${best.class}, ${percent(best.probability)}`);
}

function row(name, probability, act) {
  const button = document.createElement("button"), track = document.createElement("span");
  button.type = "button";
  button.value = name;
  button.title = "Show the evidence for " + name;
  track.className = "track";
  track.append(document.createElement("span"));
  track.firstChild.style.width = percent(probability);
  const [label, number] = [name, percent(probability)].map((words) =>
    Object.assign(document.createElement("span"), { textContent: words }));
  button.append(label, number, track);
  button.addEventListener("click", act);
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function alike(one) {
  const item = document.createElement("li"), image = new Image(), said = document.createElement("span");
  image.src = one.picture;
  image.alt = one.true ?? one.name;
  image.title = one.name;
  const label = Object.assign(document.createElement("b"), { textContent: one.true ?? one.name });
  said.append(label);
  const taken = one.predicted !== one.true && `taken for ${one.predicted}`;
  const parts = [taken, `similarity ${one.similarity.toFixed(2)}`].filter(Boolean);
  item.append(image, said, ...parts.map((words) =>
    Object.assign(document.createElement("span"), { textContent: words })));
  return item;
}

// ---------------------------------------------------------------- drop, paste, choose, photograph

for (const [button, input] of [["#choose", "#files"], ["#photograph", "#camera"]]) {
  find(button).addEventListener("click", () => find(input).click());
  find(input).addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
}
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) { event.preventDefault(); take(event.clipboardData.files); }
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); find("#drop").classList.add("over"); });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) find("#drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  find("#drop").classList.remove("over");
  take(event.dataTransfer.files);
});
document.documentElement.classList.add("ready");
