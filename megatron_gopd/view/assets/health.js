// The run at a glance: what it was, its lights with their reasons, and where its time goes.
const WORDS = { good: "good", watch: "look", bad: "bad", unknown: "not told" };
const SIGNS = { good: "✓", watch: "!", bad: "✕", unknown: "–" };
const FACTS = {
  "algorithm.type": "algorithm", "algorithm.gradient": "gradient", "algorithm.lambda": "λ", "student.model": "student",
  "optimizer.lr": "lr", "data.batch_size": "prompts a step", "rollout.engine": "engine",
  "rollout.max_response_tokens": "longest response", "run.seed": "seed",
};

function verdict(run) {
  const count = (state) => run.lights.filter((light) => light.state === state).length;
  const parts = [[count("bad"), "bad"], [count("watch"), "to look at"], [count("good"), "good"]];
  return parts.filter(([many]) => many).map(([many, word]) => `${many} ${word}`).join(", ");
}

function worst(run) {
  return worstFirst(run.lights)[0]?.state ?? "unknown";
}

const STATES = ["bad", "watch", "good", "unknown"];
const worstFirst = (lights) => STATES.flatMap((state) => lights.filter((light) => light.state === state));

function sign(state) { return el("span", { class: `sign ${state}`, "aria-label": WORDS[state], role: "img" }, SIGNS[state]); }

function card(run, light) {
  const go = light.metric && el("a", { href: "#curves", class: "go", onclick: () => showMetric(light.metric) }, "curve");
  return el("li", { class: `card ${light.state}` },
    el("h4", {}, sign(light.state), el("span", {}, light.name), go),
    el("p", {}, visible(light.reason)), light.metric && sparkline(run, light.metric));
}

function sparkline(run, metric) {
  const values = series(run, metric), drawn = smoothed(values, values.length > 20 ? 0.7 : 0);
  const finite = Array.from(drawn).filter(Number.isFinite);
  if (finite.length < 2) return null;
  const [low, high] = [finite.reduce((a, b) => Math.min(a, b)), finite.reduce((a, b) => Math.max(a, b))];
  const every = Math.max(1, Math.floor(drawn.length / 200)), points = [];
  drawn.forEach((value, at) => {
    if (!Number.isFinite(value) || (at % every && at !== drawn.length - 1)) return;
    points.push(`${((200 * at) / (drawn.length - 1)).toFixed(1)},${(high > low ? 2 + (24 * (high - value)) / (high - low) : 14).toFixed(1)}`);
  });
  return svg("svg", { class: "spark", viewBox: "0 0 200 28", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("polyline", { points: points.join(" ") }));
}

function facts(run) {
  const found = Object.entries(FACTS).filter(([key]) => key in run.config).map(([key, name]) => [name, run.config[key]]);
  const teachers = [...new Set(Object.keys(run.config).filter((key) => key.startsWith("teachers.")).map((key) => key.split(".")[1]))];
  if (teachers.length) found.push(["teachers", teachers.join(", ")]);
  return el("dl", { class: "facts" }, found.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, visible(value)))));
}

function timeBar(run) {
  const entries = Object.entries(run.phases), sum = entries.reduce((all, [, seconds]) => all + seconds, 0);
  if (!sum) return null;
  const bar = el("div", { class: "time", role: "img", "aria-label": "time of a step by phase" });
  const key = el("ul", { class: "key" });
  entries.forEach(([name, seconds], at) => {
    if (seconds < 0.002 * sum) return;
    bar.append(el("i", { style: `flex:${seconds};background:var(--phase-${at % 7})`, title: `${name}: ${number(seconds)} s` }));
    key.append(el("li", {}, el("i", { style: `background:var(--phase-${at % 7})` }),
      `${name} ${number(seconds)} s (${Math.round((100 * seconds) / sum)} %)`));
  });
  return el("div", { class: "times" }, el("h4", {}, "A step's time, medians"), bar, key);
}

function runBlock(run) {
  const state = worst(run);
  return el("article", { class: `run ${state}` },
    el("h3", {}, sign(state), el("span", { class: "swatch", style: `background:${colourOf(run)}` }), visible(run.name),
      el("small", {}, verdict(run))),
    run.notes.length ? el("ul", { class: "notes" }, run.notes.map((note) => el("li", {}, visible(note)))) : null,
    facts(run),
    el("ul", { class: "cards" }, worstFirst(run.lights).map((light) => card(run, light))),
    timeBar(run));
}

function differences() {
  if (RUNS.length < 2 || !DATA.differing.length) return null;
  return el("details", { class: "differing", open: DATA.differing.length < 9 },
    el("summary", {}, `What differs between the runs: ${DATA.differing.length} keys`),
    el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, el("th", {}, "key"), RUNS.map((run) => el("th", {}, visible(run.name))))),
      el("tbody", {}, DATA.differing.map((key) => el("tr", {}, el("th", {}, visible(key)),
        RUNS.map((run) => el("td", {}, visible(run.config[key] ?? "–")))))))));
}

function matrix() {
  if (RUNS.length < 2) return null;
  const names = [...new Set(RUNS.flatMap((run) => run.lights.map((light) => light.name)))];
  return el("div", { class: "scroll" }, el("table", { class: "matrix" },
    el("thead", {}, el("tr", {}, el("th", {}, "run"), names.map((name) => el("th", {}, name)))),
    el("tbody", {}, RUNS.map((run) => el("tr", {}, el("th", {}, visible(run.name)), names.map((name) => {
      const light = run.lights.find((each) => each.name === name);
      return el("td", { title: light?.reason }, sign(light?.state ?? "unknown"));
    }))))));
}

function drawHealth() {
  const blocks = RUNS.map(runBlock);
  const about = el("p", { class: "about" }, "a → b: the mean over the first tenth of the steps, and over the last. The bounds of the lights are rules of thumb.");
  $("health").replaceChildren(el("h2", { id: "health-title" }, "Health"), about, ...[matrix(), differences()].filter(Boolean), ...blocks);
}
