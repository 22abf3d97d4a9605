// Draw the page; again where its colours or its width change.
function drawAll() {
  const names = RUNS.map((run) => run.name).join(", ");
  $("title").replaceChildren(visible(RUNS.length === 1 ? names : `${RUNS.length} runs`), el("small", {}, `megatron-gopd ${DATA.version}, written ${DATA.written.replace("T", " ").replace("+00:00", " UTC")}`));
  document.title = visible(names.length > 80 ? `${RUNS.length} runs` : names);
  drawHealth();
  drawCurves();
}

drawAll();
setTimeout(drawReader);  // once the run at a glance is there to be seen
dark.addEventListener("change", () => { drawAll(); if (ROWS.length) drawList(); });
addEventListener("resize", redraw);
addEventListener("scroll", hideTip, { passive: true });
addEventListener("keydown", (event) => {
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  if (event.key === "j" || event.key === "k") go(event.key === "j" ? 1 : -1);
  if (event.key === "Escape") hideTip();
});
