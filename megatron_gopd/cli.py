"""The verbs. Each reads its arguments, calls one function of the library, and no more."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from megatron_gopd.errors import UserError, disk_errors
from megatron_gopd.srun import adopt_srun
from megatron_gopd.terminal import say, show_errors
from megatron_gopd.torchrun import run_behind_torchrun

MOST = 100_000  # GPUs or nodes: nobody waits for more to be laid out
app = typer.Typer(
    name="megatron-gopd",
    help="Generalized On-Policy Distillation (G-OPD / ExOPD) on Megatron-Core.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def print_version(asked: bool) -> None:
    if asked:
        from megatron_gopd import __version__

        say(f"megatron-gopd {__version__}")
        raise typer.Exit


Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value ...")]
Set = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, too; repeatable")]
conversions = typer.Typer(help="A model from Hugging Face's format to Megatron's, and back.", no_args_is_help=True)
app.add_typer(conversions, name="convert")


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    pass


def both(overrides: list[str] | None, more: list[str] | None) -> list[str]:
    """Those given after the configuration, then those of --set: where both set a key, --set does."""
    return [*(overrides or []), *(more or [])]


def hide_gpus() -> None:
    """Before torch is imported: it looks once."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def verb(function, of: typer.Typer = app):
    """Register a verb whose user errors end in one message and exit code 2."""

    @functools.wraps(function)
    def command(*args, **kwargs):
        show_errors()
        try:
            adopt_srun()
            with disk_errors():
                function(*args, **kwargs)
        except UserError as error:
            from megatron_gopd.runs.outcome import leave_the_last_word, tell_outcome

            # before the ranks know of each other, each meets the same mistake
            if os.environ.get("RANK", "0") != "0":
                leave_the_last_word()
            else:
                tell_outcome(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            say("interrupted", file=sys.stderr)
            raise typer.Exit(130) from None

    return of.command()(command)


def _refuse_both(new_name: bool, overwrite: bool) -> None:
    if new_name and overwrite:
        raise UserError("--new-name leaves alone what --overwrite removes: give one of them")


@verb
def train(
    config: Annotated[Path, typer.Argument(help="YAML file")],
    overrides: Overrides = None,
    more: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the resolved configuration and exit")] = False,
    gpus: Annotated[int | None, typer.Option(min=1, max=MOST, help="of --dry-run: that the run must fit")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, max=MOST, help="that --gpus are in; default: of eight")] = None,
    new_name: Annotated[bool, typer.Option("--new-name", help="NAME-2 and so on, where run.name is taken")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="what is under run.name goes")] = False,
) -> None:
    """Train a student: G-OPD on its own rollouts, GRPO, or SFT."""
    from megatron_gopd.config import load_config, to_yaml
    from megatron_gopd.runs.names import with_new_name

    settings = load_config(config, [*both(overrides, more), *(["checkpoint.resume=overwrite"] if overwrite else [])])
    _refuse_both(new_name, overwrite)
    if (gpus or nodes) and not (dry_run and gpus):
        raise UserError("--gpus, and --nodes with it, are of --dry-run: a run counts those that it has")
    if gpus:
        from megatron_gopd.config.placement import asked, idle
        from megatron_gopd.plan.hardware import hardware

        for told in idle(settings, asked(settings, gpus, nodes, hardware().gpus_per_node)).told:
            say(f"warning: {told}", file=sys.stderr)
    if dry_run:
        from megatron_gopd.training.dry_run import check_configurations

        check_configurations(settings)
        say(to_yaml(with_new_name(settings, claim=False) if new_name else settings), end="")
        return
    if settings.run.device == "cpu":
        hide_gpus()
    run_behind_torchrun()
    from megatron_gopd.ranks import on_first, ranks

    with ranks():
        from megatron_gopd.training.train import train

        train(on_first(lambda: with_new_name(settings, claim=True)) if new_name else settings)


