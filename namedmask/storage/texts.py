"""The text in files that other programs wrote."""

import codecs


def text_of(data: bytes) -> str:
    """Return the text in a file that any editor may have written: UTF-8 or UTF-16 with its mark.

    Raises:
        UnicodeDecodeError: the text is in another encoding.
    """
    is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_utf_16 else "utf-8-sig")
