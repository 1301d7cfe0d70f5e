"""The command line. Heavy imports (torch, onnx) happen inside the commands that need them."""

from __future__ import annotations

import errno
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llmc import __version__, cli_formats, extras, streams, terminal
from llmc.cli_check import check
from llmc.cli_eval import evaluate, review
from llmc.cli_formats import Json
from llmc.cli_options import (
    AddBos,
    Artifact,
    Backend,
    Device,
    DraftTokens,
    GpuMemory,
    Memory,
    Model,
    Output,
    Ranks,
    Recipe,
    Speculative,
    Threads,
    Verify,
    located,
    text_of,
)
from llmc.cli_publish import publish
from llmc.cli_pull import pull
from llmc.cli_report import compare
from llmc.cli_report import report as make_report
from llmc.cli_sensitivity import sensitivity
from llmc.cli_serve import serve
from llmc.cli_verify import sign, signer_of, verify
from llmc.errors import GateError, InputError, LlmcError, MachineError
from llmc.output_path import current_folder
from llmc.visible import visible


class Commands(TyperGroup):
    """Turns exceptions into one line on standard error and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--debug" in args:  # wherever it stands
            args = ["--debug", *(arg for arg in args if arg != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            building = "; a build goes on from here when it is started again" * (ctx.invoked_subcommand == "build")
            self._fail(ctx, f"interrupted{building}", 130)
        except LlmcError as error:
            self._fail(ctx, str(error), error.exit_code)
        except (MemoryError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            advice = "; free some disk space" if full else ""
            self._fail(ctx, f"{str(error) or type(error).__name__}{advice}", MachineError.exit_code)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if type(error).__module__.startswith(("typer", "click")):  # wrong usage
                raise
            if isinstance(error, ImportError) and (told := extras.missing(error)):
                self._fail(ctx, str(told), told.exit_code)
            if "can't allocate memory" in str(error):  # torch's RuntimeError, on the CPU
                advice = "out of memory; give --memory SIZE, or a smaller one, or use a larger machine"
                self._fail(ctx, advice, MachineError.exit_code)
            self._fail(ctx, f"internal error: {type(error).__name__}: {error}; --debug shows where", 1)

    def _fail(self, ctx: Any, message: str, code: int) -> None:
        if ctx.params.get("debug"):
            typer.echo(visible(traceback.format_exc()), err=True, nl=False)
        terminal.fail(message)
        raise typer.Exit(code)


app = typer.Typer(cls=Commands, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)
app.add_typer(cli_formats.recipe_app, name="recipe")
app.add_typer(cli_formats.artifact_app, name="artifact")


def main(arguments: list[str] | None = None) -> None:
    """The command line, or one that another program's command stands for."""
    streams.prepare()
    try:
        app(arguments, prog_name="llmc" if arguments else None)
    except OSError as error:  # of standard output, outside of commands, as in --help
        streams.give_up(f"llmc: {error}")
        sys.exit(MachineError.exit_code)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmc {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    """Prune, quantize and compile open LLM checkpoints, and measure how far the result is from the original.

    `llmc plan RECIPE` says what a build will take, `llmc build RECIPE` makes an artifact directory, `llmc check
    ARTIFACT` repeats its measurement on another machine, `llmc run ARTIFACT` generates text with it.

    Exit codes: 0 success, 2 wrong input, 3 a gate was missed, 4 the machine lacks something.
    """
    current_folder()


@app.command()
def build(
    recipe: Recipe,
    output: Output = None,
    model: Model = None,
    memory: Memory = None,
    gpu_memory: GpuMemory = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier or interrupted run left.")] = False,
    sign_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Sign what passed its gates with this private key (PEM).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Build an artifact: quantized checkpoint, graphs, engines, and the measurement against the original.

    A build that was interrupted, even by kill -9, goes on where it stopped when the same command is given again; one
    that is up to date does nothing. What misses a gate of the recipe ends with exit code 3 and is kept as
    OUTPUT.rejected.

    What the artifact was checked on is part of it: the check text, as tokens, lies in its reference.safetensors, and
    whoever gets the artifact can read it. `check: {publish_text: false}` in the recipe leaves that out.

    **Examples**

    `llmc build quickstart`

    `llmc build recipes/deepseek-v3.yaml --output /data/deepseek-v3-int4`

    `llmc build qwen3-30b-a3b --model ~/models/Qwen3-Coder-30B-A3B-Instruct`
    """
    from llmc.pipeline import build as run_build
    from llmc.progress import Display, duration, size
    from llmc.report import report_of
    from llmc.summary import missed_line, rows
    from llmc.tables import rows_table

    console, signer = terminal.console(stderr=True), signer_of(sign_key)
    result = run_build(
        recipe, output, memory=memory, gpu_memory=gpu_memory, fresh=fresh, progress=Display(console), model=model,
        finish=signer,
    )  # fmt: skip
    if as_json:
        terminal.print_json(result.to_json())
    else:
        lines = rows(report_of(result.manifest))
        if speed := result.speed:
            draft = f", {speed.speculative:.0f} with MTP speculation" if speed.speculative else ""
            lines.append(("decode here", f"{speed.decode:.0f} tokens/s{draft}"))
        if made := result.published:
            lines.append(("published", f"{made.name}, revision {made.revision}"))
        if not result.up_to_date:
            lines.append(("took", f"{duration(result.seconds)}, at most {size(result.peak_memory)} of memory"))
        terminal.print_table(rows_table(str(result.path), lines))
    if result.up_to_date:
        console.print(f"{result.path} is up to date; --fresh builds it anew", highlight=False)
    if result.missed_gates:
        raise GateError(
            f"{missed_line(result.missed_gates)}; the rejected artifact is in {result.path}; "
            + (
                "on this machine it does not do what its weights say; `check: {default_gates: false}` accepts that"
                if any(gate.by_default for gate in result.missed_gates)
                else "what it may lose is said by the recipe's `check.gates`"
            )
        )


@app.command()
def plan(
    recipe: Recipe,
    output: Output = None,
    model: Model = None,
    memory: Memory = None,
    gpu_memory: GpuMemory = None,
    as_json: Json = False,
) -> None:
    """Say what a build would take and give: sizes per role, memory, disk, cache. Reads headers, no weights.

    For a recipe with a budget it shows what other sizes would cost, once `llmc sensitivity` or a build has measured it.

    **Examples**

    `llmc plan quickstart`

    `llmc plan ~/models/DeepSeek-R1-Distill-Qwen-7B --json`
    """
    from llmc.budget_tables import budget_tables
    from llmc.job import plan as plan_recipe
    from llmc.tables import plan_tables

    planned = plan_recipe(recipe, output, memory=memory, gpu_memory=gpu_memory, model=model)
    if as_json:
        terminal.print_json(planned.to_json())
    else:
        for table in [*plan_tables(planned), *budget_tables(planned.budget)]:
            terminal.print_table(table)
        for note in planned.notes:
            terminal.console().print(note, soft_wrap=True, highlight=False)


app.command()(sensitivity)
app.command("eval")(evaluate)
app.command()(review)


@app.command()
def sweep(
    recipe: Recipe,
    keep: Annotated[list[float] | None, typer.Option(help="Share of the experts; repeat it. Default: eighths.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="reap, ean, frequency; repeat it. Default: reap.")] = None,
    quantize: Annotated[bool, typer.Option(help="Quantize as the recipe says, too.")] = False,
    as_json: Json = False,
) -> None:
    """Say what pruning costs: perplexity and KL divergence for more and fewer experts, before anything is built.

    **Examples**

    `llmc sweep quickstart`

    `llmc sweep quickstart --keep 0.75 --keep 0.5 --method reap --method frequency`
    """
    from typing import get_args

    from llmc.progress import Display
    from llmc.quant.prune import Criterion
    from llmc.registry import unknown
    from llmc.sweep import sweep as run_sweep
    from llmc.tables import table

    methods: list[Any] = method or ["reap"]
    for name in methods:
        if name not in get_args(Criterion):
            raise InputError(unknown("method", name, get_args(Criterion)))
    steps = run_sweep(
        recipe, keep or [], methods, quantize, Path("build/sweep"), Display(terminal.console(stderr=True))
    )
    if as_json:
        terminal.print_json([step.to_json() for step in steps])
        return
    made = table(
        f"{recipe}: perplexity {steps[0].ppl_original:.3f}", "keep", "experts", "method", "perplexity", "change", "KL"
    )
    for step in steps:
        more = f"{step.ppl / step.ppl_original - 1:+.2%}"
        made.add_row(f"{step.keep:g}", str(step.experts), step.method, f"{step.ppl:.3f}", more, f"{step.kl:.4f}")
    terminal.print_table(made)


app.command()(check)


@app.command()
def run(
    artifact: Artifact,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="The text to continue, - for standard input; default: a conversation."),
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="An image that the first prompt is about; repeat it.")
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(help="Use the chat template. Default: in conversations and about images, if there is one."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system message of a chat.")] = None,
    chat_template: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A chat template (jinja) in place of the model's own.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Default: 128; in a chat, what fits.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 always takes the most likely token.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="0: no limit.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="1: no limit.")] = None,
    min_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="0: no limit.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(min=0.0, help="1: none.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; repeat it.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    add_bos: AddBos = None,
    speculative: Speculative = True,
    draft_tokens: DraftTokens = 1,
    statistics: Annotated[bool, typer.Option("--statistics", help="Print token counts and speed.")] = False,
    verify: Verify = False,
    backend: Backend = None,
    threads: Threads = None,
    device: Device = None,
    ranks: Ranks = 1,
    as_json: Json = False,
) -> None:
    """Generate text, printed as it comes. Ctrl-C stops an answer.

    Temperature and what else is not given are as the model's generation_config.json says, if it has one, and greedy
    otherwise. The same seed gives the same text.

    **Examples**

    `llmc run build/quickstart`

    `llmc run build/quickstart --prompt "def "`

    `llmc run build/quickstart --prompt "import " --temperature 0.8 --seed 1 --max-new-tokens 200`

    `llmc run build/NVLM-D-72B --image photo.jpg --prompt "What is this?"`

    `llmc run build/deepseek-r1 --ranks 8`
    """
    from llmc.conversation import answer, converse, with_images
    from llmc.conversation import parameters as over_the_models_own
    from llmc.runtime import load

    artifact = located(artifact, verify)
    prompt, system = streams.argument(prompt), streams.argument(system)
    stop = [text for each in stop or [] if (text := streams.argument(each)) is not None]
    template = None if chat_template is None else text_of(chat_template)
    with load(artifact, backend, threads, speculative, draft_tokens, False, template, add_bos, device, ranks) as model:
        images = [str(path) for path in image or []]
        chat = ((prompt is None or bool(images)) and model.has_chat_template) if chat is None else chat
        if system and not chat:
            raise InputError("--system is for a chat; give --chat, too, if the model has a chat template")
        length = max_new_tokens or (None if chat else 128)
        parameters = over_the_models_own(
            model, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
        ).changed({"max_new_tokens": length, "seed": seed, "stop": stop})
        if prompt is None:
            if as_json:
                raise InputError("--json is for one answer; give --prompt")
            if code := converse(model, parameters, system, chat, statistics, images):
                raise typer.Exit(code)
            return
        text = sys.stdin.read() if prompt == "-" else prompt
        messages = [{"role": "system", "content": system}] if system else []
        asked = [*messages, with_images(text, images)] if chat else text
        shown = [] if chat else images
        if as_json:
            terminal.print_json(asdict(model.generate(asked, parameters, images=shown)))
            return
        stream = model.stream(asked, parameters, images=shown)  # bad arguments are told now
        if not chat:
            terminal.say(text)
        answer(stream, terminal.console(stderr=True, highlight=False) if statistics else None)
        if stream.generation.finish_reason == "cancelled":
            raise typer.Exit(130)


app.command()(serve)


@app.command()
def bench(
    artifact: Artifact,
    prompt_tokens: Annotated[
        list[int] | None, typer.Option(min=1, help="Length of the prompt; repeat it. Default: 32 and 512, if they fit.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=2, help="Length of the answer.")] = 64,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Prompts at once; repeat it. Default: 1.")] = None,
    draft_tokens: Annotated[
        list[int] | None, typer.Option(min=0, help="Drafts a step; repeat it. Default: 0 and, with an MTP layer, 1.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often; the median counts.")] = 3,
    verify: Verify = False,
    backend: Backend = None,
    threads: Threads = None,
    device: Device = None,
    ranks: Ranks = 1,
    as_json: Json = False,
) -> None:
    """Measure how fast an artifact is on this machine: prefill, decode, drafts, memory.

    **Examples**

    `llmc bench build/quickstart`

    `llmc bench build/quickstart --prompt-tokens 900 --batch 1 --batch 8 --draft-tokens 0 --draft-tokens 2 --json`
    """
    from llmc.bench import bench as run_bench

    artifact = located(artifact, verify)
    given = batch or [1], draft_tokens, rounds, backend, threads, device, ranks
    measured = run_bench(artifact, prompt_tokens, new_tokens, *given)
    if as_json:
        terminal.print_json(measured.data)
    else:
        for table in measured.tables:
            terminal.print_table(table)


@app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(help="A checkpoint directory, an artifact, its name on the hub, or an engine.")
    ],
    verify: Verify = False,
    as_json: Json = False,
) -> None:
    """Show what is in a checkpoint, an artifact or an engine.

    **Examples**

    `llmc inspect build/quickstart`

    `llmc inspect build/quickstart/engines/rtx-sm89-sm120.engine`
    """
    from llmc.tables import inspect as look

    seen = look(located(path, verify))
    if as_json:
        terminal.print_json(seen.data)
    else:
        for table in seen.tables:
            terminal.print_table(table)


app.command("report")(make_report)
app.command()(compare)
app.command()(publish)
app.command()(pull)
app.command()(verify)
app.command()(sign)


if __name__ == "__main__":
    main()
