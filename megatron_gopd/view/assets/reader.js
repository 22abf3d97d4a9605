// The kept responses: filters, a list, and the one that is read.
const reader = { filters: {}, found: [], row: null, against: null, top: 60 };
const COLUMNS = ["advantage", "student − teacher", "entropy", "student − reference", "student − engine"];

const same = new Map();  // prompt of a teacher -> its rows
for (const row of ROWS) {
  const key = JSON.stringify([row.teacher, row.id, promptOf(row)]);
  if (!same.has(key)) same.set(key, []);
  same.get(key).push(row);
  row.group = same.get(key);
}

const FILTERS = {
  run: (row, value) => row.run.at === +value,
  from: (row, value) => row.step >= +value,
  to: (row, value) => row.step <= +value,
  teacher: (row, value) => row.teacher === value,
  why: (row, value) => row.kept_as === value,
  finish: (row, value) => row.finish_reason === value,
  least: (row, value) => row.reward != null && row.reward >= +value,
  most: (row, value) => row.reward != null && row.reward <= +value,
  again: (row) => row.group.length > 1,
  text: (row, value) => [String(row.id), promptOf(row), responseOf(row)].some((text) => text.toLowerCase().includes(value.toLowerCase())),
};

const ORDERS = {
  "latest step": (row) => -row.step, "first step": (row) => row.step, "longest": (row) => -row.tokens, "shortest": (row) => row.tokens,
  "highest reward": (row) => -(row.reward ?? -Infinity), "lowest reward": (row) => row.reward ?? Infinity,
  "highest KL to teacher": (row) => -(meanOf(row, "student − teacher") ?? -Infinity),
  "highest advantage": (row) => -(meanOf(row, "advantage") ?? -Infinity),
};

function meanOf(row, column) {
  row.means ??= {};
  if (!(column in row.means)) row.means[column] = mean(tokensOf(row).columns[column]);
  return row.means[column];
}

function applyFilters() {
  const asked = Object.entries(reader.filters).filter(([, value]) => value !== "" && value !== false);
  reader.found = ROWS.filter((row) => asked.every(([name, value]) => FILTERS[name](row, value)));
  const order = ORDERS[reader.order ?? "latest step"], places = new Map(reader.found.map((row) => [row, order(row)]));
  reader.found.sort((a, b) => places.get(a) - places.get(b) || a.number - b.number);
  reader.top = 60;
  drawList();
}

function filterInputs() {
  const set = (name) => (event) => { reader.filters[name] = event.target.type === "checkbox" ? event.target.checked : event.target.value; applyFilters(); };
  const choice = (label, name, values, text = (value) => value) => values.length < 2 ? null :
    labelled(label, el("select", { onchange: set(name), "data-filter": name }, option("", "all"), values.map((value) => option(value, visible(String(text(value)))))));
  const known = (of) => [...new Set(ROWS.map(of))].filter((value) => value != null).sort();
  const field = (label, name, type, extra = {}) => labelled(label, el("input", { type, oninput: set(name), "data-filter": name, ...extra }));
  const steps = ROWS.map((row) => row.step), rewarded = ROWS.some((row) => row.reward != null);
  const first = steps.reduce((a, b) => Math.min(a, b), Infinity), last = steps.reduce((a, b) => Math.max(a, b), 0);
  return el("div", { class: "controls" },
    field("search", "text", "search", { placeholder: "id, prompt or response" }),
    RUNS.length > 1 ? choice("run", "run", RUNS.map((run) => run.at), (at) => RUNS[at].name) : null,
    field("from step", "from", "number", { placeholder: first }), field("to step", "to", "number", { placeholder: last }),
    choice("teacher", "teacher", known((row) => row.teacher || null)), choice("kept as", "why", known((row) => row.kept_as)),
    choice("finish", "finish", known((row) => row.finish_reason)),
    rewarded ? field("reward ≥", "least", "number", { step: "any" }) : null, rewarded ? field("reward ≤", "most", "number", { step: "any" }) : null,
    labelled("order", el("select", { "data-filter": "order", onchange: (event) => { reader.order = event.target.value; applyFilters(); } }, Object.keys(ORDERS).map((name) => option(name)))),
    [...same.values()].some((rows) => rows.length > 1) ? el("label", {}, el("input", { type: "checkbox", "data-filter": "again", onchange: set("again") }), " prompts kept more than once") : null);
}

function drawList() {
  const list = $("list"), shown = reader.found.slice(0, reader.top);
  $("found").textContent = `${reader.found.length.toLocaleString("en")} of ${ROWS.length.toLocaleString("en")} kept responses`;
  list.replaceChildren(...shown.map(listItem));
  if (reader.found.length > reader.top) {
    list.append(el("li", {}, el("button", { class: "more", onclick: () => { reader.top += 240; drawList(); } }, `${reader.found.length - reader.top} more`)));
  }
}

function listItem(row) {
  const start = visible(Array.from(startOf(row)).slice(0, 90).join("")).replaceAll("\n", "↵");
  return el("li", {}, el("button", { class: "item", "aria-current": row === reader.row, onclick: () => { read(row); if (innerWidth < 800) $("reading").scrollIntoView(); } },
    el("span", { class: "meta" }, RUNS.length > 1 ? el("span", { class: "swatch", style: `background:${colourOf(row.run)}` }) : "", el("b", {}, `step ${row.step}`),
      row.teacher ? ` ${visible(row.teacher)}` : "", el("i", {}, row.kept_as), row.reward == null ? "" : el("span", { class: "reward" }, number(row.reward)),
      el("small", {}, `${row.tokens} tok`)),
    el("span", { class: "start" }, start)));
}

