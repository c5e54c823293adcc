"""How the benchmarks say where they run, and whether a goal is met."""

from autocompress.runtimes.machine import environment


def print_machine() -> None:
    """The processor and the versions."""
    machine = environment()
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    print(f"{machine.cpu}, {machine.cores} cores, Python {machine.python}, {versions}", flush=True)


def print_goal(what: str, value: float, *, at_least: float = float("-inf"), at_most: float = float("inf")) -> None:
    """A figure beside its goal."""
    goal = f"at least {at_least:g}" if at_most == float("inf") else f"at most {at_most:g}"
    print(f"  {what:50s} {value:5.2f}   goal {goal}: {'met' if at_least <= value <= at_most else 'MISSED'}")
