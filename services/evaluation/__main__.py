"""`medvr evaluation`: run the agent over a problem set and score it."""

import asyncio
import sys

from services.evaluation.settings import EvaluationSettings
from shared.service.logs import configure_logs
from shared.service.process import plain_errors


async def _run(settings: EvaluationSettings) -> str:
    """Evaluate with clients of its own; the table."""
    from services.evaluation.job import evaluate
    from services.evaluation.report import render_table
    from shared.clients.cca import CcaClient
    from shared.clients.policy import PolicyClient
    from shared.clients.zoom import ZoomClient

    policy = PolicyClient(settings.policy_url)
    zoom, cca = ZoomClient(settings.zoom_url), CcaClient(settings.cca_url)
    try:
        return render_table(await evaluate(settings, policy, zoom, cca))
    finally:
        for client in (policy, zoom, cca):
            await client.aclose()


def main(argv: list[str]) -> None:
    """Entry point; exits with 1 and a plain message if the evaluation cannot be finished."""
    settings = EvaluationSettings.load(argv)
    configure_logs("evaluation", settings.log_level)
    try:
        with plain_errors():
            sys.stdout.write(asyncio.run(_run(settings)))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command continues\n")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main(sys.argv[1:])
