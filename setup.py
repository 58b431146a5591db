"""The four compiled modules; everything else about the package is in pyproject.toml.

They are built where they can run, on CPython on Linux.  Elsewhere, and with ``GAIN_TRIO_NO_EXTENSIONS=1``, the package
installs without them, as pure Python.
"""

import os
import platform
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

root = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(root, "_ffi"), os.path.join(root, "tools")]

from published_readme import project_urls, read  # noqa: E402 - found by the line above


class BuildWithPages(build_py):
    """The package, and the page that ``gain-trio doctor`` refers to."""

    def run(self) -> None:
        """Build, and copy the page."""
        super().run()
        if not self.editable_mode:
            shutil.copy(
                os.path.join(root, "docs", "containers.md"), os.path.join(self.build_lib, "gain_trio", "_command")
            )


without = os.environ.get("GAIN_TRIO_NO_EXTENSIONS", "0")
if without not in ("0", "1", ""):
    raise SystemExit(f"GAIN_TRIO_NO_EXTENSIONS must be 0 or 1, not {without!r}")

arguments = {
    "long_description": read(Path(root)),
    "long_description_content_type": "text/markdown",
    "project_urls": project_urls(),
    "cmdclass": {"build_py": BuildWithPages},
}
if sys.platform == "linux" and platform.python_implementation() == "CPython" and without != "1":
    from compile_options import (
        COMPILE_ARGUMENTS,
        LINK_ARGUMENTS,
        WHOLE_PROGRAM,
        fastpath_sources,
        sources_in,
        takes_whole_program,
    )

    class BuildWhole(build_ext):
        """The modules, each optimised as a whole where the compiler can do that."""

        def build_extensions(self) -> None:
            """Build."""
            if takes_whole_program(self.compiler.compiler_so, self.compiler.linker_so):
                for extension in self.extensions:
                    extension.extra_compile_args = [*extension.extra_compile_args, WHOLE_PROGRAM]
                    extension.extra_link_args = [*extension.extra_link_args, WHOLE_PROGRAM]
            super().build_extensions()

    arguments["cmdclass"] |= {"build_ext": BuildWhole}
    arguments |= {
        "cffi_modules": ["_ffi/uring_build.py:builder"],
        "ext_modules": [
            Extension(
                "gain_trio._fastpath",
                sources=fastpath_sources(),
                depends=[
                    "_ffi/abi.h",
                    "_ffi/awaitable.h",
                    "_ffi/exceptions.h",
                    "_ffi/ring.h",
                    "_ffi/fastpath/call.h",
                    "_ffi/fastpath/fastpath.h",
                    "_ffi/fastpath/field.h",
                    "_ffi/fastpath/likelihood.h",
                    "_ffi/fastpath/prefetch.h",
                    "_ffi/fastpath/endpoint.h",
                    "_ffi/fastpath/tls.h",
                    "_ffi/fastpath/tls_records.h",
                ],
                extra_compile_args=COMPILE_ARGUMENTS,
                extra_link_args=LINK_ARGUMENTS,
            ),
            Extension(
                "gain_trio._trio_core",
                sources=sources_in("_ffi/trio_core"),
                depends=[
                    "_ffi/awaitable.h",
                    "_ffi/exceptions.h",
                    "_ffi/trio_core/core.h",
                    "_ffi/trio_core/epoll.h",
                    "_ffi/trio_core/parking_lot.h",
                    "_ffi/trio_core/io_manager.h",
                    "_ffi/trio_core/scope.h",
                    "_ffi/trio_core/socket_call.h",
                    "_ffi/trio_core/wait.h",
                ],
                extra_compile_args=COMPILE_ARGUMENTS,
                extra_link_args=LINK_ARGUMENTS,
            ),
            Extension(
                "gain_trio._heads",
                sources=sources_in("_ffi/heads"),
                depends=["_ffi/awaitable.h", "_ffi/exceptions.h", "_ffi/heads/heads.h"],
                extra_compile_args=COMPILE_ARGUMENTS,
                extra_link_args=LINK_ARGUMENTS,
            ),
        ],
    }

setup(**arguments)
