"""The batch script of a request: one readable file, from one template."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from megatron_gopd.errors import UserError
from megatron_gopd.launch.request import Request

# options of sbatch that this package sets, and what of its own sets them
WRITTEN_HERE = dict.fromkeys("output error open-mode signal ntasks ntasks-per-node wrap test-only".split(), "") | {
    "array": ", for a --sweep",
    "dependency": ", for a --chain",
    "requeue": ", by --max-requeues",
    "no-requeue": ", by --max-requeues",
    "job-name": ", from run.name",
    "gpus-per-node": ", by --gpus-per-node",
    **{key: f", by --{key}" for key in "nodes partition account qos time exclude mem cpus-per-task export".split()},
}
TEMPLATE = Path(__file__).with_name("job.sbatch.jinja")


def render(request: Request) -> str:
    """The script; UserError names a value that no script can hold."""
    runs = request.settings()
    first = runs[0][1]
    folders = [f"{config.run.folder}/{config.run.name}" for _, config in runs]
    name = first.run.name if not request.sweep else Path(request.config).stem
    log_folder = f"{first.run.folder}/{name}"
    values = {
        "about": f"{name}: {request.placement}, {request.nodes} nodes of {request.gpus_per_node} GPUs",
        "command": command_line(request),
        "name": name,
        "components": _components(request, log_folder, len(runs)),
        "python": request.python,
        "config": str(request.config),
        "overrides": request.overrides,
        "sweep": [overrides for overrides, _ in runs] if request.sweep else [],
        "run_folders": folders,
        "threads": request.cpus_per_task or 1,
        "step": _container_step(request, folders),
        "setup": request.setup and str(request.setup.absolute()),
        "container": request.container_image and request.container_runtime,
        "image": request.container_image,
        "mounts": shlex.quote(f",{_one_line(request.container_mounts)}") if request.container_mounts else "",
        "gpus": request.gpus_per_node,
        "gpus_per_node": request.gpus_per_node,
        "ranks": request.nodes * request.ranks_per_node,
        "exclude": request.exclude,
        "max_requeues": 0 if request.chain > 1 else request.max_requeues,
        "stop_patience": request.stop_before_s * 9 // 10,
        "chained": request.chain > 1,
        "serve": request.serve,
        "servers": request.servers,
        "serve_urls": request.serve_urls,
        "serve_deadline": request.serve_deadline_s,
        **_steps(request),
    }
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined, autoescape=False
    )
    environment.filters |= {"q": lambda value: shlex.quote(_one_line(value)), "sbatch": sbatch_value}
    return environment.from_string(TEMPLATE.read_text()).render(values)


def command_line(request: Request) -> str:
    """The `submit` that gives this request."""
    parts = ["megatron-gopd", "submit", str(request.config)]
    for key, value in vars(request).items():
        default = Request.__dataclass_fields__[key].default
        if key == "config" or (value == default and key not in ("nodes", "gpus_per_node")):
            continue
        option = {"overrides": "--set", "stop_before_s": "--stop-before", "serve_deadline_s": "--serve-deadline"}
        for one in value if isinstance(value, tuple) else [value]:
            parts += [option.get(key, f"--{key.replace('_', '-')}"), str(one)]
    return shlex.join(map(_one_line, parts))


def sbatch_value(value: object) -> str:
    """A value on an #SBATCH line, quoted as sbatch reads quotes."""
    text = _one_line(str(value))
    if re.fullmatch(r"[\w@%+=:,./\[\]-]+", text):
        return text
    if "'" in text or "\\" in text:
        raise UserError(f"{text!r} cannot stand in a batch script's #SBATCH line: take out quotes and backslashes")
    return f"'{text}'"


def _one_line(value: object) -> str:
    if re.search(r"[\x00-\x1f\x7f]", str(value)):
        raise UserError(f"{str(value)!r} holds a control character, which a batch script cannot: take it out")
    return str(value)


