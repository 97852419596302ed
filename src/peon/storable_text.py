"""Makes any text storable: joins surrogate pairs, and replaces what UTF-8 cannot encode."""


def storable_text(text: str) -> str:
    """Returns the text as UTF-8 can encode it.

    Halves of a surrogate pair that stand side by side become the character that they encode. A half that stands alone,
    such as a byte of a file name that is not UTF-8, becomes U+FFFD. Other text stays as it is.
    """
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class ChunkJoiner:
    """Makes the chunks of one streamed text storable, also if a provider cuts an emoji in two.

    Providers that count text in UTF-16 may end a chunk between the two halves of a surrogate pair. Use one joiner for
    each message: store what `add` returns for each chunk, and at the end what `end` returns.
    """

    def __init__(self) -> None:
        self._held = ""

    def add(self, chunk: str) -> str:
        """Returns the storable text up to the end of the chunk; holds back half a pair at its end.

        See `storable_text`. The text is empty if there is only half a pair so far.
        """
        text = self._held + chunk
        self._held = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return storable_text(text.removesuffix(self._held))

    def end(self) -> str:
        """Returns U+FFFD for half a pair that was held back and never completed; usually nothing."""
        held, self._held = self._held, ""
        return storable_text(held)
