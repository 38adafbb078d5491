"""The command, run in this process by tests."""

from typer.testing import CliRunner

from ziggurat.cli import app


def ziggurat_(*arguments, status=0):
    """stdout and stderr of a command that ends with this status."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], terminal_width=100)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result.stdout, result.stderr
