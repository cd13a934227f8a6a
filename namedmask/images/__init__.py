"""Decode, encode and resize images and masks; other modules only read and write PNG label maps."""

from typing import TYPE_CHECKING

from namedmask import lazy_names

if TYPE_CHECKING:
    from namedmask.images.codec import IMAGENET_MEAN as IMAGENET_MEAN
    from namedmask.images.codec import IMAGENET_STD as IMAGENET_STD
    from namedmask.images.codec import SIDEWAYS as SIDEWAYS
    from namedmask.images.codec import BadImage as BadImage
    from namedmask.images.codec import center_crop as center_crop
    from namedmask.images.codec import coarse_part as coarse_part
    from namedmask.images.codec import decode as decode
    from namedmask.images.codec import decode_coarse as decode_coarse
    from namedmask.images.codec import decode_gray as decode_gray
    from namedmask.images.codec import decode_stored as decode_stored
    from namedmask.images.codec import encode_jpeg as encode_jpeg
    from namedmask.images.codec import encode_png as encode_png
    from namedmask.images.codec import fitted as fitted
    from namedmask.images.codec import opened as opened
    from namedmask.images.codec import orientation_of as orientation_of
    from namedmask.images.codec import resize as resize
    from namedmask.images.codec import resize_shorter_side as resize_shorter_side
    from namedmask.images.codec import size_of as size_of
    from namedmask.images.codec import to_tensor as to_tensor
    from namedmask.images.codec import turned as turned
    from namedmask.images.hashes import hash_of as hash_of
    from namedmask.images.limits import MAX_SCANS as MAX_SCANS
    from namedmask.images.limits import limit_of_checked as limit_of_checked
    from namedmask.images.masks import MAX_MASK_PIXELS as MAX_MASK_PIXELS
    from namedmask.images.masks import decode_mask as decode_mask
    from namedmask.images.masks import draw_regions as draw_regions
    from namedmask.images.masks import encode_mask as encode_mask
    from namedmask.images.masks import refuse_regions as refuse_regions

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MAX_MASK_PIXELS",
    "MAX_SCANS",
    "SIDEWAYS",
    "BadImage",
    "center_crop",
    "coarse_part",
    "decode",
    "decode_coarse",
    "decode_gray",
    "decode_mask",
    "decode_stored",
    "draw_regions",
    "encode_jpeg",
    "encode_mask",
    "encode_png",
    "fitted",
    "hash_of",
    "limit_of_checked",
    "opened",
    "orientation_of",
    "refuse_regions",
    "resize",
    "resize_shorter_side",
    "size_of",
    "to_tensor",
    "turned",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "BadImage": "codec",
        "IMAGENET_MEAN": "codec",
        "IMAGENET_STD": "codec",
        "MAX_MASK_PIXELS": "masks",
        "MAX_SCANS": "limits",
        "SIDEWAYS": "codec",
        "center_crop": "codec",
        "coarse_part": "codec",
        "decode": "codec",
        "decode_coarse": "codec",
        "decode_gray": "codec",
        "decode_mask": "masks",
        "decode_stored": "codec",
        "draw_regions": "masks",
        "encode_jpeg": "codec",
        "encode_mask": "masks",
        "encode_png": "codec",
        "fitted": "codec",
        "hash_of": "hashes",
        "limit_of_checked": "limits",
        "opened": "codec",
        "orientation_of": "codec",
        "refuse_regions": "masks",
        "resize": "codec",
        "resize_shorter_side": "codec",
        "size_of": "codec",
        "to_tensor": "codec",
        "turned": "codec",
    },
)
