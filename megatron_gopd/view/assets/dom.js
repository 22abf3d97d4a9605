// Elements from text alone: what runs hold never becomes markup.
const SVG = "http://www.w3.org/2000/svg";

function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child != null && child !== false));
  return made;
}

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const $ = (id) => document.getElementById(id);

function number(value, digits = 3) {
  if (value == null || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size >= 1e5 || (size > 0 && size < 1e-4)) return value.toExponential(digits - 1).replace("e+", "e").replaceAll("-", "−");
  return String(+value.toPrecision(Math.max(digits, Math.ceil(Math.log10(size + 1))))).replace("-", "−");
}

// Characters that would steer a terminal or the direction of text are shown as what they are. Joiners (U+200C, U+200D)
// stay: scripts and emoji are made of them.
const STEERING = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

function visible(text) {
  return text.replace(STEERING, (character) => {
    const code = character.charCodeAt(0);
    if (code === 9) return "⇥\t";
    if (code < 32) return String.fromCharCode(0x2400 + code);
    return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

function later(work) {  // once, when the frame is drawn next
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; work(); });
  };
}

function option(value, text) { return el("option", { value }, text ?? value); }

function labelled(text, input) { return el("label", { class: "field" }, el("span", {}, text), input); }
