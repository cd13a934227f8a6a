"""Files on a local disk or on S3."""

from namedmask.storage.place import Place, is_s3, place_of

__all__ = ["Place", "is_s3", "place_of"]
