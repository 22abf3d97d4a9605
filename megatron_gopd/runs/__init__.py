"""The run folder: what a run writes, and what a person sees of it."""

from megatron_gopd.runs.atomic import atomic_folder, sync_behind, write_link, write_text
from megatron_gopd.runs.attempts import FinishedError
from megatron_gopd.runs.checkpoints import Checkpoint
from megatron_gopd.runs.console import StepLine, print_markdown, print_table
from megatron_gopd.runs.folder import RunFolder
from megatron_gopd.runs.logs import Log, last_words, record_exception
from megatron_gopd.runs.manifest import DamagedError, check_manifest, read_manifest, write_manifest
from megatron_gopd.runs.sinks import Sink, Sinks, open_sinks
from megatron_gopd.runs.spans import Spans
from megatron_gopd.runs.trajectories import TrajectoryFolder

__all__ = [
    "Checkpoint",
    "DamagedError",
    "FinishedError",
    "Log",
    "RunFolder",
    "Sink",
    "Sinks",
    "Spans",
    "StepLine",
    "TrajectoryFolder",
    "atomic_folder",
    "check_manifest",
    "last_words",
    "open_sinks",
    "print_markdown",
    "print_table",
    "read_manifest",
    "record_exception",
    "sync_behind",
    "write_link",
    "write_manifest",
    "write_text",
]
