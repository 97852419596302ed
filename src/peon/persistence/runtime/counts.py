"""Numbers with their nouns, for messages."""


def counted(count: int, one: str, many: str = "") -> str:
    """Returns a number with its noun, such as "1 event" or "2,000 events".

    Args:
        count: The number.
        one: What follows the number 1. It may end with a verb, such as "event is".
        many: What follows any other number. By default, `one` with an s.
    """
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
