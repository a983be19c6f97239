"""What Firstlight says when something given to it is wrong."""


class InputError(ValueError):
    """Something the user gave is wrong: one sentence says what and where, `hint` what to do.

    The shell prints both and ends with exit code 2; a notebook shows them as an ordinary exception.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\n{hint}" if hint else message)
        self.message = message
        self.hint = hint


def nearest(word: str, known: "list[str]") -> str:
    """Return a hint that names the known word most like `word`, or all of them if none is."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else "Known: " + ", ".join(sorted(known)) + "."


_HARMFUL = {"Cc", "Cs", "Zl", "Zp"}  # control characters, bytes that are not UTF-8, line separators
_TURNING = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: object) -> str:
    r"""Return a text or a path on one line, safe to print.

    Control characters, line breaks, marks that turn the direction of writing, and bytes of a file name that
    are not UTF-8 come out as escapes, such as `\n`, `\u202e` and `\xff`. Other letters stay as they are.
    """
    import unicodedata

    return "".join(
        _escaped(letter) if unicodedata.category(letter) in _HARMFUL or letter in _TURNING else letter
        for letter in str(text)
    )


def _escaped(letter: str) -> str:
    # Python stands a byte that is not UTF-8 for by a surrogate, 0xDC00 above it.
    if 0xDC80 <= ord(letter) <= 0xDCFF:
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")


class RunFailed(RuntimeError):
    """A run that was begun well cannot go on: disk, memory or arithmetic gave out.

    The shell prints the sentence and the hint, and ends with exit code 1.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\n{hint}" if hint else message)
        self.message = message
        self.hint = hint


class Diverged(RunFailed):
    """Training met a loss that is not a finite number, or far above the first."""

    def __init__(self, step: int, lr: float) -> None:
        super().__init__(
            f"training diverged: the loss is not finite or far above the first at step {step}, learning rate "
            f"{lr:.4g}",
            f"Try a lower peak rate (--set peak_lr={lr / 2:.2g}) or gradient clipping (--set clip_norm=1).",
        )
        self.step, self.lr = step, lr
