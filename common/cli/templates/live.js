// The lessons' interactive pictures. Each reads its data from the page, and says in the data-result of its element, and
// in the line below it, what it shows. plotly.js draws what has axes.
"use strict";

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const digits = (x, n = 4) => Math.abs(x) >= 1e5 || (x && Math.abs(x) < 1e-4) ? x.toExponential(2) : String(+x.toPrecision(n));
const CLASSES = ["#d55e00", "#009e73", "#0072b2"]; // Okabe and Ito's, as in the still pictures

function plot(box, traces, x, y, more = {}) {
  const axis = (options) => ({ fixedrange: true, gridcolor: css("line"), zerolinecolor: css("line"), ...options });
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("ink"), size: 13 }, dragmode: false,
    margin: { l: 54, r: 12, t: 12, b: 46 }, xaxis: axis(x), yaxis: axis(y), showlegend: false, ...more,
  };
  return Plotly.react(box, traces, layout, { displayModeBar: false, responsive: true });
}

// Numbers of base64 in float16, little-endian (IEEE 754: a sign, five bits of exponent, ten of fraction).
function halves(text) {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  return Float32Array.from({ length: bytes.length / 2 }, (_, i) => {
    const bits = bytes[2 * i] | (bytes[2 * i + 1] << 8), exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const size = exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction;
    return bits >> 15 ? -size : size;
  });
}

// Exercise 1: w and b after each step of SGD. The gradient of a batch needs only its means of x, x², y and xy.
function walk(batches, rate, steps) {
  const path = [[0, 0]];
  for (const [x, xx, y, xy] of batches.slice(0, steps)) {
    const [w, b] = path.at(-1);
    path.push([w - rate * 2 * (w * xx + b * x - xy), b - rate * 2 * (w * x + b - y)]);
  }
  return path;
}

function lossOfLine([x, xx, y, xy, yy], w, b) {
  return w * w * xx + b * b + yy + 2 * (w * b * x - w * xy - b * y);
}

