"""`medvr ask IMAGE QUESTION`: ask a running clinic, watch it look, see the evidence.

`--follow CASE QUESTION` asks a further question about the image of a case instead. A question is
a case of the clinic from the moment it is accepted: what happens to this command afterwards does
not end it. Only Ctrl-C cancels it, and only a case that this command asked; one that is merely
watched (`--case`) goes on.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, get_args

from shared.api.clinic import Case, CaseStatus
from shared.api.zoom import Axis, WindowPreset
from shared.errors import ClinicError

if TYPE_CHECKING:  # what they import takes long to load
    from services.clinic.ask_terminal import Terminal
    from shared.clients.clinic_async import AsyncClinicClient
    from shared.clients.clinic_calls import AskForm


class Exit(IntEnum):
    """How the command ends."""

    ANSWERED = 0
    FAILED = 1
    """The case failed or was cancelled, or the clinic could not be asked."""
    USAGE = 2
    ABSTAINED = 3
    RUNNING = 4
    """`--timeout` passed first; the case goes on."""
    INTERRUPTED = 130


EXIT_OF = {
    CaseStatus.ANSWERED: Exit.ANSWERED,
    CaseStatus.ABSTAINED: Exit.ABSTAINED,
    CaseStatus.FAILED: Exit.FAILED,
    CaseStatus.CANCELLED: Exit.FAILED,
    CaseStatus.RUNNING: Exit.RUNNING,
}

_EPILOG = """\
examples:
  medvr ask scan.png "What kind of lesion is shown?" -c ring -c cross -c dot
  medvr ask chest.dcm "Is there a nodule?" --window lung -k 9 --out nodule.png
  medvr ask head.nii.gz "Is there a bleed?" --axis axial --index 17 --window=40,80
  medvr ask --follow 5f0c1f5a6c1b4c0f9a3d2b1e8f7a6c5d "And on which side?" -c left -c right
  medvr ask --case 5f0c1f5a6c1b4c0f9a3d2b1e8f7a6c5d
  medvr ask scan.png "Is it a ring?" --json | jq .answer

exit codes:
  0 answered   3 abstained   1 failed, cancelled or not asked   2 wrong usage
  4 --timeout passed, the case goes on   130 interrupted: a case asked here is cancelled

Research use only. Not a medical device.
"""


_ASKED = "a PNG, JPEG, WebP, TIFF, DICOM or NIfTI file, and what is asked about it, in words"


_USAGES = ((2, False, False), (1, True, False), (0, False, True))
"""How many of image and question come with `--follow`, and with `--case`."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="medvr ask",
        usage="medvr ask [options] IMAGE QUESTION\n"
        "       medvr ask [options] --follow CASE QUESTION\n"
        "       medvr ask [options] --case CASE",
        description="Asks a clinic a question about an image, or a further one about the image of "
        "a case, shows how it looks, prints the answer and saves a picture of the evidence.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("asked", nargs="*", metavar="IMAGE QUESTION", help=_ASKED)
    add("--follow", metavar="CASE", help="ask further about the image of this answered case")
    add("--case", metavar="CASE", help="watch a case that was asked before, instead of asking")
    add("--url", default="http://127.0.0.1:8080", help="the clinic (default: %(default)s)")
    add("-c", "--choice", action="append", default=[], help="an answer to choose from; repeatable")
    add("-k", "--trajectories", type=int, metavar="K", help="how often it is worked on")
    add("--seed", type=int, help="makes the case repeatable")
    add("--frame", type=int, help="of a file that holds several, from 1")
    add("--axis", choices=get_args(Axis), help="NIfTI: which way to slice")
    add("--index", type=int, help="NIfTI: the slice, from 0")
    add("--window", metavar="WINDOW", help=f"CENTER,WIDTH or {', '.join(_WINDOWS)}")
    add("--verify", action="store_true", help="ask again without the evidence: is it why?")
    add("--show-withheld", action="store_true", help="show an answer that is withheld")
    add("--timeout", type=float, metavar="S", help="stop watching after so many seconds")
    add("--json", action="store_true", help="print the whole case as JSON")
    add("--out", type=Path, metavar="FILE", help="picture of the evidence (evidence-<case>.png)")
    add("--no-picture", action="store_true", help="save no picture")
    return parser


_WINDOWS = (*get_args(WindowPreset), "ct_rgb")


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, checked as far as that goes without a clinic; exits with 2."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    arguments.image, arguments.question = _asked(parser, arguments)
    if not arguments.url.startswith(("http://", "https://")):
        parser.error(f"--url must start with http:// or https://, not {arguments.url!r}")
    arguments.form = _form(parser, arguments)
    return arguments