function read(row, against = null) {
  Object.assign(reader, { row, against });
  document.querySelectorAll(".item[aria-current]").forEach((item) => item.removeAttribute("aria-current"));
  const at = reader.found.indexOf(row);
  $("list").children[at]?.querySelector(".item")?.setAttribute("aria-current", "true");
  drawReading();
}

function columnsOf(row) {
  const has = Object.keys(tokensOf(row).columns);
  return [...COLUMNS.filter((name) => has.includes(name)), ...Object.keys(NAMES).filter((name) => has.includes(name) && !COLUMNS.includes(name)), ...has.filter((name) => !COLUMNS.includes(name) && !Object.hasOwn(NAMES, name))];
}

function figures(row) {
  const cells = [["teacher", row.teacher && visible(row.teacher)], ["kept as", row.kept_as], ["reward", row.reward == null ? null : number(row.reward)], ["group advantage", row.outcome == null ? null : number(row.outcome)],
    ["finish", row.finish_reason], ["tokens", row.tokens], ["λ", row.lambda == null ? null : number(row.lambda)], ["label", row.label && visible(row.label).slice(0, 200)],
    ["weights", row.sampled_with == null ? null : `sampled with ${[...new Set(row.sampled_with)].join(" to ")}, trained from ${row.trained_from_version}`],
    ...COLUMNS.map((name) => [`mean ${named(name)}`, meanOf(row, name) == null ? null : number(meanOf(row, name))])];
  return el("dl", { class: "facts" }, cells.filter(([, value]) => value != null && value !== "").map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value)))));
}

function others(row) {
  const rows = row.group.filter((each) => each !== row).sort((a, b) => (b.run === row.run) - (a.run === row.run) || a.step - b.step);
  if (!rows.length) return el("p", { class: "scale" }, "No other response to this prompt was kept.");
  const chosen = el("select", { id: "against", onchange: (event) => read(row, event.target.value === "" ? null : ROWS[+event.target.value]) }, option("", "nothing"),
    rows.map((each) => option(each.number, visible(`${nameOf(each)}${each.reward == null ? "" : `, reward ${number(each.reward)}`}`))));
  chosen.value = reader.against ? reader.against.number : "";
  return labelled(`compare with (${rows.length} kept of this prompt)`, chosen);
}

function drawReading() {
  const row = reader.row;
  if (!row) return $("reading").replaceChildren(el("p", { class: "none" }, "Choose a response."));
  const columns = columnsOf(row);
  if (!columns.includes(tokens.column)) tokens.column = columns[0] ?? null;
  const body = reader.against ? compared(row, reader.against) : alone(row, columns);
  $("reading").replaceChildren(
    el("div", { class: "head" }, el("h3", {}, visible(`${nameOf(row)} · ${String(row.id)}`.slice(0, 300))), el("span", {}, el("button", { onclick: () => go(-1), "aria-label": "previous" }, "←"), el("button", { onclick: () => go(1), "aria-label": "next" }, "→"))),
    figures(row), others(row),
    el("details", { open: promptOf(row).length < 1500 }, el("summary", {}, "Prompt"), el("pre", { class: "prompt" }, visible(promptOf(row)))), body);
}

function alone(row, columns) {
  const box = hoverable(el("div", { class: "tokens", id: "tokens", tabindex: "0" }, tokenSpans(row)), row);
  const legendBox = el("div"), stripBox = el("div");
  const paint = () => {
    const scale = colourTokens(box, row, tokens.column);
    legendBox.replaceChildren(scaleLegend(tokens.column, scale));
    stripBox.replaceChildren(...[strip(row, tokens.column, box)].filter(Boolean));
  };
  const chosen = el("select", { id: "column", onchange: (event) => { tokens.column = event.target.value; paint(); } }, columns.map((name) => option(name, named(name))));
  chosen.value = tokens.column;
  paint();
  return el("div", {}, el("div", { class: "controls" }, labelled("colour by", chosen), legendBox), stripBox, box);
}

function compared(row, against) {
  const [older, newer] = [row, against].sort((a, b) => a.step - b.step || a.number - b.number);
  const lines = [["reward", (each) => each.reward], ["tokens", (each) => each.tokens], ...COLUMNS.map((name) => [`mean ${named(name)}`, (each) => meanOf(each, name)])];
  const table = el("table", { class: "versus" }, el("thead", {}, el("tr", {}, el("th"), [older, newer].map((each) => el("th", {}, visible(nameOf(each)))))),
    el("tbody", {}, lines.filter(([, of]) => of(older) != null || of(newer) != null).map(([name, of]) => el("tr", {}, el("th", {}, name), [older, newer].map((each) => el("td", {}, number(of(each))))))));
  return el("div", {}, table, diffView(older, newer));
}

function go(by) {
  const at = reader.found.indexOf(reader.row) + by;
  if (reader.found[at]) { while (at >= reader.top) reader.top += 60; drawList(); read(reader.found[at]); }
}

function drawReader() {
  const title = el("h2", { id: "responses-title" }, "Responses");
  if (!ROWS.length) return $("responses").replaceChildren(title, el("p", { class: "none" }, "No responses were kept, or none can be read: logging.trajectories keeps some of each step."));
  $("responses").replaceChildren(title, filterInputs(),
    el("div", { class: "reader" }, el("div", { class: "side" }, el("p", { id: "found", "aria-live": "polite" }), el("ul", { id: "list" })), el("div", { id: "reading" })));
  applyFilters();
  read(reader.found[0]);
}
