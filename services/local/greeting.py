"""What a user is told when the clinic runs: its address, and a case to try at once."""

import shlex
from pathlib import Path

from rich.console import Console

from services.local.processes import StackPaths
from shared.blobs import BlobStore
from shared.problem import Problem, read_problems


def try_it_line(clinic_url: str, image: Path, problem: Problem) -> str:
    """A curl line that asks the clinic the problem's question about its image."""
    fields = [f"image=@{image}", f"question={problem.question}"]
    fields += [f"choices={choice}" for choice in problem.options]
    flags = " ".join(f"-F {shlex.quote(field)}" for field in fields)
    return f"curl -s {flags} {clinic_url}/v1/cases"


def write_example(paths: StackPaths, problem_set: Path) -> tuple[Path, Problem]:
    """The first problem of a set, and its image as a file to upload."""
    problem = read_problems(problem_set)[0]
    image = paths.root / f"example-{problem.modality or 'image'}.png"
    image.write_bytes(BlobStore(str(paths.blobs)).get(problem.image))
    return image, problem


def say_which_port(console: Console, wanted: int, given: int) -> None:
    """Say so if the clinic does not get the port that was asked for."""
    if given != wanted:
        console.print(f"port {wanted} is taken: the clinic gets {given}", highlight=False)


def greet(console: Console, clinic_url: str, paths: StackPaths, problem_set: Path) -> None:
    """Print the address and the line."""
    image, problem = write_example(paths, problem_set)
    console.print(f"\n[bold]Clinic:[/] {clinic_url}   (API: {clinic_url}/openapi.json)")
    console.print("Research use only. Not a medical device.\n")
    console.print(f"Try it (the right answer is {problem.gold_answer}):")
    # One line that can be copied: no wrapping, no markup.
    console.print(
        f"  {try_it_line(clinic_url, image, problem)}\n",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    console.print("Ctrl-C stops everything; `make status`, in another shell, shows what runs.")
