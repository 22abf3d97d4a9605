"""The report's files: one HTML page that needs nothing beside it, and Markdown with its figures."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from megatron_gopd.evaluation.study import glance, numbers, overview
from megatron_gopd.evaluation.study.claims import findings
from megatron_gopd.evaluation.study.drawing import INK
from megatron_gopd.evaluation.study.figures import Figure, figures, of_runs
from megatron_gopd.evaluation.study.results import results
from megatron_gopd.evaluation.study.samples import samples
from megatron_gopd.evaluation.study.scores import Measured
from megatron_gopd.evaluation.study.settings import Study
from megatron_gopd.evaluation.study.tables import Table, tables
from megatron_gopd.evaluation.study.verdicts import FAILS, HOLDS, OPEN, SURE, Finding
from megatron_gopd.terminal import shown

PAGE, TEXT = "report.html", "report.md"


@dataclass(frozen=True)
class Report:
    """All that is shown."""

    study: Study
    results: list[Table]
    curves: list[Figure]
    findings: list[Finding]  # the paper's from here on
    tables: list[Table]
    figures: list[Figure]

    @classmethod
    def on(cls, study: Study) -> Report:
        return cls(study, results(study), of_runs(study), findings(study), tables(study), figures(study))

    @property
    def told(self) -> list[Finding]:
        """The claims that these runs speak of."""
        return [finding for finding in self.findings if finding.verdict != OPEN or finding.evidence]

    @property
    def untold(self) -> list[Finding]:
        return [finding for finding in self.findings if finding not in self.told]

    @property
    def summary(self) -> str:
        """How many claims hold, and how many not."""
        counts = Counter(finding.verdict for finding in self.findings)
        said = ", ".join(
            [f"{counts[HOLDS]} hold", f"{counts[FAILS]} do not hold here", f"{counts[OPEN]} cannot be told"]
        )
        return f"Of {len(self.findings)} claims: {said} from these runs."

    def write(self, folder: Path) -> None:
        """report.html, report.md, and NAME.svg and NAME.png of each figure."""
        for name in (PAGE, TEXT):
            (folder / name).write_text(self._rendered(f"{name}.jinja"), encoding="utf-8")
        for figure in (*self.curves, *self.figures):
            (folder / f"{figure.name}.svg").write_text(figure.drawn.svg, encoding="utf-8")
            (folder / f"{figure.name}.png").write_bytes(figure.drawn.png)

    def _rendered(self, template: str) -> str:
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            finalize=markdown if template.startswith(TEXT) else None,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters |= {"inline": inline, "cell": markdown, "verdict": verdict_class, "sure": surely}
        environment.globals |= {"numbers": numbers, "glance": glance, "samples": samples}
        return environment.get_template(template).render(
            report=self,
            overview=overview,
        )


def inline(figure: Figure) -> str:
    """SVG for a page: as wide as there is room, in the colours of its text."""
    svg = figure.drawn.svg[figure.drawn.svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt" height="[\d.]+pt"', r'\1 style="max-width:\2pt"', svg, count=1)
    # ids are unique in a file; several stand in the page
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{figure.name}-", svg)
    return svg.replace(INK, "currentColor")


def markdown(value: object) -> Markup:
    """A value as Markdown that shows it, in one line: what others named would else be marks, tables, links or HTML."""
    if isinstance(value, Markup):
        return value
    text = shown(" ".join(str(value).split()))
    text = re.sub(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)|^#", r"\\\g<0>", text)
    return Markup(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def verdict_class(finding: Finding) -> str:
    return {HOLDS: "holds", FAILS: "fails"}.get(finding.verdict, "open")


def surely(value: Measured) -> str:
    """Whether a difference is beyond its errors."""
    return (
        "up"
        if value.mean > SURE * value.standard_error
        else "down"
        if value.mean < -SURE * value.standard_error
        else ""
    )
