"""Every check of the project, one session each: `nox --list` shows them, CONTRIBUTING.md explains them."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "types", "imports", "tests"]

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
SQLALCHEMY_LINES = ["2.0", "2.1"]
EVERYTHING = ".[test,postgres]"
WITHOUT_DOCUMENTATION = ("-k", "not test_documentation")  # its code runs on the first Python, in `readme`

# Tests start many processes, each of which would compile the package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

if shutil.which("pyenv"):
    # pyenv runs an installed interpreter only if its version is selected.
    installed = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True, check=True).stdout  # noqa: S607
    selected = [version for version in installed.split() if version.rpartition(".")[0] in PYTHONS]
    os.environ["PYENV_VERSION"] = ":".join(selected)  # set already if nox itself is a command of pyenv


def install_group(session: nox.Session, name: str) -> None:
    session.install(*nox.project.dependency_groups(PYPROJECT, name))


def pytest(session: nox.Session, *arguments: str, env: dict[str, str] | None = None) -> None:
    """Runs pytest with `arguments`, then with those that follow `--` on the command line of nox."""
    session.run("python", "-m", "pytest", *arguments, *session.posargs, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Run the pre-commit hooks on all files: ruff and file hygiene."""
    install_group(session, "lint")
    session.run("pre-commit", "run", "--all-files", "--show-diff-on-failure", *session.posargs)


@nox.session
def types(session: nox.Session) -> None:
    """Check the types with mypy, and the public face with pyright."""
    install_group(session, "types")
    session.install("--editable", ".[test,benchmarks]")
    session.run("mypy", *session.posargs)
    session.run("pyright", "--pythonpath", f"{session.bin}/python")


@nox.session
def imports(session: nox.Session) -> None:
    """Check the order of imports between the packages, and that they contain no cycle."""
    install_group(session, "imports")
    session.install("--no-deps", "--editable", ".")
    session.run("lint-imports", "--no-cache", *session.posargs)


@nox.session(python=PYTHONS)
@nox.parametrize("sqlalchemy", SQLALCHEMY_LINES)
def tests(session: nox.Session, sqlalchemy: str) -> None:
    """Run the test suite, without the slow proofs, on one Python and one line of SQLAlchemy."""
    session.install("--editable", EVERYTHING, f"sqlalchemy=={sqlalchemy}.*")
    pytest(session, *(() if session.python == PYTHONS[0] else WITHOUT_DOCUMENTATION))


@nox.session
def postgresql(session: nox.Session) -> None:
    """Run the tests that use PostgreSQL; fail if no server answers."""
    session.install("--editable", EVERYTHING)
    pytest(session, "-k", "postgresql", env={"REQUIRE_POSTGRESQL": "1"})


@nox.session
def slow(session: nox.Session) -> None:
    """Run the slow proofs: long ones, killed processes and servers, and what repeats a test on another database."""
    session.install("--editable", EVERYTHING)
    pytest(session, "-m", "slow and not alone")
    pytest(session, "-m", "slow and alone", "-n", "0")


@nox.session(python=PYTHONS[1])
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest versions of the dependencies that pyproject.toml allows."""
    install_group(session, "lowest")
    versions = str(Path(session.virtualenv.location) / "lowest.txt")
    session.run(
        *("uv", "pip", "compile", "--quiet", "--no-annotate", "--no-header"),
        *("--resolution", "lowest-direct", "--python", f"{session.bin}/python"),
        *("--extra", "test", "--extra", "postgres", "--output-file", versions, "pyproject.toml"),
    )
    session.log("\n%s", Path(versions).read_text(encoding="utf-8"))
    session.install("--constraint", versions, "--editable", EVERYTHING)
    pytest(session, "-q", *WITHOUT_DOCUMENTATION)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the source distribution and the wheel, and test the wheel outside the checkout."""
    install_group(session, "wheel")
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--outdir", f"{folder}/dist", silent=True)
        (built,) = Path(folder, "dist").glob("*.whl")
        session.install(f"{built}[test,postgres]")
        elsewhere = Path(folder, "elsewhere")
        shutil.copytree(ROOT / "tests", elsewhere / "tests")
        shutil.copy(ROOT / "pyproject.toml", elsewhere)  # for pytest's settings: there is no src/ here
        with session.chdir(elsewhere):
            # The tests of what a wheel can lack, the migrations, and of the tables that these create.
            selection = ("test_user_story", "test_alembic_command", "test_migrations_opening", "test_schema")
            pytest(session, "-q", "-k", " or ".join(selection))


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into docs/_build; a warning is an error."""
    install_group(session, "docs")
    session.install("--editable", ".[async,postgres,testing]")
    session.run("sphinx-build", "-W", "--keep-going", "-n", "-b", "html", *session.posargs, "docs", "docs/_build")


@nox.session(python=False)
def readme(session: nox.Session) -> None:
    """Run the README's test and run commands, exactly as written, in a fresh clone."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        session.run("git", "clone", "--quiet", str(ROOT), folder, external=True)
        with session.chdir(folder):
            for heading in ("Test it", "Run it"):
                section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
                blocks = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
                if not blocks:
                    session.error(f'README.md has no commands under "{heading}"')
                session.run("bash", "-euo", "pipefail", "-c", "".join(blocks), external=True)