@verb
def score(
    model: Annotated[Path, typer.Option(help="Hugging Face directory")],
    input: Annotated[Path, typer.Option(help="jsonl: id, prompt_tokens and response_tokens, or prompt and response")],
    output: Annotated[Path, typer.Option(help="jsonl: id, logprobs, entropy; replaced if it exists")],
    layout: Annotated[str, typer.Option(help="tp=2,pp=2,sequence_parallel=true; omitted keys are 1 / false")] = "",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "bfloat16",
    temperature: Annotated[float, typer.Option(help="of the softmax")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="packed tokens of one forward pass")] = 16384,
) -> None:
    """Log-prob and entropy of every response token under a model."""
    from megatron_gopd.config import Layout
    from megatron_gopd.ranks import ranks

    settings = Layout.parse(layout)
    with ranks():
        from megatron_gopd.evaluation.score_file import score_file

        score_file(model, input, output, layout=settings, dtype=dtype, temperature=temperature, max_tokens=max_tokens)


@verb
def serve_scorer(
    model: Annotated[Path, typer.Option(help="Hugging Face directory")],
    layout: Annotated[str, typer.Option(help="tp=2,pp=2,sequence_parallel=true; omitted keys are 1 / false")] = "",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "bfloat16",
    host: Annotated[
        str, typer.Option(help="address to listen on; another than the loopback needs a token")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one")] = 8765,
    max_tokens: Annotated[int, typer.Option(min=1, help="packed tokens of one forward pass")] = 16384,
) -> None:
    """Answer other jobs that ask for log-probs: their teachers' engine: served."""
    from megatron_gopd.config import Layout
    from megatron_gopd.ranks import ranks

    settings = Layout.parse(layout)
    with ranks():
        from megatron_gopd.policies import serve

        serve.serve_scorer(model, layout=settings, dtype=dtype, host=host, port=port, max_tokens=max_tokens)


@verb
def evaluate(
    model: Annotated[Path, typer.Option(help="Hugging Face directory")],
    suite: Annotated[list[str] | None, typer.Option(help="a benchmark by name, or a file; repeatable")] = None,
    data: Annotated[Path | None, typer.Option(help="or prompts with labels or tests: jsonl or parquet")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="answers a prompt; default: 1, of suites 32 or 4")] = None,
    grader: Annotated[
        str, typer.Option(help="of a file: math, math_lenient, exact, code, auto or FILE.py:FUNCTION")
    ] = "math",
    prompt_template: Annotated[str, typer.Option(help="of a file: none, math or code")] = "none",
    max_response_tokens: Annotated[int | None, typer.Option(min=1, help="default: 1024, of suites 16384")] = None,
    temperature: Annotated[float, typer.Option()] = 1.0,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "bfloat16",
    limit: Annotated[int | None, typer.Option(min=1, help="prompts used; default: all")] = None,
    output: Annotated[
        Path | None, typer.Option(help="jsonl: every answer and its grade; of suites a folder, evaluations/MODEL")
    ] = None,
    server: Annotated[
        list[str] | None, typer.Option(help="address of an SGLang server of the model, to answer suites; repeatable")
    ] = None,
    benchmarks: Annotated[Path, typer.Option(help="folder of the suites' files")] = Path("data/benchmarks"),
    isolation: Annotated[str, typer.Option(help="of programs: namespaces or limits")] = "namespaces",
    seed: Annotated[int, typer.Option(min=0)] = 42,
) -> None:
    """avg@K of a model on benchmarks, or on labelled prompts, with its standard error."""
    from megatron_gopd.evaluation.options import check_source, sandbox_of
    from megatron_gopd.ranks import ranks

    check_source(suite, data, server)
    sandbox = sandbox_of(isolation)
    with ranks():
        if suite:
            from megatron_gopd.evaluation.run_suites import Settings, evaluate_suites

            own = {"grader": grader, "prompt_template": prompt_template}
            settings = Settings(benchmarks, samples, max_response_tokens or 16384, temperature, limit, sandbox, **own)
            folder = output or Path("evaluations", model.name)
            evaluate_suites(model, suite, folder, settings, dtype=dtype, seed=seed, servers=server or ())
            return
        from megatron_gopd.evaluation.benchmark import evaluate_model
        from megatron_gopd.evaluation.labelled import Labelled

        evaluate_model(
            model,
            Labelled(data, grader=grader, prompt_template=prompt_template, limit=limit, sandbox=sandbox),
            samples=samples or 1,
            max_response_tokens=max_response_tokens or 1024,
            temperature=temperature,
            dtype=dtype,
            seed=seed,
            output=output,
        )


