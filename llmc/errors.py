"""The errors a user meets: one line that says what is wrong, where, and what to do.

A leaf module: every room may import it.
"""


class LlmcError(Exception):
    """Base of all errors that are shown as one line; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(LlmcError):
    """The user's input (recipe, checkpoint, arguments) is wrong; nothing was written."""

    exit_code = 2


class ContextError(InputError):
    """Prompt and answer do not fit the model's context."""


class RefusedError(InputError):
    """A compiler refuses the graph; `node`, where that is known, names one of its nodes by its path in the model."""

    def __init__(self, message: str, node: str = "") -> None:
        super().__init__(message)
        self.node = node


class GateError(LlmcError):
    """The result was built and measured, and misses a gate of the recipe."""

    exit_code = 3


class MachineError(LlmcError):
    """This machine lacks something: disk, memory, a GPU, a package."""

    exit_code = 4


class MissingPackageError(MachineError):
    """A target's compiler is not installed: a build goes on without that target and says so. `reason` goes into the
    artifact; how the package gets onto this machine does not.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}")
        self.reason = reason
