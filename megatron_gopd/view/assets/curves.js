// Every metric: raw and smoothed, the runs overlaid.
const FIRST = ["reverse_kl", "target_kl", "loss", "reward", "advantage_mean", "entropy", "response_tokens_mean",
  "truncated_fraction", "grad_norm", "lr", "train_rollout_logprob_abs_diff"];
const curves = { smooth: 0.8, log: false, find: "", charts: [] };

function metricNames() {
  const all = [...new Set(RUNS.flatMap((run) => Object.keys(run.metrics)))];
  const place = (name) => {
    const at = FIRST.indexOf(name.split("/")[0]);
    return at >= 0 ? at : name.startsWith("timing/") ? 900 : 100;
  };
  return all.sort((a, b) => place(a) - place(b) || (a < b ? -1 : 1));
}

// An exponential mean without the start's pull: sums of weights are carried along. Gaps stay gaps.
function smoothed(values, keep) {
  const found = new Float32Array(values.length);
  let sum = 0, weight = 0;
  values.forEach((value, at) => {
    if (Number.isFinite(value)) { sum = keep * sum + (1 - keep) * value; weight = keep * weight + (1 - keep); }
    found[at] = Number.isFinite(value) ? sum / weight : NaN;
  });
  return found;
}

function ticks(low, high, about) {
  const raw = (high - low) / about, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5, 10].find((each) => each * power >= raw) ?? 10);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return found;
}

class Chart {
  constructor(metric) {
    this.metric = metric;
    this.canvas = el("canvas", { role: "img", "aria-label": `curve of ${metric}`, tabindex: "0" });
    this.last = el("span", { class: "last" });
    this.box = el("figure", { class: "chart" }, el("figcaption", {}, el("b", {}, visible(metric)), this.last), this.canvas);
    this.draw = later(() => this.paint());
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => { this.at = null; hideTip(); this.draw(); });
  }

  lines() {
    return RUNS.filter((run) => run.shown).map((run) => ({ run, steps: run.steps, raw: series(run, this.metric) }))
      .filter((line) => line.raw)
      .map((line) => ({ ...line, smooth: curves.smooth ? smoothed(line.raw, curves.smooth) : line.raw }));
  }

  frame(lines) {
    const finite = lines.flatMap((line) => Array.from(line.raw).filter(Number.isFinite)).sort((a, b) => a - b);
    const steps = lines.flatMap((line) => [line.steps[0], line.steps.at(-1)]);
    this.log = curves.log && finite.length > 0 && finite[0] > 0;
    const value = (each) => (this.log ? Math.log10(each) : each);
    let low = value(finite[0] ?? 0), high = value(finite.at(-1) ?? 1);
    if (curves.smooth && finite.length > 40) {  // a lone spike does not flatten the rest; the smoothed line is whole
      const cut = (share) => value(finite[Math.round(share * (finite.length - 1))]);
      const drawn = lines.flatMap((line) => Array.from(line.smooth).filter(Number.isFinite)).map(value);
      low = Math.min(cut(0.005), drawn.reduce((a, b) => Math.min(a, b)));
      high = Math.max(cut(0.995), drawn.reduce((a, b) => Math.max(a, b)));
    }
    const room = Math.max((high - low) * 0.06, Math.abs(high) * 1e-6, 1e-12);
    const flat = high - low <= Math.abs(high) * 1e-6;  // a flat curve keeps a readable axis
    const spare = flat ? Math.max(Math.abs(high) * 0.1, this.log ? 0.5 : 1e-6) : room;
    return { low: low - spare, high: high + spare, from: Math.min(...steps), to: Math.max(...steps) };
  }

  paint() {
    const ratio = devicePixelRatio || 1, width = this.canvas.clientWidth, height = this.canvas.clientHeight;
    if (!width) return;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    const pen = this.canvas.getContext("2d"), lines = this.lines();
    pen.scale(ratio, ratio);
    pen.font = "11px system-ui, sans-serif";
    if (!lines.length) return;
    const frame = this.frame(lines), [left, right, top, bottom] = [52, 8, 8, 20];
    this.x = (step) => left + ((width - left - right) * (step - frame.from)) / Math.max(1, frame.to - frame.from);
    this.y = (value) => top + ((height - top - bottom) * (frame.high - (this.log ? Math.log10(value) : value))) / (frame.high - frame.low);
    this.axes(pen, frame, { left, right, top, bottom, width, height });
    pen.save();
    pen.beginPath();
    pen.rect(left, top - 2, width - left - right + 2, height - top - bottom + 4);
    pen.clip();
    for (const line of lines) {
      if (curves.smooth) this.stroke(pen, line, line.raw, 1, 0.28);
      this.stroke(pen, line, line.smooth, 1.8, 1);
    }
    pen.restore();
    this.drawn = { lines, frame };
    this.cross(pen, { top, bottom, height });
    this.last.textContent = lines.length === 1 ? number(lines[0].raw.findLast(Number.isFinite)) : "";
  }

  axes(pen, frame, { left, right, top, bottom, width, height }) {
    pen.fillStyle = inkOf("--faint-ink");
    pen.strokeStyle = inkOf("--line");
    pen.lineWidth = 1;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    const values = this.log ? ticks(frame.low, frame.high, 3).map((power) => 10 ** power) : ticks(frame.low, frame.high, 4);
    for (const value of values) {
      const y = Math.round(this.y(value)) + 0.5;
      pen.beginPath(); pen.moveTo(left, y); pen.lineTo(width - right, y); pen.stroke();
      pen.fillText(number(value), left - 6, y);
    }
    pen.textBaseline = "alphabetic";
    pen.textAlign = "center";
    for (const step of ticks(frame.from, Math.max(frame.to, frame.from + 1), Math.max(2, width / 90))) {
      if (Number.isInteger(step) && step <= frame.to) pen.fillText(String(step), Math.min(this.x(step), width - 14), height - 5);
    }
  }

  stroke(pen, line, values, width, alpha) {
    pen.strokeStyle = colourOf(line.run);
    pen.globalAlpha = alpha;
    pen.lineWidth = width;
    pen.setLineDash(dashOf(line.run));
    pen.beginPath();
    let down = false, lone = 0;
    values.forEach((value, at) => {
      const there = Number.isFinite(value) && !(this.log && value <= 0);
      if (there) { pen[down ? "lineTo" : "moveTo"](this.x(line.steps[at]), this.y(value)); lone += 1; }
      down = there;
    });
    pen.stroke();
    pen.setLineDash([]);
    if (lone < 30 && alpha === 1) {
      pen.fillStyle = colourOf(line.run);
      values.forEach((value, at) => {
        if (!Number.isFinite(value)) return;
        pen.beginPath(); pen.arc(this.x(line.steps[at]), this.y(value), 2, 0, 7); pen.fill();
      });
    }
    pen.globalAlpha = 1;
  }

  point(event) {
    if (!this.drawn) return;
    const { frame, lines } = this.drawn, box = this.canvas.getBoundingClientRect();
    const share = (event.clientX - box.left - 52) / (box.width - 60);
    const wanted = frame.from + share * (frame.to - frame.from);
    const steps = lines.flatMap((line) => line.steps);
    this.at = steps.reduce((best, step) => (Math.abs(step - wanted) < Math.abs(best - wanted) ? step : best), steps[0]);
    const told = lines.map((line) => {
      const at = line.steps.indexOf(this.at);
      return at < 0 ? null : [visible(line.run.name), curves.smooth ? `${number(line.raw[at], 4)} · ${number(line.smooth[at], 4)}` : number(line.raw[at], 4), colourOf(line.run)];
    }).filter(Boolean);
    showTip(event, `step ${this.at}`, told, curves.smooth ? "raw · smoothed" : "");
    this.draw();
  }

  cross(pen, { top, bottom, height }) {
    if (this.at == null) return;
    pen.strokeStyle = inkOf("--faint-ink");
    pen.beginPath(); pen.moveTo(this.x(this.at), top); pen.lineTo(this.x(this.at), height - bottom); pen.stroke();
  }
}