@verb
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="folders of runs and of evaluate --suite, or folders that hold any")
    ],
    output: Annotated[Path, typer.Option(help="new folder, or one with an earlier report, which is replaced")],
) -> None:
    """What any runs did and amount to, with standard errors, and the paper's claims: HTML and Markdown."""
    from megatron_gopd.evaluation import study

    study.report(runs, output)


@verb
def view(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs, or folders that hold any")],
    output: Annotated[
        Path | None, typer.Option(help="HTML file; default: view.html in the folder of the run, of several here")
    ] = None,
) -> None:
    """One page on what runs did: health, curves, and the kept responses token by token."""
    from megatron_gopd import view as page

    say(page.view(runs, output))


@functools.partial(verb, of=conversions)
def hf_to_megatron(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Hugging Face directory with safetensors")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="new folder")],
    verify: Annotated[bool, typer.Option("--verify", help="read back what was written, compare bit by bit")] = False,
) -> None:
    """Write a Megatron checkpoint, for any layout."""
    from megatron_gopd.ranks import ranks

    with ranks():
        from megatron_gopd.mcore import convert

        convert.hf_to_megatron(source, target, verify=verify)
    say(f"{target}: written{' and read back' if verify else ''}")


@functools.partial(verb, of=conversions)
def megatron_to_hf(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="a converted model, or a run's checkpoint")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="new folder")],
    max_shard_gb: Annotated[float, typer.Option(min=0.001, help="bytes of a safetensors file, in 10^9")] = 5,
    verify: Annotated[bool, typer.Option("--verify", help="read back what was written, compare bit by bit")] = False,
) -> None:
    """Write a Hugging Face directory."""
    from megatron_gopd.ranks import ranks

    with ranks():
        from megatron_gopd.mcore import convert

        convert.megatron_to_hf(source, target, shard_bytes=int(max_shard_gb * 1e9), verify=verify)
    say(f"{target}: written{' and read back' if verify else ''}")


@verb
def merge(
    teachers: Annotated[list[Path], typer.Argument(help="Hugging Face directories to average")],
    output: Annotated[Path, typer.Option(help="new folder; with several alphas, it gets a folder for each")],
    base: Annotated[Path | None, typer.Option(help="the model they were trained from; needed for an alpha")] = None,
    alpha: Annotated[
        list[float] | None, typer.Option(help="how far to go beyond the mean, away from the base; 0: the mean")
    ] = None,
) -> None:
    """Average models of one architecture, or extrapolate their mean from a base (ExPO)."""
    from megatron_gopd.mcore.merge import merge

    say(*merge(teachers, output, base=base, alphas=alpha or [0.0]), sep="\n")


