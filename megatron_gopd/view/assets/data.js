// What the page knows: read once, per-token values when a response is looked at.
const DATA = JSON.parse($("data").textContent);
const RUNS = DATA.runs;

function bytes(text) {
  const binary = atob(text);
  const found = new Uint8Array(binary.length);
  for (let at = 0; at < binary.length; at += 1) found[at] = binary.charCodeAt(at);
  return found.buffer;
}

RUNS.forEach((run, at) => {
  run.at = at;
  run.shown = true;
  run.series = Object.create(null);  // a metric may have any name, __proto__ too
  for (const row of run.rows) row.run = run;
});

function series(run, metric) {
  if (!Object.hasOwn(run.metrics, metric)) return null;
  run.series[metric] ??= new Float32Array(bytes(run.metrics[metric]));
  return run.series[metric];
}

const ROWS = RUNS.flatMap((run) => run.rows);
ROWS.forEach((row, at) => { row.number = at; });

// {ids, pieces, columns: {name: Float32Array}} of a response, with the gaps that people ask for.
function tokensOf(row) {
  if (row.read) return row.read;
  const data = bytes(row.data), count = row.tokens, columns = Object.create(null);
  const ids = new Int32Array(data, 0, count);
  const pieces = Array.from(new Int32Array(data, 4 * count, count), (at) => row.run.texts[at]);
  row.columns.forEach((column, at) => {
    columns[row.run.columns[column]] = new Float32Array(data, 4 * count * (at + 2), count);
  });
  for (const [name, other] of Object.entries(GAPS)) {
    const [mine, theirs] = [columns.student_logprobs, columns[other]];
    if (mine && theirs) columns[name] = mine.map((value, at) => value - theirs[at]);
  }
  row.read = { ids, pieces, columns };
  return row.read;
}

// The text of the first tokens, for a list: without reading the rest.
function startOf(row) {
  const count = Math.min(row.tokens, 40), from = 4 * row.tokens;
  const first = Math.floor(from / 3) * 4, head = new Uint8Array(bytes(row.data.slice(first, first + 4 * Math.ceil((4 * count + 3) / 3) + 4)));
  const numbers = new Int32Array(head.slice(from % 3, (from % 3) + 4 * count).buffer);
  return Array.from(numbers, (at) => row.run.texts[at]).join("");
}

const GAPS = {
  "student − teacher": "teacher_logprobs",
  "student − reference": "reference_logprobs",
  "student − engine": "behaviour_logprobs",
};

function mean(values) {
  if (!values || !values.length) return null;
  let sum = 0, count = 0;
  for (const value of values) if (Number.isFinite(value)) { sum += value; count += 1; }
  return count ? sum / count : null;
}

const promptOf = (row) => row.run.texts[row.prompt];
const responseOf = (row) => (row.response ??= tokensOf(row).pieces.join(""));

// Columns by the names that people read.
const NAMES = {
  advantage: "advantage", "student − teacher": "KL to teacher", entropy: "entropy",
  "student − reference": "gap to reference", "student − engine": "gap to engine", target_kl: "KL to target",
  student_logprobs: "log π student", teacher_logprobs: "log π teacher", reference_logprobs: "log π reference",
  behaviour_logprobs: "log π engine", advantage_of_teacher: "advantage: teacher − student",
  advantage_beyond_teacher: "advantage: (λ−1)(teacher − reference)", rollout_correction: "rollout correction",
};
const named = (column) => (Object.hasOwn(NAMES, column) ? NAMES[column] : column.replaceAll("_", " "));
