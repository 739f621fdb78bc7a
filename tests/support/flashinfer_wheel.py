"""Signatures of the real FlashInfer, read from its wheel, which `make install` puts in `FOLDER`.

Installed it would take 560 MB and CUDA; its signatures stand in one file.
"""

import ast
import inspect
import sys
import zipfile
from pathlib import Path
from typing import Any

from tests.support.missing import missing

FOLDER = Path(sys.prefix) / "share" / "flashinfer"
MODULE = "flashinfer/prefill.py"
CLASS = "BatchPrefillWithPagedKVCacheWrapper"


def parameters_of(method: str) -> dict[str, inspect.Parameter]:
    """The parameters of a method of the class by their names, in order, with their defaults.

    Of a method that is written several times, for type checkers, the last one counts. Skipped where
    there is no wheel; a failure in CI.
    """
    wheels = sorted(FOLDER.glob("flashinfer_python-*.whl"))
    if not wheels:
        missing(f"no wheel of FlashInfer in {FOLDER}; make install puts it there")
    with zipfile.ZipFile(wheels[-1]) as wheel:
        tree = ast.parse(wheel.read(MODULE))
    [cls] = [x for x in tree.body if isinstance(x, ast.ClassDef) and x.name == CLASS]
    *_, found = (x for x in cls.body if isinstance(x, ast.FunctionDef) and x.name == method)
    arguments = found.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    if arguments.vararg:
        arguments.vararg.annotation = None
    bare = ast.FunctionDef(method, arguments, [ast.Pass()], [], lineno=1)
    names: dict[str, Any] = {}
    exec(ast.unparse(ast.fix_missing_locations(bare)), names)
    return dict(inspect.signature(names[method]).parameters)