def _asked(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> tuple[Path | None, str | None]:
    """Image and question: neither for a case that is watched, no image where one is followed."""
    asked, follow = arguments.asked, arguments.follow
    if (len(asked), follow is not None, arguments.case is not None) not in _USAGES:
        parser.error("give IMAGE and QUESTION, --follow CASE and QUESTION, or --case CASE")
    if follow is not None:
        _refuse_picture(parser, arguments)
    if len(asked) < 2:
        return None, asked[0] if asked else None
    if not Path(asked[0]).is_file():
        parser.error(f"there is no file {asked[0]}")
    return Path(asked[0]), asked[1]


def _refuse_picture(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """A follow-up is about the picture that its case is about, and is not verified."""
    for name in ("frame", "axis", "index", "window", "verify"):
        if getattr(arguments, name) not in (None, False):
            parser.error(f"--{name} cannot be given with --follow")


def _form(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> "AskForm":
    """What is sent beside image and question; what was not given is not sent."""
    form: AskForm = {
        "choices": arguments.choice,
        "k": arguments.trajectories,
        "seed": arguments.seed,
        "frame": arguments.frame,
        "axis": arguments.axis,
        "index": arguments.index,
        "verify": arguments.verify or None,
    }
    window = arguments.window
    if window in _WINDOWS:
        form["window"] = window
    elif window is not None:
        try:
            form["window_center"], form["window_width"] = map(float, window.split(","))
        except ValueError:
            parser.error(f"--window takes CENTER,WIDTH or {', '.join(_WINDOWS)}, not {window!r}")
    return form


class Session:
    """One run of the command; `case_id` is known once the clinic has accepted the question."""

    def __init__(self, arguments: argparse.Namespace, terminal: "Terminal") -> None:
        self._arguments = arguments
        self._terminal = terminal
        self.case_id: str | None = arguments.case

    async def run(self) -> Exit:
        """Ask or come back, watch, show. Raises `ClinicError` and `OSError`."""
        arguments = self._arguments
        async with _client(arguments.url) as client:
            if self.case_id is None:
                self.case_id = (await self._ask(client)).case_id
            self._terminal.opened(self.case_id)
            try:
                async with asyncio.timeout(arguments.timeout):
                    await self._watch(client, self.case_id)
            except TimeoutError:
                self._terminal.left_running(self.case_id)
            case = await client.get(self.case_id, show_withheld=arguments.show_withheld)
            self._terminal.show(case)
            await self._save_picture(client, case)
        return EXIT_OF[case.status]

    async def _ask(self, client: "AsyncClinicClient") -> Case:
        arguments, form = self._arguments, self._arguments.form
        if arguments.follow is None:
            return await client.ask(arguments.image, arguments.question, wait_s=0, **form)
        said = {name: form[name] for name in ("choices", "k", "seed")}
        return await client.follow_up(arguments.follow, arguments.question, wait_s=0, **said)

    async def _watch(self, client: "AsyncClinicClient", case_id: str) -> None:
        show_withheld = self._arguments.show_withheld
        with self._terminal.watching():
            async for told in client.follow(case_id, show_withheld=show_withheld):
                self._terminal.tell(told.event)

    async def _save_picture(self, client: "AsyncClinicClient", case: Case) -> None:
        is_shown = case.status in (CaseStatus.ANSWERED, CaseStatus.ABSTAINED)
        if self._arguments.no_picture or not is_shown:
            return
        from services.clinic.ask_picture import evidence_picture

        crops = [await client.crop(case.case_id, zoom.crop) for zoom in case.evidence]
        drawn = evidence_picture(case, await client.image(case.case_id), crops)
        path: Path = self._arguments.out or Path(f"evidence-{case.case_id[:8]}.png")
        await asyncio.to_thread(drawn.save, path, format="PNG")
        self._terminal.pictured(path)

    async def interrupted(self) -> None:
        """After Ctrl-C: cancel what was asked here, leave alone what was only watched."""
        if self.case_id is None:
            self._terminal.say("interrupted before the clinic named a case")
        elif self._arguments.case is not None:
            self._terminal.left_running(self.case_id)
        else:
            async with _client(self._arguments.url) as client:
                case = await client.cancel(self.case_id)
            self._terminal.say(f"interrupted: case {case.case_id} is {case.status.value}")


def _client(url: str) -> "AsyncClinicClient":
    from shared.clients.clinic_async import AsyncClinicClient
    from shared.clients.http import Retries

    return AsyncClinicClient(url, retries=Retries())


def _carried_out(session: Session, terminal: "Terminal") -> Exit:
    try:
        return asyncio.run(session.run())
    except KeyboardInterrupt:
        _interrupt(session, terminal)
        return Exit.INTERRUPTED
    except (ClinicError, OSError) as error:
        terminal.failed(error, session.case_id)
        return Exit.FAILED


def _interrupt(session: Session, terminal: "Terminal") -> None:
    try:
        asyncio.run(session.interrupted())
    except KeyboardInterrupt:
        terminal.say("interrupted again: whether the case is cancelled is not known")
    except ClinicError as error:
        terminal.failed(error, session.case_id)


def main(argv: Sequence[str]) -> NoReturn:
    """Ask, and exit as `Exit` says."""
    arguments = parsed(argv)
    from services.clinic.ask_terminal import Terminal

    terminal = Terminal(arguments.url, as_json=arguments.json)
    raise SystemExit(int(_carried_out(Session(arguments, terminal), terminal)))


if __name__ == "__main__":
    main(sys.argv[1:])
