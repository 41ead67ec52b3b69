// Elements and numbers. Text reaches the page as text nodes only.

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// el("p", {class: "note"}, "text", element, ...)
const el = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

// Text of models and users, isolated so that it cannot reverse the direction of the text around it.
const bdi = (text) => el("bdi", { dir: "auto" }, text);

const cut = (text, length) => (text.length > length ? `${text.slice(0, length)}…` : text);

const percent = (share) => `${(100 * share).toFixed(1)}%`;

function formatNumber(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1000 ? value.toFixed(0) : size >= 0.001 ? value.toPrecision(3) : value.toExponential(1);
  return (text.includes("e") || !text.includes(".") ? text : text.replace(/\.?0+$/, "")).replace("-", "−");
}

const many = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;

const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// Calls draw(width) now and whenever the element's width changes.
function drawnToWidth(element, draw) {
  let last = 0;
  const redraw = () => {
    const width = Math.floor(element.clientWidth);
    if (width && width !== last) draw((last = width));
  };
  new ResizeObserver(redraw).observe(element);
  redraw();
}
