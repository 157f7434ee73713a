"""Called by mkdocs while it builds the site: what pages include, and files that are made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

from site_pages import complete, made_files


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the files that are made."""
    for path, content in made_files().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put in what a page includes."""
    try:
        return complete(markdown, page.file.src_uri)
    except (OSError, ValueError) as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error
