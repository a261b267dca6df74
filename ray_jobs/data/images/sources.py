"""Class folders: which pictures a source holds, and of which class each is."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from ray_jobs.data.images.spec import ImageDataSpec, ImageSource
from ray_jobs.data.table import nearest
from ray_jobs.errors import DataError
from ray_jobs.storage import StorageUnavailable, brief_cause, outage, resolve_filesystem

# HEIC is not read, but it is what a phone gives: it shall be told of, not passed over.
EXTENSIONS = frozenset(
    (
        ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif",
        ".tiff", ".avif", ".jp2", ".j2k", ".ppm", ".pgm", ".heic", ".heif",
    )
)  # fmt: skip
_KINDS = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000 or PPM"
_NEEDED = "the folder whose subfolders are the classes"


@dataclass(frozen=True)
class PictureFile:
    """One file under a class folder."""

    source: int  # index into data.sources, and behind them data.added
    source_class: str
    label: int  # index into data.classes
    name: str  # below the source, with /
    path: str  # absolute, or a URI
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class Inventory:
    """The pictures of all sources, ordered by source and name."""

    files: list[PictureFile] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Folder:
    """A source's path, and all that lies below it."""

    key: str  # of the spec, such as data.sources.0
    uri: str  # as the spec gives it
    filesystem: FileSystem
    root: str  # within the filesystem
    pictures: dict[str, FileInfo]  # by name below the root, sorted
    num_others: int  # files that are no pictures, or hidden

    def display(self, root: str) -> str:
        """What to print for a path within the filesystem."""
        scheme, separator, _ = self.uri.partition("://")
        return f"{scheme}://{root}" if separator else root


def find_pictures(data: ImageDataSpec, sources: Sequence[ImageSource]) -> Inventory:
    """The pictures of all sources and their classes, then those of data.added. Nothing is opened.

    Raises:
        DataError: a path is not a folder of class folders, or a class folder has no class.
    """
    inventory = Inventory()
    keys = [f"data.sources.{i}" for i in range(len(sources))]
    keys += [f"data.added.{i}" for i in range(len(data.added))]
    for index, (key, source) in enumerate(zip(keys, [*sources, *data.added], strict=True)):
        folder = _list_folder(source.path, key)
        known = {*data.classes, *source.map, *source.ignore}
        _check_level(folder, known)
        _add(inventory, index, folder, source, data)
    return inventory


def _list_folder(uri: str, key: str) -> _Folder:
    filesystem, root = resolve_filesystem(uri)
    try:
        kind = filesystem.get_file_info(root).type
        selector = FileSelector(root, recursive=True)
        below = filesystem.get_file_info(selector) if kind == FileType.Directory else []
    except OSError as error:
        told = outage(uri, error)
        if isinstance(told, StorageUnavailable):
            raise told from None
        is_local = "://" not in uri
        check = "its permissions" if is_local else "the bucket, your AWS credentials and endpoint"
        raise DataError(
            f"{uri}: cannot be listed ({brief_cause(error)}). Check {check}, or set {key}.path "
            "elsewhere"
        ) from None
    if kind == FileType.NotFound:
        raise DataError(f"{uri}: no such folder. Set {key}.path to {_NEEDED}")
    if kind != FileType.Directory:
        raise DataError(f"{uri}: a file, not a folder. Set {key}.path to {_NEEDED}")
    names = {info.path[len(root) :].lstrip("/"): info for info in below if info.is_file}
    if not names:
        raise DataError(f"{uri}: the folder is empty. Set {key}.path to {_NEEDED}")
    pictures = {name: names[name] for name in sorted(names) if _is_picture(name)}
    if not pictures:
        raise DataError(
            f"{uri}: none of its {len(names)} files is a picture by its ending ({_KINDS}). "
            f"Set {key}.path to {_NEEDED}"
        )
    return _Folder(key, uri, filesystem, root, pictures, len(names) - len(pictures))


def _is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    # macOS writes a ._a.jpg beside each a.jpg, and __MACOSX into archives
    is_hidden = any(part.startswith((".", "__")) for part in path.parts)
    return path.suffix.lower() in EXTENSIONS and not is_hidden