def _components(request: Request, log_folder: str, points: int) -> list[list[str]]:
    """The #SBATCH options; those of the whole job stand with the first component."""
    if "%" in log_folder:
        raise UserError(f"run.folder {log_folder!r}: SLURM reads % in the name of a log file; take it out")
    log = f"{log_folder}/slurm/job-{'%A_%a' if request.sweep else '%j'}.log"
    nodes = request.nodes + (request.serve_nodes if request.placement == "disjoint" else 0)
    tasks = request.ranks_per_node + (request.placement == "split")  # a server needs its CPUs beside the ranks
    trainer = _resources(request, nodes, request.gpus_per_node, tasks, request.partition)
    trainer += [f"output={sbatch_value(log)}", "open-mode=append"]  # or a requeue would empty the log
    trainer += [f"signal=B:USR1@{request.stop_before_s}"]
    trainer += ["requeue" if request.max_requeues and request.chain == 1 else "no-requeue"]
    trainer += ["dependency=singleton"] if request.chain > 1 else []
    trainer += [f"array=0-{points - 1}"] if request.sweep else []
    trainer += [f"export={','.join(request.exported)}"]
    if request.placement != "heterogeneous":
        return [trainer]
    partition = request.serve_partition or request.partition
    gpus = request.serve_gpus_per_node or request.gpus_per_node
    return [trainer, [*_resources(request, request.serve_nodes, gpus, 1, partition)]]


def _resources(request: Request, nodes: int, gpus: int, tasks: int, partition: str | None) -> list[str]:
    given = {
        "partition": partition,
        "account": request.account,
        "qos": request.qos,
        "time": request.time,
        "nodes": nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": gpus or None,
        "cpus-per-task": request.cpus_per_task,
        "mem": request.mem,
        "exclude": request.exclude,
    }
    options = [f"{key}={sbatch_value(value)}" for key, value in given.items() if value is not None]
    for extra in request.sbatch:
        key, equals, value = extra.partition("=")
        if not re.fullmatch(r"[a-z][a-z-]*", key):
            raise UserError(f"--sbatch {extra!r}: write option=value, as in constraint=h100, or option alone")
        if key in WRITTEN_HERE:
            raise UserError(f"--sbatch {extra!r}: submit writes {key} itself{WRITTEN_HERE[key]}; leave it out")
        options.append(f"{key}={sbatch_value(value)}" if equals else key)
    return options


def _steps(request: Request) -> dict[str, list[str]]:
    """srun's options for each component."""
    cpus = [f"--cpus-per-task={request.cpus_per_task}"] if request.cpus_per_task else []
    nodes = [f"--nodes={request.nodes}"]
    train = [*nodes, f"--ntasks={request.nodes * request.ranks_per_node}", *cpus]
    train += [f"--ntasks-per-node={request.ranks_per_node}"]
    doctor = [*nodes, f"--ntasks={request.nodes}", "--ntasks-per-node=1", *cpus]
    serve = [f"--nodes={request.servers}", f"--ntasks={request.servers}", "--ntasks-per-node=1", *cpus]
    if request.placement == "split":
        of_a_node = [request.gpus_per_node - request.serve_gpus_per_node, request.serve_gpus_per_node]
        # --exact with a count of GPUs: what CUDA_VISIBLE_DEVICES says is overwritten for a step that overlaps
        train, serve = (
            [*step, "--exact", f"--gres=gpu:{gpus}", "--mem=0"]
            for step, gpus in zip((train, serve), of_a_node, strict=True)
        )
    elif request.placement == "disjoint":
        train, doctor = ([*step, "--relative=0"] for step in (train, doctor))
        serve = [*serve, f"--relative={request.nodes}"]
    elif request.placement == "heterogeneous":
        train, doctor, serve = (
            [*step, f"--het-group={group}"] for step, group in ((train, 0), (doctor, 0), (serve, 1))
        )
    return {"train_step": train, "doctor_step": doctor, "serve_step": serve}


def _container_step(request: Request, folders: list[str]) -> list[str]:
    if not request.container_image or request.container_runtime != "pyxis":
        return []
    seen = [
        *(folder for folder in folders if folder.startswith("/")),
        *([request.setup.absolute()] if request.setup else []),
    ]
    mounts = ["", *(f"{path}:{path}" for path in seen)]
    mounts += [request.container_mounts] if request.container_mounts else []
    return [
        f"--container-image={shlex.quote(_one_line(request.container_image))}",
        f'--container-mounts="$PWD:$PWD"{shlex.quote(_one_line(",".join(mounts))) if mounts[1:] else ""}',
        '--container-workdir="$PWD"',
    ]