const redraw = later(() => curves.charts.filter((chart) => chart.seen).forEach((chart) => chart.draw()));

function showMetric(metric) {
  curves.find = "";
  $("find-metric").value = "";
  filterCharts();
  const chart = curves.charts.find((each) => each.metric === metric);
  if (chart) setTimeout(() => { chart.box.scrollIntoView({ block: "center" }); chart.canvas.focus({ preventScroll: true }); }, 0);
}

function filterCharts() {
  const wanted = curves.find.toLowerCase();
  for (const chart of curves.charts) chart.box.hidden = !chart.metric.toLowerCase().includes(wanted);
}

function legend() {
  return el("div", { class: "legend" }, RUNS.map((run) => el("label", {},
    el("input", { type: "checkbox", checked: true, onchange: (event) => { run.shown = event.target.checked; redraw(); } }),
    el("span", { class: "swatch", style: `background:${colourOf(run)}` }), visible(run.name))));
}

function drawCurves() {
  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    const chart = curves.charts.find((each) => each.box === entry.target);
    chart.seen = entry.isIntersecting;
    if (chart.seen) chart.draw();
  }), { rootMargin: "300px" });
  curves.charts = metricNames().map((metric) => new Chart(metric));
  const controls = el("div", { class: "controls" },
    labelled("find", el("input", { id: "find-metric", type: "search", placeholder: "metric", oninput: (event) => { curves.find = event.target.value; filterCharts(); } })),
    labelled("smoothing", el("input", { type: "range", min: "0", max: "0.98", step: "0.01", value: curves.smooth, oninput: (event) => { curves.smooth = +event.target.value; redraw(); } })),
    el("label", {}, el("input", { type: "checkbox", onchange: (event) => { curves.log = event.target.checked; redraw(); } }), " log scale, where all is positive"),
    legend());
  const none = curves.charts.length ? [] : [el("p", { class: "none" }, "No metrics were written.")];
  $("curves").replaceChildren(el("h2", { id: "curves-title" }, "Curves"), controls, el("div", { class: "charts" }, curves.charts.map((chart) => chart.box)), ...none);
  curves.charts.forEach((chart) => seen.observe(chart.box));
}
