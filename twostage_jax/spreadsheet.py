"""Text from files, as a cell of a CSV file that people open in a spreadsheet."""

# Spreadsheets take text that begins like this for a formula (OWASP, "CSV injection").
FORMULA_STARTS = ("=", "+", "-", "@")


def inert(text: str) -> str:
    """Returns a text as one line that no spreadsheet takes for a formula."""
    # The bytes of a file's name that are not UTF-8.
    text = text.encode(errors="backslashreplace").decode()
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return f"'{line}" if line.startswith(FORMULA_STARTS) else line
