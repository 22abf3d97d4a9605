// One response, a span a token, coloured by a column; and the tip that tells all numbers of a token.
const tokens = { column: null, row: null };
const CHUNK = 400;  // tokens of a block that the browser may leave unrendered while it is out of sight

function piece(text) { return visible(text).replaceAll("\n", "↵\n"); }

function tokenSpans(row) {
  const { pieces } = tokensOf(row), blocks = [];
  for (let from = 0; from < pieces.length; from += CHUNK) {
    const block = el("span", { class: "block" });
    for (let at = from; at < Math.min(from + CHUNK, pieces.length); at += 1) {
      const span = document.createElement("span");
      span.dataset.at = at;
      span.textContent = piece(pieces[at]) || "·";  // a part of a character whose last token shows it
      block.append(span);
    }
    blocks.push(block);
  }
  return blocks;
}

function colourTokens(box, row, column) {
  const values = tokensOf(row).columns[column];
  const scale = values && scaleOf(column, values);
  for (const span of box.querySelectorAll("span[data-at]")) {
    span.className = values ? tint(values[span.dataset.at], scale) : "";
  }
  return scale;
}

function scaleLegend(column, scale) {
  if (!scale) return el("p", { class: "scale" }, "This response has no such column.");
  const bar = (value) => el("i", { class: tint(value, scale) });
  const { centre, most } = scale;
  const shares = scale.one ? [0, 0.25, 0.5, 0.75, 1] : [-1, -0.5, 0, 0.5, 1];
  const sign = LOGPROBS.has(column) ? -1 : 1;
  return el("p", { class: "scale" }, `${named(column)} `, number(centre + sign * shares[0] * most), el("span", { class: "steps" }, shares.map((share) => bar(centre + sign * share * most))),
    number(centre + sign * most), scale.costs ? " nats; orange: the student likes the token more than they do" : column === "advantage" ? " nats; blue: to be said more often" : "");
}

function tokenTip(event, row, at) {
  const { ids, pieces, columns } = tokensOf(row);
  const order = [...new Set([...Object.keys(NAMES), ...Object.keys(columns)])].filter((name) => name in columns);
  const told = order.map((name) => [named(name), number(columns[name][at], 4), name === tokens.column ? "var(--ink)" : null]);
  const text = visible(pieces[at]);
  showTip(event, `token ${at + 1} of ${ids.length}: id ${ids[at]}`, told, text.length > 60 ? `${text.slice(0, 60)}…` : text.replaceAll("\n", "↵"));
}

function showTip(event, title, rows, below) {
  const tip = $("tip");
  tip.replaceChildren(el("b", {}, title), below ? el("p", {}, below) : "", el("table", {}, rows.map(([name, value, colour]) =>
    el("tr", { class: colour === "var(--ink)" ? "chosen" : "" }, el("th", {}, colour && colour !== "var(--ink)" ? el("span", { class: "swatch", style: `background:${colour}` }) : "", name), el("td", {}, value)))));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const x = event.clientX + 14 + width > innerWidth ? Math.max(4, event.clientX - width - 14) : event.clientX + 14;
  const y = event.clientY + 14 + height > innerHeight ? Math.max(4, event.clientY - height - 14) : event.clientY + 14;
  tip.style.transform = `translate(${x}px, ${y}px)`;
}

function hideTip() { $("tip").hidden = true; }

function hoverable(box, row) {
  const over = (event) => {
    const at = event.target.dataset?.at;
    if (at == null) hideTip(); else tokenTip(event, row, +at);
  };
  box.addEventListener("pointermove", over);
  box.addEventListener("pointerdown", over);
  box.addEventListener("pointerleave", hideTip);
  return box;
}

// Where in the response the large values are: a strip of as many bars as there is room for.
function strip(row, column, box) {
  const values = tokensOf(row).columns[column];
  if (!values || values.length < 60) return null;
  const bars = Math.min(240, values.length), scale = scaleOf(column, values);
  const far = (value) => Math.abs(value - scale.centre);
  return el("div", { class: "strip", title: "the largest of each part; click to go there" }, Array.from({ length: bars }, (_, bar) => {
    const [from, to] = [Math.floor((bar * values.length) / bars), Math.floor(((bar + 1) * values.length) / bars)];
    let at = from;
    for (let each = from; each < to; each += 1) if (far(values[each]) > far(values[at])) at = each;
    const go = () => {
      const span = box.querySelector(`span[data-at="${at}"]`);
      span.scrollIntoView({ block: "center" });
      span.classList.add("found");
      setTimeout(() => span.classList.remove("found"), 1500);
    };
    return el("i", { class: tint(values[at], scale), onclick: go });
  }));
}
