// Light or dark: as the system has it, until the reader presses the button.

function isDark() {
  const set = document.documentElement.dataset.theme;
  return set ? set === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function renderTheme() {
  byId("theme").textContent = isDark() ? "Light" : "Dark";
  byId("theme").setAttribute("aria-label", `Switch to the ${isDark() ? "light" : "dark"} theme`);
}

byId("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  renderTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", renderTheme);
renderTheme();

/** A titled list of labels and texts. */
function factList(title, pairs, className = null) {
  const items = pairs.map(([label, text]) =>
    html("div", {}, html("dt", {}, label), html("dd", {}, text)),
  );
  return html("section", { class: "card" }, html("h3", {}, title), html("dl", { class: className }, items));
}

/** Draw again when the room changes that a place has. */
function onResize(node, draw) {
  let drawnAt = node.clientWidth;
  new ResizeObserver(() => {
    if (node.clientWidth === drawnAt) return;
    drawnAt = node.clientWidth;
    draw();
  }).observe(node);
}
