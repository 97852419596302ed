"""Prints a pip constraints file with the lowest version of each dependency that pyproject.toml allows."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
wanted = [
    *project["dependencies"],
    *(line for extra in ("postgres", "async", "examples", "test") for line in extras[extra]),
]
for requirement in wanted:
    if match := re.fullmatch(r"([\w-]+)(\[\w+\])?>=([\d.]+)", requirement):
        print(f"{match[1]}=={match[3]}")
