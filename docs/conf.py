"""How the site is built: ``make site``.

Sphinx with MyST-NB and the PyData theme: what NumPy, SciPy, pandas and scikit-learn trust, kept by many, reads these
Markdown files as they stand and executes notebooks that are text. (MkDocs is no longer kept, Material for MkDocs ends
in 2026, and its successor Zensical is young.)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import natal

os.environ.setdefault("OMP_NUM_THREADS", "1")
# kernels of notebooks warn that they talk over an unencrypted socket of this machine
profile = Path(__file__).parent / "_build" / "ipython" / "profile_default"
profile.mkdir(parents=True, exist_ok=True)
(profile / "ipython_kernel_config.py").write_text('c.IPKernelApp.log_level = "ERROR"\n')
os.environ["IPYTHONDIR"] = str(profile.parent)

project = "natal"
author = "The natal developers"
copyright = "2026, the natal developers"
version = release = natal.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build", "jupyter_execute"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_cache_path = str(Path(__file__).parent / "_build" / "jupyter_cache")
nb_execution_raise_on_error = True
nb_merge_streams = True

default_role = "code"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90

html_theme = "pydata_sphinx_theme"
html_title = f"natal {release}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["natal.css"]
html_theme_options: dict[str, Any] = {
    "show_toc_level": 2,
    "navigation_with_keys": True,
    "navbar_align": "left",
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
