"""Where files lie: a disk or S3."""

from namedmask.storage.place import Place, is_s3, place_of

__all__ = ["Place", "is_s3", "place_of"]
