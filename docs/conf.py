"""The documentation site. Build it with `sphinx-build -W --keep-going -n -b html docs docs/_build`."""

from importlib.metadata import version as installed_version
from typing import Any, get_type_hints

from docutils.nodes import Element
from pydantic import BaseModel
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import peon.orchestration

project = "Peon"
copyright = "The Peon maintainers"  # noqa: A001 - Sphinx's name for it
version = release = installed_version("peon")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"Peon {release}"
html_show_sphinx = False

myst_heading_anchors = 3
default_role = "py:obj"  # docstrings name other objects in single backticks
copybutton_exclude = ".linenos, .gp, .go"

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "exclude-members": "model_config, __new__"}
autodoc_class_signature = "separated"  # so that a page can leave out the constructor of what users do not construct
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 160

nitpick_ignore_regex = [
    # Nothing is downloaded during a build, so objects of other packages have no page to link to.
    ("py:.*", r"(sqlalchemy|pydantic|pydantic_core|pydantic_settings)\..*"),
    ("py:.*", r"(collections|types|typing_extensions|datetime|uuid|pathlib)\..*"),
    # Type variables, and types without a public name.
    ("py:class", r"peon\.(persistence|testing|orchestration)\.(.*\.)?([A-Z]\w*T|StopEvent|Calls)|AsyncEngine"),
    ("py:obj", ".*"),  # a name in a docstring becomes a link only if it is one of ours
]

# The times and JSON values of the domain carry validators in their annotations, which say nothing to a reader.
for model in vars(peon.orchestration).values():
    if isinstance(model, type) and issubclass(model, BaseModel):
        plain = get_type_hints(model)
        model.__annotations__ = {name: plain[name] for name in model.__annotations__}


def resolve_public_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element) -> Element | None:
    """Links `peon.persistence.database.Database` in a signature to `peon.Database`, which has the documentation."""
    target: str = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("peon."):
        return None
    domain: Any = env.domains["py"]
    for module in ("peon", "peon.orchestration"):
        public = f"{module}.{target.rpartition('.')[2]}"
        if public in domain.objects and public != target:
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, content)
    return None


def setup(app: Sphinx) -> None:
    app.connect("missing-reference", resolve_public_name)
