"""The documentation as a site: ``nox -s docs`` builds it, and takes each warning for an error.

The pages are read on the forge too, so links between them, and to files outside of this folder, are
relative paths that work there. Here they lead to the same files, or to the pages made of them.
"""

import os
import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

from sqlalchemy_bgjob import __version__

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "sqlalchemy-bgjob"
author = "sqlalchemy-bgjob contributors"
version = release = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_llms_txt",
]
html_theme = "furo"
html_show_copyright = False
html_title = f"{project} {release}"
smartquotes = False  # a flag such as --queue stays as it is

myst_heading_anchors = 4  # as on the forge: [text](page.md#heading)

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# What belongs to others, for whose pages a build must not ask another host, or is private.
nitpick_ignore_regex = [
    ("py:class", "Path"),  # of a module whose annotations are texts
    ("py:.*", r"(sqlalchemy|typing|typing_extensions|collections|contextlib|datetime)\..*"),
    ("py:.*", r"(pathlib|pwd|alembic|contextvars|starlette)\..*"),
    ("py:.*", r".*\._.*|.*\.[A-Z]|.*\.(Decorator|SettingOptions)"),
    ("py:class", "Working|Decorator|ChunkDecorator|HandlerKeywords|ChunkKeywords"),
    ("py:class", r"(Tracer|Meter)Provider|prometheus_client\..*"),
    ("py:.*", "AsyncTarget|AsyncUnit|Draft"),
    ("py:.*", "AsyncEngine|Engine|OperationalError|Plugin|ColumnExpressionArgument"),
]

llms_txt_full_file = False
llms_txt_summary = (
    "Background jobs for applications that use SQLAlchemy and PostgreSQL: enqueued in the "
    "application's own transaction, stored in its own tables, without a broker."
)

FILES = {
    DOCS / "project" / f"{name.lower()}.md": ROOT / f"{name}.md"
    for name in ("README", "CHANGELOG", "SECURITY", "CONTRIBUTING")
}
"""By their page: the files outside of this folder that are pages of the site."""
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")


def read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put a file in the place of its page, and let links lead to where they lead on the forge."""
    page = DOCS / f"{docname}.md"
    file = FILES.get(page, page)

    def within_the_site(link: re.Match[str]) -> str:
        target = (file.parent / link[1]).resolve()
        found = {file: page for page, file in FILES.items()}.get(target, target)
        if found.is_dir():  # an example, of which a page can link one file
            found = next(iter([*found.rglob("tasks.py"), *sorted(found.glob("*.py"))]), found)
        return f"]({os.path.relpath(found, page.parent)}" if found.exists() else link[0]

    text = file.read_text("utf-8") if file != page else source[0]
    source[0] = LINK.sub(within_the_site, text)


def drop_no_default(app: Sphinx, context: object, lines: list[str]) -> None:
    """Leave out click's sign for an option without a default."""
    lines[:] = [line for line in lines if "Sentinel.UNSET" not in line]


def keep_sources(app: Sphinx, error: Exception | None) -> None:
    """Let the source of such a page, to which llms.txt links, be the file."""
    for page, file in FILES.items():
        shutil.copyfile(file, app.outdir / "_sources" / "project" / f"{page.name}.txt")


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", read)
    app.connect("sphinx-click-process-options", drop_no_default)
    app.connect("build-finished", keep_sources)
