import io

from rich.console import Console

from cookbook.table import ON_POLICY_COLUMNS, StepTable, accuracy_text

ROW = {
    "step": 5,
    "reverse_kl": 1.2345,
    "accuracy": 0.83,
    "accuracy_interval": [0.772, 0.876],
    "reward": 0.5,
    "truncated_fraction": 0.25,
    "tokens_per_second": 123.4,
}


def printed(*rows: dict[str, object], terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
    table = StepTable("opd", ON_POLICY_COLUMNS, console)
    for row in rows:
        table.add(row)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_every_step_is_one_plain_line():
    lines = printed({"step": 4}, ROW, terminal=False).splitlines()
    assert lines[0] == "opd"
    assert lines[1].split() == ["step", "reverse", "KL", "accuracy", "[95%]", "reward", "cut", "tokens/s"]
    assert lines[2].split() == ["4"]
    assert lines[3].split() == ["5", "1.234", "83.0%", "[77,", "88]", "0.500", "25%", "123"]
    assert len({len(line) for line in lines[1:]}) == 1


def test_in_a_terminal_every_step_is_a_line_as_well():
    """So that the newest is seen, however many there are."""
    rows = [{"step": step} for step in range(100)]
    assert [line.split() for line in printed(*rows, terminal=True).splitlines()[2:102]] == [
        [str(step)] for step in range(100)
    ]


def test_a_step_that_was_not_evaluated_shows_no_accuracy():
    assert accuracy_text({"step": 1}) == ""
