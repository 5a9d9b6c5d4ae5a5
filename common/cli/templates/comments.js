// The only script of a review: Enter on a line's number opens its comment, a button copies all of them as text.
const boxes = [...document.querySelectorAll(".comment div")];
const line = (box) => box.closest("tr");
const comments = () => boxes.filter((box) => box.textContent.trim())
  .map((box) => `train.py:${line(box).id.slice(1)}: ${box.textContent.trim()}`).join("\n");
let copied = "";

const open = () => document.getElementById(location.hash.slice(1))?.querySelector(".comment div")?.focus();
window.addEventListener("hashchange", open);
for (const box of boxes) line(box).querySelector("a").addEventListener("click", () => setTimeout(open));

const button = document.getElementById("copy");
button.hidden = false;
button.addEventListener("click", () => {
  copied = comments();
  const text = document.getElementById("comments");
  text.hidden = false;
  text.value = copied || "There is no comment yet: choose a line's number, and write beside it.";
  text.focus();
  text.select();
  document.execCommand("copy"); // works in a page opened from a file, too
});
window.addEventListener("beforeunload", (event) => { if (comments() !== copied) event.preventDefault(); });