@verb
def submit(
    config: Annotated[Path, typer.Argument(help="YAML file")],
    nodes: Annotated[int, typer.Option(help="nodes that train")],
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of each node; a rank each")],
    overrides: Overrides = None,
    more: Set = None,
    partition: Annotated[str | None, typer.Option()] = None,
    account: Annotated[str | None, typer.Option()] = None,
    time: Annotated[str | None, typer.Option(help="limit of one attempt, as 24:00:00")] = None,
    qos: Annotated[str | None, typer.Option()] = None,
    exclude: Annotated[str | None, typer.Option(help="nodes not to use")] = None,
    cpus_per_task: Annotated[
        int | None, typer.Option(min=1, help="CPUs of each rank; default: a node's for each GPU")
    ] = None,
    mem: Annotated[str | None, typer.Option(help="memory of each node, as 500G; 0: all")] = None,
    sbatch: Annotated[list[str] | None, typer.Option(help="another sbatch option, as constraint=h100")] = None,
    setup: Annotated[Path | None, typer.Option(help="file that bash sources at the head of each task: modules")] = None,
    container_image: Annotated[str | None, typer.Option()] = None,
    container_runtime: Annotated[str, typer.Option(help="pyxis or apptainer")] = "pyxis",
    container_mounts: Annotated[str | None, typer.Option(help="FROM:TO,...; the current folder is mounted")] = None,
    export: Annotated[list[str] | None, typer.Option(help="variable that the job gets too, or 'NCCL_*'")] = None,
    python: Annotated[str | None, typer.Option(help="of the job; default: this one, in a container: python")] = None,
    stop_before: Annotated[int, typer.Option(min=1, help="seconds before the limit to stop and requeue")] = 600,
    max_requeues: Annotated[int, typer.Option(min=0)] = 10,
    chain: Annotated[int, typer.Option(help="jobs, one after the other, instead of requeues")] = 1,
    sweep: Annotated[list[str] | None, typer.Option(help="section.key=value,value: a run each; repeatable")] = None,
    serve: Annotated[str | None, typer.Option(help="command of a server, with {port} and {host}")] = None,
    serve_nodes: Annotated[int, typer.Option(min=0, help="nodes that serve; 0: some GPUs of each node")] = 0,
    serve_gpus_per_node: Annotated[int | None, typer.Option(min=1, help="GPUs of each server")] = None,
    serve_partition: Annotated[str | None, typer.Option(help="of the nodes that serve")] = None,
    serve_urls: Annotated[str | None, typer.Option(help="configuration key that takes their addresses")] = None,
    serve_deadline: Annotated[int, typer.Option(min=1, help="seconds till all are healthy")] = 1800,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the batch script, submit nothing")] = False,
    shared_folder: Annotated[bool, typer.Option("--shared-folder", help="all nodes do mount run.folder")] = False,
    new_name: Annotated[bool, typer.Option("--new-name", help="NAME-2 and so on, where run.name is taken")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="what is under run.name goes, now")] = False,
) -> None:
    """Submit a training run to SLURM: it stops before the limit, saves, is requeued and goes on."""
    from megatron_gopd.launch.request import Request, this_python
    from megatron_gopd.launch.submit import submit

    request = Request(
        config=config,
        overrides=tuple(both(overrides, more)),
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        partition=partition,
        account=account,
        time=time,
        qos=qos,
        exclude=exclude,
        cpus_per_task=cpus_per_task,
        mem=mem,
        sbatch=tuple(sbatch or ()),
        setup=setup,
        container_image=container_image,
        container_runtime=container_runtime,
        container_mounts=container_mounts,
        export=tuple(export or ()),
        python=python or ("python" if container_image else this_python()),
        stop_before_s=stop_before,
        max_requeues=max_requeues,
        chain=chain,
        sweep=tuple(sweep or ()),
        serve=serve,
        serve_nodes=serve_nodes,
        serve_gpus_per_node=serve_gpus_per_node,
        serve_partition=serve_partition,
        serve_urls=serve_urls,
        serve_deadline_s=serve_deadline,
    )
    _refuse_both(new_name, overwrite)
    told = submit(request, dry_run=dry_run, shared=shared_folder, new_name=new_name, overwrite=overwrite)
    say(told, end="" if dry_run else "\n")


