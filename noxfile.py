"""The tests over the declared range: ``pip install nox && nox`` (or ``nox -s "tests(python='3.12', torch='2.13')"``).

Each session installs its own torch, a download of hundreds of megabytes; missing interpreters are passed over. Which
sessions were run, and where, is in results/reliability.md.
"""

import nox

nox.options.error_on_missing_interpreters = False

TORCHVISION = {"2.6": "0.21", "2.8": "0.23", "2.10": "0.25", "2.13": "0.28", "2.14": "0.29"}


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
@nox.parametrize("torch", list(TORCHVISION))
def tests(session: nox.Session, torch: str) -> None:
    """Run what CI runs, warnings as errors, on one Python and one torch."""
    session.install(f"torch=={torch}.*")
    session.install("--no-deps", f"torchvision=={TORCHVISION[torch]}.*")
    session.install("-e", ".[dev]")
    session.run("pytest", "-m", "not slow", *session.posargs)


@nox.session(python=["3.11", "3.13"])
def integrations(session: nox.Session) -> None:
    """Differentiate through training by Hugging Face and by Lightning, with the newest torch and their newest."""
    session.install("-e", ".[dev,huggingface,lightning]")
    session.run("pytest", "tests/bilevel/test_huggingface.py", "tests/integrations", *session.posargs)
