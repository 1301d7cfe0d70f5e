"""What optimum-cli finds: it loads every module of this namespace, in whichever distribution it lies."""

from optimum.commands.export.base import ExportCommand

from llmc.optimum_command import LlmcExportCommand

REGISTER_COMMANDS = [(LlmcExportCommand, ExportCommand)]
