"""Detect faces, and drop images with a visible face."""

from typing import TYPE_CHECKING

from namedmask import lazy_names

if TYPE_CHECKING:
    from namedmask.faces.detectors import FACE_DETECTORS as FACE_DETECTORS
    from namedmask.faces.detectors import FaceDetector as FaceDetector
    from namedmask.faces.retinaface import RetinaFace as RetinaFace
    from namedmask.faces.stage import Faces as Faces
    from namedmask.faces.stage import find_faces as find_faces

__all__ = ["FACE_DETECTORS", "FaceDetector", "Faces", "RetinaFace", "find_faces"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "FACE_DETECTORS": "detectors",
        "FaceDetector": "detectors",
        "Faces": "stage",
        "RetinaFace": "retinaface",
        "find_faces": "stage",
    },
)
