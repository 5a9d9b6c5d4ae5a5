// A button beside each piece of code, which copies it. Without this script the pages lack nothing else.
"use strict";

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // where the browser does not allow that
    const area = document.body.appendChild(document.createElement("textarea"));
    area.value = text;
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

for (const code of document.querySelectorAll("pre, table.listing")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.setAttribute("aria-label", code.matches("pre") ? "Copy this code" : "Copy the program");
  const lines = code.matches("pre") ? [code] : [...code.querySelectorAll(".code code")];
  const text = lines.map((line) => line.textContent.replace(/\n$/, "")).join("\n");
  button.addEventListener("click", () => copy(text + "\n", button));
  const box = document.createElement("div");
  box.className = "copied";
  code.before(box);
  box.append(button, code);
}