@verb
def plan(
    config: Annotated[Path, typer.Argument(help="YAML file")],
    overrides: Overrides = None,
    more: Set = None,
    gpus: Annotated[int, typer.Option(min=1, max=MOST, help="all of them, of servers too")] = 8,
    gpu: Annotated[str, typer.Option(help="a100, h100, h200 or b200")] = "h100",
    nodes: Annotated[int | None, typer.Option(min=1, max=MOST, help="default: of eight GPUs")] = None,
    search: Annotated[bool, typer.Option("--search", help="rank layouts and placements instead")] = False,
    rollout: Annotated[bool, typer.Option("--rollout", help="simulate sampling ahead of the steps instead")] = False,
    lengths: Annotated[
        Path | None, typer.Option(help="response lengths: a number a line, or runs/NAME/trajectories")
    ] = None,
    response_tokens: Annotated[int | None, typer.Option(min=1, help="mean; default: a quarter of the longest")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(min=1, help="mean; default: 200")] = None,
    models: Annotated[Path, typer.Option(help="folders with a config.json for models that are not here")] = Path(
        "examples/models"
    ),
    output: Annotated[Path | None, typer.Option(help="folder for plan.svg, plan.png, plan.html; or best.yaml")] = None,
    json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Prove and price a run of any size on this machine: models are built as ranks of that world, without weights."""
    hide_gpus()  # models are tensors without values, which a GPU's kernels cannot take
    from megatron_gopd.config import load_config
    from megatron_gopd.plan.verb import run_plan
    from megatron_gopd.plan.workload import Workload
    from megatron_gopd.runs import print_markdown

    settings = load_config(config, both(overrides, more))
    if search and rollout:
        raise UserError("--search ranks layouts, --rollout simulates one: give one of them")
    if lengths and response_tokens:
        raise UserError("--response-tokens is the mean of a law, --lengths are lengths that were: give one of them")
    told = run_plan(
        settings,
        gpus=gpus,
        gpu=gpu,
        nodes=nodes,
        models=models,
        work=Workload.of(settings, response_tokens, prompt_tokens, lengths),
        searched=search,
        simulated=rollout,
        json_wanted=json,
        output=output,
    )
    if json:
        say(told)
    else:
        print_markdown(told)


@verb
def doctor(
    config: Annotated[Path | None, typer.Argument(help="YAML file of a run; without one: this machine")] = None,
    overrides: Overrides = None,
    more: Set = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs that each node must have")] = None,
    ranks: Annotated[int | None, typer.Option(help="of the run; default: a GPU each, at least one")] = None,
    port: Annotated[int | None, typer.Option(help="that the run will listen on")] = None,
    bad_nodes: Annotated[Path | None, typer.Option(help="write the names of nodes at fault to this file")] = None,
    json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Look at what a run needs, on every node it is started on (one process a node: srun --ntasks-per-node=1)."""
    from megatron_gopd.config import load_config
    from megatron_gopd.errors import UserError

    settings = load_config(config, both(overrides, more)) if config else None
    if settings and settings.run.device == "cpu":
        hide_gpus()
    from megatron_gopd.launch import findings
    from megatron_gopd.ranks import is_first
    from megatron_gopd.ranks import ranks as all_nodes

    with all_nodes(timeout_s=120, compare_gpus=False):  # a node without a GPU is one of the findings
        from megatron_gopd.launch.doctor import examine

        found = examine(settings, gpus_per_node=gpus_per_node, ranks=ranks, port=port)
        if is_first():
            say(findings.as_json(found) if json else findings.report(found), flush=True)
            if bad_nodes and findings.bad_nodes(found):
                bad_nodes.write_text("".join(f"{node}\n" for node in findings.bad_nodes(found)))
        if findings.failed(found):
            raise UserError(f"{len(findings.failed(found))} of {len(found)} checks failed, as said above")


@verb
def status(
    run: Annotated[Path, typer.Argument(help="the run's folder, runs/NAME")],
    json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """How a run goes: step, seconds, time left, servers, attempts, last error; from its folder alone."""
    from megatron_gopd.launch import status as watching

    found = watching.status(run)
    say(watching.as_json(found) if json else watching.show(found))
