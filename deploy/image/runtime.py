"""`python runtime.py ROOT VENV`: put into ROOT what the programs of a virtual environment need, and nothing else.

That is the environment, Python and its standard library, the shared libraries that these are linked with, certificate
authorities, time zones, and the records by which scanners recognise Debian's packages. No shell, no package manager.
Every file keeps its path. The result is the same, byte by byte, whenever the same files are put together: times are
SOURCE_DATE_EPOCH, and compiled modules depend on their sources alone.
"""

import compileall
import os
import re
import shutil
import ssl
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from py_compile import PycInvalidationMode

UNUSED = {
    *("ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "dist-packages", "test", "tkinter"),
    *("turtledemo", "__pycache__"),
}
"""Folders of the standard library that no service needs."""

UNUSED_MODULES = re.compile(r"(_test|_ctypes_test|_xxtestfuzz|xxlimited|_tkinter|xxsubtype).*\.so|turtle\.py")

SOURCES = {".c", ".h", ".pyi", ".pyx", ".pxd", ".pxi"}
"""What compiled packages bring along, and nothing reads."""

ACTIVATION = re.compile(r"(activate.*|Activate.*)")

LOADED_BY_NAME = ("libgcc_s.so.1",)
"""Libraries that nothing is linked with, but which glibc loads when a thread ends."""

OTHERS = (
    *("/etc/ssl/certs/ca-certificates.crt", "/etc/nsswitch.conf", "/etc/os-release", "/etc/debian_version"),
    *("/etc/protocols", "/etc/services", "/usr/share/zoneinfo"),
)

USERS = "root:x:0:0:root:/nonexistent:/nonexistent\nvm-sync:x:10001:10001:vm-sync:/nonexistent:/nonexistent\n"
GROUPS = "root:x:0:\nvm-sync:x:10001:\n"

PACKAGES = Path("var/lib/dpkg/status.d")
"""Where scanners look for the packages of an image without a package manager."""


def main(root: Path, venv: Path) -> None:
    """Fill `root`, which must not exist."""
    root.mkdir(parents=True)
    _tree(venv, root, without=lambda path: path.suffix in SOURCES or path.name == "__pycache__")
    for script in filter(lambda path: ACTIVATION.fullmatch(path.name), list(_below(root, venv / "bin").iterdir())):
        script.unlink()
    stdlib = Path(sysconfig.get_path("stdlib"))
    _tree(stdlib, root, without=_unused)
    for link in _links(Path(os.path.realpath(venv / "bin" / "python")), venv / "bin" / "python"):
        _file(link, root)
    _file(Path(sys.executable).resolve(), root)
    for library in sorted(_libraries(root)):
        _file(library, root)
    for other in map(Path, OTHERS):
        if other.is_dir():
            _tree(other, root, without=lambda path: path.suffix in {".zi", ".tab", ".list"})
        elif other.exists():
            _file(other, root)
    _authorities(root)
    _records(root)
    _remember_libraries(root)
    _write(root / "etc/passwd", USERS)
    _write(root / "etc/group", GROUPS)
    (root / "tmp").mkdir(exist_ok=True)
    _compile(root, [venv, stdlib])
    _date(root, int(os.environ.get("SOURCE_DATE_EPOCH") or 0))
    (root / "tmp").chmod(0o1777)


def _unused(path: Path) -> bool:
    return path.name in UNUSED or path.name.startswith("config-") or bool(UNUSED_MODULES.fullmatch(path.name))


# ---------------------------------------------------------------- copying


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _tree(folder: Path, root: Path, *, without: Callable[[Path], bool]) -> None:
    """Copy a folder, links as links."""
    for path in sorted(folder.iterdir()):
        if without(path):
            continue
        if path.is_dir() and not path.is_symlink():
            _tree(path, root, without=without)
        else:
            _file(path, root)


def _file(path: Path, root: Path) -> None:
    """Copy a file at its path; of a link, whatever it leads to as well, and of a linked folder the link alone."""
    for parent in reversed(path.parents):
        there = _below(root, parent)
        if parent.is_symlink() and not there.is_symlink() and not there.exists():
            there.symlink_to(parent.readlink())
            _below(root, parent.resolve()).mkdir(parents=True, exist_ok=True)
        elif not there.exists():
            there.mkdir()
    there = _below(root, path)
    if there.is_symlink() or there.exists():
        return
    if path.is_symlink():
        there.symlink_to(path.readlink())
        if path.exists() and not path.is_dir():
            _file(path.resolve(), root)
    else:
        shutil.copyfile(path, there)
        there.chmod(0o755 if os.access(path, os.X_OK) else 0o644)


def _links(end: Path, start: Path) -> Iterator[Path]:
    """Yield the links from `start` on, one after another, and their end."""
    path = start
    while path != end and path.is_symlink():
        path = Path(os.path.normpath(path.parent / path.readlink()))
        yield path
    yield end


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# ---------------------------------------------------------------- shared libraries


def _libraries(root: Path) -> set[Path]:
    """Return what the programs and modules in `root` are linked with, the loader included, under the names they use."""
    linked = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink() and _is_elf(path)]
    shown = subprocess.run(["ldd", *map(str, linked)], capture_output=True, text=True, check=False).stdout
    missing = set(re.findall(r"(\S+) => not found", shown))
    found = {Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", shown, flags=re.MULTILINE)}
    outside = {path for path in found if not path.is_relative_to(root)}
    folders = {path.parent for path in outside}
    outside |= {folder / name for name in LOADED_BY_NAME for folder in folders if (folder / name).exists()}
    if missing - {path.name for path in root.rglob("*.so*")}:
        sys.exit(f"Shared libraries are missing: {', '.join(sorted(missing))}")
    return outside


def _remember_libraries(root: Path) -> None:
    """Let the loader find libraries outside its usual folders, such as Python's own in /usr/local/lib."""
    if (ldconfig := shutil.which("ldconfig", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")) is None:
        return
    for path in sorted([Path("/etc/ld.so.conf"), *Path("/etc/ld.so.conf.d").glob("*.conf")]):
        _file(path, root)
    subprocess.run([ldconfig, "-r", str(root)], check=True)
    shutil.rmtree(root / "var/cache/ldconfig", ignore_errors=True)  # has the moment in it


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


# ---------------------------------------------------------------- certificates, records


def _authorities(root: Path) -> None:
    """Let OpenSSL find the certificate authorities in one file, where it looks for them by default."""
    default = Path(ssl.get_default_verify_paths().openssl_cafile)
    there = _below(root, default)
    there.parent.mkdir(parents=True, exist_ok=True)
    if not there.exists() and not there.is_symlink():
        there.symlink_to("/etc/ssl/certs/ca-certificates.crt")
    configuration = default.parent / "openssl.cnf"
    if configuration.exists():
        _file(configuration, root)


def _records(root: Path) -> None:
    """Write what Debian's package manager knows of the packages that files come from, and their licences."""
    if shutil.which("dpkg-query") is None:
        return
    files = ["/" + str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    names = set()
    for some in _parts([*files, *(path.removeprefix("/usr") for path in files if path.startswith("/usr/lib"))]):
        shown = subprocess.run(["dpkg-query", "-S", *some], capture_output=True, text=True, check=False).stdout
        lines = [line for line in shown.splitlines() if not line.startswith("diversion by ")]
        names |= {name for line in lines for name in line.split(": /")[0].split(", ")}
    for name in sorted(names):
        plain = name.partition(":")[0]
        stanza = subprocess.run(["dpkg-query", "-s", name], capture_output=True, text=True, check=True).stdout
        _write(root / PACKAGES / plain, stanza)
        licence = Path("/usr/share/doc") / plain / "copyright"
        if licence.exists():
            _file(licence, root)


def _parts(paths: list[str]) -> Iterable[list[str]]:
    return (paths[begin : begin + 500] for begin in range(0, len(paths), 500))


# ---------------------------------------------------------------- compiling, dates


def _compile(root: Path, folders: Iterable[Path]) -> None:
    for folder in folders:
        compileall.compile_dir(
            _below(root, folder),
            quiet=2,
            stripdir=str(root),
            prependdir="/",
            invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
        )


def _date(root: Path, moment: int) -> None:
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, (moment, moment), follow_symlinks=False)
    os.utime(root, (moment, moment))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
