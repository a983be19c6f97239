"use strict";

/** Draw a picture on a canvas, and over what the network saw of it the evidence for a class. */
function drawAnswer(canvas, picture, seen, heat, opacity, colours) {
  const { naturalWidth: width, naturalHeight: height } = picture;
  // A thumbnail is enlarged by a whole number, so that the heat over it is smooth.
  const scale = Math.max(1, Math.round(384 / Math.max(width, height)));
  canvas.width = width * scale;
  canvas.height = height * scale;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = scale === 1;
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  if (!heat || !opacity || !heat.strongest) return;
  const veil = veilOf(heat, canvas.width, canvas.height, seen, colours);
  const left = Math.max(0, seen.left * canvas.width), top = Math.max(0, seen.top * canvas.height);
  const right = Math.min(1, seen.left + seen.width) * canvas.width;
  const bottom = Math.min(1, seen.top + seen.height) * canvas.height;
  context.globalAlpha = opacity;
  context.globalCompositeOperation = "saturation";
  context.fillStyle = "grey";
  context.fillRect(left, top, right - left, bottom - top);
  context.globalCompositeOperation = "source-over";
  context.drawImage(veil, 0, 0);
  // What was cut off stays as it is, outside a frame.
  if (right - left < canvas.width - 1 || bottom - top < canvas.height - 1) {
    context.strokeStyle = "white";
    context.lineWidth = Math.max(1, canvas.width / 300);
    context.strokeRect(left, top, right - left, bottom - top);
  }
}

/** Return the evidence in colours, smooth between the middles of the cells, on a canvas as large as the picture. */
function veilOf(heat, width, height, seen, colours) {
  const cells = new ImageData(heat.columns, heat.rows);
  heat.cells.forEach((value, i) => cells.data.set([value, value, value, 255], 4 * i));
  const small = document.createElement("canvas");
  small.width = heat.columns;
  small.height = heat.rows;
  small.getContext("2d").putImageData(cells, 0, 0);
  const veil = document.createElement("canvas");
  veil.width = width;
  veil.height = height;
  const context = veil.getContext("2d", { willReadFrequently: true });
  context.drawImage(small, seen.left * width, seen.top * height, seen.width * width, seen.height * height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    if (!pixels.data[i + 3]) continue; // the network did not see it
    const strength = pixels.data[i];
    pixels.data.set(colours[strength], i);
    pixels.data[i + 3] = 64 + 0.75 * strength;
  }
  context.putImageData(pixels, 0, 0);
  return veil;
}
