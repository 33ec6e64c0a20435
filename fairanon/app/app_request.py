"""What one asks of the page. Imports nothing heavy."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from fairanon.config.experiments import UserError
from fairanon.config.options import option, tidy

_LEAST = 12
"""Letters of a password at least."""


@dataclass(frozen=True)
class AppRequest:
    """Serve the page.

    Its attributes are the options of ``fairanon app``; ``fairanon app --help`` says what each is.

    Raises:
        UserError: An option is out of range, or others could see what nobody should.
    """

    host: str = option("127.0.0.1", "address; another than 127.0.0.1 needs --password-file", "IP")
    port: int = option(7860, "0 takes any that is free (default 7860)", "N", least=0, most=65535)
    password_file: Path | None = option(None, "its first line is the password of the user fairanon", "FILE")
    share: bool = option(False, "refused: it would send photographs through somebody else's machine")
    no_browser: bool = option(False, "do not open it in a browser")
    detector: str = option("centerface", "who finds faces, see `fairanon anonymize`", "J,J")
    recognizer: str = option("dlib", "who tests hidden faces, see `fairanon anonymize`", "J,J")

    def __post_init__(self) -> None:
        tidy(self)
        if self.share:
            raise UserError(
                "--share: a public link sends every photograph through somebody else's machine; to let others in, give --host "
                "and --password-file, in a network that you trust."
            )
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            raise UserError(f"--host must be an address, for example 127.0.0.1, got {self.host!r}.") from None
        if not address.is_loopback and self.password_file is None:
            raise UserError(f"--host {self.host} lets others in: give --password-file, or take 127.0.0.1.")

    def password(self) -> str | None:
        """The password; None if nobody is asked for one.

        Raises:
            UserError: The file is missing or its first line is short.
        """
        if self.password_file is None:
            return None
        try:
            lines = self.password_file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"--password-file: {self.password_file} cannot be read ({error}).") from None
        if not lines or len(lines[0].strip()) < _LEAST:
            raise UserError(
                f"--password-file: the first line of {self.password_file} must have {_LEAST} letters or more."
            )
        return lines[0].strip()
