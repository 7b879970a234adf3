"""Bundle Vega, Vega-Lite and Vega-Embed into the one script that reports carry: `make vega`.

vl-convert-python bundles them without node or a browser. It takes seconds and 85 MB, so reports carry its result
instead of needing it: the script changes only when its version in constraints.txt does.
"""

from __future__ import annotations

from pathlib import Path

TARGET = Path(__file__).parents[1] / "src" / "natal" / "reading" / "report" / "page" / "vega.js"
VEGA_LITE = "6.4"
HEAD = """/*! Vega {vega}, Vega-Lite {lite}, Vega-Embed {embed}, bundled by vl-convert-python {convert}.
Copyright (c) 2015-2025, University of Washington Interactive Data Lab. BSD-3-Clause: Redistribution and use in
source and binary forms, with or without modification, are permitted provided that the following conditions are
met: 1. Redistributions of source code must retain the above copyright notice, this list of conditions and the
following disclaimer. 2. Redistributions in binary form must reproduce the above copyright notice, this list of
conditions and the following disclaimer in the documentation and/or other materials provided with the distribution.
3. Neither the name of the copyright holder nor the names of its contributors may be used to endorse or promote
products derived from this software without specific prior written permission. THIS SOFTWARE IS PROVIDED BY THE
COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES, INCLUDING, BUT NOT LIMITED TO,
THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE DISCLAIMED. IN NO EVENT SHALL
THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR
CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR SERVICES; LOSS OF USE,
DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN CONTRACT,
STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF THIS SOFTWARE,
EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE. It includes parts of D3 (Copyright Mike Bostock, ISC and
BSD-3-Clause), which ask for the same notice. */
"""


def bundle() -> str:
    """Return the script: it leaves ``vegaEmbed`` in the window."""
    from importlib.metadata import version

    import vl_convert

    head = HEAD.format(
        vega=vl_convert.get_vega_version(),
        lite=VEGA_LITE,
        embed=vl_convert.get_vega_embed_version(),
        convert=version("vl-convert-python"),
    )
    # its types ask for a snippet; without one it bundles what `vegaEmbed` needs
    script = vl_convert.javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg]
    return f"{head}{script.strip()}\n"


if __name__ == "__main__":
    TARGET.write_text(bundle(), "utf-8")
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")
