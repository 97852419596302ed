"""What operators do with a database: look at it, check it, back it up, copy it, export and import it.

`database.maintenance` is a part of an open database; what is here stands beside it and may open a database of its own.
"""
