// The only script of a review: Enter on a line's number opens its comment, a button copies all of them as text.
const cells = [...document.querySelectorAll("td.comment")];
const button = document.getElementById("copy");
const comments = () => cells.filter((cell) => cell.textContent.trim())
  .map((cell) => `train.py:${cell.parentElement.id.slice(1)}: ${cell.textContent.trim()}`).join("\n");
let copied = "";

const open = () => document.getElementById(location.hash.slice(1))?.querySelector("td.comment")?.focus();
window.addEventListener("hashchange", open);
for (const cell of cells) cell.previousElementSibling.previousElementSibling.addEventListener("click", () => setTimeout(open));

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
