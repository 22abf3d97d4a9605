"""The shortest configuration; tests count its lines."""

MINIMAL = """\
run:
  name: demo
  steps: 10
student: {model: /student}
teachers:
  math:
    model: /teacher
data:
  train: prompts.jsonl
  batch_size: 4
"""
