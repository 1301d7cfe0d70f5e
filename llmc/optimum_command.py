"""`optimum-cli export llmc`: a build, for those who know optimum's command line.

optimum-cli imports this whenever it starts, whatever it is asked to do: nothing here may be slow to import.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

_ABOUT = """\
Build an llmc artifact: quantized checkpoint, graphs, engines, and the measurement of what was lost.

It is what `llmc build` makes: the same stages, the same files, the same exit codes (2 wrong input, 3 a gate was
missed, 4 the machine lacks something). A build that was interrupted goes on when the same command is given again.
"""
_EXAMPLES = """\
examples:
  optimum-cli export llmc Qwen/Qwen3-0.6B qwen3-int4
  optimum-cli export llmc ~/models/DeepSeek-V2-Lite lite-int4 --recipe experts.yaml --memory 16GiB
  llmc run qwen3-int4 --prompt 'Once upon a time'
"""


class LlmcExportCommand(BaseOptimumCLICommand):
    """Registered under `optimum-cli export` by `ci/packaging/optimum/commands/register/llmc_export.py`."""

    COMMAND = CommandInfo(name="llmc", help="Prune, quantize and compile an LLM with llmc, and measure what was lost.")

    args: Namespace

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare the arguments; optimum calls this when it starts."""
        parser.description, parser.epilog = _ABOUT, _EXAMPLES
        parser.formatter_class = RawDescriptionHelpFormatter
        parser.add_argument("model", metavar="MODEL", help="A folder, a hub id[@revision], or builtin:NAME.")
        parser.add_argument("output", metavar="OUTPUT", help="The artifact directory to make.")
        parser.add_argument(
            "--recipe",
            help="A recipe file, or the name of one that ships with llmc, whose `model` gives way to MODEL. "
            "Default: the rules and targets that suit the model, as with `llmc build MODEL`.",
        )
        parser.add_argument(
            "--memory", metavar="SIZE", help="What the build may take, say 8GiB. Default: what is free."
        )
        parser.add_argument("--gpu-memory", metavar="SIZE", help="Work on a GPU, in this much of its memory.")
        parser.add_argument("--fresh", action="store_true", help="Forget what an earlier or interrupted run left.")
        parser.add_argument("--json", action="store_true", help="Print JSON.")

    def run(self) -> None:
        """Build; SystemExit has llmc's exit code."""
        from llmc.cli import main

        given = self.args
        options = {"--output": given.output, "--memory": given.memory, "--gpu-memory": given.gpu_memory}
        if given.recipe is not None:
            options["--model"] = given.model
        flags = {"--fresh": given.fresh, "--json": given.json}
        arguments = [f"{name}={value}" for name, value in options.items() if value is not None]
        arguments += [name for name, wanted in flags.items() if wanted]
        main(["build", *arguments, "--", given.model if given.recipe is None else given.recipe])
