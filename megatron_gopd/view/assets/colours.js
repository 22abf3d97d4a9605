// Colours of runs, and of values on a scale.
// Okabe and Ito's, which colour-blind readers tell apart, darkened or lightened for the ground they stand on.
const ON_LIGHT = ["#0063a8", "#c24e00", "#00805c", "#a8487f", "#7a5c00", "#3b7ea1", "#5b4db0", "#8a1c1c"];
const ON_DARK = ["#5db4f5", "#ff9a4d", "#35c99c", "#e99cc6", "#e6c34a", "#8fd3ee", "#b3a6ff", "#ff8f8f"];
const dark = matchMedia("(prefers-color-scheme: dark)");

const colourOf = (run) => (dark.matches ? ON_DARK : ON_LIGHT)[run.at % ON_LIGHT.length];
const dashOf = (run) => (run.at < ON_LIGHT.length ? [] : [5, 3]);
const inkOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Of these columns only the size counts; of the others the sign too.
const ONE_SIDED = new Set(["entropy", "target_kl", "tail_mass", "clipped", "reference_kl", "disagreement"]);
const LOGPROBS = new Set(["student_logprobs", "teacher_logprobs", "reference_logprobs", "behaviour_logprobs"]);
// Good for the student is blue; what costs is orange. An advantage has the other sign of a KL.
const COSTS = new Set(["student − teacher", "student − reference", "student − engine"]);

// {most: value of the full colour, one: no second side, centre}
function scaleOf(column, values) {
  const centre = column === "rollout_correction" ? 1 : 0;
  const sizes = Array.from(values).filter(Number.isFinite).map((value) => Math.abs(value - centre)).sort((a, b) => a - b);
  const most = sizes.length ? sizes[Math.min(sizes.length - 1, Math.floor(0.98 * sizes.length))] : 0;
  return { most: Math.max(most, 1e-6), one: ONE_SIDED.has(column) || LOGPROBS.has(column), centre, costs: COSTS.has(column) };
}

const LEVELS = 16;  // of a tint: a class each, since thousands of tokens change theirs at once

document.head.append(el("style", {}, ["warm", "cool"].flatMap((side) => Array.from({ length: LEVELS }, (_, level) =>
  `.${side}-${level + 1} { background: color-mix(in srgb, var(--${side}) ${Math.round((72 * (level + 1)) / LEVELS)}%, transparent); }`)).join("\n")));

// The class of a value's colour; "" for hardly any.
function tint(value, scale) {
  if (!Number.isFinite(value)) return "";
  const level = Math.round(LEVELS * Math.min(1, Math.abs(value - scale.centre) / scale.most) ** 0.7);
  const warm = scale.one || (value > scale.centre) === scale.costs;
  return level ? `${warm ? "warm" : "cool"}-${level}` : "";
}
