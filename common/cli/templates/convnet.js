// Exercise 9 in the browser: its convnet on weights of a run, its filters and feature maps, and digits drawn by hand.
"use strict";

// Feature maps (h, w, C') of x (h, w, C) under kernels w (5, 5, C, C') with stride 2 and padding "SAME", then a ReLU.
// As JAX pads an even side: one row before it, two after.
function convolve(x, side, channels, w, b) {
  const half = side / 2, out = b.length, y = new Float32Array(half * half * out);
  for (let i = 0; i < half; i++) for (let j = 0; j < half; j++) {
    const at = (i * half + j) * out;
    y.set(b, at);
    for (let di = 0; di < 5; di++) for (let dj = 0; dj < 5; dj++) {
      const row = 2 * i + di - 1, column = 2 * j + dj - 1;
      if (row < 0 || row >= side || column < 0 || column >= side) continue;
      for (let c = 0; c < channels; c++) {
        const value = x[(row * side + column) * channels + c], from = ((di * 5 + dj) * channels + c) * out;
        for (let o = 0; o < out; o++) y[at + o] += value * w[from + o];
      }
    }
  }
  return y.map((value) => Math.max(0, value));
}

function dense(x, { w, b }) {
  return b.map((bias, o) => x.reduce((sum, value, i) => sum + value * w[i * b.length + o], bias));
}

// Logits (10) and first feature maps (14, 14, C) of an image: 784 pixels, 0 for paper to 255 for ink.
function convnet(params, image) {
  const x = Float32Array.from(image, (pixel) => (pixel / 255 - 0.1307) / 0.3081);
  const maps = convolve(x, 28, 1, params[0].w, params[0].b);
  const features = convolve(maps, 14, params[0].b.length, params[1].w, params[1].b);
  return { maps, logits: dense(dense(features, params[2]).map((value) => Math.max(0, value)), params[3]) };
}

// A drawing (size, size) as 784 pixels: shrunk as it is, or as MNIST's were: the longest side of what is drawn becomes
// 20 pixels, and it is moved by whole pixels until its centre of mass is nearest to pixel (14, 14). (LeCun's page of the
// data; all of MNIST's own digits lie so.) Each pixel is a mean of the drawing.
function shrink(ink, size, normalise) {
  let [top, left, scale] = [0, 0, size / 28];
  if (normalise) {
    let mass = 0, y = 0, x = 0, low = [size, size], high = [-1, -1];
    for (let i = 0; i < size; i++) for (let j = 0; j < size; j++) if (ink[i * size + j]) {
      const value = ink[i * size + j];
      [mass, y, x] = [mass + value, y + value * (i + 0.5), x + value * (j + 0.5)];
      [low, high] = [[Math.min(low[0], i), Math.min(low[1], j)], [Math.max(high[0], i), Math.max(high[1], j)]];
    }
    if (!mass) return new Float32Array(784);
    scale = Math.max(high[0] - low[0] + 1, high[1] - low[1] + 1) / 20;
    const place = (low, centre) => low - Math.round(14.5 - (centre - low) / scale) * scale;
    [top, left] = [place(low[0], y / mass), place(low[1], x / mass)];
  }
  const parts = 6; // points a side whose mean is a pixel
  return Float32Array.from({ length: 784 }, (_, pixel) => {
    let sum = 0;
    for (let a = 0; a < parts; a++) for (let b = 0; b < parts; b++) {
      const i = Math.floor(top + (Math.floor(pixel / 28) + (a + 0.5) / parts) * scale);
      const j = Math.floor(left + (pixel % 28 + (b + 0.5) / parts) * scale);
      if (i >= 0 && i < size && j >= 0 && j < size) sum += ink[i * size + j];
    }
    return sum / parts ** 2;
  });
}

// Values as an image of side x side, paper to ink; or, around 0, blue to red.
function picture(canvas, side, values, most, signed) {
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d"), image = context.createImageData(side, side);
  for (let i = 0; i < side * side; i++) {
    const share = Math.min(1, Math.abs(values[i]) / (most || 1)), rest = 255 * (1 - share);
    const colour = !signed ? [rest, rest, rest] : values[i] > 0 ? [255 - 70 * share, rest, rest] : [rest, rest, 255 - 70 * share];
    image.data.set([...colour, 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

function parametersOf(data) {
  return data.layers.map(({ w, b }) => ({ w: halves(w), b: halves(b) }));
}

function drawDigits(live, data, form, tell) {
  const params = parametersOf(data), channels = params[0].b.length, find = (name) => live.querySelector(name);
  const canvas = find(".draw"), context = canvas.getContext("2d", { willReadFrequently: true }), size = canvas.width;
  const all = Array.from({ length: channels }, (_, c) => c), many = (name) => {
    find(name).replaceChildren(...all.map(() => document.createElement("canvas")));
    return [...find(name).children];
  };
  const filters = many(".filters"), maps = many(".maps"), most = Math.max(...params[0].w.map(Math.abs));
  filters.forEach((filter, c) => picture(filter, 5, params[0].w.filter((_, i) => i % channels === c), most, true));
  const bars = all.slice(0, 10).map((k) => {
    const bar = document.createElement("div");
    bar.append(String(k), document.createElement("i"), document.createElement("span"));
    return bar;
  });
  find(".bars").replaceChildren(...bars);

  const read = (image) => {
    const { logits, maps: values } = convnet(params, image), shares = softmax(logits), best = shares.indexOf(Math.max(...shares));
    picture(find(".seen"), 28, image, 255);
    const largest = Math.max(...values);
    maps.forEach((map, c) => picture(map, 14, values.filter((_, i) => i % channels === c), largest));
    bars.forEach((bar, k) => {
      bar.className = k === best ? "best" : "";
      bar.children[0].style.setProperty("--share", shares[k]);
      bar.children[1].textContent = `${(100 * shares[k]).toFixed(1)} %`;
    });
    tell(`It reads a ${best}, with ${(100 * shares[best]).toFixed(1)} %.`, { digit: best, logits: Array.from(logits), image: Array.from(image) });
  };
  const readDrawing = () => {
    const pixels = context.getImageData(0, 0, size, size).data;
    const ink = Float32Array.from({ length: size * size }, (_, i) => 255 - pixels[4 * i]);
    if (ink.every((value) => !value)) return tell("Nothing is drawn yet.", null);
    read(shrink(ink, size, form.elements.normalise.checked));
  };
  const clear = () => {
    context.fillStyle = "white";
    context.fillRect(0, 0, size, size);
  };

  let last = null;
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * size / box.width, (event.clientY - box.top) * size / box.height];
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = place(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    const next = place(event);
    Object.assign(context, { lineWidth: 22, lineCap: "round", strokeStyle: "black" });
    context.beginPath();
    context.moveTo(...last);
    context.lineTo(...next);
    context.stroke();
    last = next;
    readDrawing();
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { last = null; });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.elements.normalise.addEventListener("input", readDrawing);
  form.querySelector("button").addEventListener("click", () => { clear(); readDrawing(); });

  clear();
  find(".digits").append("Or read one of the test set: ", ...data.digits.map((text, k) => {
    const image = Uint8Array.from(atob(text), (char) => char.charCodeAt(0)), button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `read the ${k} of the test set`);
    picture(button.appendChild(document.createElement("canvas")), 28, image, 255);
    button.addEventListener("click", () => { clear(); read(image); });
    return button;
  }));
  read(Uint8Array.from(atob(data.digits[7]), (char) => char.charCodeAt(0)));
}
