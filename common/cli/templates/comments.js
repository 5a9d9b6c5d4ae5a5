// The only script of a review. Comments stand beside the lines of the program, and below the lines of the comparison.
// They are kept in this browser until the page is closed for good, in a saved copy of the page, and in a mail.
const key = `rampup review ${location.pathname}`;
const title = document.querySelector("h1").textContent;
const beside = new Map([...document.querySelectorAll("[data-line]")].map((box) => [box.dataset.line, box]));
const links = new Map([...document.querySelectorAll("[data-comment]")].map((link) => [link.dataset.comment, link]));
const below = new Map(); // line to its box in the comparison
const text = (line) => beside.get(line)?.innerText.trim() ?? "";
const code = (line) => document.querySelector(`#L${line} .code`)?.textContent.trim() ?? "";
const lines = () => [...beside.keys()].filter(text).sort((a, b) => a - b);
let kept = ""; // the comments that were copied or saved

const mail = () => lines().map((line) => line === "0" ? `${title}\n${text(line)}\n`
  : `train.py:${line}: ${text(line)}\n    > ${code(line)}\n`).join("\n");

function remember() {
  document.getElementById("count").textContent = `${lines().length} comment${lines().length === 1 ? "" : "s"}`;
  try {
    localStorage.setItem(key, JSON.stringify(Object.fromEntries(lines().map((line) => [line, text(line)]))));
  } catch { /* a browser that keeps nothing for files */ }
}

function set(box, value) { if (box && box.innerText.trim() !== value) box.innerText = value; }

function open(line) { // the box below a line of the comparison, made when it is wanted
  const link = links.get(line);
  if (!link || below.has(line)) return below.get(line);
  const row = document.createElement("tr");
  row.className = "below";
  row.append(document.createElement("td"), document.createElement("td"));
  const box = beside.get(line).cloneNode();
  box.removeAttribute("data-line");
  box.tabIndex = 0;
  box.innerText = text(line);
  row.lastChild.append(box);
  row.lastChild.className = "comment";
  link.closest("tr").after(row);
  below.set(line, box);
  watch(box, line);
  return box;
}

function watch(box, line) {
  box.addEventListener("input", () => { set(beside.get(line), box.innerText.trim()); remember(); });
  box.addEventListener("paste", (event) => { // as plain text
    event.preventDefault();
    document.execCommand("insertText", false, event.clipboardData.getData("text/plain"));
  });
}

for (const row of document.querySelectorAll("tr.below")) row.remove(); // of a saved copy
for (const [line, box] of beside) {
  watch(box, line);
  box.addEventListener("input", () => { set(open(line), box.innerText.trim()); remember(); });
}
try {
  for (const [line, value] of Object.entries(JSON.parse(localStorage.getItem(key) ?? "{}"))) set(beside.get(line), value);
} catch { /* nothing that can be read */ }
lines().forEach(open);
remember();
kept = mail();

for (const [line, link] of links) link.addEventListener("click", (event) => { event.preventDefault(); open(line).focus(); });
const focus = () => document.getElementById(location.hash.slice(1))?.querySelector("[data-line]")?.focus();
window.addEventListener("hashchange", focus);
for (const link of document.querySelectorAll(".listing .number a")) link.addEventListener("click", () => setTimeout(focus));

const say = (button, words) => {
  const before = button.textContent;
  button.textContent = words;
  setTimeout(() => { button.textContent = before; }, 2000);
};
document.getElementById("bar").hidden = false;
document.getElementById("copy").addEventListener("click", (event) => {
  const area = document.getElementById("mail");
  area.hidden = false;
  area.value = mail() || "There is no comment yet: choose a line's number, and write.";
  area.focus();
  area.select();
  if (document.execCommand("copy") && lines().length) { // works in a page opened from a file, too
    kept = mail();
    say(event.target, "Copied");
  }
});
document.getElementById("save").addEventListener("click", (event) => {
  const page = new Blob([`<!doctype html>\n${document.documentElement.outerHTML}`], { type: "text/html" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(page);
  link.download = decodeURIComponent(location.pathname.split("/").pop()).replace(/(_comments)?\.html?$/, "") + "_comments.html";
  link.click();
  kept = mail();
  say(event.target, "Saved");
});
window.addEventListener("beforeunload", (event) => { if (mail() !== kept) event.preventDefault(); });