const pictures = {
  1(data, read, box, tell) {
    const rate = 10 ** read.rate, path = walk(data.batches, rate, read.steps), [w, b] = path.at(-1);
    const loss = lossOfLine(data.all, w, b), side = (low, high) => Array.from({ length: 60 }, (_, i) => low + (high - low) * i / 59);
    const [ws, bs] = [side(-1, 7), side(-2, 6)], shown = path.filter(([w, b]) => Math.abs(w) < 50 && Math.abs(b) < 50);
    plot(box, [
      { type: "contour", x: ws, y: bs, z: bs.map((b) => ws.map((w) => Math.sqrt(lossOfLine(data.all, w, b)))), showscale: false,
        contours: { coloring: "lines" }, colorscale: [[0, css("line")], [1, css("quiet")]], ncontours: 14, hoverinfo: "skip" },
      { x: shown.map((p) => p[0]), y: shown.map((p) => p[1]), mode: "lines+markers", marker: { size: 5, color: css("yours") },
        line: { color: css("yours"), width: 1 }, text: shown.map((_, i) => `step ${i}`), hovertemplate: "%{text}: w %{x:.3f}, b %{y:.3f}<extra></extra>" },
    ], { title: { text: "weight w" }, range: [-1, 7] }, { title: { text: "bias b" }, range: [-2, 6] });
    const end = Number.isFinite(loss) && loss < 1e6 ? `w = ${digits(w, 5)}, b = ${digits(b, 5)}, loss ${digits(loss)}` : "it has diverged";
    tell(`After ${read.steps} steps at learning rate ${digits(rate, 3)}: ${end}.`, [w, b, loss]);
    return { rate: digits(rate, 3), steps: String(read.steps) };
  },

  5(data, read, box, tell) {
    const frame = data.frames[read.frame], n = data.grid, side = Array.from({ length: n }, (_, i) => data.reach * (2 * i / (n - 1) - 1));
    const z = side.map((_, i) => Array.from(frame.classes.slice(i * n, (i + 1) * n), Number));
    const colours = CLASSES.flatMap((colour, k) => [[k / 3, colour], [(k + 1) / 3, colour]]);
    plot(box, [
      { type: "heatmap", x: side, y: side, z, zmin: -0.5, zmax: 2.5, colorscale: colours, showscale: false, opacity: 0.4, hoverinfo: "skip" },
      { x: data.samples.map((s) => s[0]), y: data.samples.map((s) => s[1]), mode: "markers", hoverinfo: "skip",
        marker: { size: 6, color: data.samples.map((s) => CLASSES[s[2]]), line: { color: css("paper"), width: 1 } } },
    ], { title: { text: "feature 0" }, range: [-2.6, 2.6], constrain: "domain" }, { title: { text: "feature 1" }, range: [-2.6, 2.6], scaleanchor: "x", constrain: "domain" });
    tell(`Step ${frame.step}: loss ${digits(frame.loss)}, accuracy ${(100 * frame.accuracy).toFixed(2)} %.`, frame);
    return { frame: String(frame.step) };
  },

  8(data, read, box, tell) {
    const ends = {}, colours = { sgd: "quiet", momentum: "link", adam: "yours" }, names = { sgd: "SGD", momentum: "momentum", adam: "Adam" };
    const side = (reach) => Array.from({ length: 50 }, (_, i) => reach * (2 * i / 49 - 1)), [xs, ys] = [side(4.4), side(1.6)];
    const traces = [{ type: "contour", x: xs, y: ys, z: ys.map((y) => xs.map((x) => Math.sqrt(x * x / 2 + 10 * y * y))), showscale: false,
      contours: { coloring: "lines" }, colorscale: [[0, css("line")], [1, css("line")]], ncontours: 12, hoverinfo: "skip" }];
    for (const name of Object.keys(names)) {
      const path = descend(name, 10 ** read[name], data), shown = path.filter(([x, y]) => Math.abs(x) < 50 && Math.abs(y) < 50);
      ends[name] = path.at(-1);
      traces.push({ x: shown.map((p) => p[0]), y: shown.map((p) => p[1]), mode: "lines+markers", name: names[name],
        line: { color: css(colours[name]), width: 1.5 }, marker: { size: 4, color: css(colours[name]) } });
    }
    plot(box, traces, { range: [-4.4, 4.4], title: { text: "x, along the valley" } }, { range: [-1.6, 1.6], title: { text: "y, across it" } },
      { showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, margin: { l: 54, r: 12, t: 34, b: 46 } });
    const losses = Object.entries(ends).map(([name, [x, y]]) => `${names[name]} ${digits((x * x + 20 * y * y) / 2, 3)}`);
    tell(`Loss after ${data.steps} steps: ${losses.join(", ")}.`, ends);
    return Object.fromEntries(Object.keys(names).map((name) => [name, digits(10 ** read[name], 3)]));
  },

  12(data, read, box, tell) {
    const entry = data.prompts[read.prompt], all = softmax(halves(entry.logits), read.temperature), left = cut(all, read.k, read.p);
    const n = 15, words = entry.words.slice(0, n).map((word) => word.replace("\n", "⏎")), percent = (xs) => Array.from(xs.slice(0, n), (x) => 100 * x);
    const bar = (xs, colour, name) => ({ type: "bar", orientation: "h", y: words.map((_, i) => i), x: percent(xs), name,
      marker: { color: css(colour) }, hovertemplate: "%{x:.1f} %<extra></extra>" });
    plot(box, [{ ...bar(left, "link", "after top-k and top-p"), width: 0.8 }, { ...bar(all, "note", "before"), width: 0.3 }],
      { title: { text: "probability in %" }, rangemode: "tozero" }, { autorange: "reversed", tickvals: words.map((_, i) => i), ticktext: words, automargin: true },
      { barmode: "overlay", showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, height: 460, margin: { l: 60, r: 12, t: 34, b: 46 } });
    const kept = left.filter((x) => x > 0).length, had = all.slice(0, kept).reduce((sum, x) => sum + x, 0);
    tell(`${kept.toLocaleString("en")} of ${all.length.toLocaleString("en")} words are left, which had ${(100 * had).toFixed(1)} % of the probability.`,
      { kept, shares: Array.from(left.slice(0, 30)) });
    return { temperature: read.temperature.toFixed(1), k: String(read.k), p: read.p.toFixed(2) };
  },

  13(data, read, box, tell, live) {
    const weights = data.weights[read.layer - 1][read.head - 1], line = live.querySelector(".words");
    const show = (t) => {
      [...line.children].forEach((word, i) => {
        word.style.setProperty("--weight", Math.sqrt(weights[t][i])); // so that small weights can be seen
        word.setAttribute("aria-pressed", i === t);
        word.lastChild.textContent = i <= t ? weights[t][i].toFixed(2) : " ";
      });
      live.dataset.word = t;
      const most = weights[t].map((w, i) => [w, i]).sort((a, b) => b[0] - a[0]).slice(0, 3).filter(([w]) => w >= 0.01);
      const said = most.map(([w, i]) => `“${visible(data.words[i])}” ${w.toFixed(2)}`).join(", ");
      tell(`“${visible(data.words[t])}”, word ${t + 1}, looks most at: ${said}.`, weights[t]);
    };
    if (!line.children.length) {
      line.append(...data.words.map((text, i) => {
        const word = document.createElement("button");
        word.type = "button";
        word.append(visible(text), document.createElement("small"));
        for (const event of ["pointerenter", "focus", "click"]) word.addEventListener(event, () => live.show(i));
        return word;
      }));
    }
    live.show = show;
    show(Number(live.dataset.word ?? data.words.length - 1));
    return {};
  },
};
const visible = (text) => text === "\n" ? "⏎" : text;

