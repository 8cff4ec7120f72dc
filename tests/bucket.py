"""An fsspec bucket for tests: names without folders, as in S3; several processes may use it at once."""

import io
import os
import sys
import textwrap
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import fsspec
from fsspec.spec import AbstractFileSystem

STORE = "BEAMCLIP_TEST_BUCKET"
"""Environment variable with the folder that holds the objects."""
REFUSED = "BEAMCLIP_TEST_BUCKET_REFUSES"
"""Environment variable with the suffix of names that cannot be written."""


class _Upload(io.BytesIO):
    """An object that exists only once its upload is complete."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def close(self) -> None:
        """Store the content as an object."""
        if not self.closed:
            self._path.write_bytes(self.getvalue())
        super().close()


class BucketFileSystem(AbstractFileSystem):
    """Keeps objects as files in one folder, under their quoted names. Making folders does nothing."""

    protocol = "bucket"
    cachable = False

    def _file(self, path: str) -> Path:
        return Path(os.environ[STORE], quote(self._strip_protocol(path), safe=""))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """List the objects and prefixes directly below a path; raise FileNotFoundError if there are none."""
        path = self._strip_protocol(path).rstrip("/")
        found: dict[str, dict[str, Any]] = {}
        for file in Path(os.environ[STORE]).iterdir():
            name = unquote(file.name)
            if name == path:
                found[name] = {"name": name, "size": file.stat().st_size, "type": "file"}
            elif name.startswith(f"{path}/"):
                child, deeper, _rest = name[len(path) + 1 :].partition("/")
                kind, size = ("directory", 0) if deeper else ("file", file.stat().st_size)
                found[f"{path}/{child}"] = {"name": f"{path}/{child}", "size": size, "type": kind}
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else sorted(found)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if "r" in mode:
            return self._file(path).open("rb")
        if path.endswith(os.environ.get(REFUSED, "/")):
            raise PermissionError(path)
        return _Upload(self._file(path))

    def rm_file(self, path: str) -> None:
        """Remove an object; as in S3, a missing one is not an error."""
        self._file(path).unlink(missing_ok=True)

    def _rm(self, path: str) -> None:
        self.rm_file(path)


def register_bucket(store: Path, monkeypatch: Any) -> None:
    """Register bucket:// in this process, and through an entry point in the processes that it starts."""
    store.mkdir()
    plugin = store.parent / "bucket_plugin"
    information = plugin / "bucket_plugin-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: bucket-plugin\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        textwrap.dedent("""\
            [fsspec.specs]
            bucket = bucket:BucketFileSystem
            """)
    )
    paths = [str(plugin), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv(STORE, str(store))
    monkeypatch.setitem(sys.modules, "bucket", sys.modules[__name__])
    fsspec.register_implementation("bucket", BucketFileSystem, clobber=True)
