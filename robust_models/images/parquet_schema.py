"""Where a parquet schema has its images and labels, and pyarrow's failures in our words."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from robust_models.errors import DECODING_FAILURES, UserError, reason
from robust_models.images.codec import IMAGE_SUFFIXES
from robust_models.images.folder_files import check_regular

_BUFFER_BYTES = 1 << 20  # a column is read in such pieces; pre_buffer would keep all that was ever read
_USUAL_NAMES = ("image", "img")


class Columns(NamedTuple):
    """The columns of a set; a struct of `bytes` and `path` is how `datasets` stores an Image."""

    image: str
    in_struct: bool
    label: str | None
    class_names: tuple[str, ...] | None

    @property
    def encoded(self) -> str:
        """The column that must be read to have the images."""
        return f"{self.image}.bytes" if self.in_struct else self.image

    def encoded_in(self, column: Any) -> Any:
        """The encoded images in the image column."""
        return column.field("bytes") if self.in_struct else column

    def replaced(self, column: Any, pngs: Sequence[bytes]) -> Any:
        """The image column with other images in it."""
        import pyarrow

        if not self.in_struct:
            return pyarrow.array(pngs, column.type)
        others = {field.name: column.field(field.name) for field in column.type}
        others["bytes"] = pyarrow.array(pngs, others["bytes"].type)
        if "path" in others:
            names = [None if path is None else _as_png(path) for path in others["path"].to_pylist()]
            others["path"] = pyarrow.array(names, others["path"].type)
        return pyarrow.StructArray.from_arrays(list(others.values()), fields=list(column.type))


def find_columns(files: Sequence[Path]) -> Columns:
    """UserError where the first file has no image column, or several and none of the usual name, or another differs."""
    with opened_file(files[0]) as source, readable(files[0]):
        schema = source.schema_arrow
    features = _features(schema)
    image = _image_column(files[0], schema, features)
    label = _label_column(schema, features)
    for file in files[1:]:
        with opened_file(file) as source, readable(file):
            other = source.schema_arrow
        for name in filter(None, (image, label)):
            if name not in other.names or other.field(name).type != schema.field(name).type:
                raise UserError(f"{file}: its column {name!r} is not as in {files[0]}; give the files of one dataset")
    names = features.get(label, {}).get("names") if label else None
    class_names = tuple(map(str, names)) if names and isinstance(names, list) else None
    return Columns(image, _is_struct(schema.field(image).type), label, class_names)


@contextmanager
def opened_file(file: Path) -> Iterator[Any]:
    """A pyarrow.parquet.ParquetFile that streams."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError(f'{file}: parquet needs pyarrow ({error}); pip install "bigroc[parquet]"') from error
    with readable(file):
        check_regular(file)
        opened = ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    with opened:
        yield opened


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turns what reading the file raises into a UserError."""
    from pyarrow import ArrowException

    try:
        yield
    except UserError:
        raise
    except (ArrowException, *DECODING_FAILURES) as error:
        raise UserError(f"{file}: not a readable parquet file ({reason(error)}); copy or make it anew") from error


def _features(schema: Any) -> dict[str, Any]:
    """What `datasets` wrote about the columns; empty where something else wrote the file."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (TypeError, LookupError, ValueError, AttributeError, RecursionError):
        return {}


def _image_column(file: Path, schema: Any, features: dict[str, Any]) -> str:
    holders = [field.name for field in schema if _is_struct(field.type) or _is_binary(field.type)]
    declared = [name for name in holders if features.get(name, {}).get("_type") == "Image"]
    found = declared or holders
    usual = [name for name in _USUAL_NAMES if name in found]
    if len(found) > 1 and usual:
        found = usual[:1]
    if len(found) != 1:
        listed = ", ".join(f"{field.name} {field.type}" for field in schema)[:300]
        raise UserError(
            f"{file}: {'no column' if not found else 'several columns'} of images (columns: {listed}); "
            "expected one, 'image', of struct<bytes, path> or binary"
        )
    return found[0]


def _label_column(schema: Any, features: dict[str, Any]) -> str | None:
    import pyarrow

    integers = [field.name for field in schema if pyarrow.types.is_integer(field.type)]
    classes = [name for name in integers if features.get(name, {}).get("_type") == "ClassLabel"]
    return "label" if "label" in integers else next(iter(classes), None)


def _is_struct(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_struct(kind) and any(
        field.name == "bytes" and _is_binary(field.type) for field in (kind.field(i) for i in range(kind.num_fields))
    )


def _is_binary(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def _as_png(path: str) -> str:
    suffix = PurePosixPath(path).suffix
    return f"{path.removesuffix(suffix)}.png" if suffix.lower() in IMAGE_SUFFIXES else path