// Exercise 8: steps on the loss (x² + 20 y²) / 2 as optax makes them: sgd, sgd with momentum 0.9, adam.
function descend(name, rate, { start, steepness, steps }) {
  const path = [start], m = [0, 0], v = [0, 0];
  for (let step = 1; step <= steps; step++) {
    path.push(path.at(-1).map((x, i) => {
      const g = steepness[i] * x;
      if (name === "sgd") return x - rate * g;
      if (name === "momentum") return x - rate * (m[i] = 0.9 * m[i] + g);
      m[i] = 0.9 * m[i] + 0.1 * g;
      v[i] = 0.999 * v[i] + 0.001 * g * g;
      return x - rate * (m[i] / (1 - 0.9 ** step)) / (Math.sqrt(v[i] / (1 - 0.999 ** step)) + 1e-8);
    }));
  }
  return path;
}

// Exercise 12: probabilities of logits, the largest first; what top-k and top-p leave of them, which adds up to 1 again.
function softmax(logits, temperature = 1) {
  const most = Math.max(...logits), powers = Float64Array.from(logits, (x) => Math.exp((x - most) / temperature));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((x) => x / sum);
}

function cut(probs, k, p) {
  const left = probs.map((x, i) => !k || i < k ? x : 0), sum = left.reduce((a, b) => a + b, 0);
  let before = 0;
  const kept = left.map((x) => { const keep = before < p * sum; before += x; return keep ? x : 0; });
  const rest = kept.reduce((a, b) => a + b, 0);
  return kept.map((x) => x / rest);
}

function start(live) {
  const data = JSON.parse(document.getElementById("live-data").textContent), form = live.querySelector("form");
  const box = live.querySelector(".plot"), number = live.dataset.exercise;
  live.querySelector(".play").hidden = false;
  live.querySelector(".still").hidden = true;
  const tell = (text, result) => {
    live.querySelector(".told").textContent = text;
    live.dataset.result = JSON.stringify(result);
  };
  if (number === "9") return drawDigits(live, data, form, tell);
  const draw = () => {
    const read = Object.fromEntries([...form.elements].filter((e) => e.name).map((e) => [e.name, Number(e.value)]));
    const shown = pictures[number](data, read, box, tell, live);
    for (const [name, text] of Object.entries(shown)) form.elements[name].parentElement.querySelector("output").textContent = text;
  };
  form.addEventListener("input", draw);
  form.addEventListener("submit", (event) => event.preventDefault());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  const play = form.querySelector("button");
  let timer = 0;
  play?.addEventListener("click", () => {
    const frame = form.elements.frame;
    clearInterval(timer); // so that a second click begins again
    frame.value = 0;
    draw();
    timer = setInterval(() => {
      frame.value = Number(frame.value) + 1;
      draw();
      if (frame.value === frame.max) clearInterval(timer);
    }, 600);
  });
  draw();
}

document.querySelectorAll(".live").forEach(start);