def _check_level(folder: _Folder, known: set[str]) -> None:
    """Raise DataError if the class folders lie above or below the path."""
    subfolders: dict[str, set[str]] = {}  # folder -> its subfolders that hold pictures somewhere
    for name in folder.pictures:
        parents = [*PurePosixPath(name).parents]
        for child, parent in itertools.pairwise(parents):
            subfolders.setdefault(str(parent), set()).add(child.name)
    num_known = {parent: len(names & known) for parent, names in subfolders.items()}
    if num_known.get("."):
        return
    path = PurePosixPath(folder.root)
    for level in (path, path.parent):
        if level.name not in known or not level.parent.name:
            continue
        num_siblings = len(_folder_names(folder, str(level.parent)) & known)
        if num_siblings > 1 or "." not in subfolders:
            raise DataError(
                f"{folder.uri}: this is {'a' if level == path else 'inside a'} class folder; found "
                + _found(folder, num_siblings, str(level.parent))
            )
    best = max(num_known, key=lambda parent: (num_known[parent], parent), default=".")
    if num_known.get(best):
        raise DataError(f"{folder.uri}: found " + _found(folder, num_known[best], str(path / best)))
    if "." not in subfolders:
        raise DataError(
            f"{folder.uri}: {len(folder.pictures)} pictures and no class folder. "
            f"Set {folder.key}.path to {_NEEDED}"
        )


def _found(folder: _Folder, count: int, root: str) -> str:
    plural = "class folder" if count == 1 else "class folders"
    return f"{count} {plural} in {folder.display(root)}; set {folder.key}.path to it"


def _folder_names(folder: _Folder, root: str) -> set[str]:
    below = folder.filesystem.get_file_info(FileSelector(root))
    return {info.base_name for info in below if info.type == FileType.Directory}


def _add(
    inventory: Inventory, index: int, folder: _Folder, source: ImageSource, data: ImageDataSpec
) -> None:
    """Add a folder's pictures; refuse or tell of what has no class."""
    numbers = {name: label for label, name in enumerate(data.classes)}
    counts = Counter(PurePosixPath(name).parts[0] for name in folder.pictures if "/" in name)
    label_of = {
        name: numbers[source.map.get(name, name)]
        for name in counts
        if source.map.get(name, name) in numbers and name not in source.ignore
    }
    unmapped = sorted(name for name in counts if name not in {*label_of, *source.ignore})
    _tell_unmapped(inventory, folder, {name: counts[name] for name in unmapped}, data)
    for key, names in (("map", source.map), ("ignore", source.ignore)):
        for name in names:
            if name not in counts:
                inventory.warnings.append(
                    f"{folder.key}.{key} names {name!r}, which is no class folder of {folder.uri}"
                    f"{nearest(name, unmapped)}"
                )
    if not label_of:
        raise DataError(
            f"{folder.uri}: all of its {len(counts)} class folders are ignored. "
            f"Name their classes in {folder.key}.map, or delete the source"
        )
    for name, info in folder.pictures.items():
        first = name.partition("/")[0]
        if "/" in name and first in label_of:
            inventory.files.append(
                PictureFile(
                    source=index,
                    source_class=first,
                    label=label_of[first],
                    name=name,
                    path=folder.display(info.path),
                    size=info.size,
                    mtime_ns=info.mtime_ns,
                )
            )
    _note(inventory, folder.num_others, f"files in {folder.uri} are no pictures and were skipped")
    num_loose = sum("/" not in name for name in folder.pictures)
    _note(inventory, num_loose, f"pictures lie in {folder.uri} itself, in no class folder: skipped")


def _tell_unmapped(
    inventory: Inventory, folder: _Folder, unmapped: dict[str, int], data: ImageDataSpec
) -> None:
    """Refuse class folders that have no class, or warn of them."""
    if not unmapped:
        return
    listing = ", ".join(
        f"{name!r} ({count} {'picture' if count == 1 else 'pictures'}){nearest(name, data.classes)}"
        for name, count in unmapped.items()
    )
    if data.unmapped == "refuse":
        raise DataError(
            f"{folder.uri}: no class in data.classes for {listing}. Name the class of each in "
            f"{folder.key}.map, list it in {folder.key}.ignore, or set data.unmapped=ignore"
        )
    inventory.warnings.append(
        f"{folder.uri}: left out, for there is no class in data.classes: {listing}"
    )


def _note(inventory: Inventory, count: int, text: str) -> None:
    if count:
        inventory.notes.append(f"{count} {text}")
