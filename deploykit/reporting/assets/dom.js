// Nodes. Text of the data becomes a text node or an attribute, never HTML.

const svgNamespace = document.getElementById("namespace").namespaceURI;

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(2).filter((child) => child !== null && child !== undefined));
  return node;
}

function html(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(svgNamespace, tag), attributes, children);
}

function byId(id) {
  return document.getElementById(id);
}

/** What a screen reader says while a chart is read by keyboard. */
function speak(text) {
  byId("spoken").textContent = text;
}
