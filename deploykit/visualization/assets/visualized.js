// The page: a section for each kind of picture, its groups, and their items.

const data = JSON.parse(byId("data").textContent);

function pictureOf(picture, item, group) {
  const alt = [picture.caption, item.title, group.title].filter(Boolean).join(", ");
  return html(
    "figure",
    {},
    html("img", { src: picture.source, alt, loading: "lazy" }),
    html("figcaption", {}, picture.caption),
  );
}

function itemOf(item, group) {
  const head = html(
    "p",
    { class: "item-head" },
    item.title ? html("b", {}, item.title) : null,
    item.text ? html("span", { class: "muted" }, item.text) : null,
  );
  const pictures = item.pictures.map((picture) => pictureOf(picture, item, group));
  return html("article", { class: "item" }, head, html("div", { class: "row" }, pictures));
}

function groupOf(group) {
  return html(
    "section",
    { class: "card group" },
    group.title ? html("h3", {}, group.title) : null,
    group.text ? html("p", { class: "muted small" }, group.text) : null,
    html("div", { class: "items" }, group.items.map((item) => itemOf(item, group))),
  );
}

function sectionId(at) {
  return `section-${at}`;
}

function sectionOf(section, at) {
  return html(
    "section",
    { class: "part", id: sectionId(at) },
    html("h2", {}, section.title),
    html("p", { class: "muted about" }, section.text),
    section.groups.map(groupOf),
  );
}

byId("title").textContent = data.target;
byId("about").textContent = [data.weights && `weights: ${data.weights}`, `deploykit ${data.deploykit}`, data.created]
  .filter(Boolean)
  .join("; ");
byId("links").append(
  ...data.sections.map((section, at) => html("a", { href: `#${sectionId(at)}` }, section.title)),
);
byId("notes").append(...data.notes.map((note) => html("p", { class: "notice" }, note)));
byId("sections").append(...data.sections.map(sectionOf));
