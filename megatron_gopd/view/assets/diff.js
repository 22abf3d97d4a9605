// Two responses to one prompt, token by token (Myers, An O(ND) Difference Algorithm, 1986).
const MOST_EDITS = 1200;  // beyond which the middle is told as replaced

// [[kind, piece, number in a, number in b]], kind being "same", "gone" or "new"
function difference(a, b) {
  let head = 0, tail = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head += 1;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail += 1;
  const same = (from, count, shift) => Array.from({ length: count }, (_, at) => ["same", a[from + at], from + at, from + at + shift]);
  const middle = edits(a.slice(head, a.length - tail), b.slice(head, b.length - tail))
    .map(([kind, text, x, y]) => [kind, text, x == null ? null : x + head, y == null ? null : y + head]);
  return [...same(0, head, 0), ...middle, ...same(a.length - tail, tail, b.length - a.length)];
}

function edits(a, b) {
  const trace = [], reach = new Map([[1, 0]]);
  for (let d = 0; d <= Math.min(a.length + b.length, MOST_EDITS); d += 1) {
    trace.push(new Map(reach));
    for (let k = -d; k <= d; k += 2) {
      let x = k === -d || (k !== d && reach.get(k - 1) < reach.get(k + 1)) ? reach.get(k + 1) : reach.get(k - 1) + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x += 1;
      reach.set(k, x);
      if (x >= a.length && x - k >= b.length) return walk(a, b, trace);
    }
  }
  return [...a.map((text, at) => ["gone", text, at, null]), ...b.map((text, at) => ["new", text, null, at])];
}

function walk(a, b, trace) {
  const found = [];
  let x = a.length, y = b.length;
  for (let d = trace.length - 1; d >= 0; d -= 1) {
    const reach = trace[d], k = x - y;
    const before = k === -d || (k !== d && reach.get(k - 1) < reach.get(k + 1)) ? k + 1 : k - 1;
    const [fromX, fromY] = [reach.get(before), reach.get(before) - before];
    while (x > fromX && y > fromY && x > 0 && y > 0) { x -= 1; y -= 1; found.push(["same", a[x], x, y]); }
    if (d === 0) break;
    if (x > fromX) { x -= 1; found.push(["gone", a[x], x, null]); } else { y -= 1; found.push(["new", b[y], null, y]); }
  }
  return found.reverse();
}

function diffView(older, newer) {
  const found = difference(tokensOf(older).pieces, tokensOf(newer).pieces);
  const box = el("div", { class: "tokens diff" });
  for (const [kind, text, inOlder, inNewer] of found) {
    const span = el(kind === "gone" ? "del" : kind === "new" ? "ins" : "span", {}, piece(text) || "·");
    span.dataset.old = inOlder ?? "";
    span.dataset.new = inNewer ?? "";
    box.append(span);
  }
  box.addEventListener("pointermove", (event) => {
    const { old, new: now } = event.target.dataset ?? {};
    if (old == null) hideTip(); else diffTip(event, [older, old], [newer, now]);
  });
  box.addEventListener("pointerleave", hideTip);
  const count = (kind) => found.filter((each) => each[0] === kind).length;
  return el("div", {}, el("p", { class: "scale" }, `${count("same")} tokens are the same, `, el("del", {}, `${count("gone")} only in ${nameOf(older)}`), ", ", el("ins", {}, `${count("new")} only in ${nameOf(newer)}`), "."), box);
}

function diffTip(event, ...sides) {
  const there = sides.filter(([, at]) => at !== "").map(([row, at]) => [row, +at, tokensOf(row).columns]);
  const columns = Object.keys(NAMES).filter((name) => there.some(([, , has]) => name in has));
  showTip(event, there.map(([row]) => nameOf(row)).join(" · "), columns.map((name) =>
    [named(name), there.map(([, at, has]) => number(has[name]?.[at], 4)).join(" · "), null]), "");
}

function nameOf(row) { return `${RUNS.length > 1 ? `${row.run.name}, ` : ""}step ${row.step}`; }
