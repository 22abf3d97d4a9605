from __future__ import annotations

import json

from megatron_gopd.evaluation.standings import print_standings


def test_the_last_ones_lead_is_paired_problem_by_problem(tmp_path, capsys):
    scores = {"before": {"a": [0, 1], "b": [0, 0]}, "after": {"a": [1, 1], "b": [1, 0]}}
    for who, problems in scores.items():
        known = {"response": "", "tokens": 1, "problem": None, "finish_reason": "stop"}
        rows = [
            {"id": problem, "sample": number, "score": score} | known
            for problem, answers in problems.items()
            for number, score in enumerate(answers)
        ]
        (tmp_path / who).mkdir()
        (tmp_path / who / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print_standings({who: tmp_path / who for who in scores}, {"sums": 2})
    before, after = [
        line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:1] in (["before"], ["after"])
    ]
    assert before == "before 0.250 +- 0.250 0.500 +- 0.000".split()  # each problem gained a half
    assert after == "after 0.750 +- 0.250".split()
